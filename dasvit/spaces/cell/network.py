"""The derived network: encoders of one genotype, stacked; registered with timm."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from timm.models import build_model_with_cfg, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import global_pool_nlc
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dasvit.spaces.cell.edges import DerivedCell
from dasvit.spaces.cell.embedding import ImageEmbedding, fit_embedding
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES, Genotype
from dasvit.spaces.cell.operations import init_linear
from dasvit.spaces.cell.tokens import TokenSelector, check_selection

__all__ = ["DASViT", "resolve_genotype"]

POOLS = ("token", "avg", "max", "avgmax", "")


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


class DASViT(nn.Module):
    """`depth` encoders of a genotype between an embedding and LayerNorm + Linear on CLS.

    Arguments, attributes and methods have the names and the meaning of timm's VisionTransformer.

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
        ValueError: an operation that is unknown or does not fit `embed_dim`, or an unknown pool.
    """

    def __init__(
        self,
        genotype: Genotype | dict[str, Any] | str | Path = "dasvit_cifar10",
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 768,
        depth: int = 12,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        token_ratio: float = 1.0,
        token_where: str = "input",
        dynamic_img_size: bool = False,
    ) -> None:
        super().__init__()
        check_selection(token_ratio, token_where)
        self.genotype = resolve_genotype(genotype)
        self.in_chans, self.num_classes = in_chans, num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 1
        self.token_ratio, self.token_where = token_ratio, token_where
        self.dynamic_img_size = dynamic_img_size
        self.grad_checkpointing = False
        self.embedding = ImageEmbedding(
            image_size=img_size,
            patch_size=patch_size,
            in_channels=in_chans,
            dim=embed_dim,
            dynamic=dynamic_img_size,
        )
        selects = token_ratio < 1
        self.selector = (
            TokenSelector(embed_dim, token_ratio) if selects and token_where == "input" else None
        )
        self.cells = nn.ModuleList(
            DerivedCell(
                self.genotype,
                embed_dim,
                dropout=proj_drop_rate,
                drop_path=drop_path_rate * layer / max(1, depth - 1),
                edge_token_ratio=token_ratio if token_where == "edge" else 1.0,
            )
            for layer in range(depth)
        )
        self.feature_info: list[dict[str, Any]] = [
            {"module": f"cells.{i}", "num_chs": embed_dim, "reduction": patch_size}
            for i in range(depth)
        ]
        self.norm: nn.Module = nn.LayerNorm(embed_dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self) -> nn.Module:
        """The final linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one; 0 removes it. The pool stays unless one is given."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(
                    f"global_pool must be one of {', '.join(map(repr, POOLS))}, but got "
                    f"{global_pool!r}"
                )
            self.global_pool = global_pool
        self.num_classes = num_classes
        if num_classes == 0:
            self.head = nn.Identity()
            return
        head = nn.Linear(self.embed_dim, num_classes)
        init_linear(head)
        self.head = head.to(self.embedding.cls_token).train(self.training)

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Change the size of images or patches; patch weights and positions are resampled."""
        self.embedding.set_input_size(img_size, patch_size)
        for info in self.feature_info:
            info["reduction"] = self.embedding.patches.feat_ratio()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each encoder in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimisers spare from weight decay."""
        return {"embedding.cls_token", "embedding.positions"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns for layer-wise learning rates: stem, encoders one by one, end."""
        return {
            "stem": r"^embedding|^selector",
            "blocks": [(r"^cells\.(\d+)", None), (r"^norm", (99999,))],
        }

    def _start(self, images: Tensor) -> Tensor:
        tokens = self.embedding(images)
        return tokens if self.selector is None else self.selector(tokens)[0]

    def _encode(self, cell: nn.Module, before_last: Tensor, last: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint(cell, before_last, last, use_reentrant=False)
        return cell(before_last, last)

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Normalised tokens after the last encoder, CLS first."""
        before_last = last = self._start(images)
        for cell in self.cells:
            before_last, last = last, self._encode(cell, before_last, last)
        return self.norm(last)

    def forward_intermediates(
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
        take, last_index = feature_take_indices(len(self.cells), indices)
        states: list[Tensor] = []
        before_last = last = self._start(images)
        for i, cell in enumerate(self.cells[: last_index + 1] if stop_early else self.cells):
            before_last, last = last, self._encode(cell, before_last, last)
            if i in take:
                states.append(self.norm(last) if norm else last)
        patches = [state[:, 1:] for state in states]
        if output_fmt == "NCHW":
            grid = self.embedding.grid_of(images)
            patches = [
                x.transpose(1, 2).reshape(x.shape[0], -1, *grid).contiguous() for x in patches
            ]
        found: list[Any] = list(patches)
        if return_prefix_tokens:
            found = [(x, state[:, :1]) for x, state in zip(patches, states, strict=True)]
        return found if intermediates_only else (self.norm(last), found)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the encoders behind the last of `indices`, and what else is not wanted."""
        take, last_index = feature_take_indices(len(self.cells), indices)
        self.cells = self.cells[: last_index + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_head(
        self, features: Float[Tensor, "batch tokens dim"], pre_logits: bool = False
    ) -> Tensor:
        """Class logits `(batch, classes)` from the pooled tokens, or with `pre_logits` those."""
        pooled = global_pool_nlc(features, pool_type=self.global_pool, num_prefix_tokens=1)
        pooled = self.head_drop(pooled)
        return pooled if pre_logits else self.head(pooled)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        return self.forward_head(self.forward_features(images))


def checkpoint_filter_fn(state: dict[str, Tensor], model: DASViT) -> dict[str, Tensor]:
    """Weights for a network at another image or patch size."""
    return fit_embedding(state, model.embedding)


def _build(
    variant: str,
    pretrained: bool,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> DASViT:
    with nullcontext() if device is None else torch.device(device):
        model = build_model_with_cfg(
            DASViT,
            variant,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
            **kwargs,
        )
    return model if dtype is None else model.to(dtype)


_CFG: dict[str, Any] = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": None,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "fixed_input_size": True,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "first_conv": "embedding.patches.proj",
    "classifier": "head",
}
# Width of each size, and the genotype of each number of heads (both divide every width).
_WIDTHS = {"base": 768, "small": 384, "tiny": 192}
_HEADS = {"": "dasvit_cifar10", "_h12": "dasvit_imagenet100"}
default_cfgs = {
    name: dict(_CFG)
    for name in ("dasvit", *(f"dasvit_{w}{h}_patch16_224" for w in _WIDTHS for h in _HEADS))
}


def _variant(size: str, heads: str, pretrained: bool, kwargs: dict[str, Any]) -> DASViT:
    settings: dict[str, Any] = {"genotype": _HEADS[heads], "embed_dim": _WIDTHS[size], "depth": 12}
    return _build(f"dasvit_{size}{heads}_patch16_224", pretrained, **(settings | kwargs))


@register_model
def dasvit(pretrained: bool = False, **kwargs: Any) -> DASViT:
    """A derived network from `genotype=…` at any width, depth, patch and image size."""
    return _build("dasvit", pretrained, **kwargs)


@register_model
def dasvit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> DASViT:
    """The paper's encoder (8 heads) at its size: 12 layers, width 768, patch 16, 224 pixels."""
    return _variant("base", "", pretrained, kwargs)


@register_model
def dasvit_base_h12_patch16_224(pretrained: bool = False, **kwargs: Any) -> DASViT:
    """The paper's encoder with 12 heads, width 768."""
    return _variant("base", "_h12", pretrained, kwargs)


@register_model
def dasvit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> DASViT:
    """The paper's encoder (8 heads) at width 384."""
    return _variant("small", "", pretrained, kwargs)


@register_model
def dasvit_small_h12_patch16_224(pretrained: bool = False, **kwargs: Any) -> DASViT:
    """The paper's encoder with 12 heads at width 384."""
    return _variant("small", "_h12", pretrained, kwargs)


@register_model
def dasvit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> DASViT:
    """The paper's encoder (8 heads) at width 192."""
    return _variant("tiny", "", pretrained, kwargs)


@register_model
def dasvit_tiny_h12_patch16_224(pretrained: bool = False, **kwargs: Any) -> DASViT:
    """The paper's encoder with 12 heads at width 192."""
    return _variant("tiny", "_h12", pretrained, kwargs)
