"""From all trials of a sweep to distinct genotypes, their scores, and the vote per edge. Pure."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dasvit.spaces.cell.genotype import Genotype, edge_list
from tune.trials import RetrainTrial, SearchTrial

__all__ = [
    "METRICS",
    "ConfigSummary",
    "EdgeVote",
    "GenotypeSummary",
    "ModelSummary",
    "Spread",
    "rank_configs",
    "rank_genotypes",
    "seed_count",
    "spread",
    "summarize_model",
    "vote",
]

METRICS = ("discretised_accuracy", "supernet_accuracy")
"""The scores of a search trial; either can rank."""

ABSENT = "none"
"""The vote for no edge: the derivation keeps two incoming edges a node."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation (n - 1; None for a single value)."""

    mean: float
    std: float | None
    count: int


def spread(values: Iterable[float]) -> Spread:
    """Mean and standard deviation of at least one value."""
    numbers = list(values)
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(statistics.fmean(numbers), std, len(numbers))


def seed_count(finished: int, asked: int) -> str:
    """`2 seeds`; `1 of 2 seeds` where a mean lacks some that were asked for (0: unknown)."""
    if asked > finished:
        return f"{finished} of {asked} seeds"
    return f"{finished} seed" + ("" if finished == 1 else "s")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenotypeSummary:
    """One distinct encoder and all trials that derived it.

    Attributes:
        genotype: in canonical form, without provenance.
        trials: that gave it, by name.
        discretised_accuracy, supernet_accuracy, gap: over those trials (ratios).
    """

    genotype: Genotype
    trials: tuple[SearchTrial, ...]
    discretised_accuracy: Spread
    supernet_accuracy: Spread
    gap: Spread

    @property
    def hash(self) -> str:
        return self.genotype.canonical_hash

    @property
    def count(self) -> int:
        return len(self.trials)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigSummary:
    """One proposed configuration and its trials over seeds."""

    config_index: int
    settings: dict[str, Any]
    discretised_accuracy: Spread
    supernet_accuracy: Spread
    gap: Spread
    genotypes: tuple[str, ...]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSummary:
    """One retrained model over seeds (accuracies on the test set, ratios)."""

    model: str
    test_top1: Spread
    test_top5: Spread
    train_accuracy: Spread
    num_params: int
    seconds: Spread


def rank_genotypes(trials: Iterable[SearchTrial], metric: str) -> list[GenotypeSummary]:
    """Equal genotypes merged by canonical form, best first.

    The order is that of the mean search score over all trials that gave the genotype; ties go
    to the one that appeared more often, then to the smaller hash.

    Args:
        trials: finished ones, in any order.
        metric: one of `METRICS`.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, but got {metric!r}")
    groups: dict[str, list[SearchTrial]] = defaultdict(list)
    for trial in sorted(trials, key=lambda t: (t.config_index, t.seed)):
        groups[trial.genotype.canonical_hash].append(trial)
    summaries = [
        GenotypeSummary(
            genotype=Genotype(members[0].genotype.canonical().nodes),
            trials=tuple(members),
            **_scores(members),
        )
        for members in groups.values()
    ]
    return sorted(summaries, key=lambda s: (-getattr(s, metric).mean, -s.count, s.hash))


def rank_configs(trials: Iterable[SearchTrial], metric: str) -> list[ConfigSummary]:
    """The proposed configurations with their scores over seeds, best first."""
    groups: dict[int, list[SearchTrial]] = defaultdict(list)
    for trial in sorted(trials, key=lambda t: (t.config_index, t.seed)):
        groups[trial.config_index].append(trial)
    summaries = [
        ConfigSummary(
            config_index=index,
            settings={k: v for k, v in members[0].settings.items() if k != "seed"},
            genotypes=tuple(t.genotype.canonical_hash for t in members),
            **_scores(members),
        )
        for index, members in groups.items()
    ]
    return sorted(summaries, key=lambda s: (-getattr(s, metric).mean, s.config_index))


def _scores(trials: Sequence[SearchTrial]) -> dict[str, Spread]:
    return {
        "discretised_accuracy": spread(t.discretised_accuracy for t in trials),
        "supernet_accuracy": spread(t.supernet_accuracy for t in trials),
        "gap": spread(t.gap for t in trials),
    }


def vote(
    genotypes: Sequence[Genotype], operations: Sequence[str], *, edges_per_node: int = 2
) -> list[EdgeVote]:
    """What a sweep's genotypes agree on, edge by edge, in the order of `edge_list`.

    Every trial has one vote. Genotypes vote as they were derived, not in canonical form: the
    edges are those of the search, each with its own row of alpha.

    Args:
        genotypes: one a trial, all with the same number of nodes.
        operations: the search's candidates; `zero` is never derived.
        edges_per_node: incoming edges the derivation keeps. A node with no more sources than that
            keeps all its edges, so "none" is no possible answer there.
    """
    if not genotypes:
        return []
    nodes = len(genotypes[0].nodes)
    candidates = [name for name in operations if name != "zero"]
    votes = []
    for source, node in edge_list(nodes):
        counts = Counter(_operation(genotype, source, node) for genotype in genotypes)
        answers = set(candidates) | set(counts)
        if node + 2 > edges_per_node:
            answers.add(ABSENT)
        entropy = _entropy(counts)
        largest = math.log(len(answers))
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        votes.append(
            EdgeVote(
                source=source,
                node=node,
                votes=dict(ordered),
                entropy=entropy,
                normalised_entropy=entropy / largest if largest > 0 else 0.0,
            )
        )
    return votes


def _operation(genotype: Genotype, source: int, node: int) -> str:
    return next((e.operation for e in genotype.nodes[node] if e.source == source), ABSENT)


def _entropy(counts: Counter[str]) -> float:
    total = counts.total()
    # abs: -0.0 for a unanimous vote reads badly.
    return abs(-sum(n / total * math.log(n / total) for n in counts.values()))


def summarize_model(trials: Sequence[RetrainTrial]) -> ModelSummary:
    """The retrainings of one model over its seeds."""
    return ModelSummary(
        model=trials[0].model,
        test_top1=spread(t.test_top1 for t in trials),
        test_top5=spread(t.test_top5 for t in trials),
        train_accuracy=spread(t.train_accuracy for t in trials),
        num_params=trials[0].num_params,
        seconds=spread(t.seconds for t in trials),
    )
