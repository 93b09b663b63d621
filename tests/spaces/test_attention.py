from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from dasvit.spaces.cell.attention import FEW_TOKENS, attention


def qkv(tokens: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(3, 2, tokens, 5, dtype=dtype, requires_grad=True) for _ in range(3)]


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of every call of PyTorch's kernel."""
    calls: list[int] = []
    kernel: Callable[..., Tensor] = F.scaled_dot_product_attention

    def counted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(q.shape[-2])
        return kernel(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    return calls


@pytest.mark.parametrize("tokens", [1, min(FEW_TOKENS) - 1, 16, 33, max(FEW_TOKENS), 49])
def test_both_ways_are_the_formula(tokens: int, kernel_calls: list[int]) -> None:
    inputs = qkv(tokens)
    q, k, v = inputs
    got, grad = attention(q, k, v), torch.randn(3, 2, tokens, 5, dtype=torch.float64)
    assert kernel_calls == ([] if tokens in FEW_TOKENS else [tokens])
    wanted = torch.softmax(torch.einsum("bhnc,bhmc->bhnm", q, k) / 5**0.5, dim=-1) @ v
    assert_close(got, wanted)
    assert_close(torch.autograd.grad(got, inputs, grad), torch.autograd.grad(wanted, inputs, grad))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:FutureWarning")
def test_what_is_planned_traced_or_in_half_precision_takes_the_kernel(
    kernel_calls: list[int],
) -> None:
    attention(*qkv(20, torch.bfloat16))
    with FakeTensorMode():
        attention(*qkv(21))
    inputs = [t.detach() for t in qkv(22)]
    traced = torch.jit.trace(attention, tuple(inputs))
    assert kernel_calls[:3] == [20, 21, 22]
    assert_close(traced(*inputs), attention(*inputs))
    assert attention(*(t.to("meta") for t in qkv(23))).shape == (3, 2, 23, 5)
    assert kernel_calls[-1] == 23
