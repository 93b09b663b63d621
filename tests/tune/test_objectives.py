"""Several objectives: what an encoder costs, the Pareto front, and a sweep along it."""

import csv
import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from support.sweep_process import SweepProcess

from dasvit.presets import digits
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES
from dasvit.training.config import RetrainConfig
from tune.aggregate import rank_configs
from tune.folder import ResultFolder
from tune.leaderboard import front_sentence, table, table_csv
from tune.objectives import cost, front, parse_objectives, spread_out
from tune.options import parse_options
from tune.outcome import Outcome, best_retraining
from tune.page import write_page
from tune.plan import Plan
from tune.searcher import CONFIG_INDEX, TRIAL_INDEX, make_searcher
from tune.space import first_draws, outer_space
from tune.study import write_study

SEVERAL = "--objectives accuracy,macs --seeds 1"
METRIC = "discretised_accuracy"


def test_the_plan(plan: Plan) -> None:
    made = parse_options(shlex.split(SEVERAL)).plan()
    assert made.objectives == ("accuracy", "macs")
    assert Plan.from_dict(json.loads(json.dumps(made.to_dict()))).objectives == made.objectives
    assert "objectives" not in plan.to_dict()  # a file of before is the same sweep
    assert Plan.from_dict(plan.to_dict()).objectives == ("accuracy",)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--objectives accuracy,macs", "--seeds 1"),
        ("--objectives macs --seeds 1", "begin with accuracy"),
        ("--objectives accuracy,speed --seeds 1", "'speed'; known: accuracy, macs, params"),
        ("--objectives accuracy,macs,macs --seeds 1", "each once"),
        (f"{SEVERAL} --scheduler asha --metric supernet_accuracy", "stopped early"),
        (f"{SEVERAL} --search random", "--search random takes no --objectives"),
    ],
)
def test_bad_input(argv: str, message: str) -> None:
    with pytest.raises(ValueError, match="--") as error:
        parse_options(shlex.split(argv))
    assert message in str(error.value)


def test_the_papers_encoder_costs_what_the_paper_says() -> None:
    """design.md §2, but for the head and the images: 10.59 G multiply-adds with attention."""
    found = cost(NAMED_GENOTYPES["dasvit_cifar10"], RetrainConfig())
    assert found["macs"] == pytest.approx(9.876e9 + 0.715e9, rel=0.01)
    assert found["params"] == pytest.approx(50_449_162, rel=0.01)


def test_the_front() -> None:
    points = {"best": (0.9, -9.0), "beaten": (0.8, -9.0), "cheap": (0.5, -1.0), "twin": (0.5, -1.0)}
    assert front(points) == ["best", "cheap", "twin"]
    assert front({}) == []


@pytest.mark.parametrize(
    ("count", "expected"), [(1, "e"), (2, "ae"), (3, "ace"), (5, "abcde"), (9, "abcde")]
)
def test_spread_out(count: int, expected: str) -> None:
    assert "".join(spread_out("abcde", count)) == expected


def test_objectives_are_parsed() -> None:
    assert parse_objectives("accuracy") == ("accuracy",)
    assert parse_objectives("accuracy, params,macs") == ("accuracy", "params", "macs")


@pytest.fixture
def several(outcome: Outcome, make_chain: Any, search_trial: Any) -> Outcome:
    """Three encoders: the best, a cheaper one, and one that both beat."""
    worst = make_chain("mlp_r3", "msa_h2")
    first, second = (summary.hash for summary in outcome.ranking)
    return dataclasses.replace(
        outcome,
        search=(*outcome.search, search_trial(2, 0, worst, 0.4, 0.5)),
        objectives=("accuracy", "macs"),
        costs={
            first: {"macs": 9_000_000, "params": 10},
            second: {"macs": 4_000_000, "params": 10},
            worst.canonical_hash: {"macs": 8_000_000, "params": 10},
        },
    )


def test_what_is_chosen(several: Outcome) -> None:
    first, second, worst = (summary.hash for summary in several.ranking)
    assert [s.hash for s in several.front] == [second, first]  # cheapest first
    assert [s.hash for s in several.chosen(3)] == [first, second]
    assert [s.hash for s in several.chosen(1)] == [first]
    assert [c.config_index for c in several.best_configs(2)] == [0, 1]
    kept = best_retraining(several)
    assert kept is not None and kept.model == first
    assert worst not in {s.hash for s in several.chosen(3)}


def test_before_any_search_has_finished(several: Outcome) -> None:
    """The baselines' costs are known from the start."""
    none = dataclasses.replace(several, search=(), costs={"vit": {"macs": 5, "params": 10}})
    assert (none.ranking, none.front, none.chosen(2), none.best_configs(2)) == ([], [], [], [])
    assert table(none)[0][-1] == "Pareto front"


def test_of_equal_scores_the_cheaper_one_leads(
    outcome: Outcome, make_chain: Any, search_trial: Any
) -> None:
    a, b = make_chain("msa_h2", "mlp_r3"), make_chain("identity", "mlp_r3")
    for dear, cheap in ((a, b), (b, a)):
        tied = dataclasses.replace(
            outcome,
            search=(search_trial(0, 0, a, 0.5, 0.5), search_trial(1, 0, b, 0.5, 0.5)),
            objectives=("accuracy", "macs"),
            costs={dear.canonical_hash: {"macs": 2}, cheap.canonical_hash: {"macs": 1}},
        )
        assert tied.ranking[0].hash == cheap.canonical_hash
        assert [s.hash for s in tied.front] == [cheap.canonical_hash]


def test_the_reports_show_the_front(several: Outcome, plan: Plan, tmp_path: Path) -> None:
    heading, *rows = table(several)
    assert heading[-2:] == ["multiply-adds", "Pareto front"]
    assert [row[-2:] for row in rows[:3]] == [["9.00 M", "yes"], ["4.00 M", "yes"], ["8.00 M", ""]]
    assert {len(row) for row in rows} == {len(heading)}
    assert "2 of 3 encoders" in front_sentence(several)
    first = next(csv.DictReader(table_csv(several, several.ranking).splitlines()))
    assert (first["macs"], first["params"]) == ("9000000", "10")
    write_page(plan, several, ResultFolder(tmp_path), preset="digits")
    assert "Search score by multiply-adds" in (tmp_path / "report.html").read_text()


def test_one_objective_shows_no_front(outcome: Outcome) -> None:
    assert "Pareto front" not in table(outcome)[0]
    assert front_sentence(outcome) == ""
    assert [s.hash for s in outcome.chosen(1)] == [outcome.ranking[0].hash]


def test_the_study_has_both_values(several: Outcome, tmp_path: Path) -> None:
    path = tmp_path / "optuna.journal"
    costs = {0: [9.0], 1: [4.0], 2: [8.0]}
    configs = rank_configs(several.search, METRIC)
    write_study(path, configs, METRIC, name="mine", costs=costs)
    study = optuna.load_study(
        study_name="mine", storage=JournalStorage(JournalFileBackend(str(path)))
    )
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.values[1] for trial in study.trials] == [9.0, 4.0, 8.0]
    assert [trial.number for trial in study.best_trials] == [0, 1]


def propose(told: Path, count: int) -> list[dict[str, Any]]:
    """The first proposals, each told at once; the accuracy grows with λ, and so does the cost."""
    search = digits().search
    space = outer_space(search)
    searcher = make_searcher(
        space,
        metric=METRIC,
        num_samples=count,
        num_seeds=1,
        seed=0,
        lag=0,
        told=told,
        first=first_draws(search, space),
        costs=("macs",),
    )
    proposals = []
    for number in range(count):
        config = searcher.suggest(str(number))
        assert config is not None
        proposals.append(config)
        ratio = config["token_ratio"]
        result = {METRIC: ratio, "macs": 1000 * ratio, "finished": 1}
        searcher.on_trial_complete(str(number), result, error=number == 3)
    return proposals


def test_proposals_repeat_and_continue(tmp_path: Path) -> None:
    one = propose(tmp_path / "one.json", 8)
    assert [config[CONFIG_INDEX] for config in one] == list(range(8))
    assert {config[TRIAL_INDEX] for config in one} == {0}
    assert propose(tmp_path / "two.json", 8) == one
    told = json.loads((tmp_path / "one.json").read_text())
    assert told[3] is None and len(told[0]) == 2
    assert propose(tmp_path / "one.json", 8) == one  # continued


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("one_ray_at_a_time")
def test_a_sweep_along_the_front(tmp_path: Path) -> None:
    argv = [
        *shlex.split(f"{SEVERAL} --check-seeds 1 --num-samples 4 --xi 0 --name front --dim 12"),
        *shlex.split("--stage-layers 1 1 1 --retrain-top 2 --retrain.epochs 2"),
        *shlex.split("--retrain.warmup-epochs 1 --retrain.dim 12 --retrain.depth 2"),
    ]
    sweep = SweepProcess(tmp_path, argv)
    assert sweep.wait() == 0, sweep.error
    values = json.loads((tmp_path / "runs" / "front" / "genotypes.json").read_text())
    retrained = [g for g in values["genotypes"] if g["retrained"]]
    assert 1 <= len(retrained) <= 2 and all(g["on_front"] for g in retrained)
    assert values["genotypes"][0]["retrained"] is not None
    assert all(g["costs"]["macs"] > 0 for g in values["genotypes"])
