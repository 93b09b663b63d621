"""What search and retraining share, what a batch goes through, and accuracies counted by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.runs import ENCODER, retrain_config
from torch import Tensor, nn

from dasvit.data.config import DataConfig
from dasvit.data.datasets import load_data
from dasvit.run.distributed import Processes
from dasvit.spaces.cell.edges import DerivedCell
from dasvit.spaces.cell.supernet import SuperNet
from dasvit.training.answers import Answers, answers_of
from dasvit.training.loop import Training
from dasvit.training.networks import build_network
from dasvit.training.recipe import (
    make_average,
    make_mixing,
    make_optimizer,
    norms_and_biases,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("fused", [True, False])
def test_only_matrices_decay_on_request(
    fused: bool, make_supernet: Callable[..., SuperNet]
) -> None:
    """With gradients of zero, AdamW's step is its weight decay alone."""
    model = make_supernet(fused=fused, token_ratio=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    spared = norms_and_biases(model)
    optimizer = make_optimizer(model.parameters(), lr=0.5, weight_decay=0.1, spared=spared)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        vector = "bias" in name or "norm" in name or name.endswith(("cls_token", "positions"))
        factor = 1.0 if vector else 0.95
        torch.testing.assert_close(p.detach(), factor * before[name], msg=name)


# --- What a batch goes through


def training(**changes: Any) -> Training:
    config = retrain_config(**changes)
    data = load_data(config.data, CPU)
    torch.manual_seed(0)
    model = build_network(config, in_channels=1, num_classes=10)
    data = replace(data, train=data.train.subset(torch.arange(96)))
    return Training(config, model, data, Processes())


@pytest.mark.parametrize("mixes", [False, True])
def test_a_batch_in_parts_takes_the_same_step(mixes: bool) -> None:
    found = []
    for parts in (1, 4):
        run = training(accumulate=parts, label_smoothing=0.1, mixup=0.5 if mixes else 0.0)
        record = run.epoch()
        found.append((record.train_loss, record.train_accuracy, *run.model.parameters()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=2e-5)


def test_mixing_makes_shares_of_classes() -> None:
    assert make_mixing(retrain_config(), 10) is None
    mixing = make_mixing(retrain_config(mixup=0.8, cutmix=1.0, label_smoothing=0.1), 10)
    assert mixing is not None
    images, labels = torch.rand(9, 1, 8, 8), torch.arange(9)
    before = images.clone()
    mixed, targets = mixing(images, labels)
    assert torch.equal(images, before)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(9))
    assert targets.min() == pytest.approx(0.01)  # smoothed
    assert not torch.equal(mixed[:8], before[:8])
    assert torch.equal(mixed[8], before[8])  # pairs: the odd one stays
    assert targets[8].argmax() == 8 and targets[8].max() == pytest.approx(0.91)
    alone, targets = mixing(images[:1], labels[:1])
    assert torch.equal(alone, before[:1]) and targets.argmax() == 0


def test_settings_reach_the_step() -> None:
    """Each gives other losses than the plain run; those in the second line nearly the same."""
    (plain, second) = (run.epoch().train_loss for run in (training(), training(seed=1)))
    assert plain != second  # another order of the images
    for changes in ({"label_smoothing": 0.5}, {"grad_clip": 1e-6}, {"mixup": 0.5}, {"lr": 1e-3}):
        assert training(**changes).epoch().train_loss != plain, changes
    for changes in ({"precision": "bf16"}, {"channels_last": True}):
        run = training(**changes)
        assert run.epoch().train_loss == pytest.approx(plain, rel=0.05)
        assert {p.dtype for p in run.model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_a_compiled_network_trains_as_well() -> None:
    plain, compiled = training(), training(compile=True)
    losses = [run.epoch().train_loss for run in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert set(compiled.state()["model"]) == set(plain.state()["model"])


def test_the_average_follows_the_weights() -> None:
    run = training(ema_decay=0.5)
    expected = run.model.state_dict()["head.weight"].clone()
    step = run._step

    def watched(*batch: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal expected
        out = step(*batch)
        expected = 0.5 * expected + 0.5 * run.model.state_dict()["head.weight"]
        return out

    run._step = watched  # type: ignore[method-assign]
    run.epoch()
    torch.testing.assert_close(run.result.state_dict()["head.weight"], expected)
    assert run.result is not run.model and make_average(retrain_config(), run.model) is None


def test_stochastic_depth_drops_operations_and_no_identity() -> None:
    kept = DerivedCell(ENCODER, 12).eval()
    cell = DerivedCell(ENCODER, 12, drop_path=0.999999)
    cell.load_state_dict(kept.state_dict())
    x, y = torch.randn(2, 3, 5, 12)
    torch.testing.assert_close(cell.eval()(x, y), kept(x, y))
    assert ENCODER.nodes[1][0].operation == "identity" and ENCODER.nodes[1][0].source == 1
    torch.testing.assert_close(cell.train()(x, y), y)


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
