"""Values that the tests of the sweep share; skipped where Ray is not installed."""

import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.sweep_process import SMALL, SweepProcess, results
from support.sweep_trials import chain, retrain_trial, search_trial

from dasvit.data.config import DataConfig
from dasvit.presets import digits, get_preset
from dasvit.search.config import SearchConfig
from tune.plan import Plan
from tune.report.ladder import Rung
from tune.report.outcome import Outcome
from tune.store import ResultFolder

pytest.importorskip("ray")


@pytest.fixture
def search_config() -> SearchConfig:
    """A small search whose own settings lie inside the outer space."""
    return get_preset("cifar10").search.replaced(
        data=DataConfig(dataset="digits", image_size=8),
        operations=("zero", "identity", "msa_h2", "mlp_r0.5", "mlp_r3"),
        dim=8,
        patch_size=4,
        stage_layers=(1, 2),
        stage_ops=(5, 3),
        stage_epochs=1,
    )


@pytest.fixture(scope="session")
def plan() -> Plan:
    """What the made-up sweep was asked for."""
    preset = digits()
    return Plan(
        search=preset.search,
        retrain=preset.retrain,
        num_samples=2,
        seeds=2,
        metric="discretised_accuracy",
        retrain_top=2,
        random_baseline=0,
        retrain_seeds=2,
    )


@pytest.fixture(scope="session")
def outcome(plan: Plan) -> Outcome:
    """Two encoders; the second by search score is the better one on the test set."""
    a, b = chain("msa_h2", "mlp_r3"), chain("identity", "mlp_r3")
    ha, hb = a.canonical_hash, b.canonical_hash
    return Outcome(
        name="mine",
        plan=plan,
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


@pytest.fixture(scope="session")
def climbed(outcome: Outcome) -> Outcome:
    """A ladder of two rungs: a random encoder passes the best found one on the second."""
    a, b = chain("identity", "msa_h2", "identity"), chain("msa_h2", "mlp_r3")
    drawn = chain("msa_h4", "mlp_r4", "mlp_r4")
    ha, hb, hc = (genotype.canonical_hash for genotype in (a, b, drawn))

    def rung(epochs: int, scores: dict[str, tuple[float, ...]]) -> Rung:
        trained = {
            model: tuple(
                retrain_trial(model, seed, score, balanced_accuracy=score, num_tested=719)
                for seed, score in enumerate(own)
            )
            for model, own in scores.items()
        }
        return Rung(epochs=epochs, models=tuple(scores), results=trained, left=())

    short = rung(4, {ha: (0.71, 0.73), hb: (0.60,), hc: (0.70, 0.72), "vit": (0.5, 0.5)})
    long = rung(12, {ha: (0.80, 0.81), hc: (0.80, 0.82), "vit": (0.7, 0.7)})
    searched = ((0, 0, a, ha, 0), (0, 1, a, ha, 1), (1, 0, b, hb, 0))
    return replace(
        outcome,
        plan=replace(outcome.plan, metric="trained_accuracy", random_baseline=1),
        search=tuple(
            search_trial(config, seed, genotype, 0.5, 0.5, short=short.results[name][place])
            for config, seed, genotype, name, place in searched
        ),
        random=(drawn,),
        rungs=(short, long),
        retrained=(
            retrain_trial(hc, 0, 0.95),
            retrain_trial(ha, 0, 0.90),
            retrain_trial(ha, 1, 0.92),
            retrain_trial("vit", 0, 0.85),
        ),
    )


@pytest.fixture(scope="session")
def several(outcome: Outcome) -> Outcome:
    """Two objectives and three encoders: the best, a cheaper one, and one that both beat."""
    worst = chain("mlp_r3", "msa_h2")
    names = (*(summary.hash for summary in outcome.ranking), worst.canonical_hash)
    macs = (9_000_000, 4_000_000, 8_000_000)
    return replace(
        outcome,
        plan=replace(outcome.plan, objectives=("accuracy", "macs")),
        search=(*outcome.search, search_trial(2, 0, worst, 0.4, 0.5)),
        costs={name: {"macs": n, "params": 10} for name, n in zip(names, macs, strict=True)},
    )


@pytest.fixture
def folder(tmp_path: Path, outcome: Outcome) -> ResultFolder:
    """A result folder with the retrainings' files in it."""
    folder = ResultFolder(tmp_path / "mine")
    encoders = {summary.hash: summary.genotype for summary in outcome.ranking}
    for trial in outcome.retrained:
        path = folder.retrain_dir / trial.name
        (path / "model").mkdir(parents=True)
        for name in ("config.json", "result.json"):
            (path / name).write_text("{}")
        (path / "model" / "model.safetensors").write_text(f"weights of {trial.name}")
        if trial.model in encoders:
            encoders[trial.model].save(path / "genotype.json")
    return folder


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run; that of all workers, where there are several."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture
def one_ray_at_a_time(_shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (_shared / "ray.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def unhurt(_shared: Path, one_ray_at_a_time: None) -> dict[str, Any]:
    """The results of the sweep that nothing happens to; run once."""
    folder = _shared / "unhurt"
    if not (folder / "done").exists():
        folder.mkdir(exist_ok=True)
        sweep = SweepProcess(folder, SMALL)
        assert sweep.wait() == 0, sweep.error
        assert sweep.left_behind() == []
        (folder / "done").touch()
    found = results(folder / "runs" / "small")
    # Two searches with a short training each, the ViT on the rung, two networks retrained.
    assert len([name for name in found if name != "ranking"]) == 2 * 2 + 2 + 2
    return found
