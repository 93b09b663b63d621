"""From all trials of a sweep to distinct encoders, their scores, and the vote per edge. Pure."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from dasvit.report.events import RetrainResult
from dasvit.report.statistics import Spread, spread
from dasvit.spaces.cell.genotype import Genotype, edge_list
from tune.trial_folder import RetrainTrial, SearchTrial

__all__ = [
    "SCORES",
    "ConfigSummary",
    "EdgeVote",
    "GenotypeSummary",
    "ModelSummary",
    "merge_genotypes",
    "rank_configs",
    "rank_genotypes",
    "rung_score",
    "standard_error",
    "summarize_models",
    "vote",
]

SCORES = ("trained_accuracy", "discretised_accuracy", "supernet_accuracy", "gap")
"""What a search trial measures (ratios); each of the accuracies can be the search score."""

ABSENT = "none"
"""The vote for no edge: the derivation keeps a few incoming edges per node."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Finished trials that belong together."""

    trials: tuple[Any, ...]

    def score(self, name: str) -> Spread:
        """Mean and deviation of one measurement over the trials."""
        return spread(getattr(trial, name) for trial in self.trials)

    def scores(self, names: Iterable[str] = SCORES) -> dict[str, Spread]:
        """Those that all trials have."""
        known = [n for n in names if all(getattr(t, n) is not None for t in self.trials)]
        return {name: self.score(name) for name in known} if self.trials else {}


@dataclass(frozen=True, slots=True)
class GenotypeSummary(_Group):
    """An encoder, and what is known of it before it is retrained.

    Attributes:
        trials: the searches that derived it; none of one that was only drawn.
        genotype: in canonical form, without provenance.
        rungs: of the ladder as far as it has come, the trainings on each, one per seed.
        proposed: whether it was drawn by the weights of a search, and not uniformly.
    """

    genotype: Genotype
    rungs: tuple[tuple[RetrainResult, ...], ...] = ()
    proposed: bool = False

    @property
    def of_search(self) -> bool:
        """Whether a search derived or proposed it."""
        return bool(self.trials) or self.proposed

    @property
    def origin(self) -> str:
        """`found 2×`, `proposed` or `random`."""
        if self.trials:
            return f"found {len(self.trials)}×"
        return "proposed" if self.proposed else "random"

    @property
    def hash(self) -> str:
        return self.genotype.canonical_hash

    def score(self, name: str) -> Spread:
        if name == "trained_accuracy" and self.rungs:
            return rung_score(self.rungs[0])
        return spread(getattr(trial, name) for trial in self.trials)


class ConfigSummary(_Group):
    """All searches with one proposed configuration, over seeds."""

    @property
    def config_index(self) -> int:
        return self.trials[0].config_index

    @property
    def settings(self) -> dict[str, Any]:
        return {k: v for k, v in self.trials[0].settings.items() if k != "seed"}

    @property
    def genotypes(self) -> list[str]:
        """What each seed derived, by canonical hash."""
        return [trial.genotype.canonical_hash for trial in self.trials]


class ModelSummary(_Group):
    """All retrainings of one network, over seeds."""

    @property
    def knows_classes(self) -> bool:
        """Whether all retrainings were tested class by class."""
        return all(trial.balanced_accuracy is not None for trial in self.trials)

    @property
    def num_params(self) -> int:
        return self.trials[0].num_params


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeVote:
    """What the trials' genotypes put on one edge.

    Attributes:
        source, node: the edge.
        votes: trials by operation, most first; "none" where the edge was not kept.
        entropy: of the votes, in nats; 0 where all agree.
        normalised_entropy: entropy over that of an even vote among all possible answers.
    """

    source: int
    node: int
    votes: dict[str, int]
    entropy: float
    normalised_entropy: float

    @property
    def agreement(self) -> float:
        """1 where all agree, 0 for an even vote among all possible answers."""
        return 1.0 - self.normalised_entropy


def rung_score(results: Iterable[RetrainResult]) -> Spread:
    """Class-balanced accuracy on the held-out images over the trainings of an encoder on a rung."""
    return spread(result.balanced_accuracy or 0.0 for result in results)


def standard_error(results: Sequence[RetrainResult]) -> float:
    """Of the accuracy on a rung: the larger of two estimates, from the number of images tested
    (binomial) and from the spread over the seeds. Two seeds alone can agree by chance."""
    score, tested = rung_score(results), sum(result.num_tested or 0 for result in results)
    sampling = math.sqrt(score.mean * (1 - score.mean) / tested) if tested else 0.0
    return max(sampling, (score.std or 0.0) / math.sqrt(score.count))


def merge_genotypes(trials: Iterable[SearchTrial]) -> list[GenotypeSummary]:
    """Equal genotypes merged by canonical form, in no order that means anything."""
    merged = _grouped(trials, lambda t: t.genotype.canonical_hash)
    return [GenotypeSummary(own, Genotype(own[0].genotype.canonical().nodes)) for own in merged]


def rank_genotypes(encoders: Iterable[GenotypeSummary], metric: str) -> list[GenotypeSummary]:
    """Best first: who has climbed further on the ladder, then who scores higher on the last rung.
    Without a ladder by the mean search score. Ties go to the encoder that appeared more often, then
    to the smaller hash.

    Args:
        metric: the search score, an accuracy of `SCORES`.
    """

    def key(encoder: GenotypeSummary) -> Any:
        rungs = encoder.rungs
        score = rung_score(rungs[-1]) if rungs else encoder.score(metric)
        return -len(rungs), -score.mean, -len(encoder.trials), encoder.hash

    return sorted(encoders, key=key)


def rank_configs(trials: Iterable[SearchTrial], metric: str) -> list[ConfigSummary]:
    """The proposed configurations with their scores over seeds, best first."""
    groups = [ConfigSummary(own) for own in _grouped(trials, lambda t: t.config_index)]
    return sorted(groups, key=lambda s: (-s.score(metric).mean, s.config_index))


def summarize_models(trials: Iterable[RetrainTrial]) -> dict[str, ModelSummary]:
    """The retrainings of each network over its seeds, by canonical hash or "vit"."""
    return {own[0].model: ModelSummary(own) for own in _grouped(trials, lambda t: t.model)}


def _grouped(trials: Iterable[Any], key: Callable[[Any], Any]) -> list[tuple[Any, ...]]:
    """Searches go by configuration and seed within a group, retrainings as they come."""
    groups: dict[Any, list[Any]] = defaultdict(list)
    for trial in sorted(trials, key=lambda t: (getattr(t, "config_index", 0), t.seed)):
        groups[key(trial)].append(trial)
    return [tuple(own) for own in groups.values()]


def vote(
    genotypes: Sequence[Genotype], operations: Sequence[str], *, edges_per_node: int = 2
) -> list[EdgeVote]:
    """What a sweep's genotypes agree on, edge by edge, in the order of `edge_list`.

    Every trial has one vote. Genotypes vote as they were derived, not in canonical form: the
    edges are those of the search, each with its own row of alpha.

    Args:
        genotypes: one per trial, all with the same number of nodes.
        operations: the search's candidates; `zero` is never derived.
        edges_per_node: incoming edges the derivation keeps. A node with no more sources than that
            keeps all its edges, so "none" is no possible answer there.
    """
    votes = []
    for source, node in edge_list(len(genotypes[0].nodes) if genotypes else 0):
        counts = Counter(_operation(genotype, source, node) for genotype in genotypes)
        answers = {*operations, *counts} - {"zero"}
        if node + 2 > edges_per_node:
            answers.add(ABSENT)
        ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
        entropy = float(stats.entropy(list(ordered.values())))
        share = entropy / math.log(len(answers)) if len(answers) > 1 else 0.0
        edge = {"source": source, "node": node, "votes": ordered}
        votes.append(EdgeVote(**edge, entropy=entropy, normalised_entropy=share))
    return votes


def _operation(genotype: Genotype, source: int, node: int) -> str:
    return next((e.operation for e in genotype.nodes[node] if e.source == source), ABSENT)
