"""Candidate operations of the encoder's edges (Section III-B) and the register they live in.

MSA and MLP are pre-norm: LayerNorm inside the operation, and no residual around it; a skip
exists only where `identity` is chosen. Every operation maps `(batch, tokens, dim)` to the same
shape.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dasvit.run.plugins import registry
from dasvit.spaces.cell.attention import attention

__all__ = [
    "IDENTITY",
    "MLP",
    "MSA",
    "ZERO",
    "Identity",
    "OperationFamily",
    "Zero",
    "apply_gated",
    "build_operation",
    "check_draws_nothing",
    "check_operation",
    "check_shape_preserving",
    "init_linear",
    "is_blind",
    "mixes_tokens",
    "operation_kind",
    "register_operation",
    "registered_operations",
    "scaled",
]

ZERO = "zero"
IDENTITY = "identity"
MAX_HIDDEN = 2**20


def init_linear(layer: nn.Linear, blocks: int = 1) -> None:
    """Xavier-uniform weights and zero biases (the original ViT's initialisation).

    Args:
        blocks: layers stacked in `layer` along its output (3 for a fused q, k, v); each is
            initialised as the layer of its own that it stands for.
    """
    # Paper gap: without residuals, trunc_normal(0.02) does not train, see docs/fidelity.md.
    for block in layer.weight.chunk(blocks):
        nn.init.xavier_uniform_(block)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Zero(nn.Module):
    """No connection: a zero tensor."""

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        return x.new_zeros(x.shape)


class Identity(nn.Module):
    """Skip connection. `drop` is its dropout while a supernet is trained, which a method sets."""

    drop = 0.0

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        return F.dropout(x, self.drop, self.training) if self.drop else x


class MSA(nn.Module):
    """Pre-norm multi-head self-attention (Eq. 1-3), with biases.

    Args:
        dim: embedding dimension C.
        heads: number of heads H; d_k = d_v = C / H.
        dropout: on the output.
        norm_affine: whether the norm has a gain and a bias of its own.

    Raises:
        ValueError: `heads` does not divide `dim`.
    """

    def __init__(
        self, dim: int, heads: int, *, dropout: float = 0.0, norm_affine: bool = True
    ) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            divisors = [h for h in range(1, dim + 1) if dim % h == 0 and h <= 32]
            raise ValueError(
                f"msa_h{heads}: {heads} heads do not divide the width dim={dim}; heads that do: "
                f"{divisors}"
            )
        self.heads = heads
        self.norm = nn.LayerNorm(dim, elementwise_affine=norm_affine)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        init_linear(self.qkv, blocks=3)
        init_linear(self.proj)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        gate: Float[Tensor, "batch tokens 1"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        batch, tokens, dim = x.shape
        qkv = self.qkv(scaled(self.norm(x), gate)).view(
            batch, tokens, 3, self.heads, dim // self.heads
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (batch, heads, tokens, dim / heads)
        out = attention(q, k, v)
        out = out.transpose(1, 2).reshape(batch, tokens, dim)
        return self.dropout(self.proj(out))


class MLP(nn.Module):
    """Pre-norm two-layer perceptron with GELU (Eq. 4).

    Args:
        dim: embedding dimension C.
        ratio: hidden width over C.
        dropout: on the output.
        norm_affine: whether the norm has a gain and a bias of its own.

    Raises:
        ValueError: `ratio · dim` rounds to less than 1, or to more than 2²⁰.
    """

    def __init__(
        self, dim: int, ratio: float, *, dropout: float = 0.0, norm_affine: bool = True
    ) -> None:
        super().__init__()
        hidden = round(dim * ratio)
        if hidden < 1:
            raise ValueError(f"mlp_r{ratio:g} has no hidden unit at dim={dim}")
        if hidden > MAX_HIDDEN:
            raise ValueError(
                f"mlp_r{ratio:g} has more than {MAX_HIDDEN} hidden units at dim={dim}; choose a "
                "smaller ratio"
            )
        self.norm = nn.LayerNorm(dim, elementwise_affine=norm_affine)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        init_linear(self.fc1)
        init_linear(self.fc2)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        gate: Float[Tensor, "batch tokens 1"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        return self.dropout(self.fc2(F.gelu(self.fc1(scaled(self.norm(x), gate)))))


def scaled(
    x: Float[Tensor, "batch tokens dim"], gate: Float[Tensor, "batch tokens 1"] | None
) -> Float[Tensor, "batch tokens dim"]:
    """`x` times a token selector's gate, in the type of `x`; without one `x` itself."""
    return x if gate is None else x * gate.to(x.dtype)


def apply_gated(
    op: nn.Module,
    x: Float[Tensor, "batch tokens dim"],
    gate: Float[Tensor, "batch tokens 1"] | None,
) -> Float[Tensor, "batch tokens dim"]:
    """`op(x)`, with the gate behind the norm of MSA and MLP, and on the tokens of all others."""
    if gate is not None and isinstance(op, MSA | MLP):
        return op(x, gate)
    return op(scaled(x, gate))


@dataclass(frozen=True, slots=True)
class OperationFamily:
    """How operations of one family are named and built.

    Attributes:
        build: `build(dim, value, dropout=…)`, or `build(dim, dropout=…)` without a symbol.
        kind: the operation type of Eq. 17, "msa" say; fairness sums weights by it.
        symbol: letter before the value in the name, "h" in msa_h8; None for a family of one.
        value_type: int or float.
        mixes_tokens: whether a token's output depends on other tokens.
    """

    build: Callable[..., nn.Module]
    kind: str
    symbol: str | None
    value_type: type
    mixes_tokens: bool


_FAMILIES: dict[str, OperationFamily] = registry()


def register_operation(
    family: str,
    build: Callable[..., nn.Module],
    *,
    symbol: str | None = None,
    value_type: type = int,
    kind: str | None = None,
    mixes_tokens: bool = False,
) -> None:
    """Make an operation known by name, `family` or `family_<symbol><value>`.

    A registered operation can be named in `operations`, is searched, derived and retrained like
    the built-in ones, and its type takes part in the fairness term. A token selector learns nothing
    through one that begins with a LayerNorm of its own, which undoes the gate on its tokens.

    Args:
        family: letters a to z and digits, a letter first.
        build: see `OperationFamily.build`; returns a module of shape-preserving
            `(batch, tokens, dim)`.
        symbol: letter a to z before the value, or None where there is no value.
        value_type: int or float.
        kind: the operation type (default: the family).
        mixes_tokens: whether a token's output depends on other tokens, as in attention. The head
            reads the CLS token: without such an operation an encoder does not see the image, and
            no search derives it.

    Raises:
        ValueError: the family is taken by another `build`, or the name is malformed.
    """
    if not re.fullmatch("[a-z][a-z0-9]*", family):
        raise ValueError(f"family must be letters a to z and digits, but got {family!r}")
    if symbol is not None and not re.fullmatch("[a-z]", symbol):
        raise ValueError(f"symbol must be one letter a to z, but got {symbol!r}")
    entry = OperationFamily(build, kind or family, symbol, value_type, mixes_tokens)
    if _FAMILIES.get(family, entry) != entry:
        raise ValueError(f"operation family {family!r} is registered already")
    _FAMILIES[family] = entry


def registered_operations() -> tuple[str, ...]:
    """The patterns of all registered names: `msa_h<int>`, …"""
    return tuple(
        name if f.symbol is None else f"{name}_{f.symbol}<{f.value_type.__name__}>"
        for name, f in _FAMILIES.items()
    )


def _spelling(value: float) -> str | None:
    """`3`, `0.5`; None for what has no plain decimal form (inf, 1e-05)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = repr(value)
    return text if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else None


def _parse(name: str) -> tuple[OperationFamily, int | float | None]:
    head, _, tail = name.partition("_")
    family = _FAMILIES.get(head)
    if family is not None and family.symbol is None and not tail and head == name:
        return family, None
    if family is not None and family.symbol is not None and tail[:1] == family.symbol:
        try:
            value = family.value_type(tail[1:])
        except ValueError:
            value = None
        # One spelling a value (mlp_r3, not mlp_r3.0), so that equal operations have equal names.
        if value is not None and value > 0 and _spelling(value) == tail[1:]:
            return family, value
    raise ValueError(
        f"unknown operation {name!r}; known: {', '.join(registered_operations())} "
        "(a module that registers more can be named in plugins)"
    )


def operation_kind(name: str) -> str:
    """The operation type of Eq. 17: "zero", "identity", "msa", "mlp" or a registered one."""
    return _parse(name)[0].kind


def mixes_tokens(name: str) -> bool:
    """Whether a token's output depends on other tokens."""
    return _parse(name)[0].mixes_tokens


def is_blind(operations: Iterable[str]) -> bool:
    """Whether an encoder of these operations leaves the CLS token untouched by all others: with a
    head that reads CLS, every image gets the same answer."""
    return not any(map(mixes_tokens, operations))


def build_operation(
    name: str, dim: int, *, dropout: float = 0.0, norm_affine: bool = True
) -> nn.Module:
    """The operation called `name` at width `dim`, freshly initialised.

    Args:
        norm_affine: whether the norm inside MSA and MLP has a gain and a bias; registered
            operations are as they are.

    Raises:
        ValueError: an unknown name, or a value that does not fit `dim`.
    """
    family, value = _parse(name)
    build: Callable[..., nn.Module] = family.build
    options: dict[str, Any] = {"dropout": dropout}
    if build in (MSA, MLP):
        options["norm_affine"] = norm_affine
    return build(dim, **options) if value is None else build(dim, value, **options)


def check_operation(name: str) -> None:
    """Raise ValueError unless `name` is registered."""
    _parse(name)


def _build_zero(dim: int, *, dropout: float = 0.0) -> nn.Module:
    return Zero()


def _build_identity(dim: int, *, dropout: float = 0.0) -> nn.Module:
    return Identity()


register_operation(ZERO, _build_zero)
register_operation(IDENTITY, _build_identity)
register_operation("msa", MSA, symbol="h", value_type=int, mixes_tokens=True)
register_operation("mlp", MLP, symbol="r", value_type=float)


def check_shape_preserving(name: str, dim: int) -> None:
    """Raise ValueError unless the operation runs at width `dim` and keeps the shape of its input.

    Broadcasting would hide a wrong shape in the sum of a node.
    """
    tokens = (2, 5, dim)
    try:
        with torch.device("meta"), torch.no_grad():
            out = build_operation(name, dim)(torch.empty(tokens))
        shape = tuple(out.shape)
    except ValueError:
        raise
    except Exception as error:  # a user's operation may raise anything
        raise ValueError(
            f"operation {name!r} does not run at dim={dim} ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]})"
        ) from None
    if shape != tokens:
        raise ValueError(
            f"operation {name!r} turns (batch, tokens, dim) = {tokens} into {shape}; it must keep "
            "the shape"
        )


def check_draws_nothing(name: str, dim: int) -> None:
    """Raise ValueError if the operation draws random numbers in training.

    Where kernels are compiled or captured, the passes of a step would draw different ones.
    """
    with torch.device("meta"), torch.no_grad(), _Draws() as draws:
        operation = build_operation(name, dim)
        draws.seen = False  # initial weights are drawn too
        operation(torch.empty(2, 5, dim))
    if draws.seen:
        raise ValueError(
            f"operation {name!r} draws random numbers, which compile and cuda_graph cannot repeat "
            "from pass to pass; leave them out"
        )


class _Draws(TorchDispatchMode):
    """Whether anything was drawn while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))
