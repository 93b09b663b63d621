"""The phases of a sweep, in order: check, search, climb, retrain, report."""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from ray import tune
from ray.tune import Callback

from dasvit.commands.console import told
from dasvit.data.datasets import load_data
from dasvit.presets import get_preset
from dasvit.report.progress import counted
from dasvit.run.environment import check_compiler, check_cuda_graph
from dasvit.search.checks import check_search
from dasvit.search.config import SearchConfig
from dasvit.search.memory import device_memory, shortfall
from dasvit.spaces.cell.operations import build_operation
from dasvit.training.config import RetrainConfig
from dasvit.training.loop import check_retrain
from dasvit.training.networks import VIT
from tune.cluster import check_address, check_storage, connect
from tune.console import print_end, print_machine, print_plan, print_results
from tune.demand import Cluster, Demand, check_gpus, check_local_gpus, check_workers, demand
from tune.experiment import asha, fit
from tune.options import SweepOptions
from tune.own_callbacks import own_callbacks
from tune.own_space import identify_space, load_space
from tune.plan import Plan
from tune.progress import Progress
from tune.report.outcome import Outcome, gather
from tune.report.results import save_genotypes, write_results
from tune.searcher import Proposer, Turns, result_lag
from tune.space import METHOD, first_draws, outer_space
from tune.store import ResultFolder, SweepRecord, open_folder, set_aside
from tune.trial import RetrainSetup, SearchSetup
from tune.trial_folder import find_retrainings, find_searches

__all__ = ["memory_warning", "retrain", "run"]

T = TypeVar("T")


def run(options: SweepOptions, command: str) -> int:
    """Sweep. The exit status: 0 if all trials finished, else 1.

    Args:
        command: that continues the sweep.
    """
    address = check_address(options.address)
    if address is None:
        check_local_gpus(options.gpus_per_trial)
    spaces = _spaces(options)
    own_callbacks(options.callback, "search")  # refused now rather than after the first phase
    plan = options.plan
    if plan.space is not None:
        plan = dataclasses.replace(plan, space=identify_space(plan.space))
    _check(plan)
    if address is None and get_preset(options.preset).needs_gpu:
        count = torch.cuda.device_count()
        check_gpus(count, options.preset, gpus_per_trial=options.gpus_per_trial)
    if address is None:
        asked = options.gpus_per_trial
        gpus = torch.cuda.device_count() if asked is None else asked
        _check_device(options, gpus)
        if plan.retrain.compile or (plan.search.compile and plan.num_searches):
            check_compiler(torch.device("cuda" if gpus else "cpu"))
    place = (options.storage_path, options.folder_name)
    if options.fresh:
        with connect(address) as cluster:
            _need(options, plan, cluster)  # what cannot run moves nothing
        if aside := set_aside(*place):
            print(f"the sweep that was there is now {aside}\n", flush=True)
    folder = open_folder(*place, plan.to_dict(), resume=options.resume)
    with folder.lock():
        record = SweepRecord(folder, plan.to_dict(), command)

        def state() -> Outcome:
            return gather(plan, folder, name=options.folder_name, wall=record.wall())

        outcome = state()
        if outcome.complete:
            print(f"{folder.root} holds this sweep already, finished: nothing to run\n")
        else:
            print_plan(plan, options.preset, folder, spaces)
            with connect(address, dashboard=options.workers > 1) as cluster:
                _compute(_Run(options, plan, spaces, folder, record, state), cluster)
            record.save()
            outcome = state()
        if outcome.search or outcome.retrained:
            write_results(outcome, folder, preset=options.preset)
            print_results(outcome)
        return print_end(plan, folder, outcome, command)


def _spaces(options: SweepOptions) -> dict[str, dict[str, Any]]:
    """The outer space of each method that is swept, by its name; none in a random search."""
    plan = options.plan
    if plan.strategy == "random":
        return {}
    if plan.space is None:
        return {
            s.method.name: _of_method(s, lambda s: outer_space(s, fixed=plan.fixed), plan)
            for s in plan.starts
        }
    return {plan.search.method.name: load_space(plan.space, plan.search, fixed=plan.fixed)}


def _of_method(search: SearchConfig, work: Callable[[SearchConfig], T], plan: Plan) -> T:
    """What is done for one method; where several take turns an error names it."""
    try:
        return work(search)
    except ValueError as error:
        if not plan.methods:
            raise
        name = search.method.name
        raise ValueError(f"method {name}: {error}, or name methods without {name}") from None


def _check(plan: Plan) -> None:
    """Refuse, before Ray starts and anything is written, what no trial could run."""
    for search in plan.starts:
        _of_method(search, check_search, plan)
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
    """What every phase needs."""

    options: SweepOptions
    plan: Plan
    spaces: dict[str, dict[str, Any]]
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
        num_trials=plan.num_searches * (1 + plan.proposals) or plan.num_retrainings,
    )
    check_workers(cluster, need, options.workers)
    _check_device(options, need.gpus)
    return need


def _check_device(options: SweepOptions, gpus: float) -> None:
    """Refuse what trials on so many GPUs each cannot do."""
    if options.plan.search.cuda_graph:
        check_cuda_graph(torch.device("cuda" if gpus else "cpu"))


def _compute(run: _Run, cluster: Cluster) -> None:
    """All phases, as far as they go: Ctrl-C ends a phase without an exception."""
    options, plan = run.options, run.plan
    need = _need(options, plan, cluster)
    check_storage(cluster, run.folder.root)
    print_machine(cluster, need)
    if plan.num_searches and (warning := memory_warning(options, need)):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    machine = {
        "device": need.device,
        "cpus_per_trial": need.cpus,
        "gpus_per_trial": need.gpus,
        "concurrent_trials": need.concurrent,
    }
    lag = run.record.begin(machine, result_lag(need.concurrent, plan.seeds))
    # Ray refuses to mix two runs of the command in one folder.
    ray_dir = run.folder.ray_root / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    if run.state().not_searched:
        with run.record.phase("search"):
            _search(run, ray_dir / "search", need, lag)
    outcome = run.state()
    if plan.num_searches and (not outcome.search or outcome.search_interrupted):
        return
    if any(rung.left for rung in outcome.rungs):
        with run.record.phase("ladder"):
            climbed = _climb(run, ray_dir, need)
        if not climbed:
            return
        outcome = run.state()
    with run.record.phase("retraining"):
        _retrain(run, ray_dir / "retrain", need, outcome)


def memory_warning(options: SweepOptions, need: Demand) -> str | None:
    """A line about trials that will not fit into this machine's GPU; None where there is none.

    What a sweep draws at most is planned.
    """
    if not need.gpus or not torch.cuda.is_available():
        return None
    available = device_memory(torch.device("cuda", 0))
    assert available is not None
    share = int(available * min(1.0, need.gpus))
    for search in options.plan.starts:
        most = search.method.heaviest(weight_lr=search.weight_lr, fixed=options.plan.fixed)
        planned = dataclasses.replace(search, method=most)
        if warning := shortfall(planned, share, told):
            return f"method {most.name}: {warning}" if options.plan.methods else warning
    return None


def _search(run: _Run, ray_dir: Path, need: Demand, lag: int) -> None:
    """Every proposed configuration on every seed. Finished trials are proposed again, in the same
    order, and pass their score to Optuna at once."""
    plan, folder = run.plan, run.folder
    minimised = plan.objectives[1:]
    setup = SearchSetup(
        search=plan.search,
        starts={start.method.name: start for start in plan.starts} if plan.methods else {},
        trials_dir=folder.search_dir,
        ray_dir=ray_dir,
        demand=need,
        short=plan.rung(plan.ladder[0]) if plan.climbs else None,
        costs_at=plan.retrain if minimised else None,
    )
    proposers = []
    given = 0
    for turn, start in enumerate(plan.starts):
        space = run.spaces[start.method.name]
        numbers = range(turn, plan.num_configs, len(plan.starts))
        first = first_draws(start, space)[: 1 if plan.methods else None]
        given += len(first[: len(numbers)])
        proposers.append(
            Proposer(
                space,
                metric=plan.metric,
                minimised=minimised,
                num_samples=len(numbers),
                seeds=plan.search_seeds,
                sampler_seed=plan.search.seed,
                lag=math.ceil(lag / len(plan.starts)),
                study_file=folder.study_file,
                first=first,
                **_in_turn(start, numbers) if plan.methods else {},
            )
        )
    scheduler = None
    if plan.scheduler == "asha":
        scheduler = asha(
            total_epochs=plan.search.total_epochs,
            grace_epochs=plan.first_rung,
            reduction_factor=plan.reduction_factor,
            spared=given,
        )
    ladder = f", then the ladder of {len(plan.ladder)} rungs" if plan.climbs else ""
    finished, stopped, _ = find_searches(
        folder.search_dir, range(plan.num_configs), plan.search_seeds, with_short=plan.climbs
    )
    progress = Progress(
        "search",
        total=plan.num_searches,
        concurrent=need.concurrent,
        done_before=frozenset(trial.name for trial in (*finished, *stopped)),
        name=lambda sampled: setup.job(sampled).folder.name,
        failed=setup.record_failure,
        stopped=None if scheduler is None else setup.record_stop,
        metric=plan.metric,
        then=f"{ladder}, then {plan.num_retrainings} retrainings",
    )
    fit(
        setup,
        ray_dir,
        callbacks=[progress, *own_callbacks(run.options.callback, "search")],
        param_space={},
        searcher=Turns(proposers, plan.seeds) if plan.methods else proposers[0],
        num_trials=plan.num_searches,
        scheduler=scheduler,
    )


def _in_turn(start: SearchConfig, numbers: Sequence[int]) -> dict[str, Any]:
    """What tells the proposals of a method from those of the others."""
    name = start.method.name
    return {"study": f"sweep-{name}", "numbers": numbers, "constant": {METHOD: name}}


def _climb(run: _Run, ray_dir: Path, need: Demand) -> bool:
    """Rung by rung, as far as it goes; what failed before is tried again. Whether the last one has
    been reached."""
    plan, folder = run.plan, run.folder
    save_genotypes(run.state(), folder)
    for number, epochs in enumerate(plan.ladder):
        rung = run.state().rungs[number]
        if rung.left:
            trained = f"{counted(len(rung.models), 'network')} × {counted(plan.seeds, 'seed')}"
            print(
                f"\nladder, rung {number + 1} of {len(plan.ladder)}: {trained}, "
                f"{counted(epochs, 'epoch')} each on a part of the training images",
                flush=True,
            )
            setup = _training_setup(
                run, plan.rung(epochs), folder.rung_dir(epochs), ray_dir / f"{epochs}_epochs", need
            )
            callbacks = own_callbacks(run.options.callback, "ladder")
            retrain(setup, rung.models, plan.search_seeds, callbacks, phase="ladder")
        if run.state().rungs[number].interrupted:
            return False
    return True


def _training_setup(
    run: _Run, config: RetrainConfig, trials_dir: Path, ray_dir: Path, need: Demand
) -> RetrainSetup:
    return RetrainSetup(
        retrain=config,
        genotypes_dir=run.folder.genotypes_dir,
        trials_dir=trials_dir,
        ray_dir=ray_dir,
        demand=need.with_workers(run.options.workers),
    )


def _retrain(run: _Run, ray_dir: Path, need: Demand, outcome: Outcome) -> None:
    plan, folder = run.plan, run.folder
    best = outcome.chosen(plan.retrain_top)
    save_genotypes(outcome, folder)
    drawn = counted(plan.num_compared, "random encoder") if plan.num_compared else ""
    found = counted(len(best), "encoder") if best else ""
    names = ", ".join(filter(None, (found, drawn)))
    print(f"\nretraining {names} and a plain ViT on the full training set", flush=True)
    for summary in best:
        print(f"  {summary.hash}  {summary.genotype}", flush=True)
    setup = _training_setup(run, plan.retrain, folder.retrain_dir, ray_dir, need)
    models = plan.models([summary.hash for summary in best], outcome.random)
    seeds = plan.retraining_seeds
    retrain(setup, models, seeds, own_callbacks(run.options.callback, "retrain"))


def retrain(
    setup: RetrainSetup,
    models: Sequence[str],
    seeds: range,
    callbacks: Sequence[Callback] = (),
    *,
    phase: str = "retraining",
) -> None:
    """Each model on every seed, but what has finished. Needs a connected Ray.

    Args:
        models: canonical hashes, each with a file in `genotypes_dir`, and "vit".
        callbacks: of Tune, beside the live view.
    """
    finished, _ = find_retrainings(setup.trials_dir, models, seeds)
    progress = Progress(
        phase,
        total=len(models) * len(seeds),
        concurrent=setup.demand.concurrent,
        done_before=frozenset(trial.name for trial in finished),
        name=lambda sampled: setup.job(sampled).folder.name,
        failed=setup.record_failure,
    )
    space = {"model": tune.grid_search(list(models)), "seed": tune.grid_search(list(seeds))}
    fit(setup, setup.ray_dir, callbacks=[progress, *callbacks], param_space=space)
