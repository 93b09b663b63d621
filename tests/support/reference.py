"""Slow, literal versions of the paper's equations, for the tests alone.

Each follows its equation index by index and shares no code with the fast version; parameters are
read from the modules under test, the arithmetic is done anew.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dasvit.spaces.cell.genotype import Genotype

LAYER_NORM_EPSILON = 1e-5
ONE = torch.ones(())
"""The gate of tokens that no selector chose."""


# Token selection (Eq. 13-15).


def token_scores(patches: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Eq. 13-15 with the N×N matrix: `query`, `key` are W_Q, W_K as `X W` uses them."""
    batch, count, dim = patches.shape
    q, k = patches @ query, patches @ key
    rows = []
    for b in range(batch):
        for i in range(count):
            row = [(q[b, i] * k[b, j]).sum() / math.sqrt(dim) for j in range(count)]
            rows.append(sum(row) / count)
    return torch.stack(rows).view(batch, count)


def num_selected(num_patches: int, token_ratio: float) -> int:
    """k = ⌊λN⌋ in exact decimal arithmetic, at least 1."""
    return max(1, math.floor(Fraction(str(token_ratio)) * num_patches))


class SigmoidGate(torch.autograd.Function):
    """Straight-through gate: forward 1; backward σ'(s) to the scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        ctx.save_for_backward(scores)
        return torch.ones_like(scores)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (scores,) = ctx.saved_tensors
        sigma = 1 / (1 + (-scores).exp())
        return grad * sigma * (1 - sigma)


def select_tokens(selector: nn.Module, tokens: Tensor) -> tuple[Tensor, list[list[int]], Tensor]:
    """CLS and the k best patch tokens in their order, their positions in `tokens`, their gate."""
    patches = tokens[:, 1:]
    scores = token_scores(patches, selector.query.weight.T, selector.key.weight.T)
    k = num_selected(patches.shape[1], selector.token_ratio)
    images, positions, gates = [], [], []
    for b in range(tokens.shape[0]):
        values = scores[b].tolist()
        best = sorted(sorted(range(len(values)), key=lambda i: -values[i])[:k])
        images.append(torch.stack([tokens[b, 0], *(patches[b, i] for i in best)]))
        positions.append([0, *(i + 1 for i in best)])
        gate = SigmoidGate.apply(torch.stack([scores[b, i] for i in best]))
        gates.append(torch.cat([torch.ones(1), gate]))
    return torch.stack(images), positions, torch.stack(gates).unsqueeze(-1)


def bypass(tokens: Tensor, processed: Tensor, positions: list[list[int]]) -> Tensor:
    """`tokens` with the processed ones at their positions, the others as they were."""
    images = []
    for b, kept in enumerate(positions):
        rows = [
            processed[b, kept.index(n)] if n in kept else tokens[b, n]
            for n in range(tokens.shape[1])
        ]
        images.append(torch.stack(rows))
    return torch.stack(images)


# Operations (Eq. 1-4), pre-norm.


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    normalised = (x - mean) / (variance + LAYER_NORM_EPSILON).sqrt()
    if norm.weight is None:  # a supernet's candidate
        return normalised
    return normalised * norm.weight + norm.bias


def softmax(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum(-1, keepdim=True)


def msa(op: nn.Module, heads: int, x: Tensor, gate: Tensor) -> Tensor:
    """Eq. 1-3, a loop over images and heads."""
    dim = x.shape[-1]
    d_k = dim // heads
    w_q, w_k, w_v = (op.qkv.weight[i * dim : (i + 1) * dim].T for i in range(3))
    b_q, b_k, b_v = (op.qkv.bias[i * dim : (i + 1) * dim] for i in range(3))
    images = []
    for z in gate * layer_norm(x, op.norm):
        outputs = []
        for h in range(heads):
            of_head = slice(h * d_k, (h + 1) * d_k)
            q = z @ w_q[:, of_head] + b_q[of_head]
            k = z @ w_k[:, of_head] + b_k[of_head]
            v = z @ w_v[:, of_head] + b_v[of_head]
            outputs.append(softmax(q @ k.T / math.sqrt(d_k)) @ v)
        images.append(torch.cat(outputs, dim=-1) @ op.proj.weight.T + op.proj.bias)
    return torch.stack(images)


def mlp(op: nn.Module, x: Tensor, gate: Tensor) -> Tensor:
    """Eq. 4."""
    hidden = gate * layer_norm(x, op.norm) @ op.fc1.weight.T + op.fc1.bias
    gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return gelu @ op.fc2.weight.T + op.fc2.bias


def operation(name: str, op: nn.Module, x: Tensor, gate: Tensor = ONE) -> Tensor:
    """The operation called `name` with the parameters of `op`."""
    if name == "zero":
        return 0 * x
    if name == "identity":
        return gate * x
    family, value = name.split("_")
    return msa(op, int(value[1:]), x, gate) if family == "msa" else mlp(op, x, gate)


# Mixed edge, cell, networks (Eq. 8, 9, 22-24).


def mixed_edge(
    names: Sequence[str], ops: Sequence[nn.Module], x: Tensor, weights: Tensor, gate: Tensor = ONE
) -> Tensor:
    """Eq. 8: every candidate, `zero` included."""
    total = torch.zeros_like(x)
    for o, name in enumerate(names):
        total = total + weights[o] * operation(name, ops[o], x, gate)
    return total


def edges_of(num_nodes: int) -> list[tuple[int, int]]:
    """(source, node), written out."""
    return [(s, j) for j in range(num_nodes) for s in range(2 + j)]


def search_cell(
    cell: nn.Module, e_2: Tensor, e_1: Tensor, weights: Tensor, gate: Tensor = ONE
) -> Tensor:
    """`e_k` of a mixed encoder."""
    incoming: dict[int, list[Tensor]] = {}
    states = {0: e_2, 1: e_1}
    for m, (source, node) in enumerate(edges_of(cell.num_nodes)):
        x, edge = states[source], cell.edges[m]
        if hasattr(edge, "selector"):
            kept, positions, own = select_tokens(edge.selector, x)
            inner = edge.edge
            out = bypass(x, mixed_edge(inner.names, inner.ops, kept, weights[m], own), positions)
        else:
            out = mixed_edge(edge.names, edge.ops, x, weights[m], gate)
        incoming.setdefault(node, []).append(out)
        states[2 + node] = torch.stack(incoming[node]).sum(0)
    return torch.stack([states[2 + j] for j in range(cell.num_nodes)]).sum(0)


def derived_cell(
    genotype: Genotype, edges: Sequence[nn.Module], e_2: Tensor, e_1: Tensor, gate: Tensor = ONE
) -> Tensor:
    """`e_k` of a genotype."""
    states, position = {0: e_2, 1: e_1}, 0
    for node, incoming in enumerate(genotype.nodes):
        total = torch.zeros_like(e_1)
        for wire in incoming:
            x, edge = states[wire.source], edges[position]
            if hasattr(edge, "selector"):
                kept, positions, own = select_tokens(edge.selector, x)
                out = bypass(x, operation(wire.operation, edge.edge, kept, own), positions)
            else:
                out = operation(wire.operation, edge, x, gate)
            total, position = total + out, position + 1
        states[2 + node] = total
    return torch.stack([states[2 + j] for j in range(len(genotype.nodes))]).sum(0)


def embedding(module: Any, images: Tensor) -> Tensor:
    """Eq. 23, 24: cut the patches, flatten, project, prepend CLS, add positions."""
    weight, bias = module.patches.proj.weight, module.patches.proj.bias
    side = weight.shape[-1]
    rows, columns = images.shape[2] // side, images.shape[3] // side
    batch = []
    for image in images:
        tokens = [module.cls_token[0, 0]]
        for r, c in itertools.product(range(rows), range(columns)):
            patch = image[:, r * side : (r + 1) * side, c * side : (c + 1) * side]
            tokens.append(weight.flatten(1) @ patch.flatten() + bias)
        batch.append(torch.stack(tokens) + module.positions[0])
    return torch.stack(batch)


def network(
    model: Any,
    z_0: Tensor,
    layers: nn.ModuleList,
    cell: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Logits: `Z_0` into both inputs of the first encoder, LayerNorm and Linear on CLS."""
    gate = ONE
    if model.selector is not None:
        z_0, _, gate = select_tokens(model.selector, z_0)
    outputs = [z_0, z_0]
    for layer in layers:
        outputs.append(cell(layer, outputs[-2], outputs[-1], gate))
    cls = layer_norm(outputs[-1], model.norm)[:, 0]
    return cls @ model.head.weight.T + model.head.bias


def supernet(model: Any, images: Tensor, weights: Tensor) -> Tensor:
    """Logits of the search network under weights of the candidates, (edges, ops)."""
    z_0 = embedding(model.embedding, images)
    return network(
        model,
        z_0,
        model.cells,
        lambda cell, e_2, e_1, gate: search_cell(cell, e_2, e_1, weights, gate),
    )


def derived(model: Any, images: Tensor) -> Tensor:
    """Logits of the derived network, whose parts have timm's names."""
    parts = SimpleNamespace(
        patches=model.patch_embed, cls_token=model.cls_token, positions=model.pos_embed
    )
    z_0 = embedding(parts, images)
    return network(
        model,
        z_0,
        model.blocks,
        lambda cell, e_2, e_1, gate: derived_cell(model.genotype, cell.edges, e_2, e_1, gate),
    )


# What methods add to the validation loss.


def fairness(
    weights: Tensor,
    edge_ops: Sequence[Sequence[str]],
    types: Sequence[str],
    *,
    skip_weight: float,
    type_weight: float,
    gamma_min: float,
    gamma_max: float,
    zeta1: float,
    zeta2: float,
    type_scope: str = "mean",
) -> Tensor:
    """Eq. 19, entry by entry. Eq. 17 and 18 are of the mean over the edges, or of every edge, where
    Eq. 18 is averaged."""
    skips = [
        weights[m, o]
        for m, names in enumerate(edge_ops)
        for o, name in enumerate(names)
        if name == "identity"
    ]
    l_1 = sum(skips) / len(skips) if skips else 0 * weights.sum()
    l_2 = 0 * weights.sum()
    edges = range(len(edge_ops))
    groups = [[m] for m in edges] if type_scope == "edge" else [list(edges)]
    for kind, group in itertools.product(types, groups):
        total = 0 * weights.sum()
        for m in group:
            for o, name in enumerate(edge_ops[m]):
                if name.split("_")[0] == kind:
                    total = total + weights[m, o] / len(group)
        if total > gamma_max:
            l_2 = l_2 + zeta1 * (total - gamma_max) / len(groups)
        if total < gamma_min:
            l_2 = l_2 + zeta2 * (gamma_min - total) / len(groups)
    return skip_weight * l_1 + type_weight * l_2


def beta_penalty(alpha: Tensor, t: float, *, weight: float) -> Tensor:
    """β-DARTS: the mean over edges of log Σ exp(α), by t and a weight."""
    return t * weight * sum(row.exp().sum().log() for row in alpha) / len(alpha)


def undecided_penalty(alpha: Tensor, *, weight: float) -> Tensor:
    """FairDARTS: `−w/N Σ (σ(α) − 0.5)²` over all N candidates."""
    terms = [(1 / (1 + (-a).exp()) - 0.5) ** 2 for a in alpha.flatten()]
    return -weight * sum(terms[1:], start=terms[0]) / len(terms)


def dirichlet_penalty(alpha: Tensor, *, weight: float) -> Tensor:
    """DrNAS: the divergence of Dirichlet(elu(α) + 1) from Dirichlet(1), summed over the edges."""
    total = torch.zeros(())
    for row in alpha:
        c = torch.where(row > 0, row + 1, row.exp())
        total = total + c.sum().lgamma() - c.lgamma().sum() - math.lgamma(len(c))
        total = total + ((c - 1) * (c.digamma() - c.sum().digamma())).sum()
    return weight * total


def cosine_lr(
    step: int, steps: int, *, lr: float, warmup_steps: int = 0, warmup_lr: float = 0.0
) -> float:
    """Learning rate of a 0-based step: linear from `warmup_lr` to `lr` over `warmup_steps`, then
    half a cosine from `lr` towards 0."""
    if step < warmup_steps:
        return warmup_lr + (lr - warmup_lr) * step / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * lr * (1 + math.cos(math.pi * done))
