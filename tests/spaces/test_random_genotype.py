from collections import Counter
from dataclasses import replace

import pytest
from support.runs import search_config

from dasvit.spaces.cell.sample import distinct_random_genotypes, random_genotype


def test_the_seed_decides() -> None:
    config = search_config()
    drawn = [random_genotype(config, seed) for seed in range(20)]
    assert drawn == [random_genotype(config, seed) for seed in range(20)]
    assert len(set(drawn)) > 15
    assert drawn[3].provenance == {"source": "drawn uniformly", "seed": 3}


def test_only_the_space_counts() -> None:
    config = search_config()
    assert random_genotype(replace(config, dim=24, token_ratio=1.0), 7) == random_genotype(
        config, 7
    )


def test_sources_and_operations_are_uniform() -> None:
    config = search_config()
    drawn = [random_genotype(config, seed) for seed in range(3000)]
    assert all(len(edges) == 2 for genotype in drawn for edges in genotype.nodes)
    sets = Counter(tuple(e.source for e in genotype.nodes[1]) for genotype in drawn)
    assert set(sets) == {(0, 1), (0, 2), (1, 2)}
    # Standard deviation of a share of 1/3 over 3000 draws: 0.0086; of 1/7 over 12000: 0.0032.
    assert all(abs(count / 3000 - 1 / 3) < 0.035 for count in sets.values())
    operations = Counter(name for genotype in drawn for name in genotype.operations)
    assert set(operations) == set(config.operations) - {"zero"}
    assert all(abs(count / 12000 - 1 / 7) < 0.013 for count in operations.values())


def test_a_node_with_few_sources_reads_all() -> None:
    genotype = random_genotype(search_config(edges_per_node=3), 0)
    assert [len(edges) for edges in genotype.nodes] == [2, 3]


def test_distinct_ones_begin_alike() -> None:
    few = distinct_random_genotypes(search_config(), 4, seed=0)
    many = distinct_random_genotypes(search_config(), 9, seed=0)
    assert many[:4] == few
    assert len({genotype.canonical_hash for genotype in many}) == 9
    assert distinct_random_genotypes(search_config(), 4, seed=50) != few


def test_a_small_space_is_no_endless_loop() -> None:
    tiny = search_config(
        operations=("zero", "identity"), stage_ops=(2, 2, 2), num_nodes=1, edges_per_node=2
    )
    assert len(distinct_random_genotypes(tiny, 1, seed=0)) == 1
    with pytest.raises(ValueError, match=r"2 distinct random encoders were asked for.*gave 1; ask"):
        distinct_random_genotypes(tiny, 2, seed=0)
