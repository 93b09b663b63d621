"""The study of a sweep in Optuna's own storage: its proposals and their scores. No Ray."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

__all__ = ["LEAST_CONFIGS", "importances", "open_study"]

LEAST_CONFIGS = 6
"""With fewer configurations an importance would be noise alone."""

_STUDY = "sweep"


def open_study(path: Path, *, name: str = _STUDY, minimised: Sequence[str] = ()) -> optuna.Study:
    """A study in a journal file, made if there is none. `optuna-dashboard FILE` opens it.

    Args:
        path: of the file.
        name: of the study; a file may hold several.
        minimised: costs beside the score, which is maximised.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():  # a process that was killed may have left half a line
        text = path.read_bytes()
        if not text.endswith(b"\n"):
            os.truncate(path, text.rfind(b"\n") + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.create_study(
            study_name=name,
            storage=JournalStorage(JournalFileBackend(str(path))),
            directions=["maximize", *("minimize" for _ in minimised)],
            load_if_exists=True,
        )


def importances(path: Path) -> dict[str, float]:
    """Share of the score's variance that each setting explains (fANOVA), largest first; they sum
    to 1.

    Returns:
        Empty without a study of a single method, with under `LEAST_CONFIGS` configurations in it
        that have a score, or if all scores are equal.
    """
    if not path.exists():
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(path)))
    if _STUDY not in optuna.get_all_study_names(storage):
        return {}
    study = optuna.load_study(study_name=_STUDY, storage=storage)

    def score(trial: optuna.trial.FrozenTrial) -> float:
        assert trial.values is not None
        return trial.values[0]

    scores = [score(trial) for trial in study.get_trials(states=[TrialState.COMPLETE])]
    if len(scores) < LEAST_CONFIGS or len(set(scores)) < 2:
        return {}
    evaluator = FanovaImportanceEvaluator(seed=0)
    return dict(get_param_importances(study, evaluator=evaluator, target=score))
