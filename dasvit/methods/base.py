"""A search method as settings that act; the base class is plain DARTS (arXiv:1806.09055).

A search is a space, a method and a loop. The space says which networks exist, the loop is
Algorithm 1 for any pair. The method says how the architecture parameters become the weights of
the candidates, what else acts on them, in which stages the search goes on, and what a sweep varies.
Another method is a subclass that overrides some of the hooks below:

    @register_method
    @dataclass(frozen=True, kw_only=True)
    class BetaDARTS(DARTS):
        name: ClassVar[str] = "betadarts"
        beta: float = 50.0

        def penalty(self, arch, weights, candidates, t):
            return t * self.beta * arch["alpha"].logsumexp(dim=-1).mean()

`arch` holds the architecture parameters by name, `weights` is (edges, ops), and `t` is the share of
the search that is done, a scalar tensor in [0, 1). With `cuda_graph` a hook must draw no random
numbers and wait for nothing: what is random comes from `noise`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from dasvit.methods.domains import Choice, Domain, LogUniform, Uniform
from dasvit.run.plugins import registry
from dasvit.run.settings import Range, check_settings, require
from dasvit.spaces.base import Route

if TYPE_CHECKING:
    from typing import Self, TypeVar

    from jaxtyping import Float, Int
    from torch import Tensor

    from dasvit.spaces.cell.candidates import Candidates

    Arch = Mapping[str, Tensor]
    MethodT = TypeVar("MethodT", bound="type[DARTS]")

__all__ = [
    "DARTS",
    "Choice",
    "Domain",
    "LogUniform",
    "Ranking",
    "Stage",
    "Uniform",
    "get_method",
    "method_names",
    "register_method",
]


class Ranking(NamedTuple):
    """What alpha would choose after an epoch."""

    order: tuple[tuple[str, ...], ...]
    """The candidates of each edge but `zero` and `identity`, the strongest first."""
    skips: int
    """Edges of the derived encoder that hold `identity`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of a search: encoder layers of its supernet, candidates per edge, epochs."""

    num_layers: int
    num_ops: int
    epochs: int


@dataclass(frozen=True, kw_only=True)
class DARTS:
    """Plain DARTS: softmax(alpha) weighs the candidates of an edge, in one stage."""

    name: ClassVar[str] = "darts"
    """What `--method` calls it."""
    title: ClassVar[str] = "plain DARTS"
    """What reports call it; by default its name."""
    staged: ClassVar[bool] = False
    """Whether it goes on in several stages where a preset has them."""
    lr_by_stage: ClassVar[bool] = False
    """Whether the weights' learning rate begins anew in each stage, whatever `lr_span` says."""
    tied: ClassVar[tuple[str, ...]] = ()
    """Names of draws (`outer_space`) that bound each other."""
    own: ClassVar[tuple[str, ...]] = ()
    """Settings that it never takes over from another method (`like`)."""

    stage_layers: tuple[Annotated[int, Range("[1, 1000]")], ...] = (2,)
    """Encoder layers of the supernet, one number per stage."""
    stage_ops: tuple[Annotated[int, Range("[1, inf)")], ...] = ()
    """Candidates kept on each edge, one number per stage; the first is the number of operations.
    Without numbers all are kept."""
    stage_epochs: Annotated[int, Range("[1, inf)")] = 90
    """Epochs of each stage."""
    inherit_weights: Literal["cyclic", "stretched", "fresh"] = "cyclic"
    """Where the layers of a new stage get their weights: cyclic (layer l from layer l mod the old
    depth, 0 1 0 1), stretched (the old layers in their order, 0 0 1 1), or fresh (initialised
    anew)."""
    inherit_alpha: Literal["carry", "reset"] = "carry"
    """Whether the alphas that survive go on in the next stage or start anew."""
    prune_zero: Literal["ranked", "first"] = "ranked"
    """Whether `zero` is pruned by its weight like the others, or goes first."""

    xi: Annotated[float, Range("[0, inf)", "0 is the first-order approximation")] = 0.0
    """ξ: learning rate of the virtual weight step; 0 is first order (Algorithm 1, line 13)."""
    alpha_lr: Annotated[float, Range("(0, inf)")] = 3e-4
    """Learning rate of the alphas, Adam."""
    alpha_betas: tuple[Annotated[float, Range("[0, 1)")], Annotated[float, Range("[0, 1)")]] = (
        0.5,
        0.999,
    )
    """Adam's betas for the alphas."""
    alpha_weight_decay: Annotated[float, Range("[0, inf)")] = 1e-3
    """Weight decay of the alphas."""
    alpha_init_std: Annotated[float, Range("[0, inf)")] = 1e-3
    """Standard deviation of the alphas at the start."""
    alpha_freeze_epochs: Annotated[int, Range("[0, inf)")] = 0
    """Epochs at the start of each stage in which the alphas stay still."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = vars(cls)
        if "title" not in own:
            cls.title = cls.name

    def __post_init__(self) -> None:
        check_settings(self)
        layers, ops = self.stage_layers, self.stage_ops
        require(
            len(layers) >= 1 and len(ops) in (0, len(layers)),
            f"stage_layers and stage_ops must have one entry per stage, but got {layers} and {ops}",
        )
        require(
            all(a >= b for a, b in itertools.pairwise(ops)),
            f"stage_ops must not grow, but got {ops}",
        )
        require(
            self.alpha_freeze_epochs < self.stage_epochs,
            f"alpha_freeze_epochs must be less than stage_epochs ({self.stage_epochs}), but got "
            f"{self.alpha_freeze_epochs}: the alphas would never be trained",
        )

    def check_operations(self, operations: Collection[str]) -> None:
        """Whether the method can search among these.

        Raises:
            SettingError: it needs one that is not there.
        """

    # --- The schedule

    def stages(self, num_ops: int) -> tuple[Stage, ...]:
        """The stages of a search that begins with `num_ops` candidates on every edge.

        Raises:
            SettingError: `stage_ops` begins with another number.
        """
        kept = self.stage_ops or (num_ops,) * len(self.stage_layers)
        require(
            kept[0] == num_ops,
            f"the first entry of stage_ops must be the number of operations, but got "
            f"stage_ops={kept} with {num_ops} operations",
        )
        return tuple(
            Stage(num_layers=layers, num_ops=ops, epochs=self.stage_epochs)
            for layers, ops in zip(self.stage_layers, kept, strict=True)
        )

    @property
    def total_epochs(self) -> int:
        """Epochs of all stages."""
        return len(self.stage_layers) * self.stage_epochs

    def frozen(self, epoch_in_stage: int) -> bool:
        """Whether the architecture parameters stay still in an epoch of a stage."""
        return epoch_in_stage < self.alpha_freeze_epochs

    def stop(self, history: Sequence[Ranking]) -> str | None:
        """Why the present stage ends now, after these epochs of it in which alpha was trained; None
        to go on."""
        return None

    # --- What the supernet sees

    def parameters(self, candidates: Candidates) -> dict[str, Tensor]:
        """The architecture parameters at the start of a stage, by name; each has one row per edge,
        and one column per candidate or one in all."""
        import torch

        edge_ops = candidates.edge_ops
        return {"alpha": self.alpha_init_std * torch.randn(len(edge_ops), len(edge_ops[0]))}

    def carried(self, arch: Arch, kept: Int[Tensor, "edges kept"]) -> dict[str, Tensor]:
        """The architecture parameters with which the next stage goes on, of the candidates that it
        keeps; without any it starts anew."""
        if self.inherit_alpha == "reset":
            return {}
        return {
            name: value.detach() if value.shape[1] == 1 else value.detach().gather(1, kept)
            for name, value in arch.items()
        }

    def route(self) -> Route:
        """Which tokens go through the candidates."""
        return Route()

    def noise(self, arch: Arch, candidates: Candidates, t: Tensor) -> dict[str, Tensor]:
        """Random tensors, drawn once per step and handed to every pass of it."""
        return {}

    def weights(self, arch: Arch, noise: Arch, t: Tensor) -> Float[Tensor, "edges ops"]:
        """The weights of the candidates in the alpha pass (Eq. 8), and in evaluation."""
        return arch["alpha"].softmax(dim=-1)

    def train_weights(self, arch: Arch, noise: Arch, t: Tensor) -> Float[Tensor, "edges ops"]:
        """The weights of the candidates where the supernet's own weights are trained."""
        return self.weights(arch, noise, t)

    def extra_skip(self, t: Tensor) -> Float[Tensor, ""] | None:
        """What is added to the weight of `identity` on every edge, wherever the supernet is
        computed; None for nothing."""
        return None

    def skip_drop(self, stage: int, epoch_in_stage: int) -> float:
        """Dropout on what `identity` passes on, while the supernet is trained in an epoch."""
        return 0.0

    def penalty(
        self, arch: Arch, weights: Float[Tensor, "edges ops"], candidates: Candidates, t: Tensor
    ) -> Float[Tensor, ""] | None:
        """What is added to the validation loss in the alpha pass; None for nothing."""
        return None

    # --- What is chosen

    def scores(self, arch: Arch) -> Float[Tensor, "edges ops"]:
        """By what candidates are pruned and the encoder is derived: in float64, larger is better,
        comparable between edges."""
        return arch["alpha"].detach().double().softmax(dim=-1)

    @property
    def least_score(self) -> float:
        """A node keeps an edge whose strongest operation scores less only if it has no other."""
        return -math.inf

    @property
    def most_skips(self) -> int | None:
        """How many edges of the encoder may hold `identity`; None for all."""
        return None

    @property
    def num_draws(self) -> int:
        """Encoders drawn at the end of a search, of which the best one is chosen; 0 to choose by
        `scores`."""
        return 0

    # --- What is shown

    def shares(self, arch: Arch, t: Tensor) -> Float[Tensor, "edges ops"]:
        """What traces, figures and proposals go by: the weights of evaluation."""
        return self.weights(arch, {}, t)

    def figures(
        self, arch: Arch, weights: Float[Tensor, "edges ops"], candidates: Candidates, t: Tensor
    ) -> dict[str, float]:
        """The method's own numbers at the end of an epoch, by the tag that TensorBoard shows."""
        return {}

    # --- What a sweep varies

    def outer_space(self, *, weight_lr: float, fixed: Collection[str] = ()) -> dict[str, Domain]:
        """The domain of each number that a sweep draws.

        Args:
            weight_lr: the learning rate of the weights, which is ξ in second order.
            fixed: settings that keep their value; a sweep leaves out their own domains.
        """
        # First order, or second order with the weights' own learning rate (DARTS).
        return {"xi": Choice((0.0, weight_lr))}

    @property
    def outer(self) -> tuple[str, ...]:
        """The settings that tell the trials of a sweep apart."""
        known = {f.name for f in dataclasses.fields(self)}
        return tuple(name for name in self.outer_space(weight_lr=1.0) if name in known)

    def drawn(self, draw: Mapping[str, Any]) -> Self:
        """These settings with a draw put in.

        Raises:
            SettingError: a combination that is refused.
        """
        return dataclasses.replace(self, **draw)

    def as_draw(self) -> dict[str, Any]:
        """These settings as a draw: a value for every name that a draw may have."""
        return self.outer_settings()

    def outer_settings(self) -> dict[str, Any]:
        """The settings that tell the trials of a sweep apart, by name."""
        return {name: getattr(self, name) for name in self.outer}

    def heaviest(self, *, weight_lr: float, fixed: Collection[str] = ()) -> Self:
        """What takes the most memory of all that a sweep draws."""
        second_order = "xi" in self.outer and "xi" not in fixed
        return dataclasses.replace(self, xi=weight_lr) if second_order else self

    # --- What a plan of memory compares

    def lighter(self) -> tuple[Self, ...]:
        """These settings, and others of the method that take less memory or more."""
        return (self,)

    def make_room(self, given: Mapping[str, float]) -> Self:
        """These settings, moved where a value that is about to be given leaves one of them no room.

        Raises:
            SettingError: nothing fits beside the given value.
        """
        return self

    # --- By name

    @staticmethod
    def named(name: str) -> type[DARTS]:
        """The method of a name, as `get_method`."""
        return get_method(name)

    @classmethod
    def like(cls, other: DARTS) -> Self:
        """This method for a search of the size of another's: settings that both have are taken
        over. Where this one has a single stage, it has the other's first depth and all its epochs.
        """
        if type(other) is cls:
            return other
        mine = {f.name for f in dataclasses.fields(cls)}
        theirs = {f.name for f in dataclasses.fields(other)}
        values = {name: getattr(other, name) for name in mine & theirs - {*cls.own}}
        if not cls.staged:
            values |= {
                "stage_layers": other.stage_layers[:1],
                "stage_ops": (),
                "stage_epochs": other.total_epochs,
            }
        return cls(**values)


_METHODS: dict[str, type[DARTS]] = registry()


def register_method(kind: MethodT) -> MethodT:
    """Make a method known by its `name`: to `--method`, and to searches that are continued.

    Raises:
        ValueError: the name is taken, or the method has none of its own; or it is no frozen
            dataclass with a default for every setting.
    """
    params = vars(kind).get("__dataclass_params__")
    if params is None or not params.frozen:
        raise ValueError(
            f"{kind.__name__} needs @dataclass(frozen=True, kw_only=True) below @register_method"
        )
    for f in dataclasses.fields(kind):
        if f.default is f.default_factory:  # both are missing
            raise ValueError(f"{kind.__name__}: the setting {f.name} needs a default")
    name = kind.name
    if "name" not in vars(kind):
        raise ValueError(f"{kind.__name__} needs a name of its own: name: ClassVar[str] = ...")
    other = _METHODS.get(name, kind)
    if (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(f"method {name!r} is registered already, as {other.__qualname__}")
    _METHODS[name] = kind
    return kind


def get_method(name: str) -> type[DARTS]:
    """The method of a name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in _METHODS:
        raise ValueError(
            f"unknown method {name!r}; known: {', '.join(_METHODS)} (a module that registers more "
            "can be named in plugins)"
        )
    return _METHODS[name]


def method_names() -> tuple[str, ...]:
    """The names of all methods."""
    return tuple(_METHODS)


register_method(DARTS)
