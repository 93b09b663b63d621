"""The phases of a sweep, in order: check, search, aggregate, retrain, report."""

import dataclasses
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dasvit.data.datasets import load_data
from dasvit.presets import get_preset
from dasvit.run.environment import check_compiler, check_cuda_graph
from dasvit.search.loop import check_search
from dasvit.search.memory import device_memory, shortfall
from dasvit.spaces.cell.operations import build_operation
from dasvit.training.loop import check_retrain
from dasvit.training.networks import VIT
from tune.check_best import run_check_trials
from tune.cluster import (
    Cluster,
    Demand,
    check_address,
    check_gpus,
    check_local_gpus,
    check_storage,
    check_workers,
    connect,
    demand,
)
from tune.console import print_end, print_machine, print_plan, print_results
from tune.folder import ResultFolder, open_folder, set_aside
from tune.options import SweepOptions
from tune.own_space import identify_space, load_space
from tune.plan import Plan
from tune.record import SweepRecord
from tune.report.gather import gather
from tune.report.outcome import Outcome
from tune.report.results import save_genotypes, write_results
from tune.retrain_best import run_retrain_trials
from tune.searcher import result_lag
from tune.space import first_draws, outer_space
from tune.sweep import asha, run_search_trials

__all__ = ["memory_warning", "run"]


def run(options: SweepOptions, command: str) -> int:
    """Sweep. The exit status: 0 if all trials finished, else 1.

    Args:
        command: that continues the sweep.
    """
    address = check_address(options.address)
    if address is None:
        check_local_gpus(options.gpus_per_trial)
    space = _space(options)
    plan = options.plan(identify_space(options.space) if options.space else None)
    _check(plan)
    if address is None and get_preset(options.preset).needs_gpu:
        count = torch.cuda.device_count()
        check_gpus(count, options.preset, gpus_per_trial=options.gpus_per_trial)
    if address is None:
        asked = options.gpus_per_trial
        gpus = torch.cuda.device_count() if asked is None else asked
        _check_device(options, gpus)
        if options.retrain.compile or (options.search.compile and plan.num_searches):
            check_compiler(torch.device("cuda" if gpus else "cpu"))
    place = (options.storage_path, options.folder_name)
    if options.fresh:
        with connect(address) as cluster:
            _need(options, plan, cluster)  # what cannot run moves nothing
        if aside := set_aside(*place):
            print(f"the sweep that was there is now {aside}\n", flush=True)
    folder = open_folder(*place, plan.to_dict(), defaults=plan.defaults(), resume=options.resume)
    with folder.lock():
        record = SweepRecord(folder, plan.to_dict(), command)

        def state() -> Outcome:
            return gather(plan, folder, name=options.folder_name, wall=record.wall())

        outcome = state()
        if outcome.complete:
            print(f"{folder.root} holds this sweep already, finished: nothing to run\n")
        else:
            print_plan(plan, options.preset, folder, space)
            with connect(address) as cluster:
                _compute(_Run(options, plan, space, folder, record, state), cluster)
            record.save()
            outcome = state()
        if outcome.search or outcome.retrained:
            write_results(outcome, folder, preset=options.preset)
            print_results(outcome)
        if outcome.complete:
            folder.remove_ray_records()
        return print_end(plan, folder, outcome, command)


def _space(options: SweepOptions) -> dict[str, Any]:
    """The outer space; empty in a random search, which has none."""
    if options.strategy == "random":
        return {}
    if options.space is None:
        return outer_space(options.search, fixed=options.fixed)
    return load_space(options.space, options.search, fixed=options.fixed)


def _check(plan: Plan) -> None:
    """Refuse, before Ray starts and anything is written, what no trial could run."""
    check_search(plan.search)
    check_retrain(dataclasses.replace(plan.retrain, model=VIT))
    plan.random_genotypes()
    with torch.device("meta"):
        for name in plan.search.space.operations:
            try:
                build_operation(name, plan.retrain.dim)
            except ValueError as error:
                raise ValueError(f"--retrain.dim {plan.retrain.dim}: {error}") from None
    # Read once here, so that corrupt files show now, and that of all trials one downloads.
    for data in dict.fromkeys((plan.search.data, plan.retrain.data)):
        load_data(data, torch.device("cpu"))


@dataclasses.dataclass(frozen=True, slots=True)
class _Run:
    """What both phases need."""

    options: SweepOptions
    plan: Plan
    space: dict[str, Any]
    folder: ResultFolder
    record: SweepRecord
    state: Callable[[], Outcome]


def _need(options: SweepOptions, plan: Plan, cluster: Cluster) -> Demand:
    """What a trial takes; refused where the cluster does not have it."""
    if get_preset(options.preset).needs_gpu:
        check_gpus(cluster.gpus, options.preset, gpus_per_trial=options.gpus_per_trial)
    need = demand(
        cluster,
        gpus_per_trial=options.gpus_per_trial,
        cpus_per_trial=options.cpus_per_trial,
        max_concurrent=options.max_concurrent_trials,
        num_trials=plan.num_searches or plan.num_retrainings,
    )
    check_workers(cluster, need, options.workers)
    _check_device(options, need.gpus)
    return need


def _check_device(options: SweepOptions, gpus: float) -> None:
    """Refuse what trials on so many GPUs each cannot do."""
    if options.search.cuda_graph:
        check_cuda_graph(torch.device("cuda" if gpus else "cpu"))


def _compute(run: _Run, cluster: Cluster) -> None:
    """Both phases, as far as they go: Ctrl-C ends a phase without an exception."""
    options, plan = run.options, run.plan
    need = _need(options, plan, cluster)
    check_storage(cluster, run.folder.root)
    print_machine(cluster, need)
    if plan.num_searches and (warning := memory_warning(options, need)):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    lag = run.record.begin(need, result_lag(need.concurrent, plan.seeds))
    # Ray refuses to mix two runs in one folder; what counts lies in the trials' own.
    ray_dir = run.folder.ray_root / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    if run.state().not_searched:
        with run.record.phase("search"):
            _search(run, ray_dir / "search", need, lag)
    outcome = run.state()
    if plan.num_searches and (not outcome.search or outcome.search_interrupted):
        return
    if outcome.not_checked:
        with run.record.phase("check"):
            _check_best(run, ray_dir / "check", need, outcome)
        outcome = run.state()
        if any(failure.error is None for failure in outcome.not_checked):
            return
    with run.record.phase("retraining"):
        _retrain(run, ray_dir / "retrain", need, outcome)


def memory_warning(options: SweepOptions, need: Demand) -> str | None:
    """A line about trials that will not fit into this machine's GPU; None where there is none.

    What a sweep draws at most is planned: all tokens, second order.
    """
    if not need.gpus or not torch.cuda.is_available():
        return None
    most: dict[str, Any] = {"token_ratio": 1.0, "xi": options.search.weight_lr}
    varied = set(options.search.method.outer) - set(options.fixed)
    drawn = {name: value for name, value in most.items() if name in varied}
    available = device_memory(torch.device("cuda", 0))
    assert available is not None
    share = int(available * min(1.0, need.gpus))
    planned = options.search.replaced(**drawn)
    return shortfall(planned, share, lambda line: print(f"{line} …", file=sys.stderr, flush=True))


def _search(run: _Run, ray_dir: Path, need: Demand, lag: int) -> None:
    plan = run.plan
    again = min(plan.retrain_top, plan.num_configs) * plan.check_seeds
    checks = f", then {again} searches on fresh seeds" if again else ""
    scheduler = None
    if plan.scheduler == "asha":
        scheduler = asha(
            total_epochs=plan.search.total_epochs,
            grace_epochs=plan.grace_epochs,
            reduction_factor=plan.reduction_factor,
            spared=len(first_draws(plan.search, run.space, fixed=plan.fixed)),
        )
    run_search_trials(
        plan.search,
        fixed=frozenset(plan.fixed),
        space=run.space,
        num_samples=plan.num_configs,
        seeds=plan.search_seeds,
        metric=plan.metric,
        costs_at=plan.retrain if len(plan.objectives) > 1 else None,
        objectives=plan.objectives,
        lag=lag,
        trials_dir=run.folder.search_dir,
        ray_dir=ray_dir,
        demand=need,
        scheduler=scheduler,
        then=f"{checks}, then {plan.num_retrainings} retrainings",
    )


def _check_best(run: _Run, ray_dir: Path, need: Demand, outcome: Outcome) -> None:
    plan = run.plan
    best = outcome.best_configs(plan.retrain_top)
    print(f"\nchecking {len(best)} configurations on {plan.check_seeds} fresh seeds", flush=True)
    run_check_trials(
        plan.search,
        configs=best,
        seeds=plan.fresh_seeds,
        metric=plan.metric,
        trials_dir=run.folder.search_dir,
        ray_dir=ray_dir,
        demand=need,
    )


def _retrain(run: _Run, ray_dir: Path, need: Demand, outcome: Outcome) -> None:
    plan, folder = run.plan, run.folder
    best = outcome.chosen(plan.retrain_top)
    save_genotypes(outcome, folder)
    drawn = f"{len(outcome.random)} random encoders" if outcome.random else ""
    found = f"{len(best)} encoders" if best else ""
    names = ", ".join(filter(None, (found, drawn)))
    print(f"\nretraining {names} and a plain ViT on the full training set", flush=True)
    for summary in best:
        print(f"  {summary.hash}  {summary.genotype}", flush=True)
    run_retrain_trials(
        plan.retrain,
        models=plan.models([summary.hash for summary in best], outcome.random),
        seeds=plan.retraining_seeds,
        genotypes_dir=folder.genotypes_dir,
        trials_dir=folder.retrain_dir,
        ray_dir=ray_dir,
        demand=need.with_workers(run.options.workers),
    )
