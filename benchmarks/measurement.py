"""One measurement: the work in order of importance until its time is up, and what is known
so far on disk after every part."""

import fcntl
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation import AS_SHIPPED, COMPILED, ablations
from benchmarks.compare import MIN_ROUNDS, compare, counted_peak
from benchmarks.facts import memory_of
from benchmarks.measure import Clock, matmul_rate
from benchmarks.processes import together
from benchmarks.projection import (
    batch_seconds,
    checkpoint_seconds,
    evaluation_seconds,
    plan_seconds,
    project,
)
from benchmarks.workload import (
    Cell,
    Runner,
    Sizes,
    make_batches,
    make_ours,
    make_reference,
    stage_candidates,
)
from dasvit.run.files import write_atomic

__all__ = ["Measurement", "Plan"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COMPILE_SECONDS = 90
"""What torch.compile is given at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        sizes: of the network.
        stages: 1, 2, 3 or some of them.
        ratios: token ratios λ.
        batches: images of each batch of a step; the first is the one of ablation and projection.
        orders: 1, 2 or both.
        precision: "fp32" or "bf16", of ours; the reference runs in fp32 and in this.
        repeats: rounds of a comparison.
        group_seconds: no further round of a comparison after these.
        workers: of the DataLoader.
        compile: whether ours goes through torch.compile.
        cuda_graph: whether ours is replayed as a CUDA graph.
        alone: a file that one run at a time holds while it times, or None.
        compiled: whether torch.compile is a row of the ablation.
        clock: "wall", or "cpu": see `measure.timed`.
    """

    sizes: Sizes
    stages: tuple[int, ...]
    ratios: tuple[float, ...]
    batches: tuple[int, ...]
    orders: tuple[int, ...]
    precision: str
    repeats: int
    group_seconds: float
    workers: int
    compile: bool
    cuda_graph: bool
    alone: Path | None
    compiled: bool
    clock: Clock


class Measurement:
    """Measures parts of a plan into one dictionary.

    Args:
        facts: what stands at its head; grows, and is written to `out` after every part.
        seconds: begin nothing that is expected to end later than this from now.
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        out: Path,
        facts: dict[str, Any],
        *,
        seconds: float,
    ) -> None:
        self.plan, self.device, self.out = plan, device, out
        settings = {name: value for name, value in asdict(plan).items() if name != "alone"}
        self.facts = facts | {"plan": settings, "rows": [], "ablation": [], "skipped": []}
        self._end = time.perf_counter() + seconds
        self._round_seconds_a_flop = 0.0

    def table(self, *, first: bool) -> None:
        """Ours against the reference: first-order groups of the first batch size, or all others."""
        plan = self.plan
        every = [(o, b, s) for o in plan.orders for b in plan.batches for s in plan.stages]
        # The second order of the first batch size before larger batches.
        every.sort(key=lambda group: (plan.batches.index(group[1]), group[0]))
        main = [g for g in every if g[:2] == (plan.orders[0], plan.batches[0])]
        for order, batch_size, stage in main if first else [g for g in every if g not in main]:
            # On a GPU memory is short, and times are steady: token ratios apart. Nor are two
            # compiled at once: what is compiled next drops what was before.
            apart = self.device.type == "cuda" or plan.compile
            for ratios in [(r,) for r in plan.ratios] if apart else [plan.ratios]:
                cells = [
                    Cell(stage=stage, token_ratio=r, batch_size=batch_size, order=order)
                    for r in ratios
                ]
                self._group(cells)

    def _group(self, cells: Sequence[Cell]) -> None:
        plan = self.plan
        variants = {
            f"{cell.token_ratio:g} {name} {precision}": (cell, name, precision)
            for cell in cells
            for name, precision in self._variants()
        }
        flops = sum(cell.flops(plan.sizes) for cell, _, _ in variants.values())
        name = ", ".join(_label(cell) for cell in cells)
        if not self._has_time(name, flops):
            return
        batches = make_batches(cells[0], plan.sizes, self.device)
        ours = partial(make_ours, compile=plan.compile, cuda_graph=plan.cuda_graph)
        makers = {
            key: partial(ours, cell, plan.sizes, self.device, batches, precision=precision)
            if name == "ours"
            else partial(make_reference, cell, plan.sizes, self.device, batches, precision)
            for key, (cell, name, precision) in variants.items()
        }
        found = self._compare(makers)
        precisions = {precision for _, precision in self._variants()}
        with self._turn(fcntl.LOCK_EX):
            rates = {p: matmul_rate(self.device, DTYPES[p], clock=plan.clock) for p in precisions}
        for key, (cell, name, precision) in variants.items():
            row: dict[str, Any] = asdict(cell)
            row |= {"variant": name, "precision": precision} | found[key]
            if row["status"] == "ok":
                median, useful = row["median_seconds"], cell.flops(plan.sizes)
                row |= {
                    "images_per_second": 2 * cell.batch_size / median,
                    "useful_flops": useful,
                    "matmul_rate": rates[precision],
                    "matmul_fraction": useful / median / rates[precision],
                }
            self.facts["rows"].append(row)
            self._say(f"{_label(cell)}: {name} {precision} {_result(row)}")
        one_round = sum(row.get("median_seconds", 0.0) for row in found.values())
        self._round_seconds_a_flop = max(self._round_seconds_a_flop, one_round / flops)
        self.save()

    def _compare(self, makers: Mapping[str, Callable[[], Runner]]) -> dict[str, dict[str, Any]]:
        seconds = min(self.plan.group_seconds, self._left())
        return compare(
            makers,
            self.device,
            repeats=self.plan.repeats,
            seconds=seconds,
            clock=self.plan.clock,
            beside=partial(self._turn, fcntl.LOCK_SH),
            alone=partial(self._turn, fcntl.LOCK_EX),
        )

    @contextmanager
    def _turn(self, lock: int) -> Iterator[None]:
        """Among runs that know the same file: several start at once (shared), while none is timed;
        one is timed (exclusive), while none starts."""
        if self.plan.alone is None:
            yield
            return
        with self.plan.alone.open("a") as file:
            fcntl.flock(file, lock)
            yield

    def _variants(self) -> list[tuple[str, str]]:
        own = self.plan.precision
        plain = dict.fromkeys(["fp32", own])
        return [("ours", own), *(("reference", precision) for precision in plain)]

    def ablation(self) -> None:
        """Each measure off on its own: the first stage in first order, at each token ratio."""
        plan = self.plan
        for ratio in sorted(plan.ratios):
            cell = replace(self._main_cell(plan.stages[0]), token_ratio=ratio)
            makers = self._ablations(cell)
            if not self._has_time(
                f"ablation, {_label(cell)}", len(makers) * cell.flops(plan.sizes)
            ):
                continue
            self._ablation(cell, makers)

    def compiled(self) -> None:
        """`torch.compile`, beside the step as shipped."""
        plan = self.plan
        if not plan.compiled:
            return
        if self._left() < COMPILE_SECONDS:
            self.facts["skipped"].append("torch.compile")
            return
        cell = self._main_cell(plan.stages[0])
        makers = self._ablations(cell, compiled=True)
        self._ablation(cell, {name: makers[name] for name in (AS_SHIPPED, COMPILED)})

    def _ablations(self, cell: Cell, *, compiled: bool = False) -> dict[str, Callable[[], Runner]]:
        plan = self.plan
        return ablations(
            cell,
            plan.sizes,
            self.device,
            precision=plan.precision,
            compiled=compiled,
            cuda_graph=plan.cuda_graph,
        )

    def _ablation(self, cell: Cell, makers: Mapping[str, Callable[[], Runner]]) -> None:
        found = self._compare(makers)
        self.facts["ablation"].append(asdict(cell) | {"ways": found})
        for name, row in found.items():
            self._say(f"{_label(cell)}: {name} {_result(row)}")
        self.save()

    def count_memory(self) -> None:
        """Peaks alone, of any size, without computing anything."""
        plan = self.plan
        where = torch.device("cpu")

        def make(cell: Cell, name: str, precision: str) -> Runner:
            batches = make_batches(cell, plan.sizes, where)
            if name == "ours":
                return make_ours(cell, plan.sizes, where, batches, precision=precision)
            return make_reference(cell, plan.sizes, where, batches, precision, same_weights=False)

        for order, batch_size, stage, ratio in itertools.product(
            plan.orders, plan.batches, plan.stages, plan.ratios
        ):
            cell = Cell(stage=stage, token_ratio=ratio, batch_size=batch_size, order=order)
            stage_candidates(cell.config(plan.sizes))  # made of numbers: before they have none
            for name, precision in self._variants():
                row: dict[str, Any] = asdict(cell)
                row |= {"variant": name, "precision": precision, "status": "ok"}
                row["peak_bytes"] = counted_peak(partial(make, cell, name, precision))
                self.facts["rows"].append(row)
                self._say(f"{_label(cell)}: {name} {precision} {_result(row)}")
        self.save()

    def projection(self) -> None:
        """The minutes of a whole search of these sizes, from the rows measured so far."""
        plan = self.plan
        cells = {stage: self._main_cell(stage) for stage in plan.stages}
        config = cells[plan.stages[0]].config(plan.sizes, precision=plan.precision)
        rows = {
            row["stage"]: row
            for row in self.facts["rows"]
            if row["variant"] == "ours" and row["status"] == "ok"
            for cell in cells.values()
            if asdict(cell).items() <= row.items()
        }
        steps, starts = (
            {stage: row[name] for stage, row in rows.items()}
            for name in ("median_seconds", "start_seconds")
        )
        if set(steps) != set(range(1, len(config.stage_layers) + 1)):
            self.facts["skipped"].append("projection: a stage's step is missing")
            return
        if self._left() <= 0:
            self.facts["skipped"].append("projection: no time left")
            return
        drawn = batch_seconds(plan.sizes, config.batch_size, self.device, workers=plan.workers)
        evaluation = {
            stage: evaluation_seconds(cell, plan.sizes, self.device, precision=plan.precision)
            for stage, cell in cells.items()
        }
        checkpoint = self._checkpoints(cells)
        launched = replace(config, compile=plan.compile, cuda_graph=plan.cuda_graph)
        self.facts["data"] = {"batch_size": config.batch_size, "workers": plan.workers} | drawn
        self.facts["projection"] = project(
            config,
            steps,
            evaluation,
            drawn["ours"],
            starts,
            checkpoint=checkpoint,
            plan=None if checkpoint is None else plan_seconds(launched),
        )
        self._say(f"a whole search: {self.facts['projection']['minutes']:.1f} minutes")
        self.save()

    def _checkpoints(self, cells: Mapping[int, Cell]) -> dict[int, dict[str, float]] | None:
        """What checkpoints take by stage; None where time runs out."""
        plan, found = self.plan, {}
        for stage, cell in cells.items():
            if self._left() <= 0:
                self.facts["skipped"].append("projection: checkpoints and the plan")
                return None
            found[stage] = checkpoint_seconds(
                cell,
                plan.sizes,
                self.device,
                self.out.parent,
                precision=plan.precision,
                cuda_graph=plan.cuda_graph,
            )
        return found

    def processes(self, number: int) -> None:
        """One and so many processes at once."""
        plan = self.plan
        cell = self._main_cell(plan.stages[0])
        rows = []
        for count in (1, number):
            found = together(
                cell,
                plan.sizes,
                str(self.device),
                precision=plan.precision,
                cuda_graph=plan.cuda_graph,
                processes=count,
                seconds=plan.group_seconds,
            )
            rows.append(found)
            rate = found.get("images_per_second")
            self._say(
                f"{count} processes: {found['status'] if rate is None else f'{rate:.0f} images/s'}"
            )
        self.facts["processes"] = asdict(cell) | {"rows": rows}
        self.save()

    def save(self) -> None:
        """Write what is known so far."""
        self.facts["date"] = time.strftime("%Y-%m-%d")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.out, json.dumps(self.facts, indent=1) + "\n")

    def _left(self) -> float:
        return self._end - time.perf_counter()

    def _has_time(self, name: str, flops: int) -> bool:
        # Two steps that warm up and the fewest rounds there are.
        needed = (2 + MIN_ROUNDS) * self._round_seconds_a_flop * flops
        if self._left() >= needed + COMPILE_SECONDS * self.plan.compile:
            return True
        self.facts["skipped"].append(name)
        self._say(f"{name}: skipped, no time left")
        self.save()
        return False

    def _main_cell(self, stage: int) -> Cell:
        """What ablation, projection and processes look at, in a stage."""
        plan = self.plan
        return Cell(
            stage=stage,
            token_ratio=min(plan.ratios),
            batch_size=plan.batches[0],
            order=plan.orders[0],
        )

    def _say(self, line: str) -> None:
        print(line, flush=True)


def _label(cell: Cell) -> str:
    return (
        f"stage {cell.stage}, λ = {cell.token_ratio:g}, batch {cell.batch_size}, order {cell.order}"
    )


def _result(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return row["status"]
    peak = f"{memory_of(row) / 2**20:.0f} MiB"
    return f"{1e3 * row['median_seconds']:.1f} ms, {peak}" if "seconds" in row else peak
