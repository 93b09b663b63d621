"""Every operation, built in or a user's own, through one suite."""

from math import prod

import pytest
import torch
from support.plugin_operation import TokenConv
from torch.utils.flop_counter import FlopCounterMode

from dasvit.spaces.cell.genotype import Edge, Genotype
from dasvit.spaces.cell.operations import (
    _FAMILIES,
    build_operation,
    check_draws_nothing,
    check_operation,
    check_shape_preserving,
    operation_kind,
    register_operation,
)

DIM, TOKENS = 48, 17
# Type, parameters of the supernet's candidate (without its norm), and multiply-adds: closed forms.
MSA = "msa", 4 * DIM * DIM + 4 * DIM, 4 * TOKENS * DIM**2 + 2 * TOKENS**2 * DIM
OPERATIONS = {
    "zero": ("zero", 0, 0),
    "identity": ("identity", 0, 0),
    **{f"msa_h{heads}": MSA for heads in (1, 8, 12, 16)},
    **{
        f"mlp_r{r:g}": (
            "mlp",
            round(2 * r * DIM**2 + (r + 1) * DIM),
            round(2 * r * TOKENS * DIM**2),
        )
        for r in (0.5, 3, 4)
    },
    "conv_k3": ("conv", 2 * DIM + 4 * DIM, 3 * TOKENS * DIM),  # with a norm of its own
}


def test_no_family_is_left_out() -> None:
    own = {name for name, f in _FAMILIES.items() if f.build.__module__.startswith("dasvit")}
    assert own | {"conv"} == {name.split("_")[0] for name in OPERATIONS}


@pytest.mark.parametrize("name", OPERATIONS)
def test_conformance(name: str) -> None:
    """Names, shape, costs, gradients to input and parameters, determinism."""
    kind, num_params, macs = OPERATIONS[name]
    assert operation_kind(name) == kind
    check_operation(name)
    check_shape_preserving(name, DIM)
    check_draws_nothing(name, DIM)
    [read_back] = Genotype.from_dict(Genotype(((Edge(0, name),),)).to_dict()).operations
    assert read_back == name and type(build_operation(read_back, DIM)) is type(
        build_operation(name, DIM)
    )
    candidate = build_operation(name, DIM, norm_affine=False)
    assert sum(p.numel() for p in candidate.parameters()) == num_params

    op, x = build_operation(name, DIM), torch.randn(2, TOKENS, DIM, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        out = op(x)
    assert counter.get_total_flops() == 2 * 2 * macs  # two images; a product and a sum
    assert out.shape == x.shape and out.dtype == x.dtype and out.isfinite().all()
    torch.testing.assert_close(op(x), out, rtol=0, atol=0)
    torch.testing.assert_close(op(x[1:]), out[1:])  # images do not see one another
    assert op(x[:, :1]).shape == (2, 1, DIM)
    if name == "zero":
        assert not out.any()
        return
    direction = torch.randn_like(out)
    for grad in torch.autograd.grad((out * direction).sum(), [x, *op.parameters()]):
        assert grad.isfinite().all() and prod(grad.shape) and grad.abs().max() > 0

    dropped = build_operation(name, DIM, dropout=0.5)
    if name != "identity":
        assert (dropped(x) == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
        assert (dropped.eval()(x) != 0).all()


def test_registered_once() -> None:
    # The same again.
    register_operation("conv", TokenConv, symbol="k", value_type=int, mixes_tokens=True)
    with pytest.raises(ValueError, match="'msa' is registered already"):
        register_operation("msa", TokenConv, symbol="k")
