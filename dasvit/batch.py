"""The batch: what data sets yield and passes consume."""

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["EVAL_BATCH", "Batch"]

Batch = tuple[Float[Tensor, "batch channels height width"], Int[Tensor, " batch"]]
"""Normalised images (batch, channels, height, width), and labels (batch,) as int64."""

EVAL_BATCH = 256
"""Images of a batch in evaluation."""
