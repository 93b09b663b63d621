"""The operation-level space of encoders, as settings that act (Section III-A, III-B)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from dasvit.run.settings import Range, check_settings, require
from dasvit.spaces.base import EdgeOps, Route

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor, nn

    from dasvit.spaces.cell.candidates import Candidates
    from dasvit.spaces.cell.genotype import Genotype
    from dasvit.spaces.cell.supernet import SuperNet

__all__ = ["CellSpace"]


@dataclass(frozen=True, kw_only=True)
class CellSpace:
    """Which operation sits on which edge of the encoder. Defaults are the paper's."""

    name: ClassVar[str] = "cell"
    """What a record calls it."""

    operations: tuple[str, ...] = (
        "zero",
        "identity",
        "msa_h8",
        "msa_h12",
        "msa_h16",
        "mlp_r0.5",
        "mlp_r3",
        "mlp_r4",
    )
    """Candidate operations of every edge (III-B)."""
    num_nodes: Annotated[int, Range("[1, 6]")] = 2
    """Intermediate nodes of the encoder (Figures 5 and 6 show two)."""
    edges_per_node: Annotated[int, Range("[1, inf)")] = 2
    """Incoming edges that derivation keeps at each node (DARTS: the two strongest)."""
    dim: Annotated[int, Range("[1, 65536]")] = 768
    """Embedding dimension C of the supernet."""
    patch_size: Annotated[int, Range("[1, 8192]")] = 16
    """Side of a patch in pixels."""
    dropout: Annotated[float, Range("[0, 1)")] = 0.0
    """Dropout inside the candidate operations while searching."""
    fused: bool = True
    """Compute the candidates of a node's edges together in a few large products. The function is
    the same; false is the literal form, which dropout > 0 takes as well."""
    recompute: bool = False
    """Keep only the inputs of each node's edges for the backward pass and compute them anew
    there: less memory, more time. Needs `fused`."""

    def __post_init__(self) -> None:
        check_settings(self)
        require(len(self.operations) > 0, "operations must name at least one operation")
        require(
            len(set(self.operations)) == len(self.operations),
            f"operations must be distinct, but got {self.operations}",
        )
        require(
            any(name != "zero" for name in self.operations),
            "operations must hold one besides zero: an encoder of zeros alone has no output",
        )
        require(
            not self.recompute or (self.fused and self.dropout == 0),
            "recompute needs fused, and dropout 0",
        )

    def candidates(self, edge_ops: EdgeOps | None = None) -> Candidates:
        """Those of a stage; without `edge_ops` every operation on every edge."""
        from dasvit.spaces.cell.candidates import Candidates
        from dasvit.spaces.cell.genotype import edge_list

        if edge_ops is None:
            edge_ops = tuple(self.operations for _ in edge_list(self.num_nodes))
        return Candidates(
            edge_ops=edge_ops, operations=self.operations, edges_per_node=self.edges_per_node
        )

    def supernet(
        self,
        edge_ops: EdgeOps,
        *,
        num_layers: int,
        image_size: int,
        in_channels: int,
        num_classes: int,
        route: Route,
        precision: str = "fp32",
    ) -> SuperNet:
        """The supernet of a stage, freshly initialised, on the default device."""
        from dasvit.spaces.cell.supernet import SuperNet

        return SuperNet(
            edge_ops,
            num_layers=num_layers,
            dim=self.dim,
            num_nodes=self.num_nodes,
            image_size=image_size,
            patch_size=self.patch_size,
            in_channels=in_channels,
            num_classes=num_classes,
            dropout=self.dropout,
            route=route,
            fused=self.fused,
            recompute=self.recompute,
            precision=precision,
        )

    def inherit(self, old: SuperNet, new: SuperNet, *, order: str) -> None:
        """Hand the weights of a stage's supernet on to the next one's (Algorithm 1, line 7)."""
        from dasvit.spaces.cell.inherit import inherit_weights

        inherit_weights(old, new, order=order)

    def prune(
        self, scores: Float[Tensor, "edges ops"], edge_ops: EdgeOps, num_ops: int, *, zero: str
    ) -> tuple[EdgeOps, Int[Tensor, "edges kept"]]:
        """What each edge keeps in the next stage, by name and by column (lines 17-18)."""
        from dasvit.spaces.cell.prune import prune

        return prune(scores, edge_ops, num_ops, zero=zero)

    def derive(
        self,
        scores: Float[Tensor, "edges ops"],
        edge_ops: EdgeOps,
        provenance: dict[str, Any] | None = None,
        *,
        least_score: float = -math.inf,
        most_skips: int | None = None,
    ) -> Genotype:
        """The encoder that scores choose (line 21)."""
        from dasvit.spaces.cell.derive import derive

        return derive(
            scores,
            edge_ops,
            num_nodes=self.num_nodes,
            edges_per_node=self.edges_per_node,
            least_score=least_score,
            most_skips=most_skips,
            provenance=provenance,
        )

    def sample(self, seed: int) -> Genotype:
        """An encoder drawn uniformly; equal seeds give equal encoders on every machine."""
        from dasvit.spaces.cell.sample import random_genotype

        return random_genotype(self, seed)

    def network(self, supernet: SuperNet, genotype: Genotype) -> nn.Module:
        """The network of a genotype with the weights of a supernet that holds its operations."""
        from dasvit.spaces.cell.inherit import derived_network

        return derived_network(supernet, genotype)

    def check(self, *, draws_nothing: bool = False) -> None:
        """Whether the operations are known, run at this width and keep the shape of the tokens.

        Args:
            draws_nothing: refuse operations that draw random numbers in training, too.

        Raises:
            ValueError: naming the operation, in one line.
        """
        from dasvit.spaces.cell.operations import check_draws_nothing, check_shape_preserving

        self.check_sees()
        for name in self.operations:
            check_shape_preserving(name, self.dim)
            if draws_nothing:
                check_draws_nothing(name, self.dim)

    def check_sees(self) -> None:
        """Whether there are encoders that see the image.

        Raises:
            ValueError: no operation mixes tokens, in one line.
        """
        from dasvit.spaces.cell.operations import is_blind

        require(
            not is_blind(self.operations),
            f"operations must hold one that mixes tokens, such as msa_h8, but got "
            f"{', '.join(self.operations)}: the head reads the CLS token, which would not see the "
            "image (an operation of your own says mixes_tokens=True where it is registered)",
        )

    def heaviest(self, count: int) -> EdgeOps:
        """The `count` candidates with the most parameters on every edge, in the order of
        `operations`. Which ones a later stage keeps is not known before the search; these take the
        most memory."""
        import torch

        from dasvit.spaces.cell.operations import build_operation

        with torch.device("meta"):
            sizes = {
                name: sum(p.numel() for p in build_operation(name, self.dim).parameters())
                for name in self.operations
            }
        kept = set(sorted(self.operations, key=lambda name: -sizes[name])[:count])
        names = tuple(name for name in self.operations if name in kept)
        return tuple(names for _ in self.candidates().edge_ops)
