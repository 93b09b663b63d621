"""Algorithm 1: the progressive bilevel search, from a configuration to a genotype.

Epochs end in an atomic checkpoint; a run that is killed and resumed ends as one that was
not, bit for bit on CPU.
"""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from dasvit.data.datasets import ImageData, load_data
from dasvit.data.splits import Split, endless, split_half
from dasvit.methods.base import Ranking
from dasvit.report.events import (
    Report,
    Rows,
    SearchEpoch,
    SearchResult,
    StageEnd,
    operation_share,
    tee,
)
from dasvit.report.record import JsonLinesReport, load_search_result, save_result
from dasvit.run.checkpoint import CheckpointWriter, is_due, restore
from dasvit.run.environment import check_compiler, check_cuda_graph, resolve_device
from dasvit.run.folder import check_folder, note_skipped, open_folder, read_settings
from dasvit.run.plugins import load_plugins
from dasvit.run.seed import (
    derive_seed,
    generator,
    get_rng_state,
    seed_everything,
    set_rng_state,
)
from dasvit.run.settings import config_from_dict, config_to_dict
from dasvit.search.checks import check_search
from dasvit.search.choose import choose
from dasvit.search.config import SearchConfig
from dasvit.search.model import build_search_model
from dasvit.search.monitor import Steadiness, dominant_eigenvalue, epoch_before_sharpness
from dasvit.search.score import accuracy
from dasvit.search.step import BilevelStep
from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.genotype import Genotype
from dasvit.spaces.cell.operations import IDENTITY
from dasvit.training.recipe import all_finite, make_schedule

__all__ = ["load_search_config", "search"]

KIND = "dasvit/search/2"


def search(
    config: SearchConfig,
    out_dir: str | Path,
    *,
    report: Report = lambda event: None,
    resume: bool = False,
    device: str = "cpu",
) -> SearchResult:
    """Run Algorithm 1 and derive the encoder.

    Writes into `out_dir`: config.json, checkpoint.pt (every `checkpoint_epochs`), alpha.jsonl (one
    line per epoch), genotype.json and result.json.

    Args:
        config: what to compute.
        out_dir: made if missing.
        report: called with `SearchEpoch`, `StageEnd`, `Choosing` and `SearchResult`.
        resume: continue from the checkpoint in `out_dir`; without one, start; if the run is
            finished, return its result.
        device: "cpu", "cuda", "cuda:1", or "auto".

    Raises:
        ValueError: settings that cannot run, no compiler for `compile`, no GPU for `cuda_graph`, or
            an `out_dir` that holds another run.
        FloatingPointError: a loss that is not finite; the last checkpoint is kept.
    """
    check_search(config)
    where = resolve_device(device)
    if config.compile:
        check_compiler(where)
    if config.cuda_graph:
        check_cuda_graph(where)
    out_dir = Path(out_dir)
    settings = config_to_dict(config)
    # Not as a SearchConfig: a method's own defaults may ask for other operations.
    defaults = config_to_dict(SearchConfig()) | {"method": config_to_dict(type(config.method)())}
    check_folder(out_dir, KIND, settings, defaults=defaults, resume=resume)
    if resume and (out_dir / "result.json").exists():
        return load_search_result(out_dir / "result.json")
    data = load_data(config.data, where)
    open_folder(out_dir, KIND, settings)
    note_skipped(out_dir, data.skipped)
    train, val = split_half(data.train, config.val_fraction, config.seed)

    run = _Run(config, data, where)
    checkpoint = out_dir / "checkpoint.pt"
    if resume and checkpoint.exists():
        restore(checkpoint, KIND, run.load_state_dict, data.facts)
    report = tee(JsonLinesReport(out_dir / "alpha.jsonl", start_epoch=run.epoch), report)

    with CheckpointWriter(checkpoint, KIND) as checkpoints:
        while True:
            while run.epoch < run.stage_end:
                report(run.train_epoch(train, val))
                checkpoints.check()
                # After the report: a crash between the two repeats the epoch, and loses nothing.
                if is_due(run.epoch, config.checkpoint_epochs, run.stage_end):
                    checkpoints.save({**run.state_dict(), "data": data.facts})
            end = run.end_stage(val)
            report(end)
            if end.kept is None:
                break
        result = run.finish(end, train, val, report)

    result.genotype.save(out_dir / "genotype.json")
    save_result(out_dir / "result.json", result)
    report(result)
    return result


def load_search_config(out_dir: str | Path) -> SearchConfig:
    """The configuration of the run in a folder.

    Raises:
        ValueError: the folder holds no search.
    """
    settings = read_settings(out_dir, KIND)
    load_plugins(settings.get("plugins", ()))  # they may hold its method
    return config_from_dict(SearchConfig, settings)


class _Run:
    """The state of Algorithm 1: model, both optimisers, and where in the schedule it is."""

    def __init__(self, config: SearchConfig, data: ImageData, device: torch.device) -> None:
        self.config, self.device = config, device
        self._in_channels, self._num_classes = data.in_channels, data.num_classes
        self.epoch = 0
        self.stage = 0
        self.seconds = 0.0
        self.changes: list[dict[str, Any]] = []
        self._enter(0, None)

    def _enter(self, stage: int, edge_ops: EdgeOps | None) -> None:
        """Algorithm 1, lines 4-5: a fresh model and fresh optimisers for a stage."""
        seed_everything(derive_seed(self.config.seed, "stage", stage))
        self.stage, self.stage_start = stage, self.epoch
        self.history: list[Ranking] = []
        # By epoch in which alpha is watched: the eigenvalue, and the architecture parameters.
        self.curvature: list[tuple[float, dict[str, Tensor]]] = []
        self.model = build_search_model(
            self.config,
            edge_ops,
            num_layers=self.config.stages[stage].num_layers,
            in_channels=self._in_channels,
            num_classes=self._num_classes,
        ).to(self.device)
        if self.config.compile:
            self.model.supernet.compile_encoders()
        self.step = BilevelStep(self.config, self.model)

    @property
    def edge_ops(self) -> EdgeOps:
        """The candidates of the present stage."""
        return self.model.candidates.edge_ops

    @property
    def stopped(self) -> str | None:
        """Why the stage ends before its last epoch, if it does."""
        if self._sharp is not None:
            return f"before the Hessian's eigenvalue grew, in epoch {self._sharp + 1} of alpha"
        return self.config.method.stop(self.history)

    @property
    def _sharp(self) -> int | None:
        return epoch_before_sharpness([eigenvalue for eigenvalue, _ in self.curvature])

    @torch.no_grad()
    def _go_back(self) -> None:
        """To the architecture parameters of before the minimum was sharp, where it is now."""
        if self._sharp is not None:
            for name, value in self.curvature[self._sharp][1].items():
                self.model.arch[name].copy_(value)

    @property
    def stage_end(self) -> int:
        """The first epoch after the present stage."""
        if self.stopped is not None:
            return self.epoch
        return self.stage_start + self.config.stages[self.stage].epochs

    def train_epoch(self, train: Split, val: Split) -> SearchEpoch:
        """Algorithm 1, lines 10-16: alpha then weights on every batch of the weight half."""
        started = time.perf_counter()
        config, model = self.config, self.model
        model.train()
        steps = max(1, len(train) // config.batch_size)
        by_stage = config.lr_span == "stage" or config.method.lr_by_stage
        epochs_before = self.epoch - self.stage_start if by_stage else self.epoch
        epochs_in_all = self.stage_end - self.stage_start if by_stage else config.total_epochs
        search_alpha = not config.method.frozen(self.epoch - self.stage_start)
        model.supernet.drop_skips(
            config.method.skip_drop(self.stage, self.epoch - self.stage_start)
        )
        val_batches = endless(val, config.batch_size, config.seed, "alpha order", self.epoch)
        train_batches = train.batches(
            config.batch_size, seed=derive_seed(config.seed, "weight order", self.epoch)
        )
        # Sums stay on the device: nothing waits for a value before the epoch ends.
        train_loss, val_loss, correct = (torch.zeros((), device=self.device) for _ in range(3))
        count = seen = 0
        steadiness = Steadiness()
        schedule = make_schedule(self.step.weight_optimizer, steps=epochs_in_all * steps)
        lr = config.weight_lr
        for batch in train_batches:
            val_batch = next(val_batches) if search_alpha else None
            schedule.step_update(epochs_before * steps + count)
            lr = self.step.weight_optimizer.param_groups[0]["lr"]
            done = (self.epoch + count / steps) / config.total_epochs
            loss, logits, found = self.step(batch, val_batch, weight_lr=lr, t=done)
            if found is not None:
                val_loss += found.val_loss
                steadiness.add(found.gradients)
            train_loss += loss
            correct += (logits.argmax(dim=1) == batch[1]).sum()
            count += 1
            seen += len(batch[1])
        self.epoch += 1
        self._show_progress()
        if search_alpha and self.model.scores().isfinite().all():
            skips = self.derive().operations.count(IDENTITY)
            self.history.append(Ranking(self.model.order(), skips))
            if config.monitor == "hessian":
                order = torch.randperm(len(val), generator=generator(config.seed, "curvature"))
                batch = next(val.subset(order[: config.batch_size]).batches(config.batch_size))
                eigenvalue = dominant_eigenvalue(model, batch)
                arch = {name: value.detach().cpu().clone() for name, value in model.arch.items()}
                self.curvature.append((eigenvalue, arch))
        evaluates = is_due(self.epoch, config.eval_epochs, self.stage_end)
        val_accuracy = accuracy(model, val) if evaluates else math.nan
        record = self._record(
            train_loss=train_loss.item() / count,
            train_accuracy=correct.item() / seen,
            val_loss=val_loss.item() / count if search_alpha else math.nan,
            val_accuracy=val_accuracy,
            steadiness=steadiness.value(),
            weight_lr=lr,
            seconds=time.perf_counter() - started,
        )
        self.seconds += record.seconds
        return record

    def _show_progress(self) -> None:
        """Tell the method how much of the search is done."""
        self.model.t.fill_(self.epoch / self.config.total_epochs)

    def _record(self, *, val_loss: float, train_loss: float, **values: float) -> SearchEpoch:
        epoch = self.epoch - 1  # the one that has just ended
        weights = self.model.shares()
        finite = math.isfinite(train_loss) and all_finite(list(self.model.parameters()))
        if not finite:
            kept = "; the last checkpoint is kept" if epoch else ""
            raise FloatingPointError(
                f"the loss or the weights are not finite in epoch {epoch} (loss "
                f"{train_loss}){kept}. Try a smaller weight_lr, or grad_clip"
            )
        penalty = self.model.penalty(weights)
        watched = {"hessian/eigenvalue": self.curvature[-1][0]} if self.curvature else {}
        return SearchEpoch(
            epoch=epoch,
            total_epochs=self.config.total_epochs,
            stage=self.stage,
            num_layers=self.model.supernet.num_layers,
            train_loss=train_loss,
            val_loss=val_loss,
            penalty=0.0 if penalty is None else penalty.item(),
            weights=_rows(weights),
            edge_ops=self.edge_ops,
            figures=self.model.figures(weights) | watched,
            **values,
        )

    def end_stage(self, val: Split) -> StageEnd:
        """Algorithm 1, lines 17-18, and 4-8 where a stage follows. The supernet is scored on the
        validation half before and after; that draws nothing and changes nothing."""
        stopped = self.stopped
        self._go_back()
        kept = self._pruned()
        end = StageEnd(
            epoch=self.epoch - 1,
            stage=self.stage,
            weights=_rows(self.model.shares()),
            edge_ops=self.edge_ops,
            kept=None if kept is None else kept[0],
            genotype=self.derive(),
            accuracy_before=accuracy(self.model, val),
            accuracy_after=None,
            largest_class=val.targets.bincount().max().item() / len(val),
            stopped=stopped,
        )
        if kept is not None:
            self._enter_next_stage(*kept)
            end = replace(end, accuracy_after=accuracy(self.model, val))
            self.changes.append(end.record())
        return end

    def _pruned(self) -> tuple[EdgeOps, Int[Tensor, "edges kept"]] | None:
        """Algorithm 1, lines 17-18: what the next stage keeps; None after the last stage."""
        config = self.config
        if self.stage + 1 == len(config.stages):
            return None
        return config.space.prune(
            self.model.scores(),
            self.edge_ops,
            config.stages[self.stage + 1].num_ops,
            zero=config.method.prune_zero,
        )

    def _enter_next_stage(self, edge_ops: EdgeOps, columns: Int[Tensor, "edges kept"]) -> None:
        """Algorithm 1, lines 4-8, from the second stage on."""
        method, old = self.config.method, self.model
        del self.step  # optimisers' states and a captured step: not held beside the next stage's
        self._enter(self.stage + 1, edge_ops)
        if method.inherit_weights != "fresh":
            order = method.inherit_weights
            self.config.space.inherit(old.supernet, self.model.supernet, order=order)
        with torch.no_grad():
            for name, value in method.carried(old.named_arch(), columns).items():
                self.model.arch[name].copy_(value)
        self._show_progress()

    def derive(self) -> Genotype:
        """Algorithm 1, line 21."""
        return self.config.space.derive(
            self.model.scores(),
            self.edge_ops,
            least_score=self.config.method.least_score,
            most_skips=self.config.method.most_skips,
            provenance={
                "seed": self.config.seed,
                "epoch": self.epoch,
                "alpha_trace": "alpha.jsonl",
                "settings": config_to_dict(self.config),
            },
        )

    def finish(self, end: StageEnd, train: Split, val: Split, report: Report) -> SearchResult:
        """What the search ends with, scored on the validation half."""
        self.model.supernet.drop_skips(0.0)
        genotype, *others = choose(self.config, self.model, end.genotype, train, val, report)
        derived = self.config.space.network(self.model.supernet, genotype)
        decided = max(stage.get("decided", 0.0) for stage in [*self.changes, end.record()])
        return SearchResult(
            genotype=genotype,
            proposals=tuple(others),
            supernet_accuracy=end.accuracy_before,
            discretised_accuracy=accuracy(derived, val),
            skip_share=operation_share(end.weights, end.edge_ops, "identity"),
            zero_share=operation_share(end.weights, end.edge_ops, "zero"),
            seconds=self.seconds,
            settings=self.config.outer_settings,
            stages=self.changes,
            largest_class=end.largest_class,
            stopped=end.stopped,
            decided=decided if genotype is end.genotype else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on. The data order is a function of seed
        and epoch, the learning rate of the step."""
        return {
            "config": config_to_dict(self.config),
            "stage": self.stage,
            "stage_start": self.stage_start,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "changes": self.changes,
            "history": [tuple(ranking) for ranking in self.history],
            "curvature": self.curvature,
            "edge_ops": [list(names) for names in self.edge_ops],
            "model": self.model.state_dict(),
            "weight_optimizer": self.step.weight_optimizer.state_dict(),
            "arch_optimizer": self.step.arch_optimizer.state_dict(),
            "rng": get_rng_state(self.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._enter(state["stage"], tuple(tuple(names) for names in state["edge_ops"]))
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.changes = state.get("changes", [])  # an earlier version kept none of these
        planned = sum(stage.epochs for stage in self.config.stages[: self.stage])
        self.stage_start = state.get("stage_start", planned)
        self.history = [Ranking(*values) for values in state.get("history", [])]
        self.curvature = state.get("curvature", [])
        self.model.load_state_dict(state["model"])
        self._show_progress()
        self.step.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.step.arch_optimizer.load_state_dict(state["arch_optimizer"])
        set_rng_state(state["rng"], self.device)


def _rows(weights: Tensor) -> Rows:
    return tuple(tuple(row) for row in weights.tolist())
