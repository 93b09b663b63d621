"""What a search space and a search method tell each other. Values only, no torch."""

from dataclasses import dataclass

__all__ = ["EdgeOps", "Route"]

EdgeOps = tuple[tuple[str, ...], ...]
"""The candidate operations of every edge, one row per edge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """What of the tokens goes through the candidates of a supernet; the default is all of them.

    Attributes:
        token_ratio: λ in (0, 1], the share of the patch tokens that is kept.
        token_where: "input" (selected once, on `Z_0`) or "edge" (on every edge, with the other
            tokens bypassing it).
        channel_parts: K, of whose K equal parts of a token's channels one goes through; the others
            bypass, and are mixed with it behind (PC-DARTS).
        sparse: candidates of weight 0 need not be computed.
    """

    token_ratio: float = 1.0
    token_where: str = "input"
    channel_parts: int = 1
    sparse: bool = False
