"""Encoders drawn at random from the space of a search: uniformly, which is what a search has to
beat, or by the weights that a search ended with."""

import math
import random
from collections.abc import Collection, Sequence

import torch

from dasvit.run.seed import derive_seed, generator
from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.derive import derive
from dasvit.spaces.cell.genotype import NUM_INPUTS, Edge, Genotype
from dasvit.spaces.cell.operations import ZERO, is_blind
from dasvit.spaces.cell.space import CellSpace

__all__ = ["distinct_random_genotypes", "proposed_genotypes", "random_genotype"]

TRIES_EACH = 1000


def random_genotype(space: CellSpace, seed: int) -> Genotype:
    """An encoder of the kind that a search of this space derives, drawn uniformly.

    Each node reads `edges_per_node` of its sources (all of them where there are no more), every
    set with the same chance; each edge holds one of the candidates but `zero`, every one with the
    same chance. An encoder that would not see the image is drawn again.

    Args:
        space: of it `operations`, `num_nodes` and `edges_per_node` count.
        seed: equal seeds give equal encoders on every machine.

    Raises:
        ValueError: no operation of the space mixes tokens.
    """
    rng = random.Random(derive_seed(seed, "random genotype"))
    candidates = [name for name in space.operations if name != ZERO]
    space.check_sees()
    while True:
        nodes = []
        for node in range(space.num_nodes):
            sources = range(node + NUM_INPUTS)
            kept = sorted(rng.sample(sources, min(space.edges_per_node, len(sources))))
            nodes.append(tuple(Edge(source, rng.choice(candidates)) for source in kept))
        genotype = Genotype(tuple(nodes), {"source": "drawn uniformly", "seed": seed})
        if not is_blind(genotype.operations):
            return genotype


def distinct_random_genotypes(space: CellSpace, count: int, *, seed: int) -> tuple[Genotype, ...]:
    """The first `count` encoders that differ in canonical form, from seeds `seed`, `seed` + 1, …

    A smaller count gives the beginning of a larger one.

    Raises:
        ValueError: the space does not hold that many, or hardly more.
    """
    found: dict[str, Genotype] = {}
    drawn: Sequence[int] = range(seed, seed + TRIES_EACH * count)
    for number in drawn:
        if len(found) == count:
            break
        genotype = random_genotype(space, number)
        found.setdefault(genotype.canonical_hash, genotype)
    if len(found) < count:
        raise ValueError(
            f"{count} distinct random encoders were asked for, but {len(drawn)} draws from "
            f"{len(space.operations)} operations and {space.num_nodes} nodes gave {len(found)}; "
            "ask for fewer"
        )
    return tuple(found.values())


def proposed_genotypes(
    weights: Sequence[Sequence[float]],
    edge_ops: EdgeOps,
    space: CellSpace,
    count: int,
    *,
    seed: int,
    known: Collection[str] = (),
    least_score: float = -math.inf,
    most_skips: int | None = None,
) -> tuple[Genotype, ...]:
    """Encoders drawn by the weights of the candidates: an operation of an edge by its weight, the
    edges of a node without replacement by the sum of theirs, `zero` never. Where weights sum to 1
    and no edge holds `zero` any more, all edges have the same chance.

    A draw is a derivation from logarithms with Gumbel noise, whose largest ones are such a draw
    (Gumbel, 1954; Kool et al., arXiv:1903.06059). So none is blind.

    Args:
        weights: (edges, ops), as a search ended with.
        edge_ops: the candidates of each row.
        space: of it `num_nodes` and `edges_per_node` count.
        count: encoders that differ in canonical form; fewer where the weights hardly give more.
        seed: equal seeds give equal encoders on every machine; a smaller count the beginning.
        known: canonical hashes that are left out, such as that of the derived encoder.
        least_score, most_skips: as in `derive`; the first is compared with weights.
    """
    # An edge that derivation would leave out is far behind all draws, and below this.
    behind = -1e9
    strongest = [
        max(w for w, name in zip(row, names, strict=True) if name != ZERO)
        for row, names in zip(weights, edge_ops, strict=True)
    ]
    left_out = torch.tensor([[weight < least_score] for weight in strongest])
    least = torch.finfo(torch.float64).tiny  # not 0, whose logarithm is not finite
    logs = torch.tensor(weights, dtype=torch.float64).clamp(min=least).log()

    found: dict[str, Genotype] = {}
    number = in_vain = 0
    while len(found) < count and in_vain < TRIES_EACH:
        draw = generator(seed, "proposal", number)
        uniform = torch.rand(logs.shape, dtype=torch.float64, generator=draw)
        shifted = logs - (-uniform.clamp(min=least).log()).log()
        genotype = derive(
            shifted + 2 * behind * left_out,
            edge_ops,
            least_score=behind,
            most_skips=most_skips,
            num_nodes=space.num_nodes,
            edges_per_node=space.edges_per_node,
            provenance={"source": "drawn by the weights of a search", "seed": seed},
        )
        number, in_vain = number + 1, in_vain + 1
        if genotype.canonical_hash not in {*found, *known}:
            found[genotype.canonical_hash], in_vain = genotype, 0
    return tuple(found.values())
