"""A sweep's results as an Optuna study."""

from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tune.aggregate import ConfigSummary, Spread
from tune.study import JOURNAL_FILE, write_study


def config(index: int, score: float, **settings: float) -> ConfigSummary:
    spread = Spread(mean=score, std=None, count=1)
    return ConfigSummary(
        config_index=index,
        settings=settings,
        discretised_accuracy=spread,
        supernet_accuracy=spread,
        gap=spread,
        genotypes=("0123456789ab",),
    )


CONFIGS = [
    config(2, 0.9, token_ratio=0.5, zeta1=0.2, skip_weight=1.0),
    config(0, 0.6, token_ratio=0.25, zeta1=9.0, skip_weight=1.0),
    config(1, 0.3, token_ratio=1.0, zeta1=0.0, skip_weight=1.0),
]


def read(path: Path) -> optuna.Study:
    return optuna.load_study(
        study_name="mine", storage=JournalStorage(JournalFileBackend(str(path)))
    )


def test_what_the_dashboard_opens(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_FILE
    for _ in range(2):  # again, as a sweep that is continued does
        write_study(path, CONFIGS, "discretised_accuracy", name="mine")
    study = read(path)
    assert [t.value for t in study.trials] == [0.6, 0.3, 0.9]  # in the order of the proposals
    assert study.best_trial.params == {"token_ratio": 0.5, "zeta1": 0.2}  # skip_weight never varied
    assert study.best_trial.user_attrs["genotypes"] == ["0123456789ab"]
    assert study.trials[1].params["zeta1"] == 0.2  # a 0 as the smallest, on a logarithmic scale
    assert [p.name for p in tmp_path.iterdir()] == [JOURNAL_FILE]
