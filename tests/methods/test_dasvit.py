"""DASViT's fairness term against Eq. 16-19, entry by entry and by hand; its bounds in a sweep."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import support.plugin_operation  # noqa: F401  registers conv_k<int>
import torch
from support import reference
from torch import Tensor
from torch.testing import assert_close

from dasvit.methods import DASViT
from dasvit.methods.dasvit import skip_loss, type_totals
from dasvit.run.settings import SettingError
from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.candidates import Candidates

pytestmark = pytest.mark.usefixtures("double")

SETTINGS = {
    "skip_weight": 0.7,
    "type_weight": 1.3,
    "gamma_min": 0.2,
    "gamma_max": 0.5,
    "zeta1": 2.0,
    "zeta2": 3.0,
}
METHOD = DASViT(**SETTINGS)
OPERATIONS = ("zero", "identity", "msa_h8", "msa_h12", "mlp_r0.5", "mlp_r3")
SPACES = {
    "full": (OPERATIONS,) * 5,
    "pruned": (
        ("identity", "msa_h8", "mlp_r3"),
        ("zero", "msa_h8", "msa_h12"),
        ("identity", "mlp_r0.5", "mlp_r3"),
        ("zero", "identity", "mlp_r3"),
        ("zero", "mlp_r0.5", "mlp_r3"),
    ),
    "no identity": (("zero", "msa_h8", "mlp_r3"),) * 5,
    "no msa": (("identity", "mlp_r0.5", "mlp_r3"),) * 5,
}


def of(edge_ops: EdgeOps, operations: tuple[str, ...] = OPERATIONS) -> Candidates:
    return Candidates(edge_ops=edge_ops, operations=operations)


def penalty(weights: Tensor, candidates: Candidates, method: DASViT = METHOD) -> Tensor:
    return method.penalty({}, weights, candidates, weights.new_zeros(()))


@pytest.mark.parametrize("type_scope", ["mean", "edge"])
@pytest.mark.parametrize("edge_ops", SPACES.values(), ids=SPACES)
def test_equations_16_to_19(
    edge_ops: EdgeOps, type_scope: str, assert_same_gradients: Callable
) -> None:
    settings = SETTINGS | {"type_scope": type_scope}
    for scale in (0.1, 1.0, 1.0, 5.0, 5.0):
        alpha = (scale * torch.randn(5, len(edge_ops[0]))).requires_grad_()
        actual = penalty(alpha.softmax(-1), of(edge_ops), DASViT(**settings))
        expected = reference.fairness(
            reference.softmax(alpha), edge_ops, ("msa", "mlp"), **settings
        )
        assert_same_gradients(actual, expected, [alpha])


def test_closed_form() -> None:
    """One edge: identity 0.1, msa 0.1 (0.1 short of γ_min), mlp 0.75 (0.25 above γ_max)."""
    candidates = of((("zero", "identity", "msa_h8", "mlp_r3", "mlp_r4"),))
    weights = torch.tensor([[0.05, 0.1, 0.1, 0.5, 0.25]])
    assert_close(skip_loss(weights, candidates), torch.tensor(0.1))
    totals = {"msa": torch.tensor(0.1), "mlp": torch.tensor(0.75)}
    assert_close(type_totals(weights, candidates, "mean"), totals)
    expected = 0.7 * 0.1 + 1.3 * (2.0 * 0.25 + 3.0 * 0.1)
    assert_close(penalty(weights, candidates), torch.tensor(expected))
    figures = METHOD.figures({}, weights, candidates, torch.tensor(0.5))
    assert figures == pytest.approx({"type/msa": 0.1, "type/mlp": 0.75})


def test_edges_that_are_far_apart_are_fair_in_the_mean_alone() -> None:
    """One edge all attention, one all perceptron: their mean is within the bounds. By itself each
    edge has one type 0.5 above γ_max and the other 0.2 below γ_min, and a gradient."""
    candidates = of((("zero", "msa_h8", "mlp_r3"),) * 2)
    alpha = torch.tensor([[-40.0, 40.0, -40.0], [-40.0, -40.0, 40.0]], requires_grad=True)
    weights = alpha.softmax(-1)
    assert_close(penalty(weights, candidates), torch.tensor(0.0))
    each = replace(METHOD, type_scope="edge")
    assert_close(penalty(weights, candidates, each), torch.tensor(1.3 * (2.0 * 0.5 + 3.0 * 0.2)))
    for method, count in ((METHOD, 0), (each, 2)):
        weights = torch.tensor([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], requires_grad=True)
        penalty(weights, candidates, method).backward()
        assert weights.grad is not None and weights.grad.any(dim=1).sum() == count


def test_types_are_the_spaces_own() -> None:
    names = ("mlp_r3", "zero", "conv_k3", "identity", "conv_k5")
    assert of((), names).types == ("mlp", "conv") and of(()).types == ("msa", "mlp")
    own, none = ("identity", "conv_k3", "conv_k5"), ("zero", "identity")
    loss = penalty(torch.tensor([[0.2, 0.5, 0.3]] * 5), of((own,) * 5, own))
    assert_close(loss, torch.tensor(0.7 * 0.2 + 1.3 * 2.0 * (0.8 - 0.5)))
    assert_close(penalty(torch.full((5, 2), 0.5), of((none,) * 5, none)), torch.tensor(0.35))


def test_nothing_is_copied_from_the_host_after_the_first_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step of the search on a GPU would wait for such a copy."""
    alpha, candidates = torch.randn(5, 6, requires_grad=True), of(SPACES["full"])
    with torch.inference_mode():
        penalty(alpha.softmax(-1), candidates)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a tensor is made from host data")

    for name in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, name, refuse)
    for method in (METHOD, replace(METHOD, type_scope="edge")):
        penalty(alpha.softmax(-1), candidates, method).backward()
    with pytest.raises(AssertionError, match="from host data"):  # other candidates: a new mask
        penalty(alpha.softmax(-1), of((OPERATIONS[::-1],) * 5))


def test_masks_are_of_the_weights_type() -> None:
    for dtype in (torch.float64, torch.float32, torch.float64):
        weights = torch.full((5, 3), 1 / 3, dtype=dtype)
        assert penalty(weights, of(SPACES["pruned"])).dtype == dtype


def test_gamma_max_is_drawn_as_a_share_of_what_gamma_min_leaves() -> None:
    drawn = METHOD.drawn({"gamma_min": 0.4, "gamma_fraction": 0.5})
    assert (drawn.gamma_min, drawn.gamma_max) == (0.4, pytest.approx(0.7))
    for draw, message in (
        ({"gamma_max": 0.6, "gamma_fraction": 0.5}, "give gamma_max or gamma_fraction, not both"),
        ({"gamma_fraction": 1.5}, r"gamma_fraction must lie in \(0, 1\], but got 1\.5"),
        ({"gamma_min": 0.5}, r"but got \(gamma_min=0\.5, gamma_max=0\.5\)"),
    ):
        with pytest.raises(SettingError, match=message):
            METHOD.drawn(draw)
    for bound, message in (
        ({"gamma_max": 0.0}, "--gamma-max 0 leaves --gamma-min no room"),
        ({"gamma_min": 1.0}, "--gamma-min 1 leaves --gamma-max no room"),
    ):
        with pytest.raises(SettingError, match=message):
            METHOD.make_room(bound)


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [
        ({"gamma_max": 0.1}, 0.1 * 0.2 / 0.5, 0.5),
        ({"gamma_min": 0.6}, 0.2, 0.6 + 0.375 * 0.4),
        ({"gamma_min": 0.6, "gamma_max": 0.7}, 0.2, 0.5),
    ],
)
def test_a_given_bound_makes_itself_room(given: dict[str, float], low: float, high: float) -> None:
    moved = METHOD.make_room(given)
    assert (moved.gamma_min, moved.gamma_max) == pytest.approx((low, high))
