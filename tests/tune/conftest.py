"""Values that the tests of the sweep share; skipped where Ray is not installed."""

import dataclasses
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sweep_process import SMALL, SweepProcess, results

from dasvit.data.config import DataConfig
from dasvit.presets import digits, get_preset
from dasvit.search.config import SearchConfig
from dasvit.spaces.cell.genotype import Edge, Genotype

pytest.importorskip("ray")


def chain(first: str, second: str, third: str = "mlp_r3", fourth: str = "mlp_r3") -> Genotype:
    """o_0 = first(e_{k-2}) + second(e_{k-1}); o_1 = third(e_{k-2}) + fourth(o_0)."""
    return Genotype(
        ((Edge(0, first), Edge(1, second)), (Edge(0, third), Edge(2, fourth))), {"seed": 0}
    )


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


@pytest.fixture
def search_trial() -> Callable[..., Any]:
    """A finished search trial, made up."""
    from tune.trial_folder import SearchTrial, search_dirname

    def make(
        config_index: int,
        seed: int,
        genotype: Genotype,
        derived: float,
        supernet: float,
        **more: Any,
    ) -> SearchTrial:
        return SearchTrial(
            **{
                "name": search_dirname(config_index, seed),
                "config_index": config_index,
                "seed": seed,
                # The second configuration of a sweep is plain DARTS, which selects no tokens.
                "settings": ({"xi": 0.0} if config_index == 1 else {"token_ratio": 0.5})
                | {"seed": seed},
                "genotype": genotype,
                "discretised_accuracy": derived,
                "supernet_accuracy": supernet,
                "skip_share": 0.1,
                "zero_share": 0.2,
                "seconds": 10.0,
                "wall_seconds": 22.0,
            }
            | more
        )

    return make


@pytest.fixture
def retrain_trial() -> Callable[..., Any]:
    """A finished retraining, made up."""
    from tune.trial_folder import RetrainTrial, retrain_dirname

    def make(model: str, seed: int, top1: float) -> RetrainTrial:
        return RetrainTrial(
            name=retrain_dirname(model, seed),
            model=model,
            seed=seed,
            test_top1=top1,
            test_top5=1.0,
            train_accuracy=1.0,
            num_params=250_000,
            seconds=30.0,
            wall_seconds=40.0,
        )

    return make


@pytest.fixture
def make_chain() -> Callable[..., Genotype]:
    return chain


@pytest.fixture
def outcome(plan, make_chain, search_trial, retrain_trial) -> Any:
    """Two encoders; the second by search score is the better one on the test set."""
    from tune.report.outcome import Outcome

    a, b = make_chain("msa_h2", "mlp_r3"), make_chain("identity", "mlp_r3")
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


@pytest.fixture
def climbed(outcome, make_chain, retrain_trial, search_trial) -> Any:
    """A ladder of two rungs: a random encoder passes the best found one on the second."""
    from tune.report.ladder import Rung

    a, b = (make_chain("identity", "msa_h2", "identity"), make_chain("msa_h2", "mlp_r3"))
    drawn = make_chain("msa_h4", "mlp_r4", "mlp_r4")
    ha, hb, hc = (genotype.canonical_hash for genotype in (a, b, drawn))

    def rung(model: str, *scores: float) -> tuple[Any, ...]:
        made = (retrain_trial(model, seed, score) for seed, score in enumerate(scores))
        return tuple(
            dataclasses.replace(t, balanced_accuracy=t.test_top1, num_tested=719) for t in made
        )

    first = {
        ha: rung(ha, 0.71, 0.73),
        hb: rung(hb, 0.60),
        hc: rung(hc, 0.70, 0.72),
        "vit": rung("vit", 0.5, 0.5),
    }
    second = {
        ha: rung(ha, 0.80, 0.81),
        hc: rung(hc, 0.80, 0.82),
        "vit": rung("vit", 0.7, 0.7),
    }
    searched = ((0, 0, a, ha, 0), (0, 1, a, ha, 1), (1, 0, b, hb, 0))
    return dataclasses.replace(
        outcome,
        plan=dataclasses.replace(outcome.plan, metric="trained_accuracy", random_baseline=1),
        search=tuple(
            search_trial(config, seed, genotype, 0.5, 0.5, short=first[name][place])
            for config, seed, genotype, name, place in searched
        ),
        random=(drawn,),
        rungs=(
            Rung(epochs=4, models=(hc, "vit"), results=first, left=()),
            Rung(epochs=12, models=(ha, hc, "vit"), results=second, left=()),
        ),
        retrained=(
            retrain_trial(hc, 0, 0.95),
            retrain_trial(ha, 0, 0.90),
            retrain_trial(ha, 1, 0.92),
            retrain_trial("vit", 0, 0.85),
        ),
    )


@pytest.fixture
def several(outcome, make_chain, search_trial) -> Any:
    """Two objectives and three encoders: the best, a cheaper one, and one that both beat."""
    worst = make_chain("mlp_r3", "msa_h2")
    names = (*(summary.hash for summary in outcome.ranking), worst.canonical_hash)
    macs = (9_000_000, 4_000_000, 8_000_000)
    return dataclasses.replace(
        outcome,
        plan=dataclasses.replace(outcome.plan, objectives=("accuracy", "macs")),
        search=(*outcome.search, search_trial(2, 0, worst, 0.4, 0.5)),
        costs={name: {"macs": n, "params": 10} for name, n in zip(names, macs, strict=True)},
    )


@pytest.fixture
def plan() -> Any:
    """What the made-up sweep was asked for."""
    from tune.plan import Plan

    preset = digits()
    return Plan(
        search=preset.search,
        retrain=preset.retrain,
        fixed=(),
        num_samples=2,
        seeds=2,
        metric="discretised_accuracy",
        retrain_top=2,
        random_baseline=0,
        retrain_seeds=2,
    )


@pytest.fixture
def folder(tmp_path: Path, outcome: Any) -> Any:
    """A result folder with the retrainings' files in it."""
    from tune.store import ResultFolder

    folder = ResultFolder(tmp_path / "mine")
    for trial in outcome.retrained:
        path = folder.retrain_dir / trial.name
        path.mkdir(parents=True)
        for name in ("config.json", "result.json"):
            (path / name).write_text("{}")
        (path / "model").mkdir()
        (path / "model" / "model.safetensors").write_text(f"weights of {trial.name}")
        (path / "model" / "README.md").write_text(f"card of {trial.name}")
    for summary in outcome.ranking:
        for seed in (0, 1):
            path = folder.retrain_dir / f"{summary.hash}_seed_{seed}"
            if path.exists():
                summary.genotype.save(path / "genotype.json")
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
