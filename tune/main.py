"""The main job in order: check, search, aggregate, retrain, report."""

import contextlib
import dataclasses
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from dasvit.config import RetrainConfig, SearchConfig, config_to_dict
from dasvit.environment import environment
from dasvit.ops import build_operation
from dasvit.presets import PAPER_PRESET
from dasvit.progress import duration
from dasvit.retrain import check_retrain
from dasvit.search import check_search
from tune.cluster import Cluster, Demand, check_address, check_local_gpus, connect, demand
from tune.folder import ResultFolder, open_folder
from tune.options import SweepOptions, parse_options
from tune.report import VIT, Outcome, save_genotypes, table, write_report
from tune.retrain_best import gather_retrain, run_retrain_trials
from tune.searcher import result_lag
from tune.space import outer_space
from tune.sweep import gather_search, run_search_trials

__all__ = ["main"]

SHOWN_ROWS = 8


def main(argv: Sequence[str]) -> int:
    """Run the command line; the exit status, see `run_search.py`."""
    try:
        with _sigterm_is_ctrl_c():
            return _Sweep(parse_options(argv), argv).run()
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    # Ray's processes are shut down on the way out of Ctrl-C, and would outlive a plain SIGTERM.
    before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Sweep:
    """One run of the command."""

    def __init__(self, options: SweepOptions, argv: Sequence[str]) -> None:
        self.options, self.argv = options, argv
        self.search, self.retrain = options.search, options.retrain
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}

    def run(self) -> int:
        options = self.options
        address = check_address(options.address)
        if address is None:
            check_local_gpus(options.gpus_per_trial)
        _check(options)
        folder = open_folder(options.storage_path, options.folder_name, _settings(options))
        with folder.lock():
            self.record = folder.read() or {"settings": _settings(options), "runs": []}
            self.earlier = list(self.record["runs"])
            outcome = self._outcome(folder)
            if outcome.complete:
                print(f"{folder.root} holds this sweep already, finished; nothing to run")
            else:
                outcome = self._run_phases(address, folder)
            return self._finish(outcome, folder)

    def _run_phases(self, address: str | None, folder: ResultFolder) -> Outcome:
        self._print_plan(folder)
        with connect(address) as cluster:
            need = demand(
                cluster,
                gpus_per_trial=self.options.gpus_per_trial,
                cpus_per_trial=self.options.cpus_per_trial,
                max_concurrent=self.options.max_concurrent_trials,
                num_trials=self.options.num_trials,
            )
            self._print_machine(cluster, need)
            # Fixed by the first run: it decides which results each proposal is made from.
            lag = self.record.setdefault("lag", result_lag(need.concurrent, self.options.seeds))
            self._save(folder, need)
            ray_dir = folder.ray_root / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
            with self._phase("search", folder, need):
                self._search(folder, ray_dir / "search", need, lag)
            outcome = self._outcome(folder)
            if not outcome.search or _interrupted(outcome):
                return outcome
            with self._phase("retraining", folder, need):
                self._retrain(folder, ray_dir / "retrain", need)
        return self._outcome(folder)

    def _search(self, folder: ResultFolder, ray_dir: Any, need: Demand, lag: int) -> None:
        options = self.options
        done, _ = self._gather_search(folder)
        if len(done) == options.num_trials:
            return
        models = options.retrain_top + 1
        run_search_trials(
            self.search,
            fixed=frozenset(options.fixed),
            num_samples=options.num_samples,
            seeds=options.search_seeds,
            metric=options.metric,
            lag=lag,
            trials_dir=folder.search_dir,
            ray_dir=ray_dir,
            demand=need,
            then=f", then {models * len(options.retraining_seeds)} retrainings",
        )

    def _retrain(self, folder: ResultFolder, ray_dir: Any, need: Demand) -> None:
        outcome = self._outcome(folder)
        models = self._models(outcome)
        save_genotypes(outcome.ranking, folder)
        top = [s for s in outcome.ranking if s.hash in models]
        print(f"\nretraining the best {len(top)} encoders and a plain ViT on the full training set:")
        for summary in top:
            print(f"  {summary.hash}  {summary.genotype}")
        run_retrain_trials(
            self.retrain,
            models=models,
            seeds=self.options.retraining_seeds,
            genotypes_dir=folder.genotypes_dir,
            trials_dir=folder.retrain_dir,
            ray_dir=ray_dir,
            demand=need,
        )

    def _models(self, outcome: Outcome) -> list[str]:
        return [s.hash for s in outcome.ranking[: self.options.retrain_top]] + [VIT]

    def _gather_search(self, folder: ResultFolder) -> Any:
        return gather_search(
            folder.search_dir,
            num_samples=self.options.num_samples,
            seeds=self.options.search_seeds,
        )

    def _outcome(self, folder: ResultFolder) -> Outcome:
        options = self.options
        searched, failures = self._gather_search(folder)
        outcome = Outcome(
            name=options.folder_name,
            dataset=self.search.data.dataset,
            retrain_dataset=self.retrain.data.dataset,
            metric=options.metric,
            operations=self.search.operations,
            num_trials=options.num_trials,
            num_retrainings=0,
            search=tuple(searched),
            retrained=(),
            failures=tuple(failures),
            retrain_seeds=options.retraining_seeds,
            wall=self._wall(),
        )
        models = self._models(outcome)
        retrained, not_retrained = gather_retrain(
            folder.retrain_dir, models=models, seeds=options.retraining_seeds
        )
        return dataclasses.replace(
            outcome,
            num_retrainings=len(models) * len(options.retraining_seeds),
            retrained=tuple(retrained),
            failures=(*failures, *not_retrained),
        )

    def _finish(self, outcome: Outcome, folder: ResultFolder) -> int:
        outcome = dataclasses.replace(outcome, wall=self._wall())
        if outcome.search:
            save_genotypes(outcome.ranking, folder)
            write_report(outcome, folder)
            _print_table(table(outcome, limit=SHOWN_ROWS))
            hidden = len(outcome.ranking) - SHOWN_ROWS
            if hidden > 0:
                print(f"… and {hidden} more encoders in leaderboard.md")
        print(f"\nresults:     {folder.root}")
        print(f"TensorBoard: tensorboard --logdir {shlex.quote(str(folder.root))}")
        if outcome.complete:
            folder.remove_ray_records()
            if self.seconds:
                print(f"finished in {duration(time.monotonic() - self.started)}")
            return 0
        if _interrupted(outcome):
            print(
                f"error: {len(outcome.search)} of {outcome.num_trials} searches and "
                f"{len(outcome.retrained)} of {outcome.num_retrainings} retrainings finished; "
                f"continue with: {self._command()}",
                file=sys.stderr,
            )
            return 130
        failed = [f for f in outcome.failures if f.started]
        print(
            f"error: {len(failed)} trials failed, the first is {failed[0].name}: "
            f"{failed[0].error}; the same command tries them again",
            file=sys.stderr,
        )
        return 1

    @contextlib.contextmanager
    def _phase(self, name: str, folder: ResultFolder, need: Demand) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - started
            self._save(folder, need)

    def _save(self, folder: ResultFolder, need: Demand) -> None:
        total = time.monotonic() - self.started
        other = total - sum(v for k, v in self.seconds.items() if k in ("search", "retraining"))
        run = {
            "command": self._command(),
            "started": self._started_at,
            "environment": self._environment,
            "device": need.device,
            "cpus_per_trial": need.cpus,
            "gpus_per_trial": need.gpus,
            "concurrent_trials": need.concurrent,
            "wall_seconds": {**self.seconds, "other": other, "total": total},
        }
        self.record["runs"] = [*self.earlier, run]
        folder.write({k: v for k, v in self.record.items() if k != "schema"})
