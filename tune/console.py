"""What the sweep prints: its plan before it starts, its best at the end."""

import shlex
import sys
from collections.abc import Collection, Mapping

from dasvit.presets import PAPER_PRESET
from dasvit.report.progress import counted, duration
from tune.demand import Cluster, Demand
from tune.plan import Plan
from tune.report.outcome import Outcome
from tune.report.tables import leaderboard
from tune.report.worth import verdict
from tune.store import ResultFolder

__all__ = ["print_end", "print_machine", "print_plan", "print_results"]

SHOWN_ROWS = 8


def print_plan(
    plan: Plan, preset: str, folder: ResultFolder, spaces: Mapping[str, Collection[str]]
) -> None:
    search, retrain = plan.search, plan.retrain
    drawn = counted(plan.num_random, "random encoder") if plan.num_random else ""
    if plan.num_searches:
        print(
            f"preset {preset}: search on {search.data.dataset}, "
            f"{counted(plan.num_configs, 'configuration')} × {counted(plan.seeds, 'seed')} = "
            f"{counted(plan.num_searches, 'trial')} of {search.total_epochs} epochs, over "
            f"{', '.join(*spaces.values()) if len(spaces) == 1 else 'the methods in turn:'}"
        )
        if len(spaces) > 1:
            print(*(f"  {name}: {', '.join(space)}" for name, space in spaces.items()), sep="\n")
        if plan.scheduler == "asha":
            print(
                f"ASHA stops searches early: from epoch {plan.first_rung} on, one in "
                f"{plan.reduction_factor} goes on at each rung"
            )
        best = f"the best {counted(plan.retrain_top, 'encoder')}"
        if len(plan.objectives) > 1:
            print(f"objectives: accuracy, and the least {' and '.join(plan.objectives[1:])}")
            best = f"{counted(plan.retrain_top, 'encoder')} of the Pareto front"
        found = f"{best}, {drawn}" if drawn else best
        models = f"then {found} and a plain ViT"
    else:
        print(f"preset {preset}: {drawn} on {search.data.dataset}")
        models = f"then the best {counted(plan.retrain_top, 'encoder')} and a plain ViT"
    if plan.ladder:
        epochs = " and ".join(map(str, plan.ladder))
        more = plan.proposals
        proposed = f", {more} more per search that its weights propose" if more else ""
        print(
            f"the encoders{proposed}, and a plain ViT, are ranked on a ladder of short trainings: "
            f"{epochs} epochs on a part of the training images, tested on the rest"
        )
    print(
        f"{models} × {counted(len(plan.retraining_seeds), 'seed')} on "
        f"{retrain.data.dataset}, {retrain.epochs} epochs each\nresults in {folder.root}"
    )
    if preset != PAPER_PRESET:
        print(
            f"the paper's setting (one GPU per trial): python tune/run_search.py --preset "
            f"{PAPER_PRESET} --data-dir DIR --num-samples {plan.num_samples}"
        )
    print("starting Ray …", flush=True)


def print_machine(cluster: Cluster, need: Demand) -> None:
    where = "this machine" if cluster.is_local else f"{cluster.nodes} nodes at {cluster.address}"
    gpus = f" and {need.gpus:g} GPUs" if need.gpus else ""
    print(
        f"device {need.device}: {need.concurrent} trials at a time, {need.cpus} CPUs{gpus} each, "
        f"on {where} ({cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs)",
        flush=True,
    )


def print_results(outcome: Outcome) -> None:
    """The first rows of the leaderboard, and what they say."""
    print(f"\n{leaderboard(outcome, limit=SHOWN_ROWS).to_string(index=False)}")
    hidden = len(outcome.ranking) - SHOWN_ROWS
    print(f"and {hidden} more encoders in leaderboard.md\n" if hidden > 0 else "")
    for line in verdict(outcome):
        print(line)
    if outcome.best_is_one_answer:
        print("the encoder that ranks first is no better than one answer to all images")
    print()


def print_end(plan: Plan, folder: ResultFolder, outcome: Outcome, command: str) -> int:
    """Where the results are, and what is missing; the exit status."""
    print(f"results:     {folder.root}")
    # One command each: the HParams tab shows the settings of one kind of trial.
    for trials in (folder.search_dir, folder.retrain_dir):
        if trials.exists():
            print(f"TensorBoard: tensorboard --logdir {shlex.quote(str(trials))}")
    if folder.best_dir.exists():
        best = shlex.quote(str(folder.best_dir))
        print(f"model:       {folder.best_dir / 'model'}")
        print(f"use it:      python -m dasvit predict --model {best} IMAGE")
    if outcome.complete:
        print(f"report:      {folder.root / 'report.html'}")
        print(f"wall time:   {duration(outcome.wall.get('total', 0.0))}")
        return 0
    sys.stdout.flush()
    failed = [f for f in outcome.failures if f.error]
    if failed and not outcome.interrupted:
        print(
            f"error: {len(failed)} trial(s) failed; the first is {failed[0].name}: "
            f"{failed[0].error}; the same command tries again from their last epoch, or from the "
            "start if their folders are deleted",
            file=sys.stderr,
        )
        return 1
    print(
        f"error: interrupted with {len(outcome.search)} of {plan.num_searches} searches and "
        f"{len(outcome.retrained)} retrainings finished; continue with: {command}",
        file=sys.stderr,
    )
    return 130
