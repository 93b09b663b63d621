"""The genotype: text form, canonical form, and what a bad file says."""

import dataclasses
import hashlib
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import reference

from dasvit.spaces.cell.genotype import (
    NAMED_GENOTYPES,
    SCHEMA,
    Edge,
    Genotype,
    edge_list,
    source_name,
)

PAPER = NAMED_GENOTYPES["dasvit_cifar10"]


def _random_genotype(chance: random.Random, num_nodes: int, operations: list[str]) -> Genotype:
    nodes = []
    for j in range(num_nodes):
        sources = chance.sample(range(j + 2), chance.randint(1, min(2, j + 2)))
        nodes.append(tuple(Edge(s, chance.choice(operations)) for s in sources))
    return Genotype(tuple(nodes))


def _relabellings(genotype: Genotype) -> list[Genotype]:
    orders = itertools.permutations(range(len(genotype.nodes)))
    return [g for g in (reference.relabelled(genotype, o) for o in orders) if g is not None]


def test_edge_list() -> None:
    assert edge_list(1) == ((0, 0), (1, 0))
    assert edge_list(2) == ((0, 0), (1, 0), (0, 1), (1, 1), (2, 1))
    for num_nodes in range(1, 6):
        assert list(edge_list(num_nodes)) == reference.edges_of(num_nodes)
    assert [source_name(s) for s in range(4)] == ["e_{k-2}", "e_{k-1}", "o_0", "o_1"]


def test_the_papers_encoder() -> None:
    """Eq. 20-22; the hash is golden: recorded results are found by it."""
    assert set(PAPER.nodes[0]) == {Edge(0, "mlp_r0.5"), Edge(1, "mlp_r0.5")}
    assert set(PAPER.nodes[1]) == {Edge(2, "msa_h8"), Edge(0, "mlp_r0.5")}
    other = NAMED_GENOTYPES["dasvit_imagenet100"]
    assert set(other.nodes[1]) == {Edge(2, "msa_h12"), Edge(0, "mlp_r0.5")}
    assert PAPER.canonical_hash == "df0022d4d6f5"
    assert other.canonical_hash == "ee9efb14729a"
    text = f'["{SCHEMA}", [[[0, "mlp_r0.5"], [1, "mlp_r0.5"]], [[0, "mlp_r0.5"], [2, "msa_h8"]]]]'
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == PAPER.canonical_hash
    assert str(PAPER) == (
        "o_0 = mlp_r0.5(e_{k-2}) + mlp_r0.5(e_{k-1}); "
        "o_1 = mlp_r0.5(e_{k-2}) + msa_h8(o_0); e_k = o_0 + o_1"
    )
    assert PAPER.operations == ("mlp_r0.5", "mlp_r0.5", "mlp_r0.5", "msa_h8")


def test_json_round_trip(tmp_path: Path) -> None:
    chance = random.Random(0)
    for number in range(30):
        genotype = _random_genotype(
            chance, 1 + number % 4, ["zero", "identity", "msa_h2", "conv_k3"]
        )
        genotype = Genotype(genotype.nodes, {"seed": number, "note": "α", "list": [1, None]})
        path = tmp_path / f"{number}.json"
        genotype.save(path)
        read = Genotype.load(path)
        assert read == genotype
        assert read.nodes == genotype.nodes  # not its canonical form
        assert read.provenance == genotype.provenance
        assert Genotype.from_dict(json.loads(json.dumps(genotype.to_dict()))) == genotype
        stored = json.loads(path.read_text())
        assert stored["schema"] == SCHEMA
        assert stored["hash"] == genotype.canonical_hash


def test_equality_ignores_provenance() -> None:
    left, right = Genotype(PAPER.nodes, {"seed": 1}), Genotype(PAPER.nodes, {"seed": 2})
    assert left == right
    assert hash(left) == hash(right)
    assert left.canonical_hash == right.canonical_hash
    assert left.canonical().provenance == {"seed": 1}


def _node_values(genotype: Genotype) -> list[float]:
    """Every node with one fixed nonlinear function for each name, on fixed inputs."""
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "identity": lambda x: x,
        "msa_h2": lambda x: torch.sin(1.3 * x + 0.4),
        "mlp_r2": lambda x: torch.tanh(0.7 * x - 0.2) + 0.1 * x**2,
    }
    states = [torch.tensor(0.37, dtype=torch.float64), torch.tensor(-0.81, dtype=torch.float64)]
    for edges in genotype.nodes:
        states.append(torch.stack([functions[e.operation](states[e.source]) for e in edges]).sum())
    return [state.item() for state in states[2:]]


def _tied_function(genotype: Genotype) -> float:
    """The encoder's output, its operations tied by name."""
    return sum(_node_values(genotype))


def test_canonical_merges_relabelled_nodes_and_reordered_edges() -> None:
    chance = random.Random(1)
    merged = 0
    for _ in range(150):
        genotype = _random_genotype(chance, chance.randint(2, 4), ["identity", "msa_h2", "mlp_r2"])
        canonical = genotype.canonical()
        assert canonical.canonical().nodes == canonical.nodes
        assert _tied_function(canonical) == pytest.approx(_tied_function(genotype), abs=1e-12)
        assert sorted(canonical.operations) == sorted(genotype.operations)
        for other in _relabellings(genotype):
            shuffled = Genotype(tuple(tuple(chance.sample(e, len(e))) for e in other.nodes))
            assert shuffled.canonical().nodes == canonical.nodes
            assert shuffled.canonical_hash == genotype.canonical_hash
            merged += shuffled.nodes != genotype.nodes
    assert merged > 100


def test_canonical_is_equal_only_for_the_same_encoder() -> None:
    """Against the functions themselves, over all pairs of many encoders of three nodes."""
    chance = random.Random(2)
    found = [_random_genotype(chance, 3, ["mlp_r2", "msa_h2"]) for _ in range(200)]
    # Two nodes of one value (equal terms) are told apart by their weights, not by this function.
    found = [g for g in found if len({round(v, 9) for v in _node_values(g)}) == 3]
    found += [chance.choice(_relabellings(g)) for g in found[:20]]
    forms = [(_tied_function(g), g.canonical().nodes, g.canonical_hash) for g in found]
    equal = 0
    for (value, nodes, key), (other, other_nodes, other_key) in itertools.combinations(forms, 2):
        same = abs(value - other) < 1e-12
        assert (nodes == other_nodes) == same
        assert (key == other_key) == same
        equal += same
    assert equal >= 20


def _two_node_encoders(operations: tuple[str, ...]) -> list[Genotype]:
    """All of them with one or two edges a node."""

    def nodes_with(sources: int) -> list[tuple[Edge, ...]]:
        single = [(Edge(s, o),) for s in range(sources) for o in operations]
        pairs = itertools.combinations(single, 2)
        return single + [(*a, *b) for a, b in pairs if a[0].source != b[0].source]

    return [Genotype(pair) for pair in itertools.product(nodes_with(2), nodes_with(3))]


def test_canonical_is_equal_exactly_when_the_functions_are() -> None:
    """All encoders of two nodes and two operations, weights tied by name."""
    found = _two_node_encoders(("msa_h2", "mlp_r2"))
    assert len(found) == 8 * 18
    rows = [(_tied_function(g), g.canonical_hash) for g in found]
    for (value, key), (other_value, other_key) in itertools.combinations(rows, 2):
        assert (abs(value - other_value) < 1e-12) == (key == other_key)
    assert len({key for _, key in rows}) < len(rows)


def test_canonical_merges_terms_that_change_places_between_unread_nodes() -> None:
    a, b, c, d = (Edge(s, o) for s in (0, 1) for o in ("msa_h2", "mlp_r2"))
    left, right = Genotype(((a, c), (b, d))), Genotype(((b, c), (a, d)))
    assert _tied_function(left) == pytest.approx(_tied_function(right), abs=1e-15)
    assert left.canonical_hash == right.canonical_hash


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((), "1 to 6 nodes, but got 0"),
        (((Edge(0, "identity"),), ()), "node o_1 has no incoming edge"),
        (((Edge(2, "identity"),),), "node o_0 has an edge from source 2"),
        (((Edge(-1, "identity"),),), "node o_0 has an edge from source -1"),
        (((Edge(0, "identity"),), (Edge(3, "msa_h8"),)), "node o_1 has an edge from source 3"),
        (((Edge(0, "msa_h8"), Edge(0, "mlp_r3")),), r"two edges from one source: \[0, 0\]"),
        (((Edge(0, "msa h8"),),), "'msa h8'"),
        (((Edge(0, "MSA_h8"),),), "'MSA_h8'"),
        (((Edge(0, "msa_h8\n"),),), r"'msa_h8\\n'"),
        (((Edge(0, ""),),), "''"),
        (((Edge(0, "mlp_r"),),), "'mlp_r'"),
        (((Edge(0, "mlp_r.5"),),), "'mlp_r.5'"),
    ],
)
def test_bad_nodes_are_refused(nodes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Genotype(nodes)


def _edited(**changes: Any) -> dict[str, Any]:
    values = PAPER.to_dict()
    for key, value in changes.items():
        if value is None:
            del values[key]
        else:
            values[key] = value
    return values


def _nodes_with(node: int, edge: int, **changes: Any) -> list[Any]:
    nodes = PAPER.to_dict()["nodes"]
    nodes[node][edge].update(changes)
    return nodes


BAD_FILES: dict[str, tuple[Any, list[str]]] = {
    "wrong schema": (_edited(schema="dasvit/genotype/2"), ["'dasvit/genotype/2'", repr(SCHEMA)]),
    "no schema": (_edited(schema=None), ["schema", repr(SCHEMA)]),
    "another file": ({"weights": [1, 2]}, ["is not a genotype"]),
    "a list": ([1, 2], ["is not a genotype"]),
    "a number": (3, ["is not a genotype"]),
    "malformed operation": (
        _edited(nodes=_nodes_with(1, 0, operation="rm -rf"), hash=None),
        ["node o_1", "'rm -rf'"],
    ),
    "an operation that is a number": (
        _edited(nodes=_nodes_with(1, 0, operation=8), hash=None),
        ["'8'"],
    ),
    "an edge from a later node": (
        _edited(nodes=_nodes_with(0, 1, source=3), hash=None),
        ["node o_0", "source 3"],
    ),
    "a source that is text": (_edited(nodes=_nodes_with(0, 1, source="1"), hash=None), ["'1'"]),
    "a source that is a truth value": (
        _edited(nodes=_nodes_with(0, 1, source=True), hash=None),
        ["True"],
    ),
    "a source that is a fraction": (
        _edited(nodes=_nodes_with(0, 1, source=0.5), hash=None),
        ["0.5"],
    ),
    "no nodes entry": (_edited(nodes=None), ["malformed", "'nodes'"]),
    "empty nodes": (_edited(nodes=[]), ["1 to 6 nodes, but got 0"]),
    "nodes that are a number": (_edited(nodes=3), ["malformed"]),
    "an edge without operation": (_edited(nodes=[[{"source": 0}]]), ["malformed", "'operation'"]),
    "an edge without source": (
        _edited(nodes=[[{"operation": "identity"}]]),
        ["malformed", "'source'"],
    ),
    "edited hash": (_edited(hash="0123456789ab"), ["'0123456789ab'", PAPER.canonical_hash]),
    "edited nodes": (
        _edited(nodes=_nodes_with(1, 1, operation="msa_h16")),
        [PAPER.canonical_hash, "edited"],
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_name_the_file_and_the_value(name: str, tmp_path: Path) -> None:
    content, fragments = BAD_FILES[name]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"bad\.json") as caught:
        Genotype.load(path)
    assert str(path) in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    text = json.dumps(PAPER.to_dict(), indent=2)
    for end in (0, 1, len(text) // 2, len(text) - 1):
        path.write_text(text[:end])
        with pytest.raises(ValueError, match="not valid JSON") as caught:
            Genotype.load(path)
        assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match="there is no file") as caught:
        Genotype.load(tmp_path / "missing.json")
    assert "missing.json" in str(caught.value)


def test_without_its_hash_an_edited_file_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(_edited(nodes=_nodes_with(1, 1, operation="msa_h16"), hash=None)))
    assert Genotype.load(path).operations[-1] == "msa_h16"


def test_a_reordered_file_keeps_its_hash() -> None:
    values = PAPER.to_dict()
    values["nodes"] = [edges[::-1] for edges in values["nodes"]]
    assert Genotype.from_dict(values).canonical() == PAPER.canonical()


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.nodes = ()  # type: ignore[misc]
