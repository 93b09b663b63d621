"""The derived network: its equations, its size, and that it is a ViT of timm's in all else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from support import reference
from timm.models import group_parameters

from dasvit.spaces.cell.derived_network import resolve_genotype
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES, Edge, Genotype

ENCODER = Genotype(
    ((Edge(0, "msa_h2"), Edge(1, "mlp_r2")), (Edge(1, "identity"), Edge(2, "msa_h4")))
)
OUT_OF_ORDER = Genotype(
    (
        (Edge(1, "mlp_r2"), Edge(0, "msa_h2")),
        (Edge(2, "identity"), Edge(1, "mlp_r0.5")),
        (Edge(3, "msa_h4"), Edge(0, "identity"), Edge(2, "mlp_r2")),
    )
)
WIDTHS = {
    "dasvit": 768,
    "dasvit_base_patch16_224": 768,
    "dasvit_small_patch16_224": 384,
    "dasvit_tiny_patch16_224": 192,
}


def small(**changes: Any) -> Any:
    """Four layers of width 8 on images of 16 × 16, 16 patches."""
    settings: dict[str, Any] = {
        "genotype": ENCODER,
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 8,
        "depth": 4,
        "num_classes": 5,
    }
    return timm.create_model("dasvit", **(settings | changes))


def images(height: int = 16, width: int | None = None) -> torch.Tensor:
    return torch.randn(2, 3, height, width or height)


# --- What it computes


@pytest.mark.parametrize(
    ("token_ratio", "token_where"), [(1.0, "input"), (0.5, "input"), (0.5, "edge")]
)
@pytest.mark.parametrize("genotype", [ENCODER, OUT_OF_ORDER], ids=["in order", "out of order"])
@pytest.mark.usefixtures("double")
def test_literal_derived_network(
    genotype: Genotype,
    token_ratio: float,
    token_where: str,
    randomise: Callable,
    assert_same_gradients: Callable,
) -> None:
    settings = {"token_ratio": token_ratio, "token_where": token_where, "depth": 3}
    model, batch = randomise(small(genotype=genotype, img_size=12, **settings)), images(12)
    actual, params = model(batch), list(model.parameters())
    assert_same_gradients(actual, reference.derived(model, batch), params)
    torch.autograd.grad(actual.sum(), params)  # raises for one that takes no part


@pytest.mark.parametrize("genotype", ["dasvit_cifar10", "dasvit_imagenet100"])
def test_the_papers_encoder_has_50_4_million_parameters(genotype: str) -> None:
    width, hidden = 768, 384
    perceptron = 2 * width + width * hidden + hidden + hidden * width + width
    attention = 2 * width + 4 * (width * width + width)
    embedding = 16 * 16 * 3 * width + width + width + (196 + 1) * width
    head = 2 * width + width * 10 + 10
    model = timm.create_model(
        "dasvit_base_patch16_224", genotype=genotype, num_classes=10, device="meta"
    )
    count = sum(p.numel() for p in model.parameters())
    assert 12 * (3 * perceptron + attention) + embedding + head == 50_449_162 == count


def test_initial_weights() -> None:
    """Xavier-uniform linears, without bias; CLS and positions of deviation 0.02; norms 1 and 0."""
    model = small(embed_dim=96, token_ratio=0.5)
    for name, p in model.named_parameters():
        if name in ("cls_token", "pos_embed"):
            assert p.std().item() == pytest.approx(0.02, rel=0.2)
        elif p.dim() > 1:
            out = len(p) // 3 if "qkv" in name else len(p)  # three matrices in one
            bound = (6 / (out + p[0].numel())) ** 0.5
            assert 0.9 * bound < p.abs().max().item() <= bound, name
        else:
            assert bool((p == float(name.endswith("norm.weight"))).all()), name


def test_dropout_in_the_operations_and_before_the_head() -> None:
    model = small(drop_rate=0.2, proj_drop_rate=0.3, drop_path_rate=0.3)
    assert model.head_drop.p == 0.2
    assert {m.p for m in model.blocks.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


# --- Genotypes and names


def test_a_genotype_its_dictionary_its_name_and_its_file(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    ENCODER.save(path)
    for genotype in (ENCODER, ENCODER.to_dict(), path, str(path)):
        assert small(genotype=genotype).genotype == ENCODER
    named = small(genotype="dasvit_imagenet100", embed_dim=24)
    assert named.genotype == NAMED_GENOTYPES["dasvit_imagenet100"]


def test_genotypes_that_cannot_be_are_errors(tmp_path: Path) -> None:
    for genotype in ("dasvit_mnist", tmp_path / "missing.json"):
        with pytest.raises(ValueError, match=r"neither a shipped genotype .*dasvit_cifar10") as e:
            small(genotype=genotype)
        assert str(genotype) in str(e.value)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json"):
        resolve_genotype(str(tmp_path / "broken.json"))
    with pytest.raises(ValueError, match="genotype is not a genotype"):
        resolve_genotype({})
    with pytest.raises(ValueError, match=r"msa_h4.*dim=6"):
        small(embed_dim=6)


@pytest.mark.parametrize("name", WIDTHS)
def test_registered_names(name: str) -> None:
    assert set(timm.list_models("dasvit*")) == set(WIDTHS)
    model = timm.create_model(name, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert (len(model.blocks), model.embed_dim) == (12, WIDTHS[name])
    assert model.genotype == NAMED_GENOTYPES["dasvit_cifar10"]
    cfg = model.pretrained_cfg
    assert cfg["architecture"] == name
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert isinstance(model.get_submodule(cfg["first_conv"]), torch.nn.Conv2d)
    assert cfg["input_size"] == (3, *model.patch_embed.img_size) == (3, 224, 224)
    assert cfg["num_classes"] == model.num_classes == model.head.out_features == 1000


def test_there_are_no_pretrained_weights() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        small(pretrained=True)


# --- Behaviour of a timm model


@pytest.mark.parametrize("pool", ["token", "avg", "max", "avgmax", ""])
def test_pool_and_head(pool: str) -> None:
    model = small(global_pool=pool).eval().double()
    batch = images().double()
    tokens = model.forward_features(batch)
    assert tokens.shape == (2, 17, 8)
    patches = tokens[:, 1:]
    pooled = {
        "token": tokens[:, 0],
        "avg": patches.mean(1),
        "max": patches.amax(1),
        "avgmax": 0.5 * (patches.mean(1) + patches.amax(1)),
        "": tokens,
    }[pool]
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), pooled)
    torch.testing.assert_close(model(batch), model.head(pooled))
    model.reset_classifier(7)
    assert model.num_classes == 7 and model.head.weight.abs().max() <= (6 / 15) ** 0.5
    assert model(batch).shape == (*pooled.shape[:-1], 7)
    model.reset_classifier(0)
    assert torch.equal(model(batch), pooled)
    assert small(global_pool=pool, num_classes=0)(images()).shape == pooled.shape


def test_recomputation_gives_the_same_gradients() -> None:
    model, batch = small(), images()
    gradients = []
    calls: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        gradients.append(torch.autograd.grad(model(batch).square().sum(), [*model.parameters()]))
    assert len(calls) == 1 + 2
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_features_only() -> None:
    model = small(features_only=True, out_indices=(0, 2)).eval()
    assert model.feature_info.channels() == [8, 8] and model.feature_info.reduction() == [4, 4]
    assert model.feature_info.module_name() == ["blocks.0", "blocks.2"]
    assert [tuple(m.shape) for m in model(images())] == [(2, 8, 4, 4)] * 2
    assert not any(name.startswith(("model.head", "model.blocks.3")) for name in model.state_dict())


def test_intermediates_are_the_encoders_outputs() -> None:
    model, batch = small().eval(), images()
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out))
    last, maps = model.forward_intermediates(batch)
    for out, found in zip(seen, maps, strict=True):
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), out[:, 1:])
    options = {"norm": True, "stop_early": True, "output_fmt": "NLC", "intermediates_only": True}
    ((tokens, cls),) = model.forward_intermediates(batch, [1], return_prefix_tokens=True, **options)
    torch.testing.assert_close(torch.cat([cls, tokens], 1), model.norm(seen[1]))
    torch.testing.assert_close(last, model.forward_features(batch))
    assert model.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    assert len(model.blocks) == 2 and model.num_classes == 0
    torch.testing.assert_close(
        model.forward_intermediates(batch, intermediates_only=True), maps[:2]
    )


def test_dropped_tokens_fill_no_map() -> None:
    model = small(token_ratio=0.5).eval()
    with pytest.raises(ValueError, match=r"token_ratio=0\.5.*output_fmt='NLC'"):
        model.forward_intermediates(images())
    (tokens,) = model.forward_intermediates(images(), 1, output_fmt="NLC", intermediates_only=True)
    assert tokens.shape == (2, 8, 8)
    with pytest.raises(ValueError, match="output_fmt must be NCHW or NLC, but got 'NHWC'"):
        model.forward_intermediates(images(), output_fmt="NHWC")


@pytest.mark.parametrize("selection", [{}, {"token_ratio": 0.5}])
def test_other_image_and_patch_sizes(selection: dict[str, Any], tmp_path: Path) -> None:
    """For good, from image to image, and of weights on disk: always the same numbers."""
    dynamic = small(dynamic_img_size=True, **selection).eval()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(dynamic.state_dict(), path)
    overlay = {"file": str(path), "num_classes": 5, "input_size": (3, 16, 16)}
    for size in ((16, 16), (32, 32), (24, 8)):
        resized = small(**selection).eval()
        resized.load_state_dict(dynamic.state_dict())
        resized.set_input_size(size)
        batch = images(*size)
        torch.testing.assert_close(dynamic(batch), resized(batch))
        loaded = small(pretrained=True, pretrained_cfg_overlay=overlay, img_size=size, **selection)
        torch.testing.assert_close(loaded.eval()(batch), resized(batch))
        if size != (16, 16):
            with pytest.raises(AssertionError, match="doesn't match model"):
                resized(images(16))
    if not selection:
        maps = dynamic.forward_intermediates(images(24, 8), 1, intermediates_only=True)
        assert maps[0].shape == (2, 8, 6, 2)
    coarser = small(pretrained=True, pretrained_cfg_overlay=overlay, patch_size=8, **selection)
    dynamic.set_input_size(16, patch_size=8)
    torch.testing.assert_close(coarser.eval()(batch := images()), dynamic(batch))


def test_parameter_groups() -> None:
    model = small(token_ratio=0.5)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    assert groups["pos_embed"] == groups["selector.key.weight"] == 0
    layers = [groups[f"blocks.{i}.edges.0.norm.weight"] for i in range(4)]
    assert layers == sorted(set(layers)) and layers[0] > 0
    assert groups["head.weight"] >= groups["norm.weight"] >= layers[-1]
    assert {"cls_token", "pos_embed"} <= model.no_weight_decay()
