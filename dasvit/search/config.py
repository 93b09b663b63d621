"""Settings of a search."""

import itertools
from dataclasses import dataclass, field
from typing import Literal

from dasvit.data.config import DataConfig
from dasvit.run.settings import check_settings, require

__all__ = ["OUTER_SETTINGS", "SearchConfig", "Stage"]

OUTER_SETTINGS = (
    "token_ratio",
    "gamma_min",
    "gamma_max",
    "zeta1",
    "zeta2",
    "skip_weight",
    "type_weight",
    "xi",
    "seed",
)
"""What tells the trials of a sweep apart: its settings, as results and TensorBoard name them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of the progressive search (Section III-A): depth, candidates an edge, epochs."""

    num_layers: int
    num_ops: int
    epochs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """Everything that decides what a search computes. Defaults are the paper's setting."""

    data: DataConfig = field(default_factory=DataConfig)
    """The images."""

    operations: tuple[str, ...] = (
        "zero",
        "identity",
        "msa_h8",
        "msa_h12",
        "msa_h16",
        "mlp_r0.5",
        "mlp_r3",
        "mlp_r4",
    )
    """Candidate operations of every edge (Section III-B)."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register operations of their own."""
    num_nodes: int = 2
    """Intermediate nodes of the encoder DAG (Figures 5 and 6 show two)."""
    edges_per_node: int = 2
    """Incoming edges that derivation keeps at each node (DARTS: the two strongest)."""
    dim: int = 768
    """Embedding dimension C."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    dropout: float = 0.0
    """Dropout inside the candidate operations while searching."""

    stage_layers: tuple[int, ...] = (2, 4, 6)
    """Encoder layers of each stage (Section III-A)."""
    stage_ops: tuple[int, ...] = (8, 5, 3)
    """Candidates kept on each edge in each stage (Section III-A)."""
    stage_epochs: int = 30
    """Epochs of each stage (Section IV-A)."""
    inherit_weights: Literal["cyclic", "stretched", "fresh"] = "cyclic"
    """Where a new stage's layers get their weights: cyclic (layer l from layer l mod the old
    depth, 0 1 0 1), stretched (the old layers in their order, 0 0 1 1), or fresh (initialised
    anew). Paper gap."""
    inherit_alpha: Literal["carry", "reset"] = "carry"
    """Whether the surviving alphas carry over to the next stage or start anew. Paper gap."""
    prune_zero: Literal["ranked", "first"] = "ranked"
    """Whether `zero` is pruned by its weight like the others, or goes first. Paper gap."""

    token_ratio: float = 0.5
    """λ: share of the patch tokens kept by token selection (Section III-C); 1 turns it off.
    The paper gives no value."""
    token_where: Literal["input", "edge"] = "input"
    """Select once on the embedded tokens, or on every edge with the others bypassing it."""

    gamma_min: float = 0.2
    """γ_min: lower bound on an operation type's total weight (Eq. 18). Paper gap."""
    gamma_max: float = 0.5
    """γ_max: upper bound on an operation type's total weight (Eq. 18). Paper gap."""
    zeta1: float = 1.0
    """ζ1: penalty coefficient above γ_max (Eq. 18). Paper gap."""
    zeta2: float = 1.0
    """ζ2: coefficient below γ_min (Eq. 18). Paper gap."""
    skip_weight: float = 1.0
    """a: weight of the skip-connection term L1 (Eq. 19). Paper gap."""
    type_weight: float = 1.0
    """b: weight of the operation-type term L2 (Eq. 19). Paper gap."""

    xi: float = 0.0
    """ξ: learning rate of the virtual weight step; 0 is first order (Algorithm 1, line 13)."""
    virtual_step: Literal["sgd"] = "sgd"
    """Form of the virtual step: plain gradient descent by ξ, exactly the formula."""

    batch_size: int = 64
    """Images a step, for the weight and the alpha batch alike (Section IV-A)."""
    weight_lr: float = 1e-3
    """Initial learning rate of the weights, AdamW (Section IV-A)."""
    lr_span: Literal["stage", "search"] = "stage"
    """What the cosine of the weights' learning rate runs over: each stage, or the whole search.
    Paper gap."""
    weight_decay: float = 5e-2
    """Weight decay of the weights (Section IV-A)."""
    decay_norms: bool = True
    """Whether the weight decay acts on norms, biases, CLS and positions too. Paper gap."""
    alpha_lr: float = 3e-4
    """Learning rate of the alphas, Adam. Paper gap: DARTS' value."""
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    """Adam's betas for the alphas. Paper gap: DARTS' values."""
    alpha_weight_decay: float = 1e-3
    """Weight decay of the alphas. Paper gap: DARTS' value."""
    alpha_init_std: float = 1e-3
    """Standard deviation of the alphas at the start. Paper gap: DARTS' value."""
    alpha_freeze_epochs: int = 0
    """Epochs at the start of each stage in which the alphas stay still (P-DARTS used 10).
    Algorithm 1 has none."""
    grad_clip: float = 0.0
    """Largest norm of the weight gradient; 0 does not clip. The paper names no clipping."""
    val_fraction: float = 0.5
    """Share of the training set that trains the alphas (design: split 50/50)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes under bfloat16 autocast; weights, alphas and optimisers stay in fp32."""
    fused: bool = True
    """Compute the candidates of a node's edges together in a few large products. The function is
    the same; false is the literal form, which dropout > 0 takes as well."""
    recompute: bool = False
    """Keep only the inputs of each node's edges for the backward pass and compute them anew
    there: less memory, more time. Needs `fused`."""
    compile: bool = False
    """Compile the encoders with `torch.compile`, once a stage: pays where a stage takes long beside
    that (docs/performance.md). The same function, its sums in another order. Needs dropout 0."""
    cuda_graph: bool = False
    """Capture a step as a CUDA graph and replay it, on a GPU: the host launches one graph instead
    of thousands of kernels (docs/performance.md). The same function. Needs dropout 0, and
    operations that neither draw random numbers nor wait for the device."""
    checkpoint_epochs: int = 1
    """Epochs from one checkpoint to the next; each stage's last epoch has one too. A run that is
    killed repeats what came after, to the same end."""
    eval_epochs: int = 1
    """Epochs from one evaluation of the supernet on the validation half to the next; each stage's
    last epoch has one too. Changes no result: it is for the curves."""
    seed: int = 0
    """Seed of initialisation, split and data order."""

    def __post_init__(self) -> None:
        check_settings(self)
        require(
            self.precision in ("fp32", "bf16"),
            f"precision must be fp32 or bf16, but got {self.precision!r}",
        )
        require(
            not self.recompute or (self.fused and self.dropout == 0),
            "recompute needs fused, and dropout 0",
        )
        require(
            not self.compile or self.dropout == 0,
            f"compile needs dropout 0, but got {self.dropout}: the passes of a step would draw "
            "different masks",
        )
        require(
            not self.cuda_graph or self.dropout == 0,
            f"cuda_graph needs dropout 0, but got {self.dropout}: a graph draws no masks",
        )
        require(len(self.operations) > 0, "operations must name at least one operation")
        require(
            len(set(self.operations)) == len(self.operations),
            f"operations must be distinct, but got {self.operations}",
        )
        require(
            any(name != "zero" for name in self.operations),
            "operations must hold one besides zero: an encoder of nothing but zero has no output",
        )
        require(1 <= self.num_nodes <= 6, f"num_nodes must be 1 to 6, but got {self.num_nodes}")
        require(
            self.edges_per_node >= 1,
            f"edges_per_node must be positive, but got {self.edges_per_node}",
        )
        require(self.dim >= 1, f"dim must be positive, but got {self.dim}")
        require(self.patch_size >= 1, f"patch_size must be positive, but got {self.patch_size}")
        require(
            self.data.image_size % self.patch_size == 0,
            f"patch_size must divide image_size, but got patch_size={self.patch_size}, "
            f"image_size={self.data.image_size}",
        )
        require(0 <= self.dropout < 1, f"dropout must lie in [0, 1), but got {self.dropout}")
        self._check_stages()
        require(
            0 < self.token_ratio <= 1,
            f"token_ratio (λ) must lie in (0, 1], but got {self.token_ratio}; 1 selects all tokens",
        )
        require(
            self.token_where in ("input", "edge"),
            f"token_where must be input or edge, but got {self.token_where!r}",
        )
        require(
            0 <= self.gamma_min < self.gamma_max <= 1,
            "0 <= gamma_min < gamma_max <= 1 must hold, but got "
            f"(gamma_min={self.gamma_min}, gamma_max={self.gamma_max})",
        )
        for name in (
            "zeta1",
            "zeta2",
            "skip_weight",
            "type_weight",
            "weight_decay",
            "alpha_weight_decay",
            "alpha_init_std",
            "seed",
        ):
            require(getattr(self, name) >= 0, f"{name} must be >= 0, but got {getattr(self, name)}")
        require(
            self.xi >= 0,
            f"xi (ξ) must be >= 0, but got {self.xi}; 0 is the first-order approximation",
        )
        require(
            self.virtual_step == "sgd",
            f"virtual_step must be sgd, but got {self.virtual_step!r}: other virtual steps are not "
            "the formula of Algorithm 1 and are refused rather than ignored",
        )
        for name in ("weight_lr", "alpha_lr"):
            require(
                getattr(self, name) > 0, f"{name} must be positive, but got {getattr(self, name)}"
            )
        require(
            self.lr_span in ("stage", "search"),
            f"lr_span must be stage or search, but got {self.lr_span!r}",
        )
        require(self.batch_size >= 1, f"batch_size must be positive, but got {self.batch_size}")
        require(
            len(self.alpha_betas) == 2 and all(0 <= beta < 1 for beta in self.alpha_betas),
            f"alpha_betas must be two numbers in [0, 1), but got {self.alpha_betas}",
        )
        require(
            0 < self.val_fraction < 1,
            f"val_fraction must lie in (0, 1), but got {self.val_fraction}",
        )
        require(self.grad_clip >= 0, f"grad_clip must be >= 0, but got {self.grad_clip}")
        require(
            0 <= self.alpha_freeze_epochs < self.stage_epochs,
            f"alpha_freeze_epochs must be 0 to stage_epochs - 1 = {self.stage_epochs - 1}, but got "
            f"{self.alpha_freeze_epochs}: the alphas would never be trained",
        )

    def _check_stages(self) -> None:
        layers, ops = self.stage_layers, self.stage_ops
        require(
            len(layers) == len(ops) >= 1,
            f"stage_layers and stage_ops must have one entry a stage, but got {layers} and {ops}",
        )
        require(
            min(layers) >= 1 and max(layers) <= 1000,
            f"stage_layers must lie in 1 to 1000, but got {layers}",
        )
        require(
            ops[0] == len(self.operations),
            f"the first entry of stage_ops must be the number of operations, but got "
            f"stage_ops={ops} with {len(self.operations)} operations",
        )
        require(
            all(a >= b for a, b in itertools.pairwise(ops)) and ops[-1] >= 1,
            f"stage_ops must not grow and must end at 1 or more, but got {ops}",
        )
        require(
            ops[-1] >= 2 or "zero" not in self.operations or self.prune_zero == "first",
            f"stage_ops must end at 2 or more while zero is ranked like the others, but got {ops}: "
            "an edge could be left with zero alone; use prune_zero=first or keep 2",
        )
        for name in ("stage_epochs", "checkpoint_epochs", "eval_epochs"):
            require(getattr(self, name) >= 1, f"{name} must be >= 1, but got {getattr(self, name)}")
        require(
            self.prune_zero in ("ranked", "first"),
            f"prune_zero must be ranked or first, but got {self.prune_zero!r}",
        )
        require(
            self.inherit_weights in ("cyclic", "stretched", "fresh")
            and self.inherit_alpha in ("carry", "reset"),
            "inherit_weights must be cyclic, stretched or fresh and inherit_alpha carry or reset, "
            f"but got {self.inherit_weights!r} and {self.inherit_alpha!r}",
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The schedule, one `Stage` each."""
        return tuple(
            Stage(num_layers=layers, num_ops=ops, epochs=self.stage_epochs)
            for layers, ops in zip(self.stage_layers, self.stage_ops, strict=True)
        )

    @property
    def total_epochs(self) -> int:
        return len(self.stage_layers) * self.stage_epochs
