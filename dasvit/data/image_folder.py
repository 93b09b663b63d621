"""Folders of images: what lies in them, by class, and which of it can be read.

Three layouts: `train/<class>/` with `test/<class>/` or `val/<class>/`; `train/<class>/` alone; and
`<class>/` alone. Without test images a fixed stratified part is held out, always the same.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from dasvit.run.files import first_line
from dasvit.run.seed import generator

__all__ = ["FoundImages", "Sample", "find_images", "is_grey", "map_images", "open_image"]

Sample = tuple[str, int]
"""Path and label of an image."""

TEST_FOLDERS = ("test", "val")
"""Where test images are looked for, in this order."""
_THREADS = 8
_GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundImages:
    """The images of a folder, by path, not read yet.

    Attributes:
        classes: names of the classes' folders, sorted; a label is an index.
        train, test: images, sorted by class and name.
        root: the folder.
    """

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    root: Path

    def without(self, bad: Sequence[str]) -> "FoundImages":
        """The same without some paths.

        Raises:
            ValueError: a class is left with no image in training or in test.
        """
        gone = set(bad)
        left = replace(
            self,
            train=tuple(s for s in self.train if s[0] not in gone),
            test=tuple(s for s in self.test if s[0] not in gone),
        )
        for part, samples in (("training", left.train), ("test", left.test)):
            missing = set(range(len(self.classes))) - {label for _, label in samples}
            if missing:
                names = ", ".join(self.classes[label] for label in sorted(missing)[:5])
                raise ValueError(
                    f"{self.root}: none of the {part} images of class {names} can be read"
                )
        return left


def find_images(
    root: Path,
    *,
    test_fraction: float,
    classes: tuple[str, ...] = (),
    test_folders: Sequence[str] = TEST_FOLDERS,
) -> FoundImages:
    """List a folder of images.

    Args:
        root: in one of the three layouts.
        test_fraction: share of each class that is held out where there is no folder of test
            images; by a fixed seed, the same images in every run.
        classes: only these; the folder may hold others, as ImageNet's does.
        test_folders: names to look for; one without class folders is passed over.

    Raises:
        ValueError: no classes, one class, a class without images, or test images of other classes.
    """
    base = root / "train" if (root / "train").is_dir() else root
    wanted, classes = classes, classes or _class_names(base)
    if not classes:
        raise ValueError(
            f"{root} has no class folders; expected {root}/train/<class>/ or {root}/<class>/ with "
            f"images ({', '.join(IMG_EXTENSIONS)})"
        )
    if len(classes) == 1:
        raise ValueError(
            f"{base} has one class only ({classes[0]}); a classifier needs two or more"
        )
    train = _samples(base, classes)
    folders = (root / name for name in test_folders if (root / name).is_dir())
    given = next((folder for folder in folders if _class_names(folder)), None)
    if base == root or given is None:
        train, test = _hold_out(train, classes, test_fraction)
        return FoundImages(classes=classes, train=train, test=test, root=root)
    if (other := wanted or _class_names(given)) != classes:
        odd = sorted(set(other) ^ set(classes))
        raise ValueError(
            f"{given} and {base} must hold the same classes; only one has {', '.join(odd[:5])}"
            f"{' …' if len(odd) > 5 else ''}"
        )
    return FoundImages(classes=classes, train=train, test=_samples(given, classes), root=root)


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    )


def _samples(folder: Path, classes: Sequence[str]) -> tuple[Sample, ...]:
    samples: list[Sample] = []
    for label, name in enumerate(classes):
        paths = sorted(
            str(path)
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in IMG_EXTENSIONS
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
        if not paths:
            raise ValueError(
                f"class {name} has no images in {folder / name}; add some, or remove the folder"
            )
        samples += ((path, label) for path in paths)
    return tuple(samples)


def _hold_out(
    samples: tuple[Sample, ...], classes: Sequence[str], fraction: float
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    train: list[Sample] = []
    test: list[Sample] = []
    for label, name in enumerate(classes):
        own = [sample for sample in samples if sample[1] == label]
        if len(own) < 2:
            raise ValueError(
                f"class {name} has a single image; one to train on and one to test on are needed"
            )
        order = torch.randperm(len(own), generator=generator("test images", name)).tolist()
        count = min(len(own) - 1, max(1, round(fraction * len(own))))
        held = set(order[:count])
        for i, sample in enumerate(own):
            (test if i in held else train).append(sample)
    return tuple(train), tuple(test)


def open_image(path: str) -> Image.Image:
    """The decoded image, turned as its EXIF data say.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except Exception as error:  # bytes that are no image fail in any way
        raise OSError(f"{path} is not a readable image ({first_line(error)})") from None


def is_grey(image: Image.Image) -> bool:
    """Whether the file has one channel of light."""
    return image.mode in _GREY_MODES


def map_images(
    function: Callable[[Image.Image], T], paths: Sequence[str]
) -> Iterator[tuple[str, T | None]]:
    """`function` of every image in order, by several threads; None for one that cannot be read or
    that `function` cannot take."""

    def one(path: str) -> T | None:
        try:
            return function(open_image(path))
        except Exception:  # as in `open_image`
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        chunk = 64 * _THREADS  # so that a large folder's images are not all on their way at once
        for start in range(0, len(paths), chunk):
            part = paths[start : start + chunk]
            yield from zip(part, pool.map(one, part), strict=True)
