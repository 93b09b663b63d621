"""The command line of the sweep: preset first, then every setting by its own name."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from dasvit.commands.arguments import Arg, parse, preset_from_argv
from dasvit.data.config import DataConfig
from dasvit.presets import DEFAULT_PRESET
from dasvit.search.config import SearchConfig
from dasvit.training.config import RetrainConfig
from tune.objectives import ACCURACY, parse_objectives
from tune.plan import Plan, Scheduler, Strategy

__all__ = ["SweepOptions", "parse_options"]

MAX_TRIALS = 100_000

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
        *("search", "retrain_top", "random_baseline", "retrain_seeds", "storage_path", "name"),
        *("resume", "fresh", "address", "max_concurrent_trials", "gpus_per_trial"),
        *("cpus_per_trial", "dim", "stage_epochs", "token_ratio", "retrain.dim", "retrain.depth"),
        *("retrain.epochs",),
    )

    preset: Annotated[str, Arg(metavar="NAME")] = DEFAULT_PRESET
    """Where all settings start: digits, fashion_mnist, cifar10 or imagenet100;
    with _modern retrained by today's recipe."""
    method: Annotated[str, Arg(metavar="NAME")] = "dasvit"
    """How to search: dasvit, darts, or one that a module of --plugins registers."""
    strategy: Annotated[Strategy, Arg(flag="search")] = "gradient"
    """gradient searches by the alphas; random draws num_samples encoders uniformly from the same
    space and retrains them all: what a search has to beat."""
    num_samples: int = 16
    """Configurations to try; each is a trial on every seed."""
    seeds: int = 2
    """Seeds a configuration: --seed and the numbers after it."""
    metric: Literal["discretised_accuracy", "supernet_accuracy"] = "discretised_accuracy"
    """Validation score that Optuna maximises and that ranks: of the derived network with inherited
    weights, or of the supernet."""
    retrain_top: int = 3
    """Distinct encoders to retrain from scratch, the best by the mean search score."""
    random_baseline: int = 0
    """Encoders to draw uniformly and retrain beside those of a gradient search; the report states
    the gain of the best found one over them."""
    check_seeds: int = 0
    """Fresh seeds on which the best retrain_top configurations are searched again at the end; the
    report shows their score before and after. The ranking stays."""
    retrain_seeds: int | None = None
    """Seeds a retraining: --retrain.seed and the numbers after it (default: as --seeds)."""
    scheduler: Scheduler = "none"
    """asha stops searches early whose supernet lags behind the others' at the same epoch. Needs
    --metric supernet_accuracy; which ones it stops depends on timing."""
    grace_epochs: int | None = None
    """Epochs that ASHA leaves every search (default: all epochs over reduction_factor squared)."""
    reduction_factor: int | None = None
    """ASHA lets one search in so many go on at each of its rungs (default: 3)."""
    objectives: str = ACCURACY
    """accuracy; or with macs or params after it (accuracy,macs), Optuna also minimises what the
    encoders cost at the retraining's size, and the Pareto front is retrained."""
    space: str | None = None
    """Your own outer space, FILE.py:function, called as `outer_space` in tune/space.py is
    (docs/sweep.md)."""

    storage_path: str = "./runs"
    """Folder for results; on a cluster one that all nodes share."""
    name: str | None = None
    """Folder of this sweep in it (default: the preset's name). The same command continues it."""
    resume: bool = False
    """Continue, as the same command does anyway, and refuse to start where nothing is."""
    fresh: bool = False
    """Start anew: a sweep of that name is moved aside, never deleted."""

    callback: str | None = None
    """Tune callbacks of your own, FILE.py:function, which takes a phase's name (search, check,
    retrain) and returns a list of them (docs/sweep.md)."""

    address: str | None = None
    """Ray cluster to use: auto, or HOST:PORT (default: RAY_ADDRESS, else one on this machine)."""
    max_concurrent_trials: int | None = None
    """Trials at a time (default: as many as fit). On a cluster that grows by itself, as many as
    will fit."""
    gpus_per_trial: float | None = None
    """GPUs a trial (default: 1 where there are GPUs, else 0)."""
    cpus_per_trial: int | None = None
    """CPUs a trial (default: 1; with GPUs, a GPU's share, 8 at most)."""
    workers: int = 1
    """Processes that train one network together in the retraining phase, each with the CPUs and
    GPUs of a trial; they share every batch."""

    search: SearchConfig
    """Settings of the search. The sweep varies those that its method names; one that is given
    here stays as given."""
    retrain: Annotated[RetrainConfig, Arg(prefix="retrain.")]
    """Settings of the retraining."""

    fixed: Annotated[tuple[str, ...], Arg(hidden=True)] = ()
    """Outer settings that the sweep leaves alone (from the command line)."""

    def __post_init__(self) -> None:
        if self.resume and self.fresh:
            raise ValueError("--resume continues a sweep and --fresh starts one: give one of them")
        for name in ("num_samples", "seeds", "retrain_top", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{_flag(name)} must be at least 1, but got {getattr(self, name)}")
        for name in ("retrain_seeds", "max_concurrent_trials", "cpus_per_trial"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{_flag(name)} must be at least 1, but got {value}")
        if len(self.folder_name) > MAX_NAME:
            raise ValueError(
                f"--name must have at most {MAX_NAME} characters, but has {len(self.folder_name)}"
            )
        if self.retrain.batch_size % self.workers:
            raise ValueError(
                f"--workers {self.workers} must divide --retrain.batch-size "
                f"{self.retrain.batch_size}: they share every batch"
            )
        if self.num_trials > MAX_TRIALS:
            raise ValueError(
                f"--num-samples times --seeds must be at most {MAX_TRIALS}, but got "
                f"{self.num_samples} times {self.seeds}"
            )
        if (self.retrain_seeds or 0) > MAX_TRIALS:
            raise ValueError(
                f"--retrain-seeds must be at most {MAX_TRIALS}, but got {self.retrain_seeds}"
            )
        if not 0 <= self.random_baseline <= MAX_TRIALS:
            raise ValueError(
                f"--random-baseline must be 0 to {MAX_TRIALS}, but got {self.random_baseline}"
            )
        if not 0 <= self.check_seeds <= MAX_TRIALS:
            raise ValueError(f"--check-seeds must be 0 to {MAX_TRIALS}, but got {self.check_seeds}")
        searching = {
            "--scheduler": self.scheduler != "none",
            "--objectives": len(parse_objectives(self.objectives)) > 1,
            "--random-baseline": self.random_baseline,
            "--check-seeds": self.check_seeds,
            "--space": self.space,
        }
        flag = next((name for name, value in searching.items() if value), None)
        if self.strategy == "random" and flag:
            raise ValueError(
                f"--search random takes no {flag}: it draws --num-samples encoders and searches "
                "nothing; leave it away, or use --search gradient"
            )
        self._check_scheduler()
        several = len(parse_objectives(self.objectives)) > 1
        if several and self.scheduler != "none":
            raise ValueError(
                f"--objectives {self.objectives} with --scheduler {self.scheduler}: a search that "
                "is stopped early has no encoder, and so no cost; give one of them"
            )
        if self.gpus_per_trial is not None and not 0 <= self.gpus_per_trial < float("inf"):
            raise ValueError(f"--gpus-per-trial must be 0 or more, but got {self.gpus_per_trial}")

    def _check_scheduler(self) -> None:
        factor = self.reduction_factor
        if factor is not None and factor < 2:
            raise ValueError(f"--reduction-factor must be at least 2, but got {factor}")
        epochs, grace = self.search.total_epochs, self.grace_epochs
        if grace is not None and not 1 <= grace < epochs:
            raise ValueError(
                f"--grace-epochs must be 1 to {epochs - 1}, less than a search's {epochs} epochs, "
                f"but got {grace}"
            )
        for name in ("grace_epochs", "reduction_factor"):
            if self.scheduler == "none" and getattr(self, name) is not None:
                raise ValueError(f"{_flag(name)} is ASHA's: add --scheduler asha")
        if self.scheduler == "none":
            return
        if epochs < 2:
            raise ValueError("--scheduler asha: a search of one epoch cannot be stopped early")
        if self.search.eval_epochs != 1:
            raise ValueError(
                f"--scheduler asha with --eval-epochs {self.search.eval_epochs}: ASHA "
                "compares searches by the accuracy of every epoch; leave it at 1"
            )
        if self.metric != "supernet_accuracy":
            raise ValueError(
                f"--scheduler asha with --metric {self.metric}: ASHA compares searches by their "
                "supernet, epoch by epoch; add --metric supernet_accuracy"
            )

    @property
    def folder_name(self) -> str:
        return self.name or self.preset

    @property
    def search_seeds(self) -> range:
        return range(self.search.seed, self.search.seed + self.seeds)

    @property
    def retraining_seeds(self) -> range:
        first = self.retrain.seed
        return range(first, first + (self.retrain_seeds or self.seeds))

    @property
    def num_trials(self) -> int:
        return self.num_samples * self.seeds

    def plan(self, space: str | None = None) -> Plan:
        """What the sweep computes; `space` identifies the user's own outer space."""
        return Plan(
            search=self.search,
            retrain=self.retrain,
            fixed=self.fixed,
            num_samples=self.num_samples,
            seeds=self.seeds,
            metric=self.metric,
            retrain_top=self.retrain_top,
            retrain_seeds=len(self.retraining_seeds),
            strategy=self.strategy,
            random_baseline=self.random_baseline,
            check_seeds=self.check_seeds,
            space=space,
            objectives=parse_objectives(self.objectives),
            **self._asha(),
        )

    def _asha(self) -> dict[str, Any]:
        if self.scheduler == "none":
            return {}
        factor = self.reduction_factor or 3
        return {
            "scheduler": self.scheduler,
            "grace_epochs": self.grace_epochs or max(1, self.search.total_epochs // factor**2),
            "reduction_factor": factor,
        }


def parse_options(argv: Sequence[str], prog: str = "python tune/run_search.py") -> SweepOptions:
    """The options of a command line.

    Raises:
        ValueError: an unknown preset, or a value that cannot be, in one line.
    """
    preset = preset_from_argv(argv, DEFAULT_PRESET)
    given = _given(argv)
    if "retrain.model" in given:
        raise ValueError(
            "--retrain.model: the sweep itself chooses what to retrain (--retrain-top); to train "
            "one model, use `python -m dasvit retrain --model`"
        )
    numbers = {name: _number(argv, name) for name in preset.search.method.tied}
    method = preset.search.method.make_room({n: v for n, v in numbers.items() if v is not None})
    search = dataclasses.replace(preset.search, method=method)
    default = SweepOptions(preset=preset.name, search=search, retrain=preset.retrain)
    options = parse(SweepOptions, argv, default=default, prog=prog)
    if "retrain_top" in given and options.retrain_top > options.num_trials:
        raise ValueError(
            f"--retrain-top {options.retrain_top}: {options.num_samples} configurations × "
            f"{options.seeds} seeds find at most {options.num_trials} encoders; ask for fewer, or "
            "raise --num-samples"
        )
    search = dataclasses.replace(options.search, data=_absolute(options.search.data))
    follow = {n for n in _SAME_DATA if f"retrain.data.{n}" not in given}
    data = {n: getattr(search.data, n) for n in follow & given | follow & {"data_dir"}}
    retrain_data = _absolute(dataclasses.replace(options.retrain.data, **data))
    _check_held_out(search.data, retrain_data)
    _check_sizes(search.data, retrain_data, given)
    # What a search finds may hold operations of its plugins.
    plugins = tuple(dict.fromkeys((*search.plugins, *options.retrain.plugins)))
    retrain = dataclasses.replace(options.retrain, data=retrain_data, plugins=plugins)
    fixed = tuple(name for name in search.method.outer if name in given)
    return dataclasses.replace(options, search=search, retrain=retrain, fixed=fixed)


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


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _absolute(data: DataConfig) -> DataConfig:
    # Workers have other working folders.
    if data.data_dir is None:
        return data
    return dataclasses.replace(data, data_dir=str(Path(data.data_dir).expanduser().resolve()))
