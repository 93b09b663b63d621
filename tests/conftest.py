"""What all tests share: one thread, fixed seeds, tiny spaces and networks."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support import runs
from support.cli_calls import call, succeed, workdir  # noqa: F401
from support.retrain_runs import few_retrained, genotype_path, own, trained_encoder  # noqa: F401
from torch import Tensor, nn

import dasvit.search.loop
from dasvit.methods import DARTS, DASViT
from dasvit.run.seed import seed_everything
from dasvit.search.model import SearchModel
from dasvit.spaces.base import EdgeOps, Route
from dasvit.spaces.cell.candidates import Candidates
from dasvit.spaces.cell.genotype import edge_list
from dasvit.spaces.cell.supernet import SuperNet

torch.set_num_threads(1)

TINY_OPS = ("zero", "identity", "msa_h2", "msa_h4", "mlp_r0.5", "mlp_r2")
FAIRNESS = {
    "skip_weight": 0.7,
    "type_weight": 1.3,
    "gamma_min": 0.3,
    "gamma_max": 0.35,
    "zeta1": 2.0,
    "zeta2": 3.0,
}


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
def few_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of 128 training images, two steps per epoch."""
    runs.few_images(monkeypatch, dasvit.search.loop)


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
        model = SuperNet(edge_ops or (TINY_OPS,) * len(edge_list(values["num_nodes"])), **values)
        randomise(model)
        return model

    return make


@pytest.fixture
def make_model(make_supernet: Callable[..., SuperNet]) -> Callable[..., SearchModel]:
    """A supernet as of `make_supernet` under a method, with alphas of standard deviation 1. By
    default all tokens, and a fairness term that every coefficient has a part in."""

    def make(method: DARTS | None = None, **settings: Any) -> SearchModel:
        method = replace(method or DASViT(token_ratio=1.0, **FAIRNESS), alpha_init_std=1.0)
        supernet = make_supernet(**({"route": method.route()} | settings))
        candidates = Candidates(edge_ops=supernet.edge_ops, operations=TINY_OPS)
        return SearchModel(method, supernet, candidates)

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
