"""What one stage trains: a supernet, and the architecture parameters of a method."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dasvit.methods import DARTS
from dasvit.search.config import SearchConfig
from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.candidates import Candidates
from dasvit.spaces.cell.operations import IDENTITY, ZERO
from dasvit.spaces.cell.supernet import SuperNet

__all__ = ["Noise", "SearchModel", "build_search_model"]

Noise = Mapping[str, Tensor]
"""What a method draws once per step; empty in evaluation."""


class SearchModel(nn.Module):
    """A supernet whose candidates are weighed by a method.

    The architecture parameters are in the `state_dict` beside the supernet's weights. The two lists
    `weight_parameters` and `arch_parameters` are disjoint, and together they are all parameters.

    Args:
        method: turns architecture parameters into weights of the candidates.
        supernet: freshly built.
        candidates: of the stage.

    Raises:
        ValueError: an architecture parameter that has not one row per edge and one column per
            candidate, or one column in all.
    """

    t: Tensor
    """The share of the search that is done, a scalar; a captured step reads it where it lies."""

    def __init__(self, method: DARTS, supernet: SuperNet, candidates: Candidates) -> None:
        super().__init__()
        self.method, self.candidates = method, candidates
        self.supernet = supernet
        arch = method.parameters(candidates)
        shape = len(candidates.edge_ops), len(candidates.edge_ops[0])
        for name, value in arch.items():
            if value.shape not in (shape, (shape[0], 1)):
                raise ValueError(
                    f"method {method.name}: the architecture parameter {name} must be (edges, ops) "
                    f"= {shape}, or (edges, 1), but has the shape {tuple(value.shape)}"
                )
        self.arch = nn.ParameterDict(arch)
        self.register_buffer("t", torch.zeros(()), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.t.device

    def weight_parameters(self) -> list[nn.Parameter]:
        """All parameters of the supernet, in a fixed order."""
        return list(self.supernet.parameters())

    def arch_parameters(self) -> list[nn.Parameter]:
        """The architecture parameters, in a fixed order."""
        return list(self.arch.parameters())

    def named_arch(self) -> dict[str, Tensor]:
        """The architecture parameters by name, as the hooks of a method take them."""
        return dict(self.arch.items())

    def noise(self) -> Noise:
        """A draw of the method's noise, for the passes of one step."""
        return self.method.noise(self.named_arch(), self.candidates, self.t)

    def weights(self, noise: Noise | None = None) -> Float[Tensor, "edges ops"]:
        """The weights of the candidates in the alpha pass, or without noise in evaluation."""
        return self.with_skip(self.method.weights(self.named_arch(), noise or {}, self.t))

    def train_weights(self, noise: Noise) -> Float[Tensor, "edges ops"]:
        """The weights of the candidates where the supernet is trained."""
        return self.with_skip(self.method.train_weights(self.named_arch(), noise, self.t))

    def with_skip(self, weights: Float[Tensor, "edges ops"]) -> Float[Tensor, "edges ops"]:
        """What the supernet sees of a method's weights: the method may add to `identity`'s."""
        extra = self.method.extra_skip(self.t)
        if extra is None:
            return weights
        return weights + extra * self.candidates.mask(IDENTITY, weights)

    def shares(self) -> Float[Tensor, "edges ops"]:
        """What traces and figures show of the candidates."""
        return self.method.shares(self.named_arch(), self.t).detach()

    def penalty(self, weights: Float[Tensor, "edges ops"]) -> Float[Tensor, ""] | None:
        """What the method adds to the validation loss."""
        return self.method.penalty(self.named_arch(), weights, self.candidates, self.t)

    def scores(self) -> Float[Tensor, "edges ops"]:
        """By what the method prunes and derives."""
        return self.method.scores(self.named_arch())

    def order(self) -> tuple[tuple[str, ...], ...]:
        """The candidates of each edge but `zero` and `identity`, the strongest first."""
        columns = self.scores().argsort(dim=1, descending=True, stable=True).tolist()
        return tuple(
            tuple(row[i] for i in places if row[i] not in (ZERO, IDENTITY))
            for places, row in zip(columns, self.candidates.edge_ops, strict=True)
        )

    def figures(self, weights: Float[Tensor, "edges ops"]) -> dict[str, float]:
        """What the method shows of itself."""
        return self.method.figures(self.named_arch(), weights, self.candidates, self.t)

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        weights: Float[Tensor, "edges ops"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Class logits under given weights of the candidates, or those of evaluation."""
        return self.supernet(images, self.weights() if weights is None else weights)


def build_search_model(
    config: SearchConfig,
    edge_ops: EdgeOps | None = None,
    *,
    num_layers: int,
    in_channels: int,
    num_classes: int,
    dense: bool = False,
) -> SearchModel:
    """A stage's model, freshly initialised, on the default device.

    Args:
        config: the search.
        edge_ops: the candidates of each edge; by default every operation on every edge.
        num_layers: encoder layers.
        in_channels: 1 for grey images, 3 for RGB.
        num_classes: outputs of the head.
        dense: compute candidates without a weight too, as compiled, captured and recomputed ones
            must: to leave them out waits for the device.
    """
    candidates = config.space.candidates(edge_ops)
    route = config.method.route()
    if dense or config.compile or config.cuda_graph or config.space.recompute:
        route = replace(route, sparse=False)
    supernet = config.space.supernet(
        candidates.edge_ops,
        num_layers=num_layers,
        image_size=config.data.image_size,
        in_channels=in_channels,
        num_classes=num_classes,
        route=route,
        precision=config.precision,
    )
    return SearchModel(config.method, supernet, candidates)
