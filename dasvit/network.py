"""The derived network: encoders of one genotype, stacked; registered with timm."""

from pathlib import Path
from typing import Any

from jaxtyping import Float
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from dasvit.cell import DerivedCell
from dasvit.genotype import NAMED_GENOTYPES, Genotype
from dasvit.ops import init_linear
from dasvit.tokens import TokenEmbedding, TokenSelector, check_selection

__all__ = ["DASViT", "resolve_genotype"]


def resolve_genotype(genotype: Genotype | str | Path) -> Genotype:
    """A genotype from itself, the name of a shipped one, or the path of a file.

    Raises:
        ValueError: neither a name nor a readable genotype file.
    """
    if isinstance(genotype, Genotype):
        return genotype
    if str(genotype) in NAMED_GENOTYPES:
        return NAMED_GENOTYPES[str(genotype)]
    if not Path(genotype).exists():
        raise ValueError(
            f"{genotype!s} is neither a shipped genotype ({', '.join(NAMED_GENOTYPES)}) nor a file"
        )
    return Genotype.load(genotype)


class DASViT(nn.Module):
    """`depth` encoders of a genotype between an embedding and LayerNorm + Linear on CLS.

    Arguments have timm's names.

    Args:
        genotype: the encoder: a `Genotype`, a shipped one's name, or a file.
        img_size: side of the images in pixels.
        patch_size: side of a patch in pixels.
        in_chans: 1 for grey images, 3 for RGB.
        num_classes: outputs of the head; 0 for none (the CLS features come out).
        embed_dim: embedding dimension C.
        depth: encoder layers.
        drop_rate: dropout inside the operations.
        drop_path_rate: stochastic depth of the last layer; it grows linearly from 0 at the first.
        token_ratio: λ in (0, 1]; below 1 the network selects tokens as the supernet does.
        token_where: "input" or "edge".

    Raises:
        ValueError: an operation that is unknown or does not fit `embed_dim`.
    """

    def __init__(
        self,
        genotype: Genotype | str | Path = "dasvit_cifar10",
        *,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        token_ratio: float = 1.0,
        token_where: str = "input",
    ) -> None:
        super().__init__()
        check_selection(token_ratio, token_where)
        self.genotype = resolve_genotype(genotype)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.embedding = TokenEmbedding(
            image_size=img_size, patch_size=patch_size, in_channels=in_chans, dim=embed_dim
        )
        selects = token_ratio < 1
        self.selector = (
            TokenSelector(embed_dim, token_ratio) if selects and token_where == "input" else None
        )
        self.cells = nn.ModuleList(
            DerivedCell(
                self.genotype,
                embed_dim,
                dropout=drop_rate,
                drop_path=drop_path_rate * layer / max(1, depth - 1),
                edge_token_ratio=token_ratio if token_where == "edge" else 1.0,
            )
            for layer in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.head: nn.Module
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """The final linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a fresh one; 0 removes it."""
        self.num_classes = num_classes
        if num_classes == 0:
            self.head = nn.Identity()
            return
        head = nn.Linear(self.embed_dim, num_classes)
        init_linear(head)
        self.head = head.to(self.norm.weight)

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Normalised tokens after the last encoder, CLS first."""
        tokens = self.embedding(images)
        if self.selector is not None:
            tokens, _ = self.selector(tokens)
        before_last, last = tokens, tokens
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        return self.norm(last)

    def forward_head(
        self, features: Float[Tensor, "batch tokens dim"], pre_logits: bool = False
    ) -> Tensor:
        """Class logits `(batch, classes)` from CLS, or with `pre_logits` its features."""
        cls = features[:, 0]
        return cls if pre_logits else self.head(cls)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        return self.forward_head(self.forward_features(images))


def _cfg(**values: Any) -> dict[str, Any]:
    return {
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
        **values,
    }


default_cfgs = {"dasvit": _cfg(), "dasvit_base_patch16_224": _cfg()}


@register_model
def dasvit(pretrained: bool = False, **kwargs: Any) -> DASViT:
    """A derived network from `genotype=…` at any width, depth, patch and image size."""
    return build_model_with_cfg(DASViT, "dasvit", pretrained, **kwargs)


@register_model
def dasvit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> DASViT:
    """The paper's encoder (8 heads) at its size: 12 layers, width 768, patch 16, 224 pixels."""
    settings: dict[str, Any] = {
        "genotype": "dasvit_cifar10",
        "embed_dim": 768,
        "depth": 12,
        "patch_size": 16,
    }
    return build_model_with_cfg(
        DASViT, "dasvit_base_patch16_224", pretrained, **(settings | kwargs)
    )
