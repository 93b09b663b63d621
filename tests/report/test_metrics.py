"""Events and the numbers read off them."""

import dataclasses
import math
from dataclasses import replace

import pytest
from support.events import SEARCH_EPOCH, SEARCH_RESULT, STAGE_END

from dasvit.report.events import (
    mean_entropy,
    operation_share,
    scalars,
)

EDGE_OPS = (("zero", "identity", "msa_h2"), ("identity", "mlp_r3", "msa_h2"), ("zero", "a", "b"))
WEIGHTS = ((0.1, 0.2, 0.7), (0.5, 0.25, 0.25), (0.6, 0.3, 0.1))


def test_operation_share() -> None:
    """Over all edges: one that lost the operation counts as 0."""
    for name, share in (("zero", 0.7 / 3), ("msa_h2", 0.95 / 3), ("mlp_r4", 0.0)):
        assert operation_share(WEIGHTS, EDGE_OPS, name) == pytest.approx(share)


def test_mean_entropy() -> None:
    assert mean_entropy([[0.125] * 8] * 5) == pytest.approx(math.log(8))
    assert mean_entropy([[0.0, 1.0], [1.0, 0.0]]) == 0
    assert mean_entropy([[0.5, 0.5], [0.0, 1.0]]) == pytest.approx(math.log(2) / 2)


def test_scalars_of_a_search() -> None:
    values = scalars(
        replace(
            SEARCH_EPOCH,
            figures={"type/msa": 0.75, "type/conv": 0.125},
            val_loss=3.0,
        )
    )
    assert values == {
        "loss/train": 2.25,
        "loss/val": 3.0,
        "loss/penalty": 0.1,
        "accuracy/train": 0.125,
        "accuracy/val": 1 / 3,
        "alpha/skip_share": 0.0,
        "alpha/zero_share": 0.25,
        "alpha/entropy": pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75))),
        "alpha/steadiness": 1.5,
        "type/msa": 0.75,
        "type/conv": 0.125,
        "stage/num_layers": 2,
        "stage/num_ops": 2,
        "time/epoch_seconds": 0.5,
        "lr/weights": 1e-3,
    }
    assert scalars(SEARCH_RESULT) == {
        "supernet_accuracy": 0.6,
        "discretised_accuracy": 1 / 7,
        "gap": SEARCH_RESULT.gap,
        "skip_share": 0.1,
        "zero_share": 0.2,
        "seconds": 12.5,
    }


def test_scalars_of_a_change_of_stage() -> None:
    end = dataclasses.replace(STAGE_END, weights=((0.5, 0.25, 0.25), (0.1, 0.2, 0.7)))
    known = {"accuracy/largest_class": 0.1, "alpha/decided": pytest.approx(0.7 - 1 / 3)}
    assert scalars(end) == known
    assert scalars(dataclasses.replace(end, accuracy_after=0.5)) == known | {
        "stage/accuracy_before": 0.75,
        "stage/accuracy_after": 0.5,
    }
