"""A sweep's results as an Optuna study, and what it says matters."""

import dataclasses
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tune.report.study import JOURNAL_FILE, importances, write_study

from tune.trial_folder import StoppedTrial


def read(path: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(path / JOURNAL_FILE)))
    return optuna.load_study(study_name="mine", storage=storage)


@pytest.fixture
def swept(outcome, make_chain, search_trial):
    """A sweep of these settings and scores, in the order of the proposals."""

    def make(settings, scores):
        g = make_chain("msa_h2", "mlp_r3")
        trials = [
            search_trial(i, 0, g, score, 0.9, settings={**own, "seed": 0})
            for i, (own, score) in enumerate(zip(settings, scores, strict=True))
        ]
        return dataclasses.replace(outcome, search=tuple(trials))

    return make


def test_what_the_dashboard_opens(swept, tmp_path: Path) -> None:
    columns = {"token_ratio": (0.25, 1.0, 0.5), "zeta1": (9.0, 0.0, 0.2), "skip_weight": (1.0,) * 3}
    settings = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    stop = StoppedTrial(
        name="config_003_seed_0",
        epochs=2,
        total_epochs=6,
        score=0.25,
        settings={**settings[0], "seed": 0},
    )
    sweep = dataclasses.replace(swept(settings, (0.6, 0.3, 0.9)), stopped=(stop,))
    for _ in range(2):  # again, as a sweep that is continued does
        write_study(tmp_path / JOURNAL_FILE, sweep)
    assert [p.name for p in tmp_path.iterdir()] == [JOURNAL_FILE]
    study = read(tmp_path)
    assert [t.value for t in study.trials] == [0.6, 0.3, 0.9, None]
    assert study.best_trial.params == {"token_ratio": 0.5, "zeta1": 0.2}  # skip_weight never varied
    assert study.best_trial.user_attrs["genotypes"] == [sweep.ranking[0].hash]
    assert study.trials[1].params["zeta1"] == 0.2  # a 0 as the smallest, on a logarithmic scale
    pruned = study.trials[3]
    assert (pruned.state.name, pruned.intermediate_values) == ("PRUNED", {2: 0.25})
    assert pruned.params["token_ratio"] == 0.25


def test_several_objectives(several, tmp_path: Path) -> None:
    write_study(tmp_path / JOURNAL_FILE, several)
    study = read(tmp_path)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.values[1] for trial in study.trials] == [9e6, 4e6, 8e6]
    assert [trial.number for trial in study.best_trials] == [0, 1]


def test_what_matters_comes_first(swept) -> None:
    settings = [
        {
            "zeta1": 0.1 * 1.3 ** ((i * 7) % 16),
            "token_ratio": 0.3 + 0.04 * ((i * 5) % 16),
            "xi": 0.01 * (i % 2),
            "gamma_min": 0.2,
        }
        for i in range(16)
    ]
    scores = [0.5 + 0.4 * ((i * 7) % 16) / 16 for i in range(16)]
    shares = importances(swept(settings, scores))
    assert set(shares) == {"zeta1", "token_ratio", "xi"}
    assert next(iter(shares)) == "zeta1" and shares["zeta1"] > 0.6
    assert sum(shares.values()) == pytest.approx(1.0)
    assert importances(swept(settings[:5], scores[:5])) == {}  # too few
    assert importances(swept(settings, [0.5] * 16)) == {}  # of equal scores


def test_plain_darts_among_them(swept) -> None:
    """Its weights are 0, which a logarithmic scale has no place for."""
    settings = [{"skip_weight": w, "xi": 0.0} for w in (0.0, 0.01, 0.1, 1.0, 10.0, 3.0)]
    sweep = swept(settings, [0.1 * i for i in range(6)])
    assert importances(sweep) == {"skip_weight": pytest.approx(1.0)}
