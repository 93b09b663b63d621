"""Command lines from dataclasses of settings: a flag per field, read by argparse.

A command's arguments are a frozen dataclass. Its fields become flags by their own names, those of a
nested dataclass too; a field's type says what it takes, and the docstring below it is its help.
"""

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as hints_of

from dasvit.methods import get_method, method_names
from dasvit.presets import Preset, get_preset
from dasvit.run.plugins import load_plugins

__all__ = ["Arg", "drop_output", "nearest", "parse", "preset_from_argv"]

ArgsT = TypeVar("ArgsT")

_HELP = {"-h", "--help", "--help-all"}
_METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Arg:
    """How a field appears on a command line, beside its type: `Annotated[str, Arg(...)]`.

    Attributes:
        positional: it is given without a flag.
        flag: name of the flag, where that is not the field's.
        metavar: what help shows for the value.
        prefix: what the flags of a nested dataclass begin with; without it they are flat.
        hidden: the program sets it; there is no flag.
    """

    positional: bool = False
    flag: str = ""
    metavar: str = ""
    prefix: str = ""
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class _Option:
    """A field that can be given; `path` are the names of the fields that lead to it."""

    path: tuple[str, ...]
    flag: str
    kind: Any
    arg: Arg
    default: Any
    owner: type

    @property
    def name(self) -> str:
        """The flag as a name: `retrain.weight_decay`."""
        return self.flag.removeprefix("--").replace("-", "_")


def parse(
    kind: type[ArgsT], argv: Sequence[str], *, prog: str = "", default: ArgsT | None = None
) -> ArgsT:
    """Read a command line. `--help` prints the options that the class names in `essentials` (all,
    without that) and exits, `--help-all` prints all. Settings in `idle` change nothing and are no
    options; beside `--resume` those in `with_resume` alone can be given.

    Args:
        kind: a dataclass; its docstring is the description.
        prog: how the command is called, if not by the script's name.
        default: values of what is not given; needed where a nested dataclass has no default.

    Raises:
        ValueError: an unknown option, or a value that is refused, in one line.
    """
    options = [option for option in _options(kind, default) if not option.arg.hidden]
    _check_distinct(options)
    idle = [o for o in options if o.path[-1] in getattr(default or kind, "idle", ())]
    options = [option for option in options if option not in idle]
    if asked := _HELP & set(argv):
        _print_help(kind, options, prog, everything="--help-all" in asked)
        raise SystemExit(0)
    parser = _Parser(allow_abbrev=False, add_help=False)
    for option in options:
        _add(parser, option)
    given, unknown = parser.parse_known_args([_with_hyphens(word) for word in argv])
    if unknown:
        word = next((word for word in unknown if word.startswith("--")), unknown[0])
        raise ValueError(f"{_unknown(word.partition('=')[0], options, idle)} (see --help)")
    values = vars(given)
    keeps = getattr(kind, "with_resume", None)
    if keeps and "resume" in values:
        others = [o.flag for o in options if ".".join(o.path) in values and o.name not in keeps]
        if others:
            raise ValueError(
                f"--resume continues a run by its own settings; leave out {', '.join(others)}"
            )
    return _filled(kind, default, values)


def preset_from_argv(argv: Sequence[str], default: str) -> Preset:
    """The preset that `--preset` names, searched by the method that `--method` names: its values
    are the defaults of all other options, and the method says which of them there are.

    Raises:
        ValueError: an unknown name, or a module of `--plugins` that cannot be imported.
    """
    parser = _Parser(allow_abbrev=False, add_help=False)
    parser.add_argument("--preset", default=default)
    parser.add_argument("--method")
    parser.add_argument("--plugins", nargs="*", default=())
    given, _ = parser.parse_known_args([word for word in argv if word not in _HELP])
    if given.method not in (None, *method_names()):
        load_plugins(given.plugins)  # one of them may register it
    return get_preset(given.preset, given.method)


def nearest(word: str, known: Sequence[str]) -> str:
    """What may have been meant by an unknown word, as the end of a message; nothing if unclear."""
    near = difflib.get_close_matches(word, known, 1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


def drop_output() -> None:
    """After a reader has closed the pipe (`| head -1`): what is still buffered goes nowhere, so
    that Python does not complain about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_distinct(options: Sequence[_Option]) -> None:
    """Refuse a setting of a user's method that has the name of an option."""
    owners: dict[str, type] = {}
    for option in options:
        other = owners.setdefault(option.flag, option.owner)
        if other is not option.owner:
            raise ValueError(
                f"{option.flag} is a setting of {option.owner.__name__} and of {other.__name__}; "
                "rename one of them"
            )


def _unknown(word: str, options: Sequence[_Option], idle: Sequence[_Option]) -> str:
    """What to say of a word that no option takes."""
    if not word.startswith("-"):
        return f"unexpected argument {word}"
    if any(word == option.flag for option in idle):
        return f"{word} changes nothing here"
    name = word.removeprefix("--").replace("-", "_")
    if any(option.flag == "--method" for option in options):
        for method in method_names():
            if name in {f.name for f in dataclasses.fields(get_method(method))}:
                return f"{word} belongs to method {method}"
    flags = [option.flag for option in options if not option.arg.positional]
    return f"unknown option {word}{nearest(word, flags)}"


class _Parser(argparse.ArgumentParser):
    """argparse, with its refusals as one line of ours."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')} (see --help)")


def _options(
    kind: type, default: Any, prefix: str = "", path: tuple[str, ...] = ()
) -> Iterator[_Option]:
    """The fields of a dataclass, and of those in it."""
    hints = hints_of(kind, include_extras=True)
    for f in dataclasses.fields(kind):
        hint, arg = _unwrapped(hints[f.name])
        value = f.default if default is None else getattr(default, f.name)
        inner = (*path, f.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            below = f"{prefix}{f.name}." if prefix else arg.prefix
            yield from _options(type(value), value, below, inner)
        else:
            flag = f"--{prefix}{arg.flag or f.name}".replace("_", "-")
            yield _Option(inner, flag, hint, arg, value, kind)


def _unwrapped(hint: Any) -> tuple[Any, Arg]:
    """A type without what is annotated to it and without None, and its `Arg`."""
    arg = Arg()
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        arg = next((extra for extra in extras if isinstance(extra, Arg)), arg)
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        hint = kinds[0] if len(kinds) == 1 else hint
    return hint, arg


def _add(parser: Any, option: _Option, text: str | None = None) -> None:
    """Tell argparse of an option. What is not given stays out of the result."""
    required = option.default is dataclasses.MISSING
    settings: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
    if not option.arg.positional:
        settings |= {"dest": ".".join(option.path), "required": required}
    if option.kind is bool:
        parser.add_argument(option.flag, action=argparse.BooleanOptionalAction, **settings)
        return
    kind, count = option.kind, None
    if get_origin(kind) is tuple:
        first, *others = get_args(kind)
        count = len(others) + 1 if Ellipsis not in others else "+" if required else "*"
        kind, _ = _unwrapped(first)
    if get_origin(kind) is Literal:
        settings |= {"choices": get_args(kind), "metavar": option.arg.metavar or None}
        kind = str
    else:
        settings["metavar"] = option.arg.metavar or _METAVARS.get(kind, "TEXT")
    name = ".".join(option.path) if option.arg.positional else option.flag
    parser.add_argument(name, type=kind, nargs=count, **settings)


def _with_hyphens(word: str) -> str:
    """`--token_ratio=1` as `--token-ratio=1`."""
    flag, equals, value = word.partition("=")
    return f"{flag.replace('_', '-')}{equals}{value}" if flag.startswith("--") else word


def _filled(kind: type[ArgsT], default: Any, given: Mapping[str, Any]) -> ArgsT:
    """The dataclass with the values given, by dotted path; lists are tuples."""
    values: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for path, value in given.items():
        name, _, rest = path.partition(".")
        if rest:
            below.setdefault(name, {})[rest] = value
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    for name, settings in below.items():
        part = getattr(default, name)
        values[name] = _filled(type(part), part, settings)
    return kind(**values) if default is None else dataclasses.replace(default, **values)


# --- Help


def _print_help(kind: type, options: Sequence[_Option], prog: str, *, everything: bool) -> None:
    by_name = {option.name: option for option in options}
    positional = [option for option in options if option.arg.positional]
    names = getattr(kind, "essentials", by_name)  # not all of them are there with every method
    first = positional + [
        by_name[n] for n in names if n in by_name and by_name[n] not in positional
    ]
    rest = [option for option in options if option not in first]
    words = (prog or Path(sys.argv[0]).name, *(o.arg.metavar for o in positional), "[options]")
    parser = argparse.ArgumentParser(
        usage=" ".join(words),
        description=inspect.getdoc(kind),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    groups: dict[str, Any] = {}
    for option in first + rest if everything else first:
        part = ".".join(option.path[:-1])
        title = "options" if option in first else f"settings of {part}" if part else "others"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], option, _help(option))
    if rest and not everything:
        parser.epilog = f"{len(rest)} more settings: --help-all"
    try:
        print(parser.format_help(), end="", flush=True)
    except BrokenPipeError:
        drop_output()
        raise SystemExit(1) from None


def _help(option: _Option) -> str:
    text, value = _docs(option.owner).get(option.path[-1], ""), option.default
    nothing = value is None or value == () or value is dataclasses.MISSING
    if not nothing and "(default:" not in text:
        if isinstance(value, bool):
            value = "on" if value else "off"
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        text = f"{text} (default: {shown})"
    return text.replace("%", "%%")


@functools.cache
def _docs(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, inherited ones too."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in itertools.pairwise(tree.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    docs[name] = " ".join(text.split())
    return docs
