"""The measurement of the search's step: time, memory, ablations, a whole search projected."""

import contextlib
import fcntl
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import benchmarks.projection
from benchmarks import render, search_step
from benchmarks.ablation import AS_SHIPPED, ablations
from benchmarks.compare import compare, counted_peak
from benchmarks.measure import LiveMemory, bytes_of, matmul_rate, peak_bytes
from benchmarks.measurement import Measurement
from benchmarks.processes import together
from benchmarks.projection import project
from benchmarks.reference import loader
from benchmarks.workload import (
    Cell,
    Runner,
    Sizes,
    make_batches,
    make_ours,
    make_reference,
    stage_candidates,
)
from dasvit.search.config import SearchConfig

CPU = torch.device("cpu")
TINY = Sizes(dim=48, image_size=8, patch_size=4)
CELL = Cell(stage=3, token_ratio=0.5, batch_size=2, order=1)


def test_live_memory_sees_what_is_alive_at_once() -> None:
    """Two of three buffers alive at once; views and in-place operations are no new memory."""
    size = 4 * 1000

    def work() -> None:
        for _ in range(3):
            a = torch.ones(1000)
            b = a * 2
            b.add_(1)
            b.view(10, 100).t()
            del a, b

    assert peak_bytes(work, 0, CPU) == 2 * size
    assert peak_bytes(work, 5, CPU) == 2 * size + 5
    with LiveMemory() as memory:
        kept = torch.ones(1000)
        torch.ones(500)
        assert memory.live == size
        del kept
        assert memory.live == 0
    assert memory.peak == size + 4 * 500


def test_live_memory_holds_what_a_backward_pass_needs() -> None:
    x = torch.ones(1000, requires_grad=True)

    def chain(depth: int) -> None:
        y = x
        for _ in range(depth):
            y = y.sin()
        y.sum().backward()

    few, many = (peak_bytes(lambda d=depth: chain(d), 0, CPU) for depth in (4, 12))
    assert many - few == 8 * 4000


def test_bytes_of_counts_a_memory_once() -> None:
    x = torch.ones(10)
    assert bytes_of([x, x[:5], torch.ones(3), None, 7]) == 52


def test_ours_is_leaner_than_the_reference() -> None:
    """Where tokens weigh more than parameters: half the memory at λ = 1, a quarter at λ = 0.5."""
    # Attention through PyTorch's kernel at both λ, as on a GPU.
    sizes = replace(TINY, image_size=40)
    whole, half = (Cell(stage=1, token_ratio=r, batch_size=16, order=1) for r in (1.0, 0.5))
    batches = make_batches(whole, sizes, CPU)
    ways = {
        "ours": make_ours(whole, sizes, CPU, batches),
        "ours, half": make_ours(half, sizes, CPU, batches),
        "plain": make_reference(whole, sizes, CPU, batches),
    }
    peaks = {name: peak_bytes(run, run.resident(), CPU) for name, run in ways.items()}
    assert peaks["ours"] < 0.5 * peaks["plain"]
    assert peaks["ours, half"] < 0.25 * peaks["plain"]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("way", ["ours", "reference"])
def test_memory_counted_without_data_is_that_of_real_tensors(way: str, order: int) -> None:
    cell = replace(CELL, order=order)
    stage_candidates(cell.config(TINY))

    def make(**options: bool) -> Runner:
        batches = make_batches(cell, TINY, CPU)
        if way == "ours":
            return make_ours(cell, TINY, CPU, batches)
        return make_reference(cell, TINY, CPU, batches, **options)

    real = make()
    real()
    measured = peak_bytes(real, real.resident(), CPU)
    way_on_its_own = make if way == "ours" else partial(make, same_weights=False)
    counted = counted_peak(way_on_its_own, block=1)
    assert counted == pytest.approx(measured, rel=0.01)


def test_counting_memory_needs_no_time_and_makes_a_page(tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    options = ["--quick", "--stages", "1", "--orders", "1", "--ratios", "0.5"]
    search_step.run(["--count-memory", *options, "--out", str(out)])
    facts = json.loads(out.read_text(encoding="utf-8"))
    peaks = {(r["variant"], r["precision"]): r["peak_bytes"] for r in facts["rows"]}
    assert peaks["reference", "bf16"] < peaks["reference", "fp32"]
    assert len(peaks) == 3
    page = render.markdown(facts)
    assert "leaner" in page
    assert "faster" not in page
    render.main([str(out)])


def test_a_way_that_fails_does_not_stop_the_others() -> None:
    batches = make_batches(CELL, TINY, CPU)

    def out_of_memory() -> Runner:
        raise torch.OutOfMemoryError("no room")

    def broken() -> Runner:
        raise RuntimeError("first\nsecond")

    found = compare(
        {
            "oom": out_of_memory,
            "broken": broken,
            "ours": lambda: make_ours(CELL, TINY, CPU, batches),
        },
        CPU,
        repeats=3,
        seconds=0,
        memory=False,
    )
    assert found["oom"] == {"status": "oom"}
    assert found["broken"] == {"status": "failed: RuntimeError: first"}
    assert found["ours"]["status"] == "ok"
    assert found["ours"]["median_seconds"] > 0


@pytest.mark.parametrize("order", [1, 2])
def test_ablations_change_what_they_say_and_nothing_else(order: int) -> None:
    """Each computes the same step (bf16 roughly), λ = 1 another one."""
    cell = replace(CELL, order=order)
    makers = ablations(cell, TINY, CPU, precision="fp32", compiled=False)
    one_by_one = makers.get("weights moved tensor by tensor")
    assert (one_by_one is None) == (order == 1)
    if one_by_one is not None:
        with one_by_one().around():
            assert torch._foreach_add_.__module__ == "benchmarks.ablation"
    losses = {}
    for name, make in makers.items():
        runner = make()
        with runner.around():
            losses[name] = runner.step(*runner.batches, weight_lr=1e-3)[0].item()
        with runner.around():
            losses[name] = runner.step(*runner.batches, weight_lr=1e-3)[0].item()
    shipped = losses.pop(AS_SHIPPED)
    assert losses.pop("all tokens (λ = 1)") != pytest.approx(shipped, rel=1e-5)
    assert losses.pop("bf16 instead of fp32") == pytest.approx(shipped, rel=0.1)
    for name, loss in losses.items():
        assert loss == pytest.approx(shipped, rel=1e-5), name


def test_stage_candidates_are_nested_and_always_the_same() -> None:
    stages = stage_candidates(SearchConfig())
    assert [len(names[0]) for names in stages] == [8, 5, 3]
    assert all(set(b) <= set(a) for a, b in zip(stages[1], stages[2], strict=True))
    assert stages == stage_candidates(SearchConfig())


def test_projection_adds_up() -> None:
    config = SearchConfig(batch_size=64, token_ratio=0.5)
    start = {1: 60.0, 2: 70.0, 3: 80.0}
    found = project(config, {1: 0.1, 2: 0.2, 3: 0.3}, {1: 1e-4, 2: 1e-4, 3: 1e-4}, 0.01, start)
    by_hand = (210 + 30 * (390 * (0.1 + 0.2 + 0.3 + 3 * 0.01) + 3 * 2.5)) / 60
    assert found["steps_an_epoch"] == 390
    assert found["minutes"] == pytest.approx(by_hand)


def test_projection_with_the_ends_of_epochs() -> None:
    """A checkpoint after each epoch, or with the evaluation after each tenth, and the plan."""
    config = SearchConfig(batch_size=64, token_ratio=0.5)
    parts = {1: 0.1, 2: 0.2, 3: 0.3}, {1: 1e-4, 2: 2e-4, 3: 4e-4}, 0.01, {1: 60.0, 2: 70.0, 3: 80.0}
    # No slower beside the writing (noise), slower, and a disk that an epoch does not wait for.
    took = {1: (2.0, -0.5, 9.0), 2: (1.0, 2.0, 9.0), 3: (4.0, 0.0, 150.0)}
    checkpoint = {
        stage: {"copied": copied, "slower": slower, "written": written, "alone": 7.0}
        for stage, (copied, slower, written) in took.items()
    }
    found = project(config, *parts, checkpoint=checkpoint, plan=12.0)
    rest = 12 + 210 + 30 * 390 * (0.1 + 0.2 + 0.3 + 3 * 0.01) + 7
    one_end = 25_000 * 7e-4 + 9
    behind = 150 - (390 * 0.31 + 25_000 * 4e-4)
    assert behind > 0
    assert found["minutes"] == pytest.approx((rest + 30 * (one_end + behind)) / 60)
    assert found["minutes_sparse"] == pytest.approx((rest + 3 * one_end) / 60)
    less = project(config, *parts)["minutes"]
    assert found["minutes"] == pytest.approx(less + (12 + 7 + 30 * (9 + behind)) / 60)


def test_batches_of_both_ways_of_data() -> None:
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    batches = list(
        loader(images, torch.arange(8), image_size=16, batch_size=3, workers=0, pin=False)
    )
    assert [(x.shape, x.dtype) for x, _ in batches] == 2 * [((3, 3, 16, 16), torch.float32)]
    assert len({int(label) for _, y in batches for label in y}) == 6
    seconds = benchmarks.projection.batch_seconds(TINY, 2, CPU, workers=0, repeats=2)
    assert set(seconds) == {"ours", "loader"}
    assert min(seconds.values()) > 0


def test_matmul_rate_is_a_rate_of_this_machine() -> None:
    assert 1e8 < matmul_rate(CPU, torch.float32, repeats=2) < 1e14


def test_two_processes_at_once() -> None:
    found = together(CELL, TINY, "cpu", precision="fp32", processes=2, seconds=0.2)
    assert found["status"] == "ok"
    assert found["images_per_second"] == pytest.approx(sum(found["by_process"]))
    assert min(found["by_process"]) > 0


def test_runs_start_at_once_and_are_timed_alone(tmp_path: Path) -> None:
    """Two runs in threads: their starts meet, no timing meets anything."""
    lock = tmp_path / "lock"
    plan = replace(search_step.plan_of(search_step.Args(quick=True), CPU), alone=lock)
    spans: list[tuple[str, float, float]] = []
    met = threading.Barrier(2, timeout=20)

    def turn(kind: str, mode: int, work: Callable[[], object]) -> None:
        run = Measurement(plan, CPU, tmp_path / "out.json", {}, seconds=60.0)
        with run._turn(mode):
            started = time.perf_counter()
            work()
            spans.append((kind, started, time.perf_counter()))

    def run() -> None:
        turn("start", fcntl.LOCK_SH, met.wait)  # passes only if both are within
        turn("timing", fcntl.LOCK_EX, lambda: time.sleep(0.05))

    runs = [threading.Thread(target=run) for _ in range(2)]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    assert sorted(kind for kind, _, _ in spans) == ["start", "start", "timing", "timing"]
    for kind, started, ended in spans:
        if kind == "timing":
            others = [span for span in spans if span != (kind, started, ended)]
            assert all(end <= started or begin >= ended for _, begin, end in others)


def test_what_is_timed_and_what_starts_beside_others() -> None:
    """The first way starts beside others; all that follows is alone."""
    within: list[str] = []
    events: list[tuple[str, list[str]]] = []

    @contextlib.contextmanager
    def inside(name: str) -> Iterator[None]:
        within.append(name)
        yield
        within.remove(name)

    def make(name: str) -> Runner:
        runner = make_ours(CELL, TINY, CPU, make_batches(CELL, TINY, CPU), precision="fp32")
        events.append((f"make {name}", [*within]))
        runner.around = lambda: contextlib.nullcontext(events.append((name, [*within])))
        return runner

    compare(
        {name: partial(make, name) for name in ("first", "second")},
        CPU,
        repeats=3,
        seconds=1.0,
        beside=lambda: inside("beside"),
        alone=lambda: inside("alone"),
    )
    later = events[[name for name, _ in events].index("make second") :]
    started = events[: len(events) - len(later)]
    assert {tuple(where) for _, where in started} == {("beside",)}
    assert {tuple(where) for _, where in later} == {("alone",)}
    assert sum(name == "first" for name, _ in later) == 3
