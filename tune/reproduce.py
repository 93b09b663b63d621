"""The command that repeats one trial without Ray."""

import dataclasses
import shlex
from typing import Any

from dasvit.data.config import DataConfig
from dasvit.presets import get_preset
from dasvit.search.config import SearchConfig
from dasvit.training.config import RetrainConfig
from tune.plan import Plan
from tune.trials import SearchTrial

__all__ = ["retrain_command", "search_command"]


def search_command(plan: Plan, trial: SearchTrial, *, preset: str) -> str:
    """`python -m dasvit search …` with a trial's settings, as flags where they differ from the
    preset's."""
    own = {f.name for f in dataclasses.fields(SearchConfig)}
    settings = {name: value for name, value in trial.settings.items() if name in own}
    config = dataclasses.replace(plan.search, **settings | {"seed": trial.seed})
    flags = _flags(config, get_preset(preset).search)
    return shlex.join(["python", "-m", "dasvit", "search", "--preset", preset, *flags])


def retrain_command(plan: Plan, model: str, seed: int, *, preset: str) -> str:
    """`python -m dasvit retrain …` of a genotype's file or of the plain ViT."""
    config = dataclasses.replace(plan.retrain, model=model, seed=seed)
    base = dataclasses.replace(get_preset(preset).retrain, model=model)
    start = ["python", "-m", "dasvit", "retrain", "--preset", preset, "--model", model]
    return shlex.join([*start, *_flags(config, base)])


def _flags(
    config: SearchConfig | RetrainConfig | DataConfig,
    base: SearchConfig | RetrainConfig | DataConfig,
) -> list[str]:
    words: list[str] = []
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(base, field.name)
        if isinstance(value, DataConfig):
            words += _flags(value, usual)
        elif value != usual:
            words += _flag(field.name.replace("_", "-"), value)
    return words


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, tuple | list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]
