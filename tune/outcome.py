"""A sweep as far as it has come: its trials, what ranks them, and the model to keep. Pure."""

from dataclasses import dataclass, field

from dasvit.methods import DARTS
from dasvit.spaces.cell.genotype import Genotype
from tune.aggregate import (
    ConfigSummary,
    GenotypeSummary,
    ModelSummary,
    rank_configs,
    rank_genotypes,
    summarize_model,
)
from tune.objectives import ACCURACY, front, spread_out
from tune.trials import Failure, RetrainTrial, SearchTrial, StoppedTrial, config_index

__all__ = ["VIT", "Outcome", "best_retraining"]

VIT = "vit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A sweep as far as it has come.

    Attributes:
        name: of the sweep.
        dataset, retrain_dataset: searched and retrained on.
        metric: that ranks.
        operations: candidates of the search.
        method: of the search.
        edges_per_node: that its derivation keeps.
        search, retrained: finished trials.
        not_searched, not_retrained: the others.
        stopped: searches that the scheduler ended early; they are neither.
        checked, not_checked: searches of the best configurations on fresh seeds; no rank.
        seeds, check_seeds, retrain_seeds: that each of them was asked for; 0 if unknown.
        objectives: accuracy, and what is minimised beside it.
        costs: of the encoders by canonical hash and of "vit", each by objective; empty with one
            objective.
        random: encoders drawn at random, which were or will be retrained too.
        wall: seconds of all runs so far ("search", "retraining", "other", "total") and the
            trials at a time ("concurrent"); empty if unknown.
    """

    name: str
    dataset: str
    retrain_dataset: str
    metric: str
    operations: tuple[str, ...]
    method: DARTS = field(default_factory=DARTS)
    edges_per_node: int = 2
    search: tuple[SearchTrial, ...] = ()
    not_searched: tuple[Failure, ...] = ()
    stopped: tuple[StoppedTrial, ...] = ()
    retrained: tuple[RetrainTrial, ...] = ()
    not_retrained: tuple[Failure, ...] = ()
    checked: tuple[SearchTrial, ...] = ()
    not_checked: tuple[Failure, ...] = ()
    seeds: int = 0
    check_seeds: int = 0
    retrain_seeds: int = 0
    objectives: tuple[str, ...] = (ACCURACY,)
    costs: dict[str, dict[str, int]] = field(default_factory=dict)
    random: tuple[Genotype, ...] = ()
    wall: dict[str, float] = field(default_factory=dict)

    @property
    def num_searches(self) -> int:
        """Finished or not."""
        return len(self.search) + len(self.stopped) + len(self.not_searched)

    @property
    def failures(self) -> tuple[Failure, ...]:
        return (*self.not_searched, *self.not_checked, *self.not_retrained)

    @property
    def failed(self) -> tuple[Failure, ...]:
        """Those that ended with an error; the other failures have not run to an end."""
        return tuple(failure for failure in self.failures if failure.error is not None)

    @property
    def configs_without_score(self) -> list[int]:
        """Configurations none of whose seeds has finished."""
        scored = {trial.config_index for trial in self.search}
        indices = {config_index(failure.name) for failure in self.not_searched}
        return sorted(indices - scored)

    @property
    def complete(self) -> bool:
        return bool(self.search or self.retrained) and not self.failures

    @property
    def search_interrupted(self) -> bool:
        return any(failure.error is None for failure in self.not_searched)

    @property
    def interrupted(self) -> bool:
        """Trials are left that have not failed. Without a finished search there is nothing to
        retrain, so that retrainings are not waited for."""
        left = self.not_searched if self.not_searched and not self.search else self.failures
        return any(failure.error is None for failure in left)

    @property
    def ranking(self) -> list[GenotypeSummary]:
        """The found encoders, best first; of equal scores the cheaper one."""
        ranked = rank_genotypes(self.search, self.metric)
        return sorted(ranked, key=lambda s: [-v for v in self._values(s)]) if self.costs else ranked

    def _values(self, summary: GenotypeSummary) -> list[float]:
        """Of each objective; larger is better."""
        found = self.costs.get(summary.hash, {})
        mean = getattr(summary, self.metric).mean
        return [mean, *(-found[name] for name in self.objectives[1:])]

    @property
    def front(self) -> list[GenotypeSummary]:
        """The Pareto front of the found encoders, cheapest first; with one objective, the best."""
        if not self.costs:
            return self.ranking[:1]
        names = set(front({s.hash: self._values(s) for s in self.ranking}))
        first = self.objectives[1]
        return sorted(
            (s for s in self.ranking if s.hash in names), key=lambda s: self.costs[s.hash][first]
        )

    def chosen(self, count: int) -> list[GenotypeSummary]:
        """The encoders to retrain, in the order of the ranking: the best; with several objectives,
        the best and others evenly along the front."""
        if not self.costs or not self.ranking:
            return self.ranking[:count]
        names = spread_out([s.hash for s in self.front], count)
        best = self.ranking[0].hash
        if best not in names:  # with two costs it need not be at an end
            names[-1] = best
        return [summary for summary in self.ranking if summary.hash in names]

    def best_configs(self, count: int) -> list[ConfigSummary]:
        """The configurations of the highest mean score, best first; with several objectives those
        that gave the chosen encoders."""
        configs = rank_configs(self.search, self.metric)
        if not self.costs:
            return configs[:count]
        wanted = {summary.trials[0].config_index for summary in self.chosen(count)}
        return [config for config in configs if config.config_index in wanted]

    @property
    def models(self) -> dict[str, ModelSummary]:
        """The retrained models by canonical hash, and "vit"."""
        names = dict.fromkeys(trial.model for trial in self.retrained)
        return {
            name: summarize_model([t for t in self.retrained if t.model == name]) for name in names
        }


def best_retraining(outcome: Outcome) -> RetrainTrial | None:
    """The model to keep: of the encoder with the best search score, the first seed that has
    finished. Not the seed that tests best."""
    if not outcome.search:
        return None
    best = outcome.ranking[0].hash
    candidates = [trial for trial in outcome.retrained if trial.model == best]
    return min(candidates, key=lambda trial: trial.seed, default=None)
