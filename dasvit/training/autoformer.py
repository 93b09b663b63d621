"""AutoFormer-B, a comparator of Table I that timm does not have; registered with timm here.

Chen et al., "AutoFormer: Searching Transformers for Visual Recognition", ICCV 2021: a pre-norm
ViT whose layers have their own number of heads and MLP ratio, with absolute positions and, in every
attention, 2-D relative positions for keys and values. Sizes and the place of the relative positions
are those of the authors' repository (microsoft/Cream, AutoFormer), which trains with the mean of
the patch tokens before the head.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import DropPath, Mlp, trunc_normal_
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer, init_weights_vit_timm
from torch import Tensor, nn

__all__ = ["AutoFormer", "RelativeAttention", "relative_index"]

BASE_HEADS = (9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10)
BASE_MLP_RATIOS = (3.5, 3.5, 4.0, 3.5, 4.0, 3.5, 3.5, 3.0, 4.0, 4.0, 3.0, 4.0, 3.0, 3.5)


def relative_index(
    grid: tuple[int, int], max_distance: int
) -> tuple[Int[Tensor, "tokens rows"], Int[Tensor, "tokens columns"]]:
    """Where the tables of relative positions are read: for every token, by row and by column of
    the other one.

    Args:
        grid: rows and columns of patches; CLS comes before them.
        max_distance: distances beyond it, in patches, count as it.

    Returns:
        Entry 0 for CLS, `distance + max_distance + 1` for patches.
    """
    patch = torch.arange(grid[0] * grid[1])

    def entries(at: Tensor, count: int) -> Tensor:
        distance = torch.arange(count)[None] - at[:, None]
        shifted = distance.clamp(-max_distance, max_distance) + max_distance + 1
        return F.pad(shifted, (0, 0, 1, 0))  # (1 + patches, count)

    return entries(patch // grid[1], grid[0]), entries(patch % grid[1], grid[1])


def _places(grid: tuple[int, int]) -> Float[Tensor, "tokens places"]:
    """Where each token lies: one-hot row, one-hot column, and whether it is CLS."""
    patch = torch.arange(grid[0] * grid[1])
    row, column = F.one_hot(patch // grid[1], grid[0]), F.one_hot(patch % grid[1], grid[1])
    patches = F.pad(torch.cat([row, column], dim=1), (0, 1, 1, 0))
    patches[0, -1] = 1
    return patches.to(torch.get_default_dtype())


class RelativeAttention(nn.Module):
    """Multi-head attention whose keys and values depend on where two patches lie to each other.

    With r_ij = rows[row_j − row_i] + columns[column_j − column_i], one such table for keys (K) and
    one for values (V), shared by the heads:

        a_ij = softmax_j(q_i · (k_j + r^K_ij) / √d),    out_i = Σ_j a_ij (v_j + r^V_ij)

    Pairs with CLS take entry 0 of both tables. r_ij depends on j by its row and its column alone,
    so q_i · r^K_ij is one product with the place of j (one-hot row, one-hot column): keys and
    values are lengthened by their places, queries by q_i · r^K, and the whole is a plain attention
    without an N × N × d tensor.

    Args:
        dim: embedding dimension C.
        heads: number of heads.
        head_dim: width d of a head; heads · d need not be C.
        grid: rows and columns of patches.
        max_distance: distances beyond it, in patches, count as it.
        proj_drop: dropout on the output.
    """

    row_index: Tensor
    column_index: Tensor
    places: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        head_dim: int = 64,
        grid: tuple[int, int],
        max_distance: int = 14,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.head_dim, self.max_distance = heads, head_dim, max_distance
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.key_rows, self.key_columns, self.value_rows, self.value_columns = (
            nn.Parameter(trunc_normal_(torch.empty(2 * max_distance + 2, head_dim), std=0.02))
            for _ in range(4)
        )
        self.set_grid(grid)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Take another number of patches; the tables stay as they are."""
        device = self.key_rows.device
        tensors = (*relative_index(grid, self.max_distance), _places(grid).to(self.key_rows.dtype))
        for name, tensor in zip(("row_index", "column_index", "places"), tensors, strict=True):
            self.register_buffer(name, tensor.to(device), persistent=False)

    def _relative(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "tokens places dim"]:
        """For every token, what it adds by the other one's row, its column, and if that is CLS."""
        cls = (rows[0] + columns[0]).expand(len(self.places), 1, -1)
        return torch.cat([rows[self.row_index], columns[self.column_index], cls], dim=1)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (batch, heads, tokens, head_dim)
        key_relative = self._relative(self.key_rows, self.key_columns)
        value_relative = self._relative(self.value_rows, self.value_columns)
        by_place = torch.einsum("bhtd,tpd->bhtp", q, key_relative)
        places = self.places.to(k.dtype).expand(batch, self.heads, -1, -1)
        out = F.scaled_dot_product_attention(
            torch.cat([q, by_place], dim=-1),
            torch.cat([k, places], dim=-1),
            torch.cat([v, places], dim=-1),
            scale=self.head_dim**-0.5,
        )
        out, weight_of_place = out.split([self.head_dim, places.shape[-1]], dim=-1)
        out = out + torch.einsum("bhtp,tpd->bhtd", weight_of_place, value_relative)
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(batch, tokens, -1)))


class AutoFormerBlock(nn.Module):
    """Pre-norm encoder layer with residuals: relative attention, then a perceptron with GELU."""

    def __init__(
        self, dim: int, attn: RelativeAttention, *, mlp_ratio: float, drop: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class AutoFormer(VisionTransformer):
    """A ViT of timm's with a number of heads and an MLP ratio for each layer.

    Args:
        embed_dim: embedding dimension C.
        num_heads: heads of each layer; their count is the depth.
        mlp_ratio: hidden width over C of each layer.
        head_dim: width of a head.
        max_distance: largest relative distance in patches.
        global_pool: "avg" (mean of the patch tokens, as the authors train it) or "token" (CLS).
        proj_drop_rate: dropout inside the layers.
        drop_path_rate: stochastic depth of the last layer; linear from 0 at the first.
        options: timm's, with its meaning: `img_size`, `patch_size`, `in_chans`, `num_classes`,
            `drop_rate`.

    Raises:
        ValueError: not as many ratios as heads.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 576,
        num_heads: Sequence[int] = BASE_HEADS,
        mlp_ratio: Sequence[float] = BASE_MLP_RATIOS,
        head_dim: int = 64,
        max_distance: int = 14,
        global_pool: Any = "avg",
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        if len(num_heads) != len(mlp_ratio):
            raise ValueError(
                f"num_heads and mlp_ratio must name as many layers, but got {len(num_heads)} and "
                f"{len(mlp_ratio)}"
            )
        super().__init__(
            embed_dim=embed_dim,
            depth=0,
            num_heads=1,
            norm_layer=nn.LayerNorm,
            fc_norm=False,
            global_pool=global_pool,
            **options,
        )
        depth = len(num_heads)
        self.blocks = nn.Sequential(
            *(
                AutoFormerBlock(
                    embed_dim,
                    RelativeAttention(
                        embed_dim,
                        heads,
                        head_dim=head_dim,
                        grid=self.patch_embed.grid_size,
                        max_distance=max_distance,
                        proj_drop=proj_drop_rate,
                    ),
                    mlp_ratio=ratio,
                    drop=proj_drop_rate,
                    drop_path=drop_path_rate * layer / max(1, depth - 1),
                )
                for layer, (heads, ratio) in enumerate(zip(num_heads, mlp_ratio, strict=True))
            )
        )
        self.blocks.apply(init_weights_vit_timm)
        trunc_normal_(self.cls_token, std=0.02)
        self.feature_info = [
            {
                "module": f"blocks.{i}",
                "num_chs": embed_dim,
                "reduction": self.patch_embed.patch_size[0],
            }
            for i in range(depth)
        ]

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Take images or patches of another size: positions are resampled, distances counted
        anew."""
        super().set_input_size(img_size, patch_size)
        for module in self.modules():
            if isinstance(module, RelativeAttention):
                module.set_grid(self.patch_embed.grid_size)


default_cfgs = {
    "autoformer_base_patch16_224": {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
}


@register_model
def autoformer_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> AutoFormer:
    """AutoFormer-B: 14 layers, width 576, 9 or 10 heads of 64, MLP ratios 3 to 4."""
    return build_model_with_cfg(
        AutoFormer,
        "autoformer_base_patch16_224",
        pretrained,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **kwargs,
    )
