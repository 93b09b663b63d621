"""A sweep as far as it has come: its trials, what ranks them, and the model to keep."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dasvit.report.record import read_trace
from dasvit.run.seed import derive_seed
from dasvit.spaces.cell.genotype import Genotype
from dasvit.spaces.cell.space import CellSpace
from dasvit.training.networks import VIT
from tune.objectives import cost, vit_cost
from tune.plan import Plan
from tune.report.aggregate import (
    ConfigSummary,
    EdgeVote,
    GenotypeSummary,
    ModelSummary,
    merge_genotypes,
    rank_configs,
    rank_genotypes,
    rung_score,
    standard_error,
    summarize_models,
    vote,
)
from tune.report.ladder import Rung, climb
from tune.store import ResultFolder
from tune.trial_folder import (
    Failure,
    RetrainTrial,
    SearchTrial,
    StoppedTrial,
    config_index,
    find_retrainings,
    find_searches,
)

__all__ = ["VIT", "Outcome", "best_retraining", "gather", "pareto_front", "spread_out"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A sweep as far as it has come.

    Attributes:
        name: of the sweep.
        plan: what it computes.
        search, retrained: finished trials.
        not_searched, not_retrained: the others.
        stopped: searches that the scheduler ended early; they are neither.
        rungs: of the ladder, as far as it has come.
        costs: of the encoders by canonical hash and of "vit", each by objective; empty with one
            objective.
        random: encoders drawn uniformly. proposed: drawn by the weights of the searches.
        wall: seconds of all runs so far ("search", "retraining", "other", "total") and the
            trials at a time ("concurrent"); empty if unknown.
    """

    name: str
    plan: Plan
    search: tuple[SearchTrial, ...] = ()
    not_searched: tuple[Failure, ...] = ()
    stopped: tuple[StoppedTrial, ...] = ()
    retrained: tuple[RetrainTrial, ...] = ()
    not_retrained: tuple[Failure, ...] = ()
    rungs: tuple[Rung, ...] = ()
    costs: dict[str, dict[str, int]] = field(default_factory=dict)
    random: tuple[Genotype, ...] = ()
    proposed: tuple[Genotype, ...] = ()
    wall: dict[str, float] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """The search score."""
        return self.plan.metric

    @property
    def num_searches(self) -> int:
        """Finished or not."""
        return len(self.search) + len(self.stopped) + len(self.not_searched)

    @property
    def failures(self) -> tuple[Failure, ...]:
        climbing = (failure for rung in self.rungs for failure in rung.left)
        return (*self.not_searched, *climbing, *self.not_retrained)

    @property
    def failed(self) -> tuple[Failure, ...]:
        """Those that ended with an error; the other failures have not run to an end."""
        return tuple(failure for failure in self.failures if failure.error is not None)

    @property
    def configs_without_score(self) -> list[int]:
        """Configurations none of whose seeds has finished."""
        scored = {trial.config_index for trial in self.search}
        return sorted({config_index(failure.name) for failure in self.not_searched} - scored)

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

    @cached_property
    def encoders(self) -> list[GenotypeSummary]:
        """All that were found, and those drawn that have climbed, with their trainings on the rungs
        that are complete."""
        closed = [rung for rung in self.rungs if not rung.interrupted]
        merged = {encoder.hash: encoder for encoder in merge_genotypes(self.search)}
        proposed = {genotype.canonical_hash for genotype in self.proposed}
        for name, genotype in self.drawn.items():
            if any(name in rung.results for rung in closed):
                merged[name] = GenotypeSummary(
                    (), Genotype(genotype.canonical().nodes), proposed=name in proposed
                )
        return [
            dataclasses.replace(
                encoder, rungs=tuple(r.results[name] for r in closed if name in r.results)
            )
            for name, encoder in merged.items()
        ]

    @cached_property
    def ranking(self) -> list[GenotypeSummary]:
        """The encoders, best first, found or drawn; with several objectives, of equal scores the
        cheaper one first. Without a ladder only those that were found."""
        ranked = rank_genotypes(self.encoders, self.metric)
        return sorted(ranked, key=lambda s: [-v for v in self._values(s)]) if self.costs else ranked

    @cached_property
    def as_good(self) -> list[GenotypeSummary]:
        """The encoders on the last rung whose accuracy is within one standard error of the first
        one's, cheapest first (in the order of the ranking where what one costs is not known);
        without a ladder the first alone."""
        if not self.ranking or not self.ranking[0].rungs or self.costs:
            return self.ranking[:1]
        first = self.ranking[0].rungs
        least = rung_score(first[-1]).mean - standard_error(first[-1])
        close = [
            encoder
            for encoder in self.ranking
            if len(encoder.rungs) == len(first) and rung_score(encoder.rungs[-1]).mean >= least
        ]
        prices = {encoder.hash: self.price(encoder) for encoder in close}
        if math.inf in prices.values():
            return close
        return sorted(close, key=lambda encoder: prices[encoder.hash])

    def price(self, encoder: GenotypeSummary) -> float:
        """What an encoder on the ladder costs, by `Plan.cheap_by`; a latency in seconds, the
        shortest of its trainings on the rung that it has reached, or infinity where it was not
        measured."""
        if self.plan.cheap_by != "latency":
            return self.costs_of(encoder.hash)[self.plan.cheap_by]
        known = [r.latency_seconds for r in encoder.rungs[-1] if r.latency_seconds is not None]
        return min(known, default=math.inf)  # whatever else the machine did, adds to it

    def costs_of(self, name: str) -> dict[str, int]:
        """What an encoder, by canonical hash, or "vit" costs at the retraining's size
        (`tune.objectives.cost`)."""
        if name == VIT:
            return vit_cost(self.plan.retrain)
        found = {encoder.hash: encoder.genotype for encoder in self.encoders}
        return cost(found.get(name) or self.drawn[name], self.plan.retrain)

    @property
    def climbed(self) -> list[RetrainTrial]:
        """The finished trainings of the ladder; not those that are part of a search."""
        results = (own for rung in self.rungs for own in rung.results.values())
        return [t for own in results for t in own if isinstance(t, RetrainTrial)]

    @property
    def winner(self) -> GenotypeSummary | None:
        """The encoder whose model is kept, by --prefer."""
        preferred = self.as_good if self.plan.prefer == "small" else self.ranking
        return preferred[0] if preferred else None

    @cached_property
    def best_found(self) -> GenotypeSummary | None:
        """The first of the ranking that a search found or proposed."""
        return next((encoder for encoder in self.ranking if encoder.of_search), None)

    def _values(self, summary: GenotypeSummary) -> list[float]:
        """Of each objective; larger is better."""
        costs = [self.costs[summary.hash][name] for name in self.plan.objectives[1:]]
        return [summary.score(self.metric).mean, *(-cost for cost in costs)]

    @cached_property
    def front(self) -> list[GenotypeSummary]:
        """The Pareto front of the found encoders, cheapest first; with one objective, the best."""
        if not self.costs:
            return self.ranking[:1]
        names = pareto_front({s.hash: self._values(s) for s in self.ranking})
        first = self.plan.objectives[1]
        on_it = [s for s in self.ranking if s.hash in names]
        return sorted(on_it, key=lambda s: self.costs[s.hash][first])

    def chosen(self, count: int) -> list[GenotypeSummary]:
        """The encoders to retrain, in the order of the ranking, beside the random ones, which all
        are: the best, first of them the one to keep, the first that a search found, the first of
        all and the cheapest that is as good; with several objectives, the best and others evenly
        along the front."""
        if not self.costs or not self.ranking:
            wanted = (self.winner, self.best_found, *self.ranking[:1], *self.as_good[:1])
            compared = {g.canonical_hash for g in self.random[: self.plan.num_compared]}
            names = dict.fromkeys(encoder.hash for encoder in (*wanted, *self.ranking) if encoder)
            own = [name for name in names if name not in compared][:count]
            return [encoder for encoder in self.ranking if encoder.hash in own]
        names = spread_out([s.hash for s in self.front], count)
        best = self.ranking[0].hash
        if best not in names:  # with two costs it need not be at an end
            names[-1] = best
        return [summary for summary in self.ranking if summary.hash in names]

    @cached_property
    def configs(self) -> list[ConfigSummary]:
        """The proposed configurations, best first."""
        return rank_configs(self.search, self.metric)

    @cached_property
    def models(self) -> dict[str, ModelSummary]:
        """The retrained models by canonical hash, and "vit"."""
        return summarize_models(self.retrained)

    @property
    def largest_class(self) -> float | None:
        """Share of the test images in their largest class (ratio), where a retraining knows it."""
        known = (trial.largest_class for trial in self.retrained)
        return next((share for share in known if share is not None), None)

    @property
    def best_is_one_answer(self) -> bool:
        """Whether the encoder to keep, trained, is no better than one answer to all images."""
        found = self.models.get(self.winner.hash) if self.winner else None
        share = self.largest_class
        return found is not None and share is not None and found.score("test_top1").mean <= share

    @cached_property
    def drawn(self) -> dict[str, Genotype]:
        """The encoders that were drawn, uniformly or by weights, and that no search derived, by
        canonical hash."""
        ranked = {trial.genotype.canonical_hash for trial in self.search}
        drawn = {genotype.canonical_hash: genotype for genotype in (*self.random, *self.proposed)}
        return {name: genotype for name, genotype in drawn.items() if name not in ranked}

    @cached_property
    def votes(self) -> list[EdgeVote]:
        """What the searches agree on, edge by edge."""
        search = self.plan.search
        genotypes = [trial.genotype for trial in self.search]
        return vote(genotypes, search.space.operations, edges_per_node=search.space.edges_per_node)


def best_retraining(outcome: Outcome) -> RetrainTrial | None:
    """The model to keep: of the encoder to keep, the first seed that has finished. Not the seed
    that tests best. None is kept of an encoder that is no better than one answer to all images."""
    if outcome.winner is None or outcome.best_is_one_answer:
        return None
    best = outcome.winner.hash
    candidates = [trial for trial in outcome.retrained if trial.model == best]
    return min(candidates, key=lambda trial: trial.seed, default=None)


def pareto_front(points: Mapping[str, Sequence[float]]) -> list[str]:
    """The names of points that no other point beats: it would be as good in every value and
    better in one. Larger is better; equal points stay together."""

    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        pairs = list(zip(one, other, strict=True))
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    return [
        name
        for name, values in points.items()
        if not any(beats(other, values) for other in points.values())
    ]


def spread_out(names: Sequence[str], count: int) -> list[str]:
    """`count` of `names`, evenly along their order: the first and the last, and between."""
    if count >= len(names):
        return list(names)
    if count == 1:
        return [names[-1]]
    places = [round(i * (len(names) - 1) / (count - 1)) for i in range(count)]
    return [names[place] for place in places]


def gather(plan: Plan, folder: ResultFolder, *, name: str, wall: dict[str, float]) -> Outcome:
    """The state of a sweep.

    Args:
        plan: what it computes.
        folder: where its trials' folders are.
        name: of the sweep.
        wall: see `Outcome`.

    Raises:
        ValueError: a malformed result file.
    """
    indices = range(plan.num_configs)
    searched, stopped, left = find_searches(
        folder.search_dir, indices, plan.search_seeds, with_short=plan.climbs
    )
    random = plan.random_genotypes()
    proposed = _proposed(plan, folder, searched)
    outcome = Outcome(
        name=name,
        plan=plan,
        search=tuple(searched),
        not_searched=tuple(left),
        stopped=tuple(stopped),
        rungs=climb(plan, folder, searched, (*random, *proposed)),
        costs=_costs(plan, (*(trial.genotype for trial in searched), *random, *proposed)),
        random=random,
        proposed=proposed,
        wall=wall,
    )
    models = plan.models([summary.hash for summary in outcome.chosen(plan.retrain_top)], random)
    retrained, not_retrained = find_retrainings(folder.retrain_dir, models, plan.retraining_seeds)
    return dataclasses.replace(
        outcome, retrained=tuple(retrained), not_retrained=tuple(not_retrained)
    )


def _proposed(
    plan: Plan, folder: ResultFolder, searched: Iterable[SearchTrial]
) -> tuple[Genotype, ...]:
    """What the searches propose beside what they derived, each once."""
    if not plan.proposals:
        return ()
    found: dict[str, Genotype] = {}
    for trial in searched:
        trace = folder.search_dir / trial.name / "alpha.jsonl"
        seed = derive_seed(trial.config_index, trial.seed)
        derived = trial.genotype.canonical_hash
        search = plan.start(trial.config_index)
        rules = search.method.least_score, search.method.most_skips
        # A search that chose among encoders of its own has the next best ones; all others have
        # weights to draw by.
        for genotype in trial.proposals[: plan.proposals] or _draws(
            trace, search.space, plan.proposals, seed, derived, *rules
        ):
            own = {
                **genotype.provenance,
                "trial": trial.name,
                "alpha_trace": f"search/{trial.name}/{trace.name}",
            }
            found.setdefault(genotype.canonical_hash, Genotype(genotype.nodes, own))
    return tuple(found.values())


@functools.lru_cache(maxsize=4096)  # of finished searches, which do not change
def _draws(
    trace: Path,
    space: CellSpace,
    count: int,
    seed: int,
    derived: str,
    least_score: float,
    most_skips: int | None,
) -> tuple[Genotype, ...]:
    from dasvit.spaces.cell.sample import proposed_genotypes

    rows = read_trace(trace)
    if not rows:
        raise ValueError(f"{trace} has no epoch to draw proposals from; leave --proposals away")
    weights, edge_ops = rows[-1]["weights"], tuple(map(tuple, rows[-1]["edge_ops"]))
    return proposed_genotypes(
        weights,
        edge_ops,
        space,
        count,
        seed=seed,
        known=(derived,),
        least_score=least_score,
        most_skips=most_skips,
    )


def _costs(plan: Plan, genotypes: Iterable[Genotype]) -> dict[str, dict[str, int]]:
    if len(plan.objectives) == 1:
        return {}
    found = {g.canonical_hash: cost(g, plan.retrain) for g in genotypes}
    return found | {VIT: vit_cost(plan.retrain)}
