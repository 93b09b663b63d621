import os

import pytest

from tune.cluster import Cluster, check_address, check_local_gpus, connect, demand

LAPTOP = Cluster(address="local", cpus=2, gpus=0, node_cpus=2, node_gpus=0, nodes=1)
GPUS = Cluster(address="auto", cpus=64, gpus=8, node_cpus=32, node_gpus=4, nodes=3)
ASLEEP = Cluster(address="auto", cpus=0, gpus=0, node_cpus=0, node_gpus=0, nodes=1)
NOTHING = {"gpus_per_trial": None, "cpus_per_trial": None, "max_concurrent": None, "num_trials": 99}


def test_a_laptop_runs_one_trial_a_core() -> None:
    got = demand(LAPTOP, **NOTHING)
    assert (got.cpus, got.gpus, got.concurrent, got.device) == (1, 0.0, 2, "cpu")


def test_a_gpu_cluster_runs_one_trial_a_gpu() -> None:
    got = demand(GPUS, **NOTHING)
    assert (got.cpus, got.gpus, got.concurrent, got.device) == (8, 1.0, 8, "cuda")


def test_shares_of_a_gpu() -> None:
    got = demand(GPUS, **NOTHING | {"gpus_per_trial": 0.5})
    assert (got.cpus, got.concurrent) == (4, 16)


def test_never_more_than_asked_or_there_are() -> None:
    assert demand(LAPTOP, **NOTHING | {"max_concurrent": 1}).concurrent == 1
    assert demand(LAPTOP, **NOTHING | {"max_concurrent": 9}).concurrent == 2
    assert demand(GPUS, **NOTHING | {"num_trials": 3}).concurrent == 3
    assert demand(GPUS, **NOTHING | {"gpus_per_trial": 0}).device == "cpu"


@pytest.mark.parametrize(
    ("cluster", "asked", "message"),
    [
        (LAPTOP, {"gpus_per_trial": 1}, r"--gpus-per-trial 1: no node .* more than 0 GPUs"),
        (LAPTOP, {"cpus_per_trial": 3}, r"--cpus-per-trial 3: no node .* more than 2 CPUs"),
        (GPUS, {"gpus_per_trial": 5}, r"--gpus-per-trial 5: no node .* more than 4 GPUs"),
        (ASLEEP, {"gpus_per_trial": 1}, "--max-concurrent-trials"),
    ],
)
def test_what_fits_nowhere_is_refused(cluster: Cluster, asked: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demand(cluster, **NOTHING | asked)


def test_a_cluster_that_grows_is_trusted() -> None:
    got = demand(ASLEEP, **NOTHING | {"gpus_per_trial": 1, "max_concurrent": 8})
    assert (got.concurrent, got.gpus, got.device) == (8, 1, "cuda")
    # A machine of our own does not grow.
    with pytest.raises(ValueError, match="no node"):
        demand(LAPTOP, **NOTHING | {"gpus_per_trial": 1, "max_concurrent": 8})


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert check_address(None) is None
    assert check_address("auto") == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert check_address(None) == "10.0.0.1:6379"
    assert check_address("local") is None
    with pytest.raises(ValueError, match="Ray Client"):
        check_address("ray://10.0.0.1:10001")


def test_gpus_are_checked_before_ray_starts() -> None:
    check_local_gpus(None)
    check_local_gpus(0)
    with pytest.raises(ValueError, match="--gpus-per-trial 1000: this machine has"):
        check_local_gpus(1000)


@pytest.mark.parametrize("inherited", [None, "disabled", "token"])
def test_a_cluster_of_our_own_asks_for_the_token(
    inherited: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray turns tokens on where no mode is set; an opt-out that was meant for another is undone."""
    import ray

    seen: list[str | None] = []

    class StartedError(Exception):
        pass

    def start(**options: object) -> None:
        seen.append(os.environ.get("RAY_AUTH_MODE"))
        raise StartedError

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    if inherited is not None:
        os.environ["RAY_AUTH_MODE"] = inherited
    with pytest.raises(StartedError), connect(None):
        pass
    assert seen == [None]
