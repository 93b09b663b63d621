"""The mixed edge: the softmax(alpha)-weighted sum of an edge's candidates (Eq. 8)."""

from jaxtyping import Float
from torch import Tensor, nn

from dasvit.ops import Zero, build_operation
from dasvit.tokens import TokenSelector, scatter_tokens

__all__ = ["MixedEdge", "PartialEdge"]


class MixedEdge(nn.Module):
    """All candidates of one edge, summed by their weights.

    The norms of MSA and MLP are without affine part here: the linear layer behind is free to hold
    it, and all candidates can share one normalisation.

    Args:
        names: the candidates, in the order of the weights.
        dim: embedding dimension C.
        dropout: inside the operations.
    """

    def __init__(self, names: tuple[str, ...], dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.names = names
        self.ops = nn.ModuleList(
            build_operation(name, dim, dropout=dropout, norm_affine=False) for name in names
        )

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], weights: Float[Tensor, " ops"]
    ) -> Float[Tensor, "batch tokens dim"]:
        terms = [
            weight * op(x)
            for op, weight in zip(self.ops, weights.unbind(), strict=True)
            if not isinstance(op, Zero)  # contributes exactly nothing, to value and gradient
        ]
        return sum(terms[1:], start=terms[0]) if terms else x.new_zeros(x.shape)


class PartialEdge(nn.Module):
    """An edge that only the selected tokens go through; the others bypass it unchanged.

    The `token_where="edge"` alternative, after PC-DARTS' partial channels.

    Args:
        edge: a `MixedEdge`, or in a derived network an operation.
        dim: embedding dimension C.
        token_ratio: λ in (0, 1).
    """

    def __init__(self, edge: nn.Module, dim: int, token_ratio: float) -> None:
        super().__init__()
        self.edge = edge
        self.selector = TokenSelector(dim, token_ratio)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], *weights: Float[Tensor, " ops"]
    ) -> Float[Tensor, "batch tokens dim"]:
        kept, index = self.selector(x)
        return scatter_tokens(x, self.edge(kept, *weights), index)
