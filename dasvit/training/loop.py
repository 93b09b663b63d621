"""Training one network from scratch, and testing it once (Section IV-A, Retraining Phase)."""

from contextlib import nullcontext
from pathlib import Path

from torch import nn

from dasvit.costs import check_num_params
from dasvit.data.datasets import ImageData, check_data, load_data
from dasvit.report.events import Report, RetrainResult, tee
from dasvit.report.record import JsonLinesReport, load_retrain_result, save_result
from dasvit.run.checkpoint import CheckpointWriter, is_due, restore
from dasvit.run.distributed import current_processes
from dasvit.run.environment import check_compiler, resolve_device
from dasvit.run.files import check_free_space, remove_unfinished
from dasvit.run.folder import check_folder, note_skipped, open_folder
from dasvit.run.seed import derive_seed, seed_everything
from dasvit.run.settings import config_to_dict
from dasvit.spaces.cell.network import DASViT
from dasvit.spaces.cell.operations import load_plugins
from dasvit.training.config import RetrainConfig
from dasvit.training.epochs import Training, peak_memory
from dasvit.training.networks import build_model, model_on_meta
from dasvit.training.recipe import check_optimizer
from dasvit.training.trained import (
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
    check_optimizer(config.optimizer)
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

    In every process of a process group (`torch.distributed`) at once it trains one network with all
    of them: each takes its rows of every batch, the first writes the files and reports.

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
    processes = current_processes()
    named = with_own_genotype(config, out_dir) if resume else config
    check_retrain(named)
    if config.batch_size % processes.count:
        raise ValueError(
            f"batch_size must be a multiple of the {processes.count} processes that share it, but "
            f"got {config.batch_size}"
        )
    where = resolve_device(device)
    if config.compile:
        check_compiler(where)
    settings = config_to_dict(config)
    defaults = config_to_dict(RetrainConfig())
    check_folder(out_dir, RETRAIN_KIND, settings, defaults=defaults, resume=resume)
    if resume and (out_dir / "result.json").exists():
        return load_retrain_result(out_dir / "result.json")
    checkpoint = out_dir / "checkpoint.pt"
    if processes.first:
        remove_unfinished(checkpoint)  # before the room on the disk is looked at
    else:
        processes.wait()  # the first one finds out which images can be read
    data = load_data(config.data, where)
    if processes.first:
        processes.wait()

    seed_everything(derive_seed(config.seed, "retrain"))
    model = build_model(named, in_channels=data.in_channels, num_classes=data.num_classes).to(where)
    # Weights, two moments and an average, twice: a checkpoint is whole before the last one goes.
    check_free_space(out_dir, 2 * 4 * 4 * sum(p.numel() for p in model.parameters()))
    processes.wait()  # all have checked the folder
    if processes.first:
        open_folder(out_dir, RETRAIN_KIND, settings)
        note_skipped(out_dir, data.skipped)
        if isinstance(model, DASViT):  # at once: the file it came from may be gone at a restart
            model.genotype.save(out_dir / "genotype.json")
    training = Training(
        config,
        model,
        data.train,
        num_classes=data.num_classes,
        device=where,
        processes=processes,
    )
    if resume and checkpoint.exists():
        restore(checkpoint, RETRAIN_KIND, training.load, data.facts)
    if processes.first:
        trace = JsonLinesReport(out_dir / "train.jsonl", start_epoch=training.epochs_done)
        report = tee(trace, report)
    writer = CheckpointWriter(checkpoint, RETRAIN_KIND) if processes.first else nullcontext()
    with writer as checkpoints:
        while training.epochs_done < config.epochs:
            record = training.epoch()
            if checkpoints is None:
                continue
            report(record)
            checkpoints.check()
            if is_due(training.epochs_done, config.checkpoint_epochs, config.epochs):
                checkpoints.save({"config": settings, "data": data.facts, **training.state()})
        tested = topk_accuracy(training.result, data.test, processes)
    return _finish(config, training, tested, data, out_dir, report)


def _finish(
    config: RetrainConfig,
    training: Training,
    tested: tuple[float, float],
    data: ImageData,
    out_dir: Path,
    report: Report,
) -> RetrainResult:
    model: nn.Module = training.result
    processes = training.processes
    result = RetrainResult(
        model=config.model,
        test_top1=tested[0],
        test_top5=tested[1],
        train_accuracy=training.train_accuracy,
        num_params=sum(p.numel() for p in model.parameters()),
        seconds=training.seconds,
        peak_memory_bytes=peak_memory(training.device),
        num_processes=processes.count,
    )
    if processes.first:
        save_model(out_dir, model, data)
        save_deployable(out_dir, model, config, result)
        save_result(out_dir / "result.json", result)
        report(result)
    processes.wait()
    return result
