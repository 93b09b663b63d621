"""Settings of training one network from scratch."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from dasvit.data.config import DataConfig
from dasvit.run.settings import Range, check_settings, require

__all__ = ["RetrainConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainConfig:
    """Training one network from scratch.

    Defaults are those of the command line: the embedded digits, on one CPU core. The paper's
    retraining phase is in the preset `cifar10`.
    """

    data: DataConfig = field(default_factory=DataConfig)
    """The images."""

    model: str = "dasvit_cifar10"
    """What to train: a named genotype, the path of a genotype file, `vit` (a plain ViT of the
    same depth, width and patches, the baseline) or the name of a timm model."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register operations of their own."""
    dim: Annotated[int, Range("[1, 65536]")] = 48
    """Embedding dimension C."""
    depth: Annotated[int, Range("[1, 1000]")] = 4
    """Encoder layers of the derived network."""
    patch_size: Annotated[int, Range("[1, 8192]")] = 2
    """Side of a patch in pixels."""
    vit_heads: Annotated[int, Range("[1, 65536]")] = 3
    """Attention heads of `vit`."""
    dropout: Annotated[float, Range("[0, 1)")] = 0.0
    """Dropout inside the operations."""
    held_out: Annotated[float, Range("[0, 1)", "0 is off")] = 0.0
    """Share of the training images, of every class alike, that is left out of training and tested
    on in place of the test images: for choosing between settings or networks, which test images
    must not decide. The seed says which images."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs images in the loss so that all classes count alike, however many images they
    have."""

    drop_path: Annotated[float, Range("[0, 1)", "0 is off")] = 0.0
    """Stochastic depth: an operation's output is dropped for an image with this probability in the
    last layer, with less in those before."""

    epochs: Annotated[int, Range("[1, inf)")] = 40
    """Epochs over the full training set."""
    warmup_epochs: Annotated[int, Range("[0, inf)")] = 4
    """Epochs of linear warm-up."""
    warmup_lr: Annotated[float, Range("(0, inf)")] = 1e-6
    """Learning rate at the first step of the warm-up (Section IV-A)."""
    batch_size: Annotated[int, Range("[1, inf)")] = 64
    """Images per step."""
    lr: Annotated[float, Range("(0, inf)")] = 4e-3
    """Learning rate after warm-up."""
    weight_decay: Annotated[float, Range("[0, inf)")] = 5e-2
    """Weight decay (Section IV-A)."""
    decay_norms: bool = True
    """Whether the weight decay acts on norms, biases, CLS and positions too."""
    grad_clip: Annotated[float, Range("[0, inf)")] = 1.0
    """Largest gradient norm; 0 does not clip."""
    label_smoothing: Annotated[float, Range("[0, 1)")] = 0.0
    """Label smoothing."""
    optimizer: str = "adamw"
    """Name of a timm optimiser (Section IV-A: AdamW)."""
    mixup: Annotated[float, Range("[0, inf)")] = 0.0
    """Alpha of mixup; 0 is off."""
    cutmix: Annotated[float, Range("[0, inf)")] = 0.0
    """Alpha of CutMix, by turns with mixup; 0 is off."""
    ema_decay: Annotated[float, Range("[0, 1)", "0 is off")] = 0.0
    """Decay of the weights' moving average, which is then what is tested and saved; 0 is off."""
    accumulate: Annotated[int, Range("[1, inf)")] = 1
    """Parts in which a batch passes through the network: less memory, the same step (but for
    batch norms)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes under bfloat16 autocast; weights and optimiser stay in fp32."""
    compile: bool = False
    """Compile the network with `torch.compile`."""
    channels_last: bool = False
    """Memory format of images and weights, faster for convolutions on a GPU."""
    checkpoint_epochs: Annotated[int, Range("[1, inf)")] = 1
    """Epochs from one checkpoint to the next; the last epoch has one too. A run that is killed
    repeats what came after, to the same end."""
    seed: Annotated[int, Range("[0, 9223372036854775807]")] = 0
    """Seed of initialisation and data order."""

    def __post_init__(self) -> None:
        check_settings(self)
        require(
            self.data.image_size % self.patch_size == 0,
            f"patch_size must divide image_size, but got patch_size={self.patch_size}, "
            f"image_size={self.data.image_size}",
        )
        require(
            self.warmup_epochs < self.epochs,
            f"warmup_epochs < epochs must hold, but got (warmup_epochs={self.warmup_epochs}, "
            f"epochs={self.epochs})",
        )
        require(
            self.warmup_lr <= self.lr,
            f"warmup_lr <= lr must hold, but got (warmup_lr={self.warmup_lr}, lr={self.lr})",
        )
        require(
            self.batch_size % self.accumulate == 0,
            f"accumulate must divide batch_size, but got (accumulate={self.accumulate}, "
            f"batch_size={self.batch_size})",
        )
        require(
            not (self.mixup or self.cutmix) or self.batch_size % 2 == 0,
            f"mixup and cutmix pair images: batch_size must be even, but got {self.batch_size}",
        )
