"""Is a search worth it? Every method on one space, under one recipe, against random encoders.

    python benchmarks/study.py --data digits
    python benchmarks/study.py --data fashion_mnist --data-dir DIR
    python benchmarks/study.py --data cells                # needs `pip install elpv-dataset`
    python benchmarks/study.py --page                      # the pages alone, from the files

Every search has about the same compute: methods that draw one operation per step, which is cheaper,
have more epochs. What it finds, encoders drawn uniformly, the paper's
two encoders and the plain ViT are each trained from scratch in the same way: briefly on one half of
the training images, judged by the other half, which is the score that a sweep ranks by; and wholly,
on all training images, over two seeds, tested once. Every finished search or training is a line of
docs/results/study/DATA.jsonl; the same command goes on where they end.
"""

import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    # Python puts this file's folder first; `benchmarks` is imported from the checkout's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import matplotlib
import torch
from scipy.stats import ttest_ind

from benchmarks.images import load_fashion, part_of, write_cells, write_idx
from benchmarks.tables import markdown
from dasvit.commands.arguments import parse
from dasvit.methods import get_method, method_names
from dasvit.presets import Preset, get_preset
from dasvit.report.statistics import spread
from dasvit.report.style import STYLE, new_figure, save_figure
from dasvit.run.environment import environment
from dasvit.search.loop import search
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES, Genotype
from dasvit.spaces.cell.sample import distinct_random_genotypes
from dasvit.training.loop import retrain
from dasvit.training.networks import VIT
from tune.objectives import cost
from tune.plan import Plan
from tune.report.worth import mean_difference, rank_correlation

FOLDER = Path("docs/results/study")
MOST_RANDOM = 200
IMAGES = 10_000
"""Of Fashion-MNIST's training images; all its test images."""
WHOLE = 2
"""Whole trainings of each encoder."""
LONGER = {"gdas": 3, "rsws": 2}
"""Times as many epochs of these searches as of the others: about the same time (a part of the
second one's goes into its choice)."""
PAPER = ("dasvit_cifar10", "dasvit_imagenet100")

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Measure what is missing of the study of one data set, and write the pages."""

    data: Literal["digits", "fashion_mnist", "cells"] = "digits"
    """Which images."""
    data_dir: Path | None = None
    """Folder that holds Fashion-MNIST."""
    methods: tuple[str, ...] = ()
    """Which methods; all without names."""
    seeds: int = 5
    """Searches per method: seeds 0, 1, …"""
    random: int = 20
    """Encoders drawn uniformly."""
    processes: int = 2
    """Searches and trainings at a time, one thread each."""
    page: bool = False
    """Measure nothing; write the pages from the files."""


def preset_of(data: str, folder: str | None = None) -> Preset:
    """The preset that a data set is searched and trained by."""
    preset = get_preset("digits" if data == "cells" else data)
    if folder is None:
        return preset
    images = replace(preset.search.data, data_dir=folder)
    retrain = preset.retrain
    if data == "cells":  # as docs/own-images.md has it
        images = replace(images, dataset="folder", image_size=64)
        retrain = replace(retrain, patch_size=8)
        preset = replace(preset, search=preset.search.replaced(data=images, patch_size=8))
    return replace(
        preset,
        search=replace(preset.search, data=images),
        retrain=replace(retrain, data=replace(images, augment=retrain.data.augment)),
    )


def find(data: str, folder: str | None, method: str, seed: int) -> Row:
    """One search."""
    torch.set_num_threads(1)
    preset = preset_of(data, folder)
    settings = get_method(method).like(preset.search.method)
    settings = replace(settings, stage_epochs=LONGER.get(method, 1) * settings.stage_epochs)
    config = preset.search.replaced(method=settings, seed=seed)
    before = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        found = search(config, out)
    return {
        "piece": "search",
        "method": method,
        "seed": seed,
        "hash": found.genotype.canonical_hash,
        "encoder": Genotype(found.genotype.nodes).to_dict(),
        "supernet_accuracy": found.supernet_accuracy,
        "discretised_accuracy": found.discretised_accuracy,
        "largest_class": found.largest_class,
        "decided": found.decided,
        "chose_at_random": found.chose_at_random,
        "stopped": found.stopped,
        "stages": found.stages,
        "cpu_seconds": time.process_time() - before,
    }


def train(data: str, folder: str | None, model: Row, short: bool, seed: int) -> Row:
    """One training from scratch: briefly on one half, as a sweep's first rung, or wholly on all
    training images."""
    torch.set_num_threads(1)
    preset = preset_of(data, folder)
    plan = Plan(search=preset.search, retrain=preset.retrain, rungs=preset.rungs)
    config = plan.rung(preset.score_epochs) if short else preset.retrain
    config = replace(config, seed=seed)
    before = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        named = model["name"]
        if model["encoder"] is not None:
            named = str(Path(out, "encoder.json"))
            Path(named).write_text(json.dumps(model["encoder"]), encoding="utf-8")
        result = retrain(replace(config, model=named), Path(out, "run"))
    return {
        "piece": "short" if short else "whole",
        "hash": model["hash"],
        "seed": seed,
        "accuracy": result.test_top1,
        "balanced_accuracy": result.balanced_accuracy,
        "largest_class": result.largest_class,
        "num_params": result.num_params,
        "cpu_seconds": time.process_time() - before,
    }


def drawn(data: str, count: int) -> list[Genotype]:
    """The first of the uniformly drawn encoders of a data set's space."""
    return list(distinct_random_genotypes(preset_of(data).search.space, count, seed=0))


def _model(name: str, genotype: Genotype | None) -> Row:
    encoder = None if genotype is None else Genotype(genotype.nodes).to_dict()
    return {
        "name": name,
        "hash": name if genotype is None else genotype.canonical_hash,
        "encoder": encoder,
    }


def models(rows: Sequence[Row], args: Args) -> list[Row]:
    """What is trained, by turns: a seed's found encoders beside a share of the random ones."""
    fixed = [_model(VIT, None), *(_model(name, NAMED_GENOTYPES[name]) for name in PAPER)]
    uniform = iter(_model("random", genotype) for genotype in drawn(args.data, args.random))
    found = {
        seed: [_model(r["method"], Genotype.from_dict(r["encoder"])) for r in group]
        for seed, group in itertools.groupby(
            sorted(of("search", rows), key=lambda r: r["seed"]), key=lambda r: r["seed"]
        )
    }
    share = -(-args.random // args.seeds)
    turns = [*fixed]
    for seed in range(args.seeds):
        turns += [*itertools.islice(uniform, share), *found.get(seed, [])]
    return list({model["hash"]: model for model in turns}.values())


def of(piece: str, rows: Sequence[Row], **wanted: Any) -> list[Row]:
    return [r for r in rows if r["piece"] == piece and wanted.items() <= r.items()]


def measure(args: Args, folder: str | None, path: Path) -> list[str]:
    """Everything that the file lacks: a seed's searches, then the trainings of that turn.

    Returns:
        What failed, and why; all else is in the file.
    """
    names = args.methods or method_names()
    rows, machine, failed = read(path), environment(), list[str]()

    def finish(work: Callable[..., Row], jobs: Sequence[tuple[Any, ...]]) -> None:
        with ProcessPoolExecutor(args.processes) as pool:
            futures = {pool.submit(work, args.data, folder, *job): job for job in jobs}
            for done, future in enumerate(as_completed(futures), start=1):
                if (error := future.exception()) is not None:
                    failed.append(f"{work.__name__} {futures[future]}: {error}")
                    print(failed[-1], file=sys.stderr, flush=True)
                    continue
                row = future.result() | {
                    "date": time.strftime("%Y-%m-%d"),
                    "commit": machine["git_commit"],
                    "torch": machine["packages"]["torch"],
                }
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                rows.append(row)
                what = row.get("method", row["hash"])
                print(f"{done} of {len(jobs)}: {row['piece']} {what} {row['seed']}", flush=True)

    for seed in range(args.seeds):
        finish(find, [(n, seed) for n in names if not of("search", rows, method=n, seed=seed)])
        share = replace(args, seeds=seed + 1, random=-(-args.random // args.seeds) * (seed + 1))
        finish(
            train,
            [
                (model, short, own)
                for model, short, own in trainings(rows, share)
                if not of("short" if short else "whole", rows, hash=model["hash"], seed=own)
            ],
        )
    return failed


def trainings(rows: Sequence[Row], args: Args) -> Iterator[tuple[Row, bool, int]]:
    """Of each model one short training and `WHOLE` whole ones; so many more for each further seed
    with which a method found it again, so that no two of its searches share a training."""
    for model in models(rows, args):
        yield model, True, 0
        for seed in range(WHOLE * max(1, _times_found(rows, model["hash"]))):
            yield model, False, seed


def _times_found(rows: Sequence[Row], name: str) -> int:
    """The most often that one method found an encoder."""
    methods = [r["method"] for r in of("search", rows, hash=name)]
    return max(map(methods.count, methods), default=0)


def read(path: Path) -> list[Row]:
    """The finished pieces; a torn last line is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
    if not text.endswith("\n"):
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return [json.loads(line) for line in lines]


# --- The page


class Study:
    """The pieces of one data set.

    Args:
        data: which.
        rows: the pieces.
    """

    def __init__(self, data: str, rows: Sequence[Row]) -> None:
        self.data, self.rows = data, rows
        self.runs = {
            r["hash"]: {own["seed"]: own for own in of("whole", rows, hash=r["hash"])}
            for r in of("whole", rows)
        }
        self.whole = {name: mean for name in self.runs if (mean := self._mean(name, 0)) is not None}
        self.short = {r["hash"]: r["balanced_accuracy"] for r in of("short", rows, seed=0)}
        self.params = {r["hash"]: r["num_params"] for r in of("whole", rows)}
        uniform = (genotype.canonical_hash for genotype in drawn(data, MOST_RANDOM))
        done = self.whole.keys() & self.short.keys()
        # As far as all are trained: one further on may be there because a search found it.
        self.random = list(itertools.takewhile(lambda name: name in done, uniform))
        self.searches = {
            name: [r for r in of("search", rows, method=name) if r["hash"] in done]
            for name in method_names()
        }
        self.accuracies = {name: self._accuracies(own) for name, own in self.searches.items()}

    def _mean(self, name: str, turn: int) -> float | None:
        """Over the trainings that belong to the turn-th search that found an encoder."""
        seeds = range(WHOLE * turn, WHOLE * (turn + 1))
        if not all(seed in self.runs[name] for seed in seeds):
            return None
        return statistics.fmean(self.runs[name][seed]["balanced_accuracy"] for seed in seeds)

    def _accuracies(self, searches: Sequence[Row]) -> list[float]:
        """Of what a method's searches found, each trained for itself."""
        turns: dict[str, int] = {}
        found = []
        for row in sorted(searches, key=lambda r: r["seed"]):
            turn = turns.get(row["hash"], 0)
            turns[row["hash"]] = turn + 1
            found.append(self._mean(row["hash"], turn))
        return [value for value in found if value is not None]

    @property
    def measured(self) -> dict[str, list[float]]:
        """Accuracy of what each method found, by method; those with at least two searches."""
        return {name: values for name, values in self.accuracies.items() if len(values) > 1}

    def seconds(self, piece: str, names: Sequence[str]) -> float:
        """Mean processor time of a training of these."""
        runs = [r["cpu_seconds"] for r in of(piece, self.rows) if r["hash"] in names]
        return statistics.fmean(runs) if runs else 0.0

    def random_for(self, seconds: float) -> tuple[int, float]:
        """How many random encoders can be scored in that time, and the mean accuracy of the first
        of so many by the score, over draws of the encoders that were trained."""
        count = max(1, round(seconds / self.seconds("short", self.random)))
        count = min(count, len(self.random))
        rng, best = random.Random(0), []
        for _ in range(2000):
            some = rng.sample(self.random, count)
            best.append(self.whole[max(some, key=lambda name: self.short[name])])
        return count, statistics.fmean(best)

    def table(self) -> list[Row]:
        """One row per method, the best mean first, then what they are compared with."""
        control = [self.whole[name] for name in self.random]
        methods = self.measured
        chances = {
            name: float(ttest_ind(values, control, equal_var=False).pvalue)
            for name, values in methods.items()
        }
        rows: list[Row] = []
        for name, values in methods.items():
            searches, difference = self.searches[name], mean_difference(values, control)
            assert difference is not None
            seconds = statistics.fmean(r["cpu_seconds"] for r in searches)
            seconds += self.seconds("short", [r["hash"] for r in searches])
            count, random_best = self.random_for(seconds)
            within = (
                ""
                if difference.low is None or difference.high is None
                else (f" ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})")
            )
            more = "+" if count == len(self.random) else ""
            rows.append(
                {
                    "network": name,
                    "number": f"{len(values)}, {len({r['hash'] for r in searches})} distinct",
                    "accuracy %": spread(values).percent,
                    "minus random": f"{100 * difference.value:+.1f}{within}",
                    "p, Holm": f"{holm(chances)[name]:.3f}",
                    "random, same compute": f"{100 * random_best:.1f} (best of {count}{more})",
                    "parameters": self._parameters([r["hash"] for r in searches]),
                    "multiply-adds": self._macs([r["encoder"] for r in searches]),
                    "learned nothing": f"{sum(r['chose_at_random'] for r in searches)}",
                    "CPU s": f"{seconds:.0f}",
                    "mean": statistics.fmean(values),
                }
            )
        rows.sort(key=lambda row: -row.pop("mean"))
        encoders = [Genotype(g.nodes).to_dict() for g in drawn(self.data, MOST_RANDOM)]
        encoders = [e for e in encoders if e["hash"] in self.random]
        if control:
            rows.append(
                {
                    "network": "random",
                    "number": f"{len(control)}",
                    "accuracy %": spread(control).percent,
                    "parameters": self._parameters(self.random),
                    "multiply-adds": self._macs(encoders),
                }
            )
        for name, genotype in ((VIT, None), *((n, NAMED_GENOTYPES[n]) for n in PAPER)):
            key = name if genotype is None else genotype.canonical_hash
            runs = of("whole", self.rows, hash=key)
            if runs:
                rows.append(
                    {
                        "network": "plain ViT" if name == VIT else f"the paper's {name}",
                        "number": "1",
                        "accuracy %": spread(r["balanced_accuracy"] for r in runs).percent,
                        "parameters": self._parameters([key]),
                        "multiply-adds": self._macs([genotype.to_dict()] if genotype else []),
                    }
                )
        return rows

    def _parameters(self, names: Sequence[str]) -> str:
        return f"{statistics.fmean(self.params[name] for name in names) / 1e6:.3f} M"

    def _macs(self, encoders: Sequence[Row]) -> str | None:
        config = preset_of(self.data, "").retrain
        counts = [cost(Genotype.from_dict(e), config)["macs"] for e in encoders]
        return f"{statistics.fmean(counts) / 1e6:.1f} M" if counts else None

    def page(self) -> str:
        """The table, and τ of the score."""
        names = [name for name in self.whole if name in self.short and name != VIT]
        tau = rank_correlation([self.short[n] for n in names], [self.whole[n] for n in names])
        lines = [markdown(self.table())]
        if tau is not None:
            within = ""
            if tau.low is not None and tau.high is not None:
                within = f" ({tau.low:+.2f} to {tau.high:+.2f})"
            lines.append(
                f"Kendall's τ of the score with the accuracy: {tau.value:+.2f}{within}, "
                f"{tau.count} encoders."
            )
        hours = sum(r["cpu_seconds"] for r in self.rows) / 3600
        whole = get_preset("digits" if self.data == "cells" else self.data)
        facts = {key: sorted({r[key] for r in self.rows}) for key in ("commit", "date", "torch")}
        lines.append(
            f"`python benchmarks/study.py --data {self.data}`; {whole.search.total_epochs} epochs "
            f"per search ({', '.join(f'{name} {n} times' for name, n in LONGER.items())}), score "
            f"after {whole.score_epochs}, "
            f"{whole.retrain.epochs} epochs of training; {hours:.1f} hours of a core. "
            + "; ".join(f"{key} {', '.join(values)}" for key, values in facts.items())
            + "."
        )
        return "\n\n".join(lines) + "\n"


def holm(chances: dict[str, float]) -> dict[str, float]:
    """p-values that take account of how many were tested (Holm, 1979)."""
    found, largest = {}, 0.0
    for place, (name, p) in enumerate(sorted(chances.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(chances) - place)))
        found[name] = largest
    return found


@matplotlib.rc_context(STYLE)
def draw(studies: Sequence[Study], stem: Path) -> None:
    """Accuracy of what each method found, an encoder per point, beside the random ones."""
    figure = new_figure(3.4 * len(studies), 4.2)
    for axes, study in zip(
        figure.subplots(1, len(studies), squeeze=False)[0], studies, strict=True
    ):
        groups = dict(
            sorted(study.measured.items(), key=lambda item: statistics.fmean(item[1])),
            random=[study.whole[name] for name in study.random],
        )
        for place, values in enumerate(groups.values()):
            axes.scatter([100 * v for v in values], [place] * len(values), s=14, alpha=0.6)
            axes.plot(100 * statistics.fmean(values), place, "k|", markersize=12)
        axes.set_yticks(range(len(groups)), [*groups])
        axes.set_xlabel("balanced test accuracy %")
        axes.set_title(study.data)
    save_figure(figure, stem)


def pages() -> Iterator[Study]:
    """Write a page per data set and the picture of all."""
    studies = []
    for path in sorted(FOLDER.glob("*.jsonl")):
        study = Study(path.stem, read(path))
        if study.random and study.measured:
            path.with_suffix(".md").write_text(study.page(), encoding="utf-8")
            studies.append(study)
    if studies:
        draw(studies, FOLDER / "study")
    yield from studies


def main(args: Args) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    if not args.page:
        with tempfile.TemporaryDirectory() as temporary:
            folder = None
            if args.data == "cells":
                write_cells(Path(temporary))
                folder = temporary
            elif args.data == "fashion_mnist":
                if args.data_dir is None:
                    sys.exit("--data fashion_mnist needs --data-dir DIR")
                train, test = load_fashion(args.data_dir)
                write_idx(part_of(train, IMAGES, seed=0)[0], test, Path(temporary))
                folder = temporary
            failed = measure(args, folder, FOLDER / f"{args.data}.jsonl")
    for study in pages():
        print(f"{study.data}\n\n{study.page()}")
    if failed:
        sys.exit(f"{len(failed)} of them failed, the first: {failed[0]}")


if __name__ == "__main__":
    main(parse(Args, sys.argv[1:]))
