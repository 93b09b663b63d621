import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import AuthenticationError, GetTimeoutError

from tune.cluster import (
    CHECKOUT,
    ENVIRONMENT,
    Cluster,
    _cpu_limits,
    _runtime_env,
    check_address,
    check_gpus,
    check_local_gpus,
    check_storage,
    connect,
    demand,
    own_cpus,
)

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
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", there)
        assert check_address(None) == there
        assert check_address("local") is None
    with pytest.raises(ValueError, match=f"^RAY_ADDRESS={there}: nobody answers there"):
        check_address(None)
    with pytest.raises(ValueError, match=r"^--address ray://10\.0\.0\.1:10001: .* Ray Client"):
        check_address("ray://10.0.0.1:10001")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ValueError, match=r"^RAY_ADDRESS=http://127\.0\.0\.1:8265: .*job server"):
        check_address(None)


def test_auto_is_what_ray_start_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not another sweep's cluster, which Ray would find among the processes."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ValueError, match=r"^RAY_ADDRESS=auto: no cluster that `ray start` began"):
        check_address(None)
    (tmp_path / "ray").mkdir()
    note = tmp_path / "ray" / "ray_current_cluster"
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
        note.write_text(f"{there}\n")
        assert check_address(None) == check_address("auto") == there
        note.unlink()
        monkeypatch.setenv("RAY_ADDRESS", there)  # as a job has it
        assert check_address("auto") == there
    with pytest.raises(ValueError, match=r"^--address auto: nobody answers there"):
        check_address("auto")


def test_an_address_in_brackets() -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        there = f"[::1]:{server.getsockname()[1]}"
        assert check_address(there) == there
    with pytest.raises(ValueError, match=r"nobody answers there.*refused"):
        check_address(there)


def test_a_job_has_its_environment_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses to set any part of it twice."""
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert _runtime_env() == {
        "working_dir": str(CHECKOUT), "excludes": [".git"], "env_vars": ENVIRONMENT,
    }  # fmt: skip
    for job, working_dir in (
        ({"working_dir": "gcs://a.zip", "env_vars": {"RAY_USAGE_STATS_ENABLED": "1"}}, False),
        ({}, True),
    ):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": job}))
        ours = _runtime_env()
        assert ("working_dir" in ours) == ("excludes" in ours) == working_dir
        assert ours["env_vars"].keys() == ENVIRONMENT.keys() - job.get("env_vars", {}).keys()


def test_cpus_of_this_process() -> None:
    """Of its affinity, not the machine's."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, [min(before)])
        assert own_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_cpus_of_a_control_group(tmp_path: Path) -> None:
    assert _cpu_limits(tmp_path) == []
    group = tmp_path / "sys/fs/cgroup/batch/job"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:cpu:/old\n0::/batch/job\n")
    (group / "cpu.max").write_text("max 100000\n")
    (group.parent / "cpu.max").write_text("350000 100000\n")
    assert _cpu_limits(tmp_path) == [3]


def test_no_room_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**_: object) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes")

    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr(os, "environ", os.environ | {"TMPDIR": "/long"})
    os.environ.pop("RAY_TMPDIR", None)
    with pytest.raises(ValueError, match=r"^TMPDIR=/long: .*set RAY_TMPDIR"), connect(None):
        pass


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

    seen: list[tuple[str | None, int]] = []

    class StartedError(Exception):
        pass

    def start(**options: object) -> None:
        seen.append((os.environ.get("RAY_AUTH_MODE"), len(os.environ["RAY_AUTH_TOKEN"])))
        raise StartedError

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    if inherited is not None:
        os.environ["RAY_AUTH_MODE"] = inherited
    with pytest.raises(StartedError), connect(None):
        pass
    assert seen == [(None, 64)]


def test_the_papers_setting_is_not_begun_on_cpus() -> None:
    with pytest.raises(ValueError, match=r"--preset cifar10 needs a GPU.*--gpus-per-trial 0"):
        check_gpus(0, "cifar10", gpus_per_trial=None)
    check_gpus(0, "cifar10", gpus_per_trial=0)  # asked for
    check_gpus(0, "cifar10", gpus_per_trial=1)  # they will come, or `demand` refuses
    check_gpus(1, "cifar10", gpus_per_trial=None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError(
                "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.9.1"
                "\nThis process was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
            ),
            ["Ray: 2.9.0 Python: 3.9.1", "Ray: 2.60.0", "install the cluster's versions"],
        ),
        (ConnectionError("no\nmore of this"), ["(no)", "RAY_AUTH_MODE=token", "auth_token"]),
        (AuthenticationError("no token was found"), ["no token was found", "auth_token"]),
        (ValueError("Failed to merge"), ["--address auto: Ray refuses this (Failed to merge)"]),
    ],
)
def test_why_there_is_no_connection(
    error: Exception, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise error

    for name in ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(ValueError, match="--address auto") as caught, connect("auto"):
        pass
    text = str(caught.value)
    assert all(word in text for word in words) and "\n" not in text


@pytest.mark.parametrize("shared", [True, False])
def test_storage_that_a_node_does_not_see(
    shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for Ray's tasks; the three-host test has the real thing."""

    class Task:
        def __init__(self, function: Callable[[str], bool]) -> None:
            self._function = function

        def options(self, *, num_cpus: int, scheduling_strategy: Any) -> "Task":
            assert num_cpus == 0 and not scheduling_strategy.soft
            self._there = shared or scheduling_strategy.node_id != "b" * 56
            return self

        def remote(self, path: str) -> bool:
            return self._there and self._function(path)

    nodes = [
        {"NodeID": letter * 56, "NodeManagerAddress": f"10.0.0.{i}", "Alive": letter != "c"}
        for i, letter in enumerate("abc", start=1)
    ]
    monkeypatch.setattr("ray.remote", Task)
    monkeypatch.setattr("ray.get", lambda answer, timeout: answer)
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    root = tmp_path / "runs" / "sweep"
    root.mkdir(parents=True)
    if shared:
        check_storage(GPUS, root)
    else:
        with pytest.raises(ValueError, match=r"is not the same folder on 10\.0\.0\.2 "):
            check_storage(GPUS, root)
    assert list(root.iterdir()) == []
    monkeypatch.delattr("ray.nodes")
    check_storage(LAPTOP, root)  # asks nobody


def test_a_node_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Task:
        def options(self, **options: object) -> "Task":
            return self

        def remote(self, path: str) -> str:
            return path

    def get(answer: str, timeout: float) -> bool:
        raise GetTimeoutError

    nodes = [{"NodeManagerAddress": "10.0.0.2", "NodeID": "b" * 56, "Alive": True}]
    monkeypatch.setattr("ray.remote", lambda function: Task())
    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    with pytest.raises(ValueError, match=r"10\.0\.0\.2 \(or there is no answer\); give one"):
        check_storage(GPUS, tmp_path)
    assert list(tmp_path.iterdir()) == []
