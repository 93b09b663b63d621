import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from dasvit.gelu_linear import add_gelu_linear


def inputs(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    shapes = ((5, 3), (5, 7), (3, 7))  # out, x, weight
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def plain(out: torch.Tensor | None, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    hidden = F.linear(F.gelu(x), weight)
    return hidden if out is None else out + hidden


@pytest.mark.parametrize("adds", [True, False])
def test_values_and_gradients_are_the_plain_ones(adds: bool) -> None:
    out, x, weight = inputs()
    given = out if adds else None
    wanted, got = plain(given, x, weight), add_gelu_linear(given, x, weight)
    assert_close(got, wanted)
    of = [out, x, weight] if adds else [x, weight]
    grad = torch.randn_like(wanted)
    assert_close(torch.autograd.grad(got, of, grad), torch.autograd.grad(wanted, of, grad))


def test_gradients_against_finite_differences() -> None:
    assert torch.autograd.gradcheck(add_gelu_linear, inputs())
    assert torch.autograd.gradgradcheck(add_gelu_linear, inputs())


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_only_the_gradients_that_are_asked_for(needs: tuple[bool, ...]) -> None:
    given = [t.detach().requires_grad_(n) for t, n in zip(inputs(), needs, strict=True)]
    add_gelu_linear(*given).sum().backward()
    assert tuple(t.grad is not None for t in given) == needs


def test_the_hidden_units_are_kept_once() -> None:
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    out, x, weight = inputs()
    hidden = x * 1  # as a linear layer's output
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        add_gelu_linear(out, hidden, weight)
    assert [tuple(tensor.shape) for tensor in kept] == [(5, 7), (3, 7)]
    assert kept[0].data_ptr() == hidden.data_ptr()


def test_under_autocast_both_products_are_in_half_precision() -> None:
    out, x, weight = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = add_gelu_linear(out.bfloat16(), x.bfloat16(), weight)
        wanted = plain(out.bfloat16(), x.bfloat16(), weight)
    assert got.dtype == torch.bfloat16
    assert_close(got, wanted, rtol=2e-2, atol=2e-2)
    got.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
