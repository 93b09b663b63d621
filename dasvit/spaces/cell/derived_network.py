"""The derived network: encoders of one genotype, stacked; registered with timm."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from timm.models import build_model_with_cfg, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dasvit.spaces.cell.edges import DerivedCell
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES, Genotype
from dasvit.spaces.cell.operations import init_linear
from dasvit.spaces.cell.tokens import TokenSelector, check_selection, init_embedding

__all__ = ["DerivedViT", "resolve_genotype"]


def resolve_genotype(genotype: Genotype | dict[str, Any] | str | Path) -> Genotype:
    """A genotype from itself, its `to_dict`, the name of a shipped one, or the path of a file.

    Raises:
        ValueError: neither a name nor a readable genotype file.
    """
    if isinstance(genotype, Genotype):
        return genotype
    if isinstance(genotype, dict):
        return Genotype.from_dict(genotype)
    if str(genotype) in NAMED_GENOTYPES:
        return NAMED_GENOTYPES[str(genotype)]
    if not Path(genotype).exists():
        raise ValueError(
            f"{genotype!s} is neither a shipped genotype ({', '.join(NAMED_GENOTYPES)}) nor a file"
        )
    return Genotype.load(genotype)


class DerivedViT(VisionTransformer):
    """timm's ViT with the encoder of a genotype: each block reads the outputs of the two before it.

    Embedding, positions, pooling, head and all methods are timm's; the blocks have no residual
    around them but where the genotype has `identity`.

    Args:
        genotype: the encoder: a `Genotype`, its `to_dict`, a shipped one's name, or a file.
        img_size: side of the images in pixels, or (height, width).
        patch_size: side of a patch in pixels.
        in_chans: 1 for grey images, 3 for RGB.
        num_classes: outputs of the head; 0 for none (the pooled features come out).
        global_pool: what the head sees of the normalised tokens: "token" (CLS), "avg", "max" or
            "avgmax" over the patch tokens, or "" for all tokens.
        embed_dim: embedding dimension C.
        depth: encoder layers.
        drop_rate: dropout before the head.
        proj_drop_rate: dropout inside the operations.
        drop_path_rate: stochastic depth of the last layer; it grows linearly from 0 at the first.
        token_ratio: λ in (0, 1]; below 1 the network selects tokens as the supernet does.
        token_where: "input" or "edge".
        dynamic_img_size: take images of every size that patches fill, positions resampled.

    Raises:
        ValueError: an operation that is unknown or does not fit `embed_dim`.
    """

    def __init__(
        self,
        genotype: Genotype | dict[str, Any] | str | Path = "dasvit_cifar10",
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Any = "token",
        embed_dim: int = 768,
        depth: int = 12,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        token_ratio: float = 1.0,
        token_where: str = "input",
        dynamic_img_size: bool = False,
    ) -> None:
        check_selection(token_ratio, token_where)
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=0,
            global_pool=global_pool,
            embed_dim=embed_dim,
            depth=0,
            num_heads=1,
            fc_norm=False,
            dynamic_img_size=dynamic_img_size,
            drop_rate=drop_rate,
            weight_init="skip",
            norm_layer=nn.LayerNorm,
        )
        self.genotype = resolve_genotype(genotype)
        self.token_ratio, self.token_where = token_ratio, token_where
        assert self.cls_token is not None and self.pos_embed is not None
        init_embedding(self.patch_embed.proj, self.cls_token, self.pos_embed)
        selects = token_ratio < 1
        self.selector = (
            TokenSelector(embed_dim, token_ratio) if selects and token_where == "input" else None
        )
        # A list: each block takes two inputs.
        self.blocks: Any = nn.ModuleList(
            DerivedCell(
                self.genotype,
                embed_dim,
                dropout=proj_drop_rate,
                drop_path=drop_path_rate * layer / max(1, depth - 1),
                edge_token_ratio=token_ratio if token_where == "edge" else 1.0,
            )
            for layer in range(depth)
        )
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": patch_size}
            for i in range(depth)
        ]
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one; 0 removes it. The pool stays unless one is given."""
        super().reset_classifier(num_classes, global_pool)
        if isinstance(self.head, nn.Linear):
            init_linear(self.head)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns for layer-wise learning rates; the token selector is of the stem."""
        groups = super().group_matcher(coarse)
        return groups | {"stem": f"{groups['stem']}|^selector"}

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tokens that the encoders see, and their gate."""
        tokens = self._pos_embed(self.patch_embed(images))
        if self.selector is None:
            return tokens, None
        tokens, _, gate = self.selector(tokens)
        return tokens, gate

    def _encode(
        self, block: nn.Module, before_last: Tensor, last: Tensor, gate: Tensor | None
    ) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint(block, before_last, last, gate, use_reentrant=False)
        return block(before_last, last, gate)

    def forward(  # type: ignore[override], here and below: encoders take no attention mask
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        return self.forward_head(self.forward_features(images))

    def forward_features(  # type: ignore[override]
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Normalised tokens after the last encoder, CLS first."""
        tokens, gate = self._embed(images)
        before_last = last = tokens
        for block in self.blocks:
            before_last, last = last, self._encode(block, before_last, last, gate)
        return self.norm(last)

    def forward_intermediates(  # type: ignore[override]
        self,
        images: Float[Tensor, "batch channels height width"],
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Outputs `e_k` of some encoders, and the normalised tokens after the last.

        Args:
            indices: the last n encoders, those of these numbers, or all.
            return_prefix_tokens: give (patch tokens, CLS) pairs.
            norm: normalise the outputs with the final norm.
            stop_early: go no further than the last encoder asked for.
            output_fmt: "NCHW" for maps `(batch, dim, rows, columns)`, "NLC" for patch tokens.
            intermediates_only: without the final tokens.

        Raises:
            ValueError: another format, or maps of a network that drops tokens at its input.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, but got {output_fmt!r}")
        if output_fmt == "NCHW" and self.selector is not None:
            raise ValueError(
                f"with token_ratio={self.token_ratio} at the input the kept tokens fill no map; "
                "ask for output_fmt='NLC'"
            )
        take, last_index = feature_take_indices(len(self.blocks), indices)
        found: list[Any] = []
        tokens, gate = self._embed(images)
        before_last = last = tokens
        for i, block in enumerate(self.blocks[: last_index + 1] if stop_early else self.blocks):
            before_last, last = last, self._encode(block, before_last, last, gate)
            if i not in take:
                continue
            state = self.norm(last) if norm else last
            patches = state[:, 1:]
            if output_fmt == "NCHW":
                grid = self.patch_embed.dynamic_feat_size((images.shape[2], images.shape[3]))
                patches = patches.transpose(1, 2).unflatten(2, grid).contiguous()
            found.append((patches, state[:, :1]) if return_prefix_tokens else patches)
        return found if intermediates_only else (self.norm(last), found)


default_cfgs: dict[str, dict[str, Any]] = {
    f"dasvit{name}": {
        "url": "",
        "architecture": f"dasvit{name}",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    for name in ("", *(f"_{size}_patch16_224" for size in ("base", "small", "tiny")))
}


def _build(
    variant: str,
    pretrained: bool,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> DerivedViT:
    with nullcontext() if device is None else torch.device(device):
        model = build_model_with_cfg(
            DerivedViT,
            variant,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
            **kwargs,
        )
    return model if dtype is None else model.to(dtype)


@register_model
def dasvit(pretrained: bool = False, **kwargs: Any) -> DerivedViT:
    """A derived network from `genotype=…` at any width, depth, patch and image size."""
    return _build("dasvit", pretrained, **kwargs)


@register_model
def dasvit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> DerivedViT:
    """The paper's encoder (8 heads) at its size: 12 layers, width 768, patch 16, 224 pixels."""
    return _build("dasvit_base_patch16_224", pretrained, **kwargs)


@register_model
def dasvit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> DerivedViT:
    """The paper's encoder (8 heads) at width 384."""
    kwargs.setdefault("embed_dim", 384)
    return _build("dasvit_small_patch16_224", pretrained, **kwargs)


@register_model
def dasvit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> DerivedViT:
    """The paper's encoder (8 heads) at width 192."""
    kwargs.setdefault("embed_dim", 192)
    return _build("dasvit_tiny_patch16_224", pretrained, **kwargs)
