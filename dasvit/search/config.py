"""Settings of a search: the space and the method that are searched with, and the loop's own."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from dasvit.data.config import DataConfig
from dasvit.methods import DARTS, DASViT
from dasvit.methods.base import Stage
from dasvit.run.settings import Range, SettingError, check_settings, require
from dasvit.spaces import CellSpace

__all__ = ["SearchConfig"]

_PARTS = ("data", "space", "method")


def _small_space() -> CellSpace:
    operations = ("zero", "identity", "msa_h2", "msa_h3", "msa_h4", "mlp_r0.5", "mlp_r3", "mlp_r4")
    return CellSpace(operations=operations, dim=48, patch_size=2)


def _short_method() -> DASViT:
    return DASViT(stage_layers=(2, 3, 4), stage_epochs=2, alpha_lr=3e-2)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """Everything that decides what a search computes.

    Defaults are those of the command line: the embedded digits, on one CPU core. The paper's
    setting is in the preset `cifar10`, and in the defaults of `CellSpace` and `DASViT`.
    """

    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    space: CellSpace = field(default_factory=_small_space)
    """Which encoders there are."""
    method: DARTS = field(default_factory=_short_method)
    """How one of them is found."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register operations and methods of their own."""

    batch_size: Annotated[int, Range("[1, inf)")] = 18
    """Images per step, for the weight and the alpha batch alike."""
    weight_lr: Annotated[float, Range("(0, inf)")] = 6e-3
    """Initial learning rate of the weights, AdamW."""
    lr_span: Literal["stage", "search"] = "search"
    """What the cosine of the weights' learning rate runs over: each stage, or the whole search."""
    weight_decay: Annotated[float, Range("[0, inf)")] = 5e-2
    """Weight decay of the weights (IV-A)."""
    decay_norms: bool = True
    """Whether the weight decay acts on norms, biases, CLS and positions too."""
    grad_clip: Annotated[float, Range("[0, inf)")] = 1.0
    """Largest norm of the weight gradient; 0 does not clip."""
    val_fraction: Annotated[float, Range("(0, 1)")] = 0.5
    """Share of the training set that trains the alphas."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes under bfloat16 autocast; weights, alphas and optimisers stay in fp32."""
    compile: bool = False
    """Compile the encoders with `torch.compile`, once per stage: pays where a stage takes long
    beside that (docs/performance.md). Needs dropout 0."""
    cuda_graph: bool = False
    """Capture a step as a CUDA graph and replay it, on a GPU (docs/performance.md). Needs dropout
    0, and operations that neither draw random numbers nor wait for the device."""
    select: Literal["alpha", "perturbation"] = "alpha"
    """How the last stage's encoder is chosen: by alpha, or by what the supernet loses without each
    candidate (DARTS-PT, arXiv:2108.04392)."""
    select_epochs: Annotated[int, Range("[0, inf)")] = 1
    """With perturbation: epochs that tune the supernet after each of its decisions, one per edge
    and per node that loses edges."""
    monitor: Literal["none", "hessian"] = "none"
    """hessian: watch the largest eigenvalue of the validation loss' second derivative in alpha, and
    go back to before it grew (RobustDARTS, arXiv:1909.09656), from the tenth epoch of a stage on.
    Twenty to forty passes more per epoch."""
    checkpoint_epochs: Annotated[int, Range("[1, inf)")] = 1
    """Epochs from one checkpoint to the next; the last epoch of each stage has one too."""
    eval_epochs: Annotated[int, Range("[1, inf)")] = 1
    """Epochs from one evaluation of the supernet to the next; the last epoch of each stage has one
    too. It is for the curves and changes no result."""
    seed: Annotated[int, Range(f"[0, {2**63 - 1}]")] = 0
    """Seed of initialisation, split and data order."""

    def __post_init__(self) -> None:
        check_settings(self)
        space, method = self.space, self.method
        owners: dict[str, str] = {}
        for part, holder in self._parts().items():
            for name in _names(holder):
                other = owners.setdefault(name, part)
                require(
                    other == part,
                    f"{name} is a setting of the {other} and of the {part}; rename one of them",
                )
        dropout = space.dropout
        require(
            not self.compile or dropout == 0,
            f"compile needs dropout 0, but got {dropout}: the passes of a step would draw "
            "different masks",
        )
        drops = any(method.skip_drop(s, 0) > 0 for s in range(len(method.stage_layers)))
        require(
            not drops or not (self.compile or self.cuda_graph),
            f"method {method.name} drops skips at random, which neither compile nor cuda_graph can "
            "do; turn them off",
        )
        require(
            not self.cuda_graph or dropout == 0,
            f"cuda_graph needs dropout 0, but got {dropout}: a graph draws no masks",
        )
        require(
            self.data.image_size % space.patch_size == 0,
            f"patch_size must divide image_size, but got patch_size={space.patch_size}, "
            f"image_size={self.data.image_size}",
        )
        method.check_operations(space.operations)
        require(
            self.monitor == "none" or not method.route().sparse,
            f"method {method.name} draws single operations, whose weights have no second "
            "derivative; leave monitor=hessian out",
        )
        require(
            self.select == "alpha" or not method.route().sparse,
            f"method {method.name} draws single operations, beside which the others have no "
            f"weight to lose; leave select={self.select} out",
        )
        last = self.stages[-1].num_ops
        require(
            last >= 2 or "zero" not in space.operations or method.prune_zero == "first",
            "stage_ops must end at 2 or more while zero is ranked like the others, but ends at "
            f"{last}: an edge could be left with zero alone; use prune_zero=first or keep 2",
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the search."""
        return self.method.stages(len(self.space.operations))

    @property
    def total_epochs(self) -> int:
        """Epochs of all stages."""
        return self.method.total_epochs

    @property
    def outer_settings(self) -> dict[str, Any]:
        """The method's settings that a sweep varies, and the seed: they tell searches apart."""
        return {**self.method.outer_settings(), "seed": self.seed}

    @property
    def plain_darts(self) -> Self:
        """What this search is compared with: plain DARTS (`DARTS.like`) in first order. One stage
        at the first depth, for all epochs; all tokens; no fairness."""
        method = dataclasses.replace(DARTS.like(self.method), xi=0.0)
        return dataclasses.replace(self, method=method)

    def replaced(self, **settings: Any) -> Self:
        """The same with settings put in by their own names, whichever part they belong to.

        Raises:
            SettingError: no part has a setting of that name, or a value that is refused.
        """
        changes = {name: settings.pop(name) for name in _names(self) & settings.keys()}
        for part in _PARTS:
            base = changes.get(part, getattr(self, part))
            values = {name: settings.pop(name) for name in _names(base) & settings.keys()}
            changes[part] = dataclasses.replace(base, **values)
        if settings:
            raise SettingError(f"{next(iter(settings))!r} is no setting of this search")
        return dataclasses.replace(self, **changes)

    def setting(self, name: str) -> Any:
        """The value of a setting by its own name, whichever part it belongs to.

        Raises:
            SettingError: no part has a setting of that name.
        """
        for holder in self._parts().values():
            if name in _names(holder):
                return getattr(holder, name)
        raise SettingError(f"{name!r} is no setting of this search")

    def _parts(self) -> dict[str, Any]:
        return {"search": self, "data": self.data, "space": self.space, "method": self.method}


def _names(part: Any) -> set[str]:
    return {f.name for f in dataclasses.fields(part)}
