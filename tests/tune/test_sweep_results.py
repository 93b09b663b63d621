import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest

from dasvit.spaces.cell.genotype import Genotype
from tune.folder import ResultFolder
from tune.leaderboard import ray_seconds, table, wall_rows
from tune.outcome import Outcome, best_retraining
from tune.plan import Plan
from tune.results import save_genotypes, write_results
from tune.trials import Failure


def test_the_best_model_is_chosen_without_the_test_set(outcome: Outcome) -> None:
    best = best_retraining(outcome)
    assert best is not None
    # Not the encoder that tests at 0.99, and not the seed that tests at 0.92.
    assert (best.model, best.seed) == (outcome.ranking[0].hash, 0)
    assert best.test_top1 == 0.90


def test_leaderboard(outcome: Outcome, folder: ResultFolder, plan: Plan) -> None:
    write_results(plan, outcome, folder, preset="digits")
    text = (folder.root / "leaderboard.md").read_text()
    assert "no choice is made on it" in text
    a, b = outcome.ranking
    assert (
        f"| 1 | {a.hash} | 2× | 62.0 ± 2.8 | 70.0 ± 0.0 | 8.0 ± 2.8 | 91.0 ± 1.4 (2 seeds)" in text
    )
    assert f"| 2 | {b.hash} | 1× | 50.0 | 80.0 | 30.0 | 99.0 (1 seed) | 0.25 M |" in text
    assert "| – | plain ViT | – | – | – | – | 85.0 (1 seed) | 0.25 M |" in text
    assert "Not finished" not in text
    assert str(a.genotype) in text


def test_configurations_name_their_genotypes(
    outcome: Outcome, folder: ResultFolder, plan: Plan, search_trial, make_chain
) -> None:
    other = search_trial(1, 1, make_chain("msa_h2", "mlp_r3"), 0.40, 0.60)
    more = dataclasses.replace(outcome, search=(*outcome.search, other))
    write_results(plan, more, folder, preset="digits")
    text = (folder.root / "leaderboard.md").read_text()
    a, b = (summary.hash for summary in outcome.ranking)
    assert "| configuration | seeds | genotypes | discretised % |" in text
    assert f"| 0 | 2 | {a} 2× | 62.0 ± 2.8 |" in text
    assert f"| 1 | 2 | {b}, {a} | 45.0 ± 7.1 |" in text  # 0.50 and 0.40: 7.1 with n - 1, 5.0 with n
    assert "sample standard deviation (n - 1)" in text


def test_csv_has_every_model_once(outcome: Outcome, folder: ResultFolder, plan: Plan) -> None:
    write_results(plan, outcome, folder, preset="digits")
    rows = list(csv.DictReader(io.StringIO((folder.root / "leaderboard.csv").read_text())))
    assert [row["model"] for row in rows] == [*(s.hash for s in outcome.ranking), "vit"]
    assert float(rows[0]["discretised_accuracy_mean"]) == pytest.approx(0.62)
    assert float(rows[0]["test_top1_mean"]) == pytest.approx(0.91)
    assert rows[1]["test_top1_std"] == ""
    assert rows[2]["rank"] == "" and float(rows[2]["test_top1_mean"]) == pytest.approx(0.85)


def test_genotypes_json(outcome: Outcome, folder: ResultFolder, plan: Plan) -> None:
    write_results(plan, outcome, folder, preset="digits")
    values: dict[str, Any] = json.loads((folder.root / "genotypes.json").read_text())
    first = values["genotypes"][0]
    assert Genotype.from_dict(first["genotype"]) == outcome.ranking[0].genotype
    assert first["count"] == 2
    assert [t["settings"]["token_ratio"] for t in first["trials"]] == [0.5, 0.5]
    assert first["retrained"]["test_top1"]["mean"] == pytest.approx(0.91)
    assert len(values["votes"]) == 5
    assert values["votes"][0]["votes"] == {"msa_h2": 2, "identity": 1}
    assert [c["config_index"] for c in values["configurations"]] == [0, 1]


def test_best_folder(outcome: Outcome, folder: ResultFolder, plan: Plan) -> None:
    write_results(plan, outcome, folder, preset="digits")
    write_results(plan, outcome, folder, preset="digits")  # as when a sweep is continued
    best = outcome.ranking[0].hash
    model = folder.best_dir / "model"
    assert (model / "model.safetensors").read_text() == f"weights of {best}_seed_0"
    assert (model / "README.md").read_text() == f"card of {best}_seed_0"
    assert Genotype.load(folder.best_dir / "genotype.json") == outcome.ranking[0].genotype
    names = {path.name for path in folder.best_dir.iterdir()}
    assert {"encoder.png", "encoder.svg", "config.json", "result.json"} <= names
    assert not list(folder.root.glob(".*"))


def test_failures_are_listed(outcome: Outcome, folder: ResultFolder, plan: Plan) -> None:
    failures = (Failure("config_001_seed_1", "out of memory"), Failure("config_002_seed_0"))
    broken = dataclasses.replace(outcome, not_searched=failures, retrained=())
    write_results(plan, broken, folder, preset="digits")
    text = (folder.root / "leaderboard.md").read_text()
    assert "- `config_001_seed_1`: out of memory" in text
    assert "- `config_002_seed_0`: not started, or interrupted" in text
    assert not folder.best_dir.exists()
    assert not broken.complete and broken.search_interrupted and broken.interrupted
    failed = dataclasses.replace(outcome, not_searched=failures[:1])
    assert not failed.interrupted and not failed.complete


def test_nothing_to_retrain_is_no_interruption() -> None:
    nothing = Outcome(
        name="mine",
        dataset="digits",
        retrain_dataset="digits",
        metric="discretised_accuracy",
        operations=(),
        not_searched=(Failure("config_000_seed_0", "boom"),),
        not_retrained=(Failure("vit_seed_0"),),
    )
    assert not nothing.interrupted and not nothing.complete


def test_wall_time_adds_up(outcome: Outcome) -> None:
    rows = dict(wall_rows(outcome))
    assert rows["search: training"] == "15 s"  # 3 trials of 10 s, two at a time
    assert rows["search: Ray's overhead"] == "25 s"
    assert rows["retraining: training"] == "1 min 00 s"
    assert rows["retraining: Ray's overhead"] == "30 s"
    assert rows["total"] == "2 min 20 s"
    assert rows["Ray's overhead in a trial (median)"] == "10.0 s"  # of 12, 12, 12, 10, 10, 10, 10


def test_ray_seconds_leaves_out_continued_trials(make_chain, search_trial) -> None:
    g = make_chain("msa_h2", "mlp_r3")
    trials = [search_trial(0, s, g, 0.5, 0.5, wall_seconds=w) for s, w in enumerate((15, 4, None))]
    assert ray_seconds(trials) == 5.0
    assert ray_seconds(trials[1:]) is None


def test_table_can_be_cut(outcome: Outcome) -> None:
    rows = table(outcome, limit=1)
    assert [row[1] for row in rows] == ["genotype", outcome.ranking[0].hash, "plain ViT"]


def test_saved_genotypes_say_where_they_come_from(outcome: Outcome, tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path / "mine")
    first, second = save_genotypes(outcome.ranking, folder)
    saved = Genotype.load(folder.genotypes_dir / f"{first}.json")
    assert saved == outcome.ranking[0].genotype
    assert [s["trial"] for s in saved.provenance["trials"]] == [
        "config_000_seed_0",
        "config_000_seed_1",
    ]
    assert saved.provenance["trials"][1]["alpha_trace"] == "search/config_000_seed_1/alpha.jsonl"
    assert second == outcome.ranking[1].hash


def test_random_encoders_are_in_the_same_leaderboard(
    outcome: Outcome, folder: ResultFolder, plan: Plan, make_chain, retrain_trial
) -> None:
    found = outcome.ranking[0].genotype
    drawn = (make_chain("mlp_r3", "msa_h2"), make_chain("msa_h2", "msa_h2"), found)
    a, b, _ = (g.canonical_hash for g in drawn)
    more = dataclasses.replace(
        outcome,
        random=drawn,
        retrained=(*outcome.retrained, retrain_trial(a, 0, 0.70), retrain_trial(b, 0, 0.80)),
    )
    write_results(plan, more, folder, preset="digits")
    text = (folder.root / "leaderboard.md").read_text()
    assert f"| random | {a} | – | – | – | – | 70.0 (1 seed) | 0.25 M |" in text
    assert text.count(f"| {found.canonical_hash} |") == 1  # found and drawn: one row
    # 0.91 (two seeds) less the mean of 0.70, 0.80 and its own 0.91: it was drawn as well.
    assert "tests +10.7 points from the mean of 3 random encoders; 95 % interval" in text
    rows = list(csv.DictReader(io.StringIO((folder.root / "leaderboard.csv").read_text())))
    assert [row["origin"] for row in rows] == ["search", "search", "random", "random", "baseline"]
    values = json.loads((folder.root / "genotypes.json").read_text())
    assert [r["hash"] for r in values["random"]] == [g.canonical_hash for g in drawn]
    assert values["random"][0]["retrained"]["test_top1"]["mean"] == 0.70
    assert Genotype.load(folder.genotypes_dir / f"{a}.json") == drawn[0]
    saved = Genotype.load(folder.genotypes_dir / f"{found.canonical_hash}.json")
    assert "trials" in saved.provenance  # the search's file, not the draw's


def test_a_random_search_ranks_nothing(
    folder: ResultFolder, plan: Plan, outcome: Outcome, make_chain, retrain_trial
) -> None:
    drawn = (make_chain("mlp_r3", "msa_h2"), make_chain("msa_h2", "msa_h2"))
    only = dataclasses.replace(
        outcome,
        search=(),
        random=drawn,
        retrained=tuple(retrain_trial(g.canonical_hash, 0, 0.9) for g in drawn),
    )
    assert only.complete and best_retraining(only) is None
    write_results(plan, only, folder, preset="digits")
    assert not folder.best_dir.exists()
    rows = table(only)
    assert [row[0] for row in rows] == ["rank", "random", "random"]
