"""A mean over fewer seeds than were asked for says so, and a failure is counted and explained."""

import dataclasses
from typing import Any

import pytest

from tune.aggregate import rank_configs, seed_count, vote
from tune.leaderboard import config_rows, markdown, table
from tune.outcome import Outcome
from tune.page import write_page
from tune.trials import Failure
from tune.worth import check_rows, gain_sentence


@pytest.fixture
def with_failures(outcome: Outcome, search_trial: Any, make_chain: Any) -> Outcome:
    """Configuration 1 lacks a seed, configuration 2 both, a retraining and a check one each."""
    return dataclasses.replace(
        outcome,
        seeds=2,
        check_seeds=2,
        retrain_seeds=2,
        not_searched=(
            Failure("config_001_seed_1", "the loss or the weights are not finite"),
            Failure("config_002_seed_0", "RuntimeError: no such kernel"),
            Failure("config_002_seed_1", "RuntimeError: no such kernel"),
        ),
        checked=(search_trial(0, 2, make_chain("msa_h2", "mlp_r3"), 0.6, 0.7),),
        not_checked=(Failure("config_000_seed_3", "MemoryError"),),
        not_retrained=(Failure("vit_seed_1", "killed"), Failure("unstarted")),
    )


@pytest.mark.parametrize(
    ("finished", "asked", "words"),
    [(1, 1, "1 seed"), (2, 2, "2 seeds"), (1, 2, "1 of 2 seeds"), (3, 0, "3 seeds")],
)
def test_seed_count(finished: int, asked: int, words: str) -> None:
    assert seed_count(finished, asked) == words


def test_every_configuration_has_its_row(with_failures: Outcome) -> None:
    configs = rank_configs(with_failures.search, with_failures.metric)
    heading, *rows = config_rows(with_failures, configs)
    assert heading[:2] == ["configuration", "seeds"]
    assert [row[:2] for row in rows] == [["0", "2 of 2"], ["1", "1 of 2"], ["2", "0 of 2"]]
    assert {len(row) for row in rows} == {len(heading)}


def test_means_say_what_they_lack(with_failures: Outcome) -> None:
    cells = [cell for row in table(with_failures) for cell in row]
    assert "85.0 (1 of 2 seeds)" in cells and "91.0 ± 1.4 (2 seeds)" in cells
    assert check_rows(with_failures)[1][2] == "60.0 (1 of 2 seeds)"
    only = dataclasses.replace(
        with_failures, random=(with_failures.search[2].genotype,), retrain_seeds=3
    )
    assert "2 of 3 seeds" in gain_sentence(only)


def test_failures_are_counted_with_their_reasons(
    with_failures: Outcome, plan: Any, folder: Any
) -> None:
    assert len(with_failures.failed) == 5 and len(with_failures.failures) == 6
    configs = rank_configs(with_failures.search, with_failures.metric)
    votes = vote([t.genotype for t in with_failures.search], with_failures.operations)
    text = markdown(with_failures, with_failures.ranking, configs, votes)
    write_page(plan, with_failures, folder, preset="digits")
    page = (folder.root / "report.html").read_text()
    for report in (text, page):
        assert "5 failed (reasons below)" in report
        for failure in with_failures.failed:
            assert failure.name in report and str(failure.error) in report
