"""What all tests share: one thread, fixed seeds, tiny networks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.cli_calls import call, succeed, workdir  # noqa: F401
from support.retrain_runs import few_retrained, genotype_path, own, trained_encoder  # noqa: F401
from support.search_runs import SIX
from torch import Tensor, nn

from dasvit.run.seed import seed_everything
from dasvit.spaces.base import EdgeOps, Route
from dasvit.spaces.cell.genotype import edge_list
from dasvit.spaces.cell.supernet import SuperNet

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sweeps take minutes, one at a time: before all else, on one worker."""
    sweeps = [item for item in items if "one_ray_at_a_time" in getattr(item, "fixturenames", ())]
    for item in sweeps:
        item.add_marker(pytest.mark.xdist_group("ray"))
    items.sort(key=lambda item: item not in sweeps)


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
    """A supernet of width 8 on grey 8 × 8 images, random in all parameters. Takes the settings of
    a `Route` by their own names."""

    def make(edge_ops: EdgeOps | None = None, **settings: Any) -> SuperNet:
        values: dict[str, Any] = {
            "num_layers": 2,
            "dim": 8,
            "num_nodes": 2,
            "image_size": 8,
            "patch_size": 4,
            "in_channels": 1,
            "num_classes": 3,
        } | settings
        chosen = {name: values.pop(name) for name in ("token_ratio", "token_where") & values.keys()}
        values.setdefault("route", Route(**chosen))
        model = SuperNet(edge_ops or (SIX,) * len(edge_list(values["num_nodes"])), **values)
        randomise(model)
        return model

    return make


@pytest.fixture
def assert_same_gradients() -> Callable[..., None]:
    """Two tensors are equal, and the gradients of a random direction of them (None counts as
    zero)."""

    def check(actual: Tensor, expected: Tensor, params: list[Tensor], **tolerance: float) -> None:
        torch.testing.assert_close(actual, expected, **tolerance)
        direction = torch.randn_like(expected)
        found = [
            torch.autograd.grad(
                out, params, direction, allow_unused=True, retain_graph=True, materialize_grads=True
            )
            for out in (actual, expected)
        ]
        torch.testing.assert_close(*found, **tolerance)

    return check
