"""The command line: `python -m dasvit search | retrain | evaluate | export | predict |
complexity | draw | memory`."""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TextIO

import tyro

from dasvit.commands import (
    complexity,
    draw,
    evaluate,
    export,
    memory,
    predict,
    retrain,
    search,
)
from dasvit.commands.arguments import drop_output, parse, preset_from_argv
from dasvit.commands.console import fail, of_the_system
from dasvit.presets import Preset
from dasvit.run.folder import SkippedImagesWarning

__all__ = ["main"]

_PAPER = ("complexity", "memory")
"""Commands whose settings start at the paper's size."""

_RUN: dict[type, Callable[[Any], None]] = {
    search.SearchArgs: search.run,
    retrain.RetrainArgs: retrain.run,
    evaluate.EvaluateArgs: evaluate.run,
    export.ExportArgs: export.run,
    predict.PredictArgs: predict.run,
    complexity.ComplexityArgs: complexity.run,
    draw.DrawArgs: draw.run,
    memory.MemoryArgs: memory.run,
}


def _defaults(kind: type, preset: Preset) -> dict[str, Any]:
    """Where a command's settings start: the preset's, if it has any."""
    configs = {"SearchConfig": preset.search, "RetrainConfig": preset.retrain}
    field = getattr(kind, "__annotations__", {}).get("config")
    if field is None:
        return {}
    return {"default": kind(config=configs[field.__name__], preset=preset.name)}


def _command(argv: Sequence[str]) -> Any:
    preset = preset_from_argv(argv, "cifar10" if argv[:1] and argv[0] in _PAPER else "digits")
    commands: Any = None
    for kind in _RUN:
        name = kind.__module__.rpartition(".")[2]
        one = Annotated[kind, tyro.conf.subcommand(name, **_defaults(kind, preset))]
        commands = one if commands is None else commands | one
    return parse(
        commands,
        argv,
        config=(tyro.conf.OmitArgPrefixes,),
        prog="python -m dasvit",
        description="Differentiable architecture search for vision transformers.",
    )


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


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run, and turn what a user can mend into one line and a non-zero exit."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        command = _command(argv)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _RUN[type(command)](command)
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
