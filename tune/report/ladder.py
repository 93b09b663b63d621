"""The ladder: encoders climb from rung to rung, each a longer training, by successive halving.

On every rung all networks have the same number of epochs, the same recipe, the same seeds and the
same halves of the training set, so that their accuracies can be compared whatever found them. No
rung sees a test image. Successive halving: Jamieson and Talwalkar, arXiv:1502.07943. All of a rung
is awaited before the next begins, unlike in Tune's ASHA, where the machine's load decides who
climbs.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dasvit.report.events import RetrainResult
from dasvit.spaces.cell.genotype import Genotype
from dasvit.training.networks import VIT
from tune.plan import Plan
from tune.report.aggregate import rung_score
from tune.store import ResultFolder
from tune.trial_folder import Failure, SearchTrial, find_retrainings

__all__ = ["Rung", "climb", "survivors"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """A rung of the ladder as far as it has come.

    Attributes:
        epochs: of its trainings.
        models: that are trained for it, by canonical hash and "vit"; the found encoders have their
            trainings on the first rung from their searches.
        results: finished trainings by model, those of searches too.
        left: the others.
    """

    epochs: int
    models: tuple[str, ...]
    results: dict[str, tuple[RetrainResult, ...]]
    left: tuple[Failure, ...]

    @property
    def interrupted(self) -> bool:
        """Whether trainings are left that have not failed."""
        return any(failure.error is None for failure in self.left)


def survivors(scores: Mapping[str, float], *, factor: int, least: int) -> list[str]:
    """The best in `factor` of the names, rounded up, `least` at least; best first."""
    count = max(math.ceil(len(scores) / factor), least)
    return sorted(scores, key=lambda name: (-scores[name], name))[:count]


def climb(
    plan: Plan, folder: ResultFolder, search: Iterable[SearchTrial], drawn: Iterable[Genotype]
) -> tuple[Rung, ...]:
    """The ladder as far as it has come.

    Args:
        search: finished searches.
        drawn: the encoders that were not derived but drawn.

    Raises:
        ValueError: a malformed result file.
    """
    # One per seed: with the same seed the same encoder is trained to the same end.
    by_seed: dict[str, dict[int, RetrainResult]] = {}
    for trial in search:
        if trial.short is not None:
            by_seed.setdefault(trial.genotype.canonical_hash, {})[trial.seed] = trial.short
    found = {name: tuple(seeds.values()) for name, seeds in by_seed.items()}
    names = dict.fromkeys(genotype.canonical_hash for genotype in drawn)
    models = (*(name for name in names if name not in found), VIT)
    rungs: list[Rung] = []
    for epochs in plan.ladder:
        trials, left = find_retrainings(folder.rung_dir(epochs), models, plan.search_seeds)
        results = {} if rungs else found
        for model in models:
            if own := tuple(trial for trial in trials if trial.model == model):
                results = results | {model: own}
        rungs.append(Rung(epochs=epochs, models=models, results=results, left=tuple(left)))
        if rungs[-1].interrupted:
            break
        scores = {n: rung_score(own).mean for n, own in results.items() if n != VIT}
        best = survivors(scores, factor=plan.reduction_factor, least=plan.retrain_top)
        models = (*best, VIT)
    return tuple(rungs)
