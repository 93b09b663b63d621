from collections import Counter
from dataclasses import replace

import pytest
from support.runs import OPERATIONS

from dasvit.spaces import CellSpace
from dasvit.spaces.cell.operations import is_blind, mixes_tokens
from dasvit.spaces.cell.sample import (
    distinct_random_genotypes,
    proposed_genotypes,
    random_genotype,
)

SPACE = CellSpace(operations=OPERATIONS)


def test_seed_and_space_decide() -> None:
    drawn = [random_genotype(SPACE, seed) for seed in range(20)]
    assert drawn == [random_genotype(replace(SPACE, dim=24), seed) for seed in range(20)]
    assert drawn[3].provenance == {"source": "drawn uniformly", "seed": 3}
    whole = random_genotype(replace(SPACE, edges_per_node=3), 0)
    assert [len(edges) for edges in whole.nodes] == [2, 3]  # the first has no more


def test_sources_and_operations_are_uniform() -> None:
    drawn = [random_genotype(SPACE, seed) for seed in range(3000)]
    assert not any(is_blind(genotype.operations) for genotype in drawn)
    sets = Counter(tuple(e.source for e in genotype.nodes[1]) for genotype in drawn)
    assert set(sets) == {(0, 1), (0, 2), (1, 2)}
    # Standard deviation of a share of 1/3 over 3000 draws: 0.0086; of 1/7 over 12000: 0.0032.
    # Of all draws of four operations from seven, of which three mix tokens, (4/7)^4 are blind.
    blind = (4 / 7) ** 4
    shares = {True: 1 / 7 / (1 - blind), False: (1 - (4 / 7) ** 3) / 7 / (1 - blind)}
    assert all(abs(count / 3000 - 1 / 3) < 0.035 for count in sets.values())
    operations = Counter(name for genotype in drawn for name in genotype.operations)
    assert set(operations) == set(OPERATIONS) - {"zero"}
    for name, count in operations.items():
        assert abs(count / 12000 - shares[mixes_tokens(name)]) < 0.013


def test_distinct_ones_begin_alike_and_a_small_space_is_no_endless_loop() -> None:
    few = distinct_random_genotypes(SPACE, 4, seed=0)
    many = distinct_random_genotypes(SPACE, 9, seed=0)
    assert many[:4] == few != distinct_random_genotypes(SPACE, 4, seed=50)
    assert len({genotype.canonical_hash for genotype in many}) == 9
    tiny = CellSpace(operations=("zero", "msa_h2"), num_nodes=1)
    assert len(distinct_random_genotypes(tiny, 1, seed=0)) == 1
    with pytest.raises(ValueError, match=r"2 distinct random encoders were asked for.*gave 1; ask"):
        distinct_random_genotypes(tiny, 2, seed=0)


# --- Drawn by weights


WEIGHTS = [
    [0.2, 0.5, 0.3],  # into o_0
    [0.6, 0.3, 0.1],
    [0.1, 0.6, 0.3],  # into o_1: without zero the edges weigh 0.9, 0.5 and 0.2
    [0.5, 0.4, 0.1],
    [0.8, 0.1, 0.1],
]
ALL_MIX = (("zero", "msa_h1", "msa_h2"),) * 5  # nothing is blind, so nothing is repaired


def test_operations_are_drawn_by_weight_and_edges_by_the_sum_of_theirs() -> None:
    space = CellSpace(operations=ALL_MIX[0])
    drawn = [
        proposed_genotypes(WEIGHTS, ALL_MIX, space, 1, seed=seed)[0].nodes for seed in range(1000)
    ]
    spread = 4 * (0.25 / 1000) ** 0.5  # four standard errors at most
    first = [nodes[0][0].operation for nodes in drawn]
    assert first.count("msa_h1") / 1000 == pytest.approx(0.5 / 0.8, abs=spread)
    kept = [tuple(edge.source for edge in nodes[1]) for nodes in drawn]
    # Two of three without replacement: the sum over both orders.
    p = [weight / 1.6 for weight in (0.9, 0.5, 0.2)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        expected = p[one] * p[other] * (1 / (1 - p[one]) + 1 / (1 - p[other]))
        assert kept.count((one, other)) / 1000 == pytest.approx(expected, abs=spread)


def test_proposals_differ_see_the_image_and_repeat() -> None:
    edge_ops = (("identity", "mlp_r3", "msa_h2"),) * 5
    weights = [[0.49, 0.5, 0.01]] * 5  # nearly always blind
    space = CellSpace(operations=edge_ops[0])
    found = proposed_genotypes(weights, edge_ops, space, 6, seed=3)
    names = [genotype.canonical_hash for genotype in found]
    assert len(set(names)) == 6
    assert not any(is_blind(genotype.operations) for genotype in found)
    assert proposed_genotypes(weights, edge_ops, space, 3, seed=3) == found[:3]
    other = proposed_genotypes(weights, edge_ops, space, 2, seed=3, known=names[:1])
    assert [genotype.canonical_hash for genotype in other] == names[1:3]


def test_weights_that_leave_no_choice_give_fewer() -> None:
    weights = [[0.0, 1.0, 0.0]] * 5
    space = CellSpace(operations=ALL_MIX[0], edges_per_node=3)
    (only,) = proposed_genotypes(weights, ALL_MIX, space, 3, seed=0)
    assert only.operations == ("msa_h1",) * 5


def test_proposals_keep_to_the_rules_of_derivation() -> None:
    space = CellSpace(operations=("zero", "identity", "msa_h2"), dim=8)
    rows = (space.operations,) * 5
    weights = [[0.1, 0.8, 0.3], [0.1, 0.8, 0.3], [0.1, 0.95, 0.9], [0.1, 0.5, 0.5], [0.1, 0.4, 0.6]]
    for found in proposed_genotypes(weights, rows, space, 4, seed=0, most_skips=0):
        assert "identity" not in found.operations
    drawn = proposed_genotypes(weights, rows, space, 9, seed=0, least_score=0.85)
    # Node 1 has one edge above the bound; node 0 none, so that it has one edge all the same.
    assert len(drawn) > 2 and all([len(edges) for edges in g.nodes] == [1, 1] for g in drawn)
    assert {g.nodes[1][0].source for g in drawn} == {0}
