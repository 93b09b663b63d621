"""What a sweep proposes: the same, whatever the order in which trials end."""

import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray import tune
from ray.tune.search import Searcher, SearchGenerator

from tune.searcher import CONFIGURATION, SEED, Proposer, Turns, result_lag
from tune.study import importances, open_study

SPACE = {"x": tune.uniform(0.0, 1.0), "y": tune.loguniform(0.01, 10.0)}
SAMPLES = 12

FIRST = [{"x": 0.25, "y": 1.0}, {"x": 0.75, "y": 0.0}]
"""Inside the space, and outside of it."""

Sweep = Callable[..., list[dict[str, Any]]]


def proposer(file: Path, **options: Any) -> Proposer:
    given = {"metric": "score", "num_samples": SAMPLES, "seeds": (0, 1), "sampler_seed": 3}
    return Proposer(SPACE, study_file=file, lag=1, **given | options)


def score(sampled: dict[str, Any]) -> float:
    return 1 - (sampled["x"] - 0.3) ** 2 + 0.01 * sampled[SEED]


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    return tmp_path / "optuna.journal"


@pytest.fixture
def sweep(study_file: Path) -> Sweep:
    """All proposals of a sweep, two trials at a time, that end in a random order."""

    def run(
        file: str = "optuna.journal",
        *,
        order: int = 0,
        stop_after: int | None = None,
        failing: Collection[tuple[int, int]] = (),
        stopped: Collection[tuple[int, int]] = (),
        seeds: Sequence[int] = (0, 1),
        num_samples: int = SAMPLES,
        **options: Any,
    ) -> list[dict[str, Any]]:
        searcher = proposer(
            study_file.with_name(file), seeds=seeds, num_samples=num_samples, **options
        )
        rng, most = random.Random(order), stop_after or num_samples * len(seeds)
        running: list[tuple[str, dict[str, Any]]] = []
        proposed: list[dict[str, Any]] = []
        while len(proposed) < most or running:
            while len(running) < 2 and len(proposed) < most:
                sampled = searcher.suggest(f"trial{len(proposed)}")
                if sampled is None:
                    break
                proposed.append(sampled)
                running.append((f"trial{len(proposed) - 1}", sampled))
            assert running, "the searcher waits for results that nobody computes"
            trial_id, sampled = running.pop(rng.randrange(len(running)))
            place = (sampled[CONFIGURATION], sampled[SEED])
            result: dict[str, Any] = {"score": score(sampled), "cost": 3, "finished": 1}
            if place in failing:
                result = {"finished": 0}
            if place in stopped:
                result = {"epoch": 2, "supernet_accuracy": 0.25}
            searcher.on_trial_complete(trial_id, result)
        return proposed

    return run


def test_every_configuration_runs_on_every_seed(sweep: Sweep) -> None:
    """In the same order and with the same values, however trials end."""
    proposed = sweep()
    places = [(sampled[CONFIGURATION], sampled[SEED]) for sampled in proposed]
    assert places == [(i, s) for i in range(SAMPLES) for s in (0, 1)]
    for first, second in zip(proposed[::2], proposed[1::2], strict=True):
        assert (first["x"], first["y"]) == (second["x"], second["y"])
    assert len({sampled["x"] for sampled in proposed}) == SAMPLES
    assert all(sweep(str(order), order=order) == proposed for order in range(1, 4))


def test_proposals_depend_on_seed_and_results(sweep: Sweep) -> None:
    first = sweep()
    other = sweep("other", sampler_seed=4)
    # Nothing is shared: not even one proposal later, as with seeds that are numbered on.
    assert not {c["x"] for c in first} & {c["x"] for c in other}
    failed = sweep("failed", failing=[(i, s) for i in range(6) for s in (0, 1)])
    assert failed[:10] == first[:10]  # proposed at random, before TPE has results enough
    assert failed[-1] != first[-1]


def test_tpe_closes_in_and_what_matters_comes_first(sweep: Sweep, study_file: Path) -> None:
    sweep("few", num_samples=5)
    for file in ("none", "few"):
        assert importances(study_file.with_name(file)) == {}  # too little to say
    away = [abs(sampled["x"] - 0.3) for sampled in sweep(num_samples=30)[::2]]
    assert sum(away[20:]) < sum(away[:10])
    shares = importances(study_file)
    assert list(shares) == ["x", "y"] and shares["x"] > 0.6
    assert sum(shares.values()) == pytest.approx(1.0)


def test_the_first_proposals_can_be_given(sweep: Sweep) -> None:
    proposed = sweep(first=FIRST)
    assert [(c["x"], c["y"]) for c in proposed[:4:2]] == [(0.25, 1.0), (0.75, 0.0)]
    assert [c[CONFIGURATION] for c in proposed[:6]] == [0, 0, 1, 1, 2, 2]
    assert all(0.01 <= c["y"] <= 10 for c in proposed[4:])
    assert sweep("few", first=FIRST, num_samples=1) == proposed[:2]


def test_the_study_holds_proposals_and_scores(sweep: Sweep, study_file: Path) -> None:
    """A draw outside the space is no point that TPE could learn from."""
    failing = [(2, 0), (2, 1), (3, 0)]
    proposed = sweep(first=FIRST, failing=failing, stopped=[(4, 0), (4, 1)])
    trials = open_study(study_file).trials
    assert [t.user_attrs[CONFIGURATION] for t in trials] == list(range(SAMPLES))
    states = [t.state.name for t in trials[:5]]
    assert states == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "PRUNED"]
    assert trials[0].params == FIRST[0]
    assert trials[0].value == pytest.approx(1 - 0.05**2 + 0.005)
    assert trials[1].params == {}
    assert trials[1].user_attrs["scores"] == [pytest.approx(1 - 0.45**2 + 0.005)]
    assert trials[3].value == pytest.approx(score(proposed[7]))  # of the seed that has one
    assert trials[4].intermediate_values == {2: 0.25}
    assert all(t.datetime_start and t.datetime_complete for t in trials)


def test_an_interrupted_sweep_is_proposed_again(sweep: Sweep, study_file: Path) -> None:
    """Also where its process was killed while it proposed or wrote."""
    whole = sweep("whole", first=FIRST)
    assert sweep(first=FIRST, stop_after=13) == whole[:13]
    open_study(study_file).ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    with study_file.open("a") as file:
        file.write('{"op_code": 4, "wor')
    assert sweep(first=FIRST, order=5) == whole


def test_what_was_told_stays_told(sweep: Sweep, study_file: Path) -> None:
    """A trial that failed and succeeds when the sweep is continued must not change proposals that
    were made without its score: their trials have run."""
    first = sweep(failing=[(2, 0), (2, 1), (4, 0)])
    assert open_study(study_file).trials[2].state.name == "FAIL"
    assert sweep() == first


def test_a_sweep_is_extended(sweep: Sweep, study_file: Path) -> None:
    """More samples and seeds: what there was comes first, as it was."""
    first = sweep()
    more = sweep(num_samples=SAMPLES + 3, seeds=(0, 1, 2))
    assert [c["x"] for c in more[: 3 * SAMPLES : 3]] == [c["x"] for c in first[::2]]
    assert len({c["x"] for c in more}) == SAMPLES + 3
    assert len(open_study(study_file).trials) == SAMPLES + 3


def test_several_objectives_over_several_seeds(sweep: Sweep, study_file: Path) -> None:
    sweep(minimised=("cost",), num_samples=4)
    study = open_study(study_file, minimised=("cost",))
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert {trial.values[1] for trial in study.trials} == {3.0}


def test_proposers_take_turns(study_file: Path) -> None:
    """Each proposes what it would alone, under numbers of the whole sweep; also after a restart."""
    names = ("one", "other")

    def made(number: int, name: str) -> Proposer:
        numbers = range(number, 2 * SAMPLES, 2)
        given = {"study": name, "numbers": numbers, "constant": {"method": name}}
        return proposer(study_file, sampler_seed=number, **given)

    def run(searcher: Searcher, trials: int) -> list[dict[str, Any]]:
        found = []
        for number in range(trials):
            sampled = searcher.suggest(f"trial{number}")
            assert sampled is not None
            searcher.on_trial_complete(f"trial{number}", {"score": score(sampled), "finished": 1})
            found.append(sampled)
        return found

    def turns() -> Turns:
        return Turns([made(i, name) for i, name in enumerate(names)], 2)

    run(turns(), 10)
    proposed = run(turns(), 4 * SAMPLES)
    assert [s[CONFIGURATION] for s in proposed] == [i // 2 for i in range(4 * SAMPLES)]
    assert [s["method"] for s in proposed[::2]] == list(names) * SAMPLES
    for number, name in enumerate(names):
        file = study_file.with_name(f"{name}.journal")
        alone = run(proposer(file, sampler_seed=number), 2 * SAMPLES)
        own = [s for s in proposed if s["method"] == name]
        assert [(s["x"], s["y"], s[SEED]) for s in own] == [
            (s["x"], s["y"], s[SEED]) for s in alone
        ]
    assert importances(study_file) == {}  # of which method?


def test_ray_can_save_it_with_the_experiment(
    study_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As Tune does every few seconds; the state is never read back."""
    searcher = proposer(study_file)
    searcher.suggest("trial")
    with caplog.at_level("WARNING"):
        SearchGenerator(searcher).save_to_dir(str(tmp_path), "now")
    assert not caplog.records


@pytest.mark.parametrize(("trials", "seeds", "lag"), [(1, 2, 0), (2, 2, 1), (2, 1, 2), (16, 2, 8)])
def test_lag(trials: int, seeds: int, lag: int) -> None:
    assert result_lag(trials, seeds) == lag
