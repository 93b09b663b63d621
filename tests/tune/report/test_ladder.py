"""Who climbs: by known scores, from the trainings' folders."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.events import RETRAIN_RESULT, SEARCH_EPOCH
from support.sweep_trials import chain, search_trial

from dasvit.report.events import RetrainResult, SearchResult
from dasvit.report.record import JsonLinesReport, save_result
from tune.plan import Plan
from tune.report.ladder import Rung, climb, survivors
from tune.report.outcome import gather
from tune.store import ResultFolder
from tune.trial_folder import SHORT_DIR, retrain_dirname

FOUND = chain("msa_h2", "mlp_r3")

Train = Callable[..., None]


@pytest.mark.parametrize(
    ("factor", "least", "expected"), [(3, 1, "eb"), (6, 1, "e"), (6, 3, "eba"), (2, 9, "ebadc")]
)
def test_survivors(factor: int, least: int, expected: str) -> None:
    """The best third of five is two; equal scores go by name."""
    scores = {"a": 0.5, "b": 0.7, "c": 0.1, "d": 0.2, "e": 0.9}
    assert "".join(survivors(scores, factor=factor, least=least)) == expected
    assert survivors({"y": 0.5, "x": 0.5}, factor=2, least=1) == ["x"]


@pytest.fixture
def climbing(plan: Plan) -> Plan:
    return dataclasses.replace(
        plan,
        metric="trained_accuracy",
        random_baseline=3,
        retrain_top=1,
        score_epochs=2,
        rungs=(5,),
    )


@pytest.fixture
def folder(tmp_path: Path) -> ResultFolder:
    return ResultFolder(tmp_path / "mine")


@pytest.fixture
def train(folder: ResultFolder) -> Train:
    """Writes the results of trainings on a rung, one per seed; None is an error."""

    def write(epochs: int, model: str, *scores: float | None) -> None:
        for seed, score in enumerate(scores):
            path = folder.root / "ladder" / f"{epochs}_epochs" / retrain_dirname(model, seed)
            path.mkdir(parents=True)
            if score is None:
                (path / "error.json").write_text(json.dumps({"error": "boom"}))
            else:
                save_result(path / "result.json", result(score))

    return write


def result(score: float) -> RetrainResult:
    return dataclasses.replace(RETRAIN_RESULT, balanced_accuracy=score)


def test_rung_by_rung(climbing: Plan, folder: ResultFolder, train: Train) -> None:
    drawn = climbing.random_genotypes()
    first, second, third = (genotype.canonical_hash for genotype in drawn)
    search = [search_trial(0, seed, FOUND, 0.5, 0.5, short=result(0.8)) for seed in (0, 1)]
    # The seed and encoder again.
    search.append(search_trial(1, 1, FOUND, 0.5, 0.5, short=result(0.8)))

    def rungs() -> tuple[Rung, ...]:
        return climb(climbing, folder, search, drawn)

    # The search's own trainings are its first rung; the others are trained on the same seeds.
    (rung,) = rungs()
    assert (rung.epochs, rung.models) == (2, (first, second, third, "vit"))
    assert rung.interrupted and len(rung.left) == 8
    assert len(rung.results[FOUND.canonical_hash]) == 2  # one per seed
    train(2, first, 0.9, 0.8)
    train(2, second, 0.3, None)
    train(2, third, None, None)
    (rung,) = rungs()  # the ViT is missing
    train(2, "vit", 0.99, 0.99)
    rung, last = rungs()
    # Of three encoders with a score, the best third: 0.85 before 0.80 and 0.30. The ViT goes along.
    assert not rung.interrupted and [f.error for f in rung.left] == ["boom"] * 3
    assert (last.epochs, last.models, last.interrupted) == (5, (first, "vit"), True)
    train(5, first, 0.7, 0.7)
    train(5, "vit", 0.9, 0.9)
    outcome = gather(climbing, folder, name="mine", wall={})
    assert [len(r.left) for r in outcome.rungs] == [3, 0]
    assert [e.hash for e in outcome.ranking] == [first, second]  # no search is in the folder
    assert (outcome.winner.hash, outcome.interrupted) == (first, True)  # searches are left
    by_supernet = dataclasses.replace(climbing, metric="supernet_accuracy")
    assert climb(by_supernet, folder, (), drawn) == ()


def test_what_a_rung_trains(plan: Plan) -> None:
    """The halves of a search of the same seed, the recipe of the retraining, its share of warm-up;
    never more epochs than the retraining has."""
    retrain = dataclasses.replace(plan.retrain, epochs=30, warmup_epochs=3)
    climbing = dataclasses.replace(
        plan, metric="trained_accuracy", retrain=retrain, score_epochs=4, rungs=(3, 12, 99)
    )
    assert climbing.ladder == (4, 12, 30)
    rung = climbing.rung(12)
    assert (rung.epochs, rung.warmup_epochs, rung.held_out) == (12, 2, plan.search.val_fraction)
    assert climbing.rung(1).warmup_epochs == 0
    front = dataclasses.replace(climbing, objectives=("accuracy", "macs"))
    assert front.ladder == (4,)


def test_what_searches_propose_climbs_too(
    climbing: Plan, folder: ResultFolder, train: Train
) -> None:
    plan = dataclasses.replace(climbing, proposals=2, num_samples=1, seeds=1, random_baseline=1)
    trial = search_trial(0, 0, FOUND, 0.5, 0.5)
    path = folder.search_dir / trial.name
    (path / SHORT_DIR).mkdir(parents=True)
    values = {f.name: getattr(trial, f.name) for f in dataclasses.fields(SearchResult)}
    save_result(path / "result.json", SearchResult(**values))
    save_result(path / SHORT_DIR / "result.json", result(0.6))
    epoch = dataclasses.replace(
        SEARCH_EPOCH, edge_ops=(("msa_h2", "mlp_r3"),) * 5, weights=((0.5, 0.5),) * 5
    )
    JsonLinesReport(path / "alpha.jsonl")(epoch)

    outcome = gather(plan, folder, name="mine", wall={})
    one, other = (genotype.canonical_hash for genotype in outcome.proposed)
    (drawn,) = (genotype.canonical_hash for genotype in outcome.random)
    assert FOUND.canonical_hash not in (one, other)
    assert outcome.rungs[0].models == (drawn, one, other, "vit")
    for model, score in ((drawn, 0.3), (one, 0.7), (other, 0.9), ("vit", 0.5)):
        train(2, model, score)
    for model, score in ((one, 0.90), (other, 0.95), ("vit", 0.5)):
        train(5, model, score)
    outcome = gather(plan, folder, name="mine", wall={})
    assert [(e.hash, e.origin) for e in outcome.ranking] == [
        (other, "proposed"),
        (one, "proposed"),
        (FOUND.canonical_hash, "found 1×"),
        (drawn, "random"),
    ]
    # They are the search's: the gain over random encoders is theirs.
    assert outcome.best_found.hash == outcome.winner.hash == other
    assert [e.hash for e in outcome.chosen(1)] == [other]
    waiting = {failure.name for failure in outcome.not_retrained}
    assert {f"{name}_seed_0" for name in (other, drawn, "vit")} <= waiting
    assert outcome.drawn[one].provenance["trial"] == trial.name
    # A proposal that is a random encoder too is the search's, as a found one is.
    both = dataclasses.replace(outcome, random=(*outcome.random, outcome.proposed[1]))
    assert both.winner.origin == "proposed"
