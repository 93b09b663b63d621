"""Floating-point operations that a step of the search cannot do without.

Counted are the matrix products of the encoders: linear layers and the two attention products, two
operations a multiply-add. Embedding, token selection, head, norms, GELU, softmax and sums are not.
A backward pass counts the products that the chain rule needs for the gradients asked for: none
with respect to weights in a pass that updates alpha alone, and none with respect to tokens that
depend on nothing asked for. What an implementation computes beyond that is no useful work: the
same number is used for every implementation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dasvit.spaces.cell.genotype import NUM_INPUTS, edge_list

__all__ = ["Passes", "count_passes", "step_flops"]


@dataclass(frozen=True, slots=True)
class Passes:
    """Operations an image.

    Attributes:
        forward: one forward pass.
        alpha: a forward and a backward pass for ∇_α with the weights frozen.
        full: a forward and a backward pass for the gradients of weights and tokens.
    """

    forward: int
    alpha: int
    full: int


def _products(names: Sequence[str], tokens: int, dim: int) -> tuple[int, int]:
    """Multiply-adds of an edge's linear layers, and of its attention products."""
    linear = attention = 0
    for name in names:
        kind, _, value = name.partition("_")
        if kind == "msa":
            linear += 4 * tokens * dim * dim
            attention += 2 * tokens * tokens * dim
        elif kind == "mlp":
            linear += 2 * tokens * dim * round(float(value[1:]) * dim)
        elif kind not in ("zero", "identity"):
            raise ValueError(f"the products of {name!r} are not known here")
    return linear, attention


def count_passes(
    edge_ops: Sequence[Sequence[str]], *, num_layers: int, num_nodes: int, tokens: int, dim: int
) -> Passes:
    """The passes of a supernet.

    Args:
        edge_ops: the candidates of each edge, in the order of `edge_list`.
        tokens: that an encoder sees, CLS with them.
    """
    forward = alpha = full = 0
    for layer in range(num_layers):
        for (source, _), names in zip(edge_list(num_nodes), edge_ops, strict=True):
            linear, attention = (2 * macs for macs in _products(names, tokens, dim))
            # Source 0 is the layer before the last one: Z_0 in the first two layers.
            from_embedding = source < NUM_INPUTS and layer < NUM_INPUTS - source
            backward = linear + 2 * attention  # to the tokens
            forward += linear + attention
            alpha += linear + attention + (0 if from_embedding else backward)
            full += linear + attention + backward + linear
    return Passes(forward, alpha, full)


def step_flops(passes: Passes, batch_size: int, order: int) -> int:
    """A whole step: alpha, then the weights.

    Args:
        passes: of an image.
        batch_size: images of each of the two batches.
        order: 1, or 2: a full pass for w', one at w', and two for the finite difference.
    """
    alpha = passes.alpha if order == 1 else 2 * passes.full + 2 * passes.alpha
    return batch_size * (alpha + passes.full)
