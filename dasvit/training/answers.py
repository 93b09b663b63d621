"""What a trained network gets right of a test set, class by class."""

from dataclasses import dataclass

import torch
from torch import nn

from dasvit.data.batch import EVAL_BATCH
from dasvit.data.splits import Split
from dasvit.run.distributed import Processes

__all__ = ["Answers", "answers_of"]


@dataclass(frozen=True, slots=True)
class Answers:
    """A network's answers, counted.

    Attributes:
        confusion: images by class (row) and answer (column).
        top5: images whose class is among the five likeliest answers.
        class_names: of rows and columns, where they are known.
    """

    confusion: tuple[tuple[int, ...], ...]
    top5: int
    class_names: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Images."""
        return sum(map(sum, self.confusion))

    @property
    def accuracy(self) -> float:
        """Share of the images that are right (ratio)."""
        return sum(row[i] for i, row in enumerate(self.confusion)) / self.count

    @property
    def top5_accuracy(self) -> float:
        """Ratio; of min(5, classes)."""
        return self.top5 / self.count

    @property
    def recalls(self) -> tuple[float | None, ...]:
        """Of each class the share that is right (ratio); None for one without images."""
        rows = enumerate(self.confusion)
        return tuple(row[i] / total if (total := sum(row)) else None for i, row in rows)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the recalls: every class counts alike, however many images it has."""
        recalls = [recall for recall in self.recalls if recall is not None]
        return sum(recalls) / len(recalls)

    @property
    def largest_class(self) -> float:
        """Share of the images in the largest class (ratio): what one answer to all of them gets."""
        return max(map(sum, self.confusion)) / self.count


@torch.no_grad()
def answers_of(model: nn.Module, split: Split, processes: Processes | None = None) -> Answers:
    """A network's answers to all images of a split.

    Args:
        processes: those that share the images; by default this one alone.
    """
    processes = processes or Processes()
    model.eval()
    device = next(model.parameters()).device
    top5 = torch.zeros((), dtype=torch.int64, device=device)
    confusion: torch.Tensor | None = None
    for images, labels in split.batches(EVAL_BATCH, share=processes.share):
        logits = model(images)
        classes = logits.shape[1]
        best = logits.topk(min(5, classes), dim=1).indices
        top5 += (best == labels[:, None]).any(dim=1).sum()
        pairs = torch.bincount(labels * classes + best[:, 0], minlength=classes**2)
        confusion = pairs if confusion is None else confusion + pairs
    assert confusion is not None, "a split has images"
    processes.add_up(confusion, top5)
    rows = confusion.view(round(len(confusion) ** 0.5), -1).tolist()
    return Answers(tuple(map(tuple, rows)), int(top5.item()))
