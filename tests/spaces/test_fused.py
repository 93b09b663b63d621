"""The fused encoder against the literal one: values, gradients, packing, memory."""

from collections.abc import Callable

import pytest
import torch
from dasvit.spaces.cell.prune import prune
from support.plugin_operation import TokenConv  # noqa: F401  registers conv_k<int>
from torch import Tensor, nn

from dasvit.search.architect import alpha_gradient, weight_gradient
from dasvit.spaces.cell.derive import derive
from dasvit.spaces.cell.edges import SearchCell
from dasvit.spaces.cell.fused import FusedCell
from dasvit.spaces.cell.inherit import derived_network, inherit_weights
from dasvit.spaces.cell.supernet import SuperNet

TINY = ("zero", "identity", "msa_h2", "msa_h4", "mlp_r0.5", "mlp_r2")
SPACES = {
    "all": (TINY,) * 5,
    "no attention": (("identity", "mlp_r0.5", "mlp_r2"),) * 5,
    "no perceptron": (("zero", "msa_h2", "msa_h4"),) * 5,
    "nothing to fuse": (("zero", "identity"),) * 5,
    "zero alone": (("zero",),) * 5,
    "registered": (("identity", "conv_k3", "mlp_r2"),) * 5,
}


@pytest.fixture(params=[*SPACES, "pruned"])
def edge_ops(
    request: pytest.FixtureRequest, tiny_edge_ops: tuple[tuple[str, ...], ...]
) -> tuple[tuple[str, ...], ...]:
    return tiny_edge_ops if request.param == "pruned" else SPACES[request.param]


def _zero_for_none(grads: tuple[Tensor | None, ...], like: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, like, strict=True)]


@pytest.mark.parametrize("token_ratio", [1.0, 0.5])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.usefixtures("double")
def test_same_function(
    recompute: bool, token_ratio: float, edge_ops: tuple[tuple[str, ...], ...], randomise: Callable
) -> None:
    """Outputs, and gradients to both inputs, the operation weights and every parameter."""
    literal = randomise(SearchCell(edge_ops, 8, num_nodes=2, edge_token_ratio=token_ratio))
    fused = FusedCell(literal, recompute=recompute)
    inputs = [torch.randn(3, 5, 8), torch.randn(3, 5, 8), torch.rand(5, len(edge_ops[0]))]
    for x in inputs:
        x.requires_grad_()
    expected, actual = literal(*inputs), fused(*inputs)
    torch.testing.assert_close(actual, expected)
    if not expected.requires_grad:  # nothing but zeros
        return
    direction = torch.randn_like(expected)
    params = list(literal.parameters())
    left = torch.autograd.grad((expected * direction).sum(), inputs + params, allow_unused=True)
    (actual * direction).sum().backward()
    for a, b in zip(left, inputs, strict=False):
        torch.testing.assert_close(b.grad if b.grad is not None else a, a)

    gradients = FusedCell(literal)  # holds the gradients where the other holds its values
    with torch.no_grad():
        for place, p in zip(gradients.parameters(), fused.parameters(), strict=True):
            place.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
    found = list(gradients.unfused().parameters())
    for a, b in zip(_zero_for_none(left[3:], params), found, strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize("token_ratio", [1.0, 0.5])
def test_values_go_in_and_out(
    token_ratio: float, edge_ops: tuple[tuple[str, ...], ...], randomise: Callable
) -> None:
    def make() -> SearchCell:
        cell = SearchCell(edge_ops, 8, num_nodes=2, edge_token_ratio=token_ratio)
        assert isinstance(randomise(cell), SearchCell)
        return cell

    first, second = make(), make()
    fused = FusedCell(first)
    for cell in (first, second):
        fused.load(cell)
        out = fused.unfused()
        for (key, a), (name, b) in zip(
            cell.state_dict().items(), out.state_dict().items(), strict=True
        ):
            assert key == name
            assert torch.equal(a, b), key
            assert a.data_ptr() != b.data_ptr() or a.numel() == 0
    sizes = sum(p.numel() for p in fused.parameters())
    assert sizes == sum(p.numel() for p in first.parameters())


@pytest.mark.parametrize("num_nodes", [1, 3])
@pytest.mark.usefixtures("double")
def test_other_numbers_of_nodes(num_nodes: int, randomise: Callable) -> None:
    edges = sum(2 + j for j in range(num_nodes))
    literal = randomise(SearchCell((TINY,) * edges, 8, num_nodes=num_nodes))
    inputs = (torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.rand(edges, len(TINY)))
    torch.testing.assert_close(FusedCell(literal)(*inputs), literal(*inputs))


def test_dropout_is_refused_and_taken_literally(make_supernet: Callable[..., SuperNet]) -> None:
    with pytest.raises(ValueError, match=r"no dropout, but got dropout=0\.1"):
        FusedCell(SearchCell((TINY,) * 5, 8, num_nodes=2, dropout=0.1))
    assert isinstance(make_supernet(fused=True, dropout=0.1).cells[0], SearchCell)
    assert isinstance(make_supernet(fused=True).cells[0], FusedCell)


def _pair(make_supernet: Callable[..., SuperNet], **settings: object) -> tuple[SuperNet, SuperNet]:
    """The same supernet, literal and fused."""
    literal = make_supernet(**settings)
    fused = make_supernet(fused=True, **settings)
    state = {k: v for k, v in literal.state_dict().items() if not k.startswith("cells.")}
    fused.load_state_dict(state, strict=False)
    for cell, values in zip(fused.cells, literal.cells, strict=True):
        cell.load(values)
    return literal, fused


@pytest.mark.parametrize(("ratio", "where"), [(1.0, "input"), (0.5, "input"), (0.5, "edge")])
@pytest.mark.parametrize("xi", [0.0, 0.1])
@pytest.mark.usefixtures("double")
def test_same_gradients_of_a_step(
    xi: float, ratio: float, where: str, make_supernet: Callable, make_batch: Callable
) -> None:
    """∇_α of first and second order, ∇_w, and their losses."""
    literal, fused = _pair(make_supernet, token_ratio=ratio, token_where=where)
    train, val = make_batch(), make_batch()
    found = [
        alpha_gradient(model, train, val, fairness=lambda w: w.square().sum(), xi=xi)
        for model in (literal, fused)
    ]
    # ε of the finite difference is equal as well, so that second order agrees as closely.
    torch.testing.assert_close(found[1].gradient, found[0].gradient, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found[1].val_loss, found[0].val_loss)
    torch.testing.assert_close(found[1].logits, found[0].logits)
    (expected, loss, _), (actual, other, _) = (weight_gradient(m, train) for m in (literal, fused))
    torch.testing.assert_close(other, loss)
    norms = [
        torch.linalg.vector_norm(torch.cat([g.flatten() for g in x])) for x in (expected, actual)
    ]
    torch.testing.assert_close(norms[1], norms[0])


def test_stages_inherit_through_the_fused_form(
    make_supernet: Callable, make_batch: Callable
) -> None:
    """A deeper, pruned stage and the derived network get what the literal ones get."""
    literal, fused = _pair(make_supernet)
    names, _ = prune(literal.alpha.detach(), literal.edge_ops, 3)
    after = make_supernet(names, num_layers=3), make_supernet(names, num_layers=3, fused=True)
    for old, new in zip((literal, fused), after, strict=True):
        inherit_weights(old, new)
        new.alpha.data.copy_(after[0].alpha)
    images, _ = make_batch()
    torch.testing.assert_close(after[1](images), after[0](images))
    genotype = derive(after[0].alpha, names, num_nodes=2, edges_per_node=2, provenance={})
    networks = [derived_network(model, genotype) for model in after]
    assert torch.equal(networks[1](images), networks[0](images))


def _saved_bytes(run: Callable[[], Tensor], params: list[nn.Parameter]) -> int:
    """Bytes that the graph of a loss keeps, parameters aside, each memory counted once."""
    own = {p.untyped_storage().data_ptr() for p in params}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = run()
    assert loss.requires_grad
    return sum(kept.values())


def test_it_keeps_less_for_the_backward_pass(make_supernet: Callable, make_batch: Callable) -> None:
    literal, fused = _pair(make_supernet)
    recomputed = make_supernet(fused=True, recompute=True)
    images, _ = make_batch(16)
    kept = [
        _saved_bytes(
            lambda m=model: m(images, m.operation_weights().detach()).sum(), [*model.parameters()]
        )
        for model in (literal, fused, recomputed)
    ]
    assert kept[1] < 0.85 * kept[0]
    assert kept[2] < 0.35 * kept[1]


def test_a_frozen_alpha_pass_keeps_nothing_for_the_weights(
    make_supernet: Callable, make_batch: Callable
) -> None:
    model = make_supernet(fused=True, num_layers=1)
    images, labels = make_batch(16)
    free = _saved_bytes(lambda: model(images).sum(), [*model.parameters()])
    for p in model.weight_parameters():
        p.requires_grad_(False)
    frozen = _saved_bytes(lambda: model(images).sum(), [*model.parameters()])
    assert frozen < 0.7 * free
    for p in model.weight_parameters():
        p.requires_grad_(True)
    alpha_gradient(model, (images, labels), (images, labels), fairness=lambda w: w.sum(), xi=0.0)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_bf16_is_close_and_keeps_fp32_parameters(
    fused: bool, make_supernet: Callable, make_batch: Callable
) -> None:
    """bfloat16 has 8 significant bits: a few per cent at most on logits and gradients."""
    exact = make_supernet(fused=fused)
    model = make_supernet(fused=fused, precision="bf16")
    model.load_state_dict(exact.state_dict())
    train, val = make_batch(8), make_batch(8)
    logits = [m(train[0]) for m in (exact, model)]
    assert logits[1].dtype == torch.float32
    assert not torch.equal(logits[0], logits[1])
    torch.testing.assert_close(logits[1], logits[0], rtol=0.05, atol=0.05)
    for xi in (0.0, 0.01):
        a, b = (
            alpha_gradient(m, train, val, fairness=lambda w: 0 * w.sum(), xi=xi).gradient
            for m in (exact, model)
        )
        assert b.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)
        assert cosine > 0.98
    grads, _, _ = weight_gradient(model, train)
    assert {g.dtype for g in grads} == {torch.float32}


def test_finite_differences_are_taken_in_fp32(
    make_supernet: Callable, make_batch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The difference at w ± εv would drown in bfloat16's rounding."""
    model = make_supernet(fused=True, precision="bf16")
    forward, seen = SuperNet.forward, []

    def spy(self: SuperNet, *args: Tensor) -> Tensor:
        seen.append(self.precision)
        return forward(self, *args)

    monkeypatch.setattr(SuperNet, "forward", spy)
    batch = make_batch()
    alpha_gradient(model, batch, batch, fairness=lambda w: w.sum(), xi=0.1)
    assert seen == ["bf16", "bf16", "fp32", "fp32"]
    assert model.precision == "bf16"
