"""Methods by name, from this package and from plugins; and the settings that are refused."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import support
import torch
from support.cli_calls import SEARCH
from support.plugin_method import BetaDARTS
from support.runs import few_images, search_config

import dasvit.methods.base
import dasvit.search.loop
from dasvit.methods import DARTS, DASViT, get_method, method_names, register_method
from dasvit.run.settings import SettingError, config_from_dict, config_to_dict
from dasvit.search.config import SearchConfig
from dasvit.search.loop import check_search, check_supernet, load_search_config, search
from dasvit.spaces.cell.genotype import Genotype


def test_methods_have_names() -> None:
    assert method_names()[:2] == ("darts", "dasvit")
    assert (get_method("darts"), get_method("dasvit")) == (DARTS, DASViT)
    assert DARTS.named("betadarts") is BetaDARTS
    with pytest.raises(ValueError, match="unknown method 'nix'; known: darts, dasvit"):
        get_method("nix")
    assert register_method(BetaDARTS) is BetaDARTS  # the same again

    @dataclass(frozen=True, kw_only=True)
    class Other(DARTS):
        name: ClassVar[str] = "betadarts"

    @dataclass(frozen=True, kw_only=True)
    class Nameless(DASViT):
        pass

    class Plain(DARTS):
        name: ClassVar[str] = "plain"

    @dataclass(frozen=True, kw_only=True)
    class Demanding(DARTS):
        name: ClassVar[str] = "demanding"
        weight: float

    for kind, message in (
        (Other, "'betadarts' is registered already, as BetaDARTS"),
        (Nameless, "Nameless needs a name of its own"),
        (Plain, r"Plain needs @dataclass\(frozen=True, kw_only=True\)"),
        (Demanding, "Demanding: the setting weight needs a default"),
    ):
        with pytest.raises(ValueError, match=message):
            register_method(kind)
    assert "demanding" not in method_names()


def test_a_method_without_a_title_has_its_name() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Silent(DASViT):
        name: ClassVar[str] = "silent"

    assert Silent.title == "silent"


def test_a_parameter_of_another_shape_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wide(DARTS):
        name: ClassVar[str] = "wide"

        def parameters(self, candidates: Any) -> dict[str, torch.Tensor]:
            return super().parameters(candidates) | {"beta": torch.zeros(5)}

    message = r"method wide: the architecture parameter beta must be \(edges, ops\) = \(5, 8\), but"
    with pytest.raises(ValueError, match=message):
        check_supernet(SearchConfig(method=Wide()))


@pytest.fixture
def forget_plugins(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on this process has not seen the plugin."""

    def forget() -> None:
        own = {name: get_method(name) for name in ("darts", "dasvit")}
        monkeypatch.setattr(dasvit.methods.base, "_METHODS", own)
        monkeypatch.setattr(
            support, "plugin_method", support.plugin_method
        )  # what comes back after
        monkeypatch.delitem(sys.modules, "support.plugin_method")

    return forget


def test_a_search_tells_its_method_how_much_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget_plugins: Callable[[], None]
) -> None:
    """And its folder says where the method is."""
    few_images(monkeypatch, dasvit.search.loop)
    method = BetaDARTS(beta=7.0, stage_epochs=2, stage_layers=(1,))
    config = search_config().replaced(method=method, plugins=("support.plugin_method",))
    penalty, told = BetaDARTS.penalty, []

    def spy(self: BetaDARTS, *args: Any) -> torch.Tensor:
        told.append(args[-1].item())
        return penalty(self, *args)

    monkeypatch.setattr(BetaDARTS, "penalty", spy)
    search(config, tmp_path)
    # In each epoch two steps, and its record.
    assert told == [0.0, 0.25, 0.5, 0.5, 0.75, 1.0]
    forget_plugins()
    with pytest.raises(ValueError, match="unknown method 'betadarts'"):
        config_from_dict(SearchConfig, config_to_dict(config))
    found = load_search_config(tmp_path)
    assert config_to_dict(found) == config_to_dict(config)
    assert type(found.method) is get_method("betadarts") is not BetaDARTS
    with pytest.raises(ValueError, match="plugins: cannot import 'no_such_module'"):
        check_search(replace(config, plugins=("no_such_module",)))


def test_a_search_whose_methods_defaults_are_for_other_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Five(DARTS):
        name: ClassVar[str] = "five"
        stage_ops: tuple[int, ...] = (5,)

    few_images(monkeypatch, dasvit.search.loop)
    operations = ("zero", "identity", "msa_h2", "mlp_r0.5", "mlp_r2")
    config = search_config().replaced(method=Five(stage_epochs=1), operations=operations)
    assert search(config, tmp_path).genotype.operations


def test_the_command_line_finds_a_method_in_a_plugin(
    succeed: Callable[..., str], workdir: Path, forget_plugins: Callable[[], None]
) -> None:
    """And its settings by their names."""
    forget_plugins()
    own = ("--plugins", "support.plugin_method", "--method", "betadarts", "--beta", "7")
    out = succeed(*SEARCH, *own, "--out", "found")
    assert out.endswith(" --model found/genotype.json\n")  # whose operations need no plugin
    method = load_search_config(workdir / "found").method
    assert (method.name, method.beta, method.stage_layers) == ("betadarts", 7.0, (1, 1))
    assert Genotype.load(workdir / "found" / "genotype.json").operations
    assert "--beta" in succeed("search", *own[:4], "--help-all")


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
