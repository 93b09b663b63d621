"""The minutes of a whole search at the paper's size, from a real search of two epochs per stage on
fewer images: random ones of CIFAR-10's shape.

    python benchmarks/whole_search.py --compile --cuda-graph --out whole_search.json

Measured are the plan of its memory, the start of each stage (compiling and capturing with it), its
steps with the drawing of their batches, evaluation, checkpoints, and the rest (stages entered, the
end). From them follow the minutes of 3 × 30 epochs on 50,000 images, with an evaluation and a
checkpoint after each epoch, and after each tenth.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":
    # Python puts this file's folder first; `benchmarks` is imported from the checkout's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

import dasvit.search.loop
from benchmarks.search_step import common_arguments, prepare
from benchmarks.tables import read, tables
from benchmarks.workload import CHANNELS, CLASSES, Cell, search_config
from dasvit.data.splits import ImageData, data_from_arrays
from dasvit.report.events import Event, SearchEpoch
from dasvit.run.checkpoint import CheckpointWriter
from dasvit.run.seed import generator
from dasvit.search.config import SearchConfig
from dasvit.search.memory import plan_search

HALF = 25_000
"""Images of each half of CIFAR-10's training set."""


def random_images(config: SearchConfig, device: torch.device, count: int) -> ImageData:
    """So many for training, 32 × 32 in RGB."""
    draw = generator("benchmark images")
    images = torch.randint(256, (count, CHANNELS, 32, 32), dtype=torch.uint8, generator=draw)
    arrays = images, torch.randint(CLASSES, (count,), generator=draw)
    return data_from_arrays(config.data, device, arrays, arrays, tuple(map(str, range(CLASSES))))


def run(config: SearchConfig, device: torch.device, images: int) -> dict[str, Any]:
    """A search of `config`, its parts timed: seconds of the whole and of the plan; of the epochs,
    evaluations and checkpoints one after the other."""
    data = random_images(config, device, images)
    found: dict[str, Any] = {"plan": 0.0, "epochs": [], "evaluations": [], "checkpoints": []}

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                found[name].append(time.perf_counter() - started)

        return call

    def report(event: Event) -> None:
        if isinstance(event, SearchEpoch):
            found["epochs"].append(event.seconds)
            print(f"stage {event.stage + 1}: an epoch in {event.seconds:.1f} s", flush=True)

    loop = dasvit.search.loop
    started = time.perf_counter()
    plan_search(config)
    found["plan"] = time.perf_counter() - started
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(loop, "check_data"),
        patch.object(loop, "load_data", lambda *_: data),
        patch.object(loop, "accuracy", noted("evaluations", loop.accuracy)),
        patch.object(CheckpointWriter, "save", noted("checkpoints", CheckpointWriter.save)),
    ):
        started = time.perf_counter()
        loop.search(config, folder, report=report, device=str(device))
        found["search"] = time.perf_counter() - started
    return found


def project(
    found: dict[str, Any], *, images: int, batch_size: int, epochs: int, every: int
) -> dict[str, float]:
    """Minutes of the parts of a whole search.

    Args:
        found: what `run` returned for two epochs per stage.
        images: that it had.
        epochs: of a stage of the whole search.
        every: epochs from one evaluation, and one checkpoint, to the next.
    """
    half = images // 2
    firsts, seconds = found["epochs"][::2], found["epochs"][1::2]
    evaluations = found["evaluations"][: len(seconds)]  # two more are at the end
    steps = [second - e for second, e in zip(seconds, evaluations, strict=True)]
    ends = -(-epochs // every)
    whole = (HALF // batch_size) / (half // batch_size)
    timed = sum(found["epochs"]) + sum(found["checkpoints"])
    parts = {
        "plan": found["plan"],
        "starting stages": sum(a - b for a, b in zip(firsts, steps, strict=True)),
        "steps": epochs * whole * sum(steps),
        "evaluating": ends * HALF / half * sum(evaluations),
        "checkpoints": ends * sum(found["checkpoints"]),
        "rest": found["search"] - timed,
    }
    return {name: value / 60 for name, value in parts.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = common_arguments(__doc__, "whole_search.json")
    parser.add_argument("--images", type=int, default=12_800, help="of training")
    parser.set_defaults(ratios=[0.5])
    args, device, sizes, out = prepare(parser, argv, "dasvit/whole_search/1")
    cell = Cell(stage=1, token_ratio=args.ratios[0], batch_size=args.batches[0])
    settings: dict[str, Any] = {
        name: getattr(args, name) for name in ("precision", "compile", "cuda_graph")
    }
    settings |= dict.fromkeys(("stage_epochs", "eval_epochs", "checkpoint_epochs"), 2)
    epochs = search_config(cell, sizes).setting("stage_epochs")
    config = search_config(cell, sizes, **settings)
    found = run(config, device, args.images)
    known = {"images": args.images, "batch_size": cell.batch_size, "epochs": epochs}
    out["found"] = found
    for every in (1, 10):
        parts = project(found, **known, every=every)
        minutes = {"in all": sum(parts.values())} | parts
        how = {"token_ratio": cell.token_ratio, "evaluated_every": every, "minutes": minutes}
        out["rows"].append(how)
    out.save()
    print(*tables(read([args.out])), f"results: {args.out}", sep="\n\n")


if __name__ == "__main__":
    main()
