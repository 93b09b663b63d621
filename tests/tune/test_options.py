from pathlib import Path

import numpy as np
import pytest

from dasvit.methods import DARTS
from tune.options import parse_options
from tune.space import first_draws, outer_space, to_search_config


def test_defaults() -> None:
    options = parse_options([])
    plan = options.plan
    assert (options.preset, plan.num_samples, plan.seeds, plan.retrain_top) == ("digits", 16, 2, 2)
    assert plan.num_searches == 32
    assert plan.fixed == ()
    assert options.folder_name == "digits"
    assert (plan.search_seeds, plan.retraining_seeds) == (range(2), range(2))


def test_the_preset_sets_all_defaults() -> None:
    options = parse_options(["--preset=cifar10", "--data-dir", "."])
    assert options.plan.search.space.dim == 768
    assert options.plan.retrain.epochs == 500
    assert options.folder_name == "cifar10"


def test_settings_by_their_names() -> None:
    argv = "--dim 24 --stage-layers 1 2 2 --token-where edge --seed 7 --retrain.epochs 9 --xi=0.5"
    options = parse_options([*argv.split(), "--retrain-seeds", "3", "--retrain.seed", "4"])
    assert options.plan.search.space.dim == 24
    assert options.plan.search.method.stage_layers == (1, 2, 2)
    assert options.plan.search.method.token_where == "edge"
    assert options.plan.search_seeds == range(7, 9)
    assert options.plan.retrain.epochs == 9
    assert options.plan.retraining_seeds == range(4, 7)
    assert options.plan.fixed == ("xi",)


def test_data_settings_reach_both_phases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    options = parse_options(["--preset", "cifar10", "--data-dir", "data", "--dataset", "cifar100"])
    for data in (options.plan.search.data, options.plan.retrain.data):
        assert (data.dataset, data.data_dir) == ("cifar100", str(tmp_path / "data"))
    apart = parse_options(
        ["--preset", "cifar10", "--data-dir", "d", "--retrain.data.dataset", "cifar100"]
    )
    assert (apart.plan.search.data.dataset, apart.plan.retrain.data.dataset) == (
        "cifar10",
        "cifar100",
    )
    assert apart.plan.retrain.data.data_dir == str(tmp_path / "d")


def test_both_phases_hold_the_same_images_out() -> None:
    """Else the search would choose by images of the retraining's test set."""
    options = parse_options(["--test-fraction", "0.05"])
    assert options.plan.search.data.test_fraction == options.plan.retrain.data.test_fraction == 0.05
    same = ["--test-fraction", "0.1", "--retrain.data.test-fraction", "0.1"]
    assert parse_options(same).plan.retrain.data.test_fraction == 0.1
    with pytest.raises(ValueError, match="split the same images differently"):
        parse_options(["--retrain.data.test-fraction", "0.3"])


def test_both_phases_see_images_of_one_size_unless_both_are_given() -> None:
    both = ["--image-size", "16", "--retrain.data.image-size", "32"]
    options = parse_options(both)
    assert (options.plan.search.data.image_size, options.plan.retrain.data.image_size) == (16, 32)
    with pytest.raises(ValueError, match=r"of 16 pixels .* of 8; give --retrain\.data\.image-size"):
        parse_options(both[:2])
    with pytest.raises(ValueError, match=r"of 8 pixels .* of 32; give --image-size too"):
        parse_options(both[2:])


def test_a_retraining_has_the_plugins_of_the_search() -> None:
    options = parse_options(["--plugins", "json", "--retrain.plugins", "csv"])
    assert options.plan.retrain.plugins == ("json", "csv")


def test_another_method_names_its_own_outer_settings() -> None:
    options = parse_options(["--method", "darts", "--stage-epochs", "4"])
    assert type(options.plan.search.method) is DARTS
    assert options.plan.search.method.stage_layers == (2,) and options.plan.search.total_epochs == 4
    assert set(outer_space(options.plan.search)) == {"xi"}
    with pytest.raises(ValueError, match="token-ratio"):
        parse_options(["--method", "darts", "--token-ratio", "0.5"])


@pytest.mark.parametrize(
    "argv", ["--gamma-max 0.15", "--gamma-max=0.15", "--gamma_max 0.01", "--gamma-min 0.7"]
)
def test_one_bound_leaves_the_other_to_the_sweep(argv: str) -> None:
    """Below the preset's gamma_min, or above its gamma_max, which are drawn."""
    options = parse_options(argv.split())
    name = "gamma_max" if "max" in argv else "gamma_min"
    value = float(argv.replace("=", " ").split()[1])
    assert options.plan.fixed == (name,)
    assert options.plan.search.setting(name) == value
    space = outer_space(options.plan.search, fixed=options.plan.fixed)
    for seed in range(50):
        state = np.random.RandomState(seed)
        sampled = {n: domain.sample(random_state=state) for n, domain in space.items()}
        drawn = to_search_config(options.plan.search, sampled, seed)  # refuses what cannot be
        assert drawn.setting(name) == value
    [own, *_] = first_draws(options.plan.search, space)
    assert all(space[name].is_valid(value) for name, value in own.items())


def test_a_bound_that_fits_moves_nothing() -> None:
    preset = parse_options([]).plan.search.method
    assert parse_options(["--gamma-max", "0.9"]).plan.search.method.gamma_min == preset.gamma_min
    assert parse_options(["--gamma-min", "0.1"]).plan.search.method.gamma_max == preset.gamma_max


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--preset nix", "unknown preset 'nix'; known: digits"),
        ("--token-ratio 1.5", r"^token_ratio must lie in \(0, 1\], but got 1.5"),
        ("--gamma-min 0.6 --gamma-max 0.5", "gamma_min=0.6, gamma_max=0.5"),
        ("--gamma-max 0", "^--gamma-max 0 leaves --gamma-min no room: 0 <= gamma_min"),
        ("--gamma-max -0.2", "^--gamma-max -0.2 leaves --gamma-min no room"),
        ("--gamma-min 1", "^--gamma-min 1 leaves --gamma-max no room: 0 <= gamma_min"),
        ("--gamma-max 1.5", "gamma_min=0.2, gamma_max=1.5"),
        ("--gamma-max x", "^--gamma-max: "),
        ("--gamma-max 0.1 --gamma-min 0.1", "gamma_min=0.1, gamma_max=0.1"),
        ("--xi -1", "^xi must be at least 0, but got -1"),
        ("--seeds 0", r"^seeds must lie in \[1, 100000\], but got 0"),
        (f"--name {'a' * 300}", "^name must have at most 200 characters, but has 300"),
        ("--num-samples 0", r"^num_samples must lie in \[1, 100000\]"),
        ("--num-samples 1000000000", "^num_samples must be at most 100000"),
        ("--retrain-seeds 1000000000", "^retrain_seeds must be at most 100000"),
        ("--num-samples 90000 --seeds 2", "^num_samples times seeds must be at most 100000"),
        ("--dim 1000000000", "^dim must be at most 65536, but got 1000000000"),
        ("--num-samples x", "^--num-samples: invalid int value"),
        ("--gpus-per-trial -1", "gpus_per_trial must be 0 or more"),
        ("--retrain.warmup-epochs 900", "warmup_epochs=900"),
        ("--retrain.model vit", "the sweep itself chooses what to retrain"),
        ("--tokn-ratio 0.5", "^unknown option --tokn-ratio; did you mean --token-ratio"),
        ("--metric test_top1", "^--metric: invalid choice"),
    ],
)
def test_bad_input_is_one_line(argv: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_options(argv.split())
    assert "\n" not in str(caught.value)
    assert "│" not in str(caught.value)
