"""What a network costs: parameters, multiply-adds, memory of its activations, time of a pass.

"FLOPs" in the paper's Table I are multiply-adds. Two counts are in use: linear and convolution
layers only (the paper's column, but for its ViT-B/16 row), and the same with the two attention
products QKᵀ and AV. Both are counted here and always shown together. Multiply-adds and memory are
counted on tensors that have shapes and no values, so that nothing is computed.
"""

import copy
import math
import re
import statistics
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

__all__ = [
    "Complexity",
    "Footprint",
    "Latency",
    "LiveMemory",
    "check_num_params",
    "complexity",
    "footprint",
    "format_count",
    "latency",
]

LINEAR = "linear and convolution layers"
ATTENTION = "attention products"

MAX_PARAMS = 10**10
"""With gradients and AdamW's two moments, at 16 bytes per parameter, 160 GB."""


def format_count(count: int) -> str:
    """A count with its unit: `50.4 M`, `9.88 G`, `768`; two decimals below 10, else one."""
    for factor, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= factor:
            value = count / factor
            return f"{value:.2f} {unit}" if round(value, 2) < 10 else f"{value:.1f} {unit}"
    return str(count)


def check_num_params(count: int) -> None:
    """Raise `ValueError` for a network that no single device trains (`MAX_PARAMS`)."""
    if count > MAX_PARAMS:
        raise ValueError(
            f"the network has {format_count(count)} parameters, more than one device can train "
            f"({format_count(MAX_PARAMS)}); choose a smaller dim, fewer layers, or smaller "
            "operations"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Complexity:
    """Parameters, and multiply-adds of one forward pass of one image.

    Attributes:
        num_params: parameters, a shared one once.
        macs_linear: multiply-adds of products with a weight: linear and convolution layers.
        macs_attention: multiply-adds of products of two activations: QKᵀ and AV.
    """

    num_params: int
    macs_linear: int
    macs_attention: int

    @property
    def macs_total(self) -> int:
        return self.macs_linear + self.macs_attention

    def __str__(self) -> str:
        return (
            f"{format_count(self.num_params)} parameters; "
            f"{format_count(self.macs_linear)} multiply-adds, {LINEAR}; "
            f"{format_count(self.macs_total)} with {ATTENTION}"
        )


def complexity(model: nn.Module, input_size: tuple[int, ...]) -> Complexity:
    """Parameters and multiply-adds of `model`, by PyTorch's `FlopCounterMode`.

    Biases, norms, activations, softmax and pooling count as 0. A supernet is counted with all
    its candidates. A copy runs on the meta device, in evaluation mode. A warning names operations
    that compute products which the counter does not know.

    Args:
        model: takes a batch of `input_size`; left as it was.
        input_size: without the batch axis: (channels, height, width) in pixels for a network,
            (tokens, dim) for a candidate operation.
    """
    shapes = copy.deepcopy(model).to("meta").eval()
    with _Products(shapes) as products:
        shapes(torch.empty(1, *input_size, dtype=_dtype(shapes), device="meta"))
    if names := ", ".join(sorted(products.unknown)):
        warnings.warn(f"multiply-adds inside {names} are not counted", stacklevel=2)
    return Complexity(
        num_params=sum(p.numel() for p in model.parameters()),
        macs_linear=products.macs[LINEAR],
        macs_attention=products.macs[ATTENTION],
    )


_aten = torch.ops.aten
_WITH_VECTORS = dict.fromkeys((_aten.mv, _aten.dot), lambda left, right, **_: 2 * math.prod(left))
"""Products that `FlopCounterMode` leaves out: operations by shapes, two per multiply-add."""
_COPIES = (_aten.clone, _aten._to_copy)
_ADDED_TO = (_aten.addmm, _aten.baddbmm)
"""Products whose first argument is what they are added to."""
_UNKNOWN = re.compile(
    r"addbmm|addmv|addr|cdist|euclid|gru|lstm|rnn|trilinear|linalg_(?!check|vector_norm)"
)
"""PyTorch's own operations with products inside of which no count is known."""


class _Products(TorchDispatchMode):
    """Counts the multiply-adds of the products that run while it is active.

    Args:
        model: on the meta device; products with its parameters and buffers, or with copies of
            them, are linear.

    Attributes:
        macs: by `LINEAR` and `ATTENTION`. unknown: names of operations that are not counted.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.macs = {LINEAR: 0, ATTENTION: 0}
        self.unknown: set[str] = set()
        tensors = (*model.parameters(), *model.buffers())
        self._weights = {id(s): s for s in (t.untyped_storage() for t in tensors)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with FlopCounterMode(display=False, custom_mapping=_WITH_VECTORS) as counter:
            out = func(*args, **(kwargs or {}))
        operation, factors = func.overloadpacket, [*_tensors(args)]
        of_weight = [id(t.untyped_storage()) in self._weights for t in factors]
        if macs := counter.get_total_flops() // 2:  # it counts a multiply-add as two operations
            with_weight = any(of_weight[operation in _ADDED_TO :])
            self.macs[LINEAR if with_weight else ATTENTION] += macs
        elif operation in _COPIES and all(of_weight):
            storage = out.untyped_storage()
            self._weights[id(storage)] = storage
        elif func.namespace not in ("aten", "prim", "prims") or _UNKNOWN.search(func.__name__):
            self.unknown.add(func.name())
        return out


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Bytes in the precision of the weights.

    Attributes:
        weights: parameters and buffers.
        training: activations alive between a forward and its backward pass of one image, which is
            among them; without gradients and the optimiser's states.
        inference: the most activations at once while one image passes through.
    """

    weights: int
    training: int
    inference: int

    def __str__(self) -> str:
        counts = (f"{n / 2**20:.1f} MiB" for n in (self.weights, self.training, self.inference))
        return (
            "{} of weights; activations of one image: {} kept in training, {} at most at inference"
        ).format(*counts)


def footprint(model: nn.Module, input_size: tuple[int, ...]) -> Footprint:
    """Memory that `model` takes, with PyTorch's fused attention kernels.

    Activations grow with the number of images, weights do not.

    Args:
        model: takes a batch of `input_size`; on any device, meta included; left as it was.
        input_size: without the batch axis, (channels, height, width) in pixels.
    """
    shapes = copy.deepcopy(model).to("meta")
    with (
        torch.random.fork_rng(devices=[]),
        FakeTensorMode(allow_non_fake_inputs=True),
        LiveMemory() as memory,
    ):
        fake = shapes.to_empty(device="cpu")
        weights = memory.live

        def activations(images: int) -> int:
            batch = torch.empty(images, *input_size, dtype=_dtype(shapes))
            out = fake(batch)
            alive = memory.live - weights
            del out, batch
            return alive

        fake.train()
        # A batch norm over a single value cannot train: two images, and one more.
        training = -activations(2) + activations(3)
        fake.eval()
        memory.peak = memory.live
        with torch.no_grad():
            activations(1)
        return Footprint(weights=weights, training=training, inference=memory.peak - weights)


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all memories that operations return while it is active and that are
    alive. Of real or of fake tensors; what a kernel takes and gives back inside is not seen.

    Args:
        block: every memory counts as a multiple of this many bytes.

    Attributes:
        live: bytes now.
        peak: the most there were at once; may be set back to `live`.
    """

    def __init__(self, block: int = 1) -> None:
        super().__init__()
        self.block = block
        self.live = self.peak = 0
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        before = {id(t.untyped_storage()) for t in _tensors((*args, *kwargs.values()))}
        out = func(*args, **kwargs)
        for t in _tensors((out,)):
            if id(t.untyped_storage()) not in before:
                self._add(t.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._seen:
            return
        size = -(-storage.nbytes() // self.block) * self.block

        def gone(_: object) -> None:
            self.live -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters()), torch.get_default_dtype())


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an operation's arguments or results, and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Times of one forward pass without gradients, in seconds: their median, and the times that a
    tenth (p10) and nine tenths (p90) of the runs stayed below.

    Attributes:
        device: "cpu", or the GPU's name.
        threads: of the CPU.
    """

    device: str
    threads: int
    precision: str
    batch_size: int
    runs: int
    median: float
    p10: float
    p90: float

    @property
    def throughput(self) -> float:
        """Images per second at the median."""
        return self.batch_size / self.median

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        return (
            f"batch {self.batch_size} on {self.device}{threads if self.device == 'cpu' else ''}, "
            f"{self.precision}: median {1e3 * self.median:.3g} ms "
            f"(p10 {1e3 * self.p10:.3g}, p90 {1e3 * self.p90:.3g}, {self.runs} runs); "
            f"{self.throughput:.3g} images/s"
        )


def latency(model: nn.Module, images: Tensor, *, seconds: float = 3.0) -> Latency:
    """Time `model` on `images`, both on one device; the model is put in evaluation mode.

    A fifth of `seconds`, and two runs at least, goes before the timed runs, of which there are 5 to
    1,000: where a run is slow, it takes longer.

    Raises:
        ValueError: no time to spend.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"the time to measure in must be positive, but got {seconds} seconds")

    def once() -> float:
        started = time.perf_counter()
        model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return time.perf_counter() - started

    def spend(budget: float, least: int) -> list[float]:
        times: list[float] = []
        while len(times) < least or (sum(times) < budget and len(times) < 1000):
            times.append(once())
        return times

    model.eval()
    with torch.inference_mode():
        spend(0.2 * seconds, 2)
        times = spend(0.8 * seconds, 5)
    p10, *_, p90 = statistics.quantiles(times, n=10, method="inclusive")
    return Latency(
        device=torch.cuda.get_device_name(images.device) if images.is_cuda else images.device.type,
        threads=torch.get_num_threads(),
        precision=str(images.dtype).removeprefix("torch."),
        batch_size=len(images),
        runs=len(times),
        median=statistics.median(times),
        p10=p10,
        p90=p90,
    )
