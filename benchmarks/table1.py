"""The paper's Table I with our counts beside it, and our accuracies where there are results.

    python benchmarks/table1.py                     # accuracies "not run"
    python benchmarks/table1.py --results runs      # with finished retrainings, in runs/ and below
    python benchmarks/table1.py --csv               # or --json

All networks are counted anew, about a second each; nothing is trained. Results are matched by
network, size and data set. What the paper prints is in `table1.csv`: million parameters, billion
multiply-adds ("FLOPs" there), top-1 and top-5 test accuracy in percent.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Python puts this file's folder first; `benchmarks` is imported from the checkout's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import pandas as pd

from benchmarks.tables import markdown
from dasvit.costs import complexity
from dasvit.presets import get_preset
from dasvit.report.record import load_retrain_result
from dasvit.report.statistics import spread
from dasvit.run.environment import environment
from dasvit.run.files import read_json
from dasvit.run.settings import config_to_dict
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES, Genotype
from dasvit.training.config import RetrainConfig
from dasvit.training.model_folder import RETRAIN_KIND, load_retrain_config
from dasvit.training.networks import VIT, model_on_meta

DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet100": "ImageNet-100"}
PAPER = get_preset("cifar10").retrain
"""The size at which the networks are counted, and of the results that fill the table."""
_ELSEWHERE = ("data_dir", "download", "num_workers", "in_memory")
"""Settings of the data that say where and how it is read, not what is learned."""
Cells = Mapping[tuple[str, str], pd.DataFrame]


def paper() -> pd.DataFrame:
    """The table as printed, by network."""
    path = Path(__file__).with_name("table1.csv")
    return pd.read_csv(path, keep_default_na=False, index_col="network")


def count(
    table: pd.DataFrame, num_classes: int, progress: Callable[[str], None] = lambda name: None
) -> pd.DataFrame:
    """Parameters and multiply-adds of the table's networks at 224 × 224 pixels, RGB; `progress` is
    told which is counted next."""
    size, found = PAPER.data.image_size, {}
    for name, model in table["model"].items():
        progress(str(name))
        network = model_on_meta(replace(PAPER, model=model), num_classes=num_classes)
        one = complexity(network, (3, size, size))
        found[name] = (one.num_params, one.macs_linear, one.macs_total)
    columns = ("params", "macs_linear", "macs_total")
    return pd.DataFrame.from_dict(found, orient="index", columns=columns)


def beside(table: pd.DataFrame, counts: pd.DataFrame) -> pd.DataFrame:
    """Paper and counts side by side, their relative differences, and which count the paper's is,
    within 1 %: linear, with attention, both or neither."""
    both = table[["model", "design"]].copy()
    of = {"params": ("params", 1e6), "macs_linear": ("macs", 1e9), "macs_total": ("macs", 1e9)}
    for name, (printed, unit) in of.items():
        both[f"{name}_paper"], both[name] = table[printed], counts[name]
        both[f"{name}_difference"] = counts[name] / unit / table[printed] - 1
    fits = {(True, True): "both", (True, False): "linear", (False, True): "with attention"}
    linear, total = (~both[f"macs_{c}_difference"].map(beyond) for c in ("linear", "total"))
    which = [fits.get(pair, "neither") for pair in zip(linear, total, strict=True)]
    return both.assign(papers_count_is=which)


def beyond(ratio: float) -> bool:
    """Whether a difference is over 1 %."""
    return abs(ratio) > 0.01 + 1e-9  # 1.01 − 1 is over 0.01 in floating point


def find_runs(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Every finished retraining in the folders and below them, each once, by path: its `folder`,
    `config`, `seed` and `recipe` (all else that matters), `top1` and `top5` (ratios), and the
    `network` whose cell it fills, or None. Searches and unfinished retrainings are left out.

    Raises:
        ValueError: a folder that is not there or holds none, or files that are malformed.
    """
    found: dict[Path, dict[str, Any]] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"--results: there is no folder {folder}")
        below = [p.parent for p in sorted(folder.rglob("result.json")) if _is_retraining(p.parent)]
        if not below:
            raise ValueError(
                f"--results: no finished retraining in {folder} (config.json and result.json)"
            )
        found |= {path.resolve(): _read(path) for path in below}
    return [found[path] for path in sorted(found)]


def _is_retraining(folder: Path) -> bool:
    path = folder / "config.json"
    values = read_json(path, "run folder") if path.exists() else None
    return isinstance(values, dict) and values.get("kind") == RETRAIN_KIND


def _read(folder: Path) -> dict[str, Any]:
    config, result = load_retrain_config(folder), load_retrain_result(folder / "result.json")
    own = folder / "genotype.json"
    genotype = Genotype.load(own) if own.exists() else NAMED_GENOTYPES.get(config.model)
    encoder = genotype.canonical_hash if genotype else None
    # An encoder by its hash, not its path.
    recipe = config_to_dict(config) | {"seed": None, "model": encoder or config.model}
    recipe["data"] |= dict.fromkeys(_ELSEWHERE)
    rows = paper()["model"].items() if config.data.dataset in DATASETS else ()
    return {
        "folder": folder,
        "config": config,
        "seed": config.seed,
        "recipe": json.dumps(recipe, sort_keys=True),
        "network": next((name for name, model in rows if _fits(model, config, encoder)), None),
        "top1": result.test_top1,
        "top5": result.test_top5,
    }


def _fits(model: str, config: RetrainConfig, encoder: str | None) -> bool:
    """Whether a run trained a row's network at the paper's size."""
    if config.data.image_size != PAPER.data.image_size:
        return False
    names = ("dim", "depth", "patch_size")
    at_size = all(getattr(config, name) == getattr(PAPER, name) for name in names)
    at_size |= config.model.startswith("dasvit_base_patch16")
    if model in NAMED_GENOTYPES:
        where = "dasvit_imagenet100" if config.data.dataset == "imagenet100" else model
        return at_size and encoder == NAMED_GENOTYPES[where].canonical_hash
    plain = config.model == VIT and at_size and config.vit_heads == PAPER.vit_heads
    return config.model == model or (plain and model == "vit_base_patch16_224")


def fill_cells(runs: Iterable[dict[str, Any]]) -> tuple[Cells, list[pd.DataFrame]]:
    """Runs that differ in the seed alone, by network and data set; and those of no cell.

    Raises:
        ValueError: one recipe with the same seed twice, or two recipes for one cell, which must not
            be averaged.
    """
    cells: dict[tuple[str, str], pd.DataFrame] = {}
    others = []
    table = pd.DataFrame([*runs], columns=[*_COLUMNS])
    for _, group in table.groupby("recipe", sort=False):
        group = group.sort_values("seed")
        twice = group[group["seed"].duplicated(keep=False)]
        if len(twice):
            raise ValueError(
                f"{' and '.join(map(str, twice['folder']))} are the same retraining with the same "
                f"seed {twice['seed'].iloc[0]}; give one of them"
            )
        run = group.iloc[0]
        key = run["network"], run["config"].data.dataset
        if run["network"] is None or pd.isna(run["network"]):
            others.append(group)
        elif key in cells:
            first = cells[key].iloc[0]
            settings = _differing(json.loads(first["recipe"]), json.loads(run["recipe"]))
            raise ValueError(
                f"{first['folder']} and {run['folder']} train {key[0]} on {DATASETS[key[1]]} by "
                f"two recipes (they differ in {', '.join(settings)}); give the folders of one"
            )
        else:
            cells[key] = group
    return cells, others


_COLUMNS = ("folder", "config", "seed", "recipe", "network", "top1", "top5")


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for name, left in one.items():
        if isinstance(left, dict):
            yield from _differing(left, other[name])
        elif left != other.get(name):
            yield name


def values(both: pd.DataFrame, table: pd.DataFrame, cells: Cells) -> pd.DataFrame:
    """One flat row per network: counts as whole numbers, the paper's as printed, differences as
    ratios, accuracies in percent; empty where nothing was run."""
    whole = both.copy()
    for dataset in DATASETS:
        for top in ("top1", "top5"):
            ours = {name: spread(runs[top]) for (name, of), runs in cells.items() if of == dataset}
            whole[f"{dataset}_{top}_paper"] = table[f"{dataset}_{top}"]
            whole[f"{dataset}_{top}"] = pd.Series({n: 100 * s.mean for n, s in ours.items()})
            std = {n: 100 * s.std for n, s in ours.items() if s.std is not None}
            whole[f"{dataset}_{top}_std"] = pd.Series(std, dtype=float)
        whole[f"{dataset}_seeds"] = [len(cells.get((str(n), dataset), ())) for n in whole.index]
    return whole.assign(note=table["note"])


def _percent(ratio: float) -> str:
    """`+0.3 %`; bold over 1 %."""
    percent = round(100 * ratio, 1)
    text = f"{percent:+.1f} %" if percent else "0.0 %"
    return f"**{text}**" if beyond(ratio) else text


def _scores(runs: pd.DataFrame | None) -> str:
    if runs is None:
        return "not run"
    seeds = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
    return f"{spread(runs['top1']).percent} / {spread(runs['top5']).percent} ({seeds})"


def _recipe(runs: pd.DataFrame) -> str:
    config = runs["config"].iloc[0]
    return (
        f"{config.epochs} epochs, batch {config.batch_size}, learning rate {config.lr:g}; "
        f"seed {', '.join(map(str, runs['seed']))}; {', '.join(map(str, runs['folder']))}"
    )


def to_markdown(
    table: pd.DataFrame, both: pd.DataFrame, cells: Cells, others: list[pd.DataFrame]
) -> Iterator[str]:
    """The counts, the accuracies, what filled them, and what belongs to no row."""
    yield markdown(
        {
            "network": name,
            "design": row["design"],
            "M parameters: paper": f"{row['params_paper']:.1f}",
            "here": f"{row['params'] / 1e6:.1f}",
            "Δ": _percent(row["params_difference"]),
            "G multiply-adds: paper": f"{row['macs_linear_paper']:.1f}",
            "linear and convolution layers": f"{row['macs_linear'] / 1e9:.2f}",
            "Δ linear": _percent(row["macs_linear_difference"]),
            "with attention products": f"{row['macs_total'] / 1e9:.2f}",
            "Δ with attention": _percent(row["macs_total_difference"]),
            "the paper's is": row["papers_count_is"].replace("neither", "**neither**"),
        }
        for name, row in both.iterrows()
    )
    yield "\n".join(f"- {name}: {note}" for name, note in table["note"].items() if note)
    yield "Test accuracy, top-1 / top-5 in percent; mean ± standard deviation over seeds."
    yield markdown(
        {"network": name}
        | {
            f"{title}: {who}": f"{row[f'{dataset}_top1']} / {row[f'{dataset}_top5']}"
            if who == "paper"
            else _scores(cells.get((str(name), dataset)))
            for dataset, title in DATASETS.items()
            for who in ("paper", "here")
        }
        for name, row in table.iterrows()
    )
    for (name, dataset), runs in cells.items():
        yield f"- {name}, {DATASETS[dataset]}: {_recipe(runs)}"
    for runs in others:
        config = runs["config"].iloc[0]
        size = f"{config.data.image_size} × {config.data.image_size}"
        what = f"{config.model}, {config.data.dataset} at {size}"
        yield f"- In no cell: {what}: {_scores(runs)}; {_recipe(runs)}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", nargs="+", default=(), metavar="DIR")
    parser.add_argument("--num-classes", type=int, default=100,
        help="outputs of the heads: 10 for CIFAR-10, 100 (default) for the others")  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--csv", action="store_true")
    args = parser.parse_args(argv)
    try:
        if not 1 <= args.num_classes <= 10**6:
            raise ValueError(f"--num-classes must be 1 to 1000000, but got {args.num_classes}")
        cells, others = fill_cells(find_runs(args.results))
    except ValueError as error:
        parser.error(str(error))

    def progress(name: str) -> None:
        print(f"counting {name} …", file=sys.stderr, flush=True)

    table = paper()
    both = beside(table, count(table, args.num_classes, progress))
    if args.csv:
        print(values(both, table, cells).to_csv(), end="")
    elif args.json:
        rows = values(both, table, cells).reset_index().to_json(orient="records")
        left = [str(folder) for runs in others for folder in runs["folder"]]
        facts = {"rows": json.loads(rows), "num_classes": args.num_classes, "others": left}
        print(json.dumps(facts | {"environment": environment()}))
    else:
        print(f"At {args.num_classes} classes, multiply-adds of one image of 224 × 224; bold: over "
              "1 % from the paper.")  # fmt: skip
        print("", *to_markdown(table, both, cells, others), sep="\n\n")


if __name__ == "__main__":
    main()
