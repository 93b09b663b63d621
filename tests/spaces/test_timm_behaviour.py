"""Derived networks behave as timm's own VisionTransformer does."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from support.runs import ENCODER
from timm.models import group_parameters

import dasvit.spaces.cell.network

NAMES = [
    f"dasvit_{size}{heads}_patch16_224"
    for size in ("base", "small", "tiny")
    for heads in ("", "_h12")
]
SMALL: dict[str, Any] = {
    "genotype": ENCODER,
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 12,
    "depth": 4,
    "num_classes": 5,
}


def small(**changes: Any) -> Any:
    return timm.create_model("dasvit", **(SMALL | changes))


def images(count: int = 2, side: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, side, side)


# --- Every registered name


@pytest.mark.parametrize("name", ["dasvit", *NAMES])
def test_defaults_are_true(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    cfg = model.default_cfg
    assert cfg is model.pretrained_cfg and cfg["architecture"] == name
    state = model.state_dict()
    assert cfg["classifier"] + ".weight" in state
    assert cfg["first_conv"] + ".weight" in state
    assert model.num_classes == cfg["num_classes"] == 1000
    batch = torch.empty(2, *cfg["input_size"], device="meta")
    assert model(batch).shape == (2, 1000)
    assert model.forward_features(batch).shape == (2, 197, model.num_features)
    model.reset_classifier(0)
    assert model(batch).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert model(batch).shape == (2, 197, model.num_features)


@pytest.mark.parametrize("name", NAMES)
def test_names_say_width_and_heads(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    size = name.split("_")[1]
    assert model.embed_dim == {"base": 768, "small": 384, "tiny": 192}[size]
    assert len(model.cells) == 12
    heads = 12 if "_h12_" in name else 8
    assert f"msa_h{heads}" in model.genotype.operations
    assert set(timm.list_models("dasvit_*")) == set(NAMES)


def test_device_and_dtype_at_once() -> None:
    model = small(device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert (
        small(features_only=True, dtype=torch.float64)(images().double())[0].dtype == torch.float64
    )
    assert {p.device.type for p in small(device="cpu").parameters()} == {"cpu"}


def test_there_are_no_pretrained_weights_to_be_had() -> None:
    assert not timm.list_pretrained("dasvit*")
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        small(pretrained=True)


# --- Forward and backward


@pytest.mark.parametrize("selection", [{}, {"token_ratio": 0.5}])
def test_every_parameter_has_a_gradient(selection: dict[str, Any]) -> None:
    model = small(**selection).train()
    logits = model(images())
    assert logits.shape == (2, 5) and logits.isfinite().all()
    logits.square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing


@pytest.mark.parametrize("pool", ["token", "avg", "max", "avgmax"])
def test_the_head_is_of_the_pooled_tokens(pool: str) -> None:
    model = small(global_pool=pool).eval()
    tokens = model.forward_features(images())
    patches = tokens[:, 1:]
    expected = {
        "token": tokens[:, 0],
        "avg": patches.mean(1),
        "max": patches.amax(1),
        "avgmax": 0.5 * (patches.mean(1) + patches.amax(1)),
    }[pool]
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), expected)
    torch.testing.assert_close(model.forward_head(tokens), model.head(expected))


def test_reset_classifier_changes_the_pool_only_if_told() -> None:
    model = small(num_classes=0, global_pool="avg")
    model.reset_classifier(7)
    assert (model.global_pool, model.num_classes) == ("avg", 7)
    assert model(images()).shape == (2, 7)
    model.reset_classifier(3, "token")
    assert (model.global_pool, model.get_classifier().out_features) == ("token", 3)
    with pytest.raises(ValueError, match=r"global_pool must be one of .* but got 'mean'"):
        model.reset_classifier(3, "mean")


def test_recomputation_gives_the_same_gradients() -> None:
    model, batch = small().train(), images()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        calls: list[int] = []
        hook = model.cells[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model.zero_grad()
        model(batch).square().sum().backward()
        hook.remove()
        assert len(calls) == (2 if enable else 1)
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_channels_last() -> None:
    model, batch = small().eval(), images()
    expected = model(batch)
    model = model.to(memory_format=torch.channels_last)
    actual = model(batch.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected)


# --- Features


def test_features_only() -> None:
    model = small(features_only=True, out_indices=(0, 2)).eval()
    assert model.feature_info.channels() == [12, 12]
    assert model.feature_info.reduction() == [4, 4]
    assert model.feature_info.module_name() == ["cells.0", "cells.2"]
    maps = model(images())
    assert [tuple(m.shape) for m in maps] == [(2, 12, 4, 4)] * 2
    assert not any(name.startswith(("model.head", "model.cells.3")) for name in model.state_dict())


def test_features_only_by_default_are_the_last_three() -> None:
    model = small(features_only=True)
    assert model.feature_info.module_name() == ["cells.1", "cells.2", "cells.3"]


def test_intermediates_are_the_encoders_outputs() -> None:
    model, batch = small().eval(), images()
    seen: list[torch.Tensor] = []
    hooks = [c.register_forward_hook(lambda _, __, out: seen.append(out)) for c in model.cells]
    final = model.forward_features(batch)
    for hook in hooks:
        hook.remove()
    last, maps = model.forward_intermediates(batch)
    torch.testing.assert_close(last, final)
    for out, found in zip(seen, maps, strict=True):
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), out[:, 1:])
    (tokens, cls) = model.forward_intermediates(
        batch,
        [1],
        return_prefix_tokens=True,
        norm=True,
        stop_early=True,
        output_fmt="NLC",
        intermediates_only=True,
    )[0]
    torch.testing.assert_close(torch.cat([cls, tokens], 1), model.norm(seen[1]))


def test_pruning_keeps_what_is_asked_for() -> None:
    model, batch = small().eval(), images()
    expected = model.forward_intermediates(batch, [0, 1], intermediates_only=True)
    assert model.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    assert len(model.cells) == 2 and model.num_classes == 0
    assert isinstance(model.norm, torch.nn.Identity)
    actual = model.forward_intermediates(batch, intermediates_only=True)
    torch.testing.assert_close(actual, expected)


def test_dropped_tokens_fill_no_map() -> None:
    model = small(token_ratio=0.5).eval()
    with pytest.raises(ValueError, match=r"token_ratio=0\.5.*output_fmt='NLC'"):
        model.forward_intermediates(images())
    (tokens,) = model.forward_intermediates(images(), 1, output_fmt="NLC", intermediates_only=True)
    assert tokens.shape == (2, 8, 12)
    with pytest.raises(ValueError, match="output_fmt must be NCHW or NLC, but got 'NHWC'"):
        model.forward_intermediates(images(), output_fmt="NHWC")


# --- Image sizes


def test_positions_follow_the_image_size() -> None:
    model = small().eval()
    batch = images()
    expected = model(batch)
    model.set_input_size((24, 32))
    assert model.embedding.positions.shape == (1, 1 + 6 * 8, 12)
    assert model(torch.randn(2, 3, 24, 32)).shape == (2, 5)
    with pytest.raises(AssertionError, match="doesn't match model"):
        model(batch)
    model = small().eval()
    model.load_state_dict(model.state_dict())
    model.set_input_size(16)
    assert model(batch).shape == expected.shape
    model.set_input_size(16, patch_size=8)
    assert model.embedding.patches.proj.weight.shape == (12, 3, 8, 8)
    assert model.feature_info[0]["reduction"] == 8
    assert model(batch).shape == (2, 5)


def test_dynamic_image_size_equals_a_resized_network() -> None:
    model = small(dynamic_img_size=True).eval()
    fixed = small().eval()
    fixed.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(images()).shape, fixed(images()).shape)
    same, other = images(), torch.randn(2, 3, 24, 8)
    torch.testing.assert_close(model(same), fixed(same))
    fixed.set_input_size((24, 8))
    torch.testing.assert_close(model(other), fixed(other))
    maps = model.forward_intermediates(other, 1, intermediates_only=True)
    assert maps[0].shape == (2, 12, 6, 2)


def test_weights_of_another_image_size_are_resampled(tmp_path: Path) -> None:
    model = small().eval()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    overlay = {"file": str(path), "num_classes": 5, "input_size": (3, 16, 16)}
    larger = small(pretrained=True, pretrained_cfg_overlay=overlay, img_size=32).eval()
    resized = small().eval()
    resized.load_state_dict(model.state_dict())
    resized.set_input_size(32)
    batch = images(side=32)
    torch.testing.assert_close(larger(batch), resized(batch))
    assert not torch.equal(larger.embedding.positions[:, 1:17], model.embedding.positions[:, 1:])
    coarser = small(pretrained=True, pretrained_cfg_overlay=overlay, patch_size=8)
    assert coarser.embedding.positions.shape == (1, 5, 12)
    with pytest.raises(ValueError, match="6 positions, which is no square"):
        dasvit.spaces.cell.network.checkpoint_filter_fn(
            {"embedding.positions": torch.zeros(1, 7, 12)}, model
        )


def test_checkpoint_path(tmp_path: Path) -> None:
    model = small().eval()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    again = small(checkpoint_path=str(path)).eval()
    batch = images()
    assert torch.equal(model(batch), again(batch))


# --- What timm's optimisers and PyTorch's tracers ask


def test_groups_cover_every_parameter_in_order() -> None:
    model = small(token_ratio=0.5)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    assert groups["embedding.positions"] == groups["selector.key.weight"] == 0
    layers = [groups[f"cells.{i}.edges.0.norm.weight"] for i in range(4)]
    assert layers == sorted(set(layers)) and layers[0] > 0
    assert groups["head.weight"] >= groups["norm.weight"] >= layers[-1]
    assert model.no_weight_decay() <= set(groups)


def test_torch_export_and_fx() -> None:
    model, batch = small().eval(), images()
    program = torch.export.export(model, (batch,)).module()
    torch.testing.assert_close(program(batch), model(batch))
    graph = timm.models.create_feature_extractor(model, {"cells.1": "middle"})
    (middle,) = graph(batch).values()
    (expected,) = model.forward_intermediates(batch, [1], output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(middle[:, 1:], expected)
