"""The gradients of the bilevel step: side effects, and what is kept away from a cheap pass. (Their
values for every method: tests/conformance/test_methods.py.)"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.hypergradient import hypergradient, second_order
from support.search_runs import make_batch, make_model, model_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dasvit.data.batch import Batch
from dasvit.methods import DASViT
from dasvit.search.architect import ArchGradient, arch_gradient, weight_gradient
from dasvit.search.model import SearchModel

Batches = tuple[Batch, Batch]
XI = 0.4


def _gradient(model: SearchModel, batches: Batches, xi: float) -> ArchGradient:
    return arch_gradient(model, *batches, noise={}, xi=xi)


@pytest.fixture
def model(double: None) -> SearchModel:
    """Width 8, two layers, all six candidates, float64."""
    return make_model(model_config())


@pytest.fixture
def batches(double: None) -> Batches:
    """A training and a validation batch."""
    return make_batch(), make_batch()


def test_weight_gradient_is_autograd(model: SearchModel, batches: Batches) -> None:
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


def test_unreached_weights_get_zeros(batches: Batches) -> None:
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


def test_losses_are_those_at_the_virtual_weights(model: SearchModel, batches: Batches) -> None:
    found = _gradient(model, batches, XI)
    grads, _, _ = weight_gradient(model, batches[0], {})
    with torch.no_grad():
        for p, g in zip(model.weight_parameters(), grads, strict=True):
            p -= XI * g
        logits = model(batches[1][0])
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.val_loss, F.cross_entropy(logits, batches[1][1]))
    torch.testing.assert_close(found.penalty, model.penalty(model.weights()).detach())


def test_no_cheaper_gradient_is_as_near(model: SearchModel, batches: Batches) -> None:
    """As that of second order is to the exact one."""
    (exact,) = hypergradient(model, *batches, XI, {})
    tolerance = 1e-3 * float(exact.norm())
    (found,) = _gradient(model, batches, XI).gradients
    assert (found - exact).norm() < tolerance
    (first,) = _gradient(model, batches, 0.0).gradients
    ((direct,), (product,)) = second_order(model, *batches, XI, {})
    for wrong in (first, direct, direct + XI * product, first - XI * product):
        assert (wrong - exact).norm() > 100 * tolerance


@pytest.mark.parametrize("settings", [{}, {"token_ratio": 0.5, "token_where": "edge"}], ids=str)
def test_second_order_under_dropout(settings: dict, batches: Batches) -> None:
    """DARTS' formula, with every pass drawing from the state at the start of the step."""
    model, draws = make_model(model_config(dropout=0.3, **settings)), torch.get_rng_state()
    found = _gradient(model, batches, XI)
    direct, product = second_order(
        model, *batches, XI, {}, before_pass=lambda: torch.set_rng_state(draws)
    )
    expected = [direct[0] - XI * product[0]]
    torch.testing.assert_close(found.gradients, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("grad", [None, 7.0])
@pytest.mark.parametrize("xi", [0.0, 1e-3, 0.4])
def test_weights_alphas_and_grads_are_as_before(xi: float, grad: float | None) -> None:
    """Bit for bit: adding ξ∇ back would not restore float32 weights."""
    model = make_model(model_config(token_ratio=0.5, dropout=0.1))
    batches = make_batch(), make_batch()
    for p in model.parameters():
        p.grad = None if grad is None else torch.full_like(p, grad)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = _gradient(model, batches, xi)
    weight_gradient(model, batches[0], {})
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for p in model.parameters():
        assert p.grad is None if grad is None else torch.equal(p.grad, torch.full_like(p, grad))
        assert p.requires_grad
    for value in (*found.gradients, found.val_loss, found.penalty, found.logits):
        assert value.isfinite().all() and not value.requires_grad


def test_weights_come_back_after_an_error(
    model: SearchModel, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def fails(*args: Any) -> Tensor:
        weight = model.supernet.head.weight
        assert not torch.equal(weight, before["supernet.head.weight"])  # at w'
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(DASViT, "penalty", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        _gradient(model, batches, XI)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


class _MatrixProducts(TorchDispatchMode):
    """The shapes that come out of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.shapes.add(tuple(out.shape))
        return out


def test_first_order_computes_no_weight_gradient(model: SearchModel) -> None:
    """No product has a weight's shape, and the weight pass' have (so that the look-out works)."""
    batches = make_batch(7), make_batch(7)  # 35 tokens: no weight has such a side
    shapes = {tuple(p.shape) for p in model.weight_parameters() if p.dim() == 2}
    shapes |= {shape[::-1] for shape in shapes}
    with _MatrixProducts() as first_order:
        _gradient(model, batches, 0.0)
    with _MatrixProducts() as weight_pass:
        weight_gradient(model, batches[0], {})
    assert first_order.shapes and not shapes & first_order.shapes
    assert shapes & weight_pass.shapes


def test_a_zero_gradient_has_a_zero_product(double: None) -> None:
    """One class: L_val is 0 whatever the weights, and 0.01 / ‖0‖ must not give nan."""
    model = make_model(model_config(), num_classes=1)
    batches = make_batch(num_classes=1), make_batch(num_classes=1)
    found = _gradient(model, batches, XI)
    expected = torch.autograd.grad(model.penalty(model.weights()), model.arch["alpha"])
    torch.testing.assert_close(found.gradients, list(expected))
