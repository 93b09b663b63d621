"""Algorithm 1 end to end: exact restart, stages, what is trained on what, the golden trace."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from runs import DIGITS, OPERATIONS, CrashError, files_of, names_in, search_config

import dasvit.search
import dasvit.step
from dasvit.architect import alpha_gradient, weight_gradient
from dasvit.checkpoint import load_checkpoint
from dasvit.config import OUTER_SETTINGS, DataConfig, SearchConfig, config_to_dict
from dasvit.data import load_data
from dasvit.derive import derive
from dasvit.fused import FusedCell
from dasvit.genotype import Genotype
from dasvit.inherit import derived_network
from dasvit.losses import fairness_loss, type_totals
from dasvit.metrics import Event, SearchEpoch, SearchResult, StageEnd, operation_share
from dasvit.optim import cosine_lr
from dasvit.presets import plain_darts
from dasvit.search import KIND, accuracy, check_search, load_search_config, search
from dasvit.split import split_half
from dasvit.stages import prune
from dasvit.step import build_supernet
from dasvit.supernet import SuperNet
from dasvit.trace import load_search_result, read_trace

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).with_name("golden_search.txt")
CPU = torch.device("cpu")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 training images, two steps an epoch."""
    runs.few_images(monkeypatch, dasvit.search)


def run(config: SearchConfig, folder: Path, **options: Any) -> tuple[SearchResult, list[Event]]:
    """A search and all that it reported."""
    events: list[Event] = []
    result = search(config, folder, report=events.append, **options)
    return result, events


def epochs(events: list[Event]) -> list[SearchEpoch]:
    return [e for e in events if isinstance(e, SearchEpoch)]


def stage_ends(events: list[Event]) -> list[StageEnd]:
    return [e for e in events if isinstance(e, StageEnd)]


def supernet(config: SearchConfig, folder: Path) -> SuperNet:
    """The supernet in a folder's checkpoint."""
    state = load_checkpoint(folder / "checkpoint.pt", KIND)
    model = build_supernet(
        config,
        tuple(tuple(names) for names in state["edge_ops"]),
        num_layers=config.stage_layers[state["stage"]],
        in_channels=1,
        num_classes=10,
    )
    model.load_state_dict(state["model"])
    return model


def literal_state(model: SuperNet) -> dict[str, torch.Tensor]:
    """The supernet's state with every candidate under its own name."""
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("cells.")}
    for layer, cell in enumerate(model.cells):
        assert isinstance(cell, FusedCell)
        values = cell.unfused().state_dict()
        state |= {f"cells.{layer}.{name}": value for name, value in values.items()}
    return state


def assert_same_run(left: Path, right: Path) -> None:
    """Two finished searches are equal in all but wall times."""
    runs.assert_same_checkpoint(left, right, KIND)
    assert runs.rows_without_times(left / "alpha.jsonl") == runs.rows_without_times(
        right / "alpha.jsonl"
    )
    assert (left / "genotype.json").read_bytes() == (right / "genotype.json").read_bytes()
    results = [load_search_result(folder / "result.json") for folder in (left, right)]
    assert replace(results[0], seconds=0) == replace(results[1], seconds=0)
    assert results[0].genotype.provenance == results[1].genotype.provenance


# --- Exact restart

VARIANTS: dict[str, dict[str, Any]] = {
    "first order": {},
    "second order, dropout": {"xi": 0.05, "dropout": 0.2, "token_where": "edge"},
}


def crash_before_checkpoint(
    monkeypatch: pytest.MonkeyPatch, epoch: int
) -> Callable[[Event], None] | None:
    """The epoch is computed and reported, its checkpoint is not written."""
    return runs.crash_at(lambda event: isinstance(event, SearchEpoch) and event.epoch == epoch)


def crash_after_checkpoint(
    monkeypatch: pytest.MonkeyPatch, epoch: int
) -> Callable[[Event], None] | None:
    save = dasvit.search.save_checkpoint

    def save_and_crash(path: Path, kind: str, state: dict[str, Any]) -> None:
        save(path, kind, state)
        if state["epoch"] == epoch + 1:
            raise CrashError

    monkeypatch.setattr(dasvit.search, "save_checkpoint", save_and_crash)
    return None


def crash_while_saving(
    monkeypatch: pytest.MonkeyPatch, epoch: int
) -> Callable[[Event], None] | None:
    """The new checkpoint is written but has not got its name yet."""
    move = Path.replace

    def crash(self: Path, target: Path) -> Path:
        if Path(target).name == "checkpoint.pt":
            raise CrashError
        return move(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    return None


def crash_within_epoch(
    monkeypatch: pytest.MonkeyPatch, epoch: int
) -> Callable[[Event], None] | None:
    """Alphas of the second step are updated, its weights are not."""
    calls = {"count": 0}

    def gradient(*args: Any) -> Any:
        calls["count"] += 1
        if calls["count"] == 2:
            raise CrashError
        return weight_gradient(*args)

    monkeypatch.setattr(dasvit.step, "weight_gradient", gradient)
    return None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a variant's search that was never interrupted."""
    folders: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in folders:
            folders[variant] = tmp_path_factory.mktemp("whole")
            search(search_config(**VARIANTS[variant]), folders[variant])
        return folders[variant]

    return get


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "crash",
    [crash_before_checkpoint, crash_after_checkpoint, crash_while_saving, crash_within_epoch],
)
def test_killed_in_every_epoch_and_resumed(
    crash: Callable,
    variant: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = search_config(**VARIANTS[variant])
    expected = whole(variant)
    for epoch in range(config.total_epochs):
        with monkeypatch.context() as patch:
            report = crash(patch, epoch) or (lambda event: None)
            with pytest.raises(CrashError):
                search(config, tmp_path, report=report, resume=True)
        if crash is crash_after_checkpoint:
            assert load_checkpoint(tmp_path / "checkpoint.pt", KIND)["epoch"] == epoch + 1
        else:
            assert (tmp_path / "checkpoint.pt").exists() == (epoch > 0)
            # One more epoch, so that the next crash comes an epoch later.
            with monkeypatch.context() as patch:
                crash_after_checkpoint(patch, epoch)
                with pytest.raises(CrashError):
                    search(config, tmp_path, resume=True)
        torch.rand(epoch + 1)  # another process has another random state
    result, _ = run(config, tmp_path, resume=True)
    assert_same_run(tmp_path, expected)
    rows = read_trace(tmp_path / "alpha.jsonl")
    assert [row["epoch"] for row in rows] == list(range(config.total_epochs))
    assert result.seconds == pytest.approx(sum(row["seconds"] for row in rows))
    assert not list(tmp_path.glob(".*"))  # no temporary file stays


@pytest.mark.usefixtures("few")
def test_killed_between_sparse_checkpoints_and_resumed(tmp_path: Path) -> None:
    """Of stages of 3 epochs: checkpoints after the 2nd, the 3rd (a stage's last), the 4th, ..."""
    config = search_config(stage_epochs=3, checkpoint_epochs=2)
    search(config, tmp_path / "whole")
    folder = tmp_path / "killed"
    for epoch, kept in [(0, None), (1, None), (2, 2), (3, 3), (4, 4), (5, 4)]:
        crash = runs.crash_at(lambda e, n=epoch: isinstance(e, SearchEpoch) and e.epoch == n)
        with pytest.raises(CrashError):
            search(config, folder, report=crash, resume=True)
        assert (folder / "checkpoint.pt").exists() == (kept is not None)
        if kept is not None:
            assert load_checkpoint(folder / "checkpoint.pt", KIND)["epoch"] == kept
    run(config, folder, resume=True)
    assert_same_run(folder, tmp_path / "whole")
    rows = read_trace(folder / "alpha.jsonl")
    assert [row["epoch"] for row in rows] == list(range(config.total_epochs))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kind", [StageEnd, SearchResult])
def test_killed_at_the_end_of_a_stage_or_of_the_run(
    kind: type, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    config = search_config()
    expected = whole("first order")
    with pytest.raises(CrashError):
        search(config, tmp_path, report=runs.crash_at(lambda event: isinstance(event, kind)))
    result, events = run(config, tmp_path, resume=True)
    assert_same_run(tmp_path, expected)
    # A result on disk marks the end: nothing is computed again.
    assert [type(e) for e in events][:1] == ([StageEnd] if kind is StageEnd else [])
    assert result == load_search_result(tmp_path / "result.json")


@pytest.mark.usefixtures("few")
def test_killed_between_the_genotype_and_the_result(
    whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole("first order")

    def crash(path: Path, result: SearchResult) -> None:
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(dasvit.search, "save_result", crash)
        with pytest.raises(CrashError):
            search(search_config(), tmp_path)
    assert not (tmp_path / "result.json").exists()
    search(search_config(), tmp_path, resume=True)
    assert_same_run(tmp_path, expected)


@pytest.mark.timeout(900)  # processes that start: seconds, minutes on a busy machine
def test_sigkill_within_an_epoch_and_resume_from_the_command_line(tmp_path: Path) -> None:
    """Real processes on the full digits; the reference runs in this one."""
    expected, folder = tmp_path / "whole", tmp_path / "killed"
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    python = [sys.executable, "-m", "dasvit", "search"]
    settings = [
        *("--operations", *OPERATIONS, "--stage-layers", "1", "1", "2", "--stage-epochs", "2"),
        *(
            "--augment",
            "none",
            "--dim",
            "12",
            "--patch-size",
            "4",
            "--batch-size",
            "128",
            "--weight-lr",
            "3e-3",
        ),
        *("--alpha-lr", "3e-2", "--grad-clip", "0", "--xi", "0.05", "--dropout", "0.1"),
        *("--device", "cpu", "--out", str(folder)),
    ]
    process = subprocess.Popen(
        [*python, *settings], cwd=tmp_path, env=env, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 400
    try:
        while not _num_lines(folder / "alpha.jsonl") >= 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    done = subprocess.run(
        [*python, "--resume", str(folder), "--device", "cpu"],
        cwd=tmp_path,
        env=env | {"OMP_NUM_THREADS": "2"},  # it takes as many threads as the killed one had
        capture_output=True,
        text=True,
        check=True,
    )
    assert "epoch 1/6" not in done.stdout
    assert "epoch 6/6" in done.stdout
    config = load_search_config(folder)
    assert (config.xi, config.dropout, config.stage_layers) == (0.05, 0.1, (1, 1, 2))
    search(config, expected)
    assert_same_run(folder, expected)


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


# --- Determinism


@pytest.mark.usefixtures("few")
def test_the_seed_decides(whole: Callable[[str], Path], tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    torch.rand(5)  # what happened before does not matter
    search(search_config(), again)
    assert_same_run(again, whole("first order"))
    search(search_config(seed=1), other)
    left, right = (load_checkpoint(f / "checkpoint.pt", KIND)["model"] for f in (again, other))
    assert not torch.equal(left["alpha"], right["alpha"])
    assert not torch.equal(left["head.weight"], right["head.weight"])


@pytest.mark.usefixtures("few")
def test_reports_do_not_change_the_run(whole: Callable[[str], Path], tmp_path: Path) -> None:
    search(search_config(), tmp_path, report=lambda event: torch.manual_seed(0) and None)
    rows = [runs.rows_without_times(f / "alpha.jsonl") for f in (tmp_path, whole("first order"))]
    assert rows[0] == rows[1]


# --- Golden trace


def golden_trace(folder: Path) -> str:
    """The first epochs of a tiny search, one line each.

    Few steps at a small rate: no token is near enough to the edge of the selection for the last
    bits, which differ between machines, to decide.
    """
    config = search_config(
        stage_epochs=1,
        batch_size=359,
        weight_lr=1e-3,
        weight_decay=1.0,
        alpha_lr=3e-3,
        xi=0.5,
        dropout=0.1,
    )
    _, events = run(config, folder)
    lines = ["epoch train_loss val_loss fair_loss weight_lr identity zero entropy"]
    for e in epochs(events):
        entropy = -sum(w * math.log(w) for row in e.weights for w in row) / len(e.weights)
        values = (
            *(e.train_loss, e.val_loss, e.fair_loss, e.weight_lr),
            operation_share(e.weights, e.edge_ops, "identity"),
            operation_share(e.weights, e.edge_ops, "zero"),
            entropy,
        )
        lines.append(" ".join([str(e.epoch), *(f"{v:.8g}" for v in values)]))
    return "\n".join(lines) + "\n"


def test_golden_trace(tmp_path: Path) -> None:
    """A refactor leaves the numbers alone. Regenerate: `python tests/test_search.py`."""
    expected = [line.split() for line in GOLDEN.read_text().splitlines() if line[0] != "#"]
    actual = [line.split() for line in golden_trace(tmp_path).splitlines()]
    assert actual[0] == expected[0]
    assert len(actual) == len(expected)
    for a, e in zip(actual[1:], expected[1:], strict=True):
        assert [float(x) for x in a] == pytest.approx([float(x) for x in e], rel=1e-4, abs=1e-6)


# --- Stages


@pytest.mark.usefixtures("few")
def test_stages_of_the_paper(tmp_path: Path) -> None:
    """Layers 2 → 4 → 6, candidates an edge 8 → 5 → 3; the lowest weights go, edge by edge."""
    config = search_config(stage_layers=(2, 4, 6), stage_epochs=1)
    alphas: list[torch.Tensor] = []

    events: list[Event] = []

    def keep(event: Event) -> None:
        events.append(event)
        if isinstance(event, StageEnd):
            alphas.append(load_checkpoint(tmp_path / "checkpoint.pt", KIND)["model"]["alpha"])

    search(config, tmp_path, report=keep)
    assert [type(e) for e in events] == [SearchEpoch, StageEnd] * 3 + [SearchResult]
    records, ends = epochs(events), stage_ends(events)
    assert [(e.epoch, e.stage, e.num_layers) for e in records] == [(0, 0, 2), (1, 1, 4), (2, 2, 6)]
    assert [{len(row) for row in e.edge_ops} for e in records] == [{8}, {5}, {3}]
    assert all(len(e.edge_ops) == len(e.weights) == 5 for e in records)
    assert all(e.total_epochs == 3 for e in records)
    assert records[0].edge_ops == (OPERATIONS,) * 5
    for end, before, after, alpha in zip(ends, records, [*records[1:], None], alphas, strict=True):
        assert (end.epoch, end.stage) == (before.epoch, before.stage)
        assert end.edge_ops == before.edge_ops
        assert end.weights == before.weights
        assert end.genotype == derive(alpha, end.edge_ops, num_nodes=2)
        if after is None:
            assert end.kept is None
            continue
        assert end.kept == after.edge_ops
        for row, names, kept in zip(end.weights, end.edge_ops, after.edge_ops, strict=True):
            ranked = sorted(zip(row, names, strict=True), reverse=True)
            assert set(kept) == {name for _, name in ranked[: len(kept)]}
            assert list(kept) == [name for name in names if name in kept]
    # Pruned by each edge's own weights, so the edges come to differ.
    assert len(set(records[2].edge_ops)) > 1


@pytest.mark.usefixtures("few")
def test_zero_goes_first_where_asked(tmp_path: Path) -> None:
    _, events = run(search_config(prune_zero="first", stage_epochs=1), tmp_path)
    records = epochs(events)
    assert all("zero" in names for names in records[0].edge_ops)
    assert not any("zero" in names for e in records[1:] for names in e.edge_ops)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("count", [1, 3])
def test_derivation_keeps_as_many_edges_as_asked(count: int, tmp_path: Path) -> None:
    result, events = run(search_config(edges_per_node=count, stage_epochs=1), tmp_path)
    assert [len(node) for node in result.genotype.nodes] == [min(count, 2), min(count, 3)]
    assert all(len(end.genotype.nodes[1]) == min(count, 3) for end in stage_ends(events))


@pytest.mark.usefixtures("few")
def test_alphas_are_frozen_at_the_start_of_each_stage(tmp_path: Path) -> None:
    config = search_config(stage_epochs=3, alpha_freeze_epochs=2, inherit_alpha="carry")
    _, events = run(config, tmp_path)
    records = epochs(events)
    for e in records:
        assert math.isnan(e.val_loss) == (e.epoch % 3 < 2)
    for stage in range(3):
        first, second, third = records[3 * stage : 3 * stage + 3]
        assert first.weights == second.weights
        assert all(a != b for a, b in zip(second.weights, third.weights, strict=True))
        assert first.train_loss != second.train_loss  # the weights do move
    rows = runs.rows_without_times(tmp_path / "alpha.jsonl")
    assert [row["val_loss"] is None for row in rows] == [True, True, False] * 3


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("token_where", ["input", "edge"])
@pytest.mark.parametrize("inherit_alpha", ["carry", "reset"])
@pytest.mark.parametrize("inherit_weights", ["cyclic", "stretched", "fresh"])
def test_what_a_stage_inherits(
    inherit_weights: str, inherit_alpha: str, token_where: str, tmp_path: Path
) -> None:
    """Learning rates of next to nothing show the state in which a stage begins."""
    config = search_config(
        stage_layers=(2, 3),
        stage_ops=(8, 4),
        stage_epochs=1,
        weight_lr=1e-12,
        alpha_lr=1e-12,
        alpha_init_std=1.0,
        inherit_weights=inherit_weights,
        inherit_alpha=inherit_alpha,
        token_where=token_where,
    )

    def keep(event: Event) -> None:
        if isinstance(event, StageEnd) and event.stage == 0:
            shutil.copy(tmp_path / "run" / "checkpoint.pt", tmp_path / "checkpoint.pt")

    search(config, tmp_path / "run", report=keep)
    old, new = supernet(config, tmp_path), supernet(config, tmp_path / "run")
    assert (old.num_layers, new.num_layers) == (2, 3)
    kept, alpha = prune(old.alpha.detach(), old.edge_ops, 4)
    assert new.edge_ops == kept
    same_alpha = torch.allclose(new.alpha.detach(), alpha, atol=1e-9)
    assert same_alpha == (inherit_alpha == "carry")
    before, checked = literal_state(old), set()
    for name, value in literal_state(new).items():
        if name == "alpha":
            continue
        source = name
        if name.startswith("cells."):
            _, layer, rest = name.split(".", 2)
            old_layer = (0, 0, 1)[int(layer)] if inherit_weights == "stretched" else int(layer) % 2
            source = f"cells.{old_layer}.{rest}"
        if ".ops." in name:  # a candidate's index differs after pruning
            head, tail = source.split(".ops.")
            index, rest = tail.split(".", 1)
            edge = int(head.split("edges.")[1].split(".")[0])
            old_index = old.edge_ops[edge].index(new.edge_ops[edge][int(index)])
            source = f"{head}.ops.{old_index}.{rest}"
        if value.dim() < 2:  # biases and norms start alike
            continue
        checked.add(name.split(".")[0])
        same = torch.allclose(value, before[source], atol=1e-9)
        assert same == (inherit_weights != "fresh"), name
    assert checked >= {"embedding", "cells", "head"}


@pytest.mark.usefixtures("few")
def test_optimisers_start_anew_in_each_stage(tmp_path: Path) -> None:
    search(search_config(), tmp_path)
    state = load_checkpoint(tmp_path / "checkpoint.pt", KIND)
    for optimizer in ("weight_optimizer", "alpha_optimizer"):
        steps = {int(s["step"]) for s in state[optimizer]["state"].values()}
        assert steps == {4}  # two epochs of two steps


@pytest.mark.usefixtures("few")
def test_both_optimisers_have_their_own_settings(tmp_path: Path) -> None:
    config = search_config(
        stage_epochs=1,
        weight_decay=0.07,
        alpha_lr=2e-3,
        alpha_betas=(0.4, 0.99),
        alpha_weight_decay=0.02,
    )
    search(config, tmp_path)
    state = load_checkpoint(tmp_path / "checkpoint.pt", KIND)
    (weights,) = state["weight_optimizer"]["param_groups"]
    (alphas,) = state["alpha_optimizer"]["param_groups"]
    assert (weights["weight_decay"], weights["betas"]) == (0.07, (0.9, 0.999))
    assert (alphas["lr"], alphas["betas"], alphas["weight_decay"]) == (2e-3, (0.4, 0.99), 0.02)
    assert len(alphas["params"]) == 1
    assert len(weights["params"]) == len(state["model"]) - 1


# --- What is trained on what


def test_alphas_see_the_validation_half_and_weights_the_training_half(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Lines 11-14: both in every step, alpha first; every image once an epoch; no test image."""
    runs.few_images(monkeypatch, dasvit.search, train=72)  # 36 + 36: an incomplete batch goes
    seen: list[tuple[str, torch.Tensor]] = []

    def watched_alpha(model: SuperNet, train: Any, val: Any, **options: Any) -> Any:
        seen.append(("train of alpha", train[0]))
        seen.append(("alpha", val[0]))
        return alpha_gradient(model, train, val, **options)

    def watched_weight(model: SuperNet, batch: Any) -> Any:
        seen.append(("weight", batch[0]))
        return weight_gradient(model, batch)

    monkeypatch.setattr(dasvit.step, "alpha_gradient", watched_alpha)
    monkeypatch.setattr(dasvit.step, "weight_gradient", watched_weight)
    config = search_config(stage_layers=(1,), stage_ops=(8,), batch_size=12, seed=3)
    search(config, tmp_path)

    data = dasvit.search.load_data(config.data, CPU)
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


@pytest.mark.usefixtures("few")
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

    monkeypatch.setattr(dasvit.step, "alpha_gradient", watched_alpha)
    monkeypatch.setattr(dasvit.step, "weight_gradient", watched_weight)
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
    runs.few_images(monkeypatch, dasvit.search)
    load = dasvit.search.load_data
    monkeypatch.setattr(
        dasvit.search, "load_data", lambda *args: replace(load(*args), test=Untouchable())
    )
    result, _ = run(search_config(stage_epochs=1), tmp_path)
    assert 0 <= result.supernet_accuracy <= 1


@pytest.mark.usefixtures("few")
def test_learning_rate_falls_by_a_cosine_in_each_stage(tmp_path: Path) -> None:
    _, events = run(search_config(stage_epochs=3), tmp_path)
    steps = 2  # 64 images, batches of 32
    expected = [cosine_lr((epoch % 3 + 1) * steps - 1, 3 * steps, lr=3e-3) for epoch in range(9)]
    assert [e.weight_lr for e in epochs(events)] == expected
    assert expected[0] > expected[1] > expected[2] < expected[3]


@pytest.mark.usefixtures("few")
def test_one_cosine_over_the_whole_search(tmp_path: Path) -> None:
    _, events = run(search_config(stage_epochs=2, lr_span="search"), tmp_path)
    expected = [cosine_lr((epoch + 1) * 2 - 1, 6 * 2, lr=3e-3) for epoch in range(6)]
    assert [e.weight_lr for e in epochs(events)] == expected


@pytest.mark.usefixtures("few")
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


@pytest.mark.usefixtures("few")
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


@pytest.mark.usefixtures("few")
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


@pytest.mark.usefixtures("few")
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
    data = dasvit.search.load_data(config.data, CPU)
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


@pytest.mark.usefixtures("few")
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


# --- Files


@pytest.mark.usefixtures("few")
def test_files_of_a_search(whole: Callable[[str], Path]) -> None:
    folder, config = whole("first order"), search_config()
    assert names_in(folder) == [
        "alpha.jsonl",
        "checkpoint.pt",
        "config.json",
        "genotype.json",
        "result.json",
    ]
    assert load_search_config(folder) == config
    genotype = Genotype.load(folder / "genotype.json")
    assert genotype.provenance == {
        "seed": 0,
        "epoch": 6,
        "alpha_trace": "alpha.jsonl",
        "settings": config_to_dict(config),
    }
    result = load_search_result(folder / "result.json")
    assert result.genotype == genotype
    assert result.settings == {name: getattr(config, name) for name in OUTER_SETTINGS}
    values = json.loads((folder / "result.json").read_text())
    assert values["gap"] == result.gap
    rows = runs.rows_without_times(folder / "alpha.jsonl")
    names = {f.name for f in dataclasses.fields(SearchEpoch)} - {"seconds"}
    assert all(set(row) == names for row in rows)


@pytest.mark.usefixtures("few")
def test_a_finished_search_returns_its_result_at_once(
    whole: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = whole("first order")
    before = files_of(folder)
    monkeypatch.setattr(dasvit.search, "load_data", None)  # not even the data are read
    result, events = run(search_config(), folder, resume=True)
    assert result == load_search_result(folder / "result.json")
    assert events == []
    assert files_of(folder) == before


@pytest.mark.usefixtures("few")
def test_a_used_folder_needs_resume(whole: Callable[[str], Path]) -> None:
    before = files_of(whole("first order"))
    with pytest.raises(ValueError, match="holds a run already; resume it or choose another"):
        search(search_config(), whole("first order"))
    assert files_of(whole("first order")) == before


@pytest.mark.usefixtures("few")
def test_other_settings_are_not_resumed(whole: Callable[[str], Path]) -> None:
    folder = whole("first order")
    before = files_of(folder)
    other = search_config(xi=0.25, data=replace(DIGITS, augment="shift"))
    with pytest.raises(ValueError, match="other settings") as caught:
        search(other, folder, resume=True)
    assert "xi: 0.0 there, 0.25 now" in str(caught.value)
    assert "'augment': 'none'" in str(caught.value)
    assert "'augment': 'shift'" in str(caught.value)
    assert "weight_lr" not in str(caught.value)
    assert files_of(folder) == before


def test_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    bad: list[tuple[dict[str, Any], str]] = [
        ({"operations": ("zero", "msa_h5"), "stage_ops": (2, 2, 2)}, "msa_h5: 5 heads do not"),
        (
            {"operations": ("zero", "pool_k3"), "stage_ops": (2, 2, 2)},
            "unknown operation 'pool_k3'",
        ),
        (
            {"operations": ("zero", "mlp_r99999999999999"), "stage_ops": (2, 2, 2)},
            "mlp_r1e[+]14 has more than 1048576 hidden units at dim=12",
        ),
        ({"dim": 12_000}, r"the network has [0-9.]+ G parameters, more than one device can train"),
        ({"stage_layers": (1, 1, 1000), "dim": 1200}, "G parameters, more than one device"),
        ({"data": DataConfig(dataset="mnist")}, "unknown data set 'mnist'; known: digits"),
        ({"data": DataConfig(dataset="cifar10")}, "needs --data-dir"),
        ({"plugins": ("no_such_plugin",)}, "cannot import 'no_such_plugin'"),
    ]
    for changes, message in bad:
        config = search_config(**changes)
        for refuse in (check_search, lambda config: search(config, folder)):
            with pytest.raises(ValueError, match=message):
                refuse(config)
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda"):
        search(search_config(), folder, device="tpu")
    assert not folder.exists()


@pytest.mark.usefixtures("few")
def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"val_fraction=0\.001"):
        search(search_config(val_fraction=0.001), tmp_path)


# --- Losses that are not finite


@pytest.mark.usefixtures("few")
def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = search_config()
    with monkeypatch.context() as patch:
        calls = {"count": 0}

        def poisoned(*args: Any) -> Any:
            calls["count"] += 1
            grads, loss, logits = weight_gradient(*args)
            return grads, loss * float("nan") if calls["count"] == 6 else loss, logits

        patch.setattr(dasvit.step, "weight_gradient", poisoned)
        with pytest.raises(FloatingPointError, match="not finite in epoch 2") as caught:
            search(config, tmp_path)
    assert "weight_lr" in str(caught.value)
    assert load_checkpoint(tmp_path / "checkpoint.pt", KIND)["epoch"] == 2
    assert len(runs.rows_without_times(tmp_path / "alpha.jsonl")) == 2
    assert not (tmp_path / "result.json").exists()
    result, _ = run(config, tmp_path, resume=True)
    assert 0 <= result.supernet_accuracy <= 1


@pytest.mark.usefixtures("few")
def test_a_rate_far_too_high_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="not finite in epoch 0"):
        search(search_config(weight_lr=1e25), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.usefixtures("few")
def test_alphas_that_are_not_finite_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def poisoned(*args: Any, **options: Any) -> Any:
        found = alpha_gradient(*args, **options)
        return replace(found, gradient=found.gradient.index_fill(0, torch.tensor([4]), math.inf))

    monkeypatch.setattr(dasvit.step, "alpha_gradient", poisoned)
    with pytest.raises(FloatingPointError, match="not finite in epoch 0"):
        search(search_config(), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        note = "# The first epochs of a tiny search. Regenerate: python tests/test_search.py\n"
        GOLDEN.write_text(note + golden_trace(Path(folder) / "run"))
