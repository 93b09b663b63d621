"""Named, complete configurations. A preset is a function; its docstring says what it was seen to
reach, or that it was not run."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from dasvit.data.config import DataConfig
from dasvit.methods import DASViT, get_method
from dasvit.search.config import SearchConfig
from dasvit.spaces import CellSpace
from dasvit.training.config import RetrainConfig

__all__ = ["DEFAULT_PRESET", "PAPER_PRESET", "PRESETS", "Preset", "get_preset", "modern"]

DEFAULT_PRESET = "digits"
"""Of every command: the settings' own defaults, on data that come with scikit-learn."""

PAPER_PRESET = "cifar10"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A search and the retraining of what it finds.

    Attributes:
        score_epochs: of the short training from scratch whose accuracy is a sweep's search score.
        rungs: epochs of the longer trainings that the best encoders of a sweep climb through.
        needs_gpu: on CPUs it would take weeks.
    """

    name: str
    search: SearchConfig
    retrain: RetrainConfig
    score_epochs: int
    rungs: tuple[int, ...]
    needs_gpu: bool = False


def digits() -> Preset:
    """The embedded digits on one CPU core: small, and it really learns.

    `python -m dasvit search --preset digits`: half a minute of one CPU core; the supernet reached
    82.2 ± 4.5 % validation accuracy (seeds 0 to 2, torch 2.14.1, 2026-11-29).
    """
    return Preset(
        name=DEFAULT_PRESET,
        search=SearchConfig(),
        retrain=RetrainConfig(),
        score_epochs=8,
        rungs=(20,),
    )


def fashion_mnist() -> Preset:
    """Fashion-MNIST, 28 × 28 grey, for a night on a CPU: a whole retraining takes about 20 minutes
    of a core. Width, depth and lengths are those of docs/results/ranking.md, where encoders differ
    by more than seeds do. Not run on all images.
    """
    data = DataConfig(dataset="fashion_mnist", image_size=28, augment="crop_flip")
    small = digits()
    return Preset(
        name="fashion_mnist",
        search=small.search.replaced(
            data=data, patch_size=7, stage_epochs=1, batch_size=64, lr_span="stage"
        ),
        retrain=replace(
            small.retrain,
            data=data,
            dim=48,
            depth=12,
            patch_size=7,
            epochs=8,
            warmup_epochs=1,
            batch_size=64,
            lr=2e-3,
        ),
        score_epochs=2,
        rungs=(4,),
    )


def _paper(name: str, dataset: str, num_workers: int) -> Preset:
    """The settings of Section III and IV-A; where the paper is silent, docs/fidelity.md."""
    data = DataConfig(dataset=dataset, image_size=224, augment="crop_flip", num_workers=num_workers)
    return Preset(
        name=name,
        search=SearchConfig(
            data=data,
            space=CellSpace(),
            method=DASViT(),
            batch_size=64,
            weight_lr=1e-3,
            lr_span="stage",
            grad_clip=0.0,
        ),
        retrain=RetrainConfig(
            data=data,
            model=f"dasvit_{dataset}",
            dim=768,
            depth=12,
            patch_size=16,
            vit_heads=12,
            epochs=500,
            warmup_epochs=20,
            batch_size=128,
            lr=1e-3,
            grad_clip=0.0,
        ),
        # By the multiply-adds of both, 10 epochs are a twentieth of a search.
        score_epochs=10,
        rungs=(50,),
        needs_gpu=True,
    )


def cifar10() -> Preset:
    """The paper's setting: search on CIFAR-10 at 224 × 224, retrain 500 epochs. One GPU.

    `python -m dasvit search --preset cifar10 --data-dir DIR --device cuda`. Not run.
    """
    return _paper("cifar10", "cifar10", 2)


def imagenet100() -> Preset:
    """The paper's second search, on ImageNet-100. One GPU.

    `python -m dasvit search --preset imagenet100 --data-dir DIR --device cuda`. Not run.
    """
    return _paper("imagenet100", "imagenet100", 8)


def modern(retrain: RetrainConfig) -> RetrainConfig:
    """The usual recipe of today for training a ViT from scratch, after DeiT (Touvron et al., 2021):
    mixup, CutMix, RandAugment, label smoothing, stochastic depth, a moving average of the weights,
    300 epochs; norms and biases do not decay. The learning rate is DeiT's 5e-4 at 512 images.
    """
    return replace(
        retrain,
        data=replace(retrain.data, augment="rand"),
        epochs=300,
        warmup_epochs=5,
        lr=5e-4 * retrain.batch_size / 512,
        decay_norms=False,
        grad_clip=1.0,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        drop_path=0.1,
        ema_decay=0.9998,
    )


def _modern(base: Callable[[], Preset]) -> Preset:
    preset = base()
    return replace(preset, name=f"{preset.name}_modern", retrain=modern(preset.retrain))


def cifar10_modern() -> Preset:
    """`cifar10` retrained by the recipe of `modern`. Not run."""
    return _modern(cifar10)


def imagenet100_modern() -> Preset:
    """`imagenet100` retrained by the recipe of `modern`. Not run."""
    return _modern(imagenet100)


PRESETS: dict[str, Callable[[], Preset]] = {
    f.__name__: f
    for f in (
        digits,
        fashion_mnist,
        cifar10,
        cifar10_modern,
        imagenet100,
        imagenet100_modern,
    )
}


def get_preset(name: str, method: str | None = None) -> Preset:
    """The preset of a name.

    Args:
        method: the name of another method, for a search of the same size.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    preset = PRESETS[name]()
    if method is None:
        return preset
    other = get_method(method).like(preset.search.method)
    return replace(preset, search=replace(preset.search, method=other))
