"""A network on its way: one epoch of training, and everything that a checkpoint holds."""

import math
import resource
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dasvit.data.splits import Split
from dasvit.report.events import RetrainEpoch
from dasvit.run.distributed import Processes
from dasvit.run.seed import derive_seed, get_rng_state, set_rng_state
from dasvit.training.config import RetrainConfig
from dasvit.training.optim import all_finite, clip_gradients
from dasvit.training.recipe import make_average, make_mixing, make_optimizer, make_schedule

__all__ = ["Training", "peak_memory"]


class Training:
    """A network, its optimiser and its moving average.

    Args:
        config: the recipe.
        model: freshly initialised, on its device.
        train: the images.
        num_classes: of the images.
        device: where all of it lives.
        processes: those that train together; each makes a `Training` of its own.
    """

    def __init__(
        self,
        config: RetrainConfig,
        model: nn.Module,
        train: Split,
        *,
        num_classes: int,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.config, self.model, self.train = config, model, train
        self.device, self.processes = device, processes
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(config, model)
        self.steps = max(1, len(train) // config.batch_size)
        self.schedule = make_schedule(config, self.optimizer, self.steps)
        self.mixing = make_mixing(config, num_classes)
        self.average = make_average(config, model)
        self.wrapped = processes.wrap(model, device)
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
                part = F.cross_entropy(logits.float(), y, label_smoothing=smoothing)
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


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: on the GPU by PyTorch, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
