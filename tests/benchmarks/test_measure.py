"""Time, memory, kernels, and what each measure alone brings."""

import contextlib
import fcntl
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import search_step, tables
from benchmarks.ablation import AS_SHIPPED, ablations
from benchmarks.kernels import kind_of, profile_step
from benchmarks.measure import compare, peak_bytes
from benchmarks.processes import together
from benchmarks.workload import Cell, Runner, Sizes, make_batches, make_ours, make_reference

CPU = torch.device("cpu")
TINY = Sizes(dim=48, image_size=8, patch_size=4)
CELL = Cell(stage=3, token_ratio=0.5, batch_size=2)


def test_a_peak_is_what_is_alive_at_once() -> None:
    def work() -> None:
        for _ in range(3):
            a = torch.ones(1000)
            b = a * 2
            b.add_(1)
            b.view(10, 100).t()
            del a, b

    assert peak_bytes(work, 5, CPU) == 2 * 4000 + 5


def test_what_is_resident_counts_once() -> None:
    runner = make_ours(CELL, TINY, CPU, make_batches(CELL, TINY, CPU))
    runner()
    weights = sum(p.numel() for p in runner.model.parameters())
    # A weight, its two moments, and next to nothing else.
    assert runner.resident() == pytest.approx(4 * 3 * weights, rel=0.01)


def test_ours_is_leaner_than_the_reference() -> None:
    """Where tokens weigh more than parameters: half the memory at λ = 1, a quarter at λ = 0.5."""
    # Attention through PyTorch's kernel at both λ, as on a GPU.
    sizes = replace(TINY, image_size=40)
    whole, half = (Cell(stage=1, token_ratio=r, batch_size=16) for r in (1.0, 0.5))
    batches = make_batches(whole, sizes, CPU)
    ours, ours_half, plain = (
        peak_bytes(runner, runner.resident(), CPU)
        for runner in (
            make_ours(whole, sizes, CPU, batches),
            make_ours(half, sizes, CPU, batches),
            make_reference(whole, sizes, CPU, batches),
        )
    )
    assert ours < 0.5 * plain
    assert ours_half < 0.25 * plain


def test_a_way_that_fails_does_not_stop_the_others() -> None:
    batches = make_batches(CELL, TINY, CPU)

    def fails(error: Exception) -> Runner:
        raise error

    def fails_later(name: str, runner: Runner) -> dict[str, float]:
        if name == "then":
            raise MemoryError
        return {"more": 1.0}

    ours = partial(make_ours, CELL, TINY, CPU, batches)
    makers = {
        "oom": partial(fails, torch.OutOfMemoryError("no room")),
        "broken": partial(fails, RuntimeError("first\nsecond")),
        "then": ours,
        "ours": ours,
    }
    found = compare(makers, CPU, rounds=9, seconds=0, then=fails_later)
    assert found["oom"] == found["then"] == {"status": "oom"}
    assert found["broken"] == {"status": "failed: RuntimeError: first"}
    row = found["ours"]
    assert (row["status"], row["more"], len(row["seconds"])) == ("ok", 1.0, 3)
    assert min(row["median_seconds"], row["start_seconds"], row["peak_bytes"]) > 0


def test_only_the_first_way_starts_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []
    within: list[int] = []

    @contextlib.contextmanager
    def inside(lock: Path, mode: int):
        within.append(mode)
        yield
        within.pop()

    def make(name: str) -> Runner:
        events.append((f"make {name}", *within))
        runner = make_ours(CELL, TINY, CPU, make_batches(CELL, TINY, CPU))
        runner.around = lambda: contextlib.nullcontext(events.append((name, *within)))
        return runner

    monkeypatch.setattr("benchmarks.measure._turn", inside)
    makers = {name: partial(make, name) for name in ("first", "second")}
    compare(makers, CPU, rounds=3, seconds=1.0, lock=tmp_path / "lock")
    second = events.index(("make second", fcntl.LOCK_EX))
    assert {mode for _, mode in events[:second]} == {fcntl.LOCK_SH}
    assert {mode for _, mode in events[second:]} == {fcntl.LOCK_EX}
    assert [name for name, _ in events[second:]].count("first") == 3


@pytest.mark.parametrize("order", [1, 2])
def test_ablations_compute_the_same_step(order: int) -> None:
    """bf16 roughly, λ = 1 another one."""
    losses = {}
    cell = replace(CELL, stage=1, order=order)
    for name, make in ablations(cell, TINY, CPU, precision="fp32").items():
        runner = make()
        for _ in range(2):
            with runner.around():
                losses[name] = runner.step(*runner.batches, weight_lr=1e-3)[0].item()
    assert len(losses) == 8
    shipped = losses.pop(AS_SHIPPED)
    assert losses.pop("all tokens (λ = 1)") != pytest.approx(shipped, rel=1e-5)
    assert losses.pop("bf16 instead of fp32") == pytest.approx(shipped, rel=0.1)
    for name, loss in losses.items():
        assert loss == pytest.approx(shipped, rel=1e-5), name


def test_ablations_leave_out_what_they_say() -> None:
    """By memory, where that shows it."""
    cell, sizes = Cell(stage=1, token_ratio=1.0, batch_size=2), replace(TINY, image_size=40)
    makers = ablations(cell, sizes, CPU, precision="fp32")
    more = ("encoders not fused", "attention by its formula", "GELU kept")
    peaks = {}
    for name in (AS_SHIPPED, *more, "with recomputation"):
        runner = makers[name]()
        runner()
        peaks[name] = peak_bytes(runner, runner.resident(), CPU)
    shipped = peaks.pop(AS_SHIPPED)
    assert peaks.pop("with recomputation") < shipped
    assert min(peaks.values()) > shipped, peaks


def test_a_profile_by_kind() -> None:
    runner = make_ours(CELL, TINY, CPU, make_batches(CELL, TINY, CPU))
    found = profile_step(runner, CPU, steps=1)
    kinds = list(found["kinds_ms"].values())
    assert kinds == sorted(kinds, reverse=True)
    assert {"products", "elementwise", "optimisers"} <= set(found["kinds_ms"])
    assert 0 < found["host_ms"] < 60_000


def test_several_processes_at_once() -> None:
    found = together(CELL, TINY, CPU, processes=2, seconds=0.2, precision="fp32")
    assert found["status"] == "ok"
    assert found["images_per_second"] == pytest.approx(sum(found["by_process"]))
    assert len(found["by_process"]) == 2 and min(found["by_process"]) > 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_tst_192x192_64x3_2x1_v_bz_coopB_NNN", "products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", "attention"),
        ("void at::native::vectorized_elementwise_kernel<8, GeluCUDAKernelImpl>", "elementwise"),
        ("triton_poi_fused_add_native_layer_norm_3", "generated by torch.compile"),
        ("void multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>>", "optimisers"),
        ("multi_tensor_apply_kernel<TensorListMetadata<2>, LpNormFunctor>", "reductions and norms"),
        ("something_else", "others"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::copy_", "copies and fills"),
        ("Optimizer.step#AdamW.step", "optimisers"),
        ("autograd::engine::evaluate_function: AddmmBackward0", "others"),
    ],
)
def test_kinds_of_kernels_and_operations(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_a_step_of_each_method_beside_darts(tmp_path: Path) -> None:
    out = tmp_path / "methods.json"
    given = "--device cpu --tiny --stages 1 --ratios 1 --methods gdas rsws --out"
    search_step.main([*given.split(), str(out)])
    table = "".join(tables.tables(tables.read([out])))
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows[0] == "method" and rows[2:] == ["darts", "gdas", "rsws"]
    assert "failed" not in table
