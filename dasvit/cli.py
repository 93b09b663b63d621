"""The command line: `python -m dasvit search | retrain | evaluate | export | predict |
complexity | draw | memory`."""

import contextlib
import dataclasses
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TextIO

from dasvit.commands.arguments import drop_output, nearest, parse, preset_from_argv
from dasvit.commands.console import fail, of_the_system, program
from dasvit.run.folder import SkippedImagesWarning

__all__ = ["Command", "main", "parse_command"]

COMMANDS = (
    "search",
    "retrain",
    "evaluate",
    "export",
    "predict",
    "complexity",
    "draw",
    "memory",
)
"""Each is a module in `dasvit.commands`, with a dataclass `Args` and a function `run`."""


class Command(NamedTuple):
    """A command line that was read."""

    run: Callable[[Any], None]
    args: Any


def parse_command(argv: Sequence[str]) -> Command:
    """Read a command line, without importing PyTorch. Help is printed and ends it.

    Raises:
        ValueError: an unknown command, or as `parse`.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help", "--help-all"):
        _print_commands()
        raise SystemExit(0)
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}{nearest(name, COMMANDS)} (see --help)")
    module = importlib.import_module(f"dasvit.commands.{name}")
    fields = {f.name: f for f in dataclasses.fields(module.Args)}
    default = None
    if "preset" in fields:
        preset = preset_from_argv(rest, str(fields["preset"].default))
        values: dict[str, Any] = {"method": preset.search.method.name, "preset": preset.name}
        values |= {"search": preset.search, "retrain": preset.retrain}
        default = module.Args(**{name: values[name] for name in fields.keys() & values.keys()})
    prog = f"{program()} {name}"
    return Command(module.run, parse(module.Args, rest, prog=prog, default=default))


def _print_commands() -> None:
    print(f"usage: {program()} COMMAND [options]\n")
    print("Differentiable architecture search for vision transformers.\n\ncommands:")
    for name in COMMANDS:
        module = importlib.import_module(f"dasvit.commands.{name}")
        summary = (inspect.getdoc(module.Args) or "").partition("\n")[0]
        print(f"  {name:12}{summary}")
    print(f"\n{program()} COMMAND --help shows the options of a command.", flush=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Ours in one line; others as Python shows them."""
    if issubclass(category, SkippedImagesWarning):
        print(f"warning: {message}", file=sys.stderr, flush=True)
    else:
        _python_shows(message, category, filename, lineno, file, line)


_python_shows = warnings.showwarning


def main(
    argv: Sequence[str] | None = None,
    *,
    imports: contextlib.AbstractContextManager[None] = contextlib.nullcontext(),  # noqa: B008
) -> None:
    """Parse, run, and turn what a user can mend into one line and a non-zero exit.

    Args:
        imports: the context in which PyTorch and timm, which every command needs, are imported.
    """
    try:
        command = parse_command(sys.argv[1:] if argv is None else argv)
        with imports:
            importlib.import_module("dasvit.training.networks")
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            command.run(command.args)
        sys.stdout.flush()
    except ValueError as error:
        fail(str(error))
    except FloatingPointError as error:
        fail(str(error), 1)
    except BrokenPipeError:
        drop_output()
        sys.exit(1)
    except OSError as error:
        fail(of_the_system(error), 1)
