"""Command lines from configurations: the preset first, then tyro; every refusal one line."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from dasvit.presets import Preset, get_preset
from dasvit.run.settings import SettingError

__all__ = ["drop_output", "parse", "preset_from_argv"]


def preset_from_argv(argv: Sequence[str], default: str) -> Preset:
    """The preset that `--preset NAME` or `--preset=NAME` names: the other defaults depend on it.

    Raises:
        ValueError: an unknown name.
    """
    name = default
    for i, arg in enumerate(argv):
        if arg == "--preset" and i + 1 < len(argv):
            name = argv[i + 1]
        elif arg.startswith("--preset="):
            name = arg.partition("=")[2]
    return get_preset(name)


def parse(kind: Any, argv: Sequence[str], **options: Any) -> Any:
    """tyro's parser. `--help` prints and exits; its framed messages become one line.

    Args:
        kind: what to make of the command line, as for `tyro.cli`.
        options: further arguments of `tyro.cli`.

    Raises:
        ValueError: a flag or value that cannot be, in one line.
    """
    framed = io.StringIO()
    try:
        with contextlib.redirect_stderr(framed):
            made = tyro.cli(kind, args=list(argv), **options)
    except BrokenPipeError:  # within the help
        drop_output()
        raise SystemExit(1) from None
    except SystemExit as stop:
        if not stop.code:
            _write_out()
            raise
        # tyro frames the message of a failed check and exits; the check's own error lies behind.
        error: BaseException | None = stop
        while error is not None and not isinstance(error, SettingError):
            error = error.__cause__ or error.__context__
        raise ValueError(str(error) if error else _unframed(framed.getvalue())) from None
    sys.stderr.write(framed.getvalue())
    return made


def _write_out() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
        raise SystemExit(1) from None


def drop_output() -> None:
    """Whoever read our output has gone: nothing to say, and nobody to say it to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unframed(text: str) -> str:
    """The words of tyro's message, in one line: what is wrong, and its suggestion if any."""
    lines = [re.sub(r"^[│\s]+|[│\s]+$", "", line) for line in text.splitlines()]
    words: list[str] = []
    for line in lines:
        if re.fullmatch(r"[╭╰].*", line) or not line:
            continue
        words.append("." if re.fullmatch(r"[─]+", line) else line)
    sections = [s.strip() for s in " ".join(words).split(" . ")]
    kept = [
        s for s in sections if s and not s.startswith(("For full helptext", "Argument helptext"))
    ]
    # "Error parsing search: …" names our own grouping, "Error parsing --flag: …" the user's flag.
    message = re.sub(r"^Error parsing (\w+: )?", "", "; ".join(kept[:2]))
    return f"{message} (see --help)"
