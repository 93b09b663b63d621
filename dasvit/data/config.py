"""Which images a run takes, and how they reach the network."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dasvit.run.settings import Range, check_settings

__all__ = ["DataConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images, where they lie, and how they reach the network.

    Defaults are those of the command line, the embedded digits; the paper's are in the preset
    `cifar10`.
    """

    dataset: str = "digits"
    """Name of the data set: digits (embedded), fashion_mnist, cifar10, cifar100, imagenet100, or
    folder (any images, one folder per class)."""
    data_dir: str | None = None
    """Folder that holds the data set (not needed for digits)."""
    download: bool = False
    """Fetch the data set into `data_dir` if it is not there (torchvision data sets only)."""
    image_size: Annotated[int, Range("[1, 8192]")] = 8
    """Side of the square images in pixels after resizing (paper: 224)."""
    augment: Literal["none", "shift", "crop_flip", "resized_crop", "rand"] = "none"
    """Training augmentation: none, shift (random translation by up to an eighth of the side),
    crop_flip (the same and a horizontal flip), resized_crop (8 to 100 % of the area, and a flip),
    rand (crop_flip, then RandAugment)."""
    test_fraction: Annotated[float, Range("(0, 1)")] = 0.2
    """Share of each class that is held out for testing where an image folder has no test images;
    always the same images."""
    in_memory: Literal["auto", "yes", "no"] = "auto"
    """Whether an image folder's images are held on the device: auto up to 2 GiB in uint8; else
    they stream from their files."""
    num_workers: Annotated[int, Range("[0, 256]")] = 2
    """Processes that decode images which stream from their files."""

    def __post_init__(self) -> None:
        check_settings(self)
