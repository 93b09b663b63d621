"""Which images a run takes, and how they reach the network."""

from dataclasses import dataclass
from typing import Literal

from dasvit.setting import check_numbers, require

__all__ = ["DataConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images, where they lie, and how they reach the network."""

    dataset: str = "cifar10"
    """Name of the data set: digits (embedded), fashion_mnist, cifar10, cifar100, imagenet100."""
    data_dir: str | None = None
    """Folder that holds the data set (not needed for digits)."""
    download: bool = False
    """Fetch the data set into `data_dir` if it is not there (torchvision data sets only)."""
    image_size: int = 224
    """Side of the square images in pixels after resizing (paper: 224)."""
    augment: Literal["none", "shift", "crop_flip"] = "crop_flip"
    """Training augmentation: none, shift (random translation by up to an eighth of the side),
    crop_flip (the same and a horizontal flip). Paper gap."""
    num_workers: int = 2
    """Processes that decode images of data sets too large for memory (imagenet100)."""

    def __post_init__(self) -> None:
        check_numbers(self)
        require(self.image_size >= 1, f"image_size must be at least 1, but got {self.image_size}")
        require(
            self.augment in ("none", "shift", "crop_flip"),
            f"augment must be none, shift or crop_flip, but got {self.augment!r}",
        )
        require(self.num_workers >= 0, f"num_workers must be >= 0, but got {self.num_workers}")
