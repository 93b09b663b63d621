"""Command lines from dataclasses: what is read, what is refused, and what help shows."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest

from dasvit.commands.arguments import Arg, parse, preset_from_argv
from dasvit.methods import DARTS
from dasvit.presets import get_preset
from dasvit.run.settings import Range


@dataclass(frozen=True, kw_only=True)
class Base:
    lr: Annotated[float, Range("(0, inf)")] = 1e-3
    """Learning rate,
    in two lines."""


@dataclass(frozen=True, kw_only=True)
class Inner(Base):
    shape: Literal["round", "square"] = "round"
    """Shape."""
    betas: tuple[Annotated[float, Range("[0, 1)")], Annotated[float, Range("[0, 1)")]] = (0.5, 0.9)
    """Betas."""
    fast: bool = False
    """Up to 50 % faster."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Do something."""

    essentials: ClassVar[tuple[str, ...]] = ("second.fast", "layers", "out")

    images: Annotated[tuple[Path, ...], Arg(positional=True, metavar="IMAGE")] = ()
    """Images."""
    inner: Base = field(default_factory=Inner)
    second: Annotated[Inner, Arg(prefix="second.")] = field(default_factory=Inner)
    num_layers: Annotated[tuple[int, ...], Arg(flag="layers")] = (1, 2)
    """Layers."""
    out: Annotated[str | None, Arg(metavar="FOLDER")] = None
    """Results (default: somewhere)."""
    made: Annotated[str, Arg(hidden=True)] = "here"


def read(*argv: str) -> Args:
    return parse(Args, argv, default=Args())


def test_values_by_their_types() -> None:
    found = read(
        *("a.png", "b", "--layers", "3", "4", "5", "--lr=-1e-2", "--shape", "square", "--fast"),
        *("--betas", "0.1", "0.2", "--second.lr", "7", "--out", "x", "--no-second.fast"),
    )
    assert found == Args(
        images=(Path("a.png"), Path("b")),
        inner=Inner(lr=-0.01, shape="square", betas=(0.1, 0.2), fast=True),
        second=Inner(lr=7.0),
        num_layers=(3, 4, 5),
        out="x",
    )
    assert type(found.second.lr) is float
    assert read() == Args()
    assert read("--layers").num_layers == ()
    assert read("--second.lr", "1e-5", "--second.lr", "2").second.lr == 2  # the last one holds


def test_a_required_value() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Required:
        model: str
        files: Annotated[tuple[str, ...], Arg(positional=True, metavar="FILE")]

    assert parse(Required, ["a", "--model", "m"]) == Required(model="m", files=("a",))
    for argv, missing in ((["a"], "--model"), (["--model", "m"], "FILE")):
        with pytest.raises(ValueError, match=f"arguments are required: {missing} "):
            parse(Required, argv)


def test_underscores_are_hyphens() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Long:
        a_b: int = 1
        text: str = ""

    assert parse(Long, ["--a_b", "2", "--text=c_d"]) == Long(a_b=2, text="c_d")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--layer 3", "unknown option --layer; did you mean --layers? (see --help)"),
        ("--sahpe=round", "unknown option --sahpe; did you mean --shape? (see --help)"),
        ("--made 1", "unknown option --made"),
        ("--lr wide", "--lr: invalid float value: 'wide' (see --help)"),
        ("--betas 0.5", "--betas: expected 2 arguments (see --help)"),
        ("--shape oval", "--shape: invalid choice: 'oval' (choose from"),
    ],
)
def test_refusals_are_one_line(argv: str, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        read(*argv.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([], "digits"),
        (["--preset", "cifar10"], "cifar10"),
        (["photos", "--preset=cifar10_modern", "--xi", "1"], "cifar10_modern"),
        (["--presets", "cifar10"], "digits"),
    ],
)
def test_the_preset_is_read_first(argv: list[str], name: str) -> None:
    assert preset_from_argv(argv, "digits").name == name


def test_the_method_is_read_first() -> None:
    """It decides which options there are, and keeps the preset's sizes."""
    preset = get_preset("digits")
    darts = preset_from_argv(["--help", "--method", "darts"], "digits")
    assert type(darts.search.method) is DARTS
    assert darts.search.method.stage_layers == preset.search.method.stage_layers[:1]
    assert darts == get_preset("digits", method="darts")
    assert darts == replace(preset, search=replace(preset.search, method=darts.search.method))
    with pytest.raises(ValueError, match="unknown method 'dart'"):
        preset_from_argv(["--method", "dart"], "digits")


def test_a_setting_with_the_name_of_an_option_is_refused() -> None:
    """A user's method may have one."""

    @dataclass(frozen=True, kw_only=True)
    class Own:
        out: int = 1

    @dataclass(frozen=True, kw_only=True)
    class Both(Args):
        own: Own = field(default_factory=Own)

    with pytest.raises(ValueError, match=r"^--out is a setting of Own and of Both; rename one"):
        parse(Both, [], default=Both())


def test_unknown_presets() -> None:
    with pytest.raises(ValueError, match="unknown preset 'mnist'"):
        preset_from_argv(["--preset", "mnist"], "digits")
    with pytest.raises(ValueError, match="--preset: expected one argument"):
        preset_from_argv(["--preset"], "digits")
