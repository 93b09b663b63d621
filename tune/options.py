"""The command line of the sweep: preset first, then every setting by its own name."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from dasvit.commands.arguments import Arg, parse, preset_from_argv
from dasvit.data.config import DataConfig
from dasvit.methods import get_method, method_names
from dasvit.presets import DEFAULT_PRESET
from dasvit.run.plugins import load_plugins
from dasvit.run.settings import require
from tune.plan import Plan

__all__ = ["SweepOptions", "parse_options"]


MAX_NAME = 200
"""Characters: file systems end at 255, and --fresh adds the time to a name."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Sweep, derive, retrain and rank: the whole of dasvit in one command.

    Ray Tune and Optuna try settings of the search, each on several seeds; the encoders found are
    merged and ranked; the best are retrained from scratch beside a plain ViT.
    With no argument it runs on the embedded digits, on the CPU.
    """

    essentials: ClassVar[tuple[str, ...]] = (
        *("preset", "method", "dataset", "data_dir", "image_size", "num_samples", "seeds"),
        *("search", "retrain_top", "random_baseline", "prefer", "storage_path", "name"),
        *("resume", "fresh", "address", "max_concurrent_trials", "gpus_per_trial"),
        *("cpus_per_trial", "dim", "stage_epochs", "token_ratio", "retrain.dim", "retrain.depth"),
        *("retrain.epochs",),
    )

    preset: Annotated[str, Arg(metavar="NAME")] = DEFAULT_PRESET
    """Where all settings start: digits, fashion_mnist, cifar10 or imagenet100;
    with _modern retrained by today's recipe."""
    method: Annotated[str, Arg(metavar="NAME")] = "dasvit"
    """How to search: a name of docs/methods.md or of a module of --plugins. Several take turns:
    darts,gdas or all."""
    plan: Plan
    """What is computed."""

    storage_path: str = "./runs"
    """Folder for results; on a cluster one that all nodes share."""
    name: str | None = None
    """Folder of this sweep in it (default: the preset's name). The same command continues it."""
    resume: bool = False
    """Continue, as the same command does anyway, and refuse to start where nothing is."""
    fresh: bool = False
    """Start anew: a sweep of that name is moved aside, never deleted."""

    callback: str | None = None
    """Tune callbacks of your own, FILE.py:function, which takes a phase's name (search, ladder,
    retrain) and returns a list of them (docs/sweep.md)."""

    address: str | None = None
    """Ray cluster to use: auto, or HOST:PORT (default: RAY_ADDRESS, else one on this machine)."""
    max_concurrent_trials: int | None = None
    """Trials at a time (default: as many as fit). On a cluster that grows by itself, as many as
    will fit."""
    gpus_per_trial: float | None = None
    """GPUs per trial (default: 1 where there are GPUs, else 0)."""
    cpus_per_trial: int | None = None
    """CPUs per trial (default: 1; with GPUs, a GPU's share, 8 at most)."""
    workers: int = 1
    """Processes that train one network together in the retraining phase, each with the CPUs and
    GPUs of a trial; they share every batch."""

    def __post_init__(self) -> None:
        require(
            not (self.resume and self.fresh),
            "--resume continues a sweep and --fresh starts one: give one of them",
        )
        for name in ("max_concurrent_trials", "cpus_per_trial", "workers"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, but got {value}")
        require(
            len(self.folder_name) <= MAX_NAME,
            f"name must have at most {MAX_NAME} characters, but has {len(self.folder_name)}",
        )
        batch = self.plan.retrain.batch_size
        require(
            batch % self.workers == 0,
            f"workers must divide --retrain.batch-size {batch}, of which each has a share, but got "
            f"{self.workers}",
        )
        require(
            self.gpus_per_trial is None or 0 <= self.gpus_per_trial < math.inf,
            f"gpus_per_trial must be 0 or more, but got {self.gpus_per_trial}",
        )

    @property
    def folder_name(self) -> str:
        return self.name or self.preset


def parse_options(argv: Sequence[str], prog: str = "python tune/run_search.py") -> SweepOptions:
    """The options of a command line.

    Raises:
        ValueError: an unknown preset, or a value that cannot be, in one line.
    """
    argv, several = _without_several(argv)
    preset = preset_from_argv(argv, DEFAULT_PRESET)
    given = _given(argv)
    if "retrain.model" in given:
        raise ValueError(
            "--retrain.model: the sweep itself chooses what to retrain (--retrain-top); to train "
            "one model, use `python -m dasvit retrain --model`"
        )
    if "retrain.held_out" in given:
        raise ValueError(
            "--retrain.held-out: what is retrained sees all training images and is tested on the "
            "test images; the ladder holds out --val-fraction of them by itself"
        )
    numbers = {name: _number(argv, name) for name in preset.search.method.tied}
    method = preset.search.method.make_room({n: v for n, v in numbers.items() if v is not None})
    search = dataclasses.replace(preset.search, method=method)
    plan = Plan(
        search=search,
        retrain=preset.retrain,
        score_epochs=preset.score_epochs,
        rungs=preset.rungs,
    )
    default = SweepOptions(preset=preset.name, plan=plan)
    options = parse(SweepOptions, argv, default=default, prog=prog)
    plan = options.plan
    most = plan.num_searches * (1 + plan.proposals) + (plan.num_random if plan.climbs else 0)
    require(
        "retrain_top" not in given or plan.retrain_top <= most,
        f"--retrain-top {plan.retrain_top}: {plan.num_samples} configurations × {plan.seeds} seeds"
        f"{f' × {1 + plan.proposals} encoders' if plan.proposals else ''} and {plan.num_random} "
        f"random encoders are at most {most}; ask for fewer, or raise "
        "--num-samples",
    )
    alone = "grace_epochs" in given and plan.scheduler == "none"
    require(not alone, "--grace-epochs is ASHA's: add --scheduler asha")
    require(
        "random_baseline" not in given or plan.strategy == "gradient",
        "--search random takes no --random-baseline: all its encoders are random",
    )
    search = dataclasses.replace(plan.search, data=_absolute(plan.search.data))
    follow = {n for n in _SAME_DATA if f"retrain.data.{n}" not in given}
    data = {n: getattr(search.data, n) for n in follow & given | follow & {"data_dir"}}
    retrain_data = _absolute(dataclasses.replace(plan.retrain.data, **data))
    _check_held_out(search.data, retrain_data)
    _check_sizes(search.data, retrain_data, given)
    # What a search finds may hold operations of its plugins.
    plugins = tuple(dict.fromkeys((*search.plugins, *plan.retrain.plugins)))
    retrain = dataclasses.replace(plan.retrain, data=retrain_data, plugins=plugins)
    load_plugins(search.plugins)  # they may register methods
    methods = method_names() if several == ["all"] else tuple(dict.fromkeys(several))
    for name in methods:
        get_method(name)
    plan = dataclasses.replace(plan, search=search, retrain=retrain, methods=methods)
    outer = dict.fromkeys(name for start in plan.starts for name in start.method.outer)
    plan = dataclasses.replace(plan, fixed=tuple(name for name in outer if name in given))
    return dataclasses.replace(options, plan=plan)


def _without_several(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line without a `--method` of several, and their names: other options are then
    those of the default method, which the others take over as far as they know them."""
    words = list(argv)
    for i, (word, after) in enumerate(itertools.pairwise([*words, ""])):
        flag, has_value, value = word.partition("=")
        names = (value if has_value else after).split(",")
        if flag == "--method" and (len(names) > 1 or names == ["all"]):
            return [*words[:i], *words[i + (1 if has_value else 2) :]], names
    return words, []


_SAME_DATA = ("dataset", "data_dir", "download", "test_fraction", "in_memory", "num_workers")
"""Settings of the search's data that are the retraining's too, unless it has its own."""


def _check_held_out(search: DataConfig, retrain: DataConfig) -> None:
    """Refuse a search that sees images on which the retraining will test."""
    same = (search.dataset, search.data_dir) == (retrain.dataset, retrain.data_dir)
    if same and search.test_fraction != retrain.test_fraction:
        raise ValueError(
            f"--test-fraction {search.test_fraction:g} and --retrain.data.test-fraction "
            f"{retrain.test_fraction:g} split the same images differently: the search would choose "
            "by images of the test set; give both the same"
        )


def _check_sizes(search: DataConfig, retrain: DataConfig, given: Collection[str]) -> None:
    """Refuse images of another size in one phase, unless both sizes are given."""
    flags = {"image_size": "--image-size", "retrain.data.image_size": "--retrain.data.image-size"}
    missing = [flag for name, flag in flags.items() if name not in given]
    if len(missing) == 1 and search.image_size != retrain.image_size:
        raise ValueError(
            f"the search would see images of {search.image_size} pixels and the retraining of "
            f"{retrain.image_size}; give {missing[0]} too"
        )


def _given(argv: Sequence[str]) -> set[str]:
    """The flags on a command line, as names of settings: `--token-ratio=1` is token_ratio."""
    flags = (arg[2:].partition("=")[0] for arg in argv if arg.startswith("--"))
    return {flag.replace("-", "_") for flag in flags}


def _number(argv: Sequence[str], name: str) -> float | None:
    """The number given for a setting; None without one, or for what the parser will refuse."""
    found = None
    for arg, after in itertools.pairwise([*argv, ""]):
        flag, has_value, value = arg.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name:
            try:
                found = float(value if has_value else after)
            except ValueError:
                return None
    return found if found is not None and math.isfinite(found) else None


def _absolute(data: DataConfig) -> DataConfig:
    # Workers have other working folders.
    if data.data_dir is None:
        return data
    return dataclasses.replace(data, data_dir=str(Path(data.data_dir).expanduser().resolve()))
