"""Distinct encoders, their scores and ranks, and the vote per edge."""

import math

import pytest
from support.sweep_trials import chain, search_trial

from dasvit.spaces.cell.genotype import Edge, Genotype
from tune.report.aggregate import merge_genotypes, rank_genotypes, vote

OPERATIONS = ("zero", "identity", "msa_h2", "mlp_r3")
A, B = chain("msa_h2", "mlp_r3"), chain("identity", "mlp_r3")


def test_equal_genotypes_merge_and_rank_by_mean() -> None:
    trials = [
        search_trial(1, 1, A, 0.40, 0.99),
        search_trial(0, 1, B, 0.60, 0.80),
        search_trial(1, 0, B, 0.80, 0.90),
        search_trial(0, 0, A, 0.90, 0.95),
    ]
    first, second = rank_genotypes(merge_genotypes(trials), "discretised_accuracy")
    # By the mean 0.70 of B over 0.65 of A, although A holds the best single trial.
    assert (first.genotype, second.genotype) == (B, A)
    assert (first.score("gap").mean, first.score("gap").count) == (pytest.approx(0.15), 2)
    assert first.score("discretised_accuracy").std == pytest.approx(math.sqrt(0.02))
    assert [t.name for t in second.trials] == ["config_000_seed_0", "config_001_seed_1"]
    by_supernet = rank_genotypes(merge_genotypes(trials), "supernet_accuracy")
    assert by_supernet[0].genotype == A


def test_genotypes_merge_by_canonical_form() -> None:
    # The same encoder with its two independent nodes in either order.
    left, right = (Edge(0, "mlp_r3"), Edge(1, "mlp_r3")), (Edge(0, "msa_h2"), Edge(1, "identity"))
    one, other = Genotype((left, right)), Genotype((right, left))
    trials = [search_trial(0, 0, one, 0.5, 0.5), search_trial(0, 1, other, 0.7, 0.7)]
    (merged,) = merge_genotypes(trials)
    assert len(merged.trials) == 2
    assert merged.genotype == one.canonical() == other.canonical()


def test_ties_go_to_the_more_frequent() -> None:
    trials = [search_trial(0, 0, A, 0.5, 0.5)]
    trials += [search_trial(1, seed, B, 0.5, 0.5) for seed in (0, 1)]
    assert rank_genotypes(merge_genotypes(trials), "discretised_accuracy")[0].genotype == B


def test_vote_by_hand() -> None:
    second = ("mlp_r3", "identity", "mlp_r3", "msa_h2")
    votes = vote([chain("msa_h2", name) for name in second], OPERATIONS)
    by_edge = {(v.source, v.node): v for v in votes}
    assert list(by_edge) == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1)]
    unanimous = by_edge[0, 0]
    assert (unanimous.votes, unanimous.entropy, unanimous.agreement) == ({"msa_h2": 4}, 0.0, 1.0)
    split = by_edge[1, 0]
    assert list(split.votes.items()) == [("mlp_r3", 2), ("identity", 1), ("msa_h2", 1)]
    assert split.entropy == pytest.approx(1.5 * math.log(2))  # (1/2, 1/4, 1/4)
    # Both edges of the first node are always kept: three answers, zero not among them.
    assert split.normalised_entropy == pytest.approx(1.5 * math.log(2) / math.log(3))
    assert by_edge[1, 1].votes == {"none": 4}
    # o_1 has three sources, so that an edge may also be absent: four answers.
    ends = [chain("msa_h2", "mlp_r3", "mlp_r3", name) for name in OPERATIONS[1:]]
    assert vote(ends, OPERATIONS)[4].normalised_entropy == pytest.approx(math.log(3) / math.log(4))
    assert vote([], OPERATIONS) == []


def test_votes_are_cast_on_the_edges_of_the_search() -> None:
    # One function in two ways, and with one node less in canonical form: still four edges apart.
    one = Genotype(((Edge(0, "mlp_r3"),), (Edge(1, "msa_h2"),)))
    other = Genotype(((Edge(1, "msa_h2"),), (Edge(0, "mlp_r3"),)))
    assert one.canonical() == other.canonical()
    votes = vote([one, other], OPERATIONS, edges_per_node=1)
    mlp, msa = {"mlp_r3": 1, "none": 1}, {"msa_h2": 1, "none": 1}
    assert [v.votes for v in votes] == [mlp, msa, mlp, msa, {"none": 2}]
    assert votes[0].normalised_entropy == pytest.approx(0.5)  # one of two bits: four answers
