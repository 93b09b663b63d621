"""The paper's Table I: its rows as printed, our counts of the same networks, our accuracies."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.table1_results import Run, Scores
from dasvit.costs import Complexity, complexity
from dasvit.data.config import DataConfig
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES
from dasvit.training.config import RetrainConfig
from dasvit.training.networks import VIT, model_on_meta

__all__ = [
    "DATASETS",
    "IMAGE_SIZE",
    "ROWS",
    "TOLERANCE",
    "CountedRow",
    "Row",
    "beyond",
    "count_rows",
    "difference",
    "fill_cells",
]

TOLERANCE = 0.01
"""A larger difference between a count of ours and the paper's is marked (ratio)."""

IMAGE_SIZE = 224
DIM, DEPTH, PATCH_SIZE, VIT_HEADS = 768, 12, 16, 12

DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet100": "ImageNet-100"}

Accuracy = tuple[float, float]
"""Top-1 and top-5 in percent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row as the paper prints it.

    Attributes:
        name: the paper's. design: manual, or found by a search ("auto").
        model: what `retrain --model` and `complexity --model` call it here.
        params: million parameters. macs: billion multiply-adds ("FLOPs" in the paper).
        accuracy: top-1 and top-5 test accuracy in percent, by data set.
        note: what explains a difference that is known.
    """

    name: str
    design: str
    model: str
    params: float
    macs: float
    accuracy: Mapping[str, Accuracy] = field(default_factory=dict)
    note: str = ""


def _row(
    name: str,
    design: str,
    model: str,
    params: float,
    macs: float,
    *accuracy: Accuracy,
    note: str = "",
) -> Row:
    return Row(
        name=name,
        design=design,
        model=model,
        params=params,
        macs=macs,
        accuracy=dict(zip(DATASETS, accuracy, strict=True)),
        note=note,
    )


# fmt: off
ROWS = (
    _row("VGG-16", "manual", "vgg16", 134.7, 15.5, (72.5, 97.1), (37.0, 61.5), (32.0, 55.7)),
    _row("VGG-19", "manual", "vgg19", 140.0, 19.7, (73.1, 97.3), (37.2, 62.0), (30.3, 54.3)),
    _row("ResNet-50", "manual", "resnet50", 23.7, 4.1, (81.5, 98.7), (52.4, 80.7), (59.8, 83.2)),
    _row("ResNet-152", "manual", "resnet152", 58.4, 11.6, (80.2, 98.6), (53.3, 80.7), (57.8, 82.9)),
    _row("EfficientNet-B7", "auto", "efficientnet_b7", 64.0, 5.2,
         (84.4, 98.8), (56.7, 81.9), (53.4, 77.6)),
    _row("RegNetY-12GF", "auto", "regnety_120", 49.8, 12.1,
         (82.3, 99.0), (54.4, 81.8), (57.9, 82.7)),
    _row("RegNetY-16GF", "auto", "regnety_160", 80.7, 15.9,
         (82.6, 98.8), (54.4, 81.6), (58.7, 83.2)),
    _row("ViT-B/16", "manual", "vit_base_patch16_224", 85.8, 12.0,
         (78.8, 97.9), (45.7, 72.0), (39.7, 66.1),
         note="The paper's 12.0 G fits neither count of this network. Like for like, linear layers "
         "only, DASViT's encoder saves 41 % of its multiply-adds, not 17 %."),
    _row("TNT-B", "manual", "tnt_b_patch16_224", 64.8, 13.5,
         (76.1, 94.2), (48.0, 75.1), (45.6, 68.6)),
    _row("CaiT-S36", "manual", "cait_s36_384", 67.9, 12.9,
         (78.6, 97.5), (46.6, 72.7), (39.3, 64.6),
         note="timm's cait_s36_384, built for 224 pixels."),
    _row("AutoFormer-B", "auto", "autoformer_base_patch16_224", 52.5, 11.6,
         (79.2, 97.8), (47.1, 73.4), (41.2, 66.9),
         note="The sub-network that its authors publish: 53.7 M parameters at 1,000 classes, as in "
         "their table. Relative positions are computed here by row and column; with a vector for "
         "every pair of tokens, as its authors compute them, the second count is 11.69 G "
         "(+0.8 %)."),
    _row("DASViT", "auto", "dasvit_cifar10", 50.4, 9.9,
         (80.1, 98.4), (54.4, 78.5), (46.8, 72.3),
         note="On ImageNet-100 the encoder found there, dasvit_imagenet100: the counts are the "
         "same."),
)
# fmt: on


@dataclass(frozen=True, kw_only=True, slots=True)
class CountedRow:
    """A row of the paper with our counts of the same network."""

    row: Row
    found: Complexity

    @property
    def params_difference(self) -> float:
        """Ours to the paper's, less 1."""
        return difference(self.found.num_params / 1e6, self.row.params)

    @property
    def linear_difference(self) -> float:
        """The count of linear and convolution layers to the paper's, less 1."""
        return difference(self.found.macs_linear / 1e9, self.row.macs)

    @property
    def total_difference(self) -> float:
        """The count with attention products to the paper's, less 1."""
        return difference(self.found.macs_total / 1e9, self.row.macs)

    @property
    def fits(self) -> str:
        """Which count the paper's is, within 1 %: linear, with attention, both or neither."""
        linear, total = not beyond(self.linear_difference), not beyond(self.total_difference)
        return {
            (True, True): "both",
            (True, False): "linear",
            (False, True): "with attention",
            (False, False): "neither",
        }[linear, total]


def difference(ours: float, papers: float) -> float:
    """Relative difference of ours to the paper's, as a ratio."""
    return ours / papers - 1


def beyond(ratio: float) -> bool:
    """Whether a difference is over 1 %."""
    return abs(ratio) > TOLERANCE + 1e-9  # 1.01 − 1 is over 0.01 in floating point


def count_rows(
    num_classes: int = 100,
    rows: Sequence[Row] = ROWS,
    progress: Callable[[str], None] = lambda name: None,
) -> list[CountedRow]:
    """Count every network at 224 × 224 pixels, RGB.

    Args:
        num_classes: outputs of the head.
        progress: told the name of the network that is counted next.
    """
    counted = []
    for row in rows:
        progress(row.name)
        config = RetrainConfig(
            model=row.model,
            data=DataConfig(image_size=IMAGE_SIZE),
            dim=DIM,
            depth=DEPTH,
            patch_size=PATCH_SIZE,
        )
        model = model_on_meta(config, num_classes=num_classes)
        found = complexity(model, (3, IMAGE_SIZE, IMAGE_SIZE))
        counted.append(CountedRow(row=row, found=found))
    return counted


def _fits(row: Row, run: Run) -> bool:
    """Whether a run trained the row's network at the paper's size."""
    config = run.config
    if config.data.image_size != IMAGE_SIZE:
        return False
    sizes = (config.dim, config.depth, config.patch_size)
    at_size = sizes == (DIM, DEPTH, PATCH_SIZE) or config.model.startswith("dasvit_base_patch16")
    if row.model in NAMED_GENOTYPES:
        where = "dasvit_imagenet100" if config.data.dataset == "imagenet100" else row.model
        return at_size and run.encoder == NAMED_GENOTYPES[where].canonical_hash
    plain = config.model == VIT and at_size and config.vit_heads == VIT_HEADS
    return config.model == row.model or (plain and row.model == "vit_base_patch16_224")


def fill_cells(
    scores: Iterable[Scores], rows: Sequence[Row] = ROWS
) -> tuple[dict[tuple[str, str], Scores], list[Scores]]:
    """Match results with the table's cells by network, size and data set.

    Returns:
        By name of the row and data set; and the results that belong to no cell.

    Raises:
        ValueError: two recipes for one cell, which must not be averaged.
    """
    cells: dict[tuple[str, str], Scores] = {}
    others = []
    for one in scores:
        run = one.runs[0]
        dataset = run.config.data.dataset
        row = next((row for row in rows if _fits(row, run)), None)
        if row is None or dataset not in DATASETS:
            others.append(one)
            continue
        key = (row.name, dataset)
        if key in cells:
            first = cells[key].runs[0]
            settings = ", ".join(_differing(first.recipe, run.recipe))
            raise ValueError(
                f"{first.folder} and {run.folder} train {row.name} on {DATASETS[dataset]} by two "
                f"recipes (they differ in {settings}); give the folders of one of them"
            )
        cells[key] = one
    return cells, others


def _differing(one: Mapping[str, object], other: Mapping[str, object]) -> Iterator[str]:
    for name in one:
        left, right = one[name], other.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from _differing(left, right)
        elif left != right:
            yield name
