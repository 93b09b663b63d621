"""The plain reference of `benchmarks` computes what `dasvit` computes; its products are counted."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import count_passes
from benchmarks.reference import ReferenceNet, ReferenceStep
from benchmarks.workload import literal_state
from dasvit.data.config import DataConfig
from dasvit.search.architect import alpha_gradient, weight_gradient
from dasvit.search.config import SearchConfig
from dasvit.search.step import BilevelStep, build_supernet
from dasvit.spaces.cell.supernet import SuperNet

OPS = ("zero", "identity", "msa_h2", "msa_h4", "mlp_r0.5", "mlp_r2")


def _pair(
    edge_ops: tuple[tuple[str, ...], ...], randomise: Callable, **settings: object
) -> tuple[BilevelStep, ReferenceStep]:
    """Ours, fused, and the reference with equal values, all of them random."""
    config = SearchConfig(
        data=DataConfig(image_size=12),
        operations=OPS,
        stage_ops=(6, 5, 3),
        dim=8,
        patch_size=4,
        alpha_init_std=1.0,
        gamma_max=0.3,
        **settings,  # type: ignore[arg-type]
    )
    model = build_supernet(config, edge_ops, num_layers=3, in_channels=1, num_classes=3)
    randomise(model)
    plain = ReferenceNet(config, edge_ops, num_layers=3, channels=1, num_classes=3)
    plain.load_state_dict(literal_state(model))
    return BilevelStep(config, model), ReferenceStep(config, plain)


def _gradients_by_name(model: SuperNet, grads: list[Tensor]) -> dict[str, Tensor]:
    """Gradients of the fused parameters by the names of the literal ones."""
    with torch.no_grad():
        for p, grad in zip(model.weight_parameters(), grads, strict=True):
            p.copy_(grad)
    return literal_state(model)


@pytest.fixture(params=["all candidates", "pruned"])
def edge_ops(
    request: pytest.FixtureRequest, tiny_edge_ops: tuple[tuple[str, ...], ...]
) -> tuple[tuple[str, ...], ...]:
    return (OPS,) * 5 if request.param == "all candidates" else tiny_edge_ops


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("xi", [0.0, 0.1])
@pytest.mark.usefixtures("double")
class TestSameMathematics:
    def test_gradients(
        self, xi: float, ratio: float, edge_ops: tuple, randomise: Callable, make_batch: Callable
    ) -> None:
        """Logits, both losses, fairness, ∇_α and every weight's gradient."""
        ours, plain = _pair(edge_ops, randomise, xi=xi, token_ratio=ratio)
        train, val = make_batch(4, side=12), make_batch(4, side=12)
        torch.testing.assert_close(plain.model(train[0]), ours.model(train[0]))
        weights = ours.model.operation_weights()
        fair = ours.fairness(weights)
        assert fair > 0
        torch.testing.assert_close(plain.fairness(plain.model), fair)

        found = alpha_gradient(ours.model, train, val, fairness=ours.fairness, xi=xi)
        val_loss = plain.alpha_pass(train, val)
        torch.testing.assert_close(val_loss, found.val_loss)
        # Both take the same finite difference; the reference moves w back by adding.
        torch.testing.assert_close(plain.model.alpha.grad, found.gradient, rtol=1e-6, atol=1e-9)

        grads, loss, logits = weight_gradient(ours.model, train)
        plain_loss, plain_logits = plain.weight_pass(train)
        torch.testing.assert_close(plain_loss, loss)
        torch.testing.assert_close(plain_logits, logits)
        expected = _gradients_by_name(ours.model, grads)
        for name, p in plain.model.named_parameters():
            if name != "alpha":
                assert p.grad is not None, name
                torch.testing.assert_close(p.grad, expected[name], msg=name)

    def test_parameters_after_steps(
        self, xi: float, ratio: float, edge_ops: tuple, randomise: Callable, make_batch: Callable
    ) -> None:
        ours, plain = _pair(edge_ops, randomise, xi=xi, token_ratio=ratio, grad_clip=0.5)
        before = literal_state(ours.model)
        before = {name: value.clone() for name, value in before.items()}
        for _ in range(2):
            train, val = make_batch(4, side=12), make_batch(4, side=12)
            loss, logits, _ = ours(train, val, weight_lr=1e-3)
            plain_loss, plain_logits = plain(train, val, weight_lr=1e-3)
            torch.testing.assert_close(plain_loss, loss)
            torch.testing.assert_close(plain_logits, logits)
        after = literal_state(ours.model)
        for name, value in plain.model.state_dict().items():
            torch.testing.assert_close(value, after[name], rtol=1e-6, atol=1e-8, msg=name)
            assert not torch.equal(value, before[name]), name


def _embedding_and_head(config: SearchConfig, batch: int, *, trained: bool) -> int:
    patches = (config.data.image_size // config.patch_size) ** 2
    embedding = 2 * batch * patches * config.patch_size**2 * config.dim
    head = 2 * batch * config.dim * 3
    return 2 * embedding + 3 * head if trained else embedding + 2 * head


@pytest.mark.parametrize("part", ["forward", "full", "alpha"])
def test_counted_products_are_the_ones_computed(
    part: str, edge_ops: tuple, randomise: Callable, make_batch: Callable
) -> None:
    """Against PyTorch's own counter, on the literal form, which computes what is needed alone."""
    step, plain = _pair(edge_ops, randomise, fused=False, token_ratio=1.0)
    config, batch = step.config, make_batch(4, side=12)
    passes = count_passes(edge_ops, num_layers=3, num_nodes=2, tokens=10, dim=8)
    with FlopCounterMode(display=False) as counter:
        if part == "forward":
            with torch.no_grad():
                plain.model(batch[0])
        elif part == "full":
            plain.weight_pass(batch)
        else:
            # The formula of attention: PyTorch's own attention computes scores anew.
            for p in plain.model.weights():
                p.requires_grad_(False)
            plain._loss(plain.model, batch).backward()
    counted = counter.get_total_flops()
    rest = _embedding_and_head(config, 4, trained=part == "full")
    if part == "forward":
        rest = rest - 2 * 4 * 8 * 3
    assert counted - rest == 4 * getattr(passes, part)


def test_unknown_operations_have_no_count() -> None:
    with pytest.raises(ValueError, match="conv_k3"):
        count_passes((("conv_k3",),), num_layers=1, num_nodes=1, tokens=2, dim=4)
