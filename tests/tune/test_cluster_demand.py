"""Which cluster, what it has room for, and why there is no connection."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.exceptions import GetTimeoutError

from dasvit.search.config import SearchConfig
from tune.cluster import CHECKOUT, ENVIRONMENT, _runtime_env, check_address, check_storage, connect
from tune.demand import (
    Cluster,
    Demand,
    _cpu_limits,
    check_gpus,
    check_workers,
    demand,
    own_cpus,
)
from tune.options import parse_options
from tune.phases import memory_warning

LAPTOP = Cluster(address="local", cpus=2, gpus=0, node_cpus=2, node_gpus=0, nodes=1)
GPUS = Cluster(address="auto", cpus=64, gpus=8, node_cpus=32, node_gpus=4, nodes=3)
ASLEEP = Cluster(address="auto", cpus=0, gpus=0, node_cpus=0, node_gpus=0, nodes=1)
NOTHING = {"gpus_per_trial": None, "cpus_per_trial": None, "max_concurrent": None, "num_trials": 99}


@pytest.mark.parametrize(
    ("cluster", "asked", "cpus", "gpus", "concurrent", "device"),
    [
        (LAPTOP, {}, 1, 0, 2, "cpu"),
        (LAPTOP, {"max_concurrent": 1}, 1, 0, 1, "cpu"),
        (LAPTOP, {"max_concurrent": 9}, 1, 0, 2, "cpu"),
        (GPUS, {}, 8, 1, 8, "cuda"),
        (GPUS, {"gpus_per_trial": 0.5}, 4, 0.5, 16, "cuda"),
        (GPUS, {"gpus_per_trial": 0}, 1, 0, 64, "cpu"),
        (GPUS, {"num_trials": 3}, 8, 1, 3, "cuda"),
        # A cluster that grows by itself is trusted.
        (ASLEEP, {"gpus_per_trial": 1, "max_concurrent": 8}, 1, 1, 8, "cuda"),
    ],
)
def test_what_a_trial_takes(
    cluster: Cluster, asked: dict, cpus: int, gpus: float, concurrent: int, device: str
) -> None:
    got = demand(cluster, **NOTHING | asked)
    assert (got.cpus, got.gpus, got.concurrent, got.device) == (cpus, gpus, concurrent, device)


@pytest.mark.parametrize(
    ("cluster", "asked", "message"),
    [
        (LAPTOP, {"cpus_per_trial": 3}, r"--cpus-per-trial 3: no node .* more than 2 CPUs"),
        (GPUS, {"gpus_per_trial": 5}, r"--gpus-per-trial 5: no node .* more than 4 GPUs"),
        (ASLEEP, {"gpus_per_trial": 1}, "--max-concurrent-trials"),
        # A machine of our own does not grow.
        (LAPTOP, {"gpus_per_trial": 1, "max_concurrent": 8}, "no node .* more than 0 GPUs"),
    ],
)
def test_what_fits_nowhere_is_refused(cluster: Cluster, asked: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demand(cluster, **NOTHING | asked)


def test_what_is_refused_before_that() -> None:
    """More workers than there is room for, and the paper's setting on CPUs."""
    check_workers(LAPTOP, demand(LAPTOP, **NOTHING), 2)
    with pytest.raises(ValueError, match="--workers 3 take 3 CPUs, and there are 2"):
        check_workers(LAPTOP, demand(LAPTOP, **NOTHING), 3)
    with pytest.raises(ValueError, match=r"--preset cifar10 needs a GPU.*--gpus-per-trial 0"):
        check_gpus(0, "cifar10", gpus_per_trial=None)
    for there, asked in ((0, 0), (0, 1), (1, None)):  # asked for; they will come; they are there
        check_gpus(there, "cifar10", gpus_per_trial=asked)


def test_the_memory_of_the_most_that_is_drawn_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU of 1000 bytes."""
    planned: list[tuple[SearchConfig, int]] = []

    def shortfall(config: SearchConfig, available: int, progress: object) -> str:
        planned.append((config, available))
        return "too much"

    def warning(argv: str, gpus: float) -> tuple[SearchConfig, str | None]:
        options = parse_options(argv.split())
        need = Demand(cpus=1, gpus=gpus, concurrent=1)
        return options.plan.search, memory_warning(options, need)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("tune.phases.device_memory", lambda device: 1000)
    monkeypatch.setattr("tune.phases.shortfall", shortfall)
    drawn, text = warning("--batch-size 8", 1.0)
    fixed, _ = warning("--batch-size 8 --token-ratio 0.5 --xi 0", 0.25)
    assert text == "too much"
    most = drawn.replaced(token_ratio=1.0, xi=drawn.weight_lr)
    assert planned == [(most, 1000), (fixed, 250)]
    assert warning("", 0.0)[1] is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert warning("", 1.0)[1] is None


def test_cpus_of_this_process(tmp_path: Path) -> None:
    """Of its affinity and its control group, not the machine's."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, [min(before)])
        assert own_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert _cpu_limits(tmp_path) == []
    group = tmp_path / "sys/fs/cgroup/batch/job"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:cpu:/old\n0::/batch/job\n")
    (group / "cpu.max").write_text("max 100000\n")
    (group.parent / "cpu.max").write_text("350000 100000\n")
    assert _cpu_limits(tmp_path) == [3]


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
    for address in ("ray://10.0.0.1:10001", "http://127.0.0.1:8265"):
        with pytest.raises(ValueError, match=f"^--address {address}: .* Ray Client .* job server"):
            check_address(address)


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


def test_a_job_has_its_environment_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses to set any part of it twice."""
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    whole = {"working_dir": str(CHECKOUT), "excludes": [".git"], "env_vars": ENVIRONMENT}
    assert _runtime_env() == whole
    job = {"working_dir": "gcs://a.zip", "env_vars": {"RAY_USAGE_STATS_ENABLED": "1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": job}))
    rest = {k: v for k, v in ENVIRONMENT.items() if k != "RAY_USAGE_STATS_ENABLED"}
    assert _runtime_env() == {"env_vars": rest}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {}}))
    assert _runtime_env() == whole


def test_a_cluster_of_our_own_asks_for_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray turns tokens on where no mode is set; an opt-out that was meant for another is undone."""
    seen: list[tuple[str | None, int]] = []

    def start(**options: object) -> None:
        seen.append((os.environ.get("RAY_AUTH_MODE"), len(os.environ["RAY_AUTH_TOKEN"])))
        raise OSError("AF_UNIX path length cannot exceed 107 bytes")

    monkeypatch.setattr("ray.init", start)
    inherited = {"TMPDIR": "/long", "RAY_AUTH_MODE": "disabled"}
    monkeypatch.setattr(os, "environ", os.environ | inherited)
    os.environ.pop("RAY_TMPDIR", None)
    with pytest.raises(ValueError, match=r"^TMPDIR=/long: .*set RAY_TMPDIR"), connect(None):
        pass
    assert seen == [(None, 64)]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("Version mismatch:\n    Ray: 2.9.0\n    Python: 3.9.1\n"),
            ["Ray: 2.9.0 Python: 3.9.1", "install the cluster's versions"],
        ),
        (ConnectionError("no\nmore of this"), ["(no)", "RAY_AUTH_MODE=token", "auth_token"]),
        (ValueError("Failed to merge"), ["--address auto: Ray refuses this (Failed to merge)"]),
    ],
)
def test_why_there_is_no_connection(
    error: Exception, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise error

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(ValueError, match="--address auto") as caught, connect("auto"):
        pass
    text = str(caught.value)
    assert all(word in text for word in words) and "\n" not in text


@pytest.mark.parametrize(
    ("blind", "silent", "message"),
    [
        ("", "", None),
        ("b", "", r"is not the same folder on 10\.0\.0\.b "),
        ("", "b", r"10\.0\.0\.b \(or there is no answer\); give one"),
    ],
)
def test_storage_that_a_node_does_not_see(
    blind: str, silent: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for Ray's tasks; the three-host test has the real thing."""

    class Task:
        def __init__(self, function: Any) -> None:
            self._function = function

        def options(self, *, num_cpus: int, scheduling_strategy: Any) -> "Task":
            assert num_cpus == 0 and not scheduling_strategy.soft
            self._node = scheduling_strategy.node_id[0]
            return self

        def remote(self, path: str) -> tuple[str, bool]:
            return self._node, self._node != blind and self._function(path)

    def get(answer: tuple[str, bool], timeout: float) -> bool:
        if answer[0] == silent:
            raise GetTimeoutError
        return answer[1]

    nodes = [
        {"NodeID": name * 56, "NodeManagerAddress": f"10.0.0.{name}", "Alive": name != "c"}
        for name in "abc"
    ]
    monkeypatch.setattr("ray.remote", Task)
    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    if message is None:
        check_storage(GPUS, tmp_path)
    else:
        with pytest.raises(ValueError, match=message):
            check_storage(GPUS, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delattr("ray.nodes")
    check_storage(LAPTOP, tmp_path)  # asks nobody
