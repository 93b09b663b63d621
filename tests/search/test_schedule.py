"""What each step of a search is given, and what is recorded of it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import exhaustive, reference, runs
from support.noisy_method import Noisy
from support.runs import DIGITS, search_config
from support.search_runs import Searched, run, watched

import dasvit.search.loop
from dasvit.data.datasets import load_data
from dasvit.data.splits import split_half
from dasvit.report.events import operation_share
from dasvit.search.score import accuracy
from dasvit.spaces.cell.inherit import derived_network

CPU = torch.device("cpu")


def in_groups(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def keys(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


@pytest.mark.usefixtures("few_searched")
def test_alphas_see_the_validation_half_and_weights_the_training_half(
    searched_once: Searched,
) -> None:
    """Lines 11-14: both in every step; every image once per epoch, in another order each time."""
    found = searched_once()
    data = dasvit.search.loop.load_data(found.config.data, CPU)
    split = split_half(data.train, 0.5, found.config.seed)
    halves = [{key for images, _ in half.batches(64) for key in keys(images)} for half in split]
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


class Untouchable:
    """Stands for the test set."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the search looked at the test set: {name}")

    def __len__(self) -> int:
        raise AssertionError("the search looked at the size of the test set")


def test_the_search_never_touches_the_test_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs.few_images(monkeypatch, dasvit.search.loop)
    load = dasvit.search.loop.load_data
    monkeypatch.setattr(
        dasvit.search.loop, "load_data", lambda *args: replace(load(*args), test=Untouchable())
    )
    assert run(search_config(stage_epochs=1), tmp_path).result.genotype


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


BOUNDS = {"gamma_min": 0.37, "gamma_max": 0.38, "zeta1": 2.0, "zeta2": 3.0}
FAIRNESS = BOUNDS | {"skip_weight": 0.7, "type_weight": 1.3}


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
    data = dasvit.search.loop.load_data(found.config.data, CPU)
    _, val = split_half(data.train, 0.5, found.config.seed)
    assert last.val_accuracy == result.supernet_accuracy == accuracy(model, val)
    derived = derived_network(model.supernet, result.genotype)
    assert result.discretised_accuracy == accuracy(derived, val)
    assert result.gap == result.supernet_accuracy - result.discretised_accuracy
    assert result.skip_share == operation_share(last.weights, last.edge_ops, "identity")
    assert result.zero_share == operation_share(last.weights, last.edge_ops, "zero")
    assert result.seconds == pytest.approx(sum(e.seconds for e in found.epochs))


@pytest.mark.usefixtures("few_searched")
def test_every_hook_of_a_method_is_called(tmp_path: Path) -> None:
    """In second order: one draw of noise for all passes of a step, none in evaluation."""
    Noisy.calls.clear()
    config = search_config(method=Noisy(), stage_layers=(1, 1), stage_ops=(8, 4), xi=0.05)
    found = watched(config, tmp_path)
    draws = [i for i, call in enumerate(Noisy.calls) if call.hook == "noise"]
    assert len(draws) == 8
    factors = []
    for number, start in enumerate(draws):
        calls = Noisy.calls[start + 1 : start + 6]
        assert [call.hook for call in calls] == [
            *("train_weights", "weights", "train_weights", "train_weights"),  # w', L_val, w ± εv
            "train_weights",
        ]
        assert {call.t for call in calls} == {number / 8}
        factors.append(calls[0].tensors["factor"])
        assert all(torch.equal(call.tensors["factor"], factors[-1]) for call in calls)
    assert len({tuple(factor.flatten().tolist()) for factor in factors}) == 8
    in_steps = {i for start in draws for i in range(start, start + 6)}
    evaluated = [
        call for i, call in enumerate(Noisy.calls) if i not in in_steps and not call.tensors
    ]
    assert {call.t for call in evaluated} >= {0.25, 0.5, 0.75, 1.0}

    first, last = found.stages
    beta = first.arch["beta"].detach()
    index = [exhaustive.prune(row.tolist(), runs.OPERATIONS, 4, "ranked") for row in beta]
    assert found.ends[0].kept == tuple(tuple(runs.OPERATIONS[i] for i in row) for row in index)
    begun = Noisy.calls[draws[4]].tensors
    for name in ("alpha", "beta"):
        carried = first.arch[name].detach().gather(1, torch.tensor(index))
        assert torch.equal(begun[name], carried)
        assert not torch.equal(last.arch[name].detach(), carried)
    for event, model in ((found.epochs[1], first), (found.epochs[3], last)):
        beta = model.arch["beta"].detach()
        assert event.figures == {"noisy/beta": pytest.approx(beta.mean().item())}
        share = (event.epoch + 1) / 4
        assert event.penalty == pytest.approx(share * beta.square().mean().item(), rel=1e-5)


def test_accuracy_is_of_the_whole_split_and_keeps_the_mode() -> None:
    data = load_data(DIGITS, CPU)
    split = data.train.subset(torch.arange(300))  # more than one batch
    ((_, labels),) = split.batches(300)

    class Constant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.eye(10)[3])

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training and not torch.is_grad_enabled()
            return self.bias.expand(len(images), 10)

    model = Constant()
    assert accuracy(model, split) == pytest.approx((labels == 3).float().mean().item())
    assert model.training
    accuracy(model.eval(), split)
    assert not model.training
