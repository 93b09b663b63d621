"""The same search computed in other ways."""

import math

import pytest
from support.search_runs import Run, Searched

SECOND_ORDER = {"xi": 0.01, "alpha_init_std": 1.0, "stage_epochs": 1}
"""Alphas start well apart: from near zero, Adam's first steps are the signs of the gradients, and
rounding alone decides where these are tiny."""


def losses(found: Run, name: str = "train_loss") -> list[float]:
    return [getattr(e, name) for e in found.epochs]


@pytest.mark.parametrize("changes", [{"fused": False}, {"recompute": True}], ids=str)
def test_literal_and_recomputed_searches_find_the_same(
    changes: dict, searched_once: Searched
) -> None:
    """Losses up to rounding through all stages, the same candidates kept, the same genotype."""
    plain, other = searched_once(**SECOND_ORDER), searched_once(**SECOND_ORDER, **changes)
    for name in ("train_loss", "val_loss", "penalty"):
        assert losses(other, name) == pytest.approx(losses(plain, name), rel=0.03), name
    assert [e.edge_ops for e in other.epochs] == [e.edge_ops for e in plain.epochs]
    assert other.result.genotype == plain.result.genotype


def test_bfloat16_finds_something_near(searched_once: Searched) -> None:
    plain, half = searched_once(**SECOND_ORDER), searched_once(**SECOND_ORDER, precision="bf16")
    assert losses(half) != losses(plain)
    assert losses(half)[0] == pytest.approx(losses(plain)[0], rel=0.02)
    assert losses(half) == pytest.approx(losses(plain), rel=0.2)


def test_sparse_evaluation_changes_the_curves_alone(searched_once: Searched) -> None:
    """Every second epoch, and the last of each stage of three."""
    dense = searched_once(stage_epochs=3)
    sparse = searched_once(stage_epochs=3, eval_epochs=2)
    assert sparse.result.genotype == dense.result.genotype
    assert sparse.result.supernet_accuracy == dense.result.supernet_accuracy
    for full, part in zip(dense.epochs, sparse.epochs, strict=True):
        assert part.train_loss == full.train_loss
        if part.epoch in (1, 2, 3, 5, 7, 8):
            assert part.val_accuracy == full.val_accuracy
        else:
            assert math.isnan(part.val_accuracy)
