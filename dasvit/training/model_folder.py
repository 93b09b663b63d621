"""A trained model in its folder: weights, config, genotype, class names and card.

It is the folder that timm and the Hugging Face Hub load, and the only form in which a trained
network is kept: `timm.create_model("local-dir:PATH", pretrained=True)`, after
`import dasvit.models`, which registers the networks that timm does not have. A
retraining and a sweep's best/ hold it as `model/`.
"""

import copy
import importlib.metadata
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models import save_for_hf
from torch import nn

import dasvit
from dasvit.methods import get_method, method_names
from dasvit.report.events import RetrainResult
from dasvit.run.environment import resolve_device
from dasvit.run.files import first_line, read_json, replace_folder, write_atomic
from dasvit.run.folder import read_settings
from dasvit.run.plugins import load_plugins, plugins_for
from dasvit.run.settings import config_from_dict
from dasvit.spaces.cell.genotype import Genotype
from dasvit.training.config import RetrainConfig
from dasvit.training.networks import check_sees  # and registers our networks with timm

__all__ = [
    "FILES",
    "MODEL_DIR",
    "RETRAIN_KIND",
    "ModelFacts",
    "Trained",
    "find_model_folder",
    "load",
    "load_retrain_config",
    "model_card",
    "save_model_folder",
]

RETRAIN_KIND = "dasvit/retrain/1"
"""What a retraining writes into its folder's config.json."""
MODEL_DIR = "model"
"""The model folder inside a retraining's."""
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
FILES = (WEIGHTS, CONFIG, GENOTYPE, CARD)
"""What a model folder may hold."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is needed to build a network again and to feed it.

    Attributes:
        architecture: timm's name of it.
        model_args: further arguments of `timm.create_model`, JSON-ready.
        class_names: one per class, in the order of the logits.
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


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained network in evaluation mode, and what is known of it."""

    model: nn.Module
    facts: ModelFacts


def load_retrain_config(run_dir: str | Path) -> RetrainConfig:
    """The configuration of the retraining in a folder.

    Raises:
        ValueError: the folder holds no retraining.
    """
    return config_from_dict(RetrainConfig, read_settings(run_dir, RETRAIN_KIND))


# --- Writing


def save_model_folder(path: Path, model: nn.Module, facts: ModelFacts, card: str) -> None:
    """Write a model folder whole, in place of an earlier one.

    Args:
        model: made by `timm.create_model`. Its `pretrained_cfg` becomes that of these weights, and
            its memory format PyTorch's usual one.
        card: the text of README.md.

    Raises:
        ValueError: it cannot be written.
    """
    args = copy.deepcopy(facts.model_args)
    # A model folder is given away: where the data were on this disk stays out of it.
    settings = (args.get("genotype", {}).get("provenance") or {}).get("settings", {})
    if isinstance(data := settings.get("data"), dict):
        data.pop("data_dir", None)
    network: Any = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    of_layers = ("first_conv", "classifier", "fixed_input_size")
    network.pretrained_cfg = {
        "architecture": facts.architecture,
        **{key: network.pretrained_cfg[key] for key in of_layers if key in network.pretrained_cfg},
        "num_classes": len(facts.class_names),
        "input_size": (facts.in_channels, facts.image_size, facts.image_size),
        # The middle square of the image, as in training.
        "crop_pct": 1.0,
        "crop_mode": "center",
        "interpolation": "bilinear",
        "mean": facts.mean,
        "std": facts.std,
    }
    names = {"label_names": list(facts.class_names)}

    def fill(folder: Path) -> None:
        try:
            save_for_hf(network, str(folder), names, args, safe_serialization=True)
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from None
        if "genotype" in args:
            Genotype.from_dict(args["genotype"]).save(folder / GENOTYPE)
        write_atomic(folder / CARD, card)

    replace_folder(path, fill)


# --- Reading


def find_model_folder(folder: str | Path) -> Path:
    """The model folder that a folder is, or that it holds as `model/`.

    Raises:
        ValueError: neither.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give a retraining's or a model's")
    for path in (folder, folder / MODEL_DIR):
        if (path / CONFIG).is_file():
            values = read_json(path / CONFIG, "model folder")
            if isinstance(values, dict) and "architecture" in values:
                return path
    raise ValueError(
        f"{folder} holds no model; give the folder of a finished retraining, a sweep's best/, or a "
        "model folder"
    )


def load(folder: str | Path, device: str | torch.device = "cpu") -> Trained:
    """A trained network, ready to predict.

    A model folder can be anybody's: its config gives sizes and shares, and no code of its own runs.
    For a retraining's folder the modules are imported that it named as `plugins`; one that
    is missing matters only if the network needs it.

    Args:
        folder: a retraining's, a sweep's best/, or a model folder.
        device: "cpu", "cuda", "cuda:1", or "auto".

    Raises:
        ValueError: the folder holds no model, or one whose files do not fit each other.
    """
    where = resolve_device(str(device))
    path = find_model_folder(folder)
    missing = ""
    if path != Path(folder):
        try:
            load_plugins(load_retrain_config(folder).plugins)
        except ValueError as error:  # it may have registered no operation of this network
            missing = f"; {error}"
    facts = _read_facts(path / CONFIG)
    try:
        model = timm.create_model(facts.architecture, **facts.model_args)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise ValueError(
            f"{path / CONFIG} describes no network ({first_line(e)}){missing}"
        ) from None
    if "genotype" in facts.model_args:
        pool = facts.model_args.get("global_pool", "token")
        check_sees(Genotype.from_dict(facts.model_args["genotype"]), str(path), pool=pool)
    try:
        model.load_state_dict(safetensors.torch.load_file(path / WEIGHTS))
    except FileNotFoundError:
        raise ValueError(f"there are no weights {path / WEIGHTS}") from None
    except (safetensors.SafetensorError, RuntimeError, OSError) as e:
        raise ValueError(
            f"{path / WEIGHTS} does not fit its {CONFIG} or is truncated ({first_line(e)})"
        ) from None
    return Trained(model.to(where).eval(), facts)


def _read_facts(path: Path) -> ModelFacts:
    values: Any = read_json(path, "model folder")
    try:
        cfg = values["pretrained_cfg"]
        name, args = values["architecture"], values["model_args"]
        size = channels, height, width = cfg["input_size"]
        mean, std = (tuple(float(x) for x in cfg[key]) for key in ("mean", "std"))
        names = values.get("label_names") or cfg.get("label_names")
        classes = values.get("num_classes", cfg.get("num_classes"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} lacks what a model folder needs ({type(error).__name__}: "
            f"{first_line(error)}); write it with: python -m dasvit export RUN --to safetensors"
        ) from None

    def check(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(f"{path}{message}")

    named = isinstance(names, list) and bool(names) and all(isinstance(n, str) for n in names)
    check(named, " has no class names; give label_names, one name per class")
    check(len(names) == classes, f" has {len(names)} label_names for {classes} classes")
    known = isinstance(name, str) and isinstance(args, dict) and timm.is_model(name)
    check(known, f": architecture {name!r} is no network that timm knows")
    foreign = ", ".join(sorted(set(map(str, args)) - MODEL_ARGS))
    check(
        not foreign,
        f": model_args has {foreign}, which a folder may not give; known: "
        f"{', '.join(sorted(MODEL_ARGS))}",
    )
    check(
        isinstance(args.get("genotype", {}), dict),
        ": the genotype in model_args must be an object, not a name or file",
    )
    square = channels in (1, 3) and height == width and isinstance(height, int) and height > 0
    check(square, f" has input_size {size}; it must be [1 or 3, side, side]")
    side = args.get("img_size", height)
    check(
        side in (height, [height, height]),
        f" has input_size {size} for a network of img_size {side}; give both the same",
    )
    finite = all(math.isfinite(value) for value in (*mean, *std))
    check(
        finite and len(mean) == len(std) == channels and min(std) > 0,
        f" has mean {list(mean)} and std {list(std)}; it needs as many finite numbers of each as "
        f"there are channels ({channels}), std above 0",
    )
    return ModelFacts(name, args, tuple(names), channels, height, mean, std)


# --- The card

_CARD = """\
---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- dasvit
---

# {name}

An image classifier{found}

## Measured

One run; the test set was looked at once.

| | |
| --- | --- |
{rows}

## Images

As {colour}, the shorter side resized to {size} (bilinear, antialiased), the middle {size} × {size}
cut out, scaled to [0, 1], less the mean {mean}, over the standard deviation {std}.

{classes} classes: {names}

## Use

```python
import timm
{imports}
model = timm.create_model("local-dir:PATH_OF_THIS_FOLDER", pretrained=True).eval()
```

```bash
python -m dasvit predict --model PATH_OF_THIS_FOLDER{flags} IMAGE
```
"""


def _shares(result: RetrainResult) -> dict[str, str]:
    known = {
        "balanced test accuracy (mean over the classes)": result.balanced_accuracy,
        "largest class (what one answer to all images gets)": result.largest_class,
    }
    return {name: f"{100 * v:.2f} %" for name, v in known.items() if v is not None}


def model_card(facts: ModelFacts, config: RetrainConfig, result: RetrainResult) -> str:
    """README.md of a model folder, in the Hugging Face Hub's form: what the network is, how it was
    trained, and what was measured."""
    names, found, plugins = facts.class_names, ".", ()
    if values := facts.model_args.get("genotype"):
        genotype = Genotype.from_dict(values)
        encoder = str(genotype).replace("; ", "\n")
        found = f", its encoder{_origin(genotype)}:\n\n```text\n{encoder}\n```"
        plugins = plugins_for(config.plugins, genotype.families)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm")]
    rows = {
        f"{'held-out' if config.held_out else 'test'} accuracy": f"{100 * result.test_top1:.2f} %",
        **_shares(result),
        "training accuracy, last epoch": f"{100 * result.train_accuracy:.2f} %",
        "parameters": f"{result.num_params:,}",
        "training time": f"{result.seconds:.0f} s",
        "data set": config.data.dataset,
        "epochs": config.epochs,
        "seed": config.seed,
        "written by": ", ".join([f"dasvit {dasvit.__version__}", *versions]),
    }
    ours = timm.model_entrypoint(facts.architecture).__module__.startswith("dasvit.")
    modules = {"dasvit.models": "the architecture"} if ours else {}
    modules |= dict.fromkeys(plugins, "operations of its own")
    return _CARD.format(
        name=facts.architecture,
        found=found,
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        colour="grey" if facts.in_channels == 1 else "RGB",
        size=facts.image_size,
        mean=", ".join(f"{v:.4f}" for v in facts.mean),
        std=", ".join(f"{v:.4f}" for v in facts.std),
        classes=len(names),
        names=", ".join(names[:20]) + (" …" if len(names) > 20 else ""),
        imports="".join(f"import {name}  # registers {what}\n" for name, what in modules.items()),
        flags=f" --plugins {' '.join(plugins)}" if plugins else "",
    )


def _origin(genotype: Genotype) -> str:
    """What found an encoder, where its provenance is that of a search."""
    method = (genotype.provenance.get("settings") or {}).get("method")
    if not isinstance(method, dict):
        return ""
    name = str(method.get("name"))
    title = get_method(name).title if name in method_names() else name
    return f" found by differentiable architecture search ({title})"
