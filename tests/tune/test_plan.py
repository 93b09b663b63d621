import dataclasses
import json

import pytest

from tune.options import parse_options
from tune.plan import Plan


def test_a_plan_survives_the_file(plan: Plan) -> None:
    for changed in (
        plan,
        dataclasses.replace(plan, strategy="random"),
        dataclasses.replace(
            plan, random_baseline=3, check_seeds=2, space="/a.py:f sha256=0", fixed=("xi",)
        ),
    ):
        assert Plan.from_dict(json.loads(json.dumps(changed.to_dict()))) == dataclasses.replace(
            changed, retrain=dataclasses.replace(changed.retrain, model="vit")
        )


def test_malformed_settings_are_one_line(plan: Plan) -> None:
    values = plan.to_dict()
    with pytest.raises(ValueError, match=r"malformed settings.*KeyError: 'search'"):
        Plan.from_dict({k: v for k, v in values.items() if k != "search"})
    with pytest.raises(ValueError, match=r"malformed settings.*unexpected.*'more'"):
        Plan.from_dict({**values, "more": 1})


def test_counts(plan: Plan) -> None:
    assert (plan.num_searches, plan.num_random, plan.num_retrainings) == (4, 0, 6)
    beside = dataclasses.replace(plan, random_baseline=5)
    assert (beside.num_searches, beside.num_random, beside.num_retrainings) == (4, 5, 16)
    random = dataclasses.replace(plan, strategy="random", num_samples=7)
    assert (random.num_searches, random.num_random, random.num_retrainings) == (0, 7, 16)
    assert len(random.random_genotypes()) == 7
    # The draws beside a search are those of the random search, as far as they go.
    assert random.random_genotypes()[:5] == beside.random_genotypes()


def test_fresh_seeds_come_after_those_of_the_search(plan: Plan) -> None:
    checking = dataclasses.replace(plan, check_seeds=3)
    assert (checking.search_seeds, checking.fresh_seeds) == (range(2), range(2, 5))
    assert len(plan.fresh_seeds) == 0


def test_every_model_is_retrained_once(plan: Plan, outcome) -> None:
    first, second = (summary.genotype for summary in outcome.ranking)
    other = dataclasses.replace(plan, random_baseline=1).random_genotypes()
    found = [summary.hash for summary in outcome.ranking]
    names = plan.models(found, (second, *other))
    hashes = [g.canonical_hash for g in (first, second, *other)]
    assert names == (*hashes, "vit")


def test_the_command_line_makes_the_plan() -> None:
    plan = parse_options(["--search", "random", "--num-samples", "5", "--seed", "3"]).plan()
    assert (plan.strategy, plan.num_random, plan.search.seed) == ("random", 5, 3)
    plan = parse_options(["--random-baseline", "4", "--xi", "0"]).plan("/a.py:f")
    assert (plan.strategy, plan.num_random, plan.fixed, plan.space) == (
        "gradient", 4, ("xi",), "/a.py:f",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--random-baseline -1", "--random-baseline must be 0 to 100000, but got -1"),
        ("--search random --random-baseline 2", "--search random takes no --random-baseline"),
        ("--search random --space a.py:f", "--search random takes no --space"),
        ("--search random --check-seeds 2", "--search random takes no --check-seeds"),
        ("--check-seeds -1", "--check-seeds must be 0 to 100000, but got -1"),
        ("--search grid", "search"),
        ("--num-samples 1 --seeds 2 --retrain-top 3", "--retrain-top 3: 1 configurations × 2 "),
    ],
)
def test_bad_input_is_one_line(argv: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_options(argv.split())
    assert "\n" not in str(caught.value)
