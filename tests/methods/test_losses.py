"""Operation fairness against Eq. 16-19 entry by entry, and by hand."""

from collections.abc import Callable

import pytest
import support.plugin_operation  # noqa: F401  (registers conv_k<int>)
import torch
from dasvit.methods.losses import fairness_loss, fairness_types, skip_loss, type_loss, type_totals
from support import reference

pytestmark = pytest.mark.usefixtures("double")

SETTINGS = {
    "skip_weight": 0.7,
    "type_weight": 1.3,
    "gamma_min": 0.2,
    "gamma_max": 0.5,
    "zeta1": 2.0,
    "zeta2": 3.0,
}
FULL = (("zero", "identity", "msa_h8", "msa_h12", "mlp_r0.5", "mlp_r3"),) * 5
PRUNED = (
    ("identity", "msa_h8", "mlp_r3"),
    ("zero", "msa_h8", "msa_h12"),
    ("identity", "mlp_r0.5", "mlp_r3"),
    ("zero", "identity", "mlp_r3"),
    ("zero", "mlp_r0.5", "mlp_r3"),
)
NO_IDENTITY = (("zero", "msa_h8", "mlp_r3"),) * 5
NO_MSA = (("identity", "mlp_r0.5", "mlp_r3"),) * 5
SPACES = {"full": FULL, "pruned": PRUNED, "no identity": NO_IDENTITY, "no msa": NO_MSA}


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("space", SPACES)
def test_equations_16_to_19(space: str, scale: float, assert_same_gradients: Callable) -> None:
    edge_ops = SPACES[space]
    for _ in range(5):
        alpha = (scale * torch.randn(5, len(edge_ops[0]))).requires_grad_()
        actual = fairness_loss(alpha.softmax(-1), edge_ops, ("msa", "mlp"), **SETTINGS)
        expected = reference.fairness(
            reference.softmax(alpha), edge_ops, ("msa", "mlp"), **SETTINGS
        )
        torch.testing.assert_close(actual, expected)
        assert_same_gradients(actual, expected, [alpha])


@pytest.mark.parametrize("name", SETTINGS)
def test_every_coefficient_counts(name: str) -> None:
    """Each one changed alone still gives the literal value, and another one than before."""
    weights = torch.tensor([[0.05, 0.05, 0.05, 0.05, 0.4, 0.4]] * 5)  # msa 0.1, mlp 0.8
    settings = SETTINGS | {name: SETTINGS[name] + 0.05}
    before = fairness_loss(weights, FULL, ("msa", "mlp"), **SETTINGS)
    after = fairness_loss(weights, FULL, ("msa", "mlp"), **settings)
    torch.testing.assert_close(after, reference.fairness(weights, FULL, ("msa", "mlp"), **settings))
    assert abs(after - before) > 1e-3


def test_closed_form() -> None:
    """One edge: identity 0.1, msa 0.1 (0.1 short of γ_min), mlp 0.75 (0.25 above γ_max)."""
    edge_ops = (("zero", "identity", "msa_h8", "mlp_r3", "mlp_r4"),)
    weights = torch.tensor([[0.05, 0.1, 0.1, 0.5, 0.25]])
    torch.testing.assert_close(skip_loss(weights, edge_ops), torch.tensor(0.1))
    totals = type_totals(weights, edge_ops, ("msa", "mlp"))
    torch.testing.assert_close(totals, {"msa": torch.tensor(0.1), "mlp": torch.tensor(0.75)})
    bounds = {k: SETTINGS[k] for k in ("gamma_min", "gamma_max", "zeta1", "zeta2")}
    torch.testing.assert_close(type_loss(totals, **bounds), torch.tensor(2.0 * 0.25 + 3.0 * 0.1))
    torch.testing.assert_close(
        fairness_loss(weights, edge_ops, ("msa", "mlp"), **SETTINGS),
        torch.tensor(0.7 * 0.1 + 1.3 * (2.0 * 0.25 + 3.0 * 0.1)),
    )


def test_uniform_weights_of_the_papers_space() -> None:
    """Eight equal weights: identity 1/8, both types 3/8, inside the default bounds."""
    names = ("zero", "identity", "msa_h8", "msa_h12", "msa_h16", "mlp_r0.5", "mlp_r3", "mlp_r4")
    weights = torch.full((5, 8), 1 / 8)
    totals = type_totals(weights, (names,) * 5, ("msa", "mlp"))
    torch.testing.assert_close(totals, {k: torch.tensor(3 / 8) for k in ("msa", "mlp")})
    loss = fairness_loss(weights, (names,) * 5, ("msa", "mlp"), **SETTINGS)
    torch.testing.assert_close(loss, torch.tensor(0.7 / 8))


def test_skip_is_a_mean_over_the_edges_that_hold_identity() -> None:
    weights = torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
    edge_ops = (
        ("identity", "msa_h8", "mlp_r3"),
        ("zero", "msa_h8", "mlp_r3"),
        ("msa_h8", "mlp_r3", "identity"),
    )
    torch.testing.assert_close(skip_loss(weights, edge_ops), torch.tensor((0.9 + 0.4) / 2))


def test_no_identity_left_is_no_skip_term() -> None:
    alpha = torch.randn(5, 3, requires_grad=True)
    loss = skip_loss(alpha.softmax(-1), NO_IDENTITY)
    assert loss.item() == 0.0
    grad = torch.autograd.grad(loss, alpha)[0]
    assert torch.equal(grad, torch.zeros_like(grad))


def test_totals_are_averaged_over_all_edges() -> None:
    weights = torch.tensor([[0.6, 0.4], [0.5, 0.5]])
    edge_ops = (("msa_h8", "mlp_r3"), ("mlp_r0.5", "mlp_r3"))
    totals = type_totals(weights, edge_ops, ("msa", "mlp"))
    torch.testing.assert_close(totals, {"msa": torch.tensor(0.3), "mlp": torch.tensor(0.7)})


def test_a_type_pruned_everywhere_counts_as_zero() -> None:
    loss = fairness_loss(
        torch.full((5, 3), 1 / 3), NO_MSA, ("msa", "mlp"), **(SETTINGS | {"skip_weight": 0.0})
    )
    torch.testing.assert_close(loss, torch.tensor(1.3 * (2.0 * (2 / 3 - 0.5) + 3.0 * 0.2)))


def test_no_types_at_all() -> None:
    edge_ops = (("zero", "identity"),) * 5
    assert fairness_types(edge_ops[0]) == ()
    loss = fairness_loss(torch.full((5, 2), 0.5), edge_ops, (), **SETTINGS)
    torch.testing.assert_close(loss, torch.tensor(0.35))


def test_types_are_kinds_without_zero_and_identity() -> None:
    assert fairness_types(FULL[0]) == ("msa", "mlp")
    names = ("mlp_r3", "zero", "conv_k3", "msa_h8", "identity", "conv_k5")
    assert set(fairness_types(names)) == {"mlp", "conv", "msa"}


def test_a_registered_operation_takes_part() -> None:
    edge_ops = (("identity", "conv_k3", "conv_k5"),) * 5
    weights = torch.tensor([[0.2, 0.5, 0.3]] * 5)
    loss = fairness_loss(weights, edge_ops, ("conv",), **SETTINGS)
    torch.testing.assert_close(loss, torch.tensor(0.7 * 0.2 + 1.3 * 2.0 * (0.8 - 0.5)))


def test_nothing_is_copied_from_the_host_after_the_first_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step of the search on a GPU would wait for such a copy."""
    alpha = torch.randn(5, len(FULL[0]), requires_grad=True)
    with torch.inference_mode():
        fairness_loss(alpha.softmax(-1), FULL, ("msa", "mlp"), **SETTINGS)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a tensor is made from host data")

    for name in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, name, refuse)
    loss = fairness_loss(alpha.softmax(-1), FULL, ("msa", "mlp"), **SETTINGS)
    loss.backward()
    assert alpha.grad is not None and alpha.grad.abs().sum() > 0
    with pytest.raises(AssertionError, match="from host data"):  # other candidates: a new mask
        fairness_loss(alpha[:, :3].softmax(-1), (FULL[0][3:],) * 5, ("msa", "mlp"), **SETTINGS)


def test_masks_are_of_the_weights_type() -> None:
    weights = torch.full((5, 3), 1 / 3)
    for dtype in (torch.float64, torch.float32, torch.float64):
        loss = fairness_loss(weights.to(dtype), PRUNED, ("msa", "mlp"), **SETTINGS)
        assert loss.dtype == dtype


def test_gradient_pushes_identity_down_and_a_starved_type_up() -> None:
    alpha = torch.tensor([[0.0, 2.0, -3.0, 0.0]] * 5, requires_grad=True)
    edge_ops = (("zero", "identity", "msa_h8", "mlp_r3"),) * 5
    loss = fairness_loss(alpha.softmax(-1), edge_ops, ("msa", "mlp"), **SETTINGS)
    grad = torch.autograd.grad(loss, alpha)[0]
    assert (grad[:, 1] > 0).all()
    assert (grad[:, 2] < 0).all()
