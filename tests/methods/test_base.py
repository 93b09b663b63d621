"""Methods by name, from this package and from plugins; and the settings that are refused."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import support
import torch
from support.plugin_method import BetaDARTS
from support.runs import few_images, search_config

import dasvit.methods.base
import dasvit.search.loop
from dasvit.methods import DARTS, DASViT, get_method, method_names, register_method
from dasvit.run.settings import SettingError, config_from_dict, config_to_dict
from dasvit.search.config import SearchConfig
from dasvit.search.loop import check_search, load_search_config, search


def test_methods_have_names() -> None:
    assert method_names()[:2] == ("darts", "dasvit")
    assert (get_method("darts"), get_method("dasvit")) == (DARTS, DASViT)
    assert DARTS.named("betadarts") is BetaDARTS
    with pytest.raises(ValueError, match="unknown method 'nix'; known: darts, dasvit"):
        get_method("nix")
    assert register_method(BetaDARTS) is BetaDARTS  # the same again

    class Other(DARTS):
        name: ClassVar[str] = "betadarts"

    class Nameless(DASViT):
        pass

    with pytest.raises(ValueError, match="'betadarts' is registered already, as BetaDARTS"):
        register_method(Other)
    with pytest.raises(ValueError, match="Nameless needs a name of its own"):
        register_method(Nameless)


def test_a_search_imports_the_plugin_that_holds_its_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a process that has not seen it; and tells it how much of the search is done. (The same
    by command line: tests/cli.)"""
    few_images(monkeypatch, dasvit.search.loop)
    method = BetaDARTS(weight=7.0, stage_epochs=2, stage_layers=(1,))
    config = search_config().replaced(method=method, plugins=("support.plugin_method",))
    penalty, told = BetaDARTS.penalty, []

    def spy(self: BetaDARTS, *args: Any) -> torch.Tensor:
        told.append(args[-1].item())
        return penalty(self, *args)

    monkeypatch.setattr(BetaDARTS, "penalty", spy)
    search(config, tmp_path)
    # In each epoch two steps, and its record.
    assert told == [0.0, 0.25, 0.5, 0.5, 0.75, 1.0]
    known = dasvit.methods.base._METHODS
    monkeypatch.setattr(
        dasvit.methods.base, "_METHODS", {name: known[name] for name in ("darts", "dasvit")}
    )
    monkeypatch.setattr(support, "plugin_method", sys.modules["support.plugin_method"])  # after us
    monkeypatch.delitem(sys.modules, "support.plugin_method")
    with pytest.raises(ValueError, match="unknown method 'betadarts'"):
        config_from_dict(SearchConfig, config_to_dict(config))
    found = load_search_config(tmp_path)
    assert config_to_dict(found) == config_to_dict(config)
    assert type(found.method) is get_method("betadarts") is not BetaDARTS
    with pytest.raises(ValueError, match="plugins: cannot import 'no_such_module'"):
        check_search(replace(config, plugins=("no_such_module",)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage_layers": ()}, "must have one entry per stage"),
        ({"stage_layers": (2, 3), "stage_ops": (8,)}, "must have one entry per stage"),
        ({"stage_layers": (2, 3), "stage_ops": (5, 8)}, "stage_ops must not grow"),
        ({"stage_layers": (0,)}, r"stage_layers must lie in \[1, 1000\], but got 0"),
        ({"stage_epochs": 2, "alpha_freeze_epochs": 2}, "must be less than stage_epochs"),
        ({"alpha_betas": (0.5, 1.0)}, r"alpha_betas must lie in \[0, 1\), but got 1.0"),
        ({"alpha_lr": 0.0}, "alpha_lr must be positive"),
        ({"xi": -0.1}, "xi must be at least 0, but got -0.1; 0 is the first-order approximation"),
        ({"xi": float("nan")}, "xi must be a finite number"),
        ({"prune_zero": "last"}, "prune_zero must be ranked or first, but got 'last'"),
        ({"inherit_weights": "none"}, "inherit_weights must be cyclic, stretched or fresh"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    for kind in (DARTS, DASViT):
        with pytest.raises(SettingError, match=message):
            kind(**({"stage_ops": ()} | settings))


def test_the_first_stage_holds_every_operation() -> None:
    with pytest.raises(SettingError, match=r"but got stage_ops=\(8, 5, 3\) with 6 operations"):
        DASViT().stages(6)
    assert [stage.num_ops for stage in DARTS(stage_layers=(2, 4)).stages(6)] == [6, 6]


def test_plain_darts_is_the_base() -> None:
    """One stage of all candidates, all tokens, nothing added to the loss."""
    method, t = DARTS.like(DASViT()), torch.tensor(0.0)
    assert (method.stage_layers, method.stage_ops, method.stage_epochs) == ((2,), (), 90)
    arch = {"alpha": torch.randn(5, 8)}
    assert torch.equal(method.weights(arch, {}, t), arch["alpha"].softmax(-1))
    assert method.noise(arch, t) == {} and method.route().token_ratio == 1.0
    assert not DASViT.is_baseline(DASViT().outer_settings())
