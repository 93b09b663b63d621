"""What a sweep has reached: what ranks, what is chosen, what is left to do."""

from dataclasses import replace

import pytest
from support.sweep_trials import chain, search_trial

from tune.report.aggregate import standard_error
from tune.report.ladder import Rung
from tune.report.outcome import Outcome, best_retraining, pareto_front, spread_out
from tune.report.worth import verdict
from tune.trial_folder import Failure


def test_the_best_model_is_chosen_without_the_test_set(outcome: Outcome) -> None:
    best = best_retraining(outcome)
    # Not the encoder that tests at 0.99, and not the seed that tests at 0.92.
    assert (best.model, best.seed, best.test_top1) == (outcome.ranking[0].hash, 0, 0.90)
    assert [s.hash for s in outcome.chosen(1)] == [outcome.ranking[0].hash]
    assert best_retraining(replace(outcome, search=())) is None


def test_the_smallest_that_is_as_good(climbed: Outcome) -> None:
    """Within one standard error of the first: at 0.81 on 719 images over two seeds 0.0103 by their
    number, 0.01 by the seeds. The second is 0.005 below and cheaper, the third on no last rung."""
    first, second, third = climbed.ranking
    assert standard_error(first.rungs[-1]) == pytest.approx((0.81 * 0.19 / 1438) ** 0.5)
    assert climbed.costs_of(second.hash)["macs"] < climbed.costs_of(first.hash)["macs"]
    assert climbed.as_good == [second, first]
    assert climbed.winner is first
    assert best_retraining(climbed).model == first.hash
    # The first is one of the random encoders, which are retrained whatever their rank.
    assert climbed.chosen(1) == [second] and climbed.chosen(2) == [second, third]
    small = replace(climbed, plan=replace(climbed.plan, prefer="small"))
    assert small.winner.hash == second.hash and small.chosen(1) == [second]
    assert best_retraining(small).model == second.hash


def test_the_best_found_one_is_retrained_whoever_leads(climbed: Outcome) -> None:
    """Without it, what the search adds to random encoders would not be measured."""
    first, second, third = climbed.ranking
    alone = tuple(t for t in climbed.search if t.genotype.canonical_hash == third.hash)
    outcome = replace(climbed, search=alone, random=(first.genotype, second.genotype))
    assert [e.origin for e in outcome.ranking] == ["random", "random", "found 1×"]
    assert [e.hash for e in outcome.chosen(1)] == [third.hash]


def test_cheap_by_latency(climbed: Outcome) -> None:
    """The shortest of two trainings counts: what else the machine does can only add to it."""
    first, second, _ = (encoder.hash for encoder in climbed.ranking)
    plan = replace(climbed.plan, cheap_by="latency", prefer="small")

    def timed(milliseconds: dict[str, tuple[float, float]]) -> Outcome:
        """The outcome with these times of encoders' trainings on the last rung."""
        rung = climbed.rungs[-1]
        times = {
            name: tuple(
                replace(own, latency_seconds=ms / 1e3)
                for own, ms in zip(rung.results[name], both, strict=True)
            )
            for name, both in milliseconds.items()
        }
        last = replace(rung, results=rung.results | times)
        return replace(climbed, plan=plan, rungs=(climbed.rungs[0], last))

    assert timed({first: (2.0, 9.0), second: (3.0, 2.5)}).winner.hash == first
    cheaper = timed({first: (2.0, 9.0), second: (3.0, 1.5)})
    assert cheaper.winner.hash == second
    assert f"{second} with 1.50 ms per image, {first} has 2.00 ms" in verdict(cheaper)[-1]
    # Trainings of an older version have none: then the ranking decides.
    assert timed({}).winner.hash == first


def test_along_the_front(several: Outcome) -> None:
    first, second, _ = (summary.hash for summary in several.ranking)
    assert [s.hash for s in several.front] == [second, first]  # cheapest first
    assert [s.hash for s in several.chosen(3)] == [first, second]
    assert [s.hash for s in several.chosen(1)] == [first]
    assert best_retraining(several).model == first
    # Before any search has finished: the baselines' costs are known from the start.
    none = replace(several, search=(), costs={"vit": {"macs": 5, "params": 10}})
    assert (none.ranking, none.front, none.chosen(2)) == ([], [], [])


def test_of_equal_scores_the_cheaper_one_leads(several: Outcome) -> None:
    a, b = chain("msa_h2", "mlp_r3"), chain("identity", "mlp_r3")
    for dear, cheap in ((a, b), (b, a)):
        tied = replace(
            several,
            search=(search_trial(0, 0, a, 0.5, 0.5), search_trial(1, 0, b, 0.5, 0.5)),
            costs={dear.canonical_hash: {"macs": 2}, cheap.canonical_hash: {"macs": 1}},
        )
        assert tied.ranking[0].hash == cheap.canonical_hash
        assert [s.hash for s in tied.front] == [cheap.canonical_hash]


def test_pareto_front() -> None:
    points = {"best": (0.9, -9.0), "beaten": (0.8, -9.0), "cheap": (0.5, -1.0), "twin": (0.5, -1.0)}
    assert pareto_front(points) == ["best", "cheap", "twin"]


@pytest.mark.parametrize(("count", "expected"), [(1, "e"), (2, "ae"), (3, "ace"), (9, "abcde")])
def test_spread_out(count: int, expected: str) -> None:
    assert "".join(spread_out("abcde", count)) == expected


BOOM, LEFT = Failure("config_000_seed_0", "boom"), Failure("vit_seed_0")


@pytest.mark.parametrize(
    ("changes", "complete", "interrupted"),
    [
        ({}, True, False),
        ({"not_searched": (BOOM,)}, False, False),
        ({"not_searched": (BOOM, LEFT)}, False, True),
        ({"rungs": (Rung(epochs=4, models=(), results={}, left=(LEFT,)),)}, False, True),
        ({"not_retrained": (LEFT,)}, False, True),
        # Without a finished search there is nothing to retrain: that is no interruption.
        ({"search": (), "not_searched": (BOOM,), "not_retrained": (LEFT,)}, False, False),
        ({"search": (), "retrained": ()}, False, False),
    ],
)
def test_what_is_left(outcome: Outcome, changes: dict, complete: bool, interrupted: bool) -> None:
    changed = replace(outcome, **changes)
    assert (changed.complete, changed.interrupted) == (complete, interrupted)
    assert changed.search_interrupted == (LEFT in changed.not_searched)
