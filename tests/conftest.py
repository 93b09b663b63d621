"""What all tests share: one thread, fixed seeds, tiny spaces and networks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.cli_calls import call, succeed, workdir  # noqa: F401
from support.retrain_runs import few_retrained, genotype_path, own, trained_encoder  # noqa: F401
from support.search_runs import checkpoints_at_once, few_searched, whole_search  # noqa: F401
from torch import Tensor, nn

from dasvit.run.seed import seed_everything
from dasvit.spaces.cell.supernet import SuperNet

torch.set_num_threads(1)

TINY_OPS = ("zero", "identity", "msa_h2", "msa_h4", "mlp_r0.5", "mlp_r2")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test starts from the same random state, with one thread: a resumed run takes as many
    as it had."""
    torch.set_num_threads(1)
    seed_everything(0)


@pytest.fixture
def double() -> Iterator[None]:
    """Float64 for everything that the test makes."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def tiny_ops() -> tuple[str, ...]:
    """Six operations that fit a width of 8."""
    return TINY_OPS


@pytest.fixture
def tiny_edge_ops() -> tuple[tuple[str, ...], ...]:
    """The candidates of each of the 5 edges, different from edge to edge as after pruning."""
    return (
        ("identity", "msa_h2", "mlp_r0.5"),
        ("zero", "msa_h4", "mlp_r2"),
        ("zero", "identity", "mlp_r0.5"),
        ("msa_h2", "msa_h4", "mlp_r2"),
        ("zero", "identity", "msa_h2"),
    )


@pytest.fixture
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Give every parameter a random value, so that no bias is zero and no gain is one."""

    def apply(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.2 * torch.randn_like(p))
        return module

    return apply


@pytest.fixture
def make_supernet(
    randomise: Callable[[nn.Module], nn.Module],
) -> Callable[..., SuperNet]:
    """A supernet of width 8 on grey 8 × 8 images, random in all parameters."""

    def make(edge_ops: tuple[tuple[str, ...], ...] | None = None, **settings: Any) -> SuperNet:
        values: dict[str, Any] = {
            "num_layers": 2,
            "dim": 8,
            "num_nodes": 2,
            "image_size": 8,
            "patch_size": 4,
            "in_channels": 1,
            "num_classes": 3,
            "alpha_init_std": 1.0,
        } | settings
        if edge_ops is None:
            edges = sum(2 + j for j in range(values["num_nodes"]))
            edge_ops = (TINY_OPS,) * edges
        model = SuperNet(edge_ops, **values)
        randomise(model)
        return model

    return make


@pytest.fixture
def make_batch() -> Callable[..., tuple[Tensor, Tensor]]:
    """Random grey images and labels."""

    def make(size: int = 3, classes: int = 3, side: int = 8) -> tuple[Tensor, Tensor]:
        return torch.randn(size, 1, side, side), torch.randint(classes, (size,))

    return make


@pytest.fixture
def assert_same_gradients() -> Callable[..., None]:
    """Two scalars of the same parameters have the same gradients (None counts as zero)."""

    def check(actual: Tensor, expected: Tensor, params: list[Tensor], **tolerance: float) -> None:
        left = torch.autograd.grad(actual, params, allow_unused=True, retain_graph=True)
        right = torch.autograd.grad(expected, params, allow_unused=True, retain_graph=True)
        for p, a, b in zip(params, left, right, strict=True):
            zero = torch.zeros_like(p)
            torch.testing.assert_close(
                zero if a is None else a, zero if b is None else b, **tolerance
            )

    return check
