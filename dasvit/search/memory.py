"""Peak memory of a search before it is launched, without the device that it will run on.

Real steps run on fake tensors, which have shapes and no values; a dispatch mode adds up every
memory that an operation returns and that is still alive. What a kernel takes and gives back inside,
a GPU's context and its allocator's fragmentation are not seen: see docs/performance.md.
"""

import gc
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dasvit.costs import LiveMemory
from dasvit.data.batch import EVAL_BATCH
from dasvit.data.datasets import num_train_images
from dasvit.search.config import SearchConfig
from dasvit.search.model import SearchModel, build_search_model
from dasvit.search.step import BilevelStep
from dasvit.spaces.cell.candidates import forget_fake_masks

__all__ = [
    "RESERVE",
    "StagePlan",
    "device_memory",
    "largest_batch",
    "largest_half",
    "measure_stage",
    "peak_of",
    "plan_search",
    "plan_stage",
    "shortfall",
    "usable",
    "what_fits",
]

BLOCK = 512
"""Bytes that PyTorch's CUDA allocator rounds every memory up to."""

SURCHARGE = 1.2
"""More memory that compiled steps take, and that captured ones hold: on a GPU compiled steps took
1.13 to 1.19 times as much, and held 1.15 to 1.20 times that when captured
(docs/results/memory.md)."""

RESERVE = 2**30
"""Of a device's memory, what a search needs at most beside what is planned: the GPU's context, the
workspaces of libraries, the allocator's fragments. An estimate on the safe side."""

_FEW = (1, 33)
"""Batch sizes that a search for the largest begins with."""
_MOST = 2**20
"""No larger batch is looked for where it is not known how many images there are."""

CHANNELS, CLASSES = 3, 100
"""RGB and a head of a hundred classes: both are next to nothing at any size worth planning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """Memory of one stage in bytes.

    Attributes:
        stage: 0-based.
        resident: weights, alphas and both optimisers' states.
        peak: the most at once in a step, `resident` and both batches included; with `compile` and
            with `cuda_graph` `SURCHARGE` times that, each, and with `cuda_graph` what evaluation
            takes beside the step's memory, which a graph holds.
    """

    stage: int
    resident: int
    peak: int


class _WithoutData(FakeTensorMode):
    def __deepcopy__(self, memo: object) -> "_WithoutData":
        return self  # tensors refer to their mode, and a copied model's to the same one


def peak_of(make: Callable[[], Callable[[], object]], *, block: int = BLOCK) -> tuple[int, int]:
    """Plan what is built and run on fake CPU tensors.

    Args:
        make: builds a model and what else is there between two steps, optimisers' states say, and
            returns one step.
        block: bytes in whose multiples an allocator hands out memory.

    Returns:
        Bytes alive between two steps, and the most at once in one.
    """
    try:
        with (
            torch.random.fork_rng(devices=[]),
            warnings.catch_warnings(),
            _WithoutData(),
            LiveMemory(block) as memory,
        ):
            # Copying a parameter asks whether it has an address.
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            step = make()
            gc.collect()  # what was built and dropped may lie in cycles
            resident = memory.peak = memory.live
            step()
            return resident, memory.peak
    finally:
        forget_fake_masks()


def _stage_model(config: SearchConfig, stage: int, *, dense: bool = False) -> SearchModel:
    one = config.stages[stage]
    model = build_search_model(
        config,
        config.space.heaviest(one.num_ops),
        num_layers=one.num_layers,
        in_channels=CHANNELS,
        num_classes=CLASSES,
        dense=dense,
    )
    model.supernet.drop_skips(config.method.skip_drop(stage, 0))  # which keeps masks
    return model


def _evaluation(config: SearchConfig, model: SearchModel) -> Callable[[], object]:
    """A batch of evaluation on the default device, of empty images."""
    size = config.data.image_size
    model.eval()

    @torch.no_grad()
    def evaluate() -> None:
        model(torch.zeros(EVAL_BATCH, CHANNELS, size, size))

    return evaluate


def _step(config: SearchConfig, model: SearchModel) -> Callable[[], object]:
    """A step on the default device, of empty images; the optimisers' states exist."""
    step = BilevelStep(config, model)
    size = config.data.image_size
    batches = [
        (
            torch.zeros(config.batch_size, CHANNELS, size, size),
            torch.zeros(config.batch_size, dtype=torch.long),
        )
        for _ in range(2)
    ]
    for optimizer in (step.weight_optimizer, step.arch_optimizer):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.zeros_like(param)
        optimizer.step()
    step.weight_optimizer.zero_grad(set_to_none=True)  # alpha's stays
    return lambda: step(*batches, weight_lr=config.weight_lr)


def plan_stage(config: SearchConfig, stage: int) -> StagePlan:
    """The plan of one stage's step: first or second order as the method's ξ says."""
    # Launched one by one the same memory is planned in a third of the time.
    plain = replace(config, compile=False, cuda_graph=False)
    dense = config.compile or config.cuda_graph
    resident, peak = _peak_of_stage(plain, stage, _step, dense=dense)
    peak = round(peak * SURCHARGE ** (config.compile + config.cuda_graph))
    if config.cuda_graph:
        before, most = _peak_of_stage(config, stage, _evaluation)
        peak += most - before
    return StagePlan(stage=stage, resident=resident, peak=peak)


def _peak_of_stage(
    config: SearchConfig,
    stage: int,
    work: Callable[[SearchConfig, SearchModel], Callable[[], object]],
    *,
    dense: bool = False,
) -> tuple[int, int]:
    return peak_of(lambda: work(config, _stage_model(config, stage, dense=dense)))


def measure_stage(config: SearchConfig, stage: int, device: torch.device) -> int | None:
    """What a stage's step really takes at its peak, run twice on a device: by PyTorch's allocator
    on a GPU, elsewhere by what operations return. None if the device has too little memory."""
    if device.type != "cuda":
        with torch.random.fork_rng(devices=[]), LiveMemory(BLOCK) as memory:
            step = _step(config, _stage_model(config, stage))
            step()
            memory.peak = memory.live
            step()
            return memory.peak
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    try:
        with torch.device(device):
            step = _step(config, _stage_model(config, stage))
        step()  # PyTorch's libraries are ready
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated(device) - before


def plan_search(config: SearchConfig) -> list[StagePlan]:
    """The plan of every stage."""
    return [plan_stage(config, stage) for stage in range(len(config.stages))]


def largest_batch(config: SearchConfig, budget: int, most: int = _MOST) -> int:
    """The largest batch size, `most` at most, whose search stays within a budget (bytes); 0 if none
    does.

    Memory grows with the batch, along lines of which each is steeper than the one before, as other
    moments of a step become the peak. Lines through plans are followed until one batch fits and the
    next does not.
    """

    def peak(batch: int, stage: int) -> int:
        return plan_stage(replace(config, batch_size=batch), stage).peak

    stages = range(len(config.stages))
    few = [min(batch, most) for batch in _FEW]
    low, high = ({stage: peak(batch, stage) for stage in stages} for batch in few)
    if max(low.values()) > budget:
        return 0
    found: int | None = None
    # The stage that a few images take the most memory of may not be the one that allows the fewest.
    for stage in sorted(stages, key=lambda stage: -high[stage]):
        known = {few[0]: low[stage], few[1]: high[stage]}
        if found is not None:
            known[found] = peak(found, stage)
            if known[found] <= budget:
                continue
        found = _largest(partial(peak, stage=stage), budget, known, most)
    assert found is not None, "a search has stages"
    return found


def _largest(peak: Callable[[int], int], budget: int, known: dict[int, int], most: int) -> int:
    """A batch whose peak is within a budget, as that of the next is not, or `most`.

    Args:
        known: peaks of at least two batches (of one, if that is `most`), of which the smallest
            fits.
    """
    turn = 0
    while True:
        turn += 1
        beyond = min((batch for batch, found in known.items() if found > budget), default=None)
        fitting = (batch for batch, found in known.items() if found <= budget)
        fits = max(batch for batch in fitting if beyond is None or batch < beyond)
        if fits == most or (beyond is not None and beyond - fits == 1):
            return fits
        if beyond is None:
            before, last = sorted(known)[-2:]
            # Not too far: what is large takes long to plan.
            bounds = fits + 1, min(most, 64 * fits)
        else:
            before, last = fits, beyond
            bounds = fits + 1, beyond - 1
        slope = (known[last] - known[before]) / (last - before)
        guess = math.floor(before + (budget - known[before]) / slope) if slope > 0 else bounds[1]
        if beyond is not None and turn % 3 == 0:
            guess = (fits + beyond) // 2  # lines alone may creep
        guess = min(max(guess, bounds[0]), bounds[1])
        known[guess] = peak(guess)


def largest_half(config: SearchConfig) -> int | None:
    """Images of the half that has more, of weights or of alpha: no batch has more. None where only
    the data set's files tell."""
    images = num_train_images(config.data.dataset)
    if images is None:
        return None
    of_alpha = round(images * config.val_fraction)
    return max(of_alpha, images - of_alpha)


def usable(memory: int) -> int:
    """What of a device's memory (bytes) a plan may take: all but a sixteenth, at most `RESERVE`."""
    return memory - min(RESERVE, memory // 16)


def what_fits(
    config: SearchConfig, available: int, progress: Callable[[str], None] = lambda line: None
) -> list[tuple[str, int]]:
    """The largest batch on a device of so much memory (bytes), of which the `usable` counts: as
    configured, in bf16, and with recomputation too. `progress` is told what is looked for next.

    Returns:
        The flags to pass beside the configured settings, and the batch (0: not even one image; no
        more than the larger half of the images, where it is known how many there are).
    """
    most = largest_half(config) or _MOST
    ways = {"": config, "--precision bf16": replace(config, precision="bf16")}
    if config.space.dropout == 0:
        both = config.replaced(precision="bf16", fused=True, recompute=True)
        fused = "" if config.space.fused else " --fused"
        ways[f"--precision bf16 --recompute{fused}"] = both
    found = []
    for flags, changed in ways.items():
        progress(f"looking for the largest batch that fits{' with ' if flags else ''}{flags}")
        found.append((flags, largest_batch(changed, usable(available), most)))
    return found


def device_memory(device: torch.device) -> int | None:
    """Bytes that a GPU has; None for a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory


def shortfall(
    config: SearchConfig, available: int, progress: Callable[[str], None] = lambda line: None
) -> str | None:
    """A line about a search that will not fit into a device's memory (bytes), and what would;
    what is `usable` of it counts. `progress` is told that it will not, and what is looked for."""
    peak = max(plan.peak for plan in plan_search(config))
    if peak <= usable(available):
        return None
    short = (
        f"the search is planned to need {peak / 2**30:.1f} GiB, and of the device's "
        f"{available / 2**30:.1f} GiB it can use {usable(available) / 2**30:.1f}"
    )
    progress(short)
    fits = [
        f"--batch-size {batch}{' ' if flags else ''}{flags}"
        for flags, batch in what_fits(config, available, progress)
        if batch
    ]
    return f"{short}; what would fit: {', or '.join(fits) or 'no batch at all'}"
