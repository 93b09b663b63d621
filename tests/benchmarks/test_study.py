"""The study of methods against random encoders, on results made by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import study
from dasvit.spaces.cell.genotype import Genotype

RANDOM = [0.70, 0.72, 0.71, 0.74, 0.73, 0.69]


def pieces(values: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Searches of two methods and random encoders; the score is the accuracy, halved."""
    genotypes = study.drawn("digits", 20)
    rows: list[dict[str, Any]] = []
    known = zip(genotypes, [*values["random"], *values["darts"], *values["gdas"]], strict=False)
    encoders = [(genotype, value) for genotype, value in known]
    for genotype, value in encoders:
        own = {"hash": genotype.canonical_hash, "num_params": 50_000}
        rows.append(own | _training("short", 0, value / 2, 10.0))
        rows += [own | _training("whole", seed, value + 0.01 * seed, 100.0) for seed in (0, 1)]
    start = len(values["random"])
    for method in ("darts", "gdas"):
        for seed in range(len(values[method])):
            genotype = encoders[start + seed][0]
            rows.append(
                {
                    "piece": "search",
                    "method": method,
                    "seed": seed,
                    "hash": genotype.canonical_hash,
                    "encoder": Genotype(genotype.nodes).to_dict(),
                    "chose_at_random": method == "gdas",
                    "cpu_seconds": 20.0,
                    "commit": "abc",
                    "date": "2026-01-01",
                    "torch": "2",
                }
            )
        start += len(values[method])
    return rows


def _training(piece: str, seed: int, accuracy: float, seconds: float) -> dict[str, Any]:
    return {
        "piece": piece,
        "seed": seed,
        "balanced_accuracy": accuracy,
        "cpu_seconds": seconds,
        "commit": "abc",
        "date": "2026-01-01",
        "torch": "2",
    }


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> study.Study:
    values = {"random": RANDOM, "darts": [0.80, 0.82, 0.81], "gdas": [0.71, 0.73, 0.70]}
    rows = pieces(values)
    genotypes = study.drawn("digits", len(RANDOM))
    monkeypatch.setattr(study, "drawn", lambda data, count: genotypes)  # the others were found
    return study.Study("digits", rows)


def test_each_method_against_random(made: study.Study) -> None:
    table = {row["network"]: row for row in made.table()}
    assert list(table) == ["darts", "gdas", "random"]
    assert table["darts"]["accuracy %"] == "81.5 ± 1.0"
    assert table["random"]["accuracy %"] == "72.0 ± 1.9"
    assert table["darts"]["minus random"].startswith("+9.5 (+")
    assert float(table["darts"]["p, Holm"]) < 0.01 < 0.5 < float(table["gdas"]["p, Holm"])
    assert table["darts"]["number"] == "3, 3 distinct"
    assert (table["darts"]["learned nothing"], table["gdas"]["learned nothing"]) == ("0", "3")


def test_random_search_of_the_same_compute(made: study.Study) -> None:
    """A search and its short training take 30 s, three short trainings: the best of three by a
    score that orders as the accuracy does is as good as the mean of the maximum."""
    count, best = made.random_for(30.0)
    assert count == 3
    values = sorted(v + 0.005 for v in RANDOM)
    # Of 20 sets of three, the largest is the i-th value in C(i - 1, 2).
    mean = sum(v * n for v, n in zip(values[2:], (1, 3, 6, 10), strict=True)) / 20
    assert best == pytest.approx(mean, abs=0.001)
    assert made.random_for(1e9)[0] == len(RANDOM)


def test_the_page_says_what_it_is_of(made: study.Study) -> None:
    page = made.page()
    assert "Kendall's τ of the score with the accuracy: +1.00" in page
    assert "commit abc; date 2026-01-01; torch 2." in page


def test_a_torn_line_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "digits.jsonl"
    path.write_text(json.dumps({"piece": "short"}) + '\n{"piece": "wh')
    assert study.read(path) == [{"piece": "short"}]
    assert path.read_text().endswith("\n") and len(path.read_text().splitlines()) == 1
    assert study.read(tmp_path / "none.jsonl") == []


def test_holms_procedure() -> None:
    """The worked example: p-values 0.01, 0.04, 0.03, 0.005 of four tests."""
    found = study.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})


def test_what_is_found_twice_is_trained_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds of a method with one encoder do not share trainings."""
    genotype, other = study.drawn("digits", 2)
    monkeypatch.setattr(study, "drawn", lambda data, count: [other][:count])
    rows: list[dict[str, Any]] = [
        {
            "piece": "search",
            "method": "darts",
            "seed": seed,
            "hash": genotype.canonical_hash,
            "encoder": Genotype(genotype.nodes).to_dict(),
        }
        for seed in (0, 1)
    ]
    args = study.Args(seeds=2, random=1)
    own = [job for job in study.trainings(rows, args) if job[0]["hash"] == rows[0]["hash"]]
    assert [(short, seed) for _, short, seed in own] == [
        (True, 0),
        *((False, seed) for seed in range(4)),
    ]
    key = {"hash": rows[0]["hash"], "num_params": 1}
    rows += [key | _training("whole", seed, 0.1 * seed, 1.0) for seed in range(4)]
    rows.append(key | _training("short", 0, 0.5, 1.0))
    assert study.Study("digits", rows).accuracies["darts"] == pytest.approx([0.05, 0.25])
