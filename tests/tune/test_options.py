"""The command line of a sweep, and the plan that it makes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dasvit.methods import DARTS, method_names
from tune.options import parse_options
from tune.phases import _spaces
from tune.plan import Plan
from tune.report.outcome import Outcome
from tune.space import first_draws, outer_space, to_search_config

ASHA = "--scheduler asha --metric supernet_accuracy"
SEVERAL = "--objectives accuracy macs"


def plan_of(line: str) -> Plan:
    return parse_options(line.split()).plan


def test_defaults_are_the_presets() -> None:
    plan = plan_of("")
    assert (plan.num_samples, plan.seeds, plan.retrain_top, plan.fixed) == (16, 2, 2, ())
    assert (plan.search_seeds, plan.retraining_seeds) == (range(2), range(2))
    assert parse_options([]).folder_name == "digits"
    plan = plan_of("--preset=cifar10 --data-dir .")
    assert (plan.search.space.dim, plan.retrain.epochs) == (768, 500)


def test_settings_by_their_names() -> None:
    plan = plan_of(
        "--dim 24 --stage-layers 1 2 2 --token-where edge --seed 7 --xi=0.5 --random-baseline 4 "
        "--space a.py:f --retrain.epochs 9 --retrain-seeds 3 --retrain.seed 4"
    )
    assert (plan.search.space.dim, plan.search.method.stage_layers) == (24, (1, 2, 2))
    assert (plan.search_seeds, plan.retraining_seeds) == (range(7, 9), range(4, 7))
    assert (plan.retrain.epochs, plan.fixed) == (9, ("xi",))
    assert (plan.strategy, plan.num_random, plan.space) == ("gradient", 4, "a.py:f")
    plan = plan_of("--search random --num-samples 5")
    assert (plan.strategy, plan.num_random) == ("random", 5)


def test_data_and_plugins_of_the_search_reach_the_retraining(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_of("--preset cifar10 --data-dir d --dataset cifar100")
    for data in (plan.search.data, plan.retrain.data):
        assert (data.dataset, data.data_dir) == ("cifar100", str(tmp_path / "d"))
    apart = plan_of("--preset cifar10 --data-dir d --retrain.data.dataset cifar100")
    assert (apart.search.data.dataset, apart.retrain.data.dataset) == ("cifar10", "cifar100")
    # Else the search would choose by images of the retraining's test set.
    assert plan_of("--test-fraction 0.05").retrain.data.test_fraction == 0.05
    both = plan_of("--image-size 16 --retrain.data.image-size 32")
    assert (both.search.data.image_size, both.retrain.data.image_size) == (16, 32)
    assert plan_of("--plugins json --retrain.plugins csv").retrain.plugins == ("json", "csv")


def test_another_method_names_its_own_outer_settings() -> None:
    search = plan_of("--method darts --stage-epochs 4").search
    assert type(search.method) is DARTS and search.total_epochs == 4
    assert set(outer_space(search)) == {"xi"}
    with pytest.raises(ValueError, match="token-ratio"):
        plan_of("--method darts --token-ratio 0.5")


def test_all_methods_take_turns() -> None:
    """Each begins as it would by itself; what is given is fixed for those that vary it."""
    plan = plan_of(
        "--method all --num-samples 30 --alpha-lr 0.5 --skip-weight 0.2 --stage-epochs 4"
    )
    assert plan.methods == method_names() and plan.fixed == ("skip_weight",)
    assert [start.method.name for start in plan.starts] == list(method_names())
    for number, name in enumerate(method_names()):
        alone = plan_of(f"--method {name} --stage-epochs 12").search.total_epochs
        for start in (plan.start(number), plan.start(number + len(plan.methods))):
            assert (start.method.name, start.method.alpha_lr) == (name, 0.5)
            assert start.total_epochs == 12 <= alone
    assert plan.plain_darts is None
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert (again.methods, again.starts) == (plan.methods, plan.starts)
    assert plan_of("--method=all").methods == method_names()
    assert plan_of("--method gdas,darts").methods == ("gdas", "darts")
    spaces = _spaces(parse_options(["--method", "all"]))
    assert {name: bool(space) for name, space in spaces.items()} == dict.fromkeys(
        plan.methods, True
    )
    with pytest.raises(ValueError, match=r"method darts: .*nothing to sweep.* or name methods"):
        _spaces(parse_options(["--method", "darts,gdas", "--xi", "0.5"]))
    with pytest.raises(ValueError, match="unknown method 'dart'"):
        plan_of("--method dart,gdas")
    for line, error in (
        ("--num-samples 3", "--num-samples must be at least"),
        ("--metric supernet_accuracy", "do not compare"),
        ("--space a.py:f", "neither --space"),
        ("--search random", "nor --search random"),
    ):
        with pytest.raises(ValueError, match=error):
            plan_of(f"--method all {line}")


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [("--gamma-max=0.15", "gamma_max", 0.15), ("--gamma_min 0.7", "gamma_min", 0.7)],
)
def test_one_bound_leaves_the_other_to_the_sweep(argv: str, name: str, value: float) -> None:
    """Below the preset's gamma_min, or above its gamma_max, which are drawn."""
    plan = plan_of(argv)
    assert plan.fixed == (name,) and plan.search.setting(name) == value
    space = outer_space(plan.search, fixed=plan.fixed)
    for seed in range(50):
        state = np.random.RandomState(seed)
        sampled = {n: domain.sample(random_state=state) for n, domain in space.items()}
        drawn = to_search_config(plan.search, sampled, seed)  # refuses what cannot be
        assert drawn.setting(name) == value
    [own, *_] = first_draws(plan.search, space)
    assert all(space[name].is_valid(value) for name, value in own.items())


def test_a_bound_that_fits_moves_nothing() -> None:
    preset = plan_of("").search.method
    assert plan_of("--gamma-max 0.9").search.method.gamma_min == preset.gamma_min


def test_a_plan_survives_the_file(plan: Plan) -> None:
    for changed in (
        plan,
        replace(plan, strategy="random", metric="trained_accuracy"),
        replace(plan, random_baseline=3, rungs=(5, 9), space="/a.py:f sha256=0", fixed=("xi",)),
        replace(plan, scheduler="asha", metric="supernet_accuracy", grace_epochs=2),
        replace(plan, objectives=("accuracy", "macs")),
    ):
        values = json.loads(json.dumps(changed.to_dict()))
        retrain = replace(changed.retrain, model="vit")
        assert Plan.from_dict(values) == replace(changed, retrain=retrain)
    values = plan.to_dict()
    with pytest.raises(ValueError, match=r"malformed settings.*KeyError: 'search'"):
        Plan.from_dict({k: v for k, v in values.items() if k != "search"})
    with pytest.raises(ValueError, match=r"malformed settings.*unexpected.*'more'"):
        Plan.from_dict({**values, "more": 1})


def test_counts_of_trials(plan: Plan) -> None:
    beside = replace(plan, random_baseline=5)
    random = replace(plan, strategy="random", metric="trained_accuracy", num_samples=7)
    counts = [(p.num_searches, p.num_random, p.num_retrainings) for p in (plan, beside, random)]
    assert counts == [(4, 0, 6), (4, 5, 16), (0, 7, 6)]
    # The draws beside a search are those of the random search, as far as they go.
    assert random.random_genotypes()[:5] == beside.random_genotypes()
    assert plan_of(f"--preset cifar10 --data-dir . {ASHA}").first_rung == 10


def test_every_model_is_retrained_once(plan: Plan, outcome: Outcome) -> None:
    first, second = (summary.genotype for summary in outcome.ranking)
    other = replace(plan, random_baseline=1).random_genotypes()
    found = [summary.hash for summary in outcome.ranking]
    beside = replace(plan, random_baseline=2)
    hashes = [g.canonical_hash for g in (first, second, *other)]
    assert beside.models(found, (second, *other)) == (*hashes, "vit")
    # Of a random search those that the ladder chose.
    chosen = replace(plan, strategy="random", metric="trained_accuracy")
    assert chosen.models(found[:1], (second, *other)) == (found[0], "vit")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--tokn-ratio 0.5", "^unknown option --tokn-ratio; did you mean --token-ratio"),
        ("--seeds 0", r"^seeds must lie in \[1, 100000\], but got 0"),
        ("--num-samples 90000 --seeds 2", "^num_samples times seeds must be at most 100000"),
        ("--gpus-per-trial -1", "gpus_per_trial must be 0 or more"),
        ("--workers 7", "workers must divide"),
        (f"--name {'a' * 300}", "^name must have at most 200 characters, but has 300"),
        ("--resume --fresh", "give one of them"),
        ("--gamma-min 0.6 --gamma-max 0.5", "gamma_min=0.6, gamma_max=0.5"),
        ("--gamma-max 0", "^--gamma-max 0 leaves --gamma-min no room: 0 <= gamma_min"),
        ("--gamma-max x", "^--gamma-max: "),
        ("--retrain.model vit", "the sweep itself chooses what to retrain"),
        ("--retrain.held-out 0.2", "--retrain.held-out: what is retrained sees all training"),
        ("--retrain.data.test-fraction 0.3", "split the same images differently"),
        ("--image-size 16", r"of 16 pixels .* of 8; give --retrain\.data\.image-size"),
        ("--search random --random-baseline 2", "--search random takes no --random-baseline"),
        ("--search random --space a.py:f", "--search random takes no --space"),
        ("--search random --metric supernet_accuracy", "it searches nothing that has one"),
        ("--rungs 12 8", r"rungs must grow, but got \(12, 8\)"),
        ("--prefer small --metric supernet_accuracy", "--prefer small goes by the accuracy on"),
        ("--proposals 2 --search random", "--proposals are draws of a search, and climb"),
        ("--num-samples 1 --retrain-top 7", "--retrain-top 7: 1 configurations × 2 seeds and 4 "),
        ("--objectives macs", "begin with accuracy"),
        ("--objectives accuracy speed", "speed"),
        ("--objectives accuracy macs macs", "each once"),
        (f"{SEVERAL} {ASHA}", "objectives.*stopped early"),
        (f"{SEVERAL} --search random", "--search random takes no --objectives"),
        ("--scheduler asha", "--metric supernet_accuracy"),
        ("--grace-epochs 2", "--grace-epochs is ASHA's: add --scheduler asha"),
        (f"{ASHA} --eval-epochs 2", "accuracy of every epoch"),
        (f"{ASHA} --grace-epochs 6", "less than a search's 6 epochs"),
        (f"{ASHA} --reduction-factor 1", "at least 2"),
        (f"{ASHA} --stage-epochs 1 --stage-layers 1 --stage-ops 8", "one epoch"),
        (f"{ASHA} --search random", "--search random takes no --scheduler"),
    ],
)
def test_bad_input_is_one_line(argv: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_options(argv.split())
    assert "\n" not in str(caught.value)
