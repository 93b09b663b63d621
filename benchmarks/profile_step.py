"""Where the time of a step of the search goes on a GPU: kernels by kind, and what the host takes.

    python benchmarks/profile_step.py --stage 3 --ratio 0.5 --cuda-graph --out profile.json

Prints and writes the device's time by kind of kernel, the kernels that take longest, and beside
them the time of a step and the time that the host needs to launch it: where the two are equal the
device waits for the host.
"""

import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Python puts this file's folder first; `benchmarks` is imported from the checkout's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.workload import Cell, Sizes, make_batches, make_ours
from dasvit.environment import environment, resolve_device
from dasvit.files import write_atomic
from dasvit.setting import require

__all__ = ["by_kind", "kind_of"]

SCHEMA = "dasvit/profile_step/1"
KINDS = {
    "attention": r"flash|fmha|attention",
    "products": r"gemm|cutlass|nvjet|xmma|splitK",
    "convolution": r"conv|cudnn",
    "optimisers": r"adam|multi_tensor_apply",
    "copies and fills": r"copy|memcpy|memset|fill|CatArray",
    "reductions and norms": r"reduce|norm|softmax|nll",
    "elementwise": r"elementwise|triton|gelu",
}
"""Kinds by what their kernels' names hold, the first that fits."""
LONGEST = 30


@dataclass(frozen=True, kw_only=True)
class Args:
    """Profile a step of the search.

    Example: python benchmarks/profile_step.py --stage 1 --ratio 1 --cuda-graph --compile
    """

    out: Path = Path("profile_step.json")
    """The results."""
    device: str = "auto"
    """auto, cuda or cuda:N."""
    stage: int = 3
    """1, 2 or 3."""
    ratio: float = 0.5
    """Token ratio λ."""
    batch_size: int = 64
    """Images of each batch of a step."""
    order: int = 1
    """Order of the gradient of alpha."""
    dim: int = 768
    """Width of the network."""
    patches: int = 14
    """Patches of 16 pixels a side."""
    precision: str = "bf16"
    """fp32 or bf16."""
    compile: bool = False
    """Through torch.compile."""
    cuda_graph: bool = False
    """Replayed as a CUDA graph."""
    steps: int = 5
    """Steps that are timed, and that are profiled."""
    commit: str = ""
    """The commit measured, where git is not at hand."""


def kind_of(kernel: str) -> str:
    """The kind of a kernel by its name."""
    for kind, pattern in KINDS.items():
        if re.search(pattern, kernel, re.IGNORECASE):
            return kind
    return "others"


def by_kind(kernels: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Milliseconds and launches of each kind, longest first."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"ms": 0.0, "launches": 0.0})
    for kernel in kernels:
        kind = found[kind_of(kernel["name"])]
        kind["ms"] += kernel["ms"]
        kind["launches"] += kernel["launches"]
    return dict(sorted(found.items(), key=lambda item: -item[1]["ms"]))


def _kernels(step: Callable[[], object], steps: int) -> list[dict[str, Any]]:
    """Kernels of a step, longest first."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    kernels = [
        {
            "name": event.key,
            "ms": event.self_device_time_total / 1e3 / steps,
            "launches": event.count / steps,
        }
        for event in profiled.key_averages()
        if event.device_type == DeviceType.CUDA and event.self_device_time_total > 0
    ]
    return sorted(kernels, key=lambda kernel: -kernel["ms"])


def measure(args: Args, device: torch.device) -> dict[str, Any]:
    """The profile of a step."""
    sizes = Sizes(dim=args.dim, image_size=16 * args.patches, patch_size=16)
    cell = Cell(
        stage=args.stage, token_ratio=args.ratio, batch_size=args.batch_size, order=args.order
    )
    step = make_ours(
        cell,
        sizes,
        device,
        make_batches(cell, sizes, device),
        precision=args.precision,
        compile=args.compile,
        cuda_graph=args.cuda_graph,
    )
    for _ in range(step.warm_up + 1):
        step()
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(args.steps):
        step()
    launched = time.perf_counter() - started
    torch.cuda.synchronize(device)
    taken = time.perf_counter() - started
    kernels = _kernels(step, args.steps)
    return {
        "step_ms": 1e3 * taken / args.steps,
        "host_ms": 1e3 * launched / args.steps,
        "device_ms": sum(kernel["ms"] for kernel in kernels),
        "kinds": by_kind(kernels),
        "kernels": kernels[:LONGEST],
    }


def run(argv: list[str]) -> None:
    """Profile what a command line asks for.

    Raises:
        ValueError: a setting that cannot be.
    """
    from dasvit.arguments import parse

    args: Args = parse(Args, argv)
    device = resolve_device(args.device)
    require(device.type == "cuda", f"a profile needs a GPU, but the device is {device}")
    require(args.stage in (1, 2, 3), f"stage must be 1, 2 or 3, but got {args.stage}")
    require(args.order in (1, 2), f"order must be 1 or 2, but got {args.order}")
    machine = environment()
    if args.commit:
        machine["git_commit"] = args.commit
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "command": " ".join(["python benchmarks/profile_step.py", *argv]),
        "environment": machine,
        "date": time.strftime("%Y-%m-%d"),
        "settings": asdict(args) | {"out": str(args.out)},
    } | measure(args, device)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out, json.dumps(facts, indent=1) + "\n")
    print(
        f"a step {facts['step_ms']:.1f} ms, of the host {facts['host_ms']:.1f} ms, of the device's "
        f"kernels {facts['device_ms']:.1f} ms"
    )
    for kind, row in facts["kinds"].items():
        print(f"{kind:22} {row['ms']:8.2f} ms {row['launches']:8.0f} launches")
    print(f"results: {args.out}")


def main() -> None:
    try:
        run(sys.argv[1:])
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
