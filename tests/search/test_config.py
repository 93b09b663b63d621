"""Settings: every check, and the dictionary form."""

import dataclasses
import json
from typing import Any

import pytest

from dasvit.data.config import DataConfig
from dasvit.run.settings import config_from_dict, config_to_dict
from dasvit.search.config import SearchConfig, Stage
from dasvit.training.config import RetrainConfig

DATA = DataConfig(dataset="cifar10", image_size=224)
NAN, INF = float("nan"), float("inf")
EIGHT = SearchConfig(data=DATA).operations


def _search(**changes: Any) -> SearchConfig:
    return SearchConfig(**({"data": DATA} | changes))


def _retrain(**changes: Any) -> RetrainConfig:
    return RetrainConfig(**({"data": DATA} | changes))


def test_search_defaults_are_the_papers() -> None:
    config = _search()
    assert config.operations == (
        "zero",
        "identity",
        "msa_h8",
        "msa_h12",
        "msa_h16",
        "mlp_r0.5",
        "mlp_r3",
        "mlp_r4",
    )
    assert (config.dim, config.patch_size, config.num_nodes, config.dropout) == (768, 16, 2, 0.0)
    assert config.stages == (
        Stage(num_layers=2, num_ops=8, epochs=30),
        Stage(num_layers=4, num_ops=5, epochs=30),
        Stage(num_layers=6, num_ops=3, epochs=30),
    )
    assert config.total_epochs == 90
    assert (config.weight_lr, config.weight_decay, config.batch_size) == (1e-3, 5e-2, 64)
    assert (config.alpha_lr, config.alpha_betas, config.alpha_weight_decay) == (
        3e-4,
        (0.5, 0.999),
        1e-3,
    )
    assert (config.token_where, config.prune_zero, config.xi) == ("input", "ranked", 0.0)
    assert (config.inherit_weights, config.inherit_alpha) == ("cyclic", "carry")
    assert config.val_fraction == 0.5


def test_retrain_defaults_are_the_papers() -> None:
    config = _retrain()
    assert (config.epochs, config.warmup_epochs, config.warmup_lr) == (500, 20, 1e-6)
    assert (config.batch_size, config.lr, config.weight_decay) == (128, 1e-3, 5e-2)
    assert (config.dim, config.depth, config.patch_size) == (768, 12, 16)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"image_size": 0}, ["image_size", "0"]),
        ({"image_size": -4}, ["image_size", "-4"]),
        ({"augment": "mixup"}, ["augment", "'mixup'"]),
        ({"num_workers": -1}, ["num_workers", "-1"]),
    ],
)
def test_data_checks(changes: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(ValueError, match=fragments[0]) as caught:
        DataConfig(**changes)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"operations": ()}, ["operations", "at least one"]),
        ({"operations": ("identity", "identity")}, ["operations", "('identity', 'identity')"]),
        ({"operations": ("zero",), "stage_ops": (1, 1, 1)}, ["operations", "zero"]),
        ({"num_nodes": 0}, ["num_nodes", "0"]),
        ({"num_nodes": 7}, ["num_nodes", "7"]),
        ({"dim": 0}, ["dim", "0"]),
        ({"patch_size": 0}, ["patch_size", "0"]),
        ({"patch_size": 15}, ["patch_size=15", "image_size=224"]),
        ({"dropout": -0.1}, ["dropout", "-0.1"]),
        ({"dropout": 1.0}, ["dropout", "1.0"]),
        ({"dropout": NAN}, ["dropout", "nan"]),
        ({"dropout": 0.1, "compile": True}, ["compile", "0.1"]),
        ({"token_ratio": 0.0}, ["token_ratio", "0.0"]),
        ({"token_ratio": -0.5}, ["token_ratio", "-0.5"]),
        ({"token_ratio": 1.01}, ["token_ratio", "1.01"]),
        ({"token_ratio": NAN}, ["token_ratio", "nan"]),
        ({"token_where": "output"}, ["token_where", "'output'"]),
        ({"gamma_min": 0.5, "gamma_max": 0.5}, ["gamma_min=0.5", "gamma_max=0.5"]),
        ({"gamma_min": 0.7}, ["gamma_min=0.7", "gamma_max=0.5"]),
        ({"gamma_min": -0.1}, ["gamma_min=-0.1"]),
        ({"gamma_max": 1.1}, ["gamma_max=1.1"]),
        ({"gamma_max": NAN}, ["gamma_max", "nan"]),
        ({"zeta1": -1.0}, ["zeta1", "-1.0"]),
        ({"zeta2": -1.0}, ["zeta2", "-1.0"]),
        ({"zeta2": NAN}, ["zeta2", "nan"]),
        ({"skip_weight": -0.5}, ["skip_weight", "-0.5"]),
        ({"type_weight": -0.5}, ["type_weight", "-0.5"]),
        ({"weight_decay": -0.05}, ["weight_decay", "-0.05"]),
        ({"xi": -1e-3}, ["xi", "-0.001"]),
        ({"xi": NAN}, ["xi", "nan"]),
        ({"xi": INF}, ["xi", "inf"]),
        ({"virtual_step": "adamw"}, ["virtual_step", "'adamw'", "refused"]),
        ({"virtual_step": "momentum"}, ["virtual_step", "'momentum'"]),
        ({"weight_lr": 0.0}, ["weight_lr", "0.0"]),
        ({"weight_lr": -1e-3}, ["weight_lr", "-0.001"]),
        ({"alpha_lr": 0.0}, ["alpha_lr", "0.0"]),
        ({"alpha_lr": NAN}, ["alpha_lr", "nan"]),
        ({"batch_size": 0}, ["batch_size", "0"]),
        ({"val_fraction": 0.0}, ["val_fraction", "0.0"]),
        ({"val_fraction": 1.0}, ["val_fraction", "1.0"]),
        ({"grad_clip": -1.0}, ["grad_clip", "-1.0"]),
        ({"alpha_freeze_epochs": 30}, ["alpha_freeze_epochs", "29", "30"]),
        ({"checkpoint_epochs": 0}, ["checkpoint_epochs", "0"]),
        ({"eval_epochs": 0}, ["eval_epochs", "0"]),
        ({"alpha_freeze_epochs": -1}, ["alpha_freeze_epochs", "-1"]),
        ({"stage_layers": (), "stage_ops": ()}, ["stage_layers", "()"]),
        ({"stage_layers": (2, 4)}, ["stage_layers", "(2, 4)", "(8, 5, 3)"]),
        ({"stage_layers": (2, 0, 6)}, ["stage_layers", "(2, 0, 6)"]),
        ({"stage_ops": (7, 5, 3)}, ["stage_ops", "(7, 5, 3)", "8 operations"]),
        ({"stage_ops": (8, 3, 5)}, ["stage_ops", "(8, 3, 5)"]),
        ({"stage_ops": (8, 5, 0), "prune_zero": "first"}, ["stage_ops", "(8, 5, 0)"]),
        ({"stage_ops": (8, 5, 1)}, ["stage_ops", "(8, 5, 1)", "zero alone"]),
        ({"stage_epochs": 0}, ["stage_epochs", "0"]),
        ({"prune_zero": "last"}, ["prune_zero", "'last'"]),
        ({"inherit_weights": "none"}, ["inherit_weights", "'none'"]),
        ({"inherit_alpha": "none"}, ["inherit_alpha", "'none'"]),
    ],
)
def test_search_checks(changes: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(ValueError, match=fragments[0]) as caught:
        _search(**changes)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"dim": 0}, ["dim=0"]),
        ({"depth": 0}, ["depth=0"]),
        ({"patch_size": -16}, ["patch_size=-16"]),
        ({"patch_size": 15}, ["patch_size=15", "image_size=224"]),
        ({"epochs": 0}, ["epochs", "0"]),
        ({"epochs": 20}, ["warmup_epochs=20", "epochs=20"]),
        ({"warmup_epochs": -1}, ["warmup_epochs=-1"]),
        ({"warmup_lr": 0.0}, ["warmup_lr=0.0"]),
        ({"warmup_lr": 0.1}, ["warmup_lr=0.1", "lr=0.001"]),
        ({"lr": 0.0}, ["lr=0.0"]),
        ({"batch_size": 0}, ["batch_size", "0"]),
        ({"dropout": 1.5}, ["dropout", "1.5"]),
        ({"weight_decay": -1.0}, ["weight_decay", "-1.0"]),
        ({"grad_clip": -1.0}, ["grad_clip", "-1.0"]),
        ({"label_smoothing": -0.1}, ["label_smoothing", "-0.1"]),
        ({"label_smoothing": NAN}, ["label_smoothing", "nan"]),
    ],
)
def test_retrain_checks(changes: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(ValueError, match=fragments[0]) as caught:
        _retrain(**changes)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ratio": 1.0},
        {"gamma_min": 0.0, "gamma_max": 1.0},
        {"val_fraction": 0.01},
        {"stage_ops": (8, 8, 8)},
        {"stage_ops": (8, 5, 2)},
        {"stage_ops": (8, 5, 1), "prune_zero": "first"},
        {"operations": EIGHT[1:], "stage_ops": (7, 4, 1)},
        {"stage_layers": (6,), "stage_ops": (8,)},
        {"alpha_freeze_epochs": 29},
        {"num_nodes": 6},
        {"operations": ("identity",), "stage_layers": (1,), "stage_ops": (1,)},
    ],
)
def test_what_lies_on_the_right_side_of_a_bound(changes: dict[str, Any]) -> None:
    config = _search(**changes)
    for name, value in changes.items():
        assert getattr(config, name) == value


@pytest.mark.parametrize(
    "config",
    [
        _search(),
        _search(
            xi=0.01,
            alpha_betas=(0.9, 0.99),
            plugins=("support.plugin_operation",),
            stage_ops=(8, 4, 2),
        ),
        _retrain(),
        _retrain(model="vit", plugins=("a", "b"), warmup_epochs=0),
    ],
)
def test_dictionary_round_trip(config: SearchConfig | RetrainConfig) -> None:
    values = json.loads(json.dumps(config_to_dict(config)))
    read = config_from_dict(type(config), values)
    assert read == config
    assert dataclasses.asdict(read) == dataclasses.asdict(config)  # tuples, not lists
    assert set(values) == {f.name for f in dataclasses.fields(config)}


def test_missing_keys_take_their_defaults() -> None:
    assert config_from_dict(SearchConfig, {"data": {"image_size": 32}}) == SearchConfig(
        data=DataConfig(image_size=32)
    )


@pytest.mark.parametrize(
    ("kind", "values", "fragments"),
    [
        (SearchConfig, {"lambda": 0.5}, ["'lambda'", "SearchConfig"]),
        (RetrainConfig, {"xi": 0.5, "dimm": 3}, ["'dimm'", "'xi'", "RetrainConfig"]),
        (SearchConfig, {"data": {"path": "x"}}, ["'path'", "DataConfig"]),
        (SearchConfig, {"data": {"image_size": 32}, "token_ratio": 2}, ["token_ratio", "2"]),
        (SearchConfig, {"data": {"image_size": 0}}, ["image_size", "0"]),
    ],
)
def test_bad_dictionaries(kind: type, values: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(ValueError, match=fragments[0]) as caught:
        config_from_dict(kind, values)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_frozen_and_keyword_only() -> None:
    config = _search()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.xi = 0.1  # type: ignore[misc]
    with pytest.raises(TypeError):
        SearchConfig(DATA)  # type: ignore[misc]
    with pytest.raises(ValueError, match="xi"):
        dataclasses.replace(config, xi=-1.0)
