"""Stages of a search: layers, pruning, what a stage inherits and starts anew."""

import math
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from dasvit.spaces.cell.prune import prune
from support import runs
from support.runs import OPERATIONS, search_config
from support.search_runs import epochs, literal_state, run, stage_ends, supernet

import dasvit.search.loop
from dasvit.report.events import Event, SearchEpoch, SearchResult, StageEnd
from dasvit.run.checkpoint import load_checkpoint
from dasvit.search.config import SearchConfig
from dasvit.search.loop import KIND, search
from dasvit.search.step import BilevelStep, build_supernet
from dasvit.spaces.cell.derive import derive
from dasvit.spaces.cell.supernet import SuperNet


@pytest.mark.usefixtures("few_searched", "checkpoints_at_once")
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


@pytest.mark.usefixtures("few_searched")
def test_zero_goes_first_where_asked(tmp_path: Path) -> None:
    _, events = run(search_config(prune_zero="first", stage_epochs=1), tmp_path)
    records = epochs(events)
    assert all("zero" in names for names in records[0].edge_ops)
    assert not any("zero" in names for e in records[1:] for names in e.edge_ops)


@pytest.mark.usefixtures("few_searched")
@pytest.mark.parametrize("count", [1, 3])
def test_derivation_keeps_as_many_edges_as_asked(count: int, tmp_path: Path) -> None:
    result, events = run(search_config(edges_per_node=count, stage_epochs=1), tmp_path)
    assert [len(node) for node in result.genotype.nodes] == [min(count, 2), min(count, 3)]
    assert all(len(end.genotype.nodes[1]) == min(count, 3) for end in stage_ends(events))


@pytest.mark.usefixtures("few_searched")
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


@pytest.mark.usefixtures("few_searched", "checkpoints_at_once")
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


@pytest.mark.usefixtures("few_searched")
def test_optimisers_start_anew_in_each_stage(tmp_path: Path) -> None:
    search(search_config(), tmp_path)
    state = load_checkpoint(tmp_path / "checkpoint.pt", KIND)
    for optimizer in ("weight_optimizer", "alpha_optimizer"):
        steps = {int(s["step"]) for s in state[optimizer]["state"].values()}
        assert steps == {4}  # two epochs of two steps


@pytest.mark.usefixtures("few_searched")
def test_one_stage_is_gone_before_the_next_takes_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Optimisers' states, and what a captured step holds."""
    held: list[weakref.ref] = []
    alive: list[int] = []

    def build(*args: object, **options: object) -> SuperNet:
        alive.append(sum(step() is not None for step in held))
        return build_supernet(*args, **options)

    class Watched(BilevelStep):
        def __init__(self, config: SearchConfig, model: SuperNet) -> None:
            super().__init__(config, model)
            held.append(weakref.ref(self))

    monkeypatch.setattr(dasvit.search.loop, "BilevelStep", Watched)
    monkeypatch.setattr(dasvit.search.loop, "build_supernet", build)
    search(search_config(stage_epochs=1), tmp_path)
    assert len(held) == 3
    assert alive == [0] * len(alive)
    assert len(alive) >= 3


@pytest.mark.usefixtures("few_searched")
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
