"""From images to tokens (Eq. 23, 24), and attention-based partial token selection (III-C)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import PatchEmbed
from torch import Tensor, nn

from dasvit.spaces.cell.operations import init_linear

__all__ = [
    "TokenEmbedding",
    "TokenSelector",
    "check_selection",
    "init_embedding",
    "num_selected",
    "scatter_tokens",
]


class TokenEmbedding(nn.Module):
    """Images to `Z_0`: linear patch embedding, CLS prepended, learned positions added.

    Args:
        image_size: side in pixels, or (height, width); multiples of `patch_size`.
        patch_size: side of a patch in pixels.
        in_channels: 1 for grey images, 3 for RGB.
        dim: embedding dimension C.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int,
        in_channels: int,
        dim: int,
    ) -> None:
        super().__init__()
        self.patches = PatchEmbed(image_size, patch_size, in_channels, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, self.num_patches + 1, dim))
        init_embedding(self.patches.proj, self.cls_token, self.positions)

    @property
    def num_patches(self) -> int:
        """N, the number of patch tokens."""
        assert self.patches.num_patches is not None
        return self.patches.num_patches

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """`(batch, channels, height, width)` to `(batch, 1 + N, dim)`.

        Raises:
            ValueError: the images have another size.
        """
        batch, channels, height, width = images.shape
        if (height, width) != self.patches.img_size:
            raise ValueError(
                f"images must be {self.patches.img_size}, but got {(height, width)} pixels"
            )
        # One matrix product: as a convolution it was 4 % of a step on a GPU (docs/performance.md).
        proj = self.patches.proj
        down, across = proj.kernel_size
        pieces = images.reshape(batch, channels, height // down, down, width // across, across)
        pieces = pieces.permute(0, 2, 4, 1, 3, 5).reshape(batch, self.num_patches, -1)
        tokens = F.linear(pieces, proj.weight.flatten(1), proj.bias)
        return torch.cat([self.cls_token.expand(batch, -1, -1), tokens], dim=1) + self.positions


def init_embedding(
    proj: nn.Conv2d, cls_token: Float[Tensor, "1 1 dim"], positions: Float[Tensor, "1 tokens dim"]
) -> None:
    """Draw the patches' projection Xavier-uniform, as the linear layer that the convolution stands
    for, then CLS and positions from a normal distribution of standard deviation 0.02."""
    nn.init.xavier_uniform_(proj.weight.view(proj.out_channels, -1))
    assert proj.bias is not None
    nn.init.zeros_(proj.bias)
    nn.init.normal_(cls_token, std=0.02)
    nn.init.normal_(positions, std=0.02)


def check_selection(token_ratio: float, token_where: str) -> None:
    """Raise ValueError unless λ lies in (0, 1] and `token_where` is "input" or "edge"."""
    if not 0 < token_ratio <= 1:
        raise ValueError(
            f"token_ratio (λ) must lie in (0, 1], but got {token_ratio}; 1 selects all tokens"
        )
    if token_where not in ("input", "edge"):
        raise ValueError(f"token_where must be input or edge, but got {token_where!r}")


def num_selected(num_patches: int, token_ratio: float) -> int:
    """k = ⌊λN⌋, at least 1."""
    # λN in floating point can fall just short of a whole number (0.7 · 10 = 6.999…).
    return max(1, math.floor(token_ratio * num_patches + 1e-9))


class TokenSelector(nn.Module):
    """Keeps CLS and the k = ⌊λN⌋ patch tokens with the highest scores, in their order.

    Scores are Eq. 13-15 over the patch tokens, computed by linearity as
    `s = (X W_Q)(mean_j X W_K)ᵀ/√C`: O(NC), no N×N matrix. TopK passes no gradient to W_Q and W_K.
    So every operation multiplies what it reads of a kept token by a straight-through gate: 1
    forward, the gradient of `sigmoid(s_I)` backward. MSA and MLP do so behind their LayerNorm,
    which would undo a scale (`apply_gated`).

    Args:
        dim: embedding dimension C.
        token_ratio: λ in (0, 1].
    """

    def __init__(self, dim: int, token_ratio: float) -> None:
        super().__init__()
        check_selection(token_ratio, "input")
        self.token_ratio = token_ratio
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        init_linear(self.query)
        init_linear(self.key)

    def scores(self, patches: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch patches"]:
        """Eq. 15 for every patch token."""
        mean_key = self.key(patches.mean(dim=1))  # (batch, dim): the mean of X W_K, by linearity
        # (X W_Q)·k̄ = X·(W_Qᵀ k̄): one product with a vector instead of N.
        direction = mean_key @ self.query.weight  # (batch, dim)
        return torch.einsum("bnc,bc->bn", patches, direction) / math.sqrt(patches.shape[-1])

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"]
    ) -> tuple[
        Float[Tensor, "batch kept dim"],
        Int[Tensor, "batch kept"],
        Float[Tensor, "batch kept 1"] | None,
    ]:
        """The kept tokens `X[I]` `(batch, 1 + k, dim)`, CLS first, their positions in `tokens`, and
        their gate; None where nothing takes a gradient."""
        patches = tokens[:, 1:]
        scores = self.scores(patches)
        k = num_selected(patches.shape[1], self.token_ratio)
        index = scores.topk(k, dim=1).indices.sort(dim=1).values  # (batch, k), order kept
        kept = patches.gather(1, index.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        kept = torch.cat([tokens[:, :1], kept], dim=1)
        positions = F.pad(index + 1, (1, 0))
        if not scores.requires_grad:
            return kept, positions, None
        gate = scores.gather(1, index).sigmoid()
        gate = F.pad(gate - gate.detach() + 1, (1, 0), value=1.0)  # exactly 1 forward
        return kept, positions, gate.unsqueeze(-1)


def scatter_tokens(
    tokens: Float[Tensor, "batch tokens dim"],
    kept: Float[Tensor, "batch kept dim"],
    index: Int[Tensor, "batch kept"],
) -> Float[Tensor, "batch tokens dim"]:
    """`tokens` with the rows at `index` replaced by `kept`; the others bypass unchanged."""
    rows = index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return tokens.scatter(1, rows, kept.to(tokens.dtype))  # under autocast an edge may end in bf16
