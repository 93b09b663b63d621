"""What a sweep computes, as settings that sweep.json keeps. No Ray."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dasvit.commands.arguments import Arg
from dasvit.methods import get_method
from dasvit.run.plugins import load_plugins
from dasvit.run.settings import Range, check_settings, config_from_dict, config_to_dict, require
from dasvit.search.config import SearchConfig
from dasvit.training.config import RetrainConfig
from tune.objectives import ACCURACY

if TYPE_CHECKING:
    from dasvit.spaces.cell.genotype import Genotype

__all__ = ["Plan"]

MOST = 100_000
"""Trials of a phase, at most."""

_Some = Annotated[int, Range(f"[1, {MOST}]")]
_Any = Annotated[int, Range(f"[0, {MOST}]")]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep computes."""

    strategy: Annotated[Literal["gradient", "random"], Arg(flag="search")] = "gradient"
    """gradient searches by the alphas; random draws num_samples encoders uniformly from the same
    space, which climb the same ladder: what a search has to beat."""
    num_samples: _Some = 16
    """Configurations to try; each is a trial on every seed. A larger number extends a sweep."""
    seeds: _Some = 2
    """Seeds per configuration: --seed and the numbers after it."""
    metric: Literal["trained_accuracy", "discretised_accuracy", "supernet_accuracy"] = (
        "trained_accuracy"
    )
    """Search score, which Optuna maximises: the class-balanced accuracy of the derived encoder
    after score_epochs of training from scratch; or the accuracy of the derived network with
    inherited weights, or of the supernet, which hardly rank (docs/results.md)."""
    score_epochs: Annotated[int, Range("[1, inf)")] = 4
    """Epochs of the training that trained_accuracy is measured after."""
    rungs: tuple[Annotated[int, Range("[1, inf)")], ...] = (12,)
    """Epochs of the ladder's further rungs, which only trained_accuracy has. On each the best
    encoders of the one before, found and random ones, are trained for longer; the order on the last
    rung is the ranking. No rung is longer than the retraining."""
    reduction_factor: Annotated[int, Range("[2, inf)")] = 3
    """One encoder in so many goes on to each further rung, retrain_top at least; ASHA likewise lets
    one search in so many go on."""
    retrain_top: _Some = 2
    """Distinct encoders to retrain from scratch on all training images, the best of the ranking."""
    random_baseline: _Any = 4
    """Encoders to draw uniformly from the same space: they climb the ladder beside those that a
    gradient search found, and are all retrained; the report states the gain over them."""
    proposals: _Any = 0
    """Encoders that each search proposes beside the derived one, drawn by the weights that it ended
    with; they climb the ladder too."""
    prefer: Literal["accuracy", "small"] = "accuracy"
    """Which becomes best/: the first of the ranking; or the cheapest encoder whose accuracy is
    within one standard error of the first one's. The report names both."""
    cheap_by: Literal["macs", "params", "latency"] = "macs"
    """What cheap means: multiply-adds, parameters, or the time of one image alone, measured after
    each training of the ladder (its shortest)."""
    retrain_seeds: _Any = 0
    """Seeds per retraining: --retrain.seed and the numbers after it; 0 is as many as --seeds."""
    scheduler: Literal["none", "asha"] = "none"
    """asha stops searches early whose supernet lags behind the others' at the same epoch. Needs
    --metric supernet_accuracy; which ones it stops depends on timing."""
    grace_epochs: _Any = 0
    """Epochs that ASHA leaves every search; 0 is all epochs over reduction_factor squared."""
    objectives: tuple[Literal["accuracy", "macs", "params"], ...] = (ACCURACY,)
    """accuracy; with macs or params after it, Optuna also minimises what the encoders cost at the
    retraining's size, and the Pareto front is retrained."""
    space: Annotated[str | None, Arg(metavar="FILE.py:function")] = None
    """Your own outer space, called as `outer_space` in tune/space.py is (docs/sweep.md)."""

    search: SearchConfig
    """Settings of the search. The sweep varies those that its method names; one that is given
    here stays as given."""
    retrain: Annotated[RetrainConfig, Arg(prefix="retrain.")]
    """Settings of the retraining."""
    fixed: Annotated[tuple[str, ...], Arg(hidden=True)] = ()
    """Outer settings that the sweep leaves alone (those given on the command line)."""
    methods: Annotated[tuple[str, ...], Arg(hidden=True)] = ()
    """Methods that take turns, configuration by configuration; without names the one of `search`
    does all."""

    def __post_init__(self) -> None:
        check_settings(self)
        require(
            self.num_samples * self.seeds <= MOST,
            f"num_samples times seeds must be at most {MOST}, but got {self.num_samples} times "
            f"{self.seeds}",
        )
        objectives = " ".join(self.objectives)
        require(
            self.objectives[:1] == (ACCURACY,)
            and len(set(self.objectives)) == len(self.objectives),
            f"objectives must begin with accuracy and name each once, but got {objectives!r}",
        )
        searching = {
            "--scheduler": self.scheduler != "none",
            "--objectives": len(self.objectives) > 1,
            "--space": self.space,
        }
        flag = next((name for name, value in searching.items() if value), None)
        require(
            self.strategy == "gradient" or flag is None,
            f"--search random takes no {flag}: it draws --num-samples encoders and searches "
            "nothing; leave it away, or use --search gradient",
        )
        require(
            not self.methods or (self.strategy == "gradient" and self.space is None),
            "several methods take neither --space, which is of one method, nor --search random",
        )
        require(
            not self.methods or self.climbs,
            f"--method with several methods and --metric {self.metric}: weights of different "
            "methods do not compare; leave --metric away",
        )
        require(
            len(self.methods) <= self.num_samples,
            f"{len(self.methods)} methods take turns: --num-samples must be at least "
            f"{len(self.methods)}, but got {self.num_samples}",
        )
        require(
            all(a < b for a, b in itertools.pairwise(self.rungs)),
            f"rungs must grow, but got {self.rungs}",
        )
        require(
            self.climbs or self.strategy == "gradient",
            f"--search random with --metric {self.metric}: it searches nothing that has one; leave "
            "--metric away",
        )
        require(
            not self.proposals or (self.climbs and self.strategy == "gradient"),
            "--proposals are draws of a search, and climb the ladder: they need --search gradient "
            "and --metric trained_accuracy",
        )
        require(
            self.prefer == "accuracy" or (self.climbs and len(self.objectives) == 1),
            "--prefer small goes by the accuracy on the ladder's last rung: it needs --metric "
            "trained_accuracy, and no other --objectives than accuracy",
        )
        if self.scheduler != "none":
            self._check_scheduler()

    def _check_scheduler(self) -> None:
        epochs = self.search.total_epochs
        require(
            len(self.objectives) == 1,
            f"--objectives {' '.join(self.objectives)} with --scheduler {self.scheduler}: a search "
            "that is stopped early has no encoder, and so no cost; give one of them",
        )
        require(epochs > 1, "--scheduler asha: a search of one epoch cannot be stopped early")
        require(
            self.grace_epochs < epochs,
            f"grace_epochs must be less than a search's {epochs} epochs, but got "
            f"{self.grace_epochs}",
        )
        require(
            self.search.eval_epochs == 1,
            f"--scheduler asha with --eval-epochs {self.search.eval_epochs}: ASHA compares "
            "searches by the accuracy of every epoch; leave it at 1",
        )
        require(
            self.metric == "supernet_accuracy",
            f"--scheduler asha with --metric {self.metric}: ASHA compares searches by their "
            "supernet, epoch by epoch; add --metric supernet_accuracy",
        )

    @property
    def first_rung(self) -> int:
        """The epoch from which ASHA may stop a search."""
        return self.grace_epochs or max(1, self.search.total_epochs // self.reduction_factor**2)

    @property
    def num_configs(self) -> int:
        """Configurations of the search: none in a random search."""
        return self.num_samples if self.strategy == "gradient" else 0

    @property
    def plain_darts(self) -> int | None:
        """The configuration that is plain DARTS; none in a sweep of a single other one, or where
        methods take turns."""
        if self.methods:
            return None
        if self.search == self.search.plain_darts:
            return 0
        return 1 if self.num_configs > 1 else None

    @property
    def starts(self) -> tuple[SearchConfig, ...]:
        """What the configurations begin from, in turn: the search by each method."""
        if not self.methods:
            return (self.search,)
        kinds = map(get_method, self.methods)
        return tuple(
            dataclasses.replace(self.search, method=kind.like(self.search.method)) for kind in kinds
        )

    def start(self, config_index: int) -> SearchConfig:
        """The settings that the draw of a configuration is put into."""
        if config_index == self.plain_darts:
            return self.search.plain_darts
        return self.starts[config_index % len(self.starts)]

    @property
    def num_searches(self) -> int:
        return self.num_configs * self.seeds

    @property
    def num_random(self) -> int:
        """Encoders drawn at random."""
        return self.num_samples if self.strategy == "random" else self.random_baseline

    @property
    def num_compared(self) -> int:
        """Of those, the ones that are retrained whatever their rank."""
        return self.random_baseline if self.strategy == "gradient" else 0

    @property
    def climbs(self) -> bool:
        """Whether encoders are ranked by short trainings rather than by what a search measured."""
        return self.metric == "trained_accuracy"

    @property
    def ladder(self) -> tuple[int, ...]:
        """Epochs of each rung, the search score's first; empty where nothing climbs. With several
        objectives a front is chosen, for which the first rung is all."""
        if not self.climbs:
            return ()
        rungs = [self.score_epochs]
        if len(self.objectives) == 1:
            rungs += [epochs for epochs in self.rungs if epochs > self.score_epochs]
        return tuple(dict.fromkeys(min(epochs, self.retrain.epochs) for epochs in rungs))

    def rung(self, epochs: int) -> RetrainConfig:
        """A training of so many epochs on the weight half, tested on the alpha half: the halves of
        a search with the same seed. The share of warm-up epochs is the retraining's, rounded up."""
        whole = self.retrain
        warmup = min(math.ceil(whole.warmup_epochs * epochs / whole.epochs), epochs - 1)
        held_out = self.search.val_fraction
        return dataclasses.replace(whole, epochs=epochs, warmup_epochs=warmup, held_out=held_out)

    @property
    def num_retrainings(self) -> int:
        """At most: a found encoder may be drawn too, and a search may find few."""
        drawn = 0 if self.num_compared else self.num_random
        found = min(self.retrain_top, self.num_searches * (1 + self.proposals) + drawn)
        return (found + self.num_compared + 1) * len(self.retraining_seeds)

    @property
    def search_seeds(self) -> range:
        return range(self.search.seed, self.search.seed + self.seeds)

    @property
    def retraining_seeds(self) -> range:
        first = self.retrain.seed
        return range(first, first + (self.retrain_seeds or self.seeds))

    def random_genotypes(self) -> "tuple[Genotype, ...]":
        """The encoders drawn at random; the search's seed decides.

        Raises:
            ValueError: the space does not hold that many.
        """
        return _random_genotypes(self.search, self.num_random)

    def models(self, chosen: Sequence[str], random: "Sequence[Genotype]") -> tuple[str, ...]:
        """What is retrained, each once, by canonical hash: the chosen encoders, the random ones
        that they are compared with, the plain ViT."""
        from dasvit.training.networks import VIT

        drawn = [genotype.canonical_hash for genotype in random[: self.num_compared]]
        return tuple(dict.fromkeys([*chosen, *drawn, VIT]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the number of retraining seeds that the default stands for."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        retrain = config_to_dict(self.retrain)
        del retrain["model"]  # each retraining has one of its own
        return values | {
            "search": config_to_dict(self.search),
            "retrain": retrain,
            "retrain_seeds": len(self.retraining_seeds),
            "fixed": list(self.fixed),
            "objectives": list(self.objectives),
            "rungs": list(self.rungs),
            "methods": list(self.methods),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Plan":
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key that is missing or unknown, or a value that fails the checks.
        """
        from dasvit.training.networks import VIT

        try:
            load_plugins(values["search"].get("plugins", ()))  # they may hold its method
            return cls(
                **values
                | {
                    "search": config_from_dict(SearchConfig, values["search"]),
                    "retrain": config_from_dict(RetrainConfig, {**values["retrain"], "model": VIT}),
                    "fixed": tuple(values["fixed"]),
                    "objectives": tuple(values["objectives"]),
                    "rungs": tuple(values["rungs"]),
                    "methods": tuple(values.get("methods", ())),
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"sweep.json: malformed settings ({type(error).__name__}: {error})"
            ) from None


@functools.lru_cache(maxsize=8)
def _random_genotypes(search: SearchConfig, count: int) -> "tuple[Genotype, ...]":
    from dasvit.spaces.cell.sample import distinct_random_genotypes

    return distinct_random_genotypes(search.space, count, seed=search.seed)
