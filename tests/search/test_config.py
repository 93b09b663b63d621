"""Settings of searches and retrainings: every check, and the dictionary form."""

import dataclasses
import json
from typing import Any

import pytest

from dasvit.data.config import DataConfig
from dasvit.methods import DARTS
from dasvit.methods.base import Stage
from dasvit.run.settings import SettingError, config_from_dict, config_to_dict
from dasvit.search.config import SearchConfig
from dasvit.spaces import CellSpace
from dasvit.training.config import RetrainConfig

NAN, INF = float("nan"), float("inf")
EIGHT = CellSpace().operations


def test_defaults_are_the_papers() -> None:
    search, retrain = SearchConfig(), RetrainConfig()
    assert search.stages == (
        Stage(num_layers=2, num_ops=8, epochs=30),
        Stage(num_layers=4, num_ops=5, epochs=30),
        Stage(num_layers=6, num_ops=3, epochs=30),
    )
    assert search.total_epochs == 90
    names = "zero identity msa_h8 msa_h12 msa_h16 mlp_r0.5 mlp_r3 mlp_r4"
    expected = {
        "operations": tuple(names.split()),
        "dim": 768,
        "patch_size": 16,
        "num_nodes": 2,
        "dropout": 0.0,
        "weight_lr": 1e-3,
        "weight_decay": 5e-2,
        "batch_size": 64,
        "alpha_lr": 3e-4,
        "alpha_betas": (0.5, 0.999),
        "alpha_weight_decay": 1e-3,
        "xi": 0.0,
        "token_where": "input",
        "prune_zero": "ranked",
        "inherit_weights": "cyclic",
        "inherit_alpha": "carry",
        "val_fraction": 0.5,
        "image_size": 224,
    }
    assert {name: search.setting(name) for name in expected} == expected
    assert (retrain.epochs, retrain.warmup_epochs, retrain.warmup_lr) == (500, 20, 1e-6)
    assert (retrain.batch_size, retrain.lr, retrain.weight_decay) == (128, 1e-3, 5e-2)
    assert (retrain.dim, retrain.depth, retrain.patch_size) == (768, 12, 16)


OUTSIDE: dict[str, list[Any]] = {
    "image_size": [0, -4],
    "augment": ["mixup"],
    "num_workers": [-1],
    "num_nodes": [0, 7],
    "dim": [0],
    "patch_size": [0],
    "dropout": [-0.1, 1.0, NAN],
    "token_ratio": [0.0, -0.5, 1.01, NAN],
    "token_where": ["output"],
    "gamma_max": [1.1, NAN],
    "gamma_min": [-0.1],
    "zeta1": [-1.0],
    "zeta2": [-1.0, NAN],
    "skip_weight": [-0.5],
    "type_weight": [-0.5],
    "weight_decay": [-0.05],
    "xi": [-1e-3, NAN, INF],
    "weight_lr": [0.0, -1e-3],
    "alpha_lr": [0.0, NAN],
    "alpha_betas": [(0.5, 1.0)],
    "batch_size": [0],
    "val_fraction": [0.0, 1.0],
    "grad_clip": [-1.0],
    "lr_span": ["epoch"],
    "checkpoint_epochs": [0],
    "eval_epochs": [0],
    "alpha_freeze_epochs": [30, -1],
    "stage_layers": [(2, 0, 6), (2, 4)],
    "stage_epochs": [0],
    "prune_zero": ["last"],
    "stage_ops": [(8, 3, 5), (7, 5, 3)],
    "inherit_weights": ["none"],
    "inherit_alpha": ["none"],
    "precision": ["fp16"],
    "edges_per_node": [0],
    "seed": [-1],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUTSIDE.items() for value in values]
)
def test_what_lies_outside_a_settings_range(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=name) as caught:
        SearchConfig().replaced(**{name: value})
    parts = value if isinstance(value, tuple) else (value,)
    assert any(str(part) in str(caught.value) for part in parts)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"operations": ()}, ["operations", "at least one"]),
        ({"operations": ("identity", "identity")}, ["operations", "('identity', 'identity')"]),
        ({"operations": ("zero",), "stage_ops": (1, 1, 1)}, ["operations", "zero"]),
        ({"patch_size": 15}, ["patch_size=15", "image_size=224"]),
        ({"dropout": 0.1, "compile": True}, ["compile", "0.1"]),
        ({"dropout": 0.1, "cuda_graph": True}, ["cuda_graph needs dropout 0, but got 0.1"]),
        ({"dropout": 0.1, "recompute": True}, ["recompute needs fused, and dropout 0"]),
        ({"fused": False, "recompute": True}, ["recompute needs fused, and dropout 0"]),
        ({"gamma_min": 0.5, "gamma_max": 0.5}, ["gamma_min=0.5", "gamma_max=0.5"]),
        ({"gamma_min": 0.7}, ["gamma_min=0.7", "gamma_max=0.5"]),
        ({"stage_layers": (), "stage_ops": ()}, ["stage_layers", "()"]),
        ({"stage_layers": (2, 4)}, ["stage_layers", "(2, 4)", "(8, 5, 3)"]),
        ({"stage_ops": (7, 5, 3)}, ["stage_ops", "(7, 5, 3)", "8 operations"]),
        ({"stage_ops": (8, 5, 0), "prune_zero": "first"}, ["stage_ops", "0"]),
        ({"stage_ops": (8, 5, 1)}, ["stage_ops", "1", "zero alone"]),
        ({"xii": 1}, ["'xii' is no setting of this search"]),
        ({"method": DARTS(), "token_ratio": 0.5}, ["'token_ratio' is no setting of this search"]),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        SearchConfig().replaced(**changes)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"dim": 0}, "dim"),
        ({"depth": 0}, "depth"),
        ({"patch_size": -16}, "patch_size"),
        ({"patch_size": 15}, "patch_size=15, image_size=224"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 20}, "warmup_epochs=20, epochs=20"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"warmup_lr": 0.0}, "warmup_lr"),
        ({"warmup_lr": 0.1}, "warmup_lr=0.1, lr=0.001"),
        ({"lr": 0.0}, "lr"),
        ({"batch_size": 0}, "batch_size"),
        ({"dropout": 1.5}, "dropout"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"grad_clip": -1.0}, "grad_clip"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"label_smoothing": NAN}, "label_smoothing"),
    ],
    ids=str,
)
def test_retrain_checks(changes: dict[str, Any], fragment: str) -> None:
    with pytest.raises(SettingError) as caught:
        RetrainConfig(**changes)
    for part in (fragment, *map(str, changes.values())):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ratio": 1.0, "val_fraction": 0.01, "alpha_freeze_epochs": 29, "num_nodes": 6},
        {"gamma_min": 0.0, "gamma_max": 1.0, "stage_ops": (8, 8, 8)},
        {"stage_ops": (8, 5, 2), "xi": 0.01, "dim": 48},
        {"stage_ops": (8, 5, 1), "prune_zero": "first"},
        {"operations": EIGHT[1:], "stage_ops": (7, 4, 1)},
        {"operations": ("identity",), "stage_layers": (6,), "stage_ops": (1,)},
        {"method": DARTS(), "xi": 0.5, "plugins": ("a", "b"), "image_size": 32},
    ],
    ids=str,
)
def test_settings_go_in_by_their_names_and_through_json(changes: dict[str, Any]) -> None:
    """On the right side of a bound."""
    config = SearchConfig().replaced(**changes)
    for name, value in changes.items():
        if name != "method":
            assert config.setting(name) == value
    assert type(config.method) is type(changes.get("method", SearchConfig().method))
    values = json.loads(json.dumps(config_to_dict(config)))
    read = config_from_dict(SearchConfig, values)
    assert read == config
    assert dataclasses.asdict(read) == dataclasses.asdict(config)  # tuples, not lists
    assert set(values) == {f.name for f in dataclasses.fields(config)}


def test_missing_keys_take_their_defaults() -> None:
    read = config_from_dict(SearchConfig, {"data": {"image_size": 32}})
    assert read == SearchConfig(data=DataConfig(image_size=32))
    retrain = RetrainConfig(model="vit", plugins=("a", "b"), warmup_epochs=0)
    assert config_from_dict(RetrainConfig, config_to_dict(retrain)) == retrain


@pytest.mark.parametrize(
    ("kind", "values", "fragments"),
    [
        (SearchConfig, {"lambda": 0.5}, ["'lambda'", "SearchConfig"]),
        (RetrainConfig, {"xi": 0.5, "dimm": 3}, ["'dimm'", "'xi'", "RetrainConfig"]),
        (SearchConfig, {"data": {"path": "x"}}, ["'path'", "DataConfig"]),
        (SearchConfig, {"method": {"name": "dasvit", "token_ratio": 2}}, ["token_ratio", "2"]),
        (SearchConfig, {"method": {"name": "darts", "zeta1": 2}}, ["'zeta1'", "DARTS"]),
        (SearchConfig, {"method": {"name": "nas"}}, ["unknown method 'nas'; known: darts, dasvit"]),
        (SearchConfig, {"data": {"image_size": 0}}, ["image_size", "0"]),
        (SearchConfig, {"data": 3}, ["data must be an object"]),
    ],
)
def test_bad_dictionaries(kind: type, values: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (each has its fragments)
        config_from_dict(kind, values)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_frozen_and_keyword_only() -> None:
    config = SearchConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        SearchConfig(DataConfig())  # type: ignore[misc]


@pytest.mark.parametrize("kind", [SearchConfig, RetrainConfig])
def test_no_two_parts_have_a_setting_of_one_name(kind: type) -> None:
    """So that each can go by its own."""
    names = [f.name for f in dataclasses.fields(kind)]
    for f in dataclasses.fields(kind):
        part = getattr(kind(), f.name)
        if dataclasses.is_dataclass(part):
            names += [inner.name for inner in dataclasses.fields(part)]
    assert len(names) == len(set(names))
