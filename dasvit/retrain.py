"""Training one network from scratch, and testing it once (Section IV-A, Retraining Phase)."""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dasvit.checkpoint import restore, save_checkpoint
from dasvit.complexity import check_num_params
from dasvit.config import RetrainConfig, config_from_dict, config_to_dict
from dasvit.data import ImageData, check_data, load_data
from dasvit.environment import resolve_device
from dasvit.files import first_line, read_json, write_atomic
from dasvit.folder import check_folder, open_folder, read_settings
from dasvit.genotype import NAMED_GENOTYPES
from dasvit.metrics import Report, RetrainEpoch, RetrainResult, tee
from dasvit.network import DASViT, resolve_genotype
from dasvit.ops import load_plugins
from dasvit.optim import adamw, all_finite, clip_gradients, cosine_lr, norms_and_biases
from dasvit.seed import derive_seed, get_rng_state, seed_everything, set_rng_state
from dasvit.split import Split
from dasvit.trace import JsonLinesReport, load_retrain_result, save_result

__all__ = [
    "VIT",
    "build_model",
    "check_retrain",
    "evaluate",
    "load_model",
    "load_retrain_config",
    "retrain",
    "topk_accuracy",
]

KIND = "dasvit/retrain/1"
EVAL_BATCH = 256
VIT = "vit"
"""The baseline's name: a plain ViT of the same depth, width and patches."""


def build_model(config: RetrainConfig, *, in_channels: int, num_classes: int) -> nn.Module:
    """The network that `config.model` names, freshly initialised.

    Raises:
        ValueError: no such model, or one that does not fit the width or the images.
    """
    size = {"img_size": config.data.image_size, "patch_size": config.patch_size}
    common = {"in_chans": in_channels, "num_classes": num_classes}
    if config.model == VIT:
        if config.dim % config.vit_heads:
            raise ValueError(
                f"vit_heads must divide dim, but got (vit_heads={config.vit_heads}, "
                f"dim={config.dim})"
            )
        return timm.models.VisionTransformer(
            **size,
            **common,
            embed_dim=config.dim,
            depth=config.depth,
            num_heads=config.vit_heads,
            proj_drop_rate=config.dropout,
        )
    is_genotype = config.model in NAMED_GENOTYPES or config.model.endswith(".json")
    if is_genotype or Path(config.model).exists():
        return DASViT(
            resolve_genotype(config.model),
            **size,
            **common,
            embed_dim=config.dim,
            depth=config.depth,
            drop_rate=config.dropout,
        )
    if not timm.is_model(config.model):
        raise ValueError(
            f"unknown model {config.model!r}; give {VIT!r}, a shipped genotype "
            f"({', '.join(NAMED_GENOTYPES)}), a genotype file, or the name of a timm model"
        )
    try:
        return timm.create_model(config.model, **common, img_size=config.data.image_size)
    except TypeError:  # convolutional networks take no image size
        return timm.create_model(config.model, **common)


def check_retrain(config: RetrainConfig) -> None:
    """Everything that can be refused before training: data set, model, width, size.

    Raises:
        ValueError: one line with the value and the remedy.
    """
    load_plugins(config.plugins)
    check_data(config.data)
    size = config.data.image_size
    try:
        with torch.device("meta"), torch.no_grad():
            model = build_model(config, in_channels=3, num_classes=2).eval()
            model(torch.empty(2, 3, size, size))
    except RuntimeError as error:  # an image too small for its layers, say
        raise ValueError(
            f"model {config.model!r} does not run on images of {size} × {size} "
            f"({first_line(error)})"
        ) from None
    check_num_params(sum(p.numel() for p in model.parameters()))


def retrain(
    config: RetrainConfig,
    out_dir: str | Path,
    *,
    report: Report = lambda event: None,
    resume: bool = False,
    device: str = "cpu",
) -> RetrainResult:
    """Train on the full training set, then look at the test set once.

    Writes into `out_dir`: config.json, checkpoint.pt (every epoch), train.jsonl (a line an
    epoch), model.safetensors, genotype.json (of a derived network) and result.json.

    Args:
        config: what to train and how.
        out_dir: made if missing.
        report: called with `RetrainEpoch` and `RetrainResult`.
        resume: continue from the checkpoint in `out_dir`; without one, start; if the run is
            finished, return its result.
        device: "cpu", "cuda", "cuda:1", or "auto".

    Raises:
        ValueError: settings that cannot run, or an `out_dir` that holds another run.
        FloatingPointError: a loss that is not finite; the last checkpoint is kept.
    """
    out_dir = Path(out_dir)
    named = _with_own_genotype(config, out_dir) if resume else config
    check_retrain(named)
    where = resolve_device(device)
    settings = config_to_dict(config)
    check_folder(out_dir, KIND, settings, resume=resume)
    if resume and (out_dir / "result.json").exists():
        return load_retrain_result(out_dir / "result.json")
    data = load_data(config.data, where)
    open_folder(out_dir, KIND, settings)

    seed_everything(derive_seed(config.seed, "retrain"))
    model = build_model(named, in_channels=data.in_channels, num_classes=data.num_classes).to(where)
    if isinstance(model, DASViT):  # at once: the file it came from may be gone at a restart
        model.genotype.save(out_dir / "genotype.json")
    optimizer = adamw(
        model.parameters(),
        lr=config.lr,
        weight_decay=config.weight_decay,
        spared=[] if config.decay_norms else norms_and_biases(model),
    )
    start, seconds, train_accuracy = 0, 0.0, math.nan

    def load(state: dict[str, Any]) -> None:
        nonlocal start, seconds, train_accuracy
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        set_rng_state(state["rng"], where)
        start, seconds = state["epoch"], state["seconds"]
        train_accuracy = state["train_accuracy"]

    checkpoint = out_dir / "checkpoint.pt"
    if resume and checkpoint.exists():
        restore(checkpoint, KIND, load)
    report = tee(JsonLinesReport(out_dir / "train.jsonl", start_epoch=start), report)

    for epoch in range(start, config.epochs):
        record = _train_epoch(config, model, optimizer, data.train, epoch, where)
        seconds += record.seconds
        train_accuracy = record.train_accuracy
        report(record)
        save_checkpoint(
            checkpoint,
            KIND,
            {
                "config": config_to_dict(config),
                "epoch": epoch + 1,
                "seconds": seconds,
                "train_accuracy": train_accuracy,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rng": get_rng_state(where),
            },
        )
    return _finish(config, model, data, out_dir, train_accuracy, seconds, report)


def _with_own_genotype(config: RetrainConfig, out_dir: Path) -> RetrainConfig:
    """The configuration with the folder's own copy of the genotype, if it has one."""
    own = out_dir / "genotype.json"
    return dataclasses.replace(config, model=str(own)) if own.exists() else config


def _finish(
    config: RetrainConfig,
    model: nn.Module,
    data: ImageData,
    out_dir: Path,
    train_accuracy: float,
    seconds: float,
    report: Report,
) -> RetrainResult:
    top1, top5 = topk_accuracy(model, data.test)
    result = RetrainResult(
        model=config.model,
        test_top1=top1,
        test_top5=top5,
        train_accuracy=train_accuracy,
        num_params=sum(p.numel() for p in model.parameters()),
        seconds=seconds,
    )
    save_model(out_dir, model, data)
    save_result(out_dir / "result.json", result)
    report(result)
    return result


def load_retrain_config(out_dir: str | Path) -> RetrainConfig:
    """The configuration of the run in a folder.

    Raises:
        ValueError: the folder holds no retraining.
    """
    return config_from_dict(RetrainConfig, read_settings(out_dir, KIND))


def _train_epoch(
    config: RetrainConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Split,
    epoch: int,
    device: torch.device,
) -> RetrainEpoch:
    started = time.perf_counter()
    model.train()
    steps = max(1, len(train) // config.batch_size)
    params = [p for p in model.parameters() if p.requires_grad]
    total_loss, correct = (torch.zeros((), device=device) for _ in range(2))
    seen = count = 0
    lr = config.lr
    batches = train.batches(config.batch_size, seed=derive_seed(config.seed, "order", epoch))
    for images, labels in batches:
        lr = cosine_lr(
            epoch * steps + count,
            config.epochs * steps,
            lr=config.lr,
            warmup_steps=config.warmup_epochs * steps,
            warmup_lr=config.warmup_lr,
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients([p.grad for p in params if p.grad is not None], config.grad_clip)
        optimizer.step()
        total_loss += loss.detach()
        correct += (logits.argmax(dim=1) == labels).sum()
        seen += len(labels)
        count += 1
    train_loss = total_loss.item() / count
    if not (math.isfinite(train_loss) and all_finite(params)):
        raise FloatingPointError(
            f"the training loss is {train_loss} in epoch {epoch}"
            f"{' and the weights are not finite' if math.isfinite(train_loss) else ''}; "
            "the last checkpoint is kept. "
            "Try a smaller lr, a longer warmup_epochs, or grad_clip"
        )
    return RetrainEpoch(
        epoch=epoch,
        total_epochs=config.epochs,
        train_loss=train_loss,
        train_accuracy=correct.item() / seen,
        lr=lr,
        seconds=time.perf_counter() - started,
    )


@torch.no_grad()
def topk_accuracy(model: nn.Module, split: Split) -> tuple[float, float]:
    """Top-1 and top-5 accuracy (ratios; top-5 of min(5, classes))."""
    model.eval()
    device = next(model.parameters()).device
    top1, top5 = torch.zeros((), device=device), torch.zeros((), device=device)
    for images, labels in split.batches(EVAL_BATCH):
        logits = model(images)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        top1 += best[:, 0].sum()
        top5 += best.any(dim=1).sum()
    return top1.item() / len(split), top5.item() / len(split)


def save_model(out_dir: Path, model: nn.Module, data: ImageData) -> None:
    """Weights as model.safetensors, and what is needed to use them as model.json."""
    write_atomic(out_dir / "model.safetensors", safetensors.torch.save(_tensors(model)))
    facts = {
        "class_names": list(data.class_names),
        "in_channels": data.in_channels,
        "mean": list(data.mean),
        "std": list(data.std),
    }
    write_atomic(out_dir / "model.json", json.dumps(facts, indent=2) + "\n")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


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
    named = _with_own_genotype(config, out_dir)
    model = build_model(named, in_channels=in_channels, num_classes=num_classes)
    path = out_dir / "model.safetensors"
    try:
        tensors = safetensors.torch.load_file(path)
        model.load_state_dict(tensors)
    except FileNotFoundError:
        raise ValueError(f"there are no weights {path}; is the retraining finished?") from None
    except (safetensors.SafetensorError, RuntimeError, OSError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{path} does not fit its config.json or is truncated ({first})") from None
    return model.to(device).eval(), config


def _model_facts(path: Path) -> tuple[int, int]:
    facts: Any = read_json(path, "trained model")
    try:
        in_channels, num_classes = facts["in_channels"], len(facts["class_names"])
    except (KeyError, TypeError):
        raise ValueError(
            f"{path} lacks in_channels or class_names; it was not saved here"
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
    return topk_accuracy(model, load_data(data_config, where).test)
