"""A function in a file of the user's own, `FILE.py:function`: his program, which runs as one."""

import importlib.util
import inspect
from pathlib import Path
from typing import Any

from dasvit.run.files import first_line

__all__ = ["call_own", "parts"]


def call_own(flag: str, where: str, form: str, *args: Any, **named: Any) -> Any:
    """What the function returns for these arguments.

    Args:
        flag: that names it on the command line.
        where: `FILE.py:function`.
        form: what it takes and returns, as the message tells it.

    Raises:
        ValueError: one line: no such file or function, or an error in it.
    """
    path, function = parts(flag, where)
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        made = getattr(module, function, None)
        if not callable(made):
            raise ValueError(f"{path} has no function {function}")
        inspect.signature(made).bind(*args, **named)
        return made(*args, **named)
    except (Exception, SystemExit) as error:
        kind, reason = type(error).__name__, first_line(error)
        raise ValueError(f"{flag} {where}: {kind}: {reason}; {form}") from None


def parts(flag: str, where: str) -> tuple[Path, str]:
    """The file, as an absolute path, and the function's name.

    Raises:
        ValueError: another form, or no such file.
    """
    file, colon, function = where.rpartition(":")
    if not colon or not file.endswith(".py") or not function.isidentifier():
        raise ValueError(f"{flag} {where}: must be FILE.py:function")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"{flag} {where}: there is no file {path}")
    return path, function
