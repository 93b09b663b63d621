"""Values that the tests of the sweep share; skipped where Ray is not installed."""

from collections.abc import Callable
from typing import Any

import pytest

from dasvit.config import DataConfig, SearchConfig
from dasvit.genotype import Edge, Genotype

pytest.importorskip("ray")


def chain(first: str, second: str, third: str = "mlp_r3", fourth: str = "mlp_r3") -> Genotype:
    """o_0 = first(e_{k-2}) + second(e_{k-1}); o_1 = third(e_{k-2}) + fourth(o_0)."""
    return Genotype(
        ((Edge(0, first), Edge(1, second)), (Edge(0, third), Edge(2, fourth))), {"seed": 0}
    )


@pytest.fixture
def search_config() -> SearchConfig:
    """A small search whose own settings lie inside the outer space."""
    return SearchConfig(
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
    from tune.trials import SearchTrial, search_dirname

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
                "settings": {"token_ratio": 0.5 + config_index / 10, "seed": seed},
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
    from tune.trials import RetrainTrial, retrain_dirname

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
