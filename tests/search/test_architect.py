"""The gradients of the bilevel step: side effects, and what is reported. (Their values for every
method: tests/conformance/test_methods.py.)"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.search_runs import make_batch, make_model, model_config
from torch import Tensor

from dasvit.data.batch import Batch
from dasvit.methods import DASViT
from dasvit.search.architect import arch_gradient, weight_gradient
from dasvit.search.model import SearchModel

XI = 0.4


@pytest.fixture
def model(double: None) -> SearchModel:
    """Width 8, two layers, all six candidates, float64."""
    return make_model(model_config())


@pytest.fixture
def batches(double: None) -> tuple[Batch, Batch]:
    """A training and a validation batch."""
    return make_batch(), make_batch()


def test_weight_gradient_is_autograd(model: SearchModel, batches: tuple[Batch, Batch]) -> None:
    """And the weights of the candidates come without a graph to alpha."""
    seen: list[Tensor] = []
    model.supernet.cells[0].register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    images, labels = batches[0]
    grads, loss, logits = weight_gradient(model, batches[0], {})
    assert not seen[0].requires_grad
    assert torch.equal(seen[0], model.arch["alpha"].softmax(-1))
    expected = F.cross_entropy(model(images), labels)
    for a, e in zip(grads, torch.autograd.grad(expected, model.weight_parameters()), strict=True):
        assert torch.equal(a, e)
    assert torch.equal(loss, expected) and torch.equal(logits, model(images))
    assert not loss.requires_grad and not logits.requires_grad


def test_unreached_weights_get_zeros(batches: tuple[Batch, Batch]) -> None:
    """No operation but identity: CLS does not see the other tokens, so nothing reaches the gate."""
    model = make_model(
        model_config(operations=("zero", "identity"), stage_ops=(2,), token_ratio=0.5)
    )
    params = model.weight_parameters()
    grads, _, _ = weight_gradient(model, batches[0], {})
    assert [g.shape for g in grads] == [p.shape for p in params]
    assert model.supernet.selector is not None
    query = next(i for i, p in enumerate(params) if p is model.supernet.selector.query.weight)
    assert not grads[query].any() and grads[-1].any()


def test_losses_are_those_at_the_virtual_weights(
    model: SearchModel, batches: tuple[Batch, Batch]
) -> None:
    found = arch_gradient(model, *batches, noise={}, xi=XI)
    grads, _, _ = weight_gradient(model, batches[0], {})
    with torch.no_grad():
        for p, g in zip(model.weight_parameters(), grads, strict=True):
            p -= XI * g
        logits = model(batches[1][0])
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.val_loss, F.cross_entropy(logits, batches[1][1]))
    torch.testing.assert_close(found.penalty, model.penalty(model.weights()).detach())


@pytest.mark.parametrize("xi", [0.0, XI])
def test_weights_alphas_and_grads_are_as_before(xi: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, also after an error: adding ξ∇ back would not restore float32 weights."""
    model = make_model(model_config(token_ratio=0.5, dropout=0.1))
    batches = make_batch(), make_batch()
    for i, p in enumerate(model.parameters()):
        p.grad = None if i % 2 else torch.full_like(p, 7.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = arch_gradient(model, *batches, noise={}, xi=xi)
    weight_gradient(model, batches[0], {})
    for value in (*found.gradients, found.val_loss, found.penalty, found.logits):
        assert value.isfinite().all() and not value.requires_grad

    def fails(*args: Any) -> Tensor:
        weight = model.supernet.head.weight
        assert torch.equal(weight, before["supernet.head.weight"]) == (xi == 0)  # else at w'
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(DASViT, "penalty", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        arch_gradient(model, *batches, noise={}, xi=xi)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for i, p in enumerate(model.parameters()):
        assert p.grad is None if i % 2 else torch.equal(p.grad, torch.full_like(p, 7.0))
        assert p.requires_grad


def test_a_zero_gradient_has_a_zero_product(double: None) -> None:
    """One class: L_val is 0 whatever the weights, and 0.01 / ‖0‖ must not give nan."""
    model = make_model(model_config(), num_classes=1)
    batches = make_batch(num_classes=1), make_batch(num_classes=1)
    found = arch_gradient(model, *batches, noise={}, xi=XI)
    expected = torch.autograd.grad(model.penalty(model.weights()), model.arch["alpha"])
    torch.testing.assert_close(found.gradients, list(expected))
