"""What each step of a search is given, and what is recorded of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from support import reference, runs
from support.plugin_method import ShakenDARTS
from support.runs import DIGITS, search_config
from support.search_runs import Run, Searched, make_quick

import dasvit.search.loop
from dasvit.data.datasets import load_data
from dasvit.data.splits import Split, split_half
from dasvit.report.events import operation_share
from dasvit.search.loop import search
from dasvit.search.score import accuracy
from dasvit.spaces.cell.inherit import derived_network

CPU = torch.device("cpu")


def in_groups(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def keys(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def halves_of(found: Run) -> tuple[Split, Split]:
    """The halves of a search's training images: for the weights, for the alphas."""
    data = dasvit.search.loop.load_data(found.config.data, CPU)
    return split_half(data.train, 0.5, found.config.seed)


@pytest.mark.usefixtures("few_searched")
def test_alphas_see_the_validation_half_and_weights_the_training_half(
    searched_once: Searched,
) -> None:
    """Lines 11-14: both in every step; every image once per epoch, in another order each time."""
    found = searched_once()
    halves = [
        {key for images, _ in half.batches(64) for key in keys(images)} for half in halves_of(found)
    ]
    assert len(halves[0]) == len(halves[1]) == 64
    assert not halves[0] & halves[1]
    orders = []
    for steps in in_groups(found.steps, 2):
        for half, name in zip(halves, ("train", "val"), strict=True):
            images = [key for step in steps for key in keys(getattr(step, name)[0])]
            assert len(images) == 64
            assert set(images) == half
            orders.append(tuple(images))
    assert len(orders) == len(set(orders)) == 2 * found.config.total_epochs


def test_the_search_never_touches_the_test_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_quick(monkeypatch)
    load = dasvit.search.loop.load_data
    monkeypatch.setattr(  # None has neither images nor a size
        dasvit.search.loop, "load_data", lambda *args: replace(load(*args), test=None)
    )
    assert search(search_config(stage_epochs=1), tmp_path).genotype


@pytest.mark.parametrize(("settings", "span"), [({}, 4), ({"lr_span": "search"}, 12)], ids=str)
def test_the_rate_falls_by_a_cosine_over_a_stage_or_the_search(
    settings: dict, span: int, searched_once: Searched
) -> None:
    """From step to step, of 2 per epoch and 2 epochs per stage; and `t` grows evenly."""
    found = searched_once(**settings)
    rates = [1.5e-3 * (1 + math.cos(math.pi * (i % span) / span)) for i in range(12)]
    assert [step.weight_lr for step in found.steps] == pytest.approx(rates, rel=1e-12)
    assert [step.t for step in found.steps] == pytest.approx([i / 12 for i in range(12)])
    assert [e.weight_lr for e in found.epochs] == [step.weight_lr for step in found.steps[1::2]]
    groups = found.state["weight_optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == [found.steps[-1].weight_lr]


def test_alphas_are_frozen_at_the_start_of_each_stage(searched_once: Searched) -> None:
    found = searched_once(stage_epochs=3, alpha_freeze_epochs=2)
    assert [step.val is None for step in found.steps] == ([True] * 4 + [False] * 2) * 3
    for first, second, third in in_groups(found.epochs, 3):
        assert math.isnan(first.val_loss) and math.isnan(second.val_loss)
        assert math.isfinite(third.val_loss)
        assert first.weights == second.weights
        assert all(a != b for a, b in zip(second.weights, third.weights, strict=True))
        assert first.train_loss != second.train_loss  # the weights do move
    rows = runs.rows_without_times(found.folder / "alpha.jsonl")
    assert [row["val_loss"] is None for row in rows] == [True, True, False] * 3


def test_every_step_draws_anew(searched_once: Searched) -> None:
    """The dropout masks of its passes, say."""
    draws = searched_once(xi=0.05, dropout=0.2, token_where="edge", num_nodes=1).steps
    assert len({step.draws.numpy().tobytes() for step in draws}) == len(draws)


FAIRNESS = {
    "skip_weight": 0.7,
    "type_weight": 1.3,
    "gamma_min": 0.37,
    "gamma_max": 0.38,
    "zeta1": 2.0,
    "zeta2": 3.0,
}


@pytest.mark.usefixtures("few_searched")
def test_records_are_of_the_supernet(searched_once: Searched) -> None:
    """Fairness loss, type totals, accuracy and shares, computed anew from the checkpoints."""
    found = searched_once(**FAIRNESS, alpha_init_std=0.5)
    ends = [e for e in found.epochs if e.epoch % 2 == 1]
    for model, last in zip(found.stages, ends, strict=True):
        weights = model.arch["alpha"].detach().softmax(-1)
        assert last.weights == tuple(tuple(row) for row in weights.tolist())
        fairness = reference.fairness(weights, last.edge_ops, ("msa", "mlp"), **FAIRNESS)
        assert last.penalty == pytest.approx(fairness.item(), rel=1e-5)
        for kind in ("msa", "mlp"):
            names = {name for row in last.edge_ops for name in row if name.startswith(kind)}
            total = sum(operation_share(last.weights, last.edge_ops, name) for name in names)
            assert last.figures[f"type/{kind}"] == pytest.approx(total, rel=1e-5)
        assert set(last.figures) == {"type/msa", "type/mlp"}
    model, result = found.stages[-1], found.result
    _, val = halves_of(found)
    assert last.val_accuracy == result.supernet_accuracy == accuracy(model, val)
    derived = derived_network(model.supernet, result.genotype)
    assert result.discretised_accuracy == accuracy(derived, val)
    assert result.gap == result.supernet_accuracy - result.discretised_accuracy
    assert result.skip_share == operation_share(last.weights, last.edge_ops, "identity")
    assert result.zero_share == operation_share(last.weights, last.edge_ops, "zero")
    assert result.seconds == pytest.approx(sum(e.seconds for e in found.epochs))


@dataclass(frozen=True, kw_only=True)
class Noted(ShakenDARTS):
    """Keeps what its hooks are called with: the share that is done, and noise or parameters."""

    calls: ClassVar[list[tuple[str, float, dict[str, torch.Tensor]]]] = []


def _note(hook: str, argument: int) -> None:
    def noted(self: Noted, *args: Any) -> Any:
        if not args[-1].is_meta:  # the check before a search
            copies = {name: value.detach().clone() for name, value in args[argument].items()}
            self.calls.append((hook, float(args[-1]), copies))
        return getattr(ShakenDARTS, hook)(self, *args)

    setattr(Noted, hook, noted)


def test_what_the_hooks_of_a_method_are_called_with(searched_once: Searched) -> None:
    """In second order: one draw of noise for all passes of a step, none in evaluation; both tensors
    are carried to the next stage, and trained there."""
    for hook, argument in (("noise", 0), ("weights", 1), ("train_weights", 1)):
        _note(hook, argument)
    settings = {"alpha_init_std": 1.0, "stage_layers": (1, 1), "stage_ops": (8, 4), "xi": 0.05}
    found = searched_once(method=Noted(), **settings)
    draws = [i for i, (hook, *_) in enumerate(Noted.calls) if hook == "noise"]
    assert len(draws) == 8
    shakes = set()
    for number, start in enumerate(draws):
        hooks, shares, noise = zip(*Noted.calls[start + 1 : start + 6], strict=True)
        # w', L_val, w ± εv; then the weights' own pass.
        assert hooks == ("train_weights", "weights", *["train_weights"] * 3)
        assert set(shares) == {number / 8}
        assert all(torch.equal(given["shake"], noise[0]["shake"]) for given in noise)
        shakes.add(tuple(noise[0]["shake"].flatten().tolist()))
    assert len(shakes) == 8
    evaluated = {t for hook, t, noise in Noted.calls if hook == "weights" and not noise}
    assert evaluated == {0.25, 0.5, 0.75, 1.0}

    first, last = found.stages
    index = [[runs.OPERATIONS.index(name) for name in names] for names in last.candidates.edge_ops]
    _, _, begun = Noted.calls[draws[4]]
    for name in ("alpha", "offset"):
        carried = first.arch[name].detach().gather(1, torch.tensor(index))
        assert torch.equal(begun[name], carried)
        assert not torch.equal(last.arch[name].detach(), carried)
    assert found.epochs[-1].figures == Noted().figures(last.named_arch(), None, None, None)


def test_accuracy_is_of_the_whole_split_and_keeps_the_mode() -> None:
    split = load_data(DIGITS, CPU).train.subset(torch.arange(300))  # more than one batch
    ((_, labels),) = split.batches(300)

    class Constant(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training and not torch.is_grad_enabled()
            return torch.eye(10)[3].expand(len(images), 10)

    model = Constant(1, 1)
    assert accuracy(model, split) == pytest.approx((labels == 3).float().mean().item())
    assert model.training
    accuracy(model.eval(), split)
    assert not model.training
