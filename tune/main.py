"""The main job in order: check, search, aggregate, retrain, report."""

import contextlib
import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dasvit.config import config_to_dict
from dasvit.data import load_data
from dasvit.memory import device_memory, shortfall
from dasvit.models import VIT
from dasvit.ops import build_operation
from dasvit.presets import PAPER_PRESET
from dasvit.progress import duration
from dasvit.retrain import check_retrain
from dasvit.search import check_search
from tune.cluster import (
    Cluster,
    Demand,
    check_address,
    check_local_gpus,
    check_workers,
    connect,
    demand,
)
from tune.folder import ResultFolder, open_folder
from tune.leaderboard import table
from tune.options import SweepOptions, parse_options
from tune.outcome import Outcome
from tune.record import SweepRecord
from tune.report import save_genotypes, write_report
from tune.retrain_best import gather_retrain, run_retrain_trials
from tune.searcher import result_lag
from tune.space import OUTER_NAMES, outer_space
from tune.sweep import gather_search, run_search_trials

__all__ = ["main", "memory_warning"]

SHOWN_ROWS = 8


def main(argv: Sequence[str]) -> int:
    """Run a command line; the exit status, see `run_search.py`."""
    try:
        with _sigterm_as_ctrl_c():
            return _run(parse_options(argv), _command(argv))
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nerror: interrupted; continue with: {_command(argv)}", file=sys.stderr)
        return 130


def _command(argv: Sequence[str]) -> str:
    return shlex.join(["python", "tune/run_search.py", *argv])


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    # The way out of Ctrl-C ends Ray's processes; a plain SIGTERM would leave that to chance.
    before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(options: SweepOptions, command: str) -> int:
    address = check_address(options.address)
    if address is None:
        check_local_gpus(options.gpus_per_trial)
    _check(options)
    settings = _settings(options)
    folder = open_folder(options.storage_path, options.folder_name, settings)
    with folder.lock():
        record = SweepRecord(folder, settings, command)
        outcome = _outcome(options, folder, record)
        if outcome.complete:
            print(f"{folder.root} holds this sweep already, finished: nothing to run\n")
        else:
            _compute(options, folder, record, address)
            record.save()
            outcome = _outcome(options, folder, record)
        return _finish(options, folder, outcome, command)


def _check(options: SweepOptions) -> None:
    """Refuse, before Ray starts and anything is written, what no trial could run."""
    outer_space(options.search, fixed=options.fixed)
    check_search(options.search)
    check_retrain(dataclasses.replace(options.retrain, model=VIT))
    with torch.device("meta"):
        for name in options.search.operations:
            try:
                build_operation(name, options.retrain.dim)
            except ValueError as error:
                raise ValueError(f"--retrain.dim {options.retrain.dim}: {error}") from None
    # Read once here, so that corrupt files show now, and that of all trials one downloads.
    for data in dict.fromkeys((options.search.data, options.retrain.data)):
        load_data(data, torch.device("cpu"))


def _settings(options: SweepOptions) -> dict[str, Any]:
    """What a sweep computes: a folder with other settings is another sweep's."""
    retrain = config_to_dict(options.retrain)
    del retrain["model"]  # each retraining has its own
    return {
        "search": config_to_dict(options.search),
        "retrain": retrain,
        "fixed": list(options.fixed),
        "num_samples": options.num_samples,
        "seeds": options.seeds,
        "metric": options.metric,
        "retrain_top": options.retrain_top,
        "retrain_seeds": len(options.retraining_seeds),
    }


def _compute(
    options: SweepOptions, folder: ResultFolder, record: SweepRecord, address: str | None
) -> None:
    """Both phases, as far as they go: Ctrl-C ends a phase without an exception."""
    _print_plan(options, folder)
    with connect(address) as cluster:
        need = demand(
            cluster,
            gpus_per_trial=options.gpus_per_trial,
            cpus_per_trial=options.cpus_per_trial,
            max_concurrent=options.max_concurrent_trials,
            num_trials=options.num_trials,
        )
        check_workers(cluster, need, options.workers)
        _print_machine(cluster, need)
        if warning := memory_warning(options, need):
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        lag = record.begin(need, result_lag(need.concurrent, options.seeds))
        # Ray refuses to mix two runs in one folder; what counts lies in the trials' own.
        ray_dir = folder.ray_root / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        outcome = _outcome(options, folder, record)
        if len(outcome.search) < options.num_trials:
            with record.phase("search"):
                _search(options, folder, ray_dir / "search", need, lag)
        outcome = _outcome(options, folder, record)
        if outcome.search and not outcome.search_interrupted:
            with record.phase("retraining"):
                _retrain(options, folder, ray_dir / "retrain", need, outcome)


def memory_warning(options: SweepOptions, need: Demand) -> str | None:
    """A line about trials that will not fit into this machine's GPU; None where there is none.

    What a sweep draws at most is planned: all tokens, second order.
    """
    if not need.gpus or not torch.cuda.is_available():
        return None
    most: dict[str, Any] = {"token_ratio": 1.0, "xi": options.search.weight_lr}
    drawn = {name: value for name, value in most.items() if name not in options.fixed}
    available = device_memory(torch.device("cuda", 0))
    assert available is not None
    share = int(available * min(1.0, need.gpus))
    return shortfall(dataclasses.replace(options.search, **drawn), share)


def _search(
    options: SweepOptions, folder: ResultFolder, ray_dir: Path, need: Demand, lag: int
) -> None:
    retrainings = (options.retrain_top + 1) * len(options.retraining_seeds)
    run_search_trials(
        options.search,
        fixed=frozenset(options.fixed),
        num_samples=options.num_samples,
        seeds=options.search_seeds,
        metric=options.metric,
        lag=lag,
        trials_dir=folder.search_dir,
        ray_dir=ray_dir,
        demand=need,
        then=f", then {retrainings} retrainings",
    )


def _retrain(
    options: SweepOptions, folder: ResultFolder, ray_dir: Path, need: Demand, outcome: Outcome
) -> None:
    best = outcome.ranking[: options.retrain_top]
    save_genotypes(outcome.ranking, folder)
    print(f"\nretraining {len(best)} encoders and a plain ViT on the full training set", flush=True)
    for summary in best:
        print(f"  {summary.hash}  {summary.genotype}", flush=True)
    run_retrain_trials(
        options.retrain,
        models=_models(options, outcome),
        seeds=options.retraining_seeds,
        genotypes_dir=folder.genotypes_dir,
        trials_dir=folder.retrain_dir,
        ray_dir=ray_dir,
        demand=need.with_workers(options.workers),
    )


def _models(options: SweepOptions, outcome: Outcome) -> list[str]:
    return [summary.hash for summary in outcome.ranking[: options.retrain_top]] + [VIT]


def _outcome(options: SweepOptions, folder: ResultFolder, record: SweepRecord) -> Outcome:
    """The state of the sweep, from the trials' folders."""
    searched, not_searched = gather_search(
        folder.search_dir, num_samples=options.num_samples, seeds=options.search_seeds
    )
    outcome = Outcome(
        name=options.folder_name,
        dataset=options.search.data.dataset,
        retrain_dataset=options.retrain.data.dataset,
        metric=options.metric,
        operations=options.search.operations,
        edges_per_node=options.search.edges_per_node,
        search=tuple(searched),
        not_searched=tuple(not_searched),
        wall=record.wall(),
    )
    retrained, not_retrained = gather_retrain(
        folder.retrain_dir, models=_models(options, outcome), seeds=options.retraining_seeds
    )
    return dataclasses.replace(
        outcome, retrained=tuple(retrained), not_retrained=tuple(not_retrained)
    )


def _finish(options: SweepOptions, folder: ResultFolder, outcome: Outcome, command: str) -> int:
    """Write and print the results; the exit status."""
    if outcome.search:
        save_genotypes(outcome.ranking, folder)
        write_report(outcome, folder)
        _print_table(table(outcome, limit=SHOWN_ROWS))
        hidden = len(outcome.ranking) - SHOWN_ROWS
        print(f"and {hidden} more encoders in leaderboard.md" if hidden > 0 else "")
    print(f"results:     {folder.root}")
    # One command each: the HParams tab shows the settings of one kind of trial.
    for trials in (folder.search_dir, folder.retrain_dir):
        print(f"TensorBoard: tensorboard --logdir {shlex.quote(str(trials))}")
    if outcome.complete:
        folder.remove_ray_records()
        print(f"wall time:   {duration(outcome.wall.get('total', 0.0))}")
        return 0
    sys.stdout.flush()
    failed = [f for f in (*outcome.not_searched, *outcome.not_retrained) if f.error]
    if failed and not outcome.interrupted:
        print(
            f"error: {len(failed)} trial(s) failed; the first is {failed[0].name}: "
            f"{failed[0].error}; the same command tries again from their last epoch, or from the "
            "start if their folders are deleted",
            file=sys.stderr,
        )
        return 1
    print(
        f"error: interrupted with {len(outcome.search)} of {options.num_trials} searches and "
        f"{len(outcome.retrained)} retrainings finished; continue with: {command}",
        file=sys.stderr,
    )
    return 130


def _print_plan(options: SweepOptions, folder: ResultFolder) -> None:
    search, retrain = options.search, options.retrain
    free = [name for name in OUTER_NAMES if name not in options.fixed]
    seeds = len(options.retraining_seeds)
    print(
        f"preset {options.preset}: search on {search.data.dataset}, {options.num_samples} "
        f"configurations × {options.seeds} seeds = {options.num_trials} trials of "
        f"{search.total_epochs} epochs, over {', '.join(free)}\n"
        f"then the best {options.retrain_top} encoders and a plain ViT × {seeds} seeds on "
        f"{retrain.data.dataset}, {retrain.epochs} epochs each\n"
        f"results in {folder.root}"
    )
    if options.preset != PAPER_PRESET:
        print(
            f"the paper's setting (one GPU a trial): python tune/run_search.py --preset "
            f"{PAPER_PRESET} --data-dir DIR --num-samples {options.num_samples}"
        )
    print("starting Ray …", flush=True)


def _print_machine(cluster: Cluster, need: Demand) -> None:
    where = "this machine" if cluster.is_local else f"{cluster.nodes} nodes at {cluster.address}"
    gpus = f" and {need.gpus:g} GPUs" if need.gpus else ""
    print(
        f"device {need.device}: {need.concurrent} trials at a time, {need.cpus} CPUs{gpus} each, "
        f"on {where} ({cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs)",
        flush=True,
    )


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
