"""Folders of images as a data set: held in memory where they are small, streamed where not.

Three layouts: `train/<class>/` with `test/<class>/` or `val/<class>/`; `train/<class>/` alone; and
`<class>/` alone. Without test images a fixed stratified part is held out, always the same.

Every image is decoded once before anything is trained: what cannot be read is left out and named
then, not after hours. For a folder that streams, the outcome is kept in a cache file and holds as
long as no file's size or time changes.
"""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as V

from dasvit.data.config import DataConfig
from dasvit.data.images import read_images, square_pixels
from dasvit.data.splits import ImageData, data_from_arrays
from dasvit.data.stream import FolderSplit, Sample
from dasvit.run.files import write_atomic
from dasvit.run.seed import generator

__all__ = ["IN_MEMORY_BYTES", "FoundImages", "find_class_images", "folder_data"]

TEST_FOLDERS = ("test", "val", "valid", "validation")
"""Where test images are looked for, in this order."""
IN_MEMORY_BYTES = 2 * 2**30
"""Folders whose images at `image_size` take less are held in memory, in uint8."""
UNEVEN = 10
"""From how many times as many training images in one class as in another one is warned."""
_RECORD = "dasvit/folder/3"


@dataclass(frozen=True, slots=True)
class FoundImages:
    """The images of a folder, by path, not read yet.

    Attributes:
        root: the folder.
        classes: names of the classes' folders, sorted; a label is an index.
        train, test: images, sorted by class and name.
        other: images in formats that are not read.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    other: tuple[str, ...]

    def without(self, bad: Mapping[str, str]) -> "FoundImages":
        """The same without what cannot be read.

        Raises:
            ValueError: a class is left with no image in training or in test.
        """
        parts = {"training": self.train, "test": self.test}
        for name, samples in parts.items():
            parts[name] = tuple(sample for sample in samples if sample[0] not in bad)
            left = {label for _, label in parts[name]}
            for path, label in samples:
                if label not in left:
                    raise ValueError(
                        f"{self.root}: none of the {name} images of class {self.classes[label]} "
                        f"can be read; {bad[path]}"
                    )
        return replace(self, train=parts["training"], test=parts["test"])


def find_class_images(
    root: Path, *, test_fraction: float, classes: tuple[str, ...] = ()
) -> FoundImages:
    """List a folder of images.

    Args:
        root: in one of the three layouts.
        test_fraction: share of each class that is held out where there is no folder of test
            images; by a fixed seed, the same images in every run.
        classes: only these, of `train` and `val` that may hold others, as ImageNet's do.

    Raises:
        ValueError: no classes, one class, a class without images, or test images of other classes.
    """
    base = root / "train" if classes or _class_names(root / "train") else root
    given = [root / name for name in TEST_FOLDERS if base != root and _class_names(root / name)]
    if classes:
        train, other = _samples(base, classes)
        test, more = _samples(root / "val", classes)  # ImageNet's test images have no labels
        return FoundImages(root, classes, train, test, other + more)
    classes = _class_names(base)
    if not set(classes) - {"train", *TEST_FOLDERS}:
        raise ValueError(
            f"{root} has no class folders; expected {root}/train/<class>/ or {root}/<class>/ with "
            f"images ({', '.join(IMG_EXTENSIONS)})"
        )
    if len(classes) == 1:
        raise ValueError(
            f"{base} has one class only ({classes[0]}); a classifier needs two or more"
        )
    train, other = _samples(base, classes)
    if not given:
        return FoundImages(root, classes, *_hold_out(train, classes, test_fraction), other)
    if odd := sorted(set(_class_names(given[0])) ^ set(classes)):
        raise ValueError(
            f"{given[0]} and {base} must hold the same classes; only one has {_some(odd)}"
        )
    test, more = _samples(given[0], classes)
    return FoundImages(root, classes, train, test, other + more)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def _class_names(folder: Path) -> tuple[str, ...]:
    inside = folder.iterdir() if folder.is_dir() else ()
    return tuple(sorted(p.name for p in inside if p.is_dir() and not p.name.startswith(".")))


def _samples(folder: Path, classes: Sequence[str]) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Images that are read, and files that are images of other formats."""
    formats = (*IMG_EXTENSIONS, *Image.registered_extensions(), ".heic", ".heif")

    @cache
    def listed(place: str) -> bool:
        """Not hidden, and not by a link that leads in a circle."""
        parts = Path(place).relative_to(folder).parts
        real = {os.path.realpath(folder.joinpath(*parts[:end])) for end in range(len(parts) + 1)}
        return len(real) > len(parts) and not any(part.startswith(".") for part in parts)

    def is_image(path: str) -> bool:
        place, name = os.path.split(path)
        return name.lower().endswith(formats) and not name.startswith(".") and listed(place)

    index = {name: label for label, name in enumerate(classes)}
    files = ImageFolder.make_dataset(str(folder), index, is_valid_file=is_image, allow_empty=True)
    files.sort(key=lambda sample: (sample[1], sample[0]))
    samples = tuple(sample for sample in files if sample[0].lower().endswith(IMG_EXTENSIONS))
    if empty := sorted(set(index.values()) - {label for _, label in samples}):
        raise ValueError(
            f"{folder} has no images ({', '.join(IMG_EXTENSIONS)}) of {len(empty)} of "
            f"{len(classes)} classes: {_some([classes[label] for label in empty])}"
        )
    return samples, tuple(path for path, _ in files if not path.lower().endswith(IMG_EXTENSIONS))


def _hold_out(
    samples: tuple[Sample, ...], classes: Sequence[str], fraction: float
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    held: set[str] = set()
    for label, name in enumerate(classes):
        own = [path for path, given in samples if given == label]
        if len(own) < 2:
            raise ValueError(
                f"class {name} has a single image; one to train on and one to test on are needed"
            )
        order = torch.randperm(len(own), generator=generator("test images", name)).tolist()
        count = min(len(own) - 1, max(1, round(fraction * len(own))))
        held.update(own[i] for i in order[:count])
    train = tuple(sample for sample in samples if sample[0] not in held)
    return train, tuple(sample for sample in samples if sample[0] in held)


def folder_data(found: FoundImages, config: DataConfig, device: torch.device) -> ImageData:
    """Read what was found.

    Raises:
        ValueError: a class of which no image can be read.
    """
    counts = Counter(label for _, label in found.train).most_common()
    (most, many), (least, few) = counts[0], counts[-1]
    if many >= UNEVEN * few:
        warnings.warn(
            f"{found.root}: training images are {few} of class {found.classes[least]} and {many} "
            f"of class {found.classes[most]}; accuracy will say little about the former",
            stacklevel=2,
        )
    held = config.in_memory == "yes"
    if config.in_memory == "auto":
        images = len(found.train) + len(found.test)
        held = images * 3 * config.image_size**2 <= IN_MEMORY_BYTES
    return (_held if held else _streamed)(found, config, device)


def _skipped(found: FoundImages, bad: Mapping[str, str]) -> tuple[str, ...]:
    """What is left out, in names that can be printed and written."""
    names = (*bad, *found.other)
    return tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in names)


def _held(found: FoundImages, config: DataConfig, device: torch.device) -> ImageData:
    size = config.image_size

    def read(image: Image.Image) -> Tensor:
        small = image.width == image.height <= size
        return square_pixels(image, None, None if small else size)

    pixels, bad = read_images(read, [path for path, _ in (*found.train, *found.test)])
    left = found.without(bad)
    channels = max(len(pixels[path]) for path, _ in left.train)
    # Small images of one size stay as they are and are enlarged batch by batch on the device.
    alike = len({x.shape[1:] for x in pixels.values()}) == 1

    def finish(x: Tensor) -> Tensor:
        x = x if alike else V.resize(x, [size, size], antialias=True)
        return x.expand(channels, -1, -1) if channels >= len(x) else V.rgb_to_grayscale(x)

    def stack(samples: tuple[Sample, ...]) -> tuple[Tensor, Tensor]:
        images = torch.stack([finish(pixels[path]) for path, _ in samples])
        return images, torch.tensor([label for _, label in samples])

    parts = stack(left.train), stack(left.test)
    return data_from_arrays(config, device, *parts, found.classes, _skipped(found, bad))


def _streamed(found: FoundImages, config: DataConfig, device: torch.device) -> ImageData:
    record = _verified(found, config.image_size)
    left = found.without(record["bad"])
    mean, std, channels = tuple(record["mean"]), tuple(record["std"]), record["channels"]
    train, test = (
        FolderSplit(
            samples=samples, channels=channels, mean=mean, std=std, config=config, device=device
        )
        for samples in (left.train, left.test)
    )
    skipped = _skipped(found, record["bad"])
    return ImageData(train, test, found.classes, channels, mean, std, skipped)


def _verified(found: FoundImages, size: int) -> dict[str, Any]:
    """Which images cannot be read, the channels, and the training images' mean and deviation.
    Kept in DASVIT_CACHE, or .cache/dasvit in the home folder."""
    cache_folder = Path(os.environ.get("DASVIT_CACHE") or Path.home() / ".cache" / "dasvit")
    path = cache_folder / "folders" / f"{_listing_hash(found, size)}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["kind"] == _RECORD:
            # Once more: a disk can fail once on a whole image.
            return record | {"bad": read_images(lambda image: True, record["bad"])[1]}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or none that can be used
    record = {"kind": _RECORD, **_verify(found, size)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(record) + "\n")
    except OSError:
        pass  # a read-only home: the next run verifies again
    return record


def _verify(found: FoundImages, size: int) -> dict[str, Any]:
    def moments(image: Image.Image) -> Tensor:
        side = min(size, *image.size)  # enlarging blurs, and is no part of the images
        pixels = square_pixels(image, None, side).double().div_(255)
        return torch.stack([pixels.mean((1, 2)), pixels.square().mean((1, 2))])

    looked, bad = read_images(moments, [path for path, _ in (*found.train, *found.test)])
    of_train = [looked[path] for path, _ in found.without(bad).train]
    channels = max(fact.shape[1] for fact in of_train)
    mean, square = torch.stack([fact.expand(2, channels) for fact in of_train]).mean(dim=0)
    std = (square - mean.square()).clamp(min=(1 / 255) ** 2).sqrt()
    return {"bad": bad, "channels": channels, "mean": mean.tolist(), "std": std.tolist()}


def _listing_hash(found: FoundImages, size: int) -> str:
    """Changes with every path, label, file size and time."""

    def version(path: str) -> tuple[int, int] | None:
        try:
            stat = Path(path).stat()
            return stat.st_size, stat.st_mtime_ns
        except OSError:  # a link to nothing: reading it will say so
            return None

    parts = [[(*sample, version(sample[0])) for sample in p] for p in (found.train, found.test)]
    listing = repr((_RECORD, size, str(found.root.resolve()), parts))
    return hashlib.blake2b(listing.encode(), digest_size=16).hexdigest()
