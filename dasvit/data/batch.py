"""The batch: what data sets yield and passes consume."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["EVAL_BATCH", "Batch", "send"]

Batch = tuple[Float[Tensor, "batch channels height width"], Int[Tensor, " batch"]]
"""Normalised images (batch, channels, height, width), and labels (batch,) as int64."""

EVAL_BATCH = 256
"""Images of a batch in evaluation."""


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. A GPU copies it in its turn, and the host goes on."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
