"""How long a whole search of the paper's size takes, from measured parts: the plan of its memory,
the start of each stage, steps, batches drawn, and the accuracy on the validation half and the
checkpoint that end an epoch."""

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import timed
from benchmarks.reference import loader
from benchmarks.workload import CHANNELS, CLASSES, Cell, Sizes, make_batches, make_ours
from dasvit.data.batch import EVAL_BATCH
from dasvit.data.config import DataConfig
from dasvit.data.splits import TensorSplit, endless
from dasvit.run.checkpoint import CheckpointWriter, is_due
from dasvit.run.seed import generator
from dasvit.search.config import SearchConfig
from dasvit.search.memory import plan_search
from dasvit.search.step import BilevelStep

__all__ = [
    "HALF",
    "batch_seconds",
    "checkpoint_seconds",
    "evaluation_seconds",
    "plan_seconds",
    "project",
]

HALF = 25_000
"""Images of each half of CIFAR-10's training set."""
SIDE = 32
SPARSE = 10
"""Epochs from one evaluation, and one checkpoint, to the next in the leaner of two projections."""


def batch_seconds(
    sizes: Sizes, batch_size: int, device: torch.device, *, workers: int, repeats: int = 8
) -> dict[str, float]:
    """Seconds to draw the two batches of a step: resized, augmented, normalised, on the device.

    Returns:
        `ours` from a tensor on the device, `loader` from `reference.loader` (its workers ahead as
        far as they come in the meantime). Medians.
    """
    draw = generator("benchmark images")
    count = 2 * batch_size * (repeats + 2)
    images = torch.randint(256, (count, CHANNELS, SIDE, SIDE), dtype=torch.uint8, generator=draw)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    config = DataConfig(image_size=sizes.image_size, augment="crop_flip")
    split = TensorSplit(
        images.to(device), labels.to(device), mean=(0.5,) * 3, std=(0.25,) * 3, config=config
    )
    ours = endless(split, batch_size, 0)
    plain = iter(
        loader(
            images,
            labels,
            image_size=sizes.image_size,
            batch_size=batch_size,
            workers=workers,
            pin=device.type == "cuda",
        )
    )

    def from_loader() -> None:
        for _ in range(2):
            x, y = next(plain)
            x.to(device, non_blocking=True)
            y.to(device, non_blocking=True)

    def median(call: Any) -> float:
        call()
        return statistics.median(timed(call, device) for _ in range(repeats))

    return {"ours": median(lambda: (next(ours), next(ours))), "loader": median(from_loader)}


@torch.no_grad()
def evaluation_seconds(
    cell: Cell, sizes: Sizes, device: torch.device, *, precision: str, repeats: int = 3
) -> float:
    """Seconds an image of a forward pass in evaluation, median."""
    shape = (EVAL_BATCH, CHANNELS, sizes.image_size, sizes.image_size)
    images = torch.randn(shape, device=device)
    empty = (images[:0], torch.empty(0, dtype=torch.long, device=device))
    model = make_ours(cell, sizes, device, (empty, empty), precision=precision).model.eval()
    model(images)
    seconds = [timed(lambda: model(images).argmax(dim=1), device) for _ in range(repeats)]
    return statistics.median(seconds) / EVAL_BATCH


def checkpoint_seconds(
    cell: Cell,
    sizes: Sizes,
    device: torch.device,
    folder: Path,
    *,
    precision: str,
    cuda_graph: bool = False,
    repeats: int = 3,
) -> dict[str, float]:
    """Seconds of one checkpoint of a stage, on the disk of a folder. Medians.

    Returns:
        `copied`: the copy for which training stops. `written`: until it is in the file, while
        training goes on. `slower`: how much longer than otherwise the steps of that time took in
        all. `alone`: until it is in the file where nothing else goes on.
    """
    batches = make_batches(cell, sizes, device)
    runner = make_ours(cell, sizes, device, batches, precision=precision, cuda_graph=cuda_graph)
    for _ in range(runner.warm_up):  # the optimisers' states too
        runner()
    assert isinstance(runner.step, BilevelStep)
    parts = runner.model, runner.step.weight_optimizer, runner.step.alpha_optimizer
    alone = statistics.median(timed(runner, device) for _ in range(repeats))
    found: dict[str, list[float]] = {"copied": [], "written": [], "slower": [], "alone": []}
    with (
        tempfile.TemporaryDirectory(dir=folder) as there,
        CheckpointWriter(Path(there) / "checkpoint.pt", "dasvit/benchmark/1") as checkpoints,
    ):

        def save() -> None:
            checkpoints.save({str(i): part.state_dict() for i, part in enumerate(parts)})

        for _ in range(repeats):
            found["copied"].append(timed(save, device))
            started, slower = time.perf_counter(), 0.0
            while checkpoints.busy:
                slower += timed(runner, device) - alone
            found["slower"].append(slower)
            found["written"].append(time.perf_counter() - started)
            save()
            found["alone"].append(timed(checkpoints.wait, device))
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def plan_seconds(config: SearchConfig) -> float:
    """Seconds of the plan that a search makes before it starts on a GPU."""
    started = time.perf_counter()
    plan_search(config)
    return time.perf_counter() - started


def project(
    config: SearchConfig,
    step: Mapping[int, float],
    evaluation: Mapping[int, float],
    batches: float,
    start: Mapping[int, float],
    *,
    checkpoint: Mapping[int, Mapping[str, float]] | None = None,
    plan: float | None = None,
) -> dict[str, Any]:
    """The minutes of a whole search.

    Args:
        config: stages, epochs and batch size.
        step: seconds of a step by stage (1, 2, …).
        evaluation: seconds of an image in evaluation by stage.
        batches: seconds to draw the two batches of a step.
        start: seconds to make a stage's supernet and take its first step, by stage: what is
            compiled is compiled there.
        checkpoint: what `checkpoint_seconds` found by stage. Without it and `plan`, the minutes are
            of all else.
        plan: seconds of the plan before the search.
    """
    steps = HALF // config.batch_size
    minutes = {
        stage: start[stage]
        + config.stage_epochs * (steps * (step[stage] + batches) + HALF * evaluation[stage])
        for stage in step
    }
    found: dict[str, Any] = {
        "batch_size": config.batch_size,
        "token_ratio": config.token_ratio,
        "epochs_a_stage": config.stage_epochs,
        "steps_an_epoch": steps,
        "step_seconds": dict(step),
        "evaluation_seconds_an_image": dict(evaluation),
        "batches_seconds": batches,
        "start_seconds": dict(start),
        "minutes_by_stage": {stage: seconds / 60 for stage, seconds in minutes.items()},
        "minutes": sum(minutes.values()) / 60,
    }
    if checkpoint is None or plan is None:
        return found
    epochs = range(1, config.stage_epochs + 1)
    last = max(step)

    def ends(every: int) -> float:
        """Seconds of evaluations and checkpoints, and of what training waits for the files."""
        seconds = checkpoint[last]["alone"]  # the end waits for the last one
        for stage, took in checkpoint.items():
            count = sum(is_due(epoch, every, config.stage_epochs) for epoch in epochs)
            evaluated = HALF * evaluation[stage]
            trained = every * steps * (step[stage] + batches) + evaluated
            behind = max(0, took["written"] - trained)
            seconds += count * (evaluated + took["copied"] + max(0, took["slower"]) + behind)
        return seconds / 60

    lean = found["minutes"] - config.stage_epochs * HALF * sum(evaluation.values()) / 60 + plan / 60
    return found | {
        "checkpoint_seconds": dict(checkpoint),
        "plan_seconds": plan,
        "minutes": lean + ends(1),
        "minutes_sparse": lean + ends(SPARSE),
        "sparse_epochs": SPARSE,
    }
