"""Accuracies of a trained network, counted by hand."""

import pytest
import torch
from torch import nn

from dasvit.data.config import DataConfig
from dasvit.data.datasets import load_data
from dasvit.training.answers import Answers, answers_of


class Fixed(nn.Module):
    """Every image gets the last class, and then those before it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.arange(float(classes)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training and not torch.is_grad_enabled()
        return self.bias.expand(len(images), len(self.bias))


@pytest.mark.parametrize("classes", [10, 3])
def test_one_answer_to_all(classes: int) -> None:
    split = load_data(DataConfig(), torch.device("cpu")).test
    split.labels.remainder_(classes)
    tested = answers_of(Fixed(classes), split)
    counts = split.labels.bincount(minlength=classes)
    assert [sum(row) for row in tested.confusion] == counts.tolist()
    assert [row[-1] for row in tested.confusion] == counts.tolist()
    assert tested.count == len(split)
    assert tested.accuracy == pytest.approx(counts[-1].item() / len(split))
    assert tested.top5_accuracy == pytest.approx(counts[-5:].sum().item() / len(split))
    assert tested.largest_class == pytest.approx(counts.max().item() / len(split))
    assert tested.recalls == (*[0.0] * (classes - 1), 1.0)
    assert tested.balanced_accuracy == pytest.approx(1 / classes)


def test_a_class_without_images_has_no_recall() -> None:
    tested = Answers(((6, 2, 0), (1, 1, 0), (0, 0, 0)), top5=10)
    assert tested.accuracy == 0.7 and tested.largest_class == 0.8
    assert tested.recalls == (0.75, 0.5, None)
    assert tested.balanced_accuracy == 0.625
