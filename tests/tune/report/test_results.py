"""What a sweep leaves for people: the leaderboard as text and CSV, genotypes.json, best/."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.sweep_trials import chain, retrain_trial, search_trial

from dasvit.spaces.cell.genotype import Genotype
from tune.report import tables
from tune.report.ladder import Rung
from tune.report.outcome import Outcome, best_retraining
from tune.report.page import leaderboard_text
from tune.report.reproduce import search_command
from tune.report.results import write_results
from tune.store import ResultFolder
from tune.trial_folder import Failure, StoppedTrial

Write = Callable[[Outcome], tuple[str, list[dict[str, str]], dict[str, Any]]]


@pytest.fixture
def written(folder: ResultFolder) -> Write:
    """Writes an outcome; leaderboard.md, the rows of leaderboard.csv, and genotypes.json."""

    def write(outcome: Outcome) -> tuple[str, list[dict[str, str]], dict[str, Any]]:
        write_results(outcome, folder, preset="digits")
        rows = csv.DictReader((folder.root / "leaderboard.csv").read_text().splitlines())
        values = json.loads((folder.root / "genotypes.json").read_text())
        return (folder.root / "leaderboard.md").read_text(), list(rows), values

    return write


def test_the_leaderboard(outcome: Outcome, written: Write, folder: ResultFolder) -> None:
    text, rows, values = written(outcome)
    a, b = outcome.ranking
    for line in (
        f"| 1 | {a.hash} | found 2× | 62.0 ± 2.8 | 91.0 ± 1.4 (2 seeds) | 0.25 M |",
        f"| 2 | {b.hash} | found 1× | 50.0 | 99.0 (1 of 2 seeds) | 0.25 M |",
        "| – | plain ViT | baseline | – | 85.0 (1 of 2 seeds) | 0.25 M |",
        f"1. `{a.hash}`: {a.genotype}",
        "no choice is made on it",
    ):
        assert line in text
    assert "Not finished" not in text and "Pareto" not in text
    assert "|\n| --- | --- |" in text and "|\n\n|" not in text  # tables in one piece
    assert [row["model"] for row in rows] == [a.hash, b.hash, "vit"]
    assert float(rows[0]["discretised_accuracy_mean"]) == pytest.approx(0.62)
    assert float(rows[0]["test_top1_mean"]) == pytest.approx(0.91)
    assert (rows[1]["test_top1_std"], rows[1]["retrain_seeds"], rows[2]["rank"]) == ("", "1", "")
    first = values["genotypes"][0]
    assert Genotype.from_dict(first["genotype"]) == a.genotype
    assert [t["settings"]["token_ratio"] for t in first["trials"]] == [0.5, 0.5]
    assert first["retrained"]["test_top1"]["mean"] == pytest.approx(0.91)
    assert values["votes"][0]["votes"] == {"msa_h2": 2, "identity": 1}
    assert [c["config_index"] for c in values["configurations"]] == [0, 1]
    assert list(tables.leaderboard(outcome, limit=1)["encoder"]) == [a.hash, "plain ViT"]
    # Each encoder's file says where it comes from.
    saved = Genotype.load(folder.genotypes_dir / f"{a.hash}.json")
    assert saved == a.genotype
    traces = [source["alpha_trace"] for source in saved.provenance["trials"]]
    assert traces == [f"search/config_000_seed_{seed}/alpha.jsonl" for seed in (0, 1)]
    # best/ is of the first seed of the encoder that ranks first.
    weights = (folder.best_dir / "model" / "model.safetensors").read_text()
    assert weights == f"weights of {a.hash}_seed_0"
    assert Genotype.load(folder.best_dir / "genotype.json") == a.genotype
    names = {path.name for path in folder.best_dir.iterdir()}
    assert {"encoder.png", "encoder.svg", "config.json", "result.json"} <= names
    assert not list(folder.root.glob(".*"))
    written(replace(outcome, retrained=()))
    assert not folder.best_dir.exists()  # none is better than a wrong one


def test_a_winner_that_gives_one_answer_to_all_is_no_best(outcome: Outcome) -> None:
    """Of a set with a large class the accuracy alone looks like a result."""

    def of_classes(largest: float | None) -> Outcome:
        changes = {"largest_class": largest, "balanced_accuracy": 0.5}
        return replace(outcome, retrained=tuple(replace(t, **changes) for t in outcome.retrained))

    sentence = "The encoder that ranks first is no better than one answer to all images: "
    for largest in (None, 0.5):
        assert best_retraining(of_classes(largest)) is not None
        assert sentence not in leaderboard_text(of_classes(largest))
    blunt = of_classes(0.92)
    assert best_retraining(blunt) is None
    assert f"{sentence}92.0 %" in leaderboard_text(blunt)
    last = tables.leaderboard(blunt).iloc[-1]
    assert (last["encoder"], last["test top-1 %"]) == ("largest class", "92.0")
    assert tables.leaderboard(blunt).iloc[0]["balanced %"] == "50.0 ± 0.0"


def test_configurations_failures_and_stops(
    outcome: Outcome, written: Write, folder: ResultFolder
) -> None:
    """Failures and stops are counted, with their reasons."""
    no_kernel = "RuntimeError: no such kernel | <none>"
    a, b = outcome.ranking
    changed = replace(
        outcome,
        search=(*outcome.search, search_trial(1, 1, a.genotype, 0.40, 0.60)),
        not_searched=(
            Failure("config_002_seed_0", no_kernel),
            Failure("config_002_seed_1", no_kernel),
        ),
        stopped=(
            StoppedTrial(
                name="config_003_seed_0",
                epochs=2,
                total_epochs=6,
                score=0.25,
                settings={"token_ratio": 0.9, "seed": 0},
            ),
        ),
        rungs=(
            Rung(epochs=4, models=(), results={}, left=(Failure("vit_seed_0", "MemoryError"),)),
        ),
        not_retrained=(Failure("vit_seed_1", "killed"), Failure("unstarted")),
        retrained=tuple(replace(t, balanced_accuracy=0.5) for t in outcome.retrained),
    )
    text, _, values = written(changed)
    assert "| configuration | seeds | genotypes | discretised % |" in text
    assert f"| 0 | 2 of 2 | {a.hash} 2× | 62.0 ± 2.8 |" in text
    # 0.50 and 0.40: 7.1 with n - 1, 5.0 with n.
    assert f"| 1 | 2 of 2 | {b.hash}, {a.hash} | 45.0 ± 7.1 |" in text
    assert "| 2 | 0 of 2 | – | – |" in text
    assert "4 of 7 searches" in text and "1 stopped early, 4 failed (reasons below)" in text
    for failure in changed.failed:
        assert f"- `{failure.name}`: {failure.error}" in text
    assert "- `unstarted`: not started, or interrupted" in text
    assert "| config_003_seed_0 | 2 of 6 | 25.0 | 0.9 |" in text
    assert len(values["not_finished"]) == 5 and values["stopped"][0]["score"] == 0.25
    assert values["baseline"]["balanced_accuracy"]["mean"] == 0.5
    page = (folder.root / "report.html").read_text()
    assert "no such kernel | &lt;none&gt;" in page and "Stopped early" in page


def test_wall_time_adds_up(outcome: Outcome) -> None:
    rows = dict(tables.wall_time(outcome).values.tolist())
    assert rows == {
        "search: training": "15 s",  # 3 trials of 10 s, two at a time
        "search: Ray's overhead": "25 s",
        "retraining: training": "1 min 00 s",
        "retraining: Ray's overhead": "30 s",
        "starting and stopping Ray, reports": "10 s",
        "total": "2 min 20 s",
        "Ray's overhead in a trial (median)": "10.0 s",  # of 12, 12, 12, 10, 10, 10, 10
    }
    assert tables.wall_time(replace(outcome, wall={})).empty
    # A trial that was continued took less than its epochs: it is left out.
    trials = [replace(outcome.search[0], wall_seconds=wall) for wall in (15.0, 4.0, None)]
    assert tables.ray_seconds(trials) == 5.0
    assert tables.ray_seconds(trials[1:]) is None


def test_random_encoders_are_in_the_same_leaderboard(
    outcome: Outcome, written: Write, folder: ResultFolder
) -> None:
    found = outcome.ranking[0].genotype
    drawn = (chain("mlp_r3", "msa_h2"), chain("msa_h2", "msa_h2"), found)
    a, b, _ = (g.canonical_hash for g in drawn)
    tests = (retrain_trial(a, 0, 0.70), retrain_trial(b, 0, 0.80))
    more = replace(outcome, random=drawn, retrained=(*outcome.retrained, *tests))
    text, rows, values = written(more)
    assert f"| random | {a} | random | – | 70.0 (1 of 2 seeds) | 0.25 M |" in text
    assert text.count(f"| {found.canonical_hash} |") == 1  # found and drawn: one row
    # 0.91 (two seeds) less the mean of 0.70, 0.80 and its own 0.91: it was drawn as well.
    assert "tests +10.7 points from the mean of 3 random encoders; 95 % interval" in text
    assert [row["origin"] for row in rows] == ["search", "search", "random", "random", "baseline"]
    assert [r["hash"] for r in values["random"]] == [g.canonical_hash for g in drawn]
    assert values["random"][0]["retrained"]["test_top1"]["mean"] == 0.70
    assert Genotype.load(folder.genotypes_dir / f"{a}.json") == drawn[0]
    saved = Genotype.load(folder.genotypes_dir / f"{found.canonical_hash}.json")
    assert "trials" in saved.provenance  # the search's file, not the draw's


def test_who_climbs_is_ranked_whatever_found_it(
    climbed: Outcome, written: Write, folder: ResultFolder
) -> None:
    first, second, third = climbed.ranking
    path = folder.retrain_dir / f"{first.hash}_seed_0"
    shutil.copytree(folder.retrain_dir / "vit_seed_0", path)
    first.genotype.save(path / "genotype.json")
    text, rows, values = written(climbed)
    assert "| rank | encoder | origin | 4 epochs % | 12 epochs % | test top-1 % |" in text
    assert f"| 1 | {first.hash} | random | 71.0 ± 1.4 | 81.0 ± 1.4 | 95.0 (1 of 2 seeds) |" in text
    assert f"| 2 | {second.hash} | found 2× | 72.0 ± 1.4 | 80.5 ± 0.7 |" in text
    assert f"| 3 | {third.hash} | found 1× | 60.0 | – | – |" in text
    assert "| – | plain ViT | baseline | 50.0 ± 0.0 | 70.0 ± 0.0 |" in text
    assert "Ranked by the class-balanced accuracy on held-out training images" in text
    origins = [("1", "random"), ("2", "search"), ("3", "search"), ("", "baseline")]
    assert [(r["rank"], r["origin"]) for r in rows] == origins
    assert float(rows[0]["rung_12_epochs_mean"]) == pytest.approx(0.81)
    assert [r["epochs"] for r in values["genotypes"][0]["rungs"]] == [4, 12]
    assert (values["winner"], values["as_good"]) == (first.hash, [second.hash, first.hash])


def test_several_objectives_show_the_front(several: Outcome) -> None:
    table = tables.leaderboard(several)
    shown = table[["multiply-adds", "Pareto front"]].values.tolist()
    assert shown[:3] == [["9.00 M", "yes"], ["4.00 M", "yes"], ["8.00 M", ""]]
    assert "2 of 3 encoders are on it" in leaderboard_text(several)
    assert tables.scores(several)["macs"].dropna().tolist() == [9_000_000, 4_000_000, 8_000_000]


def test_methods_that_take_turns_stand_in_the_tables(climbed: Outcome) -> None:
    plan = replace(climbed.plan, methods=("darts", "gdas"))
    several = replace(climbed, plan=plan)
    board = tables.leaderboard(several)
    found = dict(zip(board["encoder"], board["method"], strict=True))
    assert [found[s.hash] for s in several.ranking] == ["–", "darts", "gdas"]
    assert found["plain ViT"] == "–"
    assert list(tables.configurations(several)["method"]) == ["darts", "gdas"]
    assert list(tables.scores(several)["methods"][1:3]) == ["darts", "gdas"]
    assert "method" not in tables.leaderboard(climbed)
    own = {"xi": 0.0, "seed": 1}
    first, second = (
        search_command(plan, replace(trial, settings=own), preset="digits")
        for trial in climbed.search[1:]
    )
    assert "--method darts" in first and "--method gdas" in second


def test_what_a_search_proposes_is_named(outcome: Outcome, written: Write) -> None:
    first = replace(outcome.search[0], proposals=(chain("msa_h4", "mlp_r4"),))
    _, _, values = written(replace(outcome, search=(first, *outcome.search[1:])))
    trials = [trial for row in values["genotypes"] for trial in row["trials"]]
    assert trials[0]["proposals"] == [chain("msa_h4", "mlp_r4").canonical_hash]
    assert all(trial["proposals"] == [] for trial in trials[1:])
