"""Training one network from scratch, and testing it once (Section IV-A, Retraining Phase)."""

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dasvit.checkpoint import restore, save_checkpoint
from dasvit.complexity import check_num_params
from dasvit.config import RetrainConfig, config_to_dict
from dasvit.data import ImageData, check_data, load_data
from dasvit.environment import resolve_device
from dasvit.folder import check_folder, open_folder
from dasvit.metrics import Report, RetrainEpoch, RetrainResult, tee
from dasvit.models import build_model, model_on_meta
from dasvit.network import DASViT
from dasvit.ops import load_plugins
from dasvit.optim import adamw, all_finite, clip_gradients, cosine_lr, norms_and_biases
from dasvit.seed import derive_seed, get_rng_state, seed_everything, set_rng_state
from dasvit.split import Split
from dasvit.trace import JsonLinesReport, load_retrain_result, save_result
from dasvit.trained import (
    RETRAIN_KIND,
    save_deployable,
    save_model,
    topk_accuracy,
    with_own_genotype,
)

__all__ = ["check_retrain", "retrain"]


def check_retrain(config: RetrainConfig) -> None:
    """Everything that can be refused before training: data set, model, width, size.

    Raises:
        ValueError: one line with the value and the remedy.
    """
    load_plugins(config.plugins)
    check_data(config.data)
    model = model_on_meta(config)
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
    epoch), model.safetensors, genotype.json (of a derived network), model/ (the folder that timm
    loads) and result.json.

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
    named = with_own_genotype(config, out_dir) if resume else config
    check_retrain(named)
    where = resolve_device(device)
    settings = config_to_dict(config)
    check_folder(out_dir, RETRAIN_KIND, settings, resume=resume)
    if resume and (out_dir / "result.json").exists():
        return load_retrain_result(out_dir / "result.json")
    data = load_data(config.data, where)
    open_folder(out_dir, RETRAIN_KIND, settings)

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
        restore(checkpoint, RETRAIN_KIND, load)
    report = tee(JsonLinesReport(out_dir / "train.jsonl", start_epoch=start), report)

    for epoch in range(start, config.epochs):
        record = _train_epoch(config, model, optimizer, data.train, epoch, where)
        seconds += record.seconds
        train_accuracy = record.train_accuracy
        report(record)
        save_checkpoint(
            checkpoint,
            RETRAIN_KIND,
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
    save_deployable(out_dir, model, config, result)
    save_result(out_dir / "result.json", result)
    report(result)
    return result


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
