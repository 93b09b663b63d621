"""Candidate operations: one conformance test for all, then each against its equation."""

import math
from collections.abc import Callable

import pytest
import torch
from support import plugin_operation, reference
from torch import nn

from dasvit.run.plugins import load_plugins
from dasvit.spaces.cell.genotype import Edge, Genotype
from dasvit.spaces.cell.operations import (
    _FAMILIES,
    MLP,
    MSA,
    build_operation,
    check_operation,
    check_shape_preserving,
    init_linear,
    operation_kind,
    register_operation,
    registered_operations,
)

DIM = 48
ALL_OPERATIONS = {
    "zero": "zero",
    "identity": "identity",
    "msa_h1": "msa",
    "msa_h8": "msa",
    "msa_h12": "msa",
    "msa_h16": "msa",
    "mlp_r0.5": "mlp",
    "mlp_r3": "mlp",
    "mlp_r4": "mlp",
    "conv_k3": "conv",  # a user's own, from plugin_operation
}


def test_conformance_covers_every_family_of_the_package() -> None:
    own = {n for n, f in _FAMILIES.items() if f.build.__module__.startswith("dasvit")}
    assert own | {"conv"} == {name.split("_")[0] for name in ALL_OPERATIONS}
    assert {pattern.split("_")[0] for pattern in registered_operations()} >= own | {"conv"}


@pytest.mark.parametrize(("name", "kind"), ALL_OPERATIONS.items())
def test_operation_conformance(name: str, kind: str) -> None:
    """Shape, finiteness, gradients to input and parameters, determinism, name round trip."""
    op = build_operation(name, DIM)
    assert operation_kind(name) == kind
    check_operation(name)
    read_back = Genotype.from_dict(Genotype(((Edge(0, name),),)).to_dict()).operations
    assert read_back == (name,)
    assert type(build_operation(read_back[0], DIM)) is type(op)

    for tokens in (1, 5):
        x = torch.randn(2, tokens, DIM, requires_grad=True)
        out = op(x)
        assert out.shape == x.shape
        assert out.dtype == x.dtype
        assert out.isfinite().all()
    torch.testing.assert_close(op(x), out, rtol=0, atol=0)
    # Images do not see one another.
    torch.testing.assert_close(op(x[1:]), out[1:])

    if name == "zero":
        assert torch.equal(out, torch.zeros_like(x))
        assert not list(op.parameters())
        return
    inputs = [x, *op.parameters()]
    for grad in torch.autograd.grad((out * torch.randn_like(out)).sum(), inputs):
        assert grad.isfinite().all()
        assert grad.abs().max() > 0


@pytest.mark.parametrize("name", ["msa_h8", "mlp_r0.5", "conv_k3"])
def test_dropout_reaches_the_operation(name: str) -> None:
    op = build_operation(name, DIM, dropout=0.5)
    out = op(torch.randn(4, 10, DIM))
    assert (out == 0).double().mean().item() == pytest.approx(0.5, abs=0.1)
    op.eval()
    assert (op(torch.randn(4, 10, DIM)) != 0).all()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "msa",
        "mlp",
        "msa_",
        "msa_h",
        "msa_h08",
        "msa_h0",
        "msa_h-2",
        "msa_h2.5",
        "msa_h 8",
        "msa_8",
        "msa_r8",
        "MSA_h8",
        "mlp_r3.0",
        "mlp_r0",
        "mlp_r.5",
        "mlp_rnan",
        "mlp_h2",
        "zero_",
        "identity_h1",
        "attention_h8",
        "msa_h8_h8",
    ],
)
def test_unknown_names_are_refused(name: str) -> None:
    for function in (check_operation, operation_kind, lambda n: build_operation(n, DIM)):
        with pytest.raises(ValueError, match="unknown operation") as caught:
            function(name)
        assert repr(name) in str(caught.value)
        assert "msa_h<int>" in str(caught.value)


@pytest.mark.parametrize("heads", [5, 7, 96])
def test_heads_must_divide_the_width(heads: int) -> None:
    with pytest.raises(ValueError, match=f"msa_h{heads}.*dim={DIM}"):
        build_operation(f"msa_h{heads}", DIM)


def test_mlp_needs_a_hidden_unit() -> None:
    with pytest.raises(ValueError, match=r"mlp_r0\.01.*dim=8"):
        build_operation("mlp_r0.01", 8)


@pytest.mark.parametrize("name", ["mlp_r99999999999999", "mlp_r131073"])
def test_an_mlp_of_millions_of_units_is_refused(name: str) -> None:
    with torch.device("meta"):
        assert build_operation("mlp_r131072", 8).fc1.out_features == 2**20
        with pytest.raises(ValueError, match="more than 1048576 hidden units at dim=8") as caught:
            build_operation(name, 8)
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
@pytest.mark.usefixtures("double")
def test_msa_is_a_loop_over_heads(
    heads: int, randomise: Callable, assert_same_gradients: Callable
) -> None:
    op = randomise(MSA(12, heads))
    x = torch.randn(2, 5, 12, requires_grad=True)
    actual, expected = op(x), reference.msa(op, heads, x)
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(x)
    assert_same_gradients(
        (actual * direction).sum(), (expected * direction).sum(), [x, *op.parameters()]
    )


@pytest.mark.parametrize("ratio", [0.5, 3])
@pytest.mark.usefixtures("double")
def test_mlp_is_equation_4(
    ratio: float, randomise: Callable, assert_same_gradients: Callable
) -> None:
    op = randomise(MLP(12, ratio))
    assert op.fc1.out_features == 12 * ratio
    x = torch.randn(2, 5, 12, requires_grad=True)
    actual, expected = op(x), reference.mlp(op, x)
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(x)
    assert_same_gradients(
        (actual * direction).sum(), (expected * direction).sum(), [x, *op.parameters()]
    )


@pytest.mark.parametrize("name", ["msa_h4", "mlp_r2"])
def test_no_residual_and_norm_inside(name: str) -> None:
    """With the last layer at zero nothing comes out; the input's scale makes no difference."""
    op = build_operation(name, DIM)
    x = torch.randn(2, 5, DIM)
    torch.testing.assert_close(op(1000 * x), op(x), rtol=1e-3, atol=1e-4)
    last = op.proj if isinstance(op, MSA) else op.fc2
    nn.init.zeros_(last.weight)
    assert torch.equal(op(x), torch.zeros_like(x))


def test_identity_is_the_input() -> None:
    x = torch.randn(2, 3, DIM)
    assert torch.equal(build_operation("identity", DIM)(x), x)


def _assert_xavier(weight: torch.Tensor) -> None:
    """Uniform on ±√(6 / (in + out)): within the bound, close to it, of its variance."""
    bound = math.sqrt(6 / sum(weight.shape))
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.98 * bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_linears_start_xavier_uniform() -> None:
    attention, perceptron = MSA(64, 4), MLP(64, 3)
    for block in attention.qkv.weight.chunk(3):  # each of W_Q, W_K, W_V is a layer of its own
        assert block.shape == (64, 64)
        _assert_xavier(block)
    for layer in (attention.proj, perceptron.fc1, perceptron.fc2):
        _assert_xavier(layer.weight)
    for layer in (attention.qkv, attention.proj, perceptron.fc1, perceptron.fc2):
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_init_linear_without_bias() -> None:
    layer = nn.Linear(64, 48, bias=False)
    nn.init.constant_(layer.weight, 9.0)
    init_linear(layer)
    _assert_xavier(layer.weight)


@pytest.mark.parametrize("family", ["", "Conv", "conv_x", "3conv", "con v", "cönv"])
def test_malformed_families_are_refused(family: str) -> None:
    with pytest.raises(ValueError, match="a to z") as caught:
        register_operation(family, plugin_operation.TokenConv)
    assert repr(family) in str(caught.value)


@pytest.mark.parametrize("symbol", ["", "kk", "K", "3", "λ"])
def test_malformed_symbols_are_refused(symbol: str) -> None:
    with pytest.raises(ValueError, match="symbol") as caught:
        register_operation("another", plugin_operation.TokenConv, symbol=symbol)
    assert repr(symbol) in str(caught.value)
    assert not any(pattern.startswith("another") for pattern in registered_operations())


def test_a_family_is_registered_once() -> None:
    register_operation("conv", plugin_operation.TokenConv, symbol="k", value_type=int)  # same again
    with pytest.raises(ValueError, match="'msa' is registered already"):
        register_operation("msa", plugin_operation.TokenConv, symbol="k")


def test_plugins_are_imported_or_named() -> None:
    load_plugins(["support.plugin_operation"])
    with pytest.raises(ValueError, match="no_such_module"):
        load_plugins(["no_such_module"])


class _Mean(nn.Module):
    """Breaks the contract: one token comes out, which broadcasts against any number of them."""

    def __init__(self, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=1, keepdim=True)


class _NoDropout(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("family", "build", "words"),
    [("mean", _Mean, "must keep the shape"), ("plain", _NoDropout, "does not run at dim=8")],
)
def test_an_operation_that_breaks_its_contract_is_refused_before_a_search(
    family: str, build: type[nn.Module], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dasvit.spaces.cell.operations._FAMILIES", dict(_FAMILIES))
    register_operation(family, build)
    with pytest.raises(ValueError, match=words) as caught:
        check_shape_preserving(family, 8)
    assert repr(family) in str(caught.value) and "\n" not in str(caught.value)


def test_all_operations_of_the_space_keep_the_shape() -> None:
    for name in ("zero", "identity", "msa_h2", "mlp_r0.5", "mlp_r3"):
        check_shape_preserving(name, 8)
    with pytest.raises(ValueError, match="msa_h3"):
        check_shape_preserving("msa_h3", 8)
