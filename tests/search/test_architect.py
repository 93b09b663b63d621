"""The gradients of the bilevel step: values, side effects, second order by double backward."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import bilevel
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


def _distance(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm())


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
    assert torch.equal(loss, expected)
    assert torch.equal(logits, model(images))
    assert not loss.requires_grad
    assert not logits.requires_grad


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
    assert not grads[query].any()
    assert grads[-1].any()


def test_first_order_is_plain_autograd(model: SearchModel, batches: Batches) -> None:
    images, labels = batches[1]
    found = _gradient(model, batches, 0.0)
    logits = model(images)
    assert torch.equal(found.logits, logits)
    assert torch.equal(found.val_loss, F.cross_entropy(logits, labels))
    penalty = bilevel.fairness(model)
    torch.testing.assert_close(found.penalty, penalty(model.weights()).detach())
    totals = model.figures(model.weights())
    assert totals["type/msa"] > 0.35 and totals["type/mlp"] < 0.3  # every coefficient counts
    exact = bilevel.hypergradient(model, *batches, penalty, 0.0)
    torch.testing.assert_close(found.gradients, [exact])


def test_second_order_is_the_exact_hypergradient(model: SearchModel, batches: Batches) -> None:
    """To the finite difference's precision; no cheaper gradient passes the same comparison."""
    penalty = bilevel.fairness(model)
    exact = bilevel.hypergradient(model, *batches, penalty, XI)
    tolerance = 1e-3 * float(exact.norm())
    assert _distance(_gradient(model, batches, XI).gradients[0], exact) < tolerance

    first_order = _gradient(model, batches, 0.0).gradients[0]
    direct, product = bilevel.second_order(model, *batches, penalty, XI)
    for wrong in (first_order, direct, direct + XI * product, first_order - XI * product):
        assert _distance(wrong, exact) > 100 * tolerance


@pytest.mark.parametrize(
    ("xi", "settings"),
    [
        (0.05, {}),
        (2.0, {}),
        (XI, {"token_ratio": 0.5}),
        (XI, {"token_ratio": 0.5, "token_where": "edge"}),
        (XI, {"dropout": 0.3}),
        (XI, {"fused": True, "token_ratio": 0.5}),
    ],
    ids=str,
)
def test_second_order_is_darts_formula(xi: float, settings: dict, batches: Batches) -> None:
    """ε = 0.01 / ‖∇_{w'}L_val‖, around w and not around w', plain gradient descent by ξ. Under
    dropout every pass draws from the state at the start of the step."""
    model, draws = make_model(model_config(**settings)), torch.get_rng_state()
    found = _gradient(model, batches, xi)
    direct, product = bilevel.second_order(
        model,
        *batches,
        bilevel.fairness(model),
        xi,
        before_pass=lambda: torch.set_rng_state(draws),
    )
    torch.testing.assert_close(found.gradients, [direct - xi * product], rtol=1e-7, atol=1e-10)
    assert float(product.norm()) * xi > 1e-3


def test_losses_are_those_at_the_virtual_weights(model: SearchModel, batches: Batches) -> None:
    found = _gradient(model, batches, XI)
    grads, _, _ = weight_gradient(model, batches[0], {})
    with torch.no_grad():
        for p, g in zip(model.weight_parameters(), grads, strict=True):
            p -= XI * g
        logits = model(batches[1][0])
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.val_loss, F.cross_entropy(logits, batches[1][1]))


@pytest.mark.parametrize("grad", [None, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("xi", [0.0, 1e-3, 0.4])
def test_weights_alphas_and_grads_are_as_before(
    xi: float, dtype: torch.dtype, grad: float | None
) -> None:
    """Bit for bit: adding ξ∇ back would not restore float32 weights."""
    model = make_model(model_config(token_ratio=0.5, dropout=0.1)).to(dtype)
    batches = [(x.to(dtype), y) for x, y in (make_batch(), make_batch())]
    for p in model.parameters():
        p.grad = None if grad is None else torch.full_like(p, grad)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = arch_gradient(model, *batches, noise={}, xi=xi)
    weight_gradient(model, batches[0], {})
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for p in model.parameters():
        assert p.grad is None if grad is None else torch.equal(p.grad, torch.full_like(p, grad))
        assert p.requires_grad
    for value in (*found.gradients, found.val_loss, found.penalty, found.logits):
        assert value.isfinite().all()
        assert not value.requires_grad


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
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.shapes.append(tuple(out.shape))
        return out


def test_first_order_computes_no_weight_gradient(model: SearchModel, double: None) -> None:
    """No product has a weight's shape, and the weight pass' have (so that the look-out works)."""
    batches = make_batch(7), make_batch(7)  # 35 tokens: no weight has such a side
    shapes = {tuple(p.shape) for p in model.weight_parameters() if p.dim() == 2}
    shapes |= {shape[::-1] for shape in shapes}
    with _MatrixProducts() as first_order:
        _gradient(model, batches, 0.0)
    with _MatrixProducts() as weight_pass:
        weight_gradient(model, batches[0], {})
    assert len(first_order.shapes) > 20
    assert shapes & set(weight_pass.shapes)
    assert not shapes & set(first_order.shapes)


def test_a_zero_gradient_has_a_zero_product(double: None) -> None:
    """One class: L_val is 0 whatever the weights, and 0.01 / ‖0‖ must not give nan."""
    model = make_model(model_config(), num_classes=1)
    batches = make_batch(num_classes=1), make_batch(num_classes=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = _gradient(model, batches, XI)
    penalty = bilevel.fairness(model)(model.weights())
    expected = torch.autograd.grad(penalty, model.arch["alpha"])
    torch.testing.assert_close(found.gradients, list(expected))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
