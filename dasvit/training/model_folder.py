"""A model folder: weights, config, genotype, class names and card, as timm and the Hub lay it out.

`timm.create_model("local-dir:PATH", pretrained=True)` loads it (after `import dasvit.spaces.cell.network`,
which registers the derived networks), and so does the Hugging Face Hub once it is uploaded.
"""

import copy
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from dasvit.run.files import first_line, read_json, write_atomic
from dasvit.spaces.cell.genotype import Genotype
from dasvit.spaces.cell.network import DASViT
from dasvit.training.networks import VIT

__all__ = [
    "ModelFacts",
    "check_room",
    "describe",
    "is_model_folder",
    "load_model_folder",
    "load_weights",
    "replace_folder",
    "save_model_folder",
    "tensors_of",
]

MODEL_ARGS = frozenset(
    {
        *("depth", "embed_dim", "genotype", "img_size", "in_chans", "num_classes", "num_heads"),
        *("patch_size", "token_ratio", "token_where", "global_pool"),
        *("drop_path_rate", "drop_rate", "proj_drop_rate"),
    }
)
"""Arguments of `timm.create_model` that a folder may give: sizes and shares. Others make timm open
files that the folder names, or the network."""

WEIGHTS, CONFIG, GENOTYPE, CARD = "model.safetensors", "config.json", "genotype.json", "README.md"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is needed to build a network again and to feed it.

    Attributes:
        architecture: timm's name of it.
        model_args: further arguments of `timm.create_model`, JSON-ready.
        class_names: one a class, in the order of the logits.
        in_channels: 1 for grey images, 3 for RGB.
        image_size: side in pixels; the shorter side of an image is resized to it (bilinear,
            antialiased) and the middle cut out, as in training.
        mean: per channel, on images in [0, 1]. std: likewise.
    """

    architecture: str
    model_args: dict[str, Any]
    class_names: tuple[str, ...]
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def describe(
    model: nn.Module,
    name: str,
    *,
    class_names: tuple[str, ...],
    in_channels: int,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> ModelFacts:
    """The facts of a network that `build_model` made under a name.

    Args:
        name: `RetrainConfig.model`; a derived network is known without it.
    """
    args: dict[str, Any] = {"in_chans": in_channels, "num_classes": len(class_names)}
    sized = args | {"img_size": image_size}
    architecture = name
    if isinstance(model, DASViT):
        architecture = "dasvit"
        args = sized | {
            "genotype": _published(model.genotype),
            "patch_size": model.patch_embed.patch_size[0],
            "embed_dim": model.embed_dim,
            "depth": len(model.blocks),
            "token_ratio": model.token_ratio,
            "token_where": model.token_where,
        }
    elif name == VIT:
        architecture = "vit_base_patch16_224"
        vit: Any = model
        args = sized | {
            "patch_size": vit.patch_embed.patch_size[0],
            "embed_dim": vit.embed_dim,
            "depth": len(vit.blocks),
            "num_heads": vit.blocks[0].attn.num_heads,
        }
    elif timm.get_pretrained_cfg_value(name, "fixed_input_size") or hasattr(model, "patch_embed"):
        args = sized
    return ModelFacts(architecture, args, class_names, in_channels, image_size, mean, std)


def _published(genotype: Genotype) -> dict[str, Any]:
    """A genotype without the place of the data on the disk of who searched."""
    values = copy.deepcopy(genotype.to_dict())
    settings = (values.get("provenance") or {}).get("settings", {})
    if isinstance(data := settings.get("data"), dict):
        data.pop("data_dir", None)
    return values


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a network, on the CPU and without shared storage."""
    return {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}


def check_room(path: Path, size: int) -> None:
    """Raise ValueError unless `size` bytes fit on the disk that will hold `path`."""
    folder = path if path.is_dir() else path.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ValueError(
            f"{path} needs {size / 2**20:.1f} MiB, but only {free / 2**20:.1f} MiB are free on "
            f"the disk of {folder}; free some, or choose another disk"
        )


def replace_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder under a temporary name, then put it in place of what is there.

    Raises:
        ValueError: it cannot be written; what was there is left as it was.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    try:
        fresh.mkdir(parents=True)
        fill(fresh)
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error}); free some disk or rights") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def save_model_folder(
    path: str | Path,
    model: nn.Module,
    facts: ModelFacts,
    card: str,
    *,
    weights: Path | None = None,
) -> None:
    """Write a model folder whole, in place of an earlier one.

    Args:
        card: the text of README.md.
        weights: the same weights as a safetensors file nearby, linked instead of written twice
            where the file system can.

    Raises:
        ValueError: it cannot be written.
    """
    path = Path(path)

    def fill(folder: Path) -> None:
        if weights is None or not _linked(weights, folder / WEIGHTS):
            write_atomic(
                folder / WEIGHTS,
                safetensors.torch.save(tensors_of(model), metadata={"format": "pt"}),
            )
        config = json.dumps(_config(facts), indent=2)
        write_atomic(folder / CONFIG, config + "\n")
        if "genotype" in facts.model_args:
            Genotype.from_dict(facts.model_args["genotype"]).save(folder / GENOTYPE)
        write_atomic(folder / CARD, card)

    replace_folder(path, fill)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def _config(facts: ModelFacts) -> dict[str, Any]:
    known = timm.get_pretrained_cfg(facts.architecture)
    source = known.to_dict() if known else {}
    kept = ("first_conv", "classifier", "fixed_input_size", "pool_size")
    return {
        "architecture": facts.architecture,
        "num_classes": len(facts.class_names),
        "label_names": list(facts.class_names),
        "model_args": facts.model_args,
        "pretrained_cfg": {key: source[key] for key in kept if source.get(key) is not None}
        | {
            "num_classes": len(facts.class_names),
            "input_size": [facts.in_channels, facts.image_size, facts.image_size],
            # The middle square of the image, as in training.
            "crop_pct": 1.0,
            "crop_mode": "center",
            "interpolation": "bilinear",
            "mean": list(facts.mean),
            "std": list(facts.std),
        },
    }


def is_model_folder(path: Path) -> bool:
    """Whether a folder's config.json names an architecture."""
    if not (path / CONFIG).is_file():
        return False
    values = read_json(path / CONFIG, "model folder")
    return isinstance(values, dict) and "architecture" in values


def load_model_folder(
    path: str | Path, device: torch.device | None = None
) -> tuple[nn.Module, ModelFacts]:
    """The network of a model folder in evaluation mode, and its facts.

    Raises:
        ValueError: naming what is missing or does not fit.
    """
    path = Path(path)
    facts = _facts(read_json(path / CONFIG, "model folder"), path / CONFIG)
    try:
        model = timm.create_model(facts.architecture, **facts.model_args)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise ValueError(f"{path / CONFIG} describes no network ({first_line(e)})") from None
    load_weights(model, path / WEIGHTS, CONFIG)
    return model.to(device or torch.device("cpu")).eval(), facts


def load_weights(model: nn.Module, path: Path, config: str) -> None:
    """Load a safetensors file into a network.

    Raises:
        ValueError: the file is missing, truncated, or of another network than `config` says.
    """
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except FileNotFoundError:
        raise ValueError(f"there are no weights {path}; is the retraining finished?") from None
    except (safetensors.SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(
            f"{path} does not fit its {config} or is truncated ({first_line(error)})"
        ) from None


def _facts(values: Any, path: Path) -> ModelFacts:
    try:
        cfg = values["pretrained_cfg"]
        name, args = values["architecture"], values["model_args"]
        channels, height, width = cfg["input_size"]
        mean, std = (tuple(float(x) for x in cfg[key]) for key in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} lacks what a model folder needs ({type(error).__name__}: "
            f"{first_line(error)}); write it with: python -m dasvit export RUN --to safetensors"
        ) from None
    names = values.get("label_names") or cfg.get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError(f"{path} has no class names; give label_names, one name a class")
    classes = values.get("num_classes", cfg.get("num_classes"))
    if len(names) != classes:
        raise ValueError(f"{path} has {len(names)} label_names for {classes} classes")
    if not isinstance(name, str) or not isinstance(args, dict) or not timm.is_model(name):
        raise ValueError(f"{path}: architecture {name!r} is no network that timm knows")
    foreign = sorted(set(map(str, args)) - MODEL_ARGS)
    if foreign:
        raise ValueError(
            f"{path}: model_args has {', '.join(foreign)}, which a folder may not give; known: "
            f"{', '.join(sorted(MODEL_ARGS))}"
        )
    if not isinstance(args.get("genotype", {}), dict):
        raise ValueError(
            f"{path}: the genotype in model_args must be an object, not a name or file"
        )
    if channels not in (1, 3) or height != width or not isinstance(height, int) or height < 1:
        raise ValueError(
            f"{path} has input_size {cfg['input_size']}; it must be [1 or 3, side, side]"
        )
    sides = args.get("img_size", height)
    if sides not in (height, [height, height]):
        raise ValueError(
            f"{path} has input_size {cfg['input_size']} for a network of img_size {sides}; give "
            "both the same"
        )
    finite = all(math.isfinite(value) for value in (*mean, *std))
    if not (finite and len(mean) == len(std) == channels and min(std) > 0):
        raise ValueError(
            f"{path} has mean {list(mean)} and std {list(std)}; it needs {channels} finite "
            f"{'number' if channels == 1 else 'numbers'} of each, std above 0"
        )
    return ModelFacts(name, args, tuple(names), channels, height, mean, std)
