import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest

from dasvit.genotype import Genotype
from tune.folder import ResultFolder
from tune.leaderboard import ray_seconds, table, wall_rows
from tune.outcome import Outcome, best_retraining
from tune.report import save_genotypes, write_report
from tune.trials import Failure


@pytest.fixture
def outcome(make_chain, search_trial, retrain_trial) -> Outcome:
    """Two encoders; the second by search score is the better one on the test set."""
    a, b = make_chain("msa_h2", "mlp_r3"), make_chain("identity", "mlp_r3")
    ha, hb = a.canonical_hash, b.canonical_hash
    return Outcome(
        name="mine",
        dataset="digits",
        retrain_dataset="digits",
        metric="discretised_accuracy",
        operations=("zero", "identity", "msa_h2", "mlp_r3"),
        search=(
            search_trial(0, 0, a, 0.60, 0.70),
            search_trial(0, 1, a, 0.64, 0.70),
            search_trial(1, 0, b, 0.50, 0.80),
        ),
        retrained=(
            retrain_trial(ha, 0, 0.90),
            retrain_trial(ha, 1, 0.92),
            retrain_trial(hb, 0, 0.99),
            retrain_trial("vit", 0, 0.85),
        ),
        wall={"search": 40.0, "retraining": 90.0, "other": 10.0, "total": 140.0, "concurrent": 2},
    )


@pytest.fixture
def folder(tmp_path: Path, outcome: Outcome) -> ResultFolder:
    """A result folder with the retrainings' files in it."""
    folder = ResultFolder(tmp_path / "mine")
    for trial in outcome.retrained:
        path = folder.retrain_dir / trial.name
        path.mkdir(parents=True)
        for name in ("config.json", "model.json", "result.json"):
            (path / name).write_text("{}")
        (path / "model.safetensors").write_text(f"weights of {trial.name}")
        (path / "model").mkdir()
        (path / "model" / "README.md").write_text(f"card of {trial.name}")
    for summary in outcome.ranking:
        for seed in (0, 1):
            path = folder.retrain_dir / f"{summary.hash}_seed_{seed}"
            if path.exists():
                summary.genotype.save(path / "genotype.json")
    return folder


def test_the_best_model_is_chosen_without_the_test_set(outcome: Outcome) -> None:
    best = best_retraining(outcome)
    assert best is not None
    # Not the encoder that tests at 0.99, and not the seed that tests at 0.92.
    assert (best.model, best.seed) == (outcome.ranking[0].hash, 0)
    assert best.test_top1 == 0.90


def test_leaderboard(outcome: Outcome, folder: ResultFolder) -> None:
    write_report(outcome, folder)
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
    outcome: Outcome, folder: ResultFolder, search_trial, make_chain
) -> None:
    other = search_trial(1, 1, make_chain("msa_h2", "mlp_r3"), 0.40, 0.60)
    more = dataclasses.replace(outcome, search=(*outcome.search, other))
    write_report(more, folder)
    text = (folder.root / "leaderboard.md").read_text()
    a, b = (summary.hash for summary in outcome.ranking)
    assert "| configuration | genotypes | discretised % |" in text
    assert f"| 0 | {a} 2× | 62.0 ± 2.8 |" in text
    assert f"| 1 | {b}, {a} | 45.0 ± 7.1 |" in text  # 0.50 and 0.40: 7.1 with n - 1, 5.0 with n
    assert "sample standard deviation (n - 1)" in text


def test_csv_has_every_model_once(outcome: Outcome, folder: ResultFolder) -> None:
    write_report(outcome, folder)
    rows = list(csv.DictReader(io.StringIO((folder.root / "leaderboard.csv").read_text())))
    assert [row["model"] for row in rows] == [*(s.hash for s in outcome.ranking), "vit"]
    assert float(rows[0]["discretised_accuracy_mean"]) == pytest.approx(0.62)
    assert float(rows[0]["test_top1_mean"]) == pytest.approx(0.91)
    assert rows[1]["test_top1_std"] == ""
    assert rows[2]["rank"] == "" and float(rows[2]["test_top1_mean"]) == pytest.approx(0.85)


def test_genotypes_json(outcome: Outcome, folder: ResultFolder) -> None:
    write_report(outcome, folder)
    values: dict[str, Any] = json.loads((folder.root / "genotypes.json").read_text())
    first = values["genotypes"][0]
    assert Genotype.from_dict(first["genotype"]) == outcome.ranking[0].genotype
    assert first["count"] == 2
    assert [t["settings"]["token_ratio"] for t in first["trials"]] == [0.5, 0.5]
    assert first["retrained"]["test_top1"]["mean"] == pytest.approx(0.91)
    assert len(values["votes"]) == 5
    assert values["votes"][0]["votes"] == {"msa_h2": 2, "identity": 1}
    assert [c["config_index"] for c in values["configurations"]] == [0, 1]


def test_best_folder(outcome: Outcome, folder: ResultFolder) -> None:
    write_report(outcome, folder)
    write_report(outcome, folder)  # again, as a sweep that is continued does
    best = outcome.ranking[0].hash
    assert (folder.best_dir / "model.safetensors").read_text() == f"weights of {best}_seed_0"
    assert (folder.best_dir / "model" / "README.md").read_text() == f"card of {best}_seed_0"
    assert Genotype.load(folder.best_dir / "genotype.json") == outcome.ranking[0].genotype
    names = {path.name for path in folder.best_dir.iterdir()}
    assert {"encoder.png", "encoder.svg", "config.json", "model.json"} <= names
    assert not list(folder.root.glob(".*"))


def test_failures_are_listed(outcome: Outcome, folder: ResultFolder) -> None:
    failures = (Failure("config_001_seed_1", "out of memory"), Failure("config_002_seed_0"))
    broken = dataclasses.replace(outcome, not_searched=failures, retrained=())
    write_report(broken, folder)
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
