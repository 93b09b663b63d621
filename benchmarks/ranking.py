"""What ranks encoders: Kendall's τ of each possible search score with the accuracy after a whole
retraining, on a part of Fashion-MNIST's training images. Test images are not read.

    python benchmarks/ranking.py --data-dir DIR

Found encoders (at two learning rates of the alphas), encoders drawn from the weights that each of
these searches ended with, and encoders drawn uniformly are all trained in the same ways. Writes
OUT.json after every search and training, where the same command goes on, then OUT.md and the plot.
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":
    # Python puts this file's folder first; `benchmarks` is imported from the checkout's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import matplotlib
import torch

from benchmarks.images import load_fashion, part_of, write_idx
from benchmarks.tables import markdown
from dasvit.commands.arguments import parse
from dasvit.presets import get_preset
from dasvit.report.events import Event, StageEnd
from dasvit.report.progress import counted
from dasvit.report.statistics import spread
from dasvit.report.style import STYLE, new_figure, save_figure
from dasvit.run.environment import environment
from dasvit.run.files import write_atomic
from dasvit.search.loop import search
from dasvit.search.score import accuracy
from dasvit.spaces.cell.genotype import Genotype
from dasvit.spaces.cell.sample import distinct_random_genotypes, proposed_genotypes
from dasvit.training import loop as training
from tune.report.worth import Estimate, rank_correlation

IMAGES, JUDGES = 6_000, 10_000
"""Images that everything is trained on, and others that whole retrainings are judged by."""
EPOCHS, SHORT = 8, (1, 2, 4)
"""Of a whole retraining, and of the short trainings whose accuracy may rank."""
ALPHA_RATES = (3e-3, 3e-2)
OTHER_SEED = "one seed of the whole retraining, of the other"
FOUND, DRAWN, UNIFORM = ORIGINS = ("found", "drawn from the weights", "uniform")

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Search, train every encoder briefly and wholly, and compare the orders."""

    data_dir: Path
    """Folder that holds Fashion-MNIST."""
    searches: int = 4
    """Per learning rate of the alphas: seeds 0, 1, …"""
    uniform: int = 11
    """Encoders drawn uniformly."""
    processes: int = 2
    """Searches and trainings at a time, one thread each."""
    out: Path = Path("docs/results/ranking.json")


def write_part(source: Path, folder: Path) -> None:
    """A data set of Fashion-MNIST's kind: `IMAGES` of its training images, stratified, and in the
    test images' place `JUDGES` of the others."""
    part, _ = part_of(load_fashion(source)[0], IMAGES + JUDGES, seed=0)
    train, judges = part_of(part, IMAGES, seed=1)
    write_idx(train, judges, folder)


def find(data_dir: str, alpha_lr: float, seed: int) -> list[Row]:
    """One search: its encoder, and one drawn by the weights of its last stage."""
    torch.set_num_threads(1)
    base = get_preset("fashion_mnist").search
    config = base.replaced(
        data=replace(base.data, data_dir=data_dir), stage_epochs=4, alpha_lr=alpha_lr, seed=seed
    )
    ends: list[StageEnd] = []

    def report(event: Event) -> None:
        if isinstance(event, StageEnd):
            ends.append(event)

    with tempfile.TemporaryDirectory() as folder:
        result = search(config, folder, report=report)
    end, own = ends[-1], result.genotype.canonical_hash
    drawn = proposed_genotypes(end.weights, end.edge_ops, config.space, 1, seed=seed, known=(own,))
    facts = {"alpha_lr": alpha_lr, "seed": seed}
    scores = {
        "supernet": result.supernet_accuracy,
        "discretised": result.discretised_accuracy,
        "search_seconds": result.seconds,
        "stages": result.stages,
    }
    return [
        {"origin": FOUND, **facts, **_encoder(result.genotype), **scores},
        *({"origin": DRAWN, **facts, **_encoder(genotype)} for genotype in drawn),
    ]


def _encoder(genotype: Genotype) -> Row:
    return {"hash": genotype.canonical_hash, "nodes": Genotype(genotype.nodes).to_dict()}


def train(data_dir: str, encoder: Row, epochs: int, seed: int, held_out: float) -> Row:
    """One training from scratch; with its accuracy after every epoch on what was held out."""
    torch.set_num_threads(1)
    base = get_preset("fashion_mnist").retrain
    curve: list[float] = []

    class Watched(training.Training):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.judged_by = args[2].test

        def epoch(self) -> Any:
            record = super().epoch()
            if held_out:
                curve.append(accuracy(self.model, self.judged_by))
            return record

    with tempfile.TemporaryDirectory() as folder, patch.object(training, "Training", Watched):
        model = Path(folder, "encoder.json")
        model.write_text(json.dumps(encoder["nodes"]), encoding="utf-8")
        config = replace(
            base,
            data=replace(base.data, data_dir=data_dir),
            model=str(model),
            epochs=epochs,
            warmup_epochs=min(1, epochs - 1),
            held_out=held_out,
            seed=seed,
        )
        result = training.retrain(config, Path(folder, "run"))
    return {
        **_key(encoder, epochs, seed, held_out),
        "accuracy": result.test_top1,
        "curve": curve,
        "num_params": result.num_params,
        "seconds": result.seconds,
    }


def _key(encoder: Row, epochs: int, seed: int, held_out: float) -> Row:
    return {"hash": encoder["hash"], "epochs": epochs, "seed": seed, "held_out": held_out}


def measure(args: Args, facts: Row, save: Callable[[], None]) -> None:
    """Everything that `facts` lacks."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(args.processes) as pool:
        write_part(args.data_dir, Path(folder))
        encoders, runs = facts["encoders"], facts["runs"]
        commit = {"commit": facts["environment"]["git_commit"]}
        wanted = [
            (rate, seed)
            for seed, rate in itertools.product(range(args.searches), ALPHA_RATES)
            if not any((e.get("alpha_lr"), e.get("seed")) == (rate, seed) for e in encoders)
        ]
        for future in as_completed([pool.submit(find, folder, *job) for job in wanted]):
            encoders += [row | commit for row in future.result()]
            save()
        space = get_preset("fashion_mnist").search.space
        drawn = sum(e["origin"] == UNIFORM for e in encoders)
        genotypes = distinct_random_genotypes(space, args.uniform, seed=0)
        for i, genotype in enumerate(genotypes[drawn:], start=drawn):
            encoders.append({"origin": UNIFORM, "turn": i // 2, **_encoder(genotype)})
        save()
        ways = [(EPOCHS, 0, 0.0), (EPOCHS, 1, 0.0), (EPOCHS, 0, 0.5)]
        ways += [(epochs, seed, 0.5) for epochs in SHORT for seed in (0, 1)]
        # By turns of each origin, so that a part of the work compares them too.
        turns = sorted(encoders, key=lambda e: (e.get("seed", e.get("turn")), e["origin"]))
        jobs = [(e, *way) for e in {e["hash"]: e for e in turns}.values() for way in ways]
        jobs = [job for job in jobs if not any(_key(*job).items() <= run.items() for run in runs)]
        for future in as_completed([pool.submit(train, folder, *job) for job in jobs]):
            runs.append(future.result() | commit)
            save()


def means(facts: Row, epochs: int, seeds: tuple[int, ...], held_out: float) -> dict[str, float]:
    """Accuracy by encoder after such trainings, where all these seeds have finished."""
    found: dict[str, list[float]] = {}
    for run in facts["runs"]:
        if (run["epochs"], run["held_out"]) == (epochs, held_out) and run["seed"] in seeds:
            found.setdefault(run["hash"], []).append(run["accuracy"])
    return {name: statistics.fmean(v) for name, v in found.items() if len(v) == len(seeds)}


def truth(facts: Row, seeds: tuple[int, ...] = (0, 1)) -> dict[str, float]:
    """Accuracy of the whole retraining by encoder: the mean over its seeds."""
    return means(facts, EPOCHS, seeds, 0.0)


def scores_of(facts: Row) -> dict[str, tuple[float, dict[str, float]]]:
    """By name of a score: what it costs (in retrainings of one seed), and its value by encoder."""
    scores = {OTHER_SEED: (1.0, truth(facts, (1,)))}
    scores[_half(EPOCHS)] = (0.5, means(facts, EPOCHS, (0,), 0.5))
    for epochs in reversed(SHORT):
        share = 0.5 * epochs / EPOCHS
        both, one = (means(facts, epochs, seeds, 0.5) for seeds in ((0, 1), (0,)))
        scores[f"{_half(epochs)}, 2 seeds"] = (2 * share, both)
        scores[_half(epochs)] = (share, one)
        broken_off = {
            r["hash"]: r["curve"][epochs - 1]
            for r in facts["runs"]
            if (r["epochs"], r["held_out"]) == (EPOCHS, 0.5)
        }
        scores[f"the first {epochs} of {_half(EPOCHS)}"] = (share, broken_off)
    for name in ("discretised", "supernet"):
        values = {e["hash"]: e[name] for e in facts["encoders"] if name in e}
        scores[f"{name} accuracy (found ones)"] = (0.0, values)
    scores["number of parameters"] = (0.0, {r["hash"]: r["num_params"] for r in facts["runs"]})
    return scores


def _half(epochs: int) -> str:
    return f"{counted(epochs, 'epoch')} on one half"


def correlations(facts: Row) -> dict[str, tuple[float, Estimate]]:
    """Cost and τ of every score with the mean of both seeds; of one seed with the other, which is
    noisier, so that a score may be above it."""
    found = {}
    for name, (cost, values) in scores_of(facts).items():
        end = truth(facts, (0,)) if name == OTHER_SEED else truth(facts)
        names = sorted(values.keys() & end.keys())
        tau = rank_correlation([values[n] for n in names], [end[n] for n in names])
        if tau is not None:
            found[name] = (cost, tau)
    return found


def page(facts: Row) -> str:
    end, params = truth(facts), {r["hash"]: r["num_params"] for r in facts["runs"]}
    score = scores_of(facts)[_half(SHORT[0])][1]
    rows = [
        {
            "score": name,
            "τ": f"{tau.value:+.2f}",
            "95 % interval": _interval(tau),
            "encoders": tau.count,
            "cost": f"{cost:.2f}",
        }
        for name, (cost, tau) in correlations(facts).items()
    ]
    groups: dict[str, list[str]] = {}
    for e in facts["encoders"]:
        rate = f", rate of alpha {e['alpha_lr']:g}" if "alpha_lr" in e else ""
        if e["hash"] in end and e["hash"] in score:
            groups.setdefault(e["origin"] + rate, []).append(e["hash"])
    by_origin = []
    for origin, names in groups.items():
        first = max(names, key=lambda name: score[name])
        by_origin.append(
            {
                "encoders": origin,
                "number": len(names),
                "accuracy %": spread(end[n] for n in names).percent,
                "best": f"{100 * max(end[n] for n in names):.1f}",
                "first by the score": f"{100 * end[first]:.1f}",
                "parameters": f"{statistics.fmean(params[n] for n in names) / 1e6:.2f} M",
            }
        )
    return "\n\n".join([f"`{facts['command']}`", markdown(rows), markdown(by_origin)]) + "\n"


def _interval(tau: Estimate) -> str:
    return "" if tau.low is None or tau.high is None else f"{tau.low:+.2f} to {tau.high:+.2f}"


@matplotlib.rc_context(STYLE)
def draw(facts: Row, stem: Path) -> None:
    """The shortest training beside the whole one, an encoder per point."""
    end, scores = truth(facts), scores_of(facts)
    figure = new_figure(9, 3.2)
    names = [_half(epochs) for epochs in SHORT]
    for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        for marker, origin in zip("os^", ORIGINS, strict=True):
            of = {e["hash"] for e in facts["encoders"] if e["origin"] == origin} & end.keys()
            x, y = [scores[name][1][n] for n in of], [end[n] for n in of]
            axes.scatter(x, y, s=18, marker=marker, label=origin, alpha=0.8)
        axes.set_xlabel(f"accuracy after {name}")
    figure.axes[0].set_ylabel("accuracy after the whole retraining")
    figure.axes[0].legend()
    save_figure(figure, stem)


def main(args: Args) -> None:
    facts: Row = {"encoders": [], "runs": []}
    if args.out.exists():
        facts = json.loads(args.out.read_text(encoding="utf-8"))
    counts = f"--searches {args.searches} --uniform {args.uniform}"
    facts["command"] = f"python benchmarks/ranking.py --data-dir DIR {counts}"
    facts["environment"] = environment()

    def save() -> None:
        facts["date"] = time.strftime("%Y-%m-%d")
        write_atomic(args.out, json.dumps(facts) + "\n")
        print(f"{len(facts['encoders'])} encoders, {len(facts['runs'])} trainings", flush=True)

    measure(args, facts, save)
    write_atomic(args.out.with_suffix(".md"), text := page(facts))
    print(text)
    draw(facts, args.out.with_suffix(""))


if __name__ == "__main__":
    main(parse(Args, sys.argv[1:]))
