"""The subcommands of `python -m dasvit`, one a module: its arguments and `run`."""

from dasvit.commands import (
    complexity,
    draw,
    evaluate,
    export,
    memory,
    predict,
    retrain,
    search,
    table1,
)

__all__ = [
    "complexity",
    "draw",
    "evaluate",
    "export",
    "memory",
    "predict",
    "retrain",
    "search",
    "table1",
]
