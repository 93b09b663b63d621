"""A folder of images as a data set: held in memory where it is small, streamed where it is not.

Every image is decoded once before anything is trained: what cannot be read is left out and named
then, not after hours. For a folder that streams, the outcome is kept in a cache file and holds as
long as no file's size or time changes.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dasvit.data.config import DataConfig
from dasvit.data.image_data import ImageData, data_from_arrays
from dasvit.data.image_folder import FoundImages, Sample, is_grey, map_images
from dasvit.data.pixels import square_pixels
from dasvit.data.stream import FolderSplit
from dasvit.run.files import write_atomic
from dasvit.run.seed import generator

__all__ = ["IN_MEMORY_BYTES", "cache_folder", "fits_in_memory", "folder_data"]

IN_MEMORY_BYTES = 2 * 2**30
"""Folders whose images at `image_size` take less are held in memory, in uint8."""
_STATISTICS_FROM = 2000  # images from which a streamed folder's mean and deviation are taken
_RECORD = "dasvit/folder/2"


def fits_in_memory(found: FoundImages, config: DataConfig) -> bool:
    """Whether `config.in_memory` says so, or, at "auto", the images' number and size."""
    if config.in_memory != "auto":
        return config.in_memory == "yes"
    images = len(found.train) + len(found.test)
    return images * 3 * config.image_size**2 <= IN_MEMORY_BYTES


def folder_data(found: FoundImages, config: DataConfig, device: torch.device) -> ImageData:
    """Read what was found.

    Raises:
        ValueError: a class of which no image can be read.
    """
    load = _held if fits_in_memory(found, config) else _streamed
    return load(found, config, device)


def _held(found: FoundImages, config: DataConfig, device: torch.device) -> ImageData:
    paths = [path for path, _ in (*found.train, *found.test)]
    facts: dict[str, tuple[bool, tuple[int, int]]] = {}
    bad: list[str] = []
    for path, fact in map_images(lambda image: (is_grey(image), image.size), paths):
        if fact is None:
            bad.append(path)
        else:
            facts[path] = fact
    left = found.without(bad)
    channels = 1 if all(facts[path][0] for path, _ in left.train) else 3
    sizes = {facts[path][1] for path in facts}
    # Small images of one size stay as they are and are enlarged batch by batch on the device.
    [width, height] = next(iter(sizes))
    alike = len(sizes) == 1 and width == height <= config.image_size
    size = None if alike else config.image_size

    def read(samples: tuple[Sample, ...]) -> tuple[Tensor, Tensor]:
        def pixels_of(image: Image.Image) -> Tensor:
            return square_pixels(image, channels, size)

        images: list[Tensor] = []
        for path, pixels in map_images(pixels_of, [path for path, _ in samples]):
            if pixels is None:
                raise ValueError(f"{path} could be read a moment ago, and cannot now; start again")
            images.append(pixels)
        return torch.stack(images), torch.tensor([label for _, label in samples])

    return data_from_arrays(
        config, device, read(left.train), read(left.test), found.classes, skipped=tuple(bad)
    )


def _streamed(found: FoundImages, config: DataConfig, device: torch.device) -> ImageData:
    record = _verified(found, config.image_size)
    left = found.without(record["bad"])
    channels = record["channels"]
    mean, std = tuple(record["mean"]), tuple(record["std"])
    splits = [
        FolderSplit(
            list(samples), channels=channels, mean=mean, std=std, config=config, device=device
        )
        for samples in (left.train, left.test)
    ]
    return ImageData(
        splits[0], splits[1], found.classes, channels, mean, std, skipped=tuple(record["bad"])
    )


def cache_folder() -> Path:
    """Where records of folders lie: DASVIT_CACHE, or .cache/dasvit in the home folder."""
    return Path(os.environ.get("DASVIT_CACHE") or Path.home() / ".cache" / "dasvit")


def _verified(found: FoundImages, size: int) -> dict[str, Any]:
    """Which images cannot be read, the channels, and the training images' mean and deviation."""
    path = cache_folder() / "folders" / f"{_listing_hash(found, size)}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["kind"] == _RECORD:
            # A disk that stumbled once is not held against an image.
            again = map_images(lambda image: True, record["bad"])
            return record | {"bad": [name for name, fine in again if not fine]}
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
    bad: list[str] = []
    channels = 1
    for number, (path, grey) in enumerate(
        map_images(is_grey, [path for path, _ in (*found.train, *found.test)])
    ):
        if grey is None:
            bad.append(path)
        elif not grey and number < len(found.train):
            channels = 3
    order = torch.randperm(len(found.train), generator=generator("statistics")).tolist()
    some = [found.train[i][0] for i in order[:_STATISTICS_FROM]]

    def moments(image: Image.Image) -> Tensor:
        side = min(size, *image.size)  # enlarging blurs, and is no part of the images
        pixels = square_pixels(image, channels, side).double().div_(255)
        return torch.stack([pixels.mean((1, 2)), pixels.square().mean((1, 2))])

    measured = [pair for _, pair in map_images(moments, some) if pair is not None]
    if not measured:
        return {"bad": bad, "channels": channels, "mean": [0.5] * channels, "std": [1.0] * channels}
    mean, square = torch.stack(measured).mean(dim=0)
    std = (square - mean.square()).clamp(min=(1 / 255) ** 2).sqrt()
    return {"bad": bad, "channels": channels, "mean": mean.tolist(), "std": std.tolist()}


def _listing_hash(found: FoundImages, size: int) -> str:
    digest = hashlib.blake2b(f"{_RECORD} {found.root.resolve()} {size}".encode(), digest_size=16)
    for part in (found.train, found.test):
        for path, label in part:
            digest.update(f"\n{path} {label} {_version(Path(path))}".encode())
        digest.update(b"\n\n")
    return digest.hexdigest()


def _version(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:  # a link to nothing: reading it will say so
        return "none"
    return f"{stat.st_size} {stat.st_mtime_ns}"
