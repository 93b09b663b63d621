"""Settings of a search: their ranges, what goes together, and each by its own name."""

import dataclasses
import itertools
from typing import Any

import pytest

from dasvit.methods import DARTS
from dasvit.presets import get_preset
from dasvit.run.settings import SettingError, config_from_dict, config_to_dict
from dasvit.search.config import SearchConfig

NAN, INF = float("nan"), float("inf")
PAPER = get_preset("cifar10").search
EIGHT = PAPER.space.operations


COUNTS = "image_size dim patch_size batch_size num_nodes edges_per_node stage_epochs"
WEIGHTS = "zeta1 zeta2 skip_weight type_weight weight_decay alpha_weight_decay grad_clip xi"
CHOICES = (
    "augment token_where lr_span precision prune_zero inherit_weights inherit_alpha type_scope"
)


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (f"{COUNTS} checkpoint_epochs eval_epochs", [0, -4]),
        (f"{WEIGHTS} alpha_init_std", [-1e-3, NAN, INF]),
        ("weight_lr alpha_lr", [0.0, -1e-3, NAN]),
        ("dropout", [-0.1, 1.0, NAN]),
        ("token_ratio", [0.0, -0.5, 1.01, NAN]),
        ("gamma_min gamma_max", [-0.1, 1.1, NAN]),
        ("val_fraction", [0.0, 1.0]),
        ("num_nodes", [7]),
        ("num_workers seed", [-1]),
        ("alpha_freeze_epochs", [-1, 30]),
        ("stage_ops", [(7, 5, 3), (8, 3, 5), (8, 5, 0)]),
        (CHOICES, ["other"]),
    ],
)
def test_what_lies_outside_a_settings_range(names: str, values: list[Any]) -> None:
    for name, value in itertools.product(names.split(), values):
        with pytest.raises(SettingError, match=name) as caught:
            PAPER.replaced(**{name: value})
        parts = value if isinstance(value, tuple) else (value,)
        assert any(str(part) in str(caught.value) for part in parts), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operations": ()}, "operations must name at least one"),
        ({"operations": ("identity", "identity")}, "must be distinct, but got ('identity', 'iden"),
        ({"operations": ("zero",), "stage_ops": (1, 1, 1)}, "must hold one besides zero"),
        ({"patch_size": 15}, "patch_size=15, image_size=224"),
        ({"dropout": 0.1, "compile": True}, "compile needs dropout 0, but got 0.1"),
        ({"dropout": 0.1, "cuda_graph": True}, "cuda_graph needs dropout 0, but got 0.1"),
        ({"dropout": 0.1, "recompute": True}, "recompute needs fused, and dropout 0"),
        ({"fused": False, "recompute": True}, "recompute needs fused, and dropout 0"),
        ({"gamma_min": 0.5, "gamma_max": 0.5}, "(gamma_min=0.5, gamma_max=0.5)"),
        ({"stage_layers": (2, 4)}, "one entry per stage, but got (2, 4) and (8, 5, 3)"),
        ({"stage_ops": (8, 5, 1)}, "ends at 1: an edge could be left with zero alone"),
        ({"xii": 1}, "'xii' is no setting of this search"),
        ({"method": DARTS(), "token_ratio": 0.5}, "'token_ratio' is no setting of this search"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        PAPER.replaced(**changes)
    assert message in str(caught.value)


def test_plain_darts_is_one_configuration() -> None:
    """Whatever it is compared with: one stage at the first depth, all tokens, no penalty."""
    own = PAPER.replaced(xi=0.1, token_ratio=0.3, alpha_lr=0.02, seed=4)
    plain = DARTS(alpha_lr=0.02, stage_layers=(2,), stage_ops=(), stage_epochs=90, xi=0.0)
    assert own.plain_darts == dataclasses.replace(own, method=plain)
    assert own.plain_darts.plain_darts == own.plain_darts


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ratio": 1.0, "val_fraction": 0.01, "alpha_freeze_epochs": 29, "num_nodes": 6},
        {"stage_ops": (8, 5, 1), "prune_zero": "first", "gamma_min": 0.0, "gamma_max": 1.0},
        {"operations": EIGHT[1:], "stage_ops": (7, 4, 1)},
        {"operations": ("identity",), "stage_layers": (6,), "stage_ops": (1,)},
        {"method": DARTS(), "xi": 0.5, "plugins": ("a", "b"), "image_size": 32},
    ],
    ids=str,
)
def test_settings_go_in_by_their_names_and_through_json(changes: dict[str, Any]) -> None:
    """On the right side of a bound."""
    config = PAPER.replaced(**changes)
    assert type(config.method) is type(changes.pop("method", PAPER.method))
    assert {name: config.setting(name) for name in changes} == changes
    read = config_from_dict(SearchConfig, config_to_dict(config))
    assert read == config
    assert dataclasses.asdict(read) == dataclasses.asdict(config)  # tuples, not lists


def test_no_two_parts_have_a_setting_of_one_name() -> None:
    """So that each can go by its own."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Sized(DARTS):
        dim: int = 3

    with pytest.raises(SettingError, match="dim is a setting of the space and of the method"):
        PAPER.replaced(method=Sized())
    with pytest.raises(SettingError, match="'nope' is no setting of this search"):
        PAPER.setting("nope")
