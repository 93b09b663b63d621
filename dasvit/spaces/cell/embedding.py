"""Images to tokens at sizes other than the trained one: positions resampled, as timm's ViT does."""

from jaxtyping import Float
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from dasvit.spaces.cell.tokens import TokenEmbedding

__all__ = ["ImageEmbedding", "fit_embedding"]


class ImageEmbedding(TokenEmbedding):
    """A `TokenEmbedding` whose images may change size.

    Args:
        image_size: side in pixels, or (height, width); multiples of `patch_size`.
        patch_size: side of a patch in pixels.
        in_channels: 1 for grey images, 3 for RGB.
        dim: embedding dimension C.
        dynamic: take images of every size that patches fill, their positions resampled
            (bicubic, antialiased) in each forward pass.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int,
        in_channels: int,
        dim: int,
        dynamic: bool = False,
    ) -> None:
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            in_channels=in_channels,
            dim=dim,
        )
        self.dynamic = dynamic
        self.patches.strict_img_size = not dynamic

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across at the embedding's own image size."""
        assert self.patches.grid_size is not None
        rows, columns = self.patches.grid_size
        return rows, columns

    def grid_of(self, images: Float[Tensor, "batch channels height width"]) -> tuple[int, int]:
        """Patches down and across of these images."""
        return self.patches.dynamic_feat_size((images.shape[2], images.shape[3]))

    def patch_tokens(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch patches dim"]:
        """The patches through timm's convolution, which takes and exports images of every size."""
        return self.patches(images)

    def positions_of(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "1 tokens dim"]:
        """Positions on the images' grid, that of CLS first."""
        if not self.dynamic:
            return self.positions
        return resample_abs_pos_embed(
            self.positions,
            new_size=list(self.grid_of(images)),
            old_size=list(self.grid),
            num_prefix_tokens=1,
        )

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Change the size of images or patches for good; weights and positions are resampled."""
        before = self.grid
        if isinstance(img_size, int):
            img_size = (img_size, img_size)
        self.patches.set_input_size(img_size=img_size, patch_size=patch_size)
        if self.grid != before:
            self.positions = nn.Parameter(
                resample_abs_pos_embed(
                    self.positions.detach(),
                    new_size=list(self.grid),
                    old_size=list(before),
                    num_prefix_tokens=1,
                ),
                requires_grad=self.positions.requires_grad,
            )


def fit_embedding(state: dict[str, Tensor], embedding: ImageEmbedding) -> dict[str, Tensor]:
    """A derived network's weights with patches and positions resampled to an embedding's sizes.

    Args:
        state: of a network on square images, names as in its `state_dict`.

    Raises:
        ValueError: the number of positions is no square, yet differs from the embedding's.
    """
    fitted = dict(state)
    weight, positions = "embedding.patches.proj.weight", "embedding.positions"
    size = list(embedding.patches.proj.weight.shape[-2:])
    if weight in state and list(state[weight].shape[-2:]) != size:
        fitted[weight] = resample_patch_embed(state[weight], size)
    if positions in state and state[positions].shape[1] != embedding.positions.shape[1]:
        patches = state[positions].shape[1] - 1
        side = round(patches**0.5)
        if side * side != patches:
            raise ValueError(
                f"the weights have {patches} positions, which is no square, and the network has "
                f"{embedding.num_patches}; load them at the image size they were trained at"
            )
        fitted[positions] = resample_abs_pos_embed(
            state[positions],
            new_size=list(embedding.grid),
            old_size=[side, side],
            num_prefix_tokens=1,
        )
    return fitted
