"""What is measured: a step of the search in one of its stages, at a token ratio λ, a batch size and
an order; ours and the plain reference on the same weights and the same batches.

Every configuration of a benchmark is made in `search_config`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference import ReferenceNet, ReferenceStep
from dasvit.data.batch import Batch
from dasvit.methods import get_method
from dasvit.presets import get_preset
from dasvit.run.seed import derive_seed, generator, seed_everything
from dasvit.search.config import SearchConfig
from dasvit.search.cuda_graph import WARM_UP
from dasvit.search.model import SearchModel, build_search_model
from dasvit.search.step import BilevelStep
from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.fused_edges import FusedCell
from dasvit.spaces.cell.tokens import num_selected

__all__ = ["Cell", "Runner", "Sizes", "candidates", "make_batches", "make_ours", "make_reference"]

CHANNELS, CLASSES = 3, 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Width, images and patches (sides in pixels) of the network; the rest is the paper's."""

    dim: int
    image_size: int
    patch_size: int

    @classmethod
    def of(cls, name: str) -> "Sizes":
        """The paper's, a small one for CPUs, or a tiny one to try a program with."""
        dim, image_size, patch_size = {
            "paper": (768, 224, 16),
            "small": (192, 32, 4),
            "tiny": (48, 16, 4),
        }[name]
        return cls(dim=dim, image_size=image_size, patch_size=patch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Which step.

    Attributes:
        stage: 1, 2 or 3.
        token_ratio: λ.
        batch_size: images of each of the two batches of a step.
        order: of the gradient of alpha, 1 or 2.
    """

    stage: int
    token_ratio: float
    batch_size: int = 1
    order: int = 1

    def __str__(self) -> str:
        return (
            f"stage {self.stage}, λ = {self.token_ratio:g}, batch {self.batch_size}, "
            f"order {self.order}"
        )


def search_config(
    cell: Cell, sizes: Sizes, method: str | None = None, **changes: Any
) -> SearchConfig:
    """The search that has this step, by another method than DASViT where one is named; `changes`
    are settings of `SearchConfig`."""
    settings: dict[str, Any] = {
        "image_size": sizes.image_size,
        "dim": sizes.dim,
        "patch_size": sizes.patch_size,
        "token_ratio": cell.token_ratio,
        "batch_size": cell.batch_size,
        "xi": 1e-3 if cell.order == 2 else 0.0,  # its value does not change the work
    }
    config = get_preset("cifar10").search.replaced(**settings | changes)
    if method is None:
        return config
    return config.replaced(method=get_method(method).like(config.method))


@cache
def candidates(stage: int) -> EdgeOps:
    """Candidates of each edge in a stage (1, 2, 3): pruned by alphas drawn at random, always the
    same. The stages that a search enters are others, and cost more or less by what survives."""
    config = search_config(Cell(stage=1, token_ratio=1.0), Sizes.of("paper"))
    edge_ops = config.space.candidates().edge_ops
    draw = generator("benchmark candidates")
    alpha = torch.randn(len(edge_ops), len(edge_ops[0]), generator=draw)
    for later in config.stages[1:stage]:
        edge_ops, columns = config.space.prune(alpha, edge_ops, later.num_ops, zero="ranked")
        alpha = alpha.gather(1, columns)
    return edge_ops


def useful_flops(cell: Cell, sizes: Sizes) -> int:
    """Operations, two per multiply-add, of the products that a step cannot do without: those of
    linear layers and attention in the encoders. Embedding, token selection and head are not among
    them. A backward pass counts what the chain rule needs for the gradients asked for: none with
    respect to weights in a pass that updates alpha alone."""
    full, alpha = _pass_flops(cell.stage, cell.token_ratio, sizes)
    # Second order: a full pass for w', one at w', and two for the finite difference.
    step = full + (alpha if cell.order == 1 else 2 * full + 2 * alpha)
    return cell.batch_size * step


@cache
def _pass_flops(stage: int, token_ratio: float, sizes: Sizes) -> tuple[int, int]:
    """Of an image: forward and backward with the gradients of weights and tokens, and with that of
    alpha alone. Counted on the plain reference, whose attention computes nothing anew."""
    config = search_config(Cell(stage=stage, token_ratio=token_ratio), sizes)
    patches = (sizes.image_size // sizes.patch_size) ** 2
    kept = num_selected(patches, token_ratio) if token_ratio < 1 else patches
    edge_ops, layers = candidates(stage), config.stages[stage - 1].num_layers
    with torch.device("meta"):
        model = ReferenceNet(config, edge_ops, layers, channels=3, num_classes=2)

    def one_pass(*, weights: bool) -> int:
        for p in model.weights():
            p.requires_grad_(weights)
        tokens = torch.empty(1, 1 + kept, sizes.dim, device="meta", requires_grad=weights)
        with FlopCounterMode(display=False) as counter:
            model.encode(tokens).sum().backward()
        return counter.get_total_flops()

    return one_pass(weights=True), one_pass(weights=False)


def make_batches(cell: Cell, sizes: Sizes, device: torch.device) -> tuple[Batch, Batch]:
    """Random normalised images and labels, for the weights and for alpha."""
    draw = generator("benchmark batches", cell.batch_size)
    shape = (cell.batch_size, CHANNELS, sizes.image_size, sizes.image_size)

    def one() -> Batch:
        images = torch.randn(shape, generator=draw)
        labels = torch.randint(CLASSES, shape[:1], generator=draw)
        return images.to(device), labels.to(device)

    return one(), one()


class Runner:
    """A way to take the step, on the device.

    Args:
        step: called with the two batches and `weight_lr`.
        batches: for the weights and for alpha; without the second alpha stays.
        warm_up: steps before all steps are alike, at least 2.

    Attributes:
        around: makes a context that each step runs in.
    """

    def __init__(
        self,
        step: BilevelStep | ReferenceStep,
        batches: tuple[Batch, Batch | None],
        warm_up: int = 2,
    ) -> None:
        self.step, self.batches, self.warm_up = step, batches, warm_up
        self.model: nn.Module = step.model
        self.around: Callable[[], AbstractContextManager[object]] = nullcontext

    def __call__(self) -> None:
        step: Any = self.step  # the reference always has both batches
        with self.around():
            step(*self.batches, weight_lr=1e-5)

    def resident(self) -> int:
        """Bytes of weights, alphas and optimisers between two steps; drops gradients."""
        for p in self.model.parameters():
            p.grad = None
        optimizers = (self.step.weight_optimizer, self.step.arch_optimizer)
        states = [v for o in optimizers for state in o.state.values() for v in state.values()]
        tensors = (*self.model.parameters(), *self.model.buffers(), *states)
        storages = [t.untyped_storage() for t in tensors if isinstance(t, Tensor)]
        # A memory's own address is 0 where there is no data.
        return sum({s._cdata: s.nbytes() for s in storages}.values())


def make_ours(
    cell: Cell,
    sizes: Sizes,
    device: torch.device,
    batches: tuple[Batch, Batch],
    **changes: Any,
) -> Runner:
    """`dasvit`'s step; `changes` as in `search_config`."""
    config = search_config(cell, sizes, **changes)
    seed_everything(derive_seed("benchmark weights"))
    with device:  # drawing hundreds of millions of weights elsewhere takes longer than the steps
        model = build_search_model(
            config,
            candidates(cell.stage),
            num_layers=config.stages[cell.stage - 1].num_layers,
            in_channels=CHANNELS,
            num_classes=CLASSES,
        )
    if config.compile:
        model.supernet.compile_encoders()
    graphed = config.cuda_graph and device.type == "cuda"
    return Runner(BilevelStep(config, model), batches, warm_up=WARM_UP + 1 if graphed else 2)


def make_reference(
    cell: Cell,
    sizes: Sizes,
    device: torch.device,
    batches: tuple[Batch, Batch],
    precision: str = "fp32",
    *,
    same_weights: bool = True,
) -> Runner:
    """The plain step; with `same_weights` it starts from those that ours starts from."""
    config = search_config(cell, sizes)
    layers = config.stages[cell.stage - 1].num_layers
    with device:
        model = ReferenceNet(
            config,
            candidates(cell.stage),
            layers,
            channels=CHANNELS,
            num_classes=CLASSES,
            precision=precision,
        )
    if same_weights:
        ours = make_ours(cell, sizes, device, batches).model
        assert isinstance(ours, SearchModel)
        model.load_state_dict(literal_state(ours))
    return Runner(ReferenceStep(config, model), batches)


def literal_state(model: SearchModel) -> dict[str, Tensor]:
    """A search's values by the names that `ReferenceNet` has for them."""
    state = {
        name.replace("embedding.patches.proj.", "embedding.patches."): value
        for name, value in model.supernet.state_dict().items()
        if not name.startswith("cells.")
    }
    for number, cell in enumerate(model.supernet.cells):
        literal = cell.unfused() if isinstance(cell, FusedCell) else cell
        state |= {f"cells.{number}.{name}": v for name, v in literal.state_dict().items()}
    return state | {"alpha": model.arch["alpha"].detach()}
