"""What a run reports: one small event per epoch, per stage and per run. Values only.

The loops call one `Report`, any callable that takes an event: a TensorBoard writer, Ray, a
progress line, or a test's `list.append`. Accuracies are ratios in [0, 1], times are seconds.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.genotype import Genotype, edge_list, source_name

__all__ = [
    "NEAR_UNIFORM",
    "Choosing",
    "Event",
    "Report",
    "RetrainEpoch",
    "RetrainResult",
    "SearchEpoch",
    "SearchResult",
    "StageEnd",
    "edge_name",
    "mean_entropy",
    "model_name",
    "operation_share",
    "scalars",
    "tee",
]

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchEpoch:
    """One epoch of a search, after its last step.

    Attributes:
        epoch: 0-based, counted over all stages.
        total_epochs: of the whole search.
        stage: 0-based.
        num_layers: encoder layers of the stage.
        train_loss: mean cross-entropy of the weight passes.
        train_accuracy: of the weight passes (ratio).
        val_loss: mean cross-entropy of the alpha passes (nan while the alphas are frozen).
        penalty: what the method adds to the validation loss, at the end of the epoch.
        val_accuracy: the supernet's, on the whole validation half (ratio); nan in epochs without
            evaluation.
        weights: weights of the candidates, one row per edge.
        edge_ops: the candidates of each row.
        steadiness: of alpha's gradient over the steps (`dasvit.search.monitor.Steadiness`): around
            1 it is noise; nan while alpha stays still, or where an earlier version searched.
        figures: the method's own numbers, by the tag that TensorBoard shows.
        weight_lr: learning rate of the weights in the last step.
        seconds: wall time of this epoch.
    """

    epoch: int
    total_epochs: int
    stage: int
    num_layers: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    penalty: float
    val_accuracy: float
    weights: Rows
    edge_ops: EdgeOps
    figures: dict[str, float]
    weight_lr: float
    seconds: float
    steadiness: float = math.nan

    @property
    def num_nodes(self) -> int:
        return next(n for n in range(1, 8) if len(edge_list(n)) == len(self.edge_ops))


NEAR_UNIFORM = 0.03
"""A search whose weights stayed within this of uniform has learned next to nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEnd:
    """A stage is over, and the next one has been entered (after the last there is none).

    Attributes:
        epoch: the stage's last, 0-based, counted over all stages.
        stage: 0-based.
        weights: weights of the candidates at its end, one row per edge.
        edge_ops: the candidates of each row.
        kept: those that the next stage keeps; None after the last.
        genotype: what the stage would derive.
        accuracy_before: the supernet's at the stage's end, on the validation half (ratio).
        accuracy_after: that of the next stage's supernet (pruned, grown, weights inherited) before
            any training, on the same images (ratio); None after the last stage.
        largest_class: share of these images in the largest class (ratio).
        stopped: why the method ended the stage before its last epoch, if it did.
    """

    epoch: int
    stage: int
    weights: Rows
    edge_ops: EdgeOps
    kept: EdgeOps | None
    genotype: Genotype
    accuracy_before: float
    accuracy_after: float | None
    largest_class: float
    stopped: str | None = None

    @property
    def pruned(self) -> dict[str, int]:
        """From how many edges each operation goes, by its name."""
        pairs = zip(self.edge_ops, self.kept or self.edge_ops, strict=True)
        return dict(Counter(name for old, new in pairs for name in old if name not in new))

    @property
    def drops_to_chance(self) -> bool:
        """Whether the change leaves the supernet at most half better than one answer to all images,
        and it was better before."""
        after, chance = self.accuracy_after, 1.5 * self.largest_class
        return after is not None and after <= chance < self.accuracy_before

    @property
    def decided(self) -> float:
        """How far alpha is from uniform: the most that a candidate's weight is above the mean of
        its edge."""
        return max(max(row) - sum(row) / len(row) for row in self.weights)

    def record(self) -> dict[str, Any]:
        """The change of stage as `SearchResult.stages` has it."""
        names = ("stage", "accuracy_before", "accuracy_after", "largest_class", "pruned", "decided")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True, slots=True)
class Choosing:
    """A search that is trained chooses its encoder, where that takes long: `done` steps of
    `total`."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        genotype: the derived encoder, with provenance.
        supernet_accuracy: the last supernet's, on the validation half (ratio).
        discretised_accuracy: the derived network's with inherited weights, same images (ratio).
        skip_share: mean weight of `identity` over all edges at the end.
        zero_share: mean weight of `zero` over all edges at the end.
        seconds: wall time of all epochs, restarts not counted.
        settings: the outer hyper-parameters, by name, for comparison of runs.
        stages: what each change of stage did to the supernet (`StageEnd.record`).
        largest_class: share of the validation half's images in the largest class (ratio).
        stopped: why the method ended the search before its last epoch, if it did.
        decided: `StageEnd.decided` of the stage where it is largest; None where alpha does not
            choose.
        proposals: encoders that it holds for the next best, the best first; empty where alpha
            chooses.
    """

    genotype: Genotype
    supernet_accuracy: float
    discretised_accuracy: float
    skip_share: float
    zero_share: float
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    largest_class: float | None = None
    stopped: str | None = None
    decided: float | None = None
    proposals: tuple[Genotype, ...] = ()

    @property
    def chose_at_random(self) -> bool:
        """Whether all weights stayed near uniform in every stage, so that little noise would have
        chosen otherwise."""
        return self.decided is not None and self.decided < NEAR_UNIFORM

    @property
    def collapsed(self) -> bool:
        """Whether at most one edge of the encoder holds more than a skip."""
        operations = self.genotype.operations
        return operations.count("identity") >= max(2, len(operations) - 1)

    @property
    def gap(self) -> float:
        """How much accuracy discretisation loses: supernet minus derived (ratio)."""
        return self.supernet_accuracy - self.discretised_accuracy


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainEpoch:
    """One epoch of a retraining (no held-out set exists while it runs)."""

    epoch: int
    total_epochs: int
    train_loss: float
    train_accuracy: float
    lr: float
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainResult:
    """A trained network, tested once: on the test images, or on those that were held out.

    Attributes:
        model: what was trained, as `RetrainConfig.model` names it.
        test_top1: ratio. test_top5: ratio (of min(5, classes)).
        train_accuracy: of the last epoch (ratio).
        num_params: parameters.
        seconds: wall time of all epochs.
        peak_memory_bytes: the most held at once: on a GPU by PyTorch's tensors, else by the whole
            process; None where a result was made without measuring it.
        num_processes: that trained it together.
        balanced_accuracy: mean over the classes of the share that is right (ratio).
        largest_class: share of the test images in the largest class (ratio): what one answer to
            all of them gets.
        num_tested: images it was tested on.
        latency_seconds: median time of a forward pass of one image alone, on the device that it was
            trained on.
        class_names: in the order of the labels. confusion: tested images by class (row) and answer
            (column). Both None with more than 200 classes.
    """

    model: str
    test_top1: float
    test_top5: float
    train_accuracy: float
    num_params: int
    seconds: float
    peak_memory_bytes: int | None = None
    num_processes: int = 1
    balanced_accuracy: float | None = None
    largest_class: float | None = None
    num_tested: int | None = None
    latency_seconds: float | None = None
    class_names: list[str] | None = None
    confusion: list[list[int]] | None = None

    @property
    def beats_one_answer(self) -> bool:
        """Whether it is better than one answer to all images, as far as that is known."""
        return self.largest_class is None or self.test_top1 > self.largest_class


Event = SearchEpoch | StageEnd | Choosing | SearchResult | RetrainEpoch | RetrainResult
Report = Callable[[Event], None]


def tee(*reports: Report) -> Report:
    """One report that hands each event to all, in order."""

    def report(event: Event) -> None:
        for each in reports:
            each(event)

    return report


def edge_name(source: int, node: int) -> str:
    """`e_{k-1}->o_0`, as in TensorBoard tags and figures."""
    return f"{source_name(source)}->o_{node}"


def model_name(model: str) -> str:
    """`RetrainConfig.model` as people call it: a genotype's file by its own name, or by its
    folder's where it is `genotype.json`."""
    path = Path(model)
    if path.suffix != ".json":
        return model
    return path.parent.name if path.stem == "genotype" else path.stem


def operation_share(weights: Sequence[Sequence[float]], edge_ops: EdgeOps, name: str) -> float:
    """Mean weight of an operation over all edges; an edge without it counts as 0."""
    total = sum(
        w
        for row, names in zip(weights, edge_ops, strict=True)
        for w, n in zip(row, names, strict=True)
        if n == name
    )
    return total / len(edge_ops)


def mean_entropy(weights: Sequence[Sequence[float]]) -> float:
    """Mean entropy of the rows in nats; ln(ops) at the start, 0 when decided. Weights that do not
    compete (FairDARTS) are divided by their sum first."""
    if any(not math.isclose(sum(row), 1.0, abs_tol=1e-4) for row in weights):
        weights = [[w / sum(row) for w in row] for row in weights]
    return sum(-sum(w * math.log(w) for w in row if w > 0) for row in weights) / len(weights)


def scalars(event: Event) -> dict[str, float]:
    """The event's numbers by name, flat: what TensorBoard, Ray and the JSON lines show."""
    if isinstance(event, SearchEpoch):
        return {
            "loss/train": event.train_loss,
            "loss/val": event.val_loss,
            "loss/penalty": event.penalty,
            "accuracy/train": event.train_accuracy,
            "accuracy/val": event.val_accuracy,
            "alpha/skip_share": operation_share(event.weights, event.edge_ops, "identity"),
            "alpha/zero_share": operation_share(event.weights, event.edge_ops, "zero"),
            "alpha/entropy": mean_entropy(event.weights),
            "alpha/steadiness": event.steadiness,
            **event.figures,
            "stage/num_layers": event.num_layers,
            "stage/num_ops": len(event.edge_ops[0]),
            "time/epoch_seconds": event.seconds,
            "lr/weights": event.weight_lr,
        }
    if isinstance(event, Choosing):
        return {}
    if isinstance(event, RetrainEpoch):
        return {
            "loss/train": event.train_loss,
            "accuracy/train": event.train_accuracy,
            "lr/weights": event.lr,
            "time/epoch_seconds": event.seconds,
        }
    if isinstance(event, SearchResult):
        return {
            "supernet_accuracy": event.supernet_accuracy,
            "discretised_accuracy": event.discretised_accuracy,
            "gap": event.gap,
            "skip_share": event.skip_share,
            "zero_share": event.zero_share,
            "seconds": event.seconds,
        }
    if isinstance(event, RetrainResult):
        return {
            "test_top1": event.test_top1,
            "test_top5": event.test_top5,
            "train_accuracy": event.train_accuracy,
            "num_params": event.num_params,
            "seconds": event.seconds,
        }
    end = {"accuracy/largest_class": event.largest_class, "alpha/decided": event.decided}
    if event.accuracy_after is None:  # no stage follows
        return end
    return end | {
        "stage/accuracy_before": event.accuracy_before,
        "stage/accuracy_after": event.accuracy_after,
    }
