"""What a trial takes, and how many of them a cluster or this machine has room for. No Ray."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = [
    "Cluster",
    "Demand",
    "check_gpus",
    "check_local_gpus",
    "check_workers",
    "demand",
    "own_cpus",
]


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
    """What a worker of a trial takes, how many trials run at a time, and workers per trial."""

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


def check_local_gpus(gpus_per_trial: float | None) -> None:
    """Refuse, before Ray starts, more GPUs per trial than this machine has.

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


def check_workers(cluster: Cluster, need: Demand, workers: int) -> None:
    """Refuse more workers per retraining than the cluster can hold at once.

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
        preset: whose name the message has; it needs a GPU per trial.
        gpus_per_trial: as given; 0 asks for CPUs, more says that GPUs will come.

    Raises:
        ValueError: naming the two ways on.
    """
    if gpus_per_trial is None and not there:
        raise ValueError(
            f"--preset {preset} needs a GPU per trial, and there is none; where the cluster adds "
            "them by itself say --gpus-per-trial 1 and --max-concurrent-trials N, or "
            "--gpus-per-trial 0 to compute on CPUs all the same"
        )


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
