"""The command that repeats one trial without Ray."""

import dataclasses
import shlex
from dataclasses import replace
from typing import Any

from dasvit.presets import get_preset
from tune.plan import Plan
from tune.trial_folder import SearchTrial

__all__ = ["retrain_command", "search_command"]


def search_command(plan: Plan, trial: SearchTrial, *, preset: str) -> str:
    """`python -m dasvit search …` with a trial's settings, as flags where they differ from the
    preset's."""
    config = plan.start(trial.config_index).replaced(**trial.settings | {"seed": trial.seed})
    base, words = get_preset(preset).search, ["python", "-m", "dasvit", "search"]
    words += ["--preset", preset]
    if type(config.method) is not type(base.method):
        base = replace(base, method=type(config.method).like(base.method))
        words += ["--method", config.method.name]
    return shlex.join([*words, *_flags(config, base)])


def retrain_command(plan: Plan, model: str, seed: int, *, preset: str) -> str:
    """`python -m dasvit retrain …` of a genotype's file or of the plain ViT."""
    config = dataclasses.replace(plan.retrain, model=model, seed=seed)
    base = dataclasses.replace(get_preset(preset).retrain, model=model)
    start = ["python", "-m", "dasvit", "retrain", "--preset", preset, "--model", model]
    return shlex.join([*start, *_flags(config, base)])


def _flags(config: Any, base: Any) -> list[str]:
    """The settings in which two configurations differ, as flags of the first; nested ones go by
    their own names too."""
    words: list[str] = []
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(base, field.name)
        flag = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            words += _flags(value, usual)
        elif value == usual:
            continue
        elif isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, tuple | list) else [value]
            words += [f"--{flag}", *map(str, values)]
    return words
