"""Classes of image files by a trained network."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from dasvit.data.images import open_image, square_pixels
from dasvit.run.files import first_line
from dasvit.training.model_folder import ModelFacts, Trained

__all__ = [
    "Prediction",
    "Unreadable",
    "find_images",
    "predict",
    "read_image",
    "to_csv",
]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The likeliest classes of one image, best first.

    Attributes:
        probabilities: softmax over all classes, one ratio per class.
    """

    path: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image file that could not be read, and why; the reason names it."""

    path: Path
    reason: str


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Image files: those named, and all under the folders named but hidden ones, in order of their
    names.

    Raises:
        ValueError: a path that is not there, or a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(
                p
                for p in path.rglob("*")
                if p.suffix.lower() in IMG_EXTENSIONS
                and (p.is_file() or p.is_symlink())
                and not any(part.startswith(".") for part in p.relative_to(path).parts)
            )
            if not inside:
                raise ValueError(f"{path} holds no images; looked for {', '.join(IMG_EXTENSIONS)}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"there is no file or folder {path}")
    if not found:
        raise ValueError("no images were named; give files or folders")
    return found


def read_image(path: Path, facts: ModelFacts) -> Tensor:
    """One image as the network was trained on: `(channels, size, size)`, normalised.

    Of an image that is no square the middle is taken, see `square_pixels`.

    Raises:
        OSError: not a readable image.
    """
    image = open_image(str(path))
    square = image.width == image.height
    pixels = square_pixels(image, facts.in_channels, None if square else facts.image_size).float()
    size = (facts.image_size, facts.image_size)
    if pixels.shape[1:] != size:
        pixels = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (facts.mean, facts.std))
    return pixels / (255 * std) - mean / std


@torch.no_grad()
def predict(
    trained: Trained,
    paths: Sequence[Path],
    *,
    batch_size: int = 64,
    top_k: int = 1,
) -> Iterator[Prediction | Unreadable]:
    """A prediction for every image, in order, on the model's device.

    Args:
        top_k: classes per image; no more than there are.

    Raises:
        ValueError: a batch size or `top_k` below 1.
    """
    if batch_size < 1 or top_k < 1:
        raise ValueError(
            f"batch_size and top_k must be positive, but got (batch_size={batch_size}, "
            f"top_k={top_k})"
        )
    model, facts = trained.model, trained.facts
    device = next(model.parameters()).device
    count = min(top_k, len(facts.class_names))
    for start in range(0, len(paths), batch_size):
        part = paths[start : start + batch_size]
        read: dict[Path, Tensor] = {}
        failed: dict[Path, str] = {}
        for path in part:
            try:
                read[path] = read_image(path, facts)
            except OSError as error:
                failed[path] = first_line(error)
        best: dict[Path, tuple[list[float], list[int]]] = {}
        if read:
            logits = model(torch.stack(list(read.values())).to(device))
            values, index = logits.float().softmax(dim=1).topk(count, dim=1)
            rows = zip(values.tolist(), index.tolist(), strict=True)
            best = dict(zip(read, rows, strict=True))
        for path in part:
            if path in failed:
                yield Unreadable(path, failed[path])
            else:
                values_, index_ = best[path]
                yield Prediction(path, tuple(facts.class_names[i] for i in index_), tuple(values_))


def to_csv(predictions: Iterable[Prediction]) -> str:
    """Columns `path, class, probability`, then `class_2, probability_2` and so on."""
    rows = list(predictions)
    count = max((len(row.classes) for row in rows), default=1)
    names = [n for i in range(count) for n in (f"class_{i + 1}", f"probability_{i + 1}")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "class", "probability", *names[2:]])
    for row in rows:
        pairs = zip(row.classes, row.probabilities, strict=True)
        writer.writerow([row.path, *(v for name, p in pairs for v in (name, f"{p:.6f}"))])
    return text.getvalue()
