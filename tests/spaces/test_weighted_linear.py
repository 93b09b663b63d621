import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from dasvit.spaces.cell.weighted_linear import weighted_linear

ROWS, DIM, WIDTHS = 5, 3, (4, 4, 2, 7)
COLUMNS = torch.tensor([i for i, width in enumerate(WIDTHS) for _ in range(width)])


def tensors(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """scales, weight, bias, hidden, and two inputs."""
    first, second, *others = WIDTHS
    shapes = [(len(WIDTHS),), (DIM, sum(WIDTHS)), (len(WIDTHS), DIM), (ROWS, sum(others))]
    shapes += [(ROWS, first), (ROWS, second)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


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


@pytest.mark.parametrize("scales", [None, [0.0] * 4, [0.0, 0.0, 1.0, 0.0]])
@pytest.mark.parametrize("needed", NEEDS)
def test_values_and_gradients_are_those_of_the_sum_of_terms(
    needed: list[bool], scales: list[float] | None
) -> None:
    drawn = tensors()
    if scales is not None:
        drawn[0] = torch.tensor(scales, dtype=torch.float64)
    given = [t.detach().requires_grad_(n) for t, n in zip(drawn, needed, strict=True)]
    wanted, got = plain(*given), ours(*given)
    assert_close(got, wanted)
    of = [t for t in given if t.requires_grad]
    grad = torch.randn_like(wanted)
    assert_close(torch.autograd.grad(got, of, grad), torch.autograd.grad(wanted, of, grad))


def test_gradients_against_finite_differences() -> None:
    assert torch.autograd.gradcheck(ours, tensors())
    assert torch.autograd.gradgradcheck(ours, tensors())


def test_gradients_of_gradients_in_an_alpha_pass() -> None:
    scales, *others = tensors()
    weight, bias, *rest = others
    fixed = (weight.detach(), bias.detach())
    assert torch.autograd.gradgradcheck(lambda s, *r: ours(s, *fixed, *r), [scales, *rest])


def test_without_inputs_or_without_hidden_units() -> None:
    scales, weight, bias, hidden, first, second = tensors()
    left, right = WIDTHS[:2], WIDTHS[2:]
    start = sum(left)
    attention = weighted_linear(
        scales[:2], left, COLUMNS[:start], weight[:, :start], bias[:2], [first, second]
    )
    perceptrons = weighted_linear(
        scales[2:], right, COLUMNS[start:] - 2, weight[:, start:], bias[2:], [], hidden
    )
    assert_close(attention + perceptrons, plain(scales, weight, bias, hidden, first, second))


@pytest.mark.parametrize(
    ("needed", "kept"),
    [
        (NEEDS[0], [(ROWS, WIDTHS[0]), (ROWS, sum(WIDTHS[2:]))]),
        (NEEDS[1], [(ROWS, WIDTHS[0]), (ROWS, sum(WIDTHS[2:]))]),
        (NEEDS[3], [(ROWS, DIM)]),
    ],
)
def test_terms_are_kept_only_where_nothing_else_is(
    needed: list[bool], kept: list[tuple[int, int]]
) -> None:
    """Shapes of the tokens' tensors that are kept for the backward pass."""
    found: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    given = [t.detach().requires_grad_(n) for t, n in zip(tensors(), needed, strict=True)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ours(*given)
    shapes = {tuple(t.shape) for t in found if t.dim() == 2 and t.shape[0] == ROWS}
    assert sorted(shapes) == sorted(kept)


@pytest.mark.parametrize("needed", NEEDS[:4])
def test_under_autocast_the_products_are_in_half_precision(needed: list[bool]) -> None:
    drawn = tensors(torch.float32)
    given = [t.detach().requires_grad_(n) for t, n in zip(drawn, needed, strict=True)]
    # What lies before is in half precision; parameters and scales are not.
    tokens = [t.detach().bfloat16().requires_grad_(t.requires_grad) for t in given[3:]]
    half = [*given[:3], *tokens]
    with torch.autocast("cpu", torch.bfloat16):
        got = ours(*half)
    assert got.dtype == torch.bfloat16
    wanted = plain(*given)
    assert_close(got.float(), wanted, rtol=5e-2, atol=1e-1)
    grad = torch.randn_like(wanted)
    of, half_of = ([t for t in ts if t.requires_grad] for ts in (given, half))
    found = torch.autograd.grad(got, half_of, grad.bfloat16())
    assert [t.dtype for t in found] == [t.dtype for t in half_of]
    for a, b in zip(found, torch.autograd.grad(wanted, of, grad), strict=True):
        assert_close(a.float(), b, rtol=5e-2, atol=2e-1)
