"""The searcher of a sweep: Optuna's TPE, every proposal on several seeds, repeatable.

TPE proposes from the results it has been told. Trials end in an order that depends on the
machine's load, so results are told in the order of the proposals, a fixed number behind: the same
command then proposes the same configurations. The proposals are the trials of a study in Optuna's
own storage; a sweep that is continued, or extended, takes those that are there and goes on.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from dasvit.run.seed import derive_seed
from tune.study import open_study

__all__ = ["CONFIGURATION", "SEED", "Proposer", "Turns", "result_lag"]

CONFIGURATION = "configuration"
"""Key of a proposal's number, from 0, in a trial's configuration and in the study."""
SEED = "seed"
"""Key of the seed in a trial's configuration."""
_OUTSIDE = "outside"
"""Key in the study of a given draw that lies outside the space."""


class Proposer(Searcher):
    """Proposal `k` is made from the results of proposals 0 to `k - 1 - lag`, no more, no fewer.

    A proposal's score is the mean over its seeds. It is told as failed if no seed has a score, and
    as pruned if the scheduler stopped one of them.

    Args:
        space: Tune domains by name.
        metric: to maximise.
        minimised: metrics to minimise beside it.
        num_samples: proposals in all; half of them, 10 at most, are random before TPE starts.
        seeds: of the trials of every proposal.
        sampler_seed: of the sampler.
        lag: how many proposals may be on their way; `suggest` returns None (try again later) where
            a result is still missing.
        study_file: of the study.
        first: the first proposals; those beyond `num_samples` are left out. One with a value
            outside the space is told to TPE as failed: it cannot learn from it.
        study: its name in the file.
        numbers: the numbers of the proposals in the sweep; by default 0, 1, …
        constant: what every trial's configuration holds besides.
    """

    def __init__(
        self,
        space: Mapping[str, Any],
        *,
        metric: str,
        num_samples: int,
        seeds: Sequence[int],
        sampler_seed: int,
        lag: int,
        study_file: Path,
        first: Sequence[dict[str, Any]] = (),
        minimised: Sequence[str] = (),
        study: str = "sweep",
        numbers: Sequence[int] | None = None,
        constant: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(metric=metric, mode="max")
        self._numbers = range(num_samples) if numbers is None else numbers
        self._constant = dict(constant or {})
        self._domains = dict(space)
        self._space: dict[str, BaseDistribution] = OptunaSearch.convert_search_space(dict(space))
        self._metrics = (metric, *minimised)
        self._seeds, self._sampler_seed, self._lag = tuple(seeds), sampler_seed, lag
        self._num_samples = num_samples
        self._startup = max(1, min(10, num_samples // 2))
        self._first = list(first[:num_samples])
        self._study = open_study(study_file, name=study, minimised=minimised)
        self._trials: list[int] = []  # numbers in the study, by proposal
        for trial in self._study.get_trials(deepcopy=False):
            if CONFIGURATION in trial.user_attrs:
                self._trials.append(trial.number)
            elif not trial.state.is_finished():  # its process was killed while it was made
                self._study.tell(trial.number, state=TrialState.FAIL)
        self._proposals: list[dict[str, Any]] = []
        self._told = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._results: list[dict[int, dict[str, Any]]] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        number, place = divmod(len(self._places), len(self._seeds))
        if place == 0 and not self._propose(number):
            return None
        self._places[trial_id] = number, place
        own = {CONFIGURATION: self._numbers[number], SEED: self._seeds[place]}
        return self._proposals[number] | self._constant | own

    def _propose(self, number: int) -> bool:
        """Make a proposal, if the results that it needs are there."""
        while self._told < number - self._lag:
            if not self._tell_next():
                return False
        if number >= len(self._trials):
            given = number < len(self._first)
            self._trials.append(self._add(self._first[number]) if given else self._ask(number))
        trial = self._study.get_trials(deepcopy=False)[self._trials[number]]
        self._proposals.append(trial.params | trial.user_attrs.get(_OUTSIDE, {}))
        self._results.append({})
        return True

    def _ask(self, number: int) -> int:
        # One sampler per proposal: what it draws does not depend on what was asked before.
        self._study.sampler = self._sampler(number)
        trial = self._study.ask(self._space)
        trial.set_user_attr(CONFIGURATION, number)
        return trial.number

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            # multivariate is "experimental" in Optuna; it models the settings jointly.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=derive_seed("proposal", self._sampler_seed, number) % 2**32,
                multivariate=True,
                n_startup_trials=self._startup,
            )

    def _add(self, draw: dict[str, Any]) -> int:
        """A draw that is given, as a trial that runs. Its values are the trial's parameters where
        they are a point of the space."""
        inside = draw.keys() == self._space.keys() and all(
            domain.is_valid(draw[name]) for name, domain in self._domains.items()
        )
        trial = optuna.create_trial(
            state=TrialState.RUNNING,
            params=draw if inside else {},
            distributions=self._space if inside else {},
            user_attrs={CONFIGURATION: len(self._trials)} | ({} if inside else {_OUTSIDE: draw}),
        )
        self._study.add_trial(trial)
        return len(self._study.get_trials(deepcopy=False)) - 1

    def _tell_next(self) -> bool:
        """Tell one result, if it is there. What was told stays told, even where a trial that failed
        has a score by now: other proposals were made without it."""
        number = self._told
        results = self._results[number]
        if len(results) < len(self._seeds):
            return False
        trial = self._study.get_trials(deepcopy=False)[self._trials[number]]
        if not trial.state.is_finished():
            self._tell(optuna.trial.Trial(self._study, trial._trial_id), list(results.values()))
        self._told += 1
        return True

    def _tell(self, trial: optuna.Trial, results: list[dict[str, Any]]) -> None:
        values = self._means(results)
        stopped = [result for result in results if "finished" not in result and "epoch" in result]
        if values is not None:
            trial.set_user_attr("scores", values)
        if _OUTSIDE in trial.user_attrs:
            state, values = TrialState.FAIL, None
        elif stopped:
            # One value per step: of several seeds, the mean where the last one was stopped.
            score = math.fsum(result["supernet_accuracy"] for result in stopped) / len(stopped)
            trial.report(score, max(result["epoch"] for result in stopped))
            state, values = TrialState.PRUNED, None
        else:
            state = TrialState.FAIL if values is None else TrialState.COMPLETE
        self._study.tell(trial, values, state)

    def _means(self, results: Sequence[dict[str, Any]]) -> list[float] | None:
        scored = [result for result in results if all(name in result for name in self._metrics)]
        if not scored:
            return None
        count = len(scored)
        return [math.fsum(result[name] for result in scored) / count for name in self._metrics]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number, place = self._places[trial_id]
        self._results[number][place] = {} if error or result is None else result
        if len(self._places) == self._num_samples * len(self._seeds):
            # Nothing more is proposed: the study gets its last results.
            while self._told < self._num_samples and self._tell_next():
                pass

    def set_search_properties(self, *args: Any, **spec: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        """Ray saves its searcher with the experiment. A sweep is continued from the study."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


class Turns(Searcher):
    """Proposers that take turns, proposal by proposal; each learns from its own.

    Args:
        proposers: the k-th proposal is the next one of the (k mod n)-th.
        num_seeds: trials of a proposal.
    """

    def __init__(self, proposers: Sequence[Proposer], num_seeds: int) -> None:
        super().__init__(metric=proposers[0].metric, mode="max")
        self._proposers, self._num_seeds = tuple(proposers), num_seeds
        self._owners: dict[str, Proposer] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        number = len(self._owners) // self._num_seeds
        owner = self._proposers[number % len(self._proposers)]
        if (drawn := owner.suggest(trial_id)) is not None:
            self._owners[trial_id] = owner
        return drawn

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._owners[trial_id].on_trial_complete(trial_id, result, error)

    def set_search_properties(self, *args: Any, **spec: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        """See `Proposer.save`."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """See `Proposer.save`."""


def result_lag(max_concurrent_trials: int, num_seeds: int) -> int:
    """The smallest lag with which `max_concurrent_trials` of about equal length seldom wait."""
    return 0 if max_concurrent_trials == 1 else math.ceil(max_concurrent_trials / num_seeds)
