"""Encoders drawn at random from the space of a search: what a search has to beat."""

import random
from collections.abc import Sequence

from dasvit.run.seed import derive_seed
from dasvit.spaces.cell.genotype import NUM_INPUTS, Edge, Genotype
from dasvit.spaces.cell.operations import ZERO, is_blind
from dasvit.spaces.cell.space import CellSpace

__all__ = ["distinct_random_genotypes", "random_genotype"]

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
