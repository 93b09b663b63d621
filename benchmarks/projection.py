"""How long a whole search of the paper's size takes, from measured parts: steps, batches drawn,
and the accuracy on the validation half that ends each epoch."""

import statistics
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.measure import timed
from benchmarks.reference import loader
from benchmarks.workload import CHANNELS, CLASSES, Cell, Sizes, make_ours
from dasvit.batch import EVAL_BATCH
from dasvit.config import DataConfig, SearchConfig
from dasvit.seed import generator
from dasvit.split import TensorSplit, endless

__all__ = ["HALF", "batch_seconds", "evaluation_seconds", "project"]

HALF = 25_000
"""Images of each half of CIFAR-10's training set."""
SIDE = 32


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


def project(
    config: SearchConfig,
    step: Mapping[int, float],
    evaluation: Mapping[int, float],
    batches: float,
    start: Mapping[int, float],
) -> dict[str, Any]:
    """The minutes of a whole search.

    Args:
        config: stages, epochs and batch size.
        step: seconds of a step by stage (1, 2, …).
        evaluation: seconds of an image in evaluation by stage.
        batches: seconds to draw the two batches of a step.
        start: seconds to make a stage's supernet and take its first step, by stage: what is
            compiled is compiled there.
    """
    steps = HALF // config.batch_size
    minutes = {
        stage: start[stage]
        + config.stage_epochs * (steps * (step[stage] + batches) + HALF * evaluation[stage])
        for stage in step
    }
    return {
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
