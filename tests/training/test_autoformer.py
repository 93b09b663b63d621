"""AutoFormer-B: its size, its relative attention against a literal version, timm's behaviour."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dasvit.costs import complexity
from dasvit.training.autoformer import AutoFormer, RelativeAttention

NAME = "autoformer_base_patch16_224"
TINY: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 24,
    "num_heads": (2, 3),
    "mlp_ratio": (2.0, 3.5),
    "head_dim": 8,
    "num_classes": 5,
}


def relation(
    rows: Tensor, columns: Tensor, i: int, j: int, grid: tuple[int, int], reach: int
) -> Tensor:
    """The entry that token i adds for token j; token 0 is CLS."""
    if i == 0 or j == 0:
        return rows[0] + columns[0]
    (row_i, column_i), (row_j, column_j) = (divmod(t - 1, grid[1]) for t in (i, j))
    down = max(-reach, min(reach, row_j - row_i))
    right = max(-reach, min(reach, column_j - column_i))
    return rows[down + reach + 1] + columns[right + reach + 1]


def literal_attention(module: RelativeAttention, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pair by pair: a_ij = softmax_j q_i·(k_j + r^K_ij)/√d, then the sum of a_ij (v_j + r^V_ij)."""
    batch, tokens, _ = x.shape
    d, reach = module.head_dim, module.max_distance
    images = []
    for b in range(batch):
        q, k, v = (x[b] @ module.qkv.weight.T + module.qkv.bias).chunk(3, dim=1)
        heads = []
        for h in range(module.heads):
            part = slice(h * d, (h + 1) * d)
            out = []
            for i in range(tokens):
                pairs = [(i, j, grid, reach) for j in range(tokens)]
                keys = [relation(module.key_rows, module.key_columns, *pair) for pair in pairs]
                scores = [q[i, part] @ (k[j, part] + keys[j]) / math.sqrt(d) for j in range(tokens)]
                a = torch.stack(scores).softmax(0)
                values = [
                    relation(module.value_rows, module.value_columns, *pair) for pair in pairs
                ]
                out.append(sum(a[j] * (v[j, part] + values[j]) for j in range(tokens)))
            heads.append(torch.stack(out))
        images.append(torch.cat(heads, dim=1) @ module.proj.weight.T + module.proj.bias)
    return torch.stack(images)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("grid", "reach"), [((2, 3), 14), ((3, 2), 1), ((1, 1), 14)], ids=["wide", "clipped", "one"]
)
def test_attention_equals_the_literal_one(
    grid: tuple[int, int],
    reach: int,
    randomise: Callable[[nn.Module], nn.Module],
    assert_same_gradients: Callable[..., None],
) -> None:
    module = RelativeAttention(10, 3, head_dim=4, grid=grid, max_distance=reach)
    randomise(module)
    x = torch.randn(2, 1 + grid[0] * grid[1], 10, requires_grad=True)
    actual, expected = module(x), literal_attention(module, x, grid)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(actual)
    assert_same_gradients(
        (actual * weight).sum(),
        (expected * weight).sum(),
        [x, *module.parameters()],
        rtol=1e-9,
        atol=1e-11,
    )


def test_costs_of_the_published_network() -> None:
    """As published, with the parameters of 100 classes; the multiply-adds in closed form."""
    with torch.device("meta"):
        model = timm.create_model(NAME, num_classes=100)
    tokens, places, c, d, heads, ratios = 197, 14 + 14 + 1, 576, 64, 130, 50
    found = complexity(model, (3, 224, 224))
    assert found.num_params == 53_172_388
    assert found.macs_linear == (
        tokens * (4 * c * d * heads + 2 * c * c * ratios) + 196 * 3 * 16**2 * c + c * 100
    )
    tables = 2 * tokens * places * d * heads
    assert found.macs_attention == 2 * tokens**2 * (d + places) * heads + tables
    # As its authors compute it, with a vector for every pair of tokens.
    literal = found.macs_linear + 2 * 2 * tokens**2 * d * heads
    assert literal / 1e9 == pytest.approx(11.69, abs=5e-3)


def test_behaves_as_a_timm_model() -> None:
    model = timm.create_model(NAME, **TINY).eval()
    images = torch.randn(2, 3, 16, 16)
    tokens = model.forward_features(images)
    assert tokens.shape == (2, 17, 24)
    features = model.forward_head(tokens, pre_logits=True)
    torch.testing.assert_close(features, tokens[:, 1:].mean(1))  # the patches', without CLS
    torch.testing.assert_close(model(images), model.get_classifier()(features))
    maps = timm.create_model(NAME, **TINY, features_only=True, out_indices=(0, 1))(images)
    assert [m.shape for m in maps] == [(2, 24, 4, 4)] * 2
    again = timm.create_model(NAME, **TINY).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images), model(images))
    model.set_input_size((24, 16))
    assert model(torch.randn(2, 3, 24, 16)).shape == (2, 5)
    grey = timm.create_model(NAME, **(TINY | {"in_chans": 1, "num_classes": 0}))
    assert grey(torch.randn(2, 1, 16, 16)).shape == (2, 24)


def test_recomputation_dropout_and_gradients() -> None:
    model = AutoFormer(**TINY, proj_drop_rate=0.5, drop_path_rate=0.5)
    images = torch.randn(2, 3, 16, 16)
    assert not torch.equal(model(images), model(images))
    model.eval()

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(model(images).square().sum(), list(model.parameters())))

    plain = gradients()
    assert all(g.count_nonzero() for g in plain)  # every parameter takes part
    model.set_grad_checkpointing()
    torch.testing.assert_close(gradients(), plain)


def test_as_many_ratios_as_heads() -> None:
    with pytest.raises(ValueError, match="got 3 and 2"):
        AutoFormer(num_heads=(1, 1, 1), mlp_ratio=(1.0, 1.0))
