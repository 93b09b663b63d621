"""Stages of a search: layers, what is pruned and derived, what a stage inherits or starts anew."""

import weakref
from pathlib import Path

import pytest
import torch
from support import exhaustive, reference
from support.runs import OPERATIONS, search_config
from support.search_runs import Searched, literal_state

import dasvit.search.loop
from dasvit.methods import DARTS
from dasvit.report.events import SearchEpoch, SearchResult, StageEnd
from dasvit.report.progress import ProgressReport
from dasvit.search.config import SearchConfig
from dasvit.search.loop import search
from dasvit.search.model import SearchModel
from dasvit.search.step import BilevelStep


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha_init_std": 1.0, "edges_per_node": 1, "stage_layers": (1, 2, 3)},
        {"alpha_init_std": 1.0, "edges_per_node": 3, "prune_zero": "first", "num_nodes": 3},
        # Weights of neighbours are equal in float32.
        {"alpha_init_std": 1e-9, "alpha_lr": 1e-13},
    ],
    ids=str,
)
def test_what_is_kept_and_derived(settings: dict, searched_once: Searched) -> None:
    """Candidates 8 → 5 → 3: the lowest weights go, edge by edge; the genotype is the encoder of
    largest weight."""
    found = searched_once(**settings, stage_epochs=1)
    assert [type(e) for e in found.events] == [SearchEpoch, StageEnd] * 3 + [SearchResult]
    layers = found.config.method.stage_layers
    records, space = found.epochs, found.config.space
    assert [(e.epoch, e.stage, e.num_layers) for e in records] == [
        (i, i, n) for i, n in enumerate(layers)
    ]
    assert [{len(row) for row in e.edge_ops} for e in records] == [{8}, {5}, {3}]
    assert {e.total_epochs for e in records} == {3}
    assert set(records[0].edge_ops) == {OPERATIONS}
    kept = [e.edge_ops for e in records[1:]]
    for model, end, record in zip(found.stages, found.ends, records, strict=True):
        assert (end.epoch, end.stage) == (record.epoch, record.stage)
        assert (end.edge_ops, end.weights) == (record.edge_ops, record.weights)
        scores = reference.softmax(model.arch["alpha"].detach().double())
        best = exhaustive.derive(scores, end.edge_ops, space.num_nodes, space.edges_per_node)
        assert end.genotype == best
        if end.stage == 2:
            assert end.kept is None
            assert found.result.genotype == end.genotype
            continue
        assert end.kept == kept[end.stage]
        for row, names, left in zip(scores.tolist(), end.edge_ops, end.kept, strict=True):
            index = exhaustive.prune(row, names, len(left), found.config.method.prune_zero)
            assert left == tuple(names[i] for i in index)
    assert len(set(kept[1])) > 1  # by its own weights, so the edges come to differ


STILL = {"stage_epochs": 1, "weight_lr": 1e-12, "alpha_lr": 1e-12, "alpha_init_std": 1.0}
"""Learning rates of next to nothing show the state in which a stage begins."""


@pytest.mark.parametrize(
    ("inherit_weights", "inherit_alpha", "token_where"),
    [
        ("cyclic", "carry", "edge"),
        ("stretched", "reset", "input"),
        ("fresh", "carry", "input"),
    ],
)
def test_what_a_stage_inherits(
    inherit_weights: str, inherit_alpha: str, token_where: str, searched_once: Searched
) -> None:
    found = searched_once(
        **STILL,
        stage_layers=(2, 3),
        stage_ops=(8, 4),
        inherit_weights=inherit_weights,
        inherit_alpha=inherit_alpha,
        token_where=token_where,
    )
    old, new = found.stages
    edge_ops = old.candidates.edge_ops, new.candidates.edge_ops
    columns = [[a.index(name) for name in b] for a, b in zip(*edge_ops, strict=True)]
    (change, last), (first, second) = found.ends, found.epochs
    assert change.accuracy_before == first.val_accuracy and last.accuracy_after is None
    assert change.accuracy_after == second.val_accuracy  # after training that does nothing
    assert found.result.stages == [change.record()]
    carried = old.arch["alpha"].gather(1, torch.tensor(columns))
    same = torch.allclose(new.arch["alpha"], carried, atol=1e-9)
    assert same == (inherit_alpha == "carry")

    layers = {"cyclic": (0, 1, 0), "stretched": (0, 0, 1), "fresh": (0, 1, 0)}[inherit_weights]
    before, checked = literal_state(old), set()
    for name, value in literal_state(new).items():
        if value.dim() < 2:  # biases and norms start alike
            continue
        parts = name.split(".")
        if parts[0] == "cells":
            parts[1] = str(layers[int(parts[1])])
        if "ops" in parts:  # a candidate's index differs after pruning
            at = parts.index("ops") + 1
            parts[at] = str(columns[int(parts[3])][int(parts[at])])
        same = torch.allclose(value, before[".".join(parts)], atol=1e-9)
        assert same == (inherit_weights != "fresh"), name
        checked.add(parts[0] if "selector" not in parts else "selector")
    assert checked == {"embedding", "cells", "head", "selector"}


def test_a_change_that_changes_nothing_costs_nothing(searched_once: Searched) -> None:
    found = searched_once(stage_layers=(1, 1), stage_ops=(8, 8), stage_epochs=1)
    change, _ = found.ends
    assert change.accuracy_before == change.accuracy_after == found.epochs[0].val_accuracy
    assert change.pruned == {} and not change.drops_to_chance


def test_an_operation_that_goes_from_all_edges_and_a_drop_to_chance(
    searched_once: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    """A heavy penalty bans skips, and the next stage's weights are new."""
    found = searched_once(
        skip_weight=100.0,
        stage_layers=(1, 1),
        stage_ops=(8, 7),
        stage_epochs=8,
        weight_lr=1e-2,
        inherit_weights="fresh",
    )
    change, last = found.ends
    assert change.accuracy_before > 1.5 * change.largest_class >= change.accuracy_after
    assert change.pruned == {"identity": 5} and change.drops_to_chance
    assert found.result.stages[0]["pruned"] == {"identity": 5}
    assert found.result.decided == max(change.decided, last.decided) > 0
    for event in (change, last):
        ProgressReport()(event)
    (warning,) = (line for line in capsys.readouterr().out.splitlines() if "warning" in line)
    assert warning.endswith("dropped the supernet to chance: identity went from all 5 edges")


def test_optimisers_start_anew_in_each_stage(searched_once: Searched) -> None:
    state = searched_once().state
    for name in ("weight_optimizer", "arch_optimizer"):
        steps = {int(s["step"]) for s in state[name]["state"].values()}
        assert steps == {4}  # two epochs of two steps


@pytest.mark.usefixtures("few_searched")
def test_one_stage_is_gone_before_the_next_takes_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Optimisers' states, and what a captured step holds."""
    held: list[weakref.ref] = []

    class Watched(BilevelStep):
        def __init__(self, config: SearchConfig, model: SearchModel) -> None:
            assert not [step for step in held if step() is not None]
            super().__init__(config, model)
            held.append(weakref.ref(self))

    monkeypatch.setattr(dasvit.search.loop, "BilevelStep", Watched)
    search(search_config(stage_epochs=1), tmp_path)
    assert len(held) == 3


def test_plain_darts_is_the_base_class(searched_once: Searched) -> None:
    """λ = 1, no fairness, one stage; a DASViT of those settings is the same search."""
    method = DARTS.like(search_config(stage_epochs=1).method)
    size = {"stage_layers": method.stage_layers, "stage_epochs": method.stage_epochs}
    plain = searched_once(method=method, **size)
    assert [(e.stage, e.num_layers, e.penalty) for e in plain.epochs] == [(0, 1, 0.0)] * 3
    assert {e.edge_ops for e in plain.epochs} == {(OPERATIONS,) * 5}
    assert not [name for name in plain.state["model"] if "selector" in name]
    no_fairness = {"skip_weight": 0.0, "type_weight": 0.0}
    by_hand = searched_once(token_ratio=1.0, stage_ops=(8,), **no_fairness, **size)
    assert by_hand.result.genotype == plain.result.genotype
    for ours, theirs in zip(by_hand.epochs, plain.epochs, strict=True):
        assert (ours.weights, ours.train_loss) == (theirs.weights, theirs.train_loss)
