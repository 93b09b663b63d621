"""What a learned token selector is worth where the class is in few patches, against a frozen one,
random tokens and other gates.

    python benchmarks/selector.py --out docs/results/selector.json

A digit of scikit-learn lies in 4 of 36 patches of a noisy canvas. The weights of a supernet without
`identity` are trained under equal operation weights; λ = 0.25 keeps 9 patches. Everything but the
selector is the same in all variants. Finished (variant, seed) pairs of OUT are kept.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from dasvit.commands.arguments import parse
from dasvit.data.datasets import digits_split
from dasvit.report.statistics import spread
from dasvit.run.environment import environment
from dasvit.run.files import write_atomic
from dasvit.spaces.base import Route
from dasvit.spaces.cell import fused_edges
from dasvit.spaces.cell.attention import attention
from dasvit.spaces.cell.supernet import SuperNet
from dasvit.spaces.cell.tokens import TokenSelector
from dasvit.training.recipe import make_schedule

CANVAS, DIGIT, PATCH, NOISE, RATIO = 24, 8, 4, 0.3, 0.25
OPERATIONS = ("msa_h2", "msa_h4", "mlp_r2")
EPOCHS, BATCH, RATE = 14, 32, 3e-3

Selected = tuple[Tensor, Tensor, Tensor | None]


class Frozen(TokenSelector):
    def scores(self, patches: Tensor) -> Tensor:
        return super().scores(patches.detach()).detach()


class Random(TokenSelector):
    def scores(self, patches: Tensor) -> Tensor:
        return torch.rand(patches.shape[:2])


class OnTokens(TokenSelector):
    """The gate acts on the kept tokens, before everything else."""

    def closed(self, tokens: Tensor, index: Tensor) -> Tensor:
        """What a token becomes as its gate closes."""
        return torch.zeros_like(tokens[:, :1])

    def forward(self, tokens: Tensor) -> Selected:
        kept, index, gate = super().forward(tokens)
        if gate is not None:
            kept = kept + (gate - 1) * (kept - self.closed(tokens, index))
        return kept, index, None


class TowardsMean(OnTokens):
    def closed(self, tokens: Tensor, index: Tensor) -> Tensor:
        return tokens[:, 1:].mean(dim=1, keepdim=True)


class TowardsPosition(OnTokens):
    positions: ClassVar[Tensor]

    def closed(self, tokens: Tensor, index: Tensor) -> Tensor:
        return self.positions[0, index]


class OnValues(TokenSelector):
    """The gate scales v in every attention and nothing else."""

    gate: ClassVar[Any]

    def forward(self, tokens: Tensor) -> Selected:
        kept, index, OnValues.gate = super().forward(tokens)
        return kept, index, None

    @classmethod
    def attention(cls, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v if cls.gate is None else v * cls.gate[:, None])


class OnLogits(OnValues):
    """The gate's logarithm is added to the logits of every key."""

    def forward(self, tokens: Tensor) -> Selected:
        kept, index, _ = super().forward(tokens)
        chosen = self.scores(tokens[:, 1:]).gather(1, index[:, 1:] - 1)
        logs = F.pad(F.logsigmoid(chosen), (1, 0))[:, None, None]  # (batch, 1, 1, kept)
        OnValues.gate = logs - logs.detach()
        return kept, index, None

    @classmethod
    def attention(cls, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return (logits + cls.gate).softmax(dim=-1) @ v


VARIANTS: dict[str, type[TokenSelector] | None] = {
    "all tokens (λ = 1)": None,
    "learned, gate behind the norm (as shipped)": TokenSelector,
    "learned, gate on the logits of attention": OnLogits,
    "learned, gate on the values of attention": OnValues,
    "learned, gate towards the mean token": TowardsMean,
    "learned, gate towards the position": TowardsPosition,
    "learned, gate scales tokens (before)": OnTokens,
    "frozen": Frozen,
    "random tokens": Random,
}


@dataclass(frozen=True, kw_only=True)
class Args:
    """Train every variant with every seed: 0, 1, …"""

    seeds: int = 5
    out: Path = Path("docs/results/selector.json")


def placed(digits: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Digits on canvases (batch, 1, 24, 24), and the patches they cover (batch, 4)."""
    images = NOISE * torch.randn(len(digits), 1, CANVAS, CANVAS, generator=draws)
    across = CANVAS // PATCH
    places = torch.randint(across - 1, (2, len(digits)), generator=draws)
    for image, digit, (row, column) in zip(images, digits, PATCH * places.T, strict=True):
        image[0, row : row + DIGIT, column : column + DIGIT] += digit
    first = places[0] * across + places[1]
    return images, first[:, None] + torch.tensor([0, 1, across, across + 1])


def run(name: str, seed: int) -> dict[str, Any]:
    """One training; its accuracy on digits left out, and the share of their patches kept."""
    started, kind = time.process_time(), VARIANTS[name]
    pixels, target = load_digits(return_X_y=True)
    chosen = digits_split()[0]  # the training images of the `digits` data set
    x = torch.tensor(pixels[chosen] / 16, dtype=torch.float32).view(-1, DIGIT, DIGIT)
    y = torch.tensor(target[chosen])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, val = order.tensor_split([3 * len(x) // 4])
    torch.manual_seed(seed)
    net = SuperNet(
        (OPERATIONS,) * 2,
        num_layers=2,
        dim=32,
        num_nodes=1,
        image_size=CANVAS,
        patch_size=PATCH,
        in_channels=1,
        num_classes=10,
        route=Route(token_ratio=RATIO if kind else 1.0),
        fused=True,
    )
    if net.selector is not None and kind:
        values, net.selector = net.selector.state_dict(), kind(net.dim, RATIO)
        net.selector.load_state_dict(values)
    TowardsPosition.positions = net.embedding.positions
    weights = torch.full((2, len(OPERATIONS)), 1 / len(OPERATIONS))
    learns = kind not in (None, Frozen, Random)
    params = [p for key, p in net.named_parameters() if learns or "selector" not in key]
    optimizer = torch.optim.AdamW(params, weight_decay=0.05, lr=RATE)
    steps = len(train) // BATCH
    schedule = make_schedule(optimizer, steps=EPOCHS * steps, warmup_steps=50)
    draws, way = torch.Generator().manual_seed(seed), getattr(kind, "attention", attention)
    with patch.object(fused_edges, "attention", way):
        for epoch in range(EPOCHS):
            rows = train[torch.randperm(len(train), generator=draws)]
            for step, batch in enumerate(rows[: steps * BATCH].split(BATCH)):
                schedule.step_update(epoch * steps + step)
                images, _ = placed(x[batch], draws)
                optimizer.zero_grad()
                F.cross_entropy(net(images, weights), y[batch]).backward()
                torch.nn.utils.clip_grad_norm_(params, 1.0)
                optimizer.step()
        with torch.no_grad():
            val = val.repeat(4)  # at four places each, the same for all
            images, covered = placed(x[val], torch.Generator().manual_seed(1))
            accuracy = (net(images, weights).argmax(1) == y[val]).float().mean().item()
            found = {"variant": name, "seed": seed, "accuracy": accuracy}
            if net.selector is not None:
                index = net.selector(net.embedding(images))[1] - 1
                kept = (covered[:, :, None] == index[:, None]).any(-1)
                found["digit_kept"] = kept.float().mean().item()
    return found | {"seconds": time.process_time() - started}


def main(args: Args) -> None:
    torch.set_num_threads(1)
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    facts: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
    }
    for seed in range(args.seeds):
        for name in VARIANTS:
            if not any((r["variant"], r["seed"]) == (name, seed) for r in rows):
                rows.append(run(name, seed) | {"commit": facts["environment"]["git_commit"]})
                print(rows[-1], flush=True)
                write_atomic(args.out, json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    print("| tokens | accuracy, % | patches of the digit kept, % |", "| --- " * 3 + "|", sep="\n")
    for name in VARIANTS:
        of = [r for r in rows if r["variant"] == name]
        kept = spread(r.get("digit_kept", 1.0) for r in of)
        print(f"| {name} | {spread(r['accuracy'] for r in of).percent} | {kept.percent} |")


if __name__ == "__main__":
    main(parse(Args, sys.argv[1:]))
