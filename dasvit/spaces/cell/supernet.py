"""The search network: encoders of mixed edges, under weights that all layers share."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from dasvit.spaces.base import Route
from dasvit.spaces.cell.edges import SearchCell
from dasvit.spaces.cell.fused_edges import FusedCell
from dasvit.spaces.cell.genotype import edge_list
from dasvit.spaces.cell.operations import Identity, init_linear
from dasvit.spaces.cell.tokens import TokenEmbedding, TokenSelector, check_selection

__all__ = ["SuperNet"]


class SuperNet(nn.Module):
    """The supernet of one stage.

    It holds no architecture parameters: every pass is given the weights of the candidates.

    Args:
        edge_ops: the candidates of each edge, in the order of `edge_list`; equally many per edge.
        num_layers: encoder layers.
        dim: embedding dimension C.
        num_nodes: intermediate nodes of the encoder.
        image_size: side of the images in pixels.
        patch_size: side of a patch in pixels.
        in_channels: 1 for grey images, 3 for RGB.
        num_classes: outputs of the head.
        dropout: inside the operations.
        route: which tokens go through the candidates; all of them need no selector.
        fused: compute the encoders as `FusedCell`s, where there is no dropout and the route is not
            sparse.
        recompute: see `FusedCell`; needs `fused`.
        precision: "fp32", or "bf16" to compute under bfloat16 autocast; parameters stay in fp32.

    Raises:
        ValueError: an unknown operation, one that does not fit `dim`, rows of unequal length, or
            channels that cannot be parted.
    """

    def __init__(
        self,
        edge_ops: Sequence[tuple[str, ...]],
        *,
        num_layers: int,
        dim: int,
        num_nodes: int,
        image_size: int,
        patch_size: int,
        in_channels: int,
        num_classes: int,
        dropout: float = 0.0,
        route: Route = Route(),  # noqa: B008 (a frozen value)
        fused: bool = False,
        recompute: bool = False,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.edge_ops = tuple(tuple(names) for names in edge_ops)
        expected = len(edge_list(num_nodes))
        if len(self.edge_ops) != expected or len({len(names) for names in self.edge_ops}) != 1:
            raise ValueError(
                f"edge_ops must have {expected} rows of equal length for {num_nodes} nodes, but "
                f"got lengths {[len(names) for names in self.edge_ops]}"
            )
        check_selection(route.token_ratio, route.token_where)
        parts = route.channel_parts
        if parts < 1 or dim % parts:
            raise ValueError(f"the width dim={dim} cannot be parted into {parts} equal parts")
        self.num_nodes = num_nodes
        self.dim = dim
        self.dropout = dropout
        self.route = route
        self.precision = precision
        self.embedding = TokenEmbedding(
            image_size=image_size, patch_size=patch_size, in_channels=in_channels, dim=dim
        )
        on_edges = route.token_where == "edge"
        selects = route.token_ratio < 1 and not on_edges
        self.selector = TokenSelector(dim, route.token_ratio) if selects else None
        self.cells = nn.ModuleList()
        for _ in range(num_layers):
            try:
                cell = SearchCell(
                    self.edge_ops,
                    dim,
                    num_nodes=num_nodes,
                    dropout=dropout,
                    edge_token_ratio=route.token_ratio if on_edges else 1.0,
                    channel_parts=parts,
                )
            except ValueError as error:
                if parts == 1:
                    raise
                raise ValueError(f"{error} (of {dim} channels, parted by {parts})") from None
            fuses = fused and dropout == 0 and not route.sparse
            self.cells.append(FusedCell(cell, recompute=recompute) if fuses else cell)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        init_linear(self.head)

    def drop_skips(self, rate: float) -> None:
        """From now on, training drops elements of what `identity` passes on, at this rate."""
        for module in self.modules():
            if isinstance(module, Identity):
                module.drop = rate

    def compile_encoders(self, backend: str = "inductor") -> None:
        """Compute the encoders through `torch.compile` from now on.

        A layer's graphs serve all layers. What was compiled before in this process, by whomever,
        is compiled anew when it is next called: graphs of a stage left behind would count against
        PyTorch's limit of graphs a function.

        Args:
            backend: of `torch.compile`.
        """
        torch.compiler.reset()
        for cell in self.cells:
            cell.compile(backend=backend, dynamic=False)

    @property
    def num_layers(self) -> int:
        return len(self.cells)

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self.precision == "fp32" or device.type == "meta":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)

    def _used(self, weights: Float[Tensor, "edges ops"]) -> list[list[bool]]:
        """The candidates that have a weight. Without values, as where memory is planned, the
        largest one of each edge."""
        if not (isinstance(weights, FakeTensor) or weights.is_meta):
            return weights.detach().ne(0).tolist()
        cell = self.cells[0]
        assert isinstance(cell, SearchCell)
        sizes = [
            [sum(p.numel() for p in op.parameters()) for op in edge.ops]
            for edge in cell.mixed_edges()
        ]
        return [[i == row.index(max(row)) for i in range(len(row))] for row in sizes]

    @contextmanager
    def in_precision(self, precision: str) -> Iterator[None]:
        """Compute in another precision ("fp32" or "bf16") inside the block."""
        before, self.precision = self.precision, precision
        try:
            yield
        finally:
            self.precision = before

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        weights: Float[Tensor, "edges ops"],
    ) -> Float[Tensor, "batch classes"]:
        """Class logits.

        Args:
            images: normalised images.
            weights: of the candidates (Eq. 8), one row per edge; one-hot rows give a single
                architecture.
        """
        with self._autocast(images.device):
            tokens, gate = self.embedding(images), None
            if self.selector is not None:
                tokens, _, gate = self.selector(tokens)
            before_last, last = tokens, tokens
            used = (self._used(weights),) if self.route.sparse else ()
            for cell in self.cells:
                before_last, last = last, cell(before_last, last, weights, gate, *used)
            logits = self.head(self.norm(last[:, 0]))
        return logits.to(weights.dtype)
