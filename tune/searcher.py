"""The searcher of a sweep: Optuna's TPE, every proposal on several seeds, repeatable.

    Repeater(InOrder(OptunaSearch))

TPE proposes from the results it has been told. Trials end in an order that depends on the
machine's load, so InOrder tells results in the order of the proposals, a fixed number behind:
the same command then proposes the same configurations. What was told is kept in a file, so that a
sweep that was interrupted is continued by proposing it again, over the results that are there.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from ray.tune.search import Repeater, Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.repeater import TRIAL_INDEX

from dasvit.run.files import read_json, write_atomic

__all__ = ["CONFIG_INDEX", "TRIAL_INDEX", "InOrder", "make_searcher", "result_lag"]

CONFIG_INDEX = "__config_index__"
"""Key of a proposal's number, from 0."""


Score = float | list[float] | None
"""Of a proposal: its value, or one for each objective; None if all of its seeds failed."""


class InOrder(Searcher):
    """Proposal `k` is made from the results of proposals 0 to `k - 1 - lag`, no more, no fewer.

    Args:
        searcher: what proposes.
        lag: how many proposals may be on their way; `suggest` returns None (try again later)
            where a result is still missing.
        told: file of the scores told so far, in order (null: all seeds failed). Those of an
            earlier run are told again as they were, even where a failed trial now has a score.
        first: proposals that are made before any of `searcher`'s. Their scores are told as
            results from elsewhere, and not at all where a value lies outside `space`.
        space: Tune domains by name.
    """

    def __init__(
        self,
        searcher: OptunaSearch,
        *,
        lag: int,
        told: Path,
        first: Sequence[dict[str, Any]] = (),
        space: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self._names = _listed(searcher.metric)
        self.searcher = searcher
        self.lag = lag
        self.first, self.space = list(first), dict(space or {})
        self._file = told
        self._scores: list[Score] = read_json(told, "scores told") if told.exists() else []
        self._order: list[str] = []
        self._told = 0
        self._waiting: dict[str, Score] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        while self._told < len(self._order) - self.lag:
            if not self._tell_next():
                return None
        number = len(self._order)
        given = number < len(self.first)
        config = self.first[number] if given else self.searcher.suggest(trial_id)
        if isinstance(config, dict):
            config = {**config, CONFIG_INDEX: number, TRIAL_INDEX: 0}
            self._order.append(trial_id)
        return config

    def _tell_next(self) -> bool:
        """Tell one result, if it is there."""
        trial_id = self._order[self._told]
        if self._told == len(self._scores):
            if trial_id not in self._waiting:
                return False
            self._scores.append(self._waiting[trial_id])
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._file, json.dumps(self._scores) + "\n")
        score = self._scores[self._told]
        if self._told < len(self.first):
            self._tell_given(self.first[self._told], score)
        else:
            result = None if score is None else dict(zip(self._names, _listed(score), strict=True))
            self.searcher.on_trial_complete(trial_id, result, error=score is None)
        self._told += 1
        return True

    def _tell_given(self, draw: dict[str, Any], score: Score) -> None:
        if isinstance(score, list):
            return  # Ray's OptunaSearch takes no several values for a point from elsewhere
        inside = draw.keys() == self.space.keys() and all(
            domain.is_valid(draw[name]) for name, domain in self.space.items()
        )
        if inside and score is not None:
            self.searcher.add_evaluated_point(draw, score)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        found = result if result and not error else {}
        values = [float(found.get(name, math.nan)) for name in self._names]
        missing = any(math.isnan(value) for value in values)
        self._waiting[trial_id] = None if missing else values if len(values) > 1 else values[0]

    def get_state(self) -> dict[str, Any]:
        """Nothing: Ray asks when it saves an experiment, but the file of scores is what a sweep is
        continued from."""
        return {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class _Repeats(Repeater):
    """Repeater, without NumPy's warning about the mean of a proposal whose seeds all failed."""

    def on_trial_complete(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
            super().on_trial_complete(*args, **kwargs)


def result_lag(max_concurrent_trials: int, num_seeds: int) -> int:
    """The smallest lag with which `max_concurrent_trials` of about equal length seldom wait."""
    return 0 if max_concurrent_trials == 1 else math.ceil(max_concurrent_trials / num_seeds)


def make_searcher(
    space: dict[str, Any],
    *,
    metric: str,
    num_samples: int,
    num_seeds: int,
    seed: int,
    lag: int,
    told: Path,
    first: Sequence[dict[str, Any]] = (),
    costs: Sequence[str] = (),
) -> Searcher:
    """TPE over `space`, each proposal repeated `num_seeds` times.

    Args:
        space: Tune domains.
        metric: to maximise; the mean over the seeds is what TPE is told.
        num_samples: proposals in all; half of them, 10 at most, are random before TPE starts.
        num_seeds: trials a proposal; `TRIAL_INDEX` in a trial's configuration numbers them.
        seed: of the sampler.
        lag, told: see `InOrder`.
        costs: metrics to minimise beside `metric`; then `num_seeds` must be 1, since Ray's Repeater
            takes no several objectives.
        first: the first proposals; those beyond `num_samples` are left out.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        # multivariate is "experimental" in Optuna; it models the settings jointly.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, n_startup_trials=max(1, min(10, num_samples // 2))
        )
    search = OptunaSearch(
        space=OptunaSearch.convert_search_space(space),
        metric=[metric, *costs] if costs else metric,
        mode=["max", *("min" for _ in costs)] if costs else "max",
        sampler=sampler,
    )
    ordered = InOrder(search, lag=lag, told=told, first=first[:num_samples], space=space)
    if costs:
        assert num_seeds == 1
        return ordered
    return _Repeats(ordered, repeat=num_seeds)
