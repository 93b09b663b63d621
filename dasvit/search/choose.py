"""What a search ends with where not alpha's scores alone decide: by perturbation, or by draws."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dasvit.data.splits import Split
from dasvit.report.events import Choosing
from dasvit.run.seed import derive_seed, generator
from dasvit.search.config import SearchConfig
from dasvit.search.model import SearchModel
from dasvit.search.score import accuracy
from dasvit.spaces.cell.genotype import Genotype, edge_list, one_hot
from dasvit.spaces.cell.operations import ZERO
from dasvit.training.recipe import (
    make_optimizer,
    make_schedule,
    norms_and_biases,
    take_step,
)

__all__ = ["by_draws", "by_perturbation", "choose"]

FEW_IMAGES = 64
"""Of the validation half, on which all draws are scored."""
BEST = 10
"""Draws that are scored on the whole half."""

Tell = Callable[[Choosing], None]


def choose(
    config: SearchConfig,
    model: SearchModel,
    derived: Genotype,
    train: Split,
    val: Split,
    tell: Tell,
) -> list[Genotype]:
    """The encoder that a search ends with, then others that it proposes.

    Args:
        config: the search.
        model: the last stage's, trained.
        derived: what alpha chooses; a choice of another kind keeps its provenance.
        train: the training half.
        val: the validation half.
        tell: called as the choice goes on.
    """
    if config.method.num_draws:
        chosen = by_draws(config, model, val, tell)
    elif config.select == "perturbation":
        scores = by_perturbation(config, model, train, val, tell)
        most = config.method.most_skips
        chosen = [config.space.derive(scores, model.candidates.edge_ops, most_skips=most)]
    else:
        return [derived]
    return [Genotype(genotype.nodes, derived.provenance) for genotype in chosen]


def by_draws(config: SearchConfig, model: SearchModel, val: Split, tell: Tell) -> list[Genotype]:
    """Encoders drawn uniformly, the best first by the validation accuracy that they have with the
    supernet's weights; at most ten (Li and Talwalkar, 2019, arXiv:1902.07638, section 3.2).

    Args:
        config: its method says how many are drawn, its seed which.
        model: trained.
        val: the validation half; a part of it sorts out all but ten.
        tell: called before each encoder is scored.
    """
    order = torch.randperm(len(val), generator=generator(config.seed, "draws"))
    few = val.subset(order[:FEW_IMAGES])
    drawn: dict[str, Genotype] = {}
    for number in range(config.method.num_draws):
        genotype = config.space.sample(derive_seed(config.seed, "draw", number))
        drawn.setdefault(genotype.canonical_hash, genotype)
    total = len(drawn) + min(BEST, len(drawn))
    counted = iter(range(total))

    def score(genotype: Genotype, split: Split) -> float:
        tell(Choosing(done=next(counted), total=total))
        weights = torch.tensor(one_hot(genotype, model.candidates.edge_ops), device=model.device)
        return accuracy(model, split, weights)

    # The sort is stable: of equal ones the first that was drawn.
    best = sorted(drawn.values(), key=lambda genotype: -score(genotype, few))[:BEST]
    return sorted(best, key=lambda genotype: -score(genotype, val))


def by_perturbation(
    config: SearchConfig, model: SearchModel, train: Split, val: Split, tell: Tell
) -> Float[Tensor, "edges ops"]:
    """Scores by what the supernet loses without a candidate (DARTS-PT; Wang et al., 2021,
    arXiv:2108.04392, algorithm 1), from which an encoder is derived as from alpha.

    Edge by edge, in random order: the candidate stays whose removal costs the most validation
    accuracy, with weight 1, and the others of its edge go. Then node by node, in random order:
    while it has too many edges, the one goes whose removal costs the least. After each of these
    decisions the supernet's weights are trained for `select_epochs` on the training half, at a
    tenth of the learning rate. Departure: alpha stays still in these epochs.

    Weights that go are given to `zero`, where an edge has it: what bypasses the candidates of a
    part of the channels (PC-DARTS) goes by their sum.

    Args:
        config: the search.
        model: trained; its weights are tuned in place.
        train: the training half.
        val: the validation half.
        tell: called before each decision.
    """
    edge_ops, draw = model.candidates.edge_ops, generator(config.seed, "perturbation")
    weights = model.weights().detach().clone()
    scores = torch.zeros(weights.shape, dtype=torch.float64)
    places = edge_list(config.space.num_nodes)
    nodes = [
        [e for e, (_, to) in enumerate(places) if to == node]
        for node in range(config.space.num_nodes)
    ]
    crowded = [node for node, edges in enumerate(nodes) if len(edges) > config.space.edges_per_node]
    decisions = len(edge_ops) + len(crowded)
    tune, done = _Tuning(config, model, train, decisions), 0

    def with_row(edge: int, row: Tensor) -> float:
        changed = weights.clone()
        changed[edge] = row
        return accuracy(model, val, changed)

    for edge in torch.randperm(len(edge_ops), generator=draw).tolist():
        tell(Choosing(done=done, total=decisions))
        before = accuracy(model, val, weights)
        for i, name in enumerate(edge_ops[edge]):
            # `zero` is never derived, and removing it changes nothing.
            kept = weights[edge].clone()
            kept[i] = 0
            row = _same_sum(kept, weights[edge], edge_ops[edge])
            scores[edge, i] = -2 if name == ZERO else before - with_row(edge, row)
        best = int(scores[edge].argmax())
        chosen = F.one_hot(torch.tensor(best), weights.shape[1]).to(weights)
        weights[edge] = _same_sum(chosen, weights[edge], edge_ops[edge])
        tune(weights)
        done += 1
    for place in torch.randperm(len(crowded), generator=draw).tolist():
        tell(Choosing(done=done, total=decisions))
        left = list(nodes[crowded[place]])
        while len(left) > config.space.edges_per_node:
            nothing = torch.zeros_like(weights[0])
            accuracies = {edge: with_row(edge, nothing) for edge in left}
            gone = max(left, key=lambda edge: accuracies[edge])
            left.remove(gone)
            weights[gone] = 0
            scores[gone] -= 10  # behind all edges that stay
        tune(weights)
        done += 1
    return scores


def _same_sum(
    row: Float[Tensor, " ops"], before: Float[Tensor, " ops"], names: tuple[str, ...]
) -> Float[Tensor, " ops"]:
    """The row with so much given to `zero`, which adds nothing, that its sum is as before."""
    if ZERO in names:
        row[names.index(ZERO)] += before.sum() - row.sum()
    return row


class _Tuning:
    """Trains the supernet after each decision, under the weights that it leaves."""

    def __init__(
        self, config: SearchConfig, model: SearchModel, train: Split, decisions: int
    ) -> None:
        self._config, self._model, self._train = config, model, train
        self._optimizer = make_optimizer(
            model.weight_parameters(),
            lr=config.weight_lr / 10,
            weight_decay=config.weight_decay,
            spared=[] if config.decay_norms else norms_and_biases(model.supernet),
        )
        steps = decisions * config.select_epochs * max(1, len(train) // config.batch_size)
        self._schedule = make_schedule(self._optimizer, steps=max(1, steps))
        self._epoch = self._step = 0

    def __call__(self, weights: Float[Tensor, "edges ops"]) -> None:
        self._model.train()
        params = self._model.weight_parameters()
        for _ in range(self._config.select_epochs):
            seed = derive_seed(self._config.seed, "tuning order", self._epoch)
            for images, labels in self._train.batches(self._config.batch_size, seed=seed):
                self._schedule.step_update(self._step)
                loss = F.cross_entropy(self._model(images, weights), labels)
                grads = list(torch.autograd.grad(loss, params, materialize_grads=True))
                take_step(self._optimizer, params, grads, self._config.grad_clip)
                self._step += 1
            self._epoch += 1
