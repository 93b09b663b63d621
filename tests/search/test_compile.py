"""Searching with compiled encoders: the same function, few graphs, nothing that falls back."""

import shutil
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from support.runs import retrain_config, search_config
from support.search_runs import make_batch, make_model, model_config, run
from torch._dynamo.utils import counters

from dasvit.run.environment import check_compiler
from dasvit.search.architect import arch_gradient, weight_gradient
from dasvit.search.loop import search
from dasvit.spaces.cell.supernet import SuperNet
from dasvit.training.loop import retrain

# PyTorch's own, while it captures; it is not shown unless warnings are errors, as in these tests.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

NAMES = ("identity", "msa_h2", "mlp_r2")
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


@pytest.mark.parametrize("settings", [{}, {"recompute": True}, {"fused": False}], ids=str)
@pytest.mark.parametrize("xi", [0.0, 0.01])
@pytest.mark.usefixtures("double", "captured_only")
def test_compiled_encoders_have_the_same_gradients(xi: float, settings: dict[str, bool]) -> None:
    values = {"stage_layers": (4,), "token_ratio": 0.5, "fused": True} | settings
    config = model_config(num_nodes=1, operations=NAMES, stage_ops=(3,), **values)
    plain, compiled = (make_model(config) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    compiled.supernet.compile_encoders()
    train, val = make_batch(), make_batch()
    found = [arch_gradient(m, train, val, noise={}, xi=xi) for m in (plain, compiled)]
    torch.testing.assert_close(found[1].gradients, found[0].gradients)
    torch.testing.assert_close(found[1].val_loss, found[0].val_loss)
    weights = [weight_gradient(m, train, {}) for m in (plain, compiled)]
    torch.testing.assert_close(weights[1], weights[0])
    assert not counters["graph_break"]
    # Four layers, and no graph for one of its own.
    assert 0 < counters["stats"]["unique_graphs"] <= MOST_GRAPHS


@pytest.mark.usefixtures("few_searched", "captured_only")
def test_a_search_with_compiled_encoders_is_the_same_search(tmp_path: Path) -> None:
    results = []
    for compiled in (False, True):
        config = search_config(
            compile=compiled, alpha_init_std=1.0, operations=NAMES, stage_ops=(3, 3, 2), num_nodes=1
        )
        results.append(run(config, tmp_path / str(compiled)))
    plain, compiled_run = results
    assert compiled_run.result.genotype == plain.result.genotype
    losses = [[e.train_loss for e in found.epochs] for found in results]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert not counters["graph_break"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_generated_kernels_compute_the_same() -> None:
    values = {"num_nodes": 1, "stage_layers": (1,), "fused": True}
    config = model_config(operations=NAMES, stage_ops=(3,), **values)
    models = [make_model(config) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].supernet.compile_encoders()
    batch = make_batch()
    gradients = [weight_gradient(m, batch, {})[0] for m in models]
    torch.testing.assert_close(gradients[1], gradients[0])
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("device", "variable", "there", "message"),
    [
        ("cpu", "CXX", "", r"a compiler \(g\+\+ or clang\+\+\).* name it in CXX"),
        ("cuda", "CC", "", r"a compiler \(gcc or clang\).* name it in CC"),
        ("cpu", "CXX", "no-such-compiler", r"a compiler \(no-such-compiler\)"),
    ],
)
def test_a_missing_compiler_is_found_before_the_first_step(
    device: str,
    variable: str,
    there: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv(variable, there)
    with pytest.raises(ValueError, match=message):
        check_compiler(torch.device(device))
    (tmp_path / "my-compiler").write_text("")
    (tmp_path / "my-compiler").chmod(0o755)
    monkeypatch.setenv(variable, "my-compiler")
    check_compiler(torch.device(device))


def test_a_gpu_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install triton"):
        check_compiler(torch.device("cuda"))


def test_without_a_compiler_nothing_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    for start in (
        lambda: search(search_config(compile=True), tmp_path / "search"),
        lambda: retrain(retrain_config(compile=True), tmp_path / "retrain"),
    ):
        with pytest.raises(ValueError, match="no-such-compiler"):
            start()
    assert not list(tmp_path.iterdir())
