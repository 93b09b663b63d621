"""The score of a network on the validation half."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dasvit.data.batch import EVAL_BATCH
from dasvit.data.splits import Split

__all__ = ["accuracy"]


@torch.no_grad()
def accuracy(
    model: nn.Module, split: Split, weights: Float[Tensor, "edges ops"] | None = None
) -> float:
    """Top-1 accuracy on a split (ratio), of a supernet under given weights of the candidates. The
    model's mode is as before on return."""
    training = model.training
    model.eval()
    correct = torch.zeros((), device=next(model.parameters()).device)
    # Not compiled anew for batches of these sizes.
    with torch.compiler.set_stance("force_eager"):
        given = () if weights is None else (weights,)
        for images, labels in split.batches(EVAL_BATCH):
            correct += (model(images, *given).argmax(dim=1) == labels).sum()
    model.train(training)
    return correct.item() / len(split)
