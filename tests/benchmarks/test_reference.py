"""The plain reference of the benchmarks computes what `dasvit` computes."""

from dataclasses import replace

import pytest
import torch
from support.runs import DIGITS, OPERATIONS, search_config

from benchmarks import workload
from benchmarks.reference import ReferenceNet, ReferenceStep
from benchmarks.workload import Cell, Sizes, candidates, literal_state, useful_flops
from dasvit.data.batch import Batch
from dasvit.search.architect import arch_gradient, weight_gradient
from dasvit.search.model import build_search_model
from dasvit.search.step import BilevelStep
from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.operations import build_operation

PRUNED = (
    ("identity", "msa_h2", "mlp_r0.5"),
    ("zero", "msa_h4", "mlp_r3"),
    ("zero", "identity", "mlp_r0.5"),
    ("msa_h2", "msa_h4", "mlp_r3"),
    ("zero", "identity", "msa_h2"),
)


def _batch() -> Batch:
    return torch.randn(4, 1, 12, 12), torch.randint(3, (4,))


@pytest.mark.parametrize(
    ("edge_ops", "ratio", "xi"),
    [
        ((OPERATIONS,) * 5, 1.0, 0.1),
        ((OPERATIONS,) * 5, 0.5, 0.0),
        (PRUNED, 0.5, 0.1),
    ],
    ids=["all", "half of the tokens", "pruned"],
)
@pytest.mark.usefixtures("double")
class TestSameMathematics:
    @pytest.fixture
    def pair(self, edge_ops: EdgeOps, ratio: float, xi: float) -> tuple[BilevelStep, ReferenceStep]:
        """Ours, fused, and the reference with equal values, all of them random."""
        config = search_config(
            data=replace(DIGITS, image_size=12),
            alpha_init_std=1.0,
            gamma_max=0.3,
            grad_clip=0.5,
            token_ratio=ratio,
            xi=xi,
        )
        model = build_search_model(config, edge_ops, num_layers=3, in_channels=1, num_classes=3)
        with torch.no_grad():
            for p in model.weight_parameters():
                p.add_(0.2 * torch.randn_like(p))
        plain = ReferenceNet(config, edge_ops, 3, channels=1, num_classes=3)
        plain.load_state_dict(literal_state(model))
        return BilevelStep(config, model), ReferenceStep(config, plain)

    def test_gradients(self, pair: tuple[BilevelStep, ReferenceStep]) -> None:
        """Logits, both losses, ∇_α and every weight's gradient."""
        ours, plain = pair
        train, val = _batch(), _batch()
        torch.testing.assert_close(plain.model(train[0]), ours.model(train[0]))
        penalty = ours.model.penalty(ours.model.weights())
        assert penalty is not None and penalty > 0

        found = arch_gradient(ours.model, train, val, noise={}, xi=ours.config.method.xi)
        torch.testing.assert_close(plain.alpha_pass(train, val), found.val_loss)
        # Both take the same finite difference; the reference moves w back by adding.
        (gradient,) = found.gradients
        torch.testing.assert_close(plain.model.alpha.grad, gradient, rtol=1e-6, atol=1e-9)

        grads, loss, logits = weight_gradient(ours.model, train, {})
        plain_loss, plain_logits = plain.weight_pass(train)
        torch.testing.assert_close(plain_loss, loss)
        torch.testing.assert_close(plain_logits, logits)
        with torch.no_grad():  # the gradients by the names of the literal parameters
            for p, grad in zip(ours.model.weight_parameters(), grads, strict=True):
                p.copy_(grad)
        expected = literal_state(ours.model)
        for name, p in plain.model.named_parameters():
            if name != "alpha":
                torch.testing.assert_close(p.grad, expected[name], msg=name)

    def test_parameters_after_steps(self, pair: tuple[BilevelStep, ReferenceStep]) -> None:
        ours, plain = pair
        before = {name: value.clone() for name, value in literal_state(ours.model).items()}
        for _ in range(2):
            train, val = _batch(), _batch()
            loss, logits, _ = ours(train, val, weight_lr=1e-3)
            plain_loss, plain_logits = plain(train, val, weight_lr=1e-3)
            torch.testing.assert_close(plain_loss, loss)
            torch.testing.assert_close(plain_logits, logits)
        after = literal_state(ours.model)
        for name, value in plain.model.state_dict().items():
            torch.testing.assert_close(value, after[name], rtol=1e-6, atol=1e-8, msg=name)
            assert not torch.equal(value, before[name]), name


def test_useful_operations_in_closed_form() -> None:
    """Products of linear layers and attention in the encoders: of a forward pass, of the backward
    pass to the tokens, and of that to the weights; none to the tokens of a frozen embedding."""
    sizes, cell = Sizes.of("tiny"), Cell(stage=2, token_ratio=0.5, batch_size=4)
    dim, tokens = sizes.dim, 1 + 8
    alpha = full = 0
    for layer in range(workload.search_config(cell, sizes).stages[1].num_layers):
        for source, names in zip((0, 1, 0, 1, 2), candidates(2), strict=True):
            linear = attention = 0
            for name in names:
                operation = build_operation(name, dim)
                weights = sum(p.numel() for p in operation.parameters() if p.dim() > 1)
                linear += 2 * tokens * weights
                attention += 4 * tokens**2 * dim if name.startswith("msa") else 0
            to_tokens = linear + 2 * attention
            from_embedding = source < 2 and layer < 2 - source  # 0 is the layer before the last
            alpha += linear + attention + (0 if from_embedding else to_tokens)
            full += linear + attention + to_tokens + linear
    assert useful_flops(cell, sizes) == 4 * (alpha + full)
    assert useful_flops(replace(cell, order=2), sizes) == 4 * (2 * full + 2 * alpha + full)
