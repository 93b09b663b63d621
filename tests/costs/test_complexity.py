"""Parameters and multiply-adds: the paper's encoder, closed forms, and fvcore's count."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import library, nn

import dasvit.training.autoformer  # noqa: F401, registers its model with timm
from dasvit.commands.fvcore_count import fvcore_macs
from dasvit.costs import Complexity, complexity, format_count
from dasvit.methods import DARTS
from dasvit.search.model import SearchModel
from dasvit.spaces import CellSpace
from dasvit.spaces.base import Route
from dasvit.spaces.cell.derived_network import DerivedViT
from dasvit.spaces.cell.operations import build_operation

IMAGE = (3, 224, 224)
SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 2,
    "num_classes": 10,
}


def counted(params: int, linear: int, attention: int) -> Complexity:
    return Complexity(num_params=params, macs_linear=linear, macs_attention=attention)


def test_paper_encoder() -> None:
    with torch.device("meta"):  # no time for an initialisation that no count depends on
        model = timm.create_model("dasvit_base_patch16_224", num_classes=10)
    found = complexity(model, (3, 224, 224))
    tokens, dim, depth = 197, 768, 12
    # Eq. 20-22: three MLPs of ratio 0.5 (n·C² each) and one MSA (4·n·C²) a layer.
    linear = depth * 7 * tokens * dim**2 + 196 * dim * 3 * 16**2 + dim * 10
    assert found == counted(50_449_162, linear, depth * 2 * tokens**2 * dim)
    assert found.macs_linear / 1e9 == pytest.approx(9.876, abs=5e-4)
    assert found.macs_attention / 1e9 == pytest.approx(0.715, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "linear", "attention"),
    [
        ("identity", 0, 0),
        ("msa_h8", 4 * 17 * 48**2, 2 * 17**2 * 48),
        *((f"mlp_r{r:g}", int(2 * 17 * 48 * 48 * r), 0) for r in (0.5, 3)),
    ],
)
def test_every_candidate_has_its_closed_form(name: str, linear: int, attention: int) -> None:
    operation = build_operation(name, 48)
    params = sum(p.numel() for p in operation.parameters())
    assert complexity(operation, (17, 48)) == counted(params, linear, attention)


@pytest.mark.parametrize("where", ["input", "edge"])
def test_selected_tokens_are_what_is_paid_for(where: str) -> None:
    dim, patches, depth = 48, 16, 2
    kept = 8 + 1  # λ = 0.5 of the patches, and CLS
    selectors = 1 if where == "input" else depth * 4  # 4 edges a layer
    embedding_and_head = patches * dim * 3 * 8**2 + dim * 10
    found = complexity(DerivedViT(**SMALL, token_ratio=0.5, token_where=where), (3, 32, 32))
    assert found.macs_linear == (
        embedding_and_head + depth * 7 * kept * dim**2 + selectors * 2 * dim**2
    )
    assert found.macs_attention == depth * 2 * kept**2 * dim + selectors * patches * dim
    assert found.macs_total < complexity(DerivedViT(**SMALL), (3, 32, 32)).macs_total


def test_a_supernet_counts_all_its_candidates() -> None:
    names = ("zero", "identity", "msa_h2", "msa_h4", "mlp_r0.5", "mlp_r4")
    space = CellSpace(operations=names, dim=48, patch_size=8, fused=False)
    candidates = space.candidates()
    supernet = space.supernet(
        candidates.edge_ops, num_layers=2, image_size=32, in_channels=3, num_classes=10,
        route=Route(),
    )  # fmt: skip
    edges = [complexity(build_operation(name, 48), (17, 48)) for name in names]
    model = SearchModel(DARTS(), supernet, candidates)
    found = complexity(model, (3, 32, 32))
    assert found.num_params == sum(p.numel() for p in model.parameters())
    assert found.macs_linear == 10 * sum(e.macs_linear for e in edges) + 16 * 48 * 192 + 480
    assert found.macs_attention == 10 * sum(e.macs_attention for e in edges)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dasvit", SMALL | {"token_ratio": 0.5}),
        ("resnet18", {}),
        ("regnety_002", {}),
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}),
        ("cait_xxs24_224", {"img_size": 32}),
        ("tnt_s_patch16_224", {"img_size": 32, "depth": 2}),
        ("autoformer_base_patch16_224", {"img_size": 32, "num_heads": (9, 10),
                                         "mlp_ratio": (3, 4)}),
    ],
    ids=str,
)  # fmt: skip
def test_agrees_with_fvcore(name: str, settings: dict[str, Any]) -> None:
    model = timm.create_model(name, **settings).train()
    found = complexity(model, (3, 32, 32))
    assert complexity(copy.deepcopy(model).to("meta"), (3, 32, 32)) == found
    # AutoFormer multiplies tables of relative positions in a way that fvcore sees less of.
    assert fvcore_macs(model, (3, 32, 32)) == pytest.approx(found.macs_total, rel=1e-3)
    assert model.training and all(p.requires_grad and not p.is_meta for p in model.parameters())


class Function(nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor], *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.weight)


@pytest.mark.parametrize(
    ("function", "shape", "linear", "attention"),
    [  # x is (1, 5, 8)
        (lambda x, w: x @ w, (8, 3), 5 * 8 * 3, 0),
        (lambda x, w: x @ w, (8,), 5 * 8, 0),
        (lambda x, w: x @ w, (4, 1, 8, 3), 4 * 5 * 8 * 3, 0),  # a broadcast product
        (lambda x, w: torch.bmm(x, w[None]), (8, 3), 5 * 8 * 3, 0),
        (lambda x, w: torch.addmm(w, x[0], x[0].t()), (5,), 0, 5 * 8 * 5),
        (lambda x, w: torch.baddbmm(w, x, x.mT), (1, 5, 5), 0, 5 * 8 * 5),
        (lambda x, w: torch.mv(x[0], w), (8,), 5 * 8, 0),
        (lambda x, w: torch.einsum("bnc,cd->bnd", x, w), (8, 3), 5 * 8 * 3, 0),
        (lambda x, w: torch.einsum("bic,bjc->bij", x, x), (1,), 0, 5 * 5 * 8),
        (lambda x, w: torch.einsum("bic->bc", x), (1,), 0, 0),
        # The weight is copied on the way, then in another precision.
        (lambda x, w: torch.einsum("bnc,hcd->bhnd", x, w), (2, 8, 3), 2 * 5 * 8 * 3, 0),
        (lambda x, w: x.bfloat16() @ w.bfloat16(), (8, 3), 5 * 8 * 3, 0),
        # Of three, in the order in which PyTorch multiplies.
        (lambda x, w: torch.einsum("bnc,cd,de->bne", x, w, w), (8, 8), 2 * 5 * 8 * 8, 0),
        (lambda x, w: F.conv1d(x, w), (4, 5, 3), 4 * 5 * 3 * 6, 0),
        (lambda x, w: F.conv1d(x.mT, w, groups=4), (8, 2, 3), 8 * 2 * 3 * 3, 0),
        (lambda x, w: F.conv1d(x, x.expand(4, 5, 8)), (1,), 0, 4 * 5 * 8),
        (lambda x, w: F.conv_transpose1d(x, w), (5, 4, 3), 4 * 5 * 3 * 8, 0),
        (lambda x, w: torch.dot(x[0, 0], w), (8,), 8, 0),
        (lambda x, w: Square.apply(x), (1,), 0, 5 * 8 * 5),
        # Three queries, eight keys of width 5, values of width 8.
        (
            lambda x, w: F.scaled_dot_product_attention(w, x.mT, x.mT[..., :2]),
            (1, 3, 5),
            0,
            3 * 8 * (5 + 2),
        ),
    ],
)
def test_products_with_a_weight_are_linear_and_of_activations_attention(
    function: Callable[..., torch.Tensor], shape: tuple[int, ...], linear: int, attention: int
) -> None:
    found = complexity(Function(function, *shape), (5, 8))
    assert (found.macs_linear, found.macs_attention) == (linear, attention)


@pytest.mark.parametrize(
    ("model", "linear", "attention"),
    [
        (nn.LSTM(8, 4, batch_first=True), 5 * 4 * 4 * (8 + 4), 0),
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            5 * 8 * (4 * 8 + 2 * 16),
            2 * 5 * 5 * 8,
        ),
    ],
    ids=["lstm", "encoder layer"],
)
def test_torchs_own_modules_are_seen_into(model: nn.Module, linear: int, attention: int) -> None:
    found = complexity(model, (5, 8))
    assert (found.macs_linear, found.macs_attention) == (linear, attention)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x @ x.mT

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return (grad + grad.mT) @ x


@library.custom_op("mine::product", mutates_args=())
def product(x: torch.Tensor) -> torch.Tensor:
    return x @ x.mT


@product.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-2])


@pytest.mark.parametrize(
    ("function", "shape", "name"),
    [
        (lambda x, w: product(x), (1,), "mine::product"),
        (lambda x, w: F.bilinear(x, x, w), (3, 8, 8), "aten::_trilinear"),
        (lambda x, w: torch.addbmm(w, x, x.mT), (5, 5), "aten::addbmm"),
        (lambda x, w: torch.linalg.inv(w), (3, 3), "aten::linalg_inv_ex"),
    ],
)
def test_products_out_of_sight_are_reported(
    function: Callable[..., torch.Tensor], shape: tuple[int, ...], name: str
) -> None:
    with pytest.warns(UserWarning, match=f"inside {name}.* are not counted"):
        assert complexity(Function(function, *shape), (5, 8)).macs_total == 0


def test_leaves_the_model_and_the_random_state_as_they_were(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = timm.create_model("resnet18", num_classes=10, drop_rate=0.1)
    model.layer1.eval()
    modes = [m.training for m in model.modules()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    with caplog.at_level(logging.DEBUG):
        complexity(model, (3, 32, 32))
    assert [m.training for m in model.modules()] == modes
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, values[name], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not caplog.records  # fvcore's lists of operators without a count


def test_a_shared_parameter_counts_once_and_both_its_uses() -> None:
    layer = nn.Linear(8, 8)
    assert complexity(nn.Sequential(layer, layer), (5, 8)) == counted(72, 2 * 5 * 8 * 8, 0)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (768, "768"),
        (9_876_020_736, "9.88 G"),
        (9_996_000, "10.0 M"),
        (134_670_244, "134.7 M"),
    ],
)
def test_units(count: int, text: str) -> None:
    assert format_count(count) == text
