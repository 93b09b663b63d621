"""The bilevel step: values, side effects, and the second order against double backward."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from dasvit.methods.losses import fairness_loss
from support import reference
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dasvit.run.seed import get_rng_state, set_rng_state
from dasvit.search.architect import alpha_gradient, weight_gradient
from dasvit.spaces.cell.supernet import SuperNet

CPU = torch.device("cpu")
XI = 0.4


def _fairness(model: SuperNet) -> Callable[[Tensor], Tensor]:
    return partial(
        fairness_loss,
        edge_ops=model.edge_ops,
        types=("msa", "mlp"),
        skip_weight=0.7,
        type_weight=1.3,
        gamma_min=0.3,
        gamma_max=0.35,
        zeta1=2.0,
        zeta2=3.0,
    )


def _distance(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm())


@pytest.fixture
def model(double: None, make_supernet: Callable[..., SuperNet]) -> SuperNet:
    """Width 8, two layers, all six candidates, float64."""
    return make_supernet()


@pytest.fixture
def batches(double: None, make_batch: Callable) -> tuple[reference.Batch, reference.Batch]:
    """A training and a validation batch."""
    return make_batch(4), make_batch(4)


def test_weight_gradient_is_autograd(model: SuperNet, batches: tuple) -> None:
    images, labels = batches[0]
    grads, loss, logits = weight_gradient(model, batches[0])
    expected = F.cross_entropy(model(images), labels)
    for a, e in zip(grads, torch.autograd.grad(expected, model.weight_parameters()), strict=True):
        assert torch.equal(a, e)
    assert torch.equal(loss, expected)
    assert torch.equal(logits, model(images))
    assert not loss.requires_grad
    assert not logits.requires_grad


def test_unreached_weights_get_zeros(
    double: None, make_supernet: Callable[..., SuperNet], batches: tuple
) -> None:
    """No operation but identity: the selector's weights alone stay out of the sum for k = N."""
    model = make_supernet((("zero", "identity"),) * 5, token_ratio=0.5)
    params = model.weight_parameters()
    grads, _, _ = weight_gradient(model, batches[0])
    assert [g.shape for g in grads] == [p.shape for p in params]
    query = next(i for i, p in enumerate(params) if p is model.selector.query.weight)
    # CLS does not see the other tokens, so nothing reaches the gate.
    assert not grads[query].any()
    assert grads[-1].any()


def test_first_order_is_plain_autograd(model: SuperNet, batches: tuple) -> None:
    images, labels = batches[1]
    fairness = _fairness(model)
    result = alpha_gradient(model, *batches, fairness=fairness, xi=0.0)
    logits = model(images)
    val_loss, fair_loss = F.cross_entropy(logits, labels), fairness(model.alpha.softmax(-1))
    assert fair_loss > 0.1
    assert torch.equal(result.logits, logits)
    assert torch.equal(result.val_loss, val_loss)
    assert torch.equal(result.fair_loss, fair_loss)
    expected = torch.autograd.grad(val_loss + fair_loss, model.alpha)[0]
    torch.testing.assert_close(result.gradient, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        result.gradient,
        reference.hypergradient(model, *batches, fairness, 0.0),
    )


def test_second_order_is_the_exact_hypergradient(model: SuperNet, batches: tuple) -> None:
    """To the finite difference's precision; no cheaper gradient passes the same comparison."""
    fairness = _fairness(model)
    exact = reference.hypergradient(model, *batches, fairness, XI)
    result = alpha_gradient(model, *batches, fairness=fairness, xi=XI)
    tolerance = 1e-3 * float(exact.norm())
    assert _distance(result.gradient, exact) < tolerance

    first_order = alpha_gradient(model, *batches, fairness=fairness, xi=0.0).gradient
    direct, product = reference.second_order(model, *batches, fairness, XI)
    for wrong in (first_order, direct, direct + XI * product, first_order - XI * product):
        assert _distance(wrong, exact) > 200 * tolerance


@pytest.mark.parametrize("xi", [0.05, 0.4, 2.0])
def test_second_order_is_darts_formula(model: SuperNet, batches: tuple, xi: float) -> None:
    """ε = 0.01 / ‖∇_{w'}L_val‖, around w and not around w', plain gradient descent by ξ."""
    fairness = _fairness(model)
    direct, product = reference.second_order(model, *batches, fairness, xi)
    result = alpha_gradient(model, *batches, fairness=fairness, xi=xi)
    torch.testing.assert_close(result.gradient, direct - xi * product, rtol=1e-7, atol=1e-10)
    assert float(product.norm()) * xi > 1e-3


def test_the_finite_difference_is_of_second_order(model: SuperNet, batches: tuple) -> None:
    """Twice the step, four times the error; at 0.01 the code's error is the formula's."""
    fairness = _fairness(model)
    exact = reference.hypergradient(model, *batches, fairness, XI)
    errors = {}
    for radius in (0.08, 0.04, 0.02, 0.01):
        direct, product = reference.second_order(model, *batches, fairness, XI, radius=radius)
        errors[radius] = _distance(direct - XI * product, exact)
    for radius in (0.04, 0.02, 0.01):
        order = math.log2(errors[2 * radius] / errors[radius])
        assert order == pytest.approx(2.0, abs=0.15)
    result = alpha_gradient(model, *batches, fairness=fairness, xi=XI)
    assert _distance(result.gradient, exact) == pytest.approx(errors[0.01], rel=1e-3)


def test_second_order_with_token_selection(
    double: None, make_supernet: Callable[..., SuperNet], batches: tuple
) -> None:
    for token_where in ("input", "edge"):
        model = make_supernet(token_ratio=0.5, token_where=token_where)
        fairness = _fairness(model)
        direct, product = reference.second_order(model, *batches, fairness, XI)
        result = alpha_gradient(model, *batches, fairness=fairness, xi=XI)
        torch.testing.assert_close(result.gradient, direct - XI * product, rtol=1e-7, atol=1e-10)


def test_losses_are_those_at_the_virtual_weights(model: SuperNet, batches: tuple) -> None:
    fairness = _fairness(model)
    result = alpha_gradient(model, *batches, fairness=fairness, xi=XI)
    grads, _, _ = weight_gradient(model, batches[0])
    with torch.no_grad():
        for p, g in zip(model.weight_parameters(), grads, strict=True):
            p -= XI * g
        logits = model(batches[1][0])
    torch.testing.assert_close(result.logits, logits)
    torch.testing.assert_close(result.val_loss, F.cross_entropy(logits, batches[1][1]))
    torch.testing.assert_close(result.fair_loss, fairness(model.operation_weights()).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("xi", [0.0, 1e-3, 0.4])
def test_weights_alphas_and_grads_are_as_before(
    xi: float, dtype: torch.dtype, make_supernet: Callable[..., SuperNet], make_batch: Callable
) -> None:
    """Bit for bit: adding ξ∇ back would not restore float32 weights."""
    model = make_supernet(token_ratio=0.5, dropout=0.1).to(dtype)
    batches = [(x.to(dtype), y) for x, y in (make_batch(), make_batch())]
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = alpha_gradient(model, *batches, fairness=_fairness(model), xi=xi)
    weight_gradient(model, batches[0])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for p in model.parameters():
        assert torch.equal(p.grad, torch.full_like(p, 7.0))
        assert p.requires_grad
    assert result.gradient.isfinite().all()
    for value in (result.gradient, result.val_loss, result.fair_loss, result.logits):
        assert not value.requires_grad


@pytest.mark.parametrize("xi", [0.0, 0.4])
def test_no_grad_is_left_behind(model: SuperNet, batches: tuple, xi: float) -> None:
    alpha_gradient(model, *batches, fairness=_fairness(model), xi=xi)
    weight_gradient(model, batches[0])
    assert [name for name, p in model.named_parameters() if p.grad is not None] == []


def test_weights_come_back_after_an_error(model: SuperNet, batches: tuple) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def fails(weights: Tensor) -> Tensor:
        assert not torch.equal(model.head.weight, before["head.weight"])  # at w'
        raise RuntimeError("out of memory, say")

    with pytest.raises(RuntimeError, match="out of memory"):
        alpha_gradient(model, *batches, fairness=fails, xi=XI)
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


def test_first_order_computes_no_weight_gradient(model: SuperNet, make_batch: Callable) -> None:
    """No product has a weight's shape, and the weight pass' have (so that the look-out works)."""
    batches = make_batch(7), make_batch(7)  # 35 tokens: no weight has such a side
    shapes = {tuple(p.shape) for p in model.weight_parameters() if p.dim() == 2}
    shapes |= {shape[::-1] for shape in shapes}
    with _MatrixProducts() as first_order:
        alpha_gradient(model, *batches, fairness=_fairness(model), xi=0.0)
    with _MatrixProducts() as weight_pass:
        weight_gradient(model, batches[0])
    assert len(first_order.shapes) > 20
    assert shapes & set(weight_pass.shapes)
    assert not shapes & set(first_order.shapes)


def test_the_weight_pass_builds_no_graph_to_alpha(model: SuperNet, batches: tuple) -> None:
    seen = []
    model.cells[0].register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    weight_gradient(model, batches[0])
    assert [weights.requires_grad for weights in seen] == [False]
    assert torch.equal(seen[0], model.operation_weights())


def _dropout_masks(model: nn.Module) -> dict[str, list[Tensor]]:
    """What each dropout layer lets through, call by call (filled as the model runs)."""
    masks: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            masks[name] = []
            module.register_forward_hook(
                lambda _, args, out, seen=masks[name]: seen.append(out.detach() != 0)
            )
    return masks


def test_all_passes_of_a_step_draw_the_same_masks(
    double: None, make_supernet: Callable[..., SuperNet], batches: tuple
) -> None:
    model = make_supernet(dropout=0.5)
    masks = _dropout_masks(model)
    fairness = _fairness(model)
    alpha_gradient(model, *batches, fairness=fairness, xi=XI)
    assert len(masks) == 2 * 5 * 4
    for seen in masks.values():
        assert len(seen) == 4
        assert 0.2 < seen[0].double().mean() < 0.8
        for mask in seen[1:]:
            assert torch.equal(mask, seen[0])
    alpha_gradient(model, *batches, fairness=fairness, xi=XI)
    assert any(not torch.equal(seen[4], seen[0]) for seen in masks.values())  # another step's


def test_second_order_under_dropout(
    double: None, make_supernet: Callable[..., SuperNet], batches: tuple
) -> None:
    """The formula with every pass drawing from the state at the start of the step."""
    model = make_supernet(dropout=0.3)
    fairness, draws = _fairness(model), get_rng_state(CPU)
    result = alpha_gradient(model, *batches, fairness=fairness, xi=XI)
    direct, product = reference.second_order(
        model, *batches, fairness, XI, before_pass=lambda: set_rng_state(draws, CPU)
    )
    torch.testing.assert_close(result.gradient, direct - XI * product, rtol=1e-7, atol=1e-10)


def test_a_zero_gradient_has_a_zero_product(
    double: None, make_supernet: Callable[..., SuperNet], make_batch: Callable
) -> None:
    """One class: L_val is 0 whatever the weights, and 0.01 / ‖0‖ must not give nan."""
    model = make_supernet(num_classes=1)
    fairness = _fairness(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = alpha_gradient(
        model, make_batch(classes=1), make_batch(classes=1), fairness=fairness, xi=XI
    )
    alpha = model.alpha.detach().clone().requires_grad_()
    expected = torch.autograd.grad(fairness(alpha.softmax(-1)), alpha)[0]
    torch.testing.assert_close(result.gradient, expected)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
