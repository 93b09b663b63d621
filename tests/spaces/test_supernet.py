"""The search network against a literal loop supernet."""

from collections.abc import Callable

import pytest
import torch
from support import reference
from torch import nn

from dasvit.spaces.cell.supernet import SuperNet
from dasvit.spaces.cell.tokens import TokenSelector

SELECTIONS = [(1.0, "input"), (0.5, "input"), (0.5, "edge")]


@pytest.mark.parametrize(("token_ratio", "token_where"), SELECTIONS)
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.usefixtures("double")
def test_literal_supernet(
    num_layers: int,
    token_ratio: float,
    token_where: str,
    tiny_edge_ops: tuple[tuple[str, ...], ...],
    make_supernet: Callable[..., SuperNet],
    make_batch: Callable,
    assert_same_gradients: Callable,
) -> None:
    """Logits and the gradients to alpha and every weight, candidates differing by edge."""
    model = make_supernet(
        tiny_edge_ops, num_layers=num_layers, token_ratio=token_ratio, token_where=token_where
    )
    images, _ = make_batch()
    actual, expected = model(images), reference.supernet(model, images)
    assert actual.shape == (3, 3)
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(actual)
    assert_same_gradients(
        (actual * direction).sum(), (expected * direction).sum(), list(model.parameters())
    )


@pytest.mark.usefixtures("double")
def test_given_weights_replace_softmax_of_alpha(
    make_supernet: Callable[..., SuperNet], make_batch: Callable
) -> None:
    model = make_supernet()
    images, _ = make_batch()
    weights = torch.rand(5, 6)
    torch.testing.assert_close(model(images, weights), reference.supernet(model, images, weights))
    assert torch.equal(model(images, model.operation_weights()), model(images))
    torch.testing.assert_close(model.operation_weights(), reference.softmax(model.alpha))


@pytest.mark.parametrize("token_where", ["input", "edge"])
def test_ratio_one_is_no_selection(
    token_where: str, make_supernet: Callable[..., SuperNet], make_batch: Callable
) -> None:
    """λ = 1: no selector, and what a selector of all tokens would give, bit for bit."""
    model = make_supernet(token_ratio=1.0, token_where=token_where)
    assert not [module for module in model.modules() if isinstance(module, TokenSelector)]
    images, _ = make_batch()
    plain = model(images)
    model.selector = TokenSelector(8, 1.0)
    assert torch.equal(model(images), plain)


def test_selection_once_at_the_input_or_on_every_edge(
    make_supernet: Callable[..., SuperNet], make_batch: Callable
) -> None:
    images, _ = make_batch()
    for token_where, selectors, tokens in (("input", 1, 1 + 2), ("edge", 2 * 5, 1 + 4)):
        model = make_supernet(token_ratio=0.5, token_where=token_where)
        found = [m for m in model.modules() if isinstance(m, TokenSelector)]
        assert len(found) == selectors
        outputs = []
        for cell in model.cells:
            cell.register_forward_hook(lambda _, args, out, seen=outputs: seen.append(out))
        model(images)
        assert [out.shape[1] for out in outputs] == [tokens, tokens]


def test_both_inputs_of_the_first_layer_are_z_0(
    make_supernet: Callable[..., SuperNet], make_batch: Callable
) -> None:
    model = make_supernet(num_layers=3)
    images, _ = make_batch()
    seen: list[tuple[torch.Tensor, ...]] = []
    for cell in model.cells:
        cell.register_forward_hook(lambda _, args, out: seen.append((*args[:2], out)))
    model(images)
    z_0 = model.embedding(images)
    assert torch.equal(seen[0][0], z_0)
    assert torch.equal(seen[0][1], z_0)
    assert torch.equal(seen[1][0], z_0)
    assert torch.equal(seen[1][1], seen[0][2])
    assert torch.equal(seen[2][0], seen[0][2])
    assert torch.equal(seen[2][1], seen[1][2])


@pytest.mark.parametrize(("token_ratio", "token_where"), SELECTIONS)
def test_weights_and_alphas_are_disjoint_and_all(
    token_ratio: float, token_where: str, make_supernet: Callable[..., SuperNet]
) -> None:
    model = make_supernet(token_ratio=token_ratio, token_where=token_where)
    weights = [id(p) for p in model.weight_parameters()]
    alphas = [id(p) for p in model.alpha_parameters()]
    assert alphas == [id(model.alpha)]
    assert len(set(weights)) == len(weights)
    assert not set(weights) & set(alphas)
    assert set(weights) | set(alphas) == {id(p) for p in model.parameters()}
    assert all(isinstance(p, nn.Parameter) for p in model.alpha_parameters())


def test_alpha_is_one_matrix_shared_by_all_layers_and_saved(
    make_supernet: Callable[..., SuperNet],
) -> None:
    model = make_supernet(num_layers=4)
    assert model.num_layers == 4
    assert model.alpha.shape == (5, 6)
    assert [name for name in model.state_dict() if "alpha" in name] == ["alpha"]
    assert torch.equal(model.state_dict()["alpha"], model.alpha)
    other = make_supernet(num_layers=4)
    assert not torch.equal(other.alpha, model.alpha)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.alpha, model.alpha)


@pytest.mark.usefixtures("double")
def test_alpha_gradient_sums_over_layers(
    make_supernet: Callable[..., SuperNet], make_batch: Callable
) -> None:
    model = make_supernet(num_layers=2)
    images, _ = make_batch()
    shared = torch.autograd.grad(model(images).sum(), model.alpha)[0]
    own = [model.alpha.detach().clone().requires_grad_() for _ in range(2)]
    z_0 = model.embedding(images)
    e_1 = model.cells[0](z_0, z_0, own[0].softmax(-1))
    e_2 = model.cells[1](z_0, e_1, own[1].softmax(-1))
    separate = torch.autograd.grad(model.head(model.norm(e_2[:, 0])).sum(), own)
    torch.testing.assert_close(shared, separate[0] + separate[1])


def test_alpha_starts_small_and_random() -> None:
    model = SuperNet(
        (("zero", "identity") * 50,) * 5,
        num_layers=1,
        dim=8,
        num_nodes=2,
        image_size=8,
        patch_size=4,
        in_channels=1,
        num_classes=3,
        alpha_init_std=1e-3,
    )
    assert model.alpha.std().item() == pytest.approx(1e-3, rel=0.15)
    assert model.alpha.mean().abs().item() < 2e-4


@pytest.mark.parametrize(
    "edge_ops",
    [
        (("identity",),) * 4,
        (("identity",),) * 6,
        (("identity", "zero"),) * 4 + (("identity",),),
        (),
    ],
)
def test_edge_ops_of_a_wrong_shape_are_refused(edge_ops: tuple[tuple[str, ...], ...]) -> None:
    with pytest.raises(ValueError, match="edge_ops must have 5 rows") as caught:
        SuperNet(
            edge_ops,
            num_layers=1,
            dim=8,
            num_nodes=2,
            image_size=8,
            patch_size=4,
            in_channels=1,
            num_classes=3,
        )
    assert str([len(names) for names in edge_ops]) in str(caught.value)
