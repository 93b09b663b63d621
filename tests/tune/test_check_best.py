import dataclasses
from pathlib import Path

from tune.check_best import CheckSetup, draws

from dasvit.search.config import SearchConfig
from tune.cluster import Demand
from tune.report.aggregate import rank_configs


def test_a_check_differs_from_its_search_by_the_seed_alone(
    tmp_path: Path, search_config: SearchConfig, search_trial, make_chain
) -> None:
    base = dataclasses.replace(search_config, seed=5)
    settings = {"token_ratio": 0.1 + 0.2, "gamma_max": 0.7, "xi": 1e-3, "seed": 5}
    trial = search_trial(3, 5, make_chain("msa_h2", "mlp_r3"), 0.6, 0.7, settings=settings)
    configs = rank_configs([trial], "discretised_accuracy")
    setup = CheckSetup(
        search=base,
        trials_dir=tmp_path,
        ray_dir=tmp_path / "ray",
        demand=Demand(cpus=1, gpus=0.0, concurrent=1),
    )
    jobs = [setup.job({"trial": draw}) for draw in draws(configs, range(7, 9), base.seed)]
    assert [job.name for job in jobs] == ["config_003_seed_7", "config_003_seed_8"]
    for job, seed in zip(jobs, (7, 8), strict=True):
        assert job.config == base.replaced(token_ratio=0.1 + 0.2, gamma_max=0.7, xi=1e-3, seed=seed)
