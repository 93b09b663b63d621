"""What a search space and a search method tell each other. Values only, no torch."""

from dataclasses import dataclass

__all__ = ["EdgeOps", "Route"]

EdgeOps = tuple[tuple[str, ...], ...]
"""The candidate operations of every edge, one row per edge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Which tokens go through the candidates of a supernet; the default is all of them.

    Attributes:
        token_ratio: λ in (0, 1], the share of the patch tokens that is kept.
        token_where: "input" (selected once, on `Z_0`) or "edge" (on every edge, with the other
            tokens bypassing it).
    """

    token_ratio: float = 1.0
    token_where: str = "input"
