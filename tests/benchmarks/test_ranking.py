"""The tables of benchmarks/ranking.py, from trainings with known accuracies."""

from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks.images
from benchmarks import ranking
from dasvit.data.config import DataConfig
from dasvit.data.datasets import load_data
from dasvit.data.splits import ImageData, TensorSplit


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Four encoders: the whole retraining orders them a < b < c < d, in both seeds but for one
    pair; the short one leaves out d, whose second seed is missing."""
    monkeypatch.setattr("tune.report.worth.RESAMPLES", 50)  # no interval is looked at
    whole = {"a": (0.70, 0.71), "b": (0.72, 0.74), "c": (0.76, 0.73), "d": (0.80, 0.81)}
    short = {"a": 0.30, "b": 0.50, "c": 0.40}

    def run(name: str, epochs: int, seed: int, held_out: float, score: float) -> dict[str, Any]:
        own = {"hash": name, "epochs": epochs, "seed": seed, "held_out": held_out}
        curve = [score - 0.1 * left for left in reversed(range(epochs))] if held_out else []
        return own | {"accuracy": score, "curve": curve, "num_params": 1000 * ord(name)}

    runs = [run(n, 8, seed, 0.0, v) for n, both in whole.items() for seed, v in enumerate(both)]
    runs += [run(n, 8, 0, 0.5, both[0]) for n, both in whole.items()]
    runs += [
        run(n, epochs, seed, 0.5, v)
        for n, v in short.items()
        for epochs in (1, 2, 4)
        for seed in (0, 1)
    ]
    encoders = [{"hash": n, "origin": ranking.UNIFORM} for n in "abcd"]
    return {"command": "python …", "encoders": encoders, "runs": runs}


def test_each_score_beside_the_mean_of_both_seeds(facts: dict[str, Any]) -> None:
    found = {name: (cost, tau) for name, (cost, tau) in ranking.correlations(facts).items()}
    # One of six pairs is crossed between the seeds; of three encoders one of three pairs.
    assert found[ranking.OTHER_SEED][1].value == pytest.approx(4 / 6)
    cost, tau = found["1 epoch on one half"]
    assert (cost, tau.value, tau.count) == (0.0625, pytest.approx(1 / 3), 3)
    cost, tau = found["the first 2 of 8 epochs on one half"]
    assert (cost, tau.value, tau.count) == (0.125, pytest.approx(1.0), 4)
    assert found["number of parameters"][1].value == pytest.approx(1.0)
    assert "| 1 epoch on one half | +0.33 |" in ranking.page(facts)


def test_an_encoder_counts_once_all_its_seeds_are_there(facts: dict[str, Any]) -> None:
    facts["runs"] = [
        r for r in facts["runs"] if (r["hash"], r["seed"], r["held_out"]) != ("d", 1, 0)
    ]
    assert sorted(ranking.truth(facts)) == ["a", "b", "c"]
    assert ranking.truth(facts)["a"] == pytest.approx(0.705)


def test_the_part_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back by the data set's own reader: training images all of them, apart, stratified."""
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(-1, -1, 28, 28)
    labels = torch.arange(100) % 10
    own: dict[str, Any] = {"mean": (0.5,), "std": (0.5,), "config": DataConfig()}
    train = TensorSplit(images.contiguous(), labels, **own)
    whole = ImageData(train, train, tuple("abcdefghij"), 1, (0.5,), (0.5,))
    monkeypatch.setattr(benchmarks.images, "load_data", lambda config, device: whole)
    monkeypatch.setattr(ranking, "IMAGES", 30)
    monkeypatch.setattr(ranking, "JUDGES", 50)
    ranking.write_part(Path("anywhere"), tmp_path)
    config = DataConfig(dataset="fashion_mnist", data_dir=str(tmp_path), image_size=28)
    part = load_data(config, torch.device("cpu"))
    kept = []
    for split, per_class in ((part.train, 3), (part.test, 5)):
        assert isinstance(split, TensorSplit)
        assert split.targets.bincount().tolist() == [per_class] * 10
        numbers = split.images[:, 0, 0, 0].long()
        assert (numbers % 10 == split.targets).all()
        kept += numbers.tolist()
    assert len(set(kept)) == 80
