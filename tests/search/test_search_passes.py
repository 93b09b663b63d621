"""What a search trains on what: splits, passes of a step, rates, the fairness loss."""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from dasvit.methods.losses import fairness_loss, type_totals
from support import runs
from support.reference import cosine_lr
from support.runs import DIGITS, OPERATIONS, search_config
from support.search_runs import assert_same_run, epochs, run, stage_ends, supernet
from torch.nn.attention import SDPBackend, sdpa_kernel

import dasvit.search.architect
import dasvit.search.loop
import dasvit.search.step
from benchmarks import ablation
from dasvit.data.datasets import load_data
from dasvit.data.splits import split_half
from dasvit.presets import plain_darts
from dasvit.report.events import operation_share
from dasvit.run.checkpoint import load_checkpoint
from dasvit.search.architect import alpha_gradient, weight_gradient
from dasvit.search.loop import KIND, accuracy, search
from dasvit.spaces.cell.derive import derive
from dasvit.spaces.cell.inherit import derived_network
from dasvit.spaces.cell.supernet import SuperNet

CPU = torch.device("cpu")


def test_alphas_see_the_validation_half_and_weights_the_training_half(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Lines 11-14: both in every step, alpha first; every image once an epoch; no test image."""
    runs.few_images(monkeypatch, dasvit.search.loop, train=72)  # 36 + 36: an incomplete batch goes
    seen: list[tuple[str, torch.Tensor]] = []

    def watched_alpha(model: SuperNet, train: Any, val: Any, **options: Any) -> Any:
        seen.append(("train of alpha", train[0]))
        seen.append(("alpha", val[0]))
        return alpha_gradient(model, train, val, **options)

    def watched_weight(model: SuperNet, batch: Any) -> Any:
        seen.append(("weight", batch[0]))
        return weight_gradient(model, batch)

    monkeypatch.setattr(dasvit.search.step, "alpha_gradient", watched_alpha)
    monkeypatch.setattr(dasvit.search.step, "weight_gradient", watched_weight)
    config = search_config(stage_layers=(1,), stage_ops=(8,), batch_size=12, seed=3)
    search(config, tmp_path)

    data = dasvit.search.loop.load_data(config.data, CPU)
    train, val = split_half(data.train, 0.5, 3)
    halves = {
        name: {image.numpy().tobytes() for images, _ in split.batches(36) for image in images}
        for name, split in (("train", train), ("val", val))
    }
    assert len(halves["train"]) == len(halves["val"]) == 36
    assert not halves["train"] & halves["val"]
    assert [name for name, _ in seen] == ["train of alpha", "alpha", "weight"] * 6
    for i in range(0, len(seen), 3):
        assert torch.equal(seen[i][1], seen[i + 2][1])
    orders = []
    for epoch in range(2):
        for kind, half in (("weight", "train"), ("alpha", "val")):
            images = [
                image.numpy().tobytes()
                for name, batch in seen[9 * epoch : 9 * epoch + 9]
                for image in batch
                if name == kind
            ]
            assert len(images) == 36
            assert set(images) == halves[half]
            orders.append(images)
    assert orders[0] != orders[2]
    assert orders[1] != orders[3]


@pytest.mark.usefixtures("few_searched")
def test_all_passes_of_a_step_drop_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    states: list[torch.Tensor] = []

    def watched_alpha(*args: Any, **options: Any) -> Any:
        states.append(torch.get_rng_state())
        return alpha_gradient(*args, **options)

    def watched_weight(*args: Any) -> Any:
        states.append(torch.get_rng_state())
        return weight_gradient(*args)

    monkeypatch.setattr(dasvit.search.step, "alpha_gradient", watched_alpha)
    monkeypatch.setattr(dasvit.search.step, "weight_gradient", watched_weight)
    search(search_config(dropout=0.2, xi=0.05, stage_epochs=1), tmp_path)
    assert len(states) == 12
    for alpha, weight in zip(states[::2], states[1::2], strict=True):
        assert torch.equal(alpha, weight)
    steps = {state.numpy().tobytes() for state in states}
    assert len(steps) == 6  # each step draws anew


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
    result, _ = run(search_config(stage_epochs=1), tmp_path)
    assert 0 <= result.supernet_accuracy <= 1


@pytest.mark.usefixtures("few_searched")
def test_learning_rate_falls_by_a_cosine_in_each_stage(tmp_path: Path) -> None:
    _, events = run(search_config(stage_epochs=3), tmp_path)
    steps = 2  # 64 images, batches of 32
    expected = [cosine_lr((epoch % 3 + 1) * steps - 1, 3 * steps, lr=3e-3) for epoch in range(9)]
    assert [e.weight_lr for e in epochs(events)] == pytest.approx(expected, rel=1e-12)
    assert expected[0] > expected[1] > expected[2] < expected[3]


@pytest.mark.usefixtures("few_searched")
def test_one_cosine_over_the_whole_search(tmp_path: Path) -> None:
    _, events = run(search_config(stage_epochs=2, lr_span="search"), tmp_path)
    expected = [cosine_lr((epoch + 1) * 2 - 1, 6 * 2, lr=3e-3) for epoch in range(6)]
    assert [e.weight_lr for e in epochs(events)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("few_searched")
def test_norms_and_biases_are_spared_on_request(tmp_path: Path) -> None:
    config = search_config(
        stage_layers=(1,), stage_ops=(8,), stage_epochs=1, weight_lr=1e-2, weight_decay=9.0
    )
    positions = []
    for name, decay_norms in (("all", True), ("matrices", False)):
        search(replace(config, decay_norms=decay_norms), tmp_path / name)
        state = load_checkpoint(tmp_path / name / "checkpoint.pt", KIND)
        positions.append(state["model"]["norm.weight"])
        groups = state["weight_optimizer"]["param_groups"]
        assert [group["weight_decay"] for group in groups] == [9.0, 0.0][: 1 + (not decay_norms)]
    assert positions[0].mean() < 0.9 < positions[1].mean()  # the gain, 1 at the start


@pytest.mark.usefixtures("few_searched")
def test_gradient_clipping_bounds_the_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: Any) -> Any:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    one = {"stage_layers": (1,), "stage_ops": (8,), "stage_epochs": 1}
    search(search_config(**one), tmp_path / "free")
    free = norms.copy()
    norms.clear()
    search(search_config(**one, grad_clip=0.1), tmp_path / "clipped")
    assert min(free) > 0.1
    assert norms == pytest.approx([0.1] * len(free), rel=1e-4)


# --- Fairness and plain DARTS


@pytest.mark.usefixtures("few_searched")
def test_fairness_pushes_identity_down(tmp_path: Path) -> None:
    shares = {}
    for weight in (0.0, 100.0):
        config = search_config(
            stage_layers=(1,), stage_ops=(8,), skip_weight=weight, type_weight=0.0
        )
        result, events = run(config, tmp_path / str(weight))
        shares[weight] = result.skip_share
        for e in epochs(events):
            identity = operation_share(e.weights, e.edge_ops, "identity")
            assert e.fair_loss == pytest.approx(weight * identity, abs=1e-6)
    # Adam moves an alpha by about its rate a step: 4 steps of 0.03 against the others.
    assert shares[100.0] < shares[0.0] - 0.005


@pytest.mark.usefixtures("few_searched")
def test_records_are_of_the_supernet(tmp_path: Path) -> None:
    """Fairness loss, type totals, accuracy and shares, recomputed from the last checkpoint."""
    config = search_config(skip_weight=0.7, type_weight=1.3, gamma_min=0.3, gamma_max=0.35)
    result, events = run(config, tmp_path)
    model, last = supernet(config, tmp_path), epochs(events)[-1]
    weights = model.operation_weights().detach()
    assert last.weights == tuple(tuple(row) for row in weights.tolist())
    totals = type_totals(weights, model.edge_ops, ("msa", "mlp"))
    assert last.type_totals == {kind: float(total) for kind, total in totals.items()}
    assert set(last.type_totals) == {"msa", "mlp"}
    fair = fairness_loss(
        weights,
        model.edge_ops,
        ("msa", "mlp"),
        skip_weight=0.7,
        type_weight=1.3,
        gamma_min=0.3,
        gamma_max=0.35,
        zeta1=1.0,
        zeta2=1.0,
    )
    assert last.fair_loss == float(fair)
    data = dasvit.search.loop.load_data(config.data, CPU)
    _, val = split_half(data.train, 0.5, config.seed)
    assert last.val_accuracy == accuracy(model, val)
    assert result.supernet_accuracy == last.val_accuracy
    derived = derived_network(model, result.genotype)
    assert result.discretised_accuracy == accuracy(derived, val)
    assert result.gap == result.supernet_accuracy - result.discretised_accuracy
    assert result.skip_share == operation_share(last.weights, last.edge_ops, "identity")
    assert result.zero_share == operation_share(last.weights, last.edge_ops, "zero")
    assert result.genotype == derive(model.alpha, model.edge_ops, num_nodes=2)
    assert result.seconds == pytest.approx(sum(e.seconds for e in epochs(events)))


@pytest.mark.parametrize("xi", [0.0, 0.01])
@pytest.mark.parametrize("seed", [0, 1])
def test_fused_and_literal_searches_find_the_same(seed: int, xi: float, tmp_path: Path) -> None:
    """Losses up to rounding through all stages, the same candidates kept, the same genotype.

    Alphas start well apart: from near zero, Adam's first steps are the signs of the gradients, and
    rounding alone decides where these are tiny.
    """
    found = []
    for fused in (True, False):
        config = search_config(fused=fused, seed=seed, xi=xi, alpha_init_std=1.0)
        found.append(run(config, tmp_path / str(fused)))
    (left, first), (right, second) = ((result, epochs(events)) for result, events in found)
    for name in ("train_loss", "val_loss", "fair_loss"):
        values = [[getattr(e, name) for e in records] for records in (first, second)]
        assert values[0] == pytest.approx(values[1], rel=0.03), name
    assert [e.edge_ops for e in first] == [e.edge_ops for e in second]
    assert left.genotype == right.genotype


FAST_PATHS = {
    "weights frozen": lambda: patch.object(
        dasvit.search.architect, "_frozen", lambda params: nullcontext()
    ),
    "alpha detached": lambda: patch.object(
        dasvit.search.step, "weight_gradient", ablation._attached_weight_gradient
    ),
    "attention kernels": lambda: sdpa_kernel(SDPBackend.MATH),
    "GELU computed anew": ablation._kept_gelu,
    "outputs kept": ablation._no_outputs,
    "lists of tensors": ablation._tensor_by_tensor,
    "scores by linearity": ablation._square_scores,
}


@pytest.mark.parametrize("path", FAST_PATHS)
def test_a_search_without_a_fast_path_finds_the_same(path: str, tmp_path: Path) -> None:
    """One at a time; in second order, where all are taken."""
    config = search_config(xi=0.01, token_ratio=0.5, alpha_init_std=1.0)
    left, first = run(config, tmp_path / "with")
    with FAST_PATHS[path]():
        right, second = run(config, tmp_path / "without")
    kept = [[e.edge_ops for e in epochs(events)] for events in (first, second)]
    assert kept[0] == kept[1]
    assert left.genotype == right.genotype


@pytest.mark.parametrize("xi", [0.0, 0.01])
def test_other_ways_to_compute_it_run(xi: float, tmp_path: Path) -> None:
    """Recomputation gives the same to rounding; bfloat16 something near."""
    base, _ = run(search_config(xi=xi, stage_epochs=1), tmp_path / "base")
    again, events = run(search_config(xi=xi, stage_epochs=1, recompute=True), tmp_path / "again")
    assert again.genotype == base.genotype
    half, near = run(search_config(xi=xi, stage_epochs=1, precision="bf16"), tmp_path / "bf16")
    losses = [[e.train_loss for e in epochs(x)] for x in (events, near)]
    assert losses[0] != losses[1]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.02)
    assert losses[0] == pytest.approx(losses[1], rel=0.2)
    assert math.isfinite(half.supernet_accuracy)


@pytest.mark.usefixtures("few_searched")
def test_plain_darts_is_the_same_code(tmp_path: Path) -> None:
    """λ = 1, no fairness, one stage; and a search with those settings is the same search."""
    config = plain_darts(search_config())
    _, events = run(config, tmp_path / "darts")
    records, ends = epochs(events), stage_ends(events)
    assert len(records) == 6
    assert len(ends) == 1
    assert {(e.stage, e.num_layers, e.fair_loss) for e in records} == {(0, 1, 0.0)}
    assert {e.edge_ops for e in records} == {(OPERATIONS,) * 5}
    state = load_checkpoint(tmp_path / "darts" / "checkpoint.pt", KIND)
    assert not [name for name in state["model"] if "selector" in name]
    by_hand = search_config(
        token_ratio=1.0,
        skip_weight=0.0,
        type_weight=0.0,
        stage_layers=(1,),
        stage_ops=(8,),
        stage_epochs=6,
    )
    search(by_hand, tmp_path / "by hand")
    assert_same_run(tmp_path / "darts", tmp_path / "by hand")


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


@pytest.mark.usefixtures("few_searched")
def test_sparse_evaluation_changes_the_curves_alone(tmp_path: Path) -> None:
    """Every second epoch, and the last of each stage of three."""
    found = {}
    for every in (1, 2):
        config = search_config(stage_epochs=3, eval_epochs=every)
        result, events = run(config, tmp_path / str(every))
        found[every] = result, epochs(events)
    (dense, all_epochs), (sparse, some) = found[1], found[2]
    assert sparse.genotype == dense.genotype
    assert sparse.supernet_accuracy == dense.supernet_accuracy
    for full, part in zip(all_epochs, some, strict=True):
        assert part.train_loss == full.train_loss
        if part.epoch in (1, 2, 3, 5, 7, 8):
            assert part.val_accuracy == full.val_accuracy
        else:
            assert math.isnan(part.val_accuracy)
