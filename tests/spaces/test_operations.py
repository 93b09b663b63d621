"""Names and sizes of operations, and what is refused. (Every operation through one suite:
tests/conformance/test_operations.py; their equations: test_supernet.py, test_derived_network.py.)
"""

from collections.abc import Callable

import pytest
import torch
from support import plugin_operation
from torch import nn

from dasvit.spaces.cell.operations import (
    _FAMILIES,
    build_operation,
    check_draws_nothing,
    check_operation,
    check_shape_preserving,
    operation_kind,
    register_operation,
    registered_operations,
)

DIM = 48


@pytest.mark.parametrize(
    "name",
    ["", "msa", "msa_h", "msa_h08", "msa_h0", "msa_h2.5", "msa_h 8", "msa_r8", "MSA_h8",
     "mlp_r3.0", "mlp_rnan", "zero_", "identity_h1", "attention_h8", "msa_h8_h8"],
)  # fmt: skip
def test_unknown_names_are_refused(name: str) -> None:
    for function in (check_operation, operation_kind, lambda n: build_operation(n, DIM)):
        with pytest.raises(ValueError, match="unknown operation") as caught:
            function(name)
        assert repr(name) in str(caught.value)
        assert "msa_h<int>" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "dim", "message"),
    [
        ("msa_h5", 48, "msa_h5.*dim=48"),
        ("msa_h96", 48, "msa_h96.*dim=48"),
        ("mlp_r0.01", 8, r"mlp_r0\.01.*dim=8"),
        ("mlp_r131073", 8, "^mlp_r131073 has more than 1048576 hidden units at dim=8"),
        ("mlp_r99999999999999", 8, "^mlp_r1e.14 has more than 1048576 hidden units at dim=8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, dim: int, message: str) -> None:
    with torch.device("meta"):
        assert build_operation("mlp_r131072", 8).fc1.out_features == 2**20
        with pytest.raises(ValueError, match=message):
            build_operation(name, dim)
    with pytest.raises(ValueError, match=message):
        check_shape_preserving(name, dim)


@pytest.mark.parametrize(
    ("family", "symbol"),
    [
        *((family, "k") for family in ("", "Conv", "conv_x", "con v", "cönv")),
        *(("another", symbol) for symbol in ("", "kk", "K", "3")),
    ],
)
def test_malformed_families_and_symbols_are_refused(family: str, symbol: str) -> None:
    with pytest.raises(ValueError, match="a to z") as caught:
        register_operation(family, plugin_operation.TokenConv, symbol=symbol)
    assert repr(symbol if family == "another" else family) in str(caught.value)
    assert not any(pattern.startswith("another") for pattern in registered_operations())


class _Mean(nn.Module):
    """Breaks the contract: one token comes out, which broadcasts against any number of them."""

    def __init__(self, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=1, keepdim=True)


class _NoDropout(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()


class _Noise(_Mean):
    """Draws random numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


@pytest.mark.parametrize(
    ("build", "check", "words"),
    [
        (_Mean, check_shape_preserving, "must keep the shape"),
        (_NoDropout, check_shape_preserving, "does not run at dim=8"),
        (_Noise, check_draws_nothing, "draws random numbers"),
    ],
)
def test_an_operation_that_breaks_its_contract_is_refused_before_a_search(
    build: type[nn.Module], check: Callable, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dasvit.spaces.cell.operations._FAMILIES", dict(_FAMILIES))
    register_operation("broken", build)
    with pytest.raises(ValueError, match=words) as caught:
        check("broken", 8)
    assert "'broken'" in str(caught.value) and "\n" not in str(caught.value)
