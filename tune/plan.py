"""What a sweep computes, as a value that sweep.json keeps. No Ray."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dasvit.run.plugins import load_plugins
from dasvit.run.settings import config_from_dict, config_to_dict
from dasvit.search.config import SearchConfig
from dasvit.training.config import RetrainConfig
from tune.objectives import ACCURACY

if TYPE_CHECKING:
    from dasvit.spaces.cell.genotype import Genotype

__all__ = ["Plan", "Scheduler", "Strategy"]

Strategy = Literal["gradient", "random"]
Scheduler = Literal["none", "asha"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a sweep computes.

    Attributes:
        search, retrain: where all trials start.
        fixed: outer settings that stay as they are.
        num_samples: configurations; with the random strategy, encoders drawn.
        seeds, retrain_seeds: trials a configuration, retrainings a network.
        metric: that ranks.
        retrain_top: encoders to retrain.
        strategy: gradient (searches, by their alphas) or random (encoders drawn uniformly).
        random_baseline: encoders to draw beside a gradient search.
        check_seeds: fresh seeds on which the best `retrain_top` configurations are searched again.
        scheduler: none, or asha: searches that lag behind the others are stopped early.
        grace_epochs, reduction_factor: of ASHA; 0 without it.
        objectives: accuracy, and what is minimised beside it; see `tune.objectives`.
        space: the user's own outer space: its file, function and content hash; None for ours.
    """

    search: SearchConfig
    retrain: RetrainConfig
    fixed: tuple[str, ...]
    num_samples: int
    seeds: int
    metric: str
    retrain_top: int
    retrain_seeds: int
    strategy: Strategy = "gradient"
    random_baseline: int = 0
    check_seeds: int = 0
    space: str | None = None
    scheduler: Scheduler = "none"
    grace_epochs: int = 0
    reduction_factor: int = 0
    objectives: tuple[str, ...] = (ACCURACY,)

    @property
    def num_configs(self) -> int:
        """Configurations of the search: none in a random search."""
        return self.num_samples if self.strategy == "gradient" else 0

    @property
    def num_searches(self) -> int:
        return self.num_configs * self.seeds

    @property
    def num_random(self) -> int:
        """Encoders drawn at random."""
        return self.num_samples if self.strategy == "random" else self.random_baseline

    @property
    def num_retrainings(self) -> int:
        """At most: a found encoder may be drawn too, and a search may find few."""
        found = min(self.retrain_top, self.num_searches)
        return (found + self.num_random + 1) * self.retrain_seeds

    @property
    def search_seeds(self) -> range:
        return range(self.search.seed, self.search.seed + self.seeds)

    @property
    def fresh_seeds(self) -> range:
        """Of the check: those after the search's."""
        first = self.search_seeds.stop
        return range(first, first + self.check_seeds)

    @property
    def retraining_seeds(self) -> range:
        return range(self.retrain.seed, self.retrain.seed + self.retrain_seeds)

    def random_genotypes(self) -> "tuple[Genotype, ...]":
        """The encoders drawn at random; the search's seed decides.

        Raises:
            ValueError: the space does not hold that many.
        """
        return _random_genotypes(self.search, self.num_random)

    def models(self, chosen: Sequence[str], random: "Sequence[Genotype]") -> tuple[str, ...]:
        """What is retrained, each once, by canonical hash: the chosen found ones, the drawn ones,
        the plain ViT."""
        from dasvit.training.networks import VIT

        drawn = [genotype.canonical_hash for genotype in random]
        return tuple(dict.fromkeys([*chosen[: self.retrain_top], *drawn, VIT]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        retrain = config_to_dict(self.retrain)
        del retrain["model"]  # each retraining has one of its own
        return values | {
            "search": config_to_dict(self.search),
            "retrain": retrain,
            "fixed": list(self.fixed),
            "objectives": list(self.objectives),
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
