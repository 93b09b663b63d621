"""Trials of a sweep, made up."""

from typing import Any

from dasvit.spaces.cell.genotype import Edge, Genotype
from tune.trial_folder import RetrainTrial, SearchTrial, retrain_dirname, search_dirname


def chain(first: str, second: str, third: str = "mlp_r3", fourth: str = "mlp_r3") -> Genotype:
    """o_0 = first(e_{k-2}) + second(e_{k-1}); o_1 = third(e_{k-2}) + fourth(o_0)."""
    return Genotype(
        ((Edge(0, first), Edge(1, second)), (Edge(0, third), Edge(2, fourth))), {"seed": 0}
    )


def search_trial(
    config_index: int,
    seed: int,
    genotype: Genotype,
    derived: float,
    supernet: float,
    **changes: Any,
) -> SearchTrial:
    """A finished search."""
    # The second configuration of a sweep is plain DARTS, which selects no tokens.
    own = {"xi": 0.0} if config_index == 1 else {"token_ratio": 0.5}
    values: dict[str, Any] = {
        "name": search_dirname(config_index, seed),
        "config_index": config_index,
        "seed": seed,
        "settings": own | {"seed": seed},
        "genotype": genotype,
        "discretised_accuracy": derived,
        "supernet_accuracy": supernet,
        "skip_share": 0.1,
        "zero_share": 0.2,
        "seconds": 10.0,
        "wall_seconds": 22.0,
    }
    return SearchTrial(**values | changes)


def retrain_trial(model: str, seed: int, top1: float, **more: Any) -> RetrainTrial:
    """A finished retraining."""
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
        **more,
    )
