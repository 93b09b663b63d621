"""What a step of the search cannot be faster than on a device: counted, not measured.

    python benchmarks/roofline.py --rate 798e12 --bandwidth 3.0e12

The step runs on fake tensors, at any size and without the device. Every operation is given the
longer of two times: its matrix products at the device's rate, or what it reads and writes at its
bandwidth. The sum is a bound for an eager step whose operations pass everything through memory
(caches are left out, and so is the time to launch), and says what there is to win: where little of
it is products, fewer and fused operations are. The device's numbers are measured ones: the rate of
one large product in the precision of the step, and the bandwidth of a copy, bytes read and written.
"""

import itertools
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    # Python puts this file's folder first; `benchmarks` is imported from the checkout's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.checks import check_out, check_positive, check_ratios, check_some, default_sizes
from benchmarks.command import run_command
from benchmarks.projection import HALF
from benchmarks.workload import (
    Cell,
    Runner,
    Sizes,
    make_batches,
    make_ours,
    make_reference,
    stage_candidates,
)
from dasvit.commands.arguments import parse
from dasvit.run.environment import environment
from dasvit.run.files import write_atomic
from dasvit.run.settings import require
from dasvit.search.memory import peak_of

__all__ = ["Operation", "Work", "bound", "search_minutes", "step_work"]

SCHEMA = "dasvit/roofline/1"
aten = torch.ops.aten
_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default
_ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@dataclass(frozen=True, slots=True)
class Operation:
    """What an operation does.

    Attributes:
        name: without its overload.
        flops: of its matrix products, two a multiply-add.
        bytes: read and written, a value that several places share once.
    """

    name: str
    flops: int
    bytes: int


class Work(TorchDispatchMode):
    """Notes every operation that computes or moves something while it is active.

    Attributes:
        operations: in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        read, written = [], []
        for number, argument in enumerate(func._schema.arguments):
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            tensors = list(_tensors((value,)))
            # AdamW's schema would let it write gradients, which it does only when it scales them.
            writes = argument.alias_info is not None and argument.alias_info.is_write
            written += tensors if writes and argument.name != "grads" else []
            read += tensors if not argument.is_out else []
        if not func._schema.is_mutable:  # an alias of what was given is no copy of it
            before = {id(t.untyped_storage()) for t in read}
            written = [t for t in _tensors((out,)) if id(t.untyped_storage()) not in before]
        name = func.overloadpacket.__name__
        if written and not name.startswith(("empty", "new_empty")):
            moved = sum(_bytes(t) for t in [*read, *written])
            self.operations.append(Operation(name, _flops(func, args), moved))
        return out


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _bytes(tensor: Tensor) -> int:
    sizes = (n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step or n == 0)
    return math.prod(sizes) * tensor.element_size()


def _flops(func: Any, args: Any) -> int:
    packet = func.overloadpacket
    if packet in (aten.mm, aten.bmm):
        return 2 * args[0].numel() * args[1].shape[-1]
    if packet in (aten.addmm, aten.addmm_):
        return 2 * args[1].numel() * args[2].shape[-1]
    if func is _ATTENTION:
        return 4 * args[0].numel() * args[1].shape[-2]
    if func is _ATTENTION_BACKWARD:  # two products of the forward pass, one of them anew, and four
        return 10 * args[1].numel() * args[2].shape[-2]
    if packet is aten.convolution:  # patches: no overlap
        return 2 * args[0].numel() * args[1].shape[0]
    if packet is aten.convolution_backward:
        return 2 * args[1].numel() * args[2].shape[0] * sum(args[-1][:2])
    return 0


def step_work(make: Callable[[], Runner]) -> list[Operation]:
    """The operations of a step, on fake tensors.

    Args:
        make: builds it; its first step, which makes the optimisers' states, does not count.
    """
    found: list[list[Operation]] = []

    def steps() -> Callable[[], None]:
        runner = make()
        runner()

        def step() -> None:
            with Work() as work:
                runner()
            found.append(work.operations)

        return step

    peak_of(steps)
    return found[-1]


def bound(operations: Iterable[Operation], *, rate: float, bandwidth: float) -> dict[str, Any]:
    """Seconds that operations take at least.

    Args:
        rate: of matrix products, operations a second.
        bandwidth: bytes a second.

    Returns:
        `seconds`, those of `products` among them, `operations` (how many), and `by_name`: seconds,
        the longest first.
    """
    seconds: dict[str, float] = defaultdict(float)
    products, count = 0.0, 0
    for operation in operations:
        needed = max(operation.flops / rate, operation.bytes / bandwidth)
        seconds[operation.name] += needed
        products += needed if operation.flops else 0.0
        count += 1
    by_name = dict(sorted(seconds.items(), key=lambda item: -item[1]))
    return {
        "seconds": sum(seconds.values()),
        "products_seconds": products,
        "operations": count,
        "by_name": by_name,
    }


@dataclass(frozen=True, kw_only=True)
class Args:
    """Count what a step of the search takes at least on a device that is not here.

    Example: python benchmarks/roofline.py --rate 798e12 --bandwidth 3.0e12
    """

    rate: float
    """Operations a second of one large matrix product in the step's precision."""
    bandwidth: float
    """Bytes a second that a copy reads and writes."""
    out: Path = Path("roofline.json")
    """The results."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of both steps, ours and the plain reference."""
    batches: tuple[int, ...] = (64,)
    """Batch sizes."""
    ratios: tuple[float, ...] = (1.0, 0.5)
    """Token ratios λ."""
    stages: tuple[int, ...] = (1, 2, 3)
    """Stages: 2, 4 and 6 layers with 8, 5 and 3 candidates an edge."""
    orders: tuple[int, ...] = (1,)
    """Orders of the gradient of alpha."""
    dim: int = 768
    """Width of the network."""
    patches: int = 14
    """Patches a side."""


def check(args: Args) -> Sizes:
    """The sizes of a command line.

    Raises:
        ValueError: a setting that cannot be.
    """
    check_positive(args, "rate", "bandwidth", "dim", "patches", "batches")
    require(
        math.isfinite(args.rate) and math.isfinite(args.bandwidth) and len(args.batches) > 0,
        "rate and bandwidth must be finite, and batches name one or more",
    )
    check_some(args, stages={1, 2, 3}, orders={1, 2})
    check_out(args.out)
    sizes = default_sizes(gpu=True, dim=args.dim, patches=args.patches)
    check_ratios(args.ratios, sizes)
    return sizes


def count(args: Args, sizes: Sizes) -> dict[str, Any]:
    """Bounds of every step asked for, and the minutes of a search made of them."""
    where = torch.device("cpu")
    rows = []
    for order, batch_size, ratio, stage in itertools.product(
        args.orders, args.batches, args.ratios, args.stages
    ):
        cell = Cell(stage=stage, token_ratio=ratio, batch_size=batch_size, order=order)
        stage_candidates(cell.config(sizes))  # made of numbers, before they have none
        for variant in ("ours", "reference"):
            operations = step_work(partial(_make, cell, sizes, variant, args, where))
            row: dict[str, Any] = asdict(cell) | {"variant": variant}
            row |= bound(operations, rate=args.rate, bandwidth=args.bandwidth)
            row["matmul_fraction"] = cell.flops(sizes) / args.rate / row["seconds"]
            rows.append(row)
            print(_line(cell, row), flush=True)
    return {"rows": rows, "search_minutes": search_minutes(rows, sizes)}


def _make(cell: Cell, sizes: Sizes, variant: str, args: Args, where: torch.device) -> Runner:
    batches = make_batches(cell, sizes, where)
    if variant == "ours":
        return make_ours(cell, sizes, where, batches, precision=args.precision)
    return make_reference(cell, sizes, where, batches, args.precision, same_weights=False)


def search_minutes(rows: list[dict[str, Any]], sizes: Sizes) -> list[dict[str, Any]]:
    """Of the steps of a whole search on CIFAR-10, by variant, λ, batch and order."""
    config = Cell(stage=1, token_ratio=1.0, batch_size=1, order=1).config(sizes)
    found: dict[tuple, dict[int, float]] = defaultdict(dict)
    names = ("variant", "token_ratio", "batch_size", "order")
    for row in rows:
        found[tuple(row[name] for name in names)][row["stage"]] = row["seconds"]
    wanted = set(range(1, len(config.stage_layers) + 1))
    return [
        dict(zip(names, key, strict=True))
        | {"minutes": config.stage_epochs * (HALF // key[2]) * sum(seconds.values()) / 60}
        for key, seconds in found.items()
        if set(seconds) == wanted
    ]


def _line(cell: Cell, row: dict[str, Any]) -> str:
    longest = ", ".join(
        f"{name} {1e3 * seconds:.1f}" for name, seconds in list(row["by_name"].items())[:6]
    )
    return (
        f"stage {cell.stage}, λ = {cell.token_ratio:g}, batch {cell.batch_size}, order "
        f"{cell.order}: {row['variant']} at least {1e3 * row['seconds']:.1f} ms, of it "
        f"{1e3 * row['products_seconds']:.1f} ms products, {row['operations']} operations, "
        f"{100 * row['matmul_fraction']:.0f} % of the products' rate ({longest})"
    )


def run(argv: list[str]) -> None:
    """Count what a command line asks for.

    Raises:
        ValueError: a setting that cannot be.
    """
    args: Args = parse(Args, argv)
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "command": " ".join(["python benchmarks/roofline.py", *argv]),
        "environment": environment(),
        "date": time.strftime("%Y-%m-%d"),
        "settings": asdict(args) | {"out": str(args.out)},
    } | count(args, check(args))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out, json.dumps(facts, indent=1) + "\n")
    for row in facts["search_minutes"]:
        print(
            f"a whole search of such steps, λ = {row['token_ratio']:g}, batch {row['batch_size']}, "
            f"order {row['order']}: {row['variant']} at least {row['minutes']:.1f} minutes"
        )
    print(f"results: {args.out}")


def main() -> None:
    run_command(run)


if __name__ == "__main__":
    main()
