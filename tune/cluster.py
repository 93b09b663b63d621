"""Connecting to Ray, and what its cluster has room for."""

import json
import logging
import math
import os
import secrets
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

__all__ = [
    "Cluster",
    "Demand",
    "check_address",
    "check_gpus",
    "check_local_gpus",
    "check_storage",
    "check_workers",
    "connect",
    "demand",
    "own_cpus",
    "prepare",
]

CHECKOUT = Path(__file__).resolve().parent.parent
"""Root of the checkout: holds `dasvit` and `tune`, which Ray's workers import."""

OBJECT_STORE_BYTES = 200_000_000
"""Only settings and metrics pass through the object store."""

TOKEN = secrets.token_hex(32)
"""What Ray asks for in a cluster of our own. No other process knows it, also no other sweep."""

STORAGE_SECONDS = 10.0
"""What another node has to see a new file."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The trial writes its own TensorBoard files; of Tune's records `tune.experiment` chooses.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A trial's score exists only at its end; the epochs' reports are for the live view.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Our own live view instead of Tune's tables.
    "RAY_AIR_NEW_OUTPUT": "0",
    # A new node of a cluster that grows by itself takes minutes (default 60 s).
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",
    # Ray announces that it will change how CPU-only workers see GPUs; both ways suit us.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Ray's settings, for this process and the workers."""

LOCAL_ENVIRONMENT = {
    # Named for the systems where it is off by itself: without clusters, Ray listens on loopback.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""More of them for a cluster of our own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What `ray.cluster_resources()` showed when we connected.

    Attributes:
        address: as given, or "local".
        cpus, gpus: in all.
        node_cpus, node_gpus: of the node that has most.
        nodes: alive.
    """

    address: str
    cpus: float
    gpus: float
    node_cpus: float
    node_gpus: float
    nodes: int

    @property
    def is_local(self) -> bool:
        return self.address == "local"


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What a worker of a trial takes, how many trials run at a time, and workers a trial."""

    cpus: int
    gpus: float
    concurrent: int
    workers: int = 1

    def with_workers(self, workers: int) -> "Demand":
        """Trials of several workers each, and as many fewer at a time."""
        concurrent = max(1, self.concurrent // workers)
        return replace(self, workers=workers, concurrent=concurrent)

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def prepare(address: str | None) -> None:
    """Ray's settings in the environment. Ray reads some when it is imported: call it before.

    Raises:
        ValueError: there is no home, of which Ray makes paths.
    """
    try:
        Path.home()
    except RuntimeError:
        raise ValueError(
            f"HOME is not set, and user {os.getuid()} has no home; set HOME to a folder"
        ) from None
    os.environ.update(ENVIRONMENT)
    if _asked(address)[1] is None:
        os.environ.update(LOCAL_ENVIRONMENT)


def check_address(address: str | None) -> str | None:
    """The address to connect to, from `--address` or RAY_ADDRESS; None for a cluster of our own.

    Raises:
        ValueError: an address of Ray Client or of the job server, one at which nobody answers, or
            "auto" where there is none.
    """
    said, address = _asked(address)
    if address is not None and "://" in address:
        raise ValueError(
            f"{said}: addresses of Ray Client and of the job server are not supported; run the "
            "command on the cluster itself, with --address auto (by `ray exec`, `ray submit` or "
            "`ray job submit`), or with --address local on this machine alone"
        )
    if address == "auto":
        address = _current(said)
    if address is not None:
        _check_reachable(address, said)
    return address


def _current(said: str) -> str:
    """What "auto" means: the cluster of the job that runs this, or the one that `ray start` noted.

    Ray itself also finds what it does not note, such as the private cluster of another sweep.
    """
    of_job = os.environ.get("RAY_ADDRESS", "auto")
    if of_job not in ("", "auto", "local"):
        return of_job
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    note = Path(folder) / "ray" / "ray_current_cluster"
    try:
        return note.read_text().strip()
    except OSError:
        raise ValueError(
            f"{said}: no cluster that `ray start` began on this machine (there is no {note}); give "
            "its address, HOST:PORT, or leave it away to compute on this machine alone"
        ) from None


def _asked(address: str | None) -> tuple[str, str | None]:
    """How the address was given, for a message, and the address; None for one of our own."""
    said = f"--address {address}"
    if not address:
        address = os.environ.get("RAY_ADDRESS") or None
        said = f"RAY_ADDRESS={address}"
    return said, None if address == "local" else address


def check_local_gpus(gpus_per_trial: float | None) -> None:
    """Refuse, before Ray starts, more GPUs a trial than this machine has.

    Raises:
        ValueError: naming both numbers.
    """
    import torch  # only here: Ray's processes that import this module need not wait for it

    count = torch.cuda.device_count()
    if gpus_per_trial and gpus_per_trial > count:
        raise ValueError(
            f"--gpus-per-trial {gpus_per_trial:g}: this machine has {count} GPUs that PyTorch can "
            "use; ask for fewer, or name a cluster with --address"
        )


def check_workers(cluster: "Cluster", need: Demand, workers: int) -> None:
    """Refuse more workers a retraining than the cluster can hold at once.

    Raises:
        ValueError: naming what is asked for and what there is.
    """
    for kind, each, there in (("CPUs", need.cpus, cluster.cpus), ("GPUs", need.gpus, cluster.gpus)):
        if workers > 1 and workers * each > there:
            raise ValueError(
                f"--workers {workers} take {workers * each:g} {kind}, and there are {there:g}; ask "
                "for fewer"
            )


def check_gpus(there: float, preset: str, *, gpus_per_trial: float | None) -> None:
    """Refuse the paper's setting where there is no GPU, unless that is asked for.

    Args:
        there: GPUs in all.
        preset: whose name the message has; it needs a GPU a trial.
        gpus_per_trial: as given; 0 asks for CPUs, more says that GPUs will come.

    Raises:
        ValueError: naming the two ways on.
    """
    if gpus_per_trial is None and not there:
        raise ValueError(
            f"--preset {preset} needs a GPU a trial, and there is none; where the cluster adds "
            "them by itself say --gpus-per-trial 1 and --max-concurrent-trials N, or "
            "--gpus-per-trial 0 to compute on CPUs all the same"
        )


def check_storage(cluster: "Cluster", folder: Path) -> None:
    """Refuse a folder that a node of the cluster does not see. Needs a connected Ray.

    A task on each node looks for a file that this process has just written.

    Raises:
        ValueError: naming the nodes.
    """
    if cluster.is_local:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = folder / f".seen.{uuid.uuid4().hex}"
    probe.write_bytes(b"")
    try:
        answers = {
            node["NodeManagerAddress"]: ray.remote(_sees)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote(str(probe))
            for node in ray.nodes()
            if node["Alive"]
        }
        blind = [address for address, seen in answers.items() if not _answer(seen)]
    finally:
        probe.unlink(missing_ok=True)
    if blind:
        raise ValueError(
            f"--storage-path {folder.parent} is not the same folder on {', '.join(sorted(blind))} "
            "(or there is no answer); give one that all nodes share (NFS, EFS, FSx)"
        )


def _answer(seen: Any) -> bool:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(seen, timeout=10 * STORAGE_SECONDS)
    except RayError:  # the node is gone, too busy, or cannot start a process
        return False


def _sees(path: str) -> bool:
    """Whether a file is there; a network file system may show it seconds late."""
    deadline = time.monotonic() + STORAGE_SECONDS
    while not Path(path).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


@contextmanager
def connect(address: str | None, *, dashboard: bool = False) -> Iterator[Cluster]:
    """Ray for the length of a `with` block: an existing cluster's, or one of our own.

    Args:
        address: of a running cluster ("auto", "host:6379"), or None.
        dashboard: of a cluster of our own. Ray Train needs it where a trial has several workers:
            without it, a trial that is stopped leaves its CPUs and GPUs taken.

    Raises:
        ValueError: no cluster at that address, or no room for Ray's sockets.
    """
    prepare(address or "local")
    _import_here_and_in_workers()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            _start(dashboard)
        else:
            _join(address)
        signal.signal(signal.SIGTERM, handler)  # Ray has put one of its own in place
        yield _look(address or "local")
    finally:
        import ray

        ray.shutdown()


def _start(dashboard: bool) -> None:
    import ray  # reads the environment when it is imported

    # Whoever may use Ray's ports runs code here. Without a mode Ray asks for a token; set now,
    # after the import, "token" would not reach all of its parts. A token in the environment needs
    # no home to lie in.
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ["RAY_AUTH_TOKEN"] = TOKEN
    try:
        ray.init(
            address="local",
            num_cpus=own_cpus(),
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        name = next((n for n in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(n)), "RAY_TMPDIR")
        raise ValueError(
            f"{name}={os.environ.get(name, '')}: too long a path for Ray's sockets, which end "
            "after 107 bytes; set RAY_TMPDIR to a short one, such as /tmp"
        ) from None


def _join(address: str) -> None:
    import ray
    from ray.exceptions import RayError

    try:
        ray.init(
            address=address,
            runtime_env=_runtime_env(),
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise ValueError(f"--address {address}: {_why_not(error)}") from None


def own_cpus() -> int:
    """CPUs that this process may use, by its affinity and its control group's limit."""
    known = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, min([cpus, *_cpu_limits()]))


def _cpu_limits(system: Path = Path("/")) -> list[int]:
    """Whole CPUs that the process's control group (version 2) and those above it allow."""
    groups = system / "sys/fs/cgroup"
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    group = groups / own.strip("/")
    limits = []
    for folder in (group, *group.parents):
        if folder.is_relative_to(groups) and (file := folder / "cpu.max").is_file():
            quota, period = file.read_text().split()
            limits += [int(quota) // int(period)] if quota != "max" else []
    return limits


def _why_not(error: Exception) -> str:
    """Why there is no connection, and the remedy, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "ersion mismatch" in text:
        return (
            f"{text}; install the cluster's versions here, or run the command on the cluster itself"
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else text
    if isinstance(error, ValueError):  # of the settings, not of the way there
        return f"Ray refuses this ({text})"
    return (
        f"cannot connect to a Ray cluster there ({reason}); is it up? Started with tokens, it "
        "needs RAY_AUTH_MODE=token and its token here (~/.ray/auth_token)"
    )


def _check_reachable(address: str, said: str) -> None:
    # Ray itself tries for minutes.
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return  # what Ray refuses at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"{said}: nobody answers there ({error}); is the cluster up? Use the "
            "address that `ray start` printed, or auto on one of its nodes"
        ) from None


def _import_here_and_in_workers() -> None:
    # Local workers inherit PYTHONPATH; a cluster's get the checkout as working_dir.
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(CHECKOUT) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), *filter(None, paths)])


def _runtime_env() -> dict[str, Any]:
    """The checkout and Ray's settings, for the workers. A job that Ray started (`ray job submit`)
    has an environment already, and Ray refuses to set any part of it twice."""
    ours: dict[str, Any] = {"env_vars": dict(ENVIRONMENT)}
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    for name in job.get("env_vars", {}):
        ours["env_vars"].pop(name, None)
    if "working_dir" not in job:
        # What git ignores (runs, data) Ray leaves out by itself.
        ours |= {"working_dir": str(CHECKOUT), "excludes": [".git"]}
    return ours


def _look(address: str) -> Cluster:
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    resources = ray.cluster_resources()
    return Cluster(
        address=address,
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        node_cpus=max((node.get("CPU", 0.0) for node in alive), default=0.0),
        node_gpus=max((node.get("GPU", 0.0) for node in alive), default=0.0),
        nodes=len(alive),
    )


def demand(
    cluster: Cluster,
    *,
    gpus_per_trial: float | None,
    cpus_per_trial: int | None,
    max_concurrent: int | None,
    num_trials: int,
) -> Demand:
    """What a trial takes and how many fit at a time.

    Args:
        cluster: what is there now.
        gpus_per_trial: None is one where the cluster has GPUs, else none.
        cpus_per_trial: None is 1 without GPUs, else a GPU's share of the cores, 8 at most.
        max_concurrent: None is as many as fit now. A number also says that the cluster may grow
            (autoscaling), so that what it has now does not limit.
        num_trials: never more at a time than this.

    Raises:
        ValueError: a trial that fits nowhere.
    """
    gpus = float(cluster.gpus > 0) if gpus_per_trial is None else gpus_per_trial
    cpus = cpus_per_trial
    if cpus is None:
        shared = cluster.node_cpus * gpus / cluster.node_gpus if gpus and cluster.node_gpus else 1
        cpus = max(1, min(8, int(shared)))
    may_grow = max_concurrent is not None and not cluster.is_local
    for flag, asked, there in (
        ("--gpus-per-trial", gpus, cluster.node_gpus),
        ("--cpus-per-trial", cpus, cluster.node_cpus),
    ):
        if asked > there and not may_grow:
            what = "GPUs" if "gpus" in flag else "CPUs"
            raise ValueError(
                f"{flag} {asked:g}: no node of the cluster has more than {there:g} {what}; ask for "
                "less (or, for a cluster that grows by itself, say with --max-concurrent-trials "
                "how many trials it will hold)"
            )
    fits = cluster.cpus / cpus
    if gpus:
        fits = min(fits, cluster.gpus / gpus)
    if may_grow:
        fits = math.inf
    concurrent = min(fits, max_concurrent or math.inf, num_trials)
    return Demand(cpus=cpus, gpus=gpus, concurrent=max(1, int(concurrent)))
