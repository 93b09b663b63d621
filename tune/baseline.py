"""Which settings are plain DARTS, the baseline of every sweep. No Ray."""

from collections.abc import Mapping
from typing import Any

__all__ = ["PLAIN_DARTS", "is_plain_darts"]

PLAIN_DARTS: dict[str, Any] = {
    "token_ratio": 1.0,
    "skip_weight": 0.0,
    "type_weight": 0.0,
    "xi": 0.0,
}
"""What makes a configuration plain DARTS in first order: all tokens, no fairness. Its stages stay
the preset's (a preset `…_darts` has the single stage too)."""


def is_plain_darts(settings: Mapping[str, Any]) -> bool:
    """Whether a search's settings are those of plain DARTS."""
    return all(settings.get(name) == value for name, value in PLAIN_DARTS.items())
