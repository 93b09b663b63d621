import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from dasvit.spaces.cell.weighted_linear import weighted_linear

ROWS, DIM, WIDTHS = 5, 3, (4, 4, 2, 7)
COLUMNS = torch.tensor([i for i, width in enumerate(WIDTHS) for _ in range(width)])


def tensors() -> list[Tensor]:
    """scales, weight, bias, hidden, and two inputs."""
    first, second, *others = WIDTHS
    shapes = [(len(WIDTHS),), (DIM, sum(WIDTHS)), (len(WIDTHS), DIM), (ROWS, sum(others))]
    shapes += [(ROWS, first), (ROWS, second)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def ours(scales: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor, *inputs: Tensor) -> Tensor:
    return weighted_linear(scales, WIDTHS, COLUMNS, weight, bias, inputs, hidden)


def plain(scales: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor, *inputs: Tensor) -> Tensor:
    xs = [*inputs, *F.gelu(hidden).split(WIDTHS[2:], dim=1)]
    parts = zip(scales, xs, weight.split(WIDTHS, dim=1), bias, strict=True)
    return torch.stack([s * F.linear(x, w, b) for s, x, w, b in parts]).sum(dim=0)


# What the passes of a search ask gradients for, in the order of `tensors`.
NEEDS = [
    [True] * 6,  # at w': scales and weights
    [False, True, True, True, True, True],  # the weight pass
    [True, False, False, True, True, True],  # an alpha pass, on tokens that alpha had a part in
    [True, False, False, False, False, False],  # an alpha pass, on the first tokens
    [False, True, True, False, False, False],
    [False, False, False, True, False, True],
]


@pytest.mark.parametrize("needed", NEEDS)
def test_values_and_gradients_are_those_of_the_sum_of_terms(needed: list[bool]) -> None:
    for scales in (None, [0.0] * 4, [0.0, 0.0, 1.0, 0.0]):
        drawn = tensors()
        if scales is not None:
            drawn[0] = torch.tensor(scales, dtype=torch.float64)
        given = [t.detach().requires_grad_(n) for t, n in zip(drawn, needed, strict=True)]
        wanted, got = plain(*given), ours(*given)
        assert_close(got, wanted)
        of = [t for t in given if t.requires_grad]
        grad = torch.randn_like(wanted)
        assert_close(torch.autograd.grad(got, of, grad), torch.autograd.grad(wanted, of, grad))


def test_gradients_of_gradients() -> None:
    """At w', and in an alpha pass; against finite differences."""
    scales, weight, bias, *rest = drawn = tensors()
    assert torch.autograd.gradgradcheck(ours, drawn)
    fixed = weight.detach(), bias.detach()
    assert torch.autograd.gradgradcheck(lambda s, *r: ours(s, *fixed, *r), [scales, *rest])
