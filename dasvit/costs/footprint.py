"""Memory that a network takes: its weights, what training keeps for the backward pass, and the most
at once at inference.

Counted on fake tensors, which have shapes and no values, with PyTorch's fused attention kernels. A
network's activations grow with the number of images; its weights do not.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dasvit.costs.live_memory import LiveMemory

__all__ = ["Footprint", "footprint"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Bytes in the precision of the weights.

    Attributes:
        weights: parameters and buffers.
        training: activations alive between a forward and its backward pass, for one image, the
            image included. Gradients and the optimiser's states are not in it.
        inference: the most activations at once while one image passes through, without gradients.
    """

    weights: int
    training: int
    inference: int

    def __str__(self) -> str:
        weights, training, inference = (
            f"{count / 2**20:.1f} MiB" for count in (self.weights, self.training, self.inference)
        )
        return (
            f"{weights} of weights; activations of one image: {training} kept in training, "
            f"{inference} at most at inference"
        )


def footprint(model: nn.Module, input_size: tuple[int, ...]) -> Footprint:
    """Memory of `model`, which may lie on any device, the meta device included.

    Args:
        model: takes a batch of `input_size`; left as it was.
        input_size: without the batch axis, (channels, height, width) in pixels.
    """
    shapes = copy.deepcopy(model).to("meta")
    dtype = next((p.dtype for p in shapes.parameters()), torch.get_default_dtype())
    with (
        torch.random.fork_rng(devices=[]),
        FakeTensorMode(allow_non_fake_inputs=True),
        LiveMemory() as memory,
    ):
        fake = shapes.to_empty(device="cpu")
        weights = memory.live

        def activations(images: int) -> int:
            batch = torch.empty(images, *input_size, dtype=dtype)
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
