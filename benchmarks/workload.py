"""What is measured: a stage of the search at a token ratio, a batch size and an order; ours and the
plain reference on the same weights and the same batches."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from dasvit.spaces.cell.prune import first_stage_ops, prune
from torch import Tensor, nn

from benchmarks.flops import Passes, count_passes, step_flops
from benchmarks.measure import bytes_of
from benchmarks.reference import ReferenceNet, ReferenceStep
from dasvit.data.batch import Batch
from dasvit.data.config import DataConfig
from dasvit.report.events import EdgeOps
from dasvit.run.seed import derive_seed, generator, seed_everything
from dasvit.search.config import SearchConfig
from dasvit.search.cuda_graph import WARM_UP
from dasvit.search.step import BilevelStep, build_supernet
from dasvit.spaces.cell.fused import FusedCell
from dasvit.spaces.cell.supernet import SuperNet
from dasvit.spaces.cell.tokens import num_selected

__all__ = [
    "Cell",
    "Runner",
    "Sizes",
    "literal_state",
    "make_batches",
    "make_ours",
    "make_reference",
    "stage_candidates",
]

CHANNELS, CLASSES = 3, 10
XI = 1e-3
"""ξ of second order; its value does not change the work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Width and image of the network; the rest is the paper's.

    Attributes:
        dim: embedding dimension.
        image_size: side in pixels.
        patch_size: side in pixels.
    """

    dim: int
    image_size: int
    patch_size: int

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One row of the table.

    Attributes:
        stage: 1, 2 or 3.
        token_ratio: λ.
        batch_size: images of each of the two batches of a step.
        order: 1 or 2.
    """

    stage: int
    token_ratio: float
    batch_size: int
    order: int

    def config(self, sizes: Sizes, **changes: Any) -> SearchConfig:
        """The search that has this step."""
        config = SearchConfig(
            data=DataConfig(image_size=sizes.image_size),
            dim=sizes.dim,
            patch_size=sizes.patch_size,
            token_ratio=self.token_ratio,
            batch_size=self.batch_size,
            xi=XI if self.order == 2 else 0.0,
        )
        return replace(config, **changes)

    def passes(self, sizes: Sizes) -> Passes:
        """Useful operations an image."""
        config = self.config(sizes)
        patches = sizes.num_patches
        kept = num_selected(patches, self.token_ratio) if self.token_ratio < 1 else patches
        return count_passes(
            stage_candidates(config)[self.stage - 1],
            num_layers=config.stage_layers[self.stage - 1],
            num_nodes=config.num_nodes,
            tokens=1 + kept,
            dim=sizes.dim,
        )

    def flops(self, sizes: Sizes) -> int:
        """Useful operations of a step."""
        return step_flops(self.passes(sizes), self.batch_size, self.order)


def stage_candidates(config: SearchConfig) -> list[EdgeOps]:
    """Candidates of each edge, stage by stage: pruned by alphas drawn at random, always the same.
    The stages that a search enters are others, and cost more or less by what survives."""
    return _pruned(config.operations, config.num_nodes, config.stage_ops)


@lru_cache
def _pruned(
    operations: tuple[str, ...], num_nodes: int, stage_ops: tuple[int, ...]
) -> list[EdgeOps]:
    edge_ops: EdgeOps = first_stage_ops(operations, num_nodes)
    found = [edge_ops]
    draw = generator("benchmark candidates")
    alpha = torch.randn(len(edge_ops), len(edge_ops[0]), generator=draw)
    for num_ops in stage_ops[1:]:
        edge_ops, alpha = prune(alpha, edge_ops, num_ops)
        found.append(edge_ops)
    return found


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
        model: the network.
        step: called with the two batches and `weight_lr`.
        batches: for the weights and for alpha.
        warm_up: steps before all steps are alike, at least 2.

    Attributes:
        around: makes a context that each step runs in.
    """

    def __init__(
        self,
        model: nn.Module,
        step: BilevelStep | ReferenceStep,
        batches: tuple[Batch, Batch],
        warm_up: int = 2,
    ) -> None:
        self.model, self.step, self.batches, self.warm_up = model, step, batches, warm_up
        self.around: Callable[[], AbstractContextManager[object]] = nullcontext

    def __call__(self) -> None:
        with self.around():
            self.step(*self.batches, weight_lr=1e-5)

    def resident(self) -> int:
        """Bytes of weights, alphas and optimisers between two steps; drops gradients."""
        for p in self.model.parameters():
            p.grad = None
        optimizers = (self.step.weight_optimizer, self.step.alpha_optimizer)
        states = [v for o in optimizers for state in o.state.values() for v in state.values()]
        return bytes_of([*self.model.parameters(), *self.model.buffers(), *states])


def make_ours(
    cell: Cell,
    sizes: Sizes,
    device: torch.device,
    batches: tuple[Batch, Batch],
    **changes: Any,
) -> Runner:
    """`dasvit`'s step; `changes` are settings of `SearchConfig`."""
    config = cell.config(sizes, **changes)
    edge_ops = stage_candidates(config)[cell.stage - 1]
    seed_everything(derive_seed("benchmark weights"))
    with device:  # drawing hundreds of millions of weights elsewhere takes longer than the steps
        model = build_supernet(
            config,
            edge_ops,
            num_layers=config.stage_layers[cell.stage - 1],
            in_channels=CHANNELS,
            num_classes=CLASSES,
        )
    if config.compile:
        model.compile_encoders()
    graphed = config.cuda_graph and device.type == "cuda"
    return Runner(model, BilevelStep(config, model), batches, warm_up=WARM_UP + 1 if graphed else 2)


def make_reference(
    cell: Cell,
    sizes: Sizes,
    device: torch.device,
    batches: tuple[Batch, Batch],
    precision: str = "fp32",
    *,
    same_weights: bool = True,
) -> Runner:
    """The plain step.

    Args:
        same_weights: start from the weights that ours starts from.
    """
    config = cell.config(sizes)
    edge_ops = stage_candidates(config)[cell.stage - 1]
    with device:
        model = ReferenceNet(
            config,
            edge_ops,
            num_layers=config.stage_layers[cell.stage - 1],
            channels=CHANNELS,
            num_classes=CLASSES,
            precision=precision,
        )
    if same_weights:
        ours = make_ours(cell, sizes, device, batches).model
        assert isinstance(ours, SuperNet)
        model.load_state_dict(literal_state(ours))
    return Runner(model, ReferenceStep(config, model), batches)


def literal_state(model: SuperNet) -> dict[str, Tensor]:
    """A supernet's values by the names that `ReferenceNet` has for them."""
    state = {
        name.replace("embedding.patches.proj.", "embedding.patches."): value
        for name, value in model.state_dict().items()
        if not name.startswith("cells.")
    }
    for number, cell in enumerate(model.cells):
        literal = cell.unfused() if isinstance(cell, FusedCell) else cell
        state |= {f"cells.{number}.{name}": v for name, v in literal.state_dict().items()}
    return state
