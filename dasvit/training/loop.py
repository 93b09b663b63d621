"""Training one network from scratch, and testing it once (Section IV-A, Retraining Phase)."""

import dataclasses
import math
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dasvit.costs import check_num_params, latency
from dasvit.data.datasets import ImageData, check_data, load_data
from dasvit.data.splits import split_half
from dasvit.report.events import Report, RetrainEpoch, RetrainResult, tee
from dasvit.report.record import JsonLinesReport, load_retrain_result, save_result
from dasvit.run.checkpoint import CheckpointWriter, is_due, restore
from dasvit.run.distributed import Processes, current_processes
from dasvit.run.environment import (
    check_compiler,
    peak_memory,
    reset_peak_memory,
    resolve_device,
)
from dasvit.run.files import check_free_space, remove_unfinished
from dasvit.run.folder import check_folder, note_skipped, open_folder
from dasvit.run.plugins import load_plugins
from dasvit.run.seed import derive_seed, get_rng_state, seed_everything, set_rng_state
from dasvit.run.settings import config_to_dict
from dasvit.spaces.cell.derived_network import DerivedViT
from dasvit.training.answers import Answers, answers_of
from dasvit.training.config import RetrainConfig
from dasvit.training.model_folder import (
    MODEL_DIR,
    RETRAIN_KIND,
    ModelFacts,
    load,
    load_retrain_config,
    model_card,
    save_model_folder,
)
from dasvit.training.networks import architecture, build_network, model_on_meta
from dasvit.training.recipe import (
    all_finite,
    check_optimizer,
    clip_gradients,
    make_average,
    make_class_weights,
    make_mixing,
    make_optimizer,
    make_schedule,
    norms_and_biases,
)

__all__ = ["Training", "check_retrain", "evaluate", "retrain"]

LATENCY_SECONDS = 0.1
"""Time to measure the latency in."""
MOST_CLASSES = 200
"""Whose confusion matrix a result holds."""


class Training:
    """A network, its optimiser and its moving average.

    Args:
        config: the recipe.
        model: freshly initialised, on its device.
        data: the images.
        processes: those that train together; each makes a `Training` of its own.
    """

    def __init__(
        self, config: RetrainConfig, model: nn.Module, data: ImageData, processes: Processes
    ) -> None:
        self.config, self.model, self.train = config, model, data.train
        self.device, self.processes = next(model.parameters()).device, processes
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(
            (p for p in model.parameters() if p.requires_grad),
            config.optimizer,
            lr=config.lr,
            weight_decay=config.weight_decay,
            spared=[] if config.decay_norms else norms_and_biases(model),
        )
        self.steps = max(1, len(data.train) // config.batch_size)
        self.schedule = make_schedule(
            self.optimizer,
            steps=config.epochs * self.steps,
            warmup_steps=config.warmup_epochs * self.steps,
            warmup_lr=config.warmup_lr,
        )
        self.mixing = make_mixing(config, data.num_classes)
        self.class_weights = make_class_weights(config, data.train, data.num_classes, self.device)
        self.average = make_average(config, model)
        self.wrapped = processes.wrap(model, self.device)
        # Any: PyTorch annotates what it compiles as a function.
        self.forward: Any = torch.compile(self.wrapped) if config.compile else self.wrapped
        self.epochs_done, self.seconds, self.train_accuracy = 0, 0.0, math.nan

    @property
    def result(self) -> nn.Module:
        """What is tested and saved: the moving average where there is one."""
        return self.average.module if self.average else self.model

    def state(self) -> dict[str, Any]:
        """For a checkpoint, between two epochs."""
        return {
            "epoch": self.epochs_done,
            "seconds": self.seconds,
            "train_accuracy": self.train_accuracy,
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "rng": get_rng_state(self.device),
        }

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_rng_state(state["rng"], self.device)
        self.epochs_done, self.seconds = state["epoch"], state["seconds"]
        self.train_accuracy = state["train_accuracy"]

    def epoch(self) -> RetrainEpoch:
        """Train on every image once.

        Raises:
            FloatingPointError: the loss or a weight is not finite, in any process.
        """
        config, number = self.config, self.epochs_done
        started = time.perf_counter()
        self.model.train()
        self.forward.train()
        if self.processes.count > 1:
            # One process draws what all draw together; several draw apart.
            torch.manual_seed(derive_seed(config.seed, "epoch", number, self.processes.rank))
        if self.mixing:
            np.random.seed(derive_seed(config.seed, "mix", number, self.processes.rank) % 2**32)
        loss, correct, seen = (torch.zeros((), device=self.device) for _ in range(3))
        count = 0
        order = derive_seed(config.seed, "order", number)
        for batch in self.train.batches(config.batch_size, seed=order, share=self.processes.share):
            self.schedule.step_update(number * self.steps + count)
            batch_loss, batch_correct = self._step(*batch)
            loss += batch_loss
            correct += batch_correct
            seen += len(batch[1])
            count += 1
        self.processes.add_up(loss, correct, seen)
        train_loss = loss.item() / max(1, count * self.processes.count)
        self._check_finite(train_loss)
        self.epochs_done += 1
        record = RetrainEpoch(
            epoch=number,
            total_epochs=config.epochs,
            train_loss=train_loss,
            train_accuracy=correct.item() / seen.item(),
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=time.perf_counter() - started,
        )
        self.seconds += record.seconds
        self.train_accuracy = record.train_accuracy
        return record

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One update of the weights; the loss, and how many images were named rightly."""
        config = self.config
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        targets, smoothing = labels, config.label_smoothing
        if self.mixing:
            images, targets = self.mixing(images, labels)
            smoothing = 0.0  # the targets are smooth already
        self.optimizer.zero_grad(set_to_none=True)
        loss, correct = (torch.zeros((), device=self.device) for _ in range(2))
        parts = list(
            zip(images.chunk(config.accumulate), targets.chunk(config.accumulate), strict=True)
        )
        for i, (x, y) in enumerate(parts):
            with self._synchronised(i == len(parts) - 1):
                with torch.autocast(
                    self.device.type, torch.bfloat16, enabled=config.precision == "bf16"
                ):
                    logits = self.forward(x)
                part = self._loss(logits.float(), y, smoothing)
                if len(parts) > 1:
                    part = part * (len(x) / len(images))
                part.backward()
            loss += part.detach()
            wanted = y if y.dim() == 1 else y.argmax(dim=1)
            correct += (logits.argmax(dim=1) == wanted).sum()
        params = self.model.parameters()
        clip_gradients([p.grad for p in params if p.grad is not None], config.grad_clip)
        self.optimizer.step()
        if self.average:
            self.average.update(self.model)
        return loss, correct

    def _loss(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        if self.class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        # Not PyTorch's weighted mean: parts of a batch would no longer add up to it.
        return F.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            label_smoothing=smoothing,
            reduction="none",
        ).mean()

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients of a batch in parts cross between processes once, with its last part."""
        if isinstance(self.wrapped, DistributedDataParallel) and not last:
            return self.wrapped.no_sync()
        return nullcontext()

    def _check_finite(self, train_loss: float) -> None:
        bad = torch.tensor(
            float(not (math.isfinite(train_loss) and all_finite([*self.model.parameters()]))),
            device=self.device,
        )
        self.processes.add_up(bad)
        if bad.item():
            raise FloatingPointError(
                f"the training loss is {train_loss} in epoch {self.epochs_done}"
                f"{' and the weights are not finite' if math.isfinite(train_loss) else ''}; "
                f"{'the last checkpoint is kept. ' if self.epochs_done else ''}"
                "Try a smaller lr, a longer warmup_epochs, or grad_clip"
            )


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
    """Train on the full training set, then look at the test set once; with `held_out`, on a part of
    it, then look at the rest.

    Writes into `out_dir`: config.json, genotype.json (of a derived network), checkpoint.pt (every
    epoch), train.jsonl (one line per epoch), model/ (`dasvit.training.model_folder`) and
    result.json.

    In every process of a process group (`torch.distributed`) at once it trains one network with all
    of them: each takes its rows of every batch and reports its epochs, the first writes the files.

    Args:
        config: what to train and how.
        out_dir: made if missing.
        report: called with `RetrainEpoch`, and in the first process with `RetrainResult`.
        resume: continue from the checkpoint in `out_dir`; without one, start; if the run is
            finished, return its result.
        device: "cpu", "cuda", "cuda:1", or "auto".

    Raises:
        ValueError: settings that cannot run, or an `out_dir` that holds another run.
        FloatingPointError: a loss that is not finite; the last checkpoint is kept.
    """
    out_dir = Path(out_dir)
    processes = current_processes()
    own = out_dir / "genotype.json"  # the file it came from may be gone at a restart
    named = dataclasses.replace(config, model=str(own)) if resume and own.exists() else config
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
    reset_peak_memory(where)
    checkpoint = out_dir / "checkpoint.pt"
    if processes.first:
        remove_unfinished(checkpoint)  # before the room on the disk is looked at
    else:
        processes.wait()  # the first one finds out which images can be read
    data = load_data(config.data, where)
    if config.held_out:
        train, test = split_half(data.train, config.held_out, config.seed)
        data = dataclasses.replace(data, train=train, test=test)
    if processes.first:
        processes.wait()

    seed_everything(derive_seed(config.seed, "retrain"))
    model = build_network(named, in_channels=data.in_channels, num_classes=data.num_classes).to(
        where
    )
    facts = ModelFacts(
        *architecture(named, in_channels=data.in_channels, num_classes=data.num_classes),
        class_names=tuple(data.class_names),
        in_channels=data.in_channels,
        image_size=config.data.image_size,
        mean=tuple(data.mean),
        std=tuple(data.std),
    )
    # Weights, two moments and an average, twice: a checkpoint is whole before the last one goes.
    check_free_space(out_dir, 2 * 4 * 4 * sum(p.numel() for p in model.parameters()))
    processes.wait()  # all have checked the folder
    if processes.first:
        open_folder(out_dir, RETRAIN_KIND, settings)
        note_skipped(out_dir, data.skipped)
        if isinstance(model, DerivedViT):
            model.genotype.save(own)
    training = Training(config, model, data, processes)
    if resume and checkpoint.exists():
        restore(checkpoint, RETRAIN_KIND, training.load, data.facts)
    if processes.first:
        trace = JsonLinesReport(out_dir / "train.jsonl", start_epoch=training.epochs_done)
        report = tee(trace, report)
    writer = CheckpointWriter(checkpoint, RETRAIN_KIND) if processes.first else nullcontext()
    with writer as checkpoints:
        while training.epochs_done < config.epochs:
            record = training.epoch()
            report(record)
            if checkpoints is None:
                continue
            checkpoints.check()
            if is_due(training.epochs_done, config.checkpoint_epochs, config.epochs):
                checkpoints.save({"config": settings, "data": data.facts, **training.state()})
        tested = answers_of(training.result, data.test, processes)
    result = RetrainResult(
        model=config.model,
        test_top1=tested.accuracy,
        test_top5=tested.top5_accuracy,
        balanced_accuracy=tested.balanced_accuracy,
        largest_class=tested.largest_class,
        num_tested=tested.count,
        train_accuracy=training.train_accuracy,
        num_params=sum(p.numel() for p in model.parameters()),
        seconds=training.seconds,
        peak_memory_bytes=peak_memory(where),
        num_processes=processes.count,
        class_names=list(data.class_names) if data.num_classes <= MOST_CLASSES else None,
        confusion=[*map(list, tested.confusion)] if data.num_classes <= MOST_CLASSES else None,
    )
    if processes.first:
        side = config.data.image_size
        image = torch.zeros(1, data.in_channels, side, side, device=where)
        timed = latency(training.result, image, seconds=LATENCY_SECONDS).median
        result = dataclasses.replace(result, latency_seconds=timed)
        card = model_card(facts, config, result)
        save_model_folder(out_dir / MODEL_DIR, training.result, facts, card)
        save_result(out_dir / "result.json", result)
        report(result)
    processes.wait()
    return result


def evaluate(run_dir: str | Path, *, device: str = "cpu", data_dir: str | None = None) -> Answers:
    """The answers of a retraining folder's model to the test images.

    Args:
        data_dir: where the data set lies on this machine, if not where it was trained.

    Raises:
        ValueError: no finished retraining there, or another data set.
    """
    config = load_retrain_config(run_dir).data
    trained = load(run_dir, device)
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=data_dir)
    data, facts = load_data(config, resolve_device(device)), trained.facts
    if (facts.class_names, facts.in_channels) != (tuple(data.class_names), data.in_channels):
        raise ValueError(
            f"{run_dir} was trained on other classes or channels than {config.dataset} in "
            f"{config.data_dir} has; give the --data-dir of its own data set"
        )
    answers = answers_of(trained.model, data.test.normalised_by(facts.mean, facts.std))
    return dataclasses.replace(answers, class_names=facts.class_names)
