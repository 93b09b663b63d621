import dataclasses
import json

import pytest

from tune.options import parse_options
from tune.plan import Plan


def test_a_plan_survives_the_file(plan: Plan) -> None:
    for changed in (
        plan,
        dataclasses.replace(plan, strategy="random", metric="trained_accuracy"),
        dataclasses.replace(
            plan, random_baseline=3, rungs=(5, 9), space="/a.py:f sha256=0", fixed=("xi",)
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
    random = dataclasses.replace(plan, strategy="random", metric="trained_accuracy", num_samples=7)
    assert (random.num_searches, random.num_random, random.num_retrainings) == (0, 7, 6)
    assert len(random.random_genotypes()) == 7
    # The draws beside a search are those of the random search, as far as they go.
    assert random.random_genotypes()[:5] == beside.random_genotypes()


def test_every_model_is_retrained_once(plan: Plan, outcome) -> None:
    first, second = (summary.genotype for summary in outcome.ranking)
    other = dataclasses.replace(plan, random_baseline=1).random_genotypes()
    found = [summary.hash for summary in outcome.ranking]
    beside = dataclasses.replace(plan, random_baseline=2)
    hashes = [g.canonical_hash for g in (first, second, *other)]
    assert beside.models(found, (second, *other)) == (*hashes, "vit")
    # Of a random search those that the ladder chose.
    chosen = dataclasses.replace(plan, strategy="random", metric="trained_accuracy")
    assert chosen.models(found[:1], (second, *other)) == (found[0], "vit")


def test_the_command_line_makes_the_plan() -> None:
    plan = parse_options(["--search", "random", "--num-samples", "5", "--seed", "3"]).plan
    assert (plan.strategy, plan.num_random, plan.search.seed) == ("random", 5, 3)
    plan = parse_options(["--random-baseline", "4", "--xi", "0", "--space", "a.py:f"]).plan
    assert (plan.strategy, plan.num_random, plan.fixed, plan.space) == (
        "gradient", 4, ("xi",), "a.py:f",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--random-baseline -1", "random_baseline must lie in \\[0, 100000\\], but got -1"),
        ("--search random --random-baseline 2", "--search random takes no --random-baseline"),
        ("--search random --space a.py:f", "--search random takes no --space"),
        ("--search random --metric supernet_accuracy", "it searches nothing that has one"),
        ("--rungs 12 8", "rungs must grow, but got \\(12, 8\\)"),
        ("--prefer small --metric supernet_accuracy", "--prefer small goes by the accuracy on"),
        ("--retrain.held-out 0.2", "--retrain.held-out: what is retrained sees all training"),
        ("--search grid", "search"),
        ("--proposals 2 --search random", "--proposals are draws of a search, and climb"),
        ("--proposals 2 --metric discretised_accuracy", "--proposals are draws of a search"),
        ("--num-samples 1 --retrain-top 7", "--retrain-top 7: 1 configurations × 2 seeds and 4 "),
    ],
)
def test_bad_input_is_one_line(argv: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_options(argv.split())
    assert "\n" not in str(caught.value)
