"""What each measure alone brings: time and memory of `dasvit`'s step without it, as one table.

    python benchmarks/ablation.py --device cpu --clock cpu --out docs/results/ablation_cpu.json

The first stage, at each token ratio λ; all ways of a cell run by turns, from the same weights.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":
    # Python puts this file's folder first; `benchmarks` is imported from the checkout's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measure import compare
from benchmarks.search_step import common_arguments, prepare
from benchmarks.tables import read, tables
from benchmarks.workload import Cell, Runner, Sizes, make_batches, make_ours
from dasvit.search import architect
from dasvit.spaces.cell import fused_edges
from dasvit.spaces.cell.weighted_linear import weighted_linear

AS_SHIPPED = "as shipped"


def ablations(
    cell: Cell, sizes: Sizes, device: torch.device, *, precision: str, **settings: Any
) -> dict[str, Callable[[], Runner]]:
    """The step as shipped, and without or with one thing at a time.

    Args:
        precision: as shipped on this device; the other one is a row.
        settings: further ones of `SearchConfig`, in all rows.
    """
    settings |= {"precision": precision}
    batches = make_batches(cell, sizes, device)

    def ours(around: Callable[[], Any] | None = None, **changes: Any) -> Callable[[], Runner]:
        def make() -> Runner:
            runner = make_ours(cell, sizes, device, batches, **settings | changes)
            runner.around = around or runner.around
            return runner

        return make

    other = "fp32" if precision == "bf16" else "bf16"
    nothing_frozen = partial(patch.object, architect, "_frozen", lambda params: nullcontext())
    makers = {
        AS_SHIPPED: ours(),
        "encoders not fused": ours(fused=False),
        "alpha pass with weights not frozen": ours(nothing_frozen),
        "attention by its formula": ours(partial(sdpa_kernel, SDPBackend.MATH)),
        "GELU kept": ours(partial(patch.object, fused_edges, "weighted_linear", _kept_gelu)),
        f"{other} instead of {precision}": ours(precision=other),
        "with recomputation": ours(recompute=True),
    }
    if cell.token_ratio < 1:
        whole = replace(cell, token_ratio=1.0)
        makers["all tokens (λ = 1)"] = partial(make_ours, whole, sizes, device, batches, **settings)
    if settings.get("cuda_graph"):
        makers["kernels launched one by one"] = ours(cuda_graph=False)
    return makers


def _kept_gelu(
    scales: Tensor,
    widths: Sequence[int],
    columns: Tensor,
    weight: Tensor,
    bias: Tensor,
    inputs: Sequence[Tensor],
    hidden: Tensor | None = None,
) -> Tensor:
    """GELU's values are kept for the backward pass beside what they are computed from."""
    units = [] if hidden is None else F.gelu(hidden).split([*widths[len(inputs) :]], dim=1)
    return weighted_linear(scales, widths, columns, weight, bias, [*inputs, *units])


def main(argv: Sequence[str] | None = None) -> None:
    parser = common_arguments(__doc__, "ablation.json")
    args, device, sizes, out = prepare(parser, argv, "dasvit/ablation/1")
    settings = {"compile": args.compile, "cuda_graph": args.cuda_graph}
    for order, ratio in itertools.product(args.orders, args.ratios):
        cell = Cell(stage=1, token_ratio=ratio, batch_size=args.batches[0], order=order)
        makers = ablations(cell, sizes, device, precision=args.precision, **settings)
        found = compare(makers, device, rounds=args.rounds, seconds=args.seconds, clock=args.clock)
        out["rows"] += [asdict(cell) | {"variant": name} | row for name, row in found.items()]
        out.save()
    print(*tables(read([args.out])), f"results: {args.out}", sep="\n\n")


if __name__ == "__main__":
    main()
