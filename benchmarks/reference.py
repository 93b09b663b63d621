"""The search's step in its plain formulation, to measure `dasvit` against (`search_step.py`).

What one writes first: each candidate a module of its own, called one after the other, outputs
scaled and summed; attention by its formula; token scores with the N×N matrix; `loss.backward()`
in both passes; PyTorch's defaults everywhere else. The mathematics is that of `dasvit.search.step`,
which `tests/benchmarks/test_reference.py` checks in float64. Of `dasvit` only settings, the
order of the edges and the method's penalty are used here.
"""

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dasvit.search.config import SearchConfig
from dasvit.spaces.cell.genotype import edge_list

__all__ = ["ReferenceNet", "ReferenceStep"]

Batch = tuple[Tensor, Tensor]

Gate = Tensor | None
"""Of selected tokens, (batch, tokens, 1)."""


def _gated(x: Tensor, gate: Gate) -> Tensor:
    return x if gate is None else x * gate


class Zero(nn.Module):
    """No connection: the input times zero."""

    def forward(self, x: Tensor, gate: Gate) -> Tensor:
        return x * 0.0


class Identity(nn.Module):
    """Skip connection."""

    def forward(self, x: Tensor, gate: Gate) -> Tensor:
        return _gated(x, gate)


class MSA(nn.Module):
    """Pre-norm multi-head self-attention (Eq. 1-3). The norms of candidates have no gain and bias:
    the linear layer behind can hold them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, gate: Gate) -> Tensor:  # (batch, tokens, dim), and the same out
        batch, tokens, dim = x.shape
        qkv = self.qkv(_gated(self.norm(x), gate)).reshape(
            batch, tokens, 3, self.heads, dim // self.heads
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, tokens, dim / heads)
        scores = q @ k.transpose(-2, -1) / math.sqrt(dim // self.heads)
        out = scores.softmax(dim=-1) @ v
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))


class MLP(nn.Module):
    """Pre-norm two-layer perceptron (Eq. 4)."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.fc1 = nn.Linear(dim, round(dim * ratio))
        self.fc2 = nn.Linear(round(dim * ratio), dim)

    def forward(self, x: Tensor, gate: Gate) -> Tensor:  # (batch, tokens, dim), and the same out
        return self.fc2(F.gelu(self.fc1(_gated(self.norm(x), gate))))


def _candidate(name: str, dim: int) -> nn.Module:
    """`zero`, `identity`, `msa_h<heads>` or `mlp_r<ratio>`."""
    if name == "zero":
        return Zero()
    if name == "identity":
        return Identity()
    kind, value = name.split("_")
    if kind == "msa":
        return MSA(dim, int(value[1:]))
    return MLP(dim, float(value[1:]))


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return sum(terms[1:], start=terms[0])


class MixedEdge(nn.Module):
    """Eq. 8: the weighted sum of an edge's candidates."""

    def __init__(self, names: Sequence[str], dim: int) -> None:
        super().__init__()
        self.ops = nn.ModuleList(_candidate(name, dim) for name in names)

    def forward(self, x: Tensor, weights: Tensor, gate: Gate) -> Tensor:
        return _sum([w * op(x, gate) for w, op in zip(weights, self.ops, strict=True)])


class Encoder(nn.Module):
    """One layer: nodes sum their incoming edges (Eq. 9), the output sums the nodes (Eq. 22)."""

    def __init__(self, edge_ops: Sequence[Sequence[str]], dim: int, num_nodes: int) -> None:
        super().__init__()
        self.num_nodes = num_nodes
        self.edges = nn.ModuleList(MixedEdge(names, dim) for names in edge_ops)

    def forward(self, before_last: Tensor, last: Tensor, weights: Tensor, gate: Gate) -> Tensor:
        states = [before_last, last]
        wired = list(zip(edge_list(self.num_nodes), self.edges, weights, strict=True))
        for node in range(self.num_nodes):
            states.append(
                _sum([edge(states[s], row, gate) for (s, to), edge, row in wired if to == node])
            )
        return _sum(states[2:])


class Embedding(nn.Module):
    """Patches embedded, CLS before them, positions added (Eq. 23, 24)."""

    def __init__(self, image_size: int, patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, (image_size // patch_size) ** 2 + 1, dim))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), tokens], dim=1)
        return tokens + self.positions


class TokenSelector(nn.Module):
    """Eq. 13-15 as they stand, CLS kept, and the straight-through gate that trains W_Q and W_K."""

    def __init__(self, dim: int, token_ratio: float) -> None:
        super().__init__()
        self.token_ratio = token_ratio
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        cls_token, patches = tokens[:, :1], tokens[:, 1:]
        count, dim = patches.shape[1:]
        similarity = self.query(patches) @ self.key(patches).transpose(1, 2) / math.sqrt(dim)
        scores = similarity.mean(dim=2)  # (batch, patches)
        k = max(1, math.floor(self.token_ratio * count + 1e-9))
        index = scores.topk(k, dim=1).indices.sort(dim=1).values
        kept = patches.gather(1, index.unsqueeze(-1).expand(-1, -1, dim))
        gate = scores.gather(1, index).sigmoid().unsqueeze(-1)
        gate = gate - gate.detach() + 1
        return torch.cat([cls_token, kept], dim=1), F.pad(gate, (0, 0, 1, 0), value=1.0)


class ReferenceNet(nn.Module):
    """The supernet of a stage.

    Args:
        config: width, sizes, nodes, λ; token selection on the input.
        edge_ops: the candidates of each edge, in the order of `edge_list`.
        num_layers: encoder layers.
        channels: of the images.
        num_classes: outputs.
        precision: "fp32", or "bf16" for bfloat16 autocast.
    """

    def __init__(
        self,
        config: SearchConfig,
        edge_ops: Sequence[Sequence[str]],
        num_layers: int,
        *,
        channels: int,
        num_classes: int,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        dim, patch = config.space.dim, config.space.patch_size
        self.edge_ops, self.precision = edge_ops, precision
        self.embedding = Embedding(config.data.image_size, patch, channels, dim)
        ratio = config.setting("token_ratio")
        self.selector = TokenSelector(dim, ratio) if ratio < 1 else None
        self.cells = nn.ModuleList(
            Encoder(edge_ops, dim, config.space.num_nodes) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self.alpha = nn.Parameter(1e-3 * torch.randn(len(edge_ops), len(edge_ops[0])))

    def weights(self) -> list[nn.Parameter]:
        """All parameters but the alphas."""
        return [p for name, p in self.named_parameters() if name != "alpha"]

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.alpha.device.type, torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        with self._autocast():
            tokens, gate = self.embedding(images), None
            if self.selector is not None:
                tokens, gate = self.selector(tokens)
            logits = self.head(self.norm(self.encode(tokens, gate)[:, 0]))
        return logits.to(self.alpha.dtype)

    def encode(self, tokens: Tensor, gate: Gate = None) -> Tensor:
        """The output of the last layer, (batch, tokens, dim)."""
        operation_weights = self.alpha.softmax(dim=-1)
        before_last, last = tokens, tokens
        for cell in self.cells:
            before_last, last = last, cell(before_last, last, operation_weights, gate)
        return last


class ReferenceStep:
    """Algorithm 1, lines 11-14: alpha on a validation batch, then the weights on a training batch.

    As in DARTS' own program, both passes differentiate everything and the optimiser takes its
    part; second order deep-copies the model for the virtual step, and its finite difference adds
    to the weights and takes away again.

    Args:
        config: optimisers, the method's penalty, ξ, clipping.
        model: on its device.
    """

    def __init__(self, config: SearchConfig, model: ReferenceNet) -> None:
        self.config, self.model = config, model
        self.candidates = config.space.candidates(tuple(map(tuple, model.edge_ops)))
        self.weight_optimizer = torch.optim.AdamW(
            model.weights(), lr=config.weight_lr, weight_decay=config.weight_decay
        )
        self.arch_optimizer = torch.optim.Adam(
            [model.alpha],
            lr=config.method.alpha_lr,
            betas=config.method.alpha_betas,
            weight_decay=config.method.alpha_weight_decay,
        )

    def __call__(
        self, train_batch: Batch, val_batch: Batch, *, weight_lr: float
    ) -> tuple[Tensor, Tensor]:
        """Update alpha and weights; L_train and its logits before the weights' update."""
        self.alpha_pass(train_batch, val_batch)
        self.arch_optimizer.step()
        loss, logits = self.weight_pass(train_batch)
        if self.config.grad_clip > 0:
            nn.utils.clip_grad_norm_(self.model.weights(), self.config.grad_clip)
        for group in self.weight_optimizer.param_groups:
            group["lr"] = weight_lr
        self.weight_optimizer.step()
        return loss, logits

    def alpha_pass(self, train_batch: Batch, val_batch: Batch) -> Tensor:
        """Leave ∇_α of the upper level in `alpha.grad`; returns L_val."""
        self.arch_optimizer.zero_grad()
        if self.config.method.xi > 0:
            return self._second_order(train_batch, val_batch)
        loss = self._loss(self.model, val_batch)
        (loss + self.penalty(self.model)).backward()
        return loss.detach()

    def weight_pass(self, train_batch: Batch) -> tuple[Tensor, Tensor]:
        """Leave ∇_w L_train in the weights' `grad`; returns L_train and its logits."""
        self.weight_optimizer.zero_grad()
        images, labels = train_batch
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        return loss.detach(), logits.detach()

    def _loss(self, model: ReferenceNet, batch: Batch) -> Tensor:
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def _second_order(self, train_batch: Batch, val_batch: Batch) -> Tensor:
        model, xi = self.model, self.config.method.xi
        grads = torch.autograd.grad(self._loss(model, train_batch), model.weights())
        virtual = copy.deepcopy(model)
        with torch.no_grad():
            for p, grad in zip(virtual.weights(), grads, strict=True):
                p -= xi * grad
        loss = self._loss(virtual, val_batch)
        (loss + self.penalty(virtual)).backward()
        vector = [p.grad for p in virtual.weights() if p.grad is not None]
        assert virtual.alpha.grad is not None and len(vector) == len(model.weights())

        epsilon = 0.01 / torch.cat([v.flatten() for v in vector]).norm()
        self._move(vector, epsilon)
        above = torch.autograd.grad(self._loss(model, train_batch), model.alpha)[0]
        self._move(vector, -2 * epsilon)
        below = torch.autograd.grad(self._loss(model, train_batch), model.alpha)[0]
        self._move(vector, epsilon)
        model.alpha.grad = virtual.alpha.grad - xi * (above - below) / (2 * epsilon)
        return loss.detach()

    @torch.no_grad()
    def _move(self, vector: Sequence[Tensor], scale: Tensor) -> None:
        for p, v in zip(self.model.weights(), vector, strict=True):
            p += scale * v

    def penalty(self, model: ReferenceNet) -> Tensor:
        """What the method adds to the validation loss."""
        arch, weights = {"alpha": model.alpha}, model.alpha.softmax(dim=-1)
        found = self.config.method.penalty(arch, weights, self.candidates, weights.new_zeros(()))
        return weights.new_zeros(()) if found is None else found
