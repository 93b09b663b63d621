"""Random search with weight sharing (Li and Talwalkar, 2019, arXiv:1902.07638)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from dasvit.methods.base import DARTS, Choice, register_method
from dasvit.run.settings import Range, require
from dasvit.spaces.base import Route

if TYPE_CHECKING:
    from collections.abc import Collection

    from jaxtyping import Float
    from torch import Tensor

    from dasvit.methods.base import Arch, Domain
    from dasvit.spaces.cell.candidates import Candidates

__all__ = ["RSWS"]


@register_method
@dataclass(frozen=True, kw_only=True)
class RSWS(DARTS):
    """Each step trains the supernet's weights as one encoder, drawn uniformly among those that see
    the image; its operations alone are computed. Nothing is learned about the architecture: alpha
    stays at its start. In the end `draws` encoders are scored with the weights that they share: all
    on a part of the validation half, and the best ten on the whole of it. The best of these is
    found, the others are what the search proposes.

    The supernet's own accuracy is that of all candidates with equal weights, which is not what was
    trained. Departures: no operation is `zero`, as in derived encoders; and a search has as many
    steps as others, which cost more each.
    """

    name: ClassVar[str] = "rsws"
    title: ClassVar[str] = "random search with weight sharing"

    draws: Annotated[int, Range("[1, inf)")] = 1000
    """Encoders that are scored at the end; equal ones count once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.stage_layers) == 1,
            f"method rsws has one stage, but got stage_layers={self.stage_layers}",
        )

    def frozen(self, epoch_in_stage: int) -> bool:
        return True

    def route(self) -> Route:
        return Route(sparse=True)

    def noise(self, arch: Arch, candidates: Candidates, t: Tensor) -> dict[str, Tensor]:
        return {"encoder": candidates.draw(arch["alpha"])}

    def weights(self, arch: Arch, noise: Arch, t: Tensor) -> Float[Tensor, "edges ops"]:
        return noise["encoder"] if noise else super().weights(arch, noise, t)

    @property
    def num_draws(self) -> int:
        return self.draws

    def outer_space(self, *, weight_lr: float, fixed: Collection[str] = ()) -> dict[str, Domain]:
        return {"draws": Choice((100, 300, 1000))}
