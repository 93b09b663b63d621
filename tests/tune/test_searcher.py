import json
import random
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.search import SearchGenerator
from ray.tune.search.optuna import OptunaSearch

from tune.searcher import CONFIG_INDEX, TRIAL_INDEX, make_searcher, result_lag

SPACE = {"x": tune.uniform(0.0, 1.0), "y": tune.loguniform(0.01, 10.0)}
SAMPLES, SEEDS = 12, 2


def score(config: dict[str, Any]) -> float:
    return 1 - (config["x"] - 0.3) ** 2 + 0.01 * config[TRIAL_INDEX]


def run(
    told: Path,
    *,
    order: int = 0,
    stop_after: int | None = None,
    failing: frozenset[tuple[int, int]] = frozenset(),
    **options: Any,
) -> list[dict[str, Any]]:
    """All proposals of a sweep, two trials at a time, that end in a random order."""
    searcher = make_searcher(
        SPACE, **{"metric": "score", "num_samples": SAMPLES, "num_seeds": SEEDS, "seed": 3,
                  "lag": 1, "told": told} | options
    )  # fmt: skip
    rng = random.Random(order)
    running: list[tuple[str, dict[str, Any]]] = []
    proposed: list[dict[str, Any]] = []
    while len(proposed) < (stop_after or SAMPLES * SEEDS) or running:
        while len(running) < 2 and len(proposed) < (stop_after or SAMPLES * SEEDS):
            config = searcher.suggest(f"trial{len(proposed)}")
            if config is None:
                break
            proposed.append(config)
            running.append((f"trial{len(proposed) - 1}", config))
        assert running, "the searcher waits for results that nobody computes"
        trial_id, config = running.pop(rng.randrange(len(running)))
        if (config[CONFIG_INDEX], config[TRIAL_INDEX]) in failing:
            searcher.on_trial_complete(trial_id, {"finished": 0})
        else:
            searcher.on_trial_complete(trial_id, {"score": score(config)})
    return proposed


def test_every_configuration_runs_on_every_seed(tmp_path: Path) -> None:
    proposed = run(tmp_path / "told.json")
    indices = [(c[CONFIG_INDEX], c[TRIAL_INDEX]) for c in proposed]
    assert indices == [(i, s) for i in range(SAMPLES) for s in range(SEEDS)]
    for first, second in zip(proposed[::2], proposed[1::2], strict=True):
        assert (first["x"], first["y"]) == (second["x"], second["y"])


def test_proposals_do_not_depend_on_the_order_in_which_trials_end(tmp_path: Path) -> None:
    first = run(tmp_path / "a.json", order=0)
    assert all(run(tmp_path / f"{order}.json", order=order) == first for order in range(1, 8))
    assert len({c["x"] for c in first}) == SAMPLES


def test_proposals_depend_on_seed_and_results(tmp_path: Path) -> None:
    first = run(tmp_path / "a.json")
    assert run(tmp_path / "b.json", seed=4)[0] != first[0]
    failed = run(tmp_path / "c.json", failing=frozenset((i, s) for i in range(6) for s in (0, 1)))
    assert failed[:10] == first[:10]  # proposed at random, before TPE has results enough
    assert failed[-1] != first[-1]


def test_tpe_closes_in(tmp_path: Path) -> None:
    proposed = run(tmp_path / "told.json", num_samples=SAMPLES, seed=0)
    away = [abs(c["x"] - 0.3) for c in proposed[::2]]
    assert sum(away[6:]) < sum(away[:6])


GIVEN = [{"x": 0.25, "y": 1.0}, {"x": 0.75, "y": 0.0}]
"""Inside the space, and outside of it."""


def test_the_first_proposals_can_be_given(tmp_path: Path) -> None:
    proposed = run(tmp_path / "told.json", first=GIVEN)
    assert [(c["x"], c["y"]) for c in proposed[:4:2]] == [(0.25, 1.0), (0.75, 0.0)]
    assert [c[CONFIG_INDEX] for c in proposed[:6]] == [0, 0, 1, 1, 2, 2]
    assert all(0.01 <= c["y"] <= 10 for c in proposed[4:])
    assert run(tmp_path / "few.json", first=GIVEN, num_samples=1, stop_after=2) == proposed[:2]
    part = run(tmp_path / "part.json", first=GIVEN, stop_after=7)
    assert part == proposed[:7]
    assert run(tmp_path / "part.json", first=GIVEN, order=3) == proposed


def test_a_given_proposal_is_told_where_it_lies_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[dict[str, Any], float]] = []
    add = OptunaSearch.add_evaluated_point

    def added(self: OptunaSearch, parameters: dict[str, Any], value: float) -> None:
        told.append((parameters, value))
        add(self, parameters, value)

    monkeypatch.setattr(OptunaSearch, "add_evaluated_point", added)
    run(tmp_path / "told.json", first=GIVEN)
    assert [(point, pytest.approx(value)) for point, value in told] == [
        (GIVEN[0], 1 - 0.05**2 + 0.005)
    ]


def test_an_interrupted_sweep_is_proposed_again(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole.json")
    assert run(tmp_path / "part.json", stop_after=13) == whole[:13]
    assert run(tmp_path / "part.json", order=5) == whole


def test_what_was_told_stays_told(tmp_path: Path) -> None:
    """A trial that failed and succeeds when the sweep is continued must not change proposals
    that were made without its score: their trials have run."""
    told = tmp_path / "told.json"
    failing = frozenset({(2, 0), (2, 1), (4, 0)})
    first = run(told, failing=failing)
    scores = json.loads(told.read_text())
    assert scores[2] is None
    assert scores[4] == pytest.approx(score({"x": first[8]["x"], TRIAL_INDEX: 1}))
    assert run(told) == first


def test_ray_can_save_it_with_the_experiment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As Tune does every few seconds; the state is never read back."""
    searcher = make_searcher(
        SPACE, metric="score", num_samples=4, num_seeds=2, seed=0, lag=1, told=tmp_path / "t.json"
    )
    for i in range(3):
        searcher.suggest(f"trial{i}")
    ray_dir = tmp_path / "ray"
    ray_dir.mkdir()
    with caplog.at_level("WARNING"):
        SearchGenerator(searcher).save_to_dir(str(ray_dir), "now")
    assert not caplog.records
    assert len(list(ray_dir.iterdir())) == 2  # Optuna's, and that of what wraps it
    assert not (tmp_path / "t.json").exists()


@pytest.mark.parametrize(("trials", "seeds", "lag"), [(1, 2, 0), (2, 2, 1), (2, 1, 2), (16, 2, 8)])
def test_lag(trials: int, seeds: int, lag: int) -> None:
    assert result_lag(trials, seeds) == lag
