"""A trained network in its folder: saved, loaded, tested."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from dasvit.data.batch import EVAL_BATCH
from dasvit.data.datasets import ImageData, load_data
from dasvit.data.splits import Split
from dasvit.report.events import RetrainResult
from dasvit.report.record import load_retrain_result
from dasvit.run.distributed import Processes
from dasvit.run.environment import resolve_device
from dasvit.run.files import read_json, write_atomic
from dasvit.run.folder import read_settings
from dasvit.run.plugins import load_plugins
from dasvit.run.settings import config_from_dict
from dasvit.training.config import RetrainConfig
from dasvit.training.model_card import model_card
from dasvit.training.model_folder import (
    ModelFacts,
    describe,
    is_model_folder,
    load_model_folder,
    load_weights,
    save_model_folder,
    tensors_of,
)
from dasvit.training.networks import build_model

__all__ = [
    "RETRAIN_KIND",
    "Trained",
    "evaluate",
    "load_model",
    "load_retrain_config",
    "open_trained",
    "save_deployable",
    "save_model",
    "topk_accuracy",
    "with_own_genotype",
]

RETRAIN_KIND = "dasvit/retrain/1"
"""What a retraining writes into its folder's config.json."""
MODEL_DIR = "model"
"""The model folder inside a retraining's."""


def load_retrain_config(out_dir: str | Path) -> RetrainConfig:
    """The configuration of the run in a folder.

    Raises:
        ValueError: the folder holds no retraining.
    """
    return config_from_dict(RetrainConfig, read_settings(out_dir, RETRAIN_KIND))


def with_own_genotype(config: RetrainConfig, out_dir: Path) -> RetrainConfig:
    """The configuration with the folder's own copy of the genotype, if it has one."""
    own = out_dir / "genotype.json"
    return dataclasses.replace(config, model=str(own)) if own.exists() else config


@torch.no_grad()
def topk_accuracy(
    model: nn.Module, split: Split, processes: Processes | None = None
) -> tuple[float, float]:
    """Top-1 and top-5 accuracy (ratios; top-5 of min(5, classes)).

    Args:
        processes: those that share the images; by default this one alone.
    """
    processes = processes or Processes()
    model.eval()
    device = next(model.parameters()).device
    top1, top5 = torch.zeros((), device=device), torch.zeros((), device=device)
    for images, labels in split.batches(EVAL_BATCH, share=processes.share):
        logits = model(images)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        top1 += best[:, 0].sum()
        top5 += best.any(dim=1).sum()
    processes.add_up(top1, top5)
    return top1.item() / len(split), top5.item() / len(split)


def save_model(out_dir: Path, model: nn.Module, data: ImageData) -> None:
    """Weights as model.safetensors, and what is needed to use them as model.json."""
    write_atomic(out_dir / "model.safetensors", safetensors.torch.save(tensors_of(model)))
    facts = {
        "class_names": list(data.class_names),
        "in_channels": data.in_channels,
        "mean": list(data.mean),
        "std": list(data.std),
    }
    write_atomic(out_dir / "model.json", json.dumps(facts, indent=2) + "\n")


def save_deployable(
    out_dir: Path, model: nn.Module, config: RetrainConfig, result: RetrainResult
) -> None:
    """The folder `model/` that timm and the Hugging Face Hub load, with its card.

    After `save_model`: the weights are the same file where the file system can link them.
    """
    facts = _describe(out_dir, model, config)
    save_model_folder(
        out_dir / MODEL_DIR,
        model,
        facts,
        model_card(facts, config, result),
        weights=out_dir / "model.safetensors",
    )


def _describe(out_dir: Path, model: nn.Module, config: RetrainConfig) -> ModelFacts:
    path = out_dir / "model.json"
    facts: Any = read_json(path, "trained model")
    try:
        return describe(
            model,
            config.model,
            class_names=tuple(map(str, facts["class_names"])),
            in_channels=facts["in_channels"],
            image_size=config.data.image_size,
            mean=tuple(map(float, facts["mean"])),
            std=tuple(map(float, facts["std"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} lacks what a trained model needs ({type(error).__name__}: {error}); "
            "it was not saved here"
        ) from None


@dataclasses.dataclass(frozen=True, slots=True)
class Trained:
    """A trained network in evaluation mode, and what is known of it.

    Attributes:
        config: of its training. result: likewise. Both None for a model folder on its own.
    """

    model: nn.Module
    facts: ModelFacts
    config: RetrainConfig | None = None
    result: RetrainResult | None = None


def open_trained(folder: str | Path, device: torch.device) -> Trained:
    """The network of a model folder, of a retraining, or of a sweep's best/.

    Raises:
        ValueError: the folder holds none, or one whose files do not fit each other.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give a retraining's or a model's")
    if is_model_folder(folder):
        return Trained(*load_model_folder(folder, device))
    if not (folder / "config.json").exists():
        raise ValueError(
            f"{folder} holds no model: it has no config.json; give a retraining's folder, a "
            "sweep's best/, or what export --to safetensors wrote"
        )
    model, config = load_model(folder, device)
    result = folder / "result.json"
    return Trained(
        model,
        _describe(folder, model, config),
        config,
        load_retrain_result(result) if result.exists() else None,
    )


def load_model(out_dir: str | Path, device: torch.device) -> tuple[nn.Module, RetrainConfig]:
    """The trained network of a retraining folder, ready to evaluate.

    Raises:
        ValueError: no finished retraining there, or weights that are truncated or of another
            network.
    """
    out_dir = Path(out_dir)
    config = load_retrain_config(out_dir)
    load_plugins(config.plugins)
    in_channels, num_classes = _model_facts(out_dir / "model.json")
    named = with_own_genotype(config, out_dir)
    model = build_model(named, in_channels=in_channels, num_classes=num_classes)
    load_weights(model, out_dir / "model.safetensors", "config.json")
    return model.to(device).eval(), config


def _model_facts(path: Path) -> tuple[int, int]:
    facts: Any = read_json(path, "trained model")
    try:
        in_channels, num_classes = facts["in_channels"], len(facts["class_names"])
        assert len(facts["mean"]) == len(facts["std"]) == in_channels
    except (KeyError, TypeError, AssertionError):
        raise ValueError(
            f"{path} lacks in_channels, class_names, mean or std; it was not saved here"
        ) from None
    if in_channels not in (1, 3) or num_classes < 1:
        raise ValueError(f"{path} has in_channels={in_channels!r} and {num_classes} classes")
    return in_channels, num_classes


def evaluate(
    out_dir: str | Path, *, device: str = "cpu", data_dir: str | None = None
) -> tuple[float, float]:
    """Top-1 and top-5 test accuracy (ratios) of a retraining folder's model.

    Args:
        data_dir: where the data set lies on this machine, if not where it was trained.
    """
    where = resolve_device(device)
    model, config = load_model(out_dir, where)
    data_config = config.data
    if data_dir is not None:
        data_config = dataclasses.replace(data_config, data_dir=data_dir)
    data = load_data(data_config, where)
    facts: Any = read_json(Path(out_dir) / "model.json", "trained model")
    if facts["class_names"] != list(data.class_names) or facts["in_channels"] != data.in_channels:
        raise ValueError(
            f"{out_dir} was trained on other classes or channels than {config.data.dataset} in "
            f"{data_config.data_dir} has; give the --data-dir of its own data set"
        )
    return topk_accuracy(model, data.test.normalised_by(tuple(facts["mean"]), tuple(facts["std"])))
