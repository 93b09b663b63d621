"""Searching with compiled encoders: the same function, few graphs, nothing that falls back."""

import shutil
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from support.runs import retrain_config, search_config
from support.search_runs import Searched, make_batch, make_model, model_config
from torch._dynamo.utils import counters

from dasvit.search.architect import arch_gradient, weight_gradient
from dasvit.search.loop import search
from dasvit.spaces.cell.supernet import SuperNet
from dasvit.training.loop import retrain

# PyTorch's own, while it captures; it is not shown unless warnings are errors, as in these tests.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

SMALL = {"operations": ("identity", "msa_h2", "mlp_r2"), "num_nodes": 1}
MOST_GRAPHS = 8
"""PyTorch computes a function as it is, slower, beyond so many graphs."""


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def captured_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured with their backward passes, and run operation by operation: what a
    compiler makes of them takes minutes."""
    method = partialmethod(SuperNet.compile_encoders, backend="aot_eager")
    monkeypatch.setattr(SuperNet, "compile_encoders", method)


@pytest.mark.parametrize(
    ("xi", "changes"), [(0.01, {"recompute": True}), (0.0, {"fused": False})], ids=str
)
@pytest.mark.usefixtures("double", "captured_only")
def test_compiled_encoders_have_the_same_gradients(xi: float, changes: dict) -> None:
    values = {"stage_layers": (3,), "stage_ops": (3,), "token_ratio": 0.5, "fused": True}
    plain, compiled = (make_model(model_config(**SMALL | values | changes)) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    compiled.supernet.compile_encoders()
    train, val = make_batch(3), make_batch(3)
    first, second = (
        [arch_gradient(m, train, val, noise={}, xi=xi), weight_gradient(m, train, {})]
        for m in (plain, compiled)
    )
    torch.testing.assert_close(second[0].gradients, first[0].gradients)
    torch.testing.assert_close(second[0].val_loss, first[0].val_loss)
    torch.testing.assert_close(second[1], first[1])
    assert not counters["graph_break"]
    # Three layers, and no graph for one of its own.
    assert 0 < counters["stats"]["unique_graphs"] <= MOST_GRAPHS


@pytest.mark.usefixtures("captured_only")
def test_a_search_with_compiled_encoders_is_the_same_search(searched_once: Searched) -> None:
    settings = {**SMALL, "alpha_init_std": 1.0, "stage_layers": (1,), "stage_ops": (3,)}
    plain, compiled = (searched_once(**settings, compile=on) for on in (False, True))
    assert compiled.result.genotype == plain.result.genotype
    losses = [[e.train_loss for e in found.epochs] for found in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_generated_kernels_compute_the_same() -> None:
    values = {"stage_layers": (1,), "stage_ops": (3,), "fused": True}
    plain, compiled = (make_model(model_config(**SMALL | values)) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    compiled.supernet.compile_encoders()
    batch = make_batch(3)
    gradients = [weight_gradient(m, batch, {})[0] for m in (plain, compiled)]
    torch.testing.assert_close(gradients[1], gradients[0])
    assert counters["stats"]["unique_graphs"] == 1


def test_without_a_compiler_nothing_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    for start in (
        lambda: search(search_config(compile=True), tmp_path / "search"),
        lambda: retrain(retrain_config(compile=True), tmp_path / "retrain"),
    ):
        with pytest.raises(ValueError, match="no-such-compiler"):
            start()
    assert not list(tmp_path.iterdir())
