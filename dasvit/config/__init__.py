"""Settings of a search and of a retraining: frozen values, checked when they are made.

Every field says where its default comes from. "Paper gap" marks a value the paper does not
give; `docs/fidelity.md` lists each with its alternatives.
"""

from dasvit.config.convert import config_from_dict, config_to_dict, with_defaults
from dasvit.config.data import DataConfig
from dasvit.config.retrain import RetrainConfig
from dasvit.config.search import OUTER_SETTINGS, SearchConfig, Stage
from dasvit.setting import SettingError

__all__ = [
    "OUTER_SETTINGS",
    "DataConfig",
    "RetrainConfig",
    "SearchConfig",
    "SettingError",
    "Stage",
    "config_from_dict",
    "config_to_dict",
    "with_defaults",
]
