"""Steps that are captured once and replayed: the same steps."""

import weakref
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock, Mock

import pytest
import torch
import torch.nn.functional as F
from support import plugin_operation, runs, tape
from support.plugin_method import ShakenDARTS
from support.runs import search_config
from support.search_runs import make_batch, make_model, model_config, run
from torch import Tensor

import dasvit.search.cuda_graph
import dasvit.search.loop
from dasvit.search.checks import check_supernet
from dasvit.search.cuda_graph import WARM_UP, CudaGraphs
from dasvit.search.loop import search
from dasvit.search.step import BilevelStep

CPU = torch.device("cpu")
# benchmarks/gpu_tests.py picks tests by "gpu" in their names.
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=needs_gpu, id="gpu")]
)


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Graphs are tapes, which need no GPU, unless the test is on one."""
    if "device" not in request.fixturenames or request.getfixturevalue("device") == "cpu":
        monkeypatch.setattr(dasvit.search.cuda_graph, "capture", tape.record)


NOISE = {"method": ShakenDARTS(), "alpha_lr": 0.05, "xi": 0.05}
"""The method's noise and the share that is done differ from step to step."""

SMALL = {"num_nodes": 1, "stage_layers": (2,), "fused": True, "grad_clip": 0.5}


def _step(device: str = "cpu", *, graphs: bool = False, **settings: object) -> BilevelStep:
    make = search_config if "method" in settings else model_config
    config = make(**{"cuda_graph": graphs} | SMALL | settings)
    torch.manual_seed(0)
    step = BilevelStep(config, make_model(config).to(device))
    if graphs and device == "cpu":
        step._graphs = CudaGraphs(step.device)
    return step


def _is_captured(step: BilevelStep) -> bool:
    return step._graphs is not None and step._graphs._captured is not None


@DEVICES
@pytest.mark.parametrize(
    "settings", [{"token_ratio": 0.5, "recompute": True}, NOISE], ids=["selected", "noise"]
)
@pytest.mark.usefixtures("double", "taped")
def test_replayed_steps_are_the_same_steps(settings: dict, device: str) -> None:
    """What they return and leave behind: alphas at rest first, learning rates that change, a batch
    of another size between."""
    plain, graphed = (_step(device, graphs=on, **settings) for on in (False, True))
    for number in range(2 * WARM_UP + 7):
        size = 2 if number == 8 else 4
        train, val = (tuple(t.to(device) for t in make_batch(size)) for _ in range(2))
        found = []
        for step in (plain, graphed):
            torch.manual_seed(number)  # the same noise
            rate, val_batch = 0.02 / (1 + number), val if number > WARM_UP else None
            loss, logits, arch = step(train, val_batch, weight_lr=rate, t=number / 20)
            assert (arch is None) == (val_batch is None)
            seen = [arch.val_loss, arch.penalty, arch.logits, *arch.gradients] if arch else []
            found.append([loss, logits, *seen])
        # A graph reads the rate in float32.
        torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    expected = dict(plain.model.named_parameters())
    for name, p in graphed.model.named_parameters():
        torch.testing.assert_close(p, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert _is_captured(graphed)


@DEVICES
@pytest.mark.usefixtures("taped")
def test_a_search_with_graphs_is_the_same_search(
    device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All three stages, alphas at rest first."""
    runs.few_images(monkeypatch, dasvit.search.loop, train=320)  # five steps an epoch
    captured: list[bool] = []

    class Watched(BilevelStep):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            if self.config.cuda_graph:
                self._graphs = CudaGraphs(self.device)

        def __call__(self, *batches: object, **options: float) -> object:
            found = super().__call__(*batches, **options)
            captured.append(_is_captured(self))
            return found

    monkeypatch.setattr(dasvit.search.loop, "check_cuda_graph", lambda device: None)
    monkeypatch.setattr(dasvit.search.loop, "BilevelStep", Watched)
    settings = {"alpha_init_std": 1.0, "alpha_freeze_epochs": 1, "stage_epochs": 3}
    plain, graphed = (
        run(search_config(cuda_graph=on, **settings), tmp_path / str(on), device=device)
        for on in (False, True)
    )
    assert graphed.result.genotype == plain.result.genotype
    assert [e.kept for e in graphed.ends] == [e.kept for e in plain.ends]
    for one, same in zip(plain.epochs, graphed.epochs, strict=True):
        for name in ("train_loss", "val_loss", "penalty", "train_accuracy", "val_accuracy"):
            found, expected = getattr(same, name), getattr(one, name)
            assert found == pytest.approx(expected, rel=0.03, abs=0.03, nan_ok=True), name
    assert not any(captured[:45])
    # A stage warms up at rest, and anew when the alphas begin to move.
    stage = [False] * WARM_UP + [True] * 2 + [False] * WARM_UP + [True] * 7
    assert captured[45:] == stage * 3


@pytest.mark.usefixtures("taped")
def test_results_lie_in_the_same_tensors_until_other_shapes_come() -> None:
    """Two graphs at once would take twice the memory."""
    graphs: CudaGraphs[Tensor] = CudaGraphs(CPU)
    for _ in range(WARM_UP):
        graphs.call(torch.square, torch.ones(2))
    first = graphs.call(torch.square, torch.tensor([1.0, 2.0]))
    assert first.tolist() == [1.0, 4.0]
    assert graphs.call(torch.square, torch.tensor([2.0, 3.0])) is first
    assert first.tolist() == [4.0, 9.0]
    held = weakref.ref(first)
    del first
    assert held() is not None
    assert graphs.call(torch.square, torch.full((3,), 2.0)).tolist() == [4.0] * 3
    assert held() is None


@pytest.mark.parametrize("setting", ["cuda_graph", "compile"])
def test_an_operation_that_draws_is_refused(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture would take it, and draw anew in each pass."""
    config = replace(
        search_config(operations=("identity", "conv_k3"), stage_ops=(2, 2, 2)), **{setting: True}
    )
    check_supernet(config)
    monkeypatch.setattr(
        plugin_operation.TokenConv, "forward", lambda self, x: F.dropout(x, 0.1, self.training)
    )
    check_supernet(replace(config, **{setting: False}))
    with pytest.raises(ValueError, match="'conv_k3' draws random numbers, which compile and cuda_"):
        check_supernet(config)


def test_what_cannot_be_captured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cause, not that the capture then cannot end either."""
    cuda = MagicMock()
    for name in ("CUDAGraph", "graph", "device", "stream", "current_stream"):
        getattr(cuda, name).return_value.__exit__.return_value = False
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    ends = RuntimeError("operation failed due to a previous error during capture")
    cuda.graph.return_value.__exit__.side_effect = ends
    monkeypatch.setattr(dasvit.search.cuda_graph, "_stream", cuda)
    cause = RuntimeError("operation not permitted when stream is capturing\nmore")
    for error, kind, message in (
        (cause, ValueError, r"\(operation not permitted .* capturing\).*leave cuda_g"),
        (torch.OutOfMemoryError("out of it"), torch.OutOfMemoryError, "out of it"),
        (KeyError("a plug-in's"), KeyError, "a plug-in's"),
    ):
        with pytest.raises(kind, match=message):
            dasvit.search.cuda_graph.capture(Mock(side_effect=error), CPU)


def test_without_a_gpu_nothing_begins(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cuda_graph needs a GPU, but the device is cpu"):
        search(search_config(cuda_graph=True), tmp_path / "search")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("taped")
def test_the_tape_tells_what_a_graph_would_not_repeat() -> None:
    """That the tests above can fail: a number from Python stays what it was."""
    rate = [1.0]
    graphs: CudaGraphs[Tensor] = CudaGraphs(CPU)
    results = []
    for number in range(1, WARM_UP + 4):
        rate[0] = number
        results.append(graphs.call(lambda x: (x * rate[0]).sum(), torch.full((2,), 10.0)).item())
    assert results == [20.0 * min(n, WARM_UP + 1) for n in range(1, WARM_UP + 4)]
    with pytest.raises(AssertionError, match="waits for the device"):
        tape.record(lambda: torch.ones(2).sum().item(), CPU)
    with pytest.raises(AssertionError, match="draws random numbers"):
        tape.record(lambda: torch.rand(2), CPU)
