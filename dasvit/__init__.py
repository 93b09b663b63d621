"""Differentiable architecture search for vision transformers (DASViT).

    import dasvit

    found = dasvit.search(dasvit.SearchConfig(), "runs/found")
    config = dasvit.RetrainConfig(model="runs/found/genotype.json")
    dasvit.retrain(config, "runs/trained")
    model = dasvit.load("runs/trained/model")

Settings without arguments are those with which the command line begins; `dasvit.get_preset(name)`
gives those of `--preset name`. `import dasvit` takes no time: each name is imported when it is
first used, and settings need no PyTorch. `import dasvit.models` makes our networks known to timm:
`timm.create_model("dasvit", genotype=...)`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "CellSpace": "dasvit.spaces",
    "DARTS": "dasvit.methods",
    "DASViT": "dasvit.methods",
    "DataConfig": "dasvit.data.config",
    "Genotype": "dasvit.spaces.cell.genotype",
    "RetrainConfig": "dasvit.training.config",
    "SearchConfig": "dasvit.search.config",
    "get_preset": "dasvit.presets",
    "load": "dasvit.training.model_folder",
    "retrain": "dasvit.training.loop",
}
"""The module of each public name. `search` is the package itself, which can be called."""

__all__ = [
    "DARTS",
    "CellSpace",
    "DASViT",
    "DataConfig",
    "Genotype",
    "RetrainConfig",
    "SearchConfig",
    "__version__",
    "get_preset",
    "load",
    "retrain",
    "search",
]

if TYPE_CHECKING:
    from dasvit.data.config import DataConfig
    from dasvit.methods import DARTS, DASViT
    from dasvit.presets import get_preset
    from dasvit.search.config import SearchConfig
    from dasvit.search.loop import search
    from dasvit.spaces import CellSpace
    from dasvit.spaces.cell.genotype import Genotype
    from dasvit.training.config import RetrainConfig
    from dasvit.training.loop import retrain
    from dasvit.training.model_folder import load


def __getattr__(name: str) -> Any:
    if name == "search":
        return import_module("dasvit.search")
    if name not in _HOMES:
        raise AttributeError(f"module 'dasvit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
