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
from support.plugin_method import Decided
from support.runs import few_images, search_config

import dasvit.methods.base
import dasvit.search.loop
from dasvit.methods import DARTS, DASViT, get_method, method_names, register_method
from dasvit.run.settings import SettingError, config_from_dict, config_to_dict
from dasvit.search.checks import check_search, check_supernet
from dasvit.search.config import SearchConfig
from dasvit.search.loop import load_search_config, search
from dasvit.spaces.cell.genotype import Genotype


def test_methods_have_names() -> None:
    assert {"darts", "dasvit"} <= {*method_names()}
    assert (get_method("darts"), get_method("dasvit")) == (DARTS, DASViT)
    assert DARTS.named("decided") is Decided
    with pytest.raises(ValueError, match="unknown method 'nix'; known: darts, "):
        get_method("nix")
    assert register_method(Decided) is Decided  # the same again

    @dataclass(frozen=True, kw_only=True)
    class Other(DARTS):
        name: ClassVar[str] = "decided"

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
        (Other, "'decided' is registered already, as Decided"),
        (Nameless, "Nameless needs a name of its own"),
        (Plain, r"Plain needs @dataclass\(frozen=True, kw_only=True\)"),
        (Demanding, "Demanding: the setting weight needs a default"),
    ):
        with pytest.raises(ValueError, match=message):
            register_method(kind)
    assert "demanding" not in method_names()
    assert Demanding.title == "demanding"


def test_a_parameter_of_another_shape_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wide(DARTS):
        name: ClassVar[str] = "wide"

        def parameters(self, candidates: Any) -> dict[str, torch.Tensor]:
            return super().parameters(candidates) | {"beta": torch.zeros(5)}

    with pytest.raises(ValueError, match=r"wide: .* beta must be \(edges, ops\) = \(5, 8\), or"):
        check_supernet(SearchConfig(method=Wide()))


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


def test_a_method_in_a_plugin_from_the_command_line_to_what_a_folder_says(
    succeed: Callable[..., str], workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings have names there, too."""

    def forget() -> None:
        """From now on this process has not seen the plugin."""
        own = {name: get_method(name) for name in ("darts", "dasvit")}
        monkeypatch.setattr(dasvit.methods.base, "_METHODS", own)
        plugin = support.plugin_method
        monkeypatch.setattr(support, "plugin_method", plugin)  # what comes back after the test
        monkeypatch.delitem(sys.modules, "support.plugin_method")

    forget()
    own = ("--plugins", "support.plugin_method", "--method", "decided", "--decision", "7")
    out = succeed(*SEARCH, *own, "--out", "found")
    assert out.endswith(" --model found/genotype.json\n")  # whose operations need no plugin
    assert Genotype.load(workdir / "found" / "genotype.json").operations
    assert "--decision" in succeed("search", *own[:4], "--help-all")
    config = load_search_config(workdir / "found")
    method = config.method
    assert (method.name, method.decision, method.stage_layers) == ("decided", 7.0, (1, 1))
    forget()
    with pytest.raises(ValueError, match="unknown method 'decided'"):
        config_from_dict(SearchConfig, config_to_dict(config))
    found = load_search_config(workdir / "found")
    assert config_to_dict(found) == config_to_dict(config)
    assert type(found.method) is get_method("decided") is not Decided
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
        ({"xi": -0.1}, "xi must be at least 0, but got -0.1; 0 is the first-order approximation"),
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
