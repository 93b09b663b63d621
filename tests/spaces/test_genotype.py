"""The genotype: text form, canonical form, and what a bad file says."""

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from dasvit.spaces.cell.genotype import (
    NAMED_GENOTYPES,
    SCHEMA,
    Edge,
    Genotype,
    edge_list,
    source_name,
)

PAPER = NAMED_GENOTYPES["dasvit_cifar10"]


def test_the_papers_encoder() -> None:
    """Eq. 20-22; the hash is golden: recorded results are found by it."""
    assert edge_list(2) == ((0, 0), (1, 0), (0, 1), (1, 1), (2, 1))
    assert [source_name(s) for s in range(4)] == ["e_{k-2}", "e_{k-1}", "o_0", "o_1"]
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


def test_json_round_trip(tmp_path: Path) -> None:
    """In its own order of edges; what is recorded beside it makes no difference."""
    nodes = ((Edge(1, "msa_h2"), Edge(0, "zero")), (Edge(0, "conv_k3"),), (Edge(3, "msa_h2"),))
    genotype = Genotype(nodes, {"seed": 1, "note": "α", "list": [1, None]})
    genotype.save(tmp_path / "found.json")
    read, other = Genotype.load(tmp_path / "found.json"), Genotype(nodes, {"seed": 99})
    assert read == genotype == other and hash(read) == hash(other)
    assert (read.nodes, read.provenance) == (nodes, genotype.provenance)
    stored = json.loads((tmp_path / "found.json").read_text())
    assert stored["schema"] == SCHEMA
    assert stored["hash"] == genotype.canonical_hash == other.canonical_hash
    assert other.canonical().provenance == other.provenance


# --- Canonical form


def _node_values(genotype: Genotype) -> list[float]:
    """Every node with one fixed nonlinear function for each name, on fixed inputs."""
    functions = {
        "msa_h2": lambda x: math.sin(1.3 * x + 0.4),
        "mlp_r2": lambda x: math.tanh(0.7 * x - 0.2) + 0.1 * x**2,
    }
    states = [0.37, -0.81]
    for edges in genotype.nodes:
        states.append(sum(functions[e.operation](states[e.source]) for e in edges))
    return states[2:]


def _all_of_two_nodes() -> list[Genotype]:
    """With one or two edges per node, of two operations."""

    def nodes_with(sources: int) -> list[tuple[Edge, ...]]:
        single = [(Edge(s, o),) for s in range(sources) for o in ("msa_h2", "mlp_r2")]
        pairs = itertools.combinations(single, 2)
        return single + [(*a, *b) for a, b in pairs if a[0].source != b[0].source]

    return [Genotype(pair) for pair in itertools.product(nodes_with(2), nodes_with(3))]


def test_canonical_forms_are_equal_exactly_where_the_functions_are() -> None:
    """Weights tied by name. Names of nodes, the order of edges, and which of several unread nodes a
    term goes to make no difference."""
    rows = []
    for genotype in _all_of_two_nodes():
        canonical = genotype.canonical()
        assert canonical.canonical().nodes == canonical.nodes
        assert sorted(canonical.operations) == sorted(genotype.operations)
        value = sum(_node_values(genotype))
        assert sum(_node_values(canonical)) == pytest.approx(value, abs=1e-12)
        rows.append((value, canonical.nodes, genotype.canonical_hash))
    equal = 0
    for (value, nodes, key), (other, other_nodes, other_key) in itertools.combinations(rows, 2):
        same = abs(value - other) < 1e-12
        assert (nodes == other_nodes) == (key == other_key) == same
        equal += same
    assert equal >= 20


def test_the_canonical_form_is_the_first_of_all_orders() -> None:
    """Golden: recorded results are found by the hash."""
    nodes = ((Edge(1, "mlp_r2"),), (Edge(0, "msa_h2"),), (Edge(2, "identity"), Edge(3, "mlp_r2")))
    canonical = Genotype(nodes).canonical()
    last = (Edge(2, "mlp_r2"), Edge(3, "identity"))
    assert canonical.nodes == ((Edge(0, "msa_h2"),), (Edge(1, "mlp_r2"),), last)
    assert canonical.canonical_hash == Genotype(nodes).canonical_hash == "6e2b9c302c78"


# --- What is refused


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((), "1 to 6 nodes, but got 0"),
        (((Edge(0, "identity"),), ()), "node o_1 has no incoming edge"),
        (((Edge(2, "identity"),),), "node o_0 has an edge from source 2"),
        (((Edge(-1, "identity"),),), "node o_0 has an edge from source -1"),
        (((Edge(0, "msa_h8"), Edge(0, "mlp_r3")),), r"two edges from one source: \[0, 0\]"),
        *(
            ((((Edge(0, name),),)), "is not an operation's name")
            for name in ("msa h8", "MSA_h8", "msa_h8\n", "", "mlp_r.5")
        ),
    ],
)
def test_bad_nodes(nodes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Genotype(nodes)


def _edited(**changes: Any) -> dict[str, Any]:
    values = PAPER.to_dict() | changes
    return {key: value for key, value in values.items() if value is not None}


def _nodes_with(node: int, edge: int, **changes: Any) -> list[Any]:
    nodes = PAPER.to_dict()["nodes"]
    nodes[node][edge].update(changes)
    return nodes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_edited(schema="dasvit/genotype/2"), ["'dasvit/genotype/2'", repr(SCHEMA)]),
        ({"weights": [1, 2]}, ["is not a genotype", repr(SCHEMA)]),
        ([1, 2], ["is not a genotype"]),
        (_edited(nodes=_nodes_with(1, 0, operation="rm -rf"), hash=None), ["o_1", "'rm -rf'"]),
        (_edited(nodes=_nodes_with(1, 0, operation=8), hash=None), ["'8'"]),
        (_edited(nodes=_nodes_with(0, 1, source=3), hash=None), ["node o_0", "source 3"]),
        *((_edited(nodes=_nodes_with(0, 1, source=s)), [repr(s)]) for s in ("1", True, 0.5)),
        (_edited(nodes=None), ["malformed", "'nodes'"]),
        (_edited(nodes=3), ["malformed"]),
        (_edited(nodes=[[{"source": 0}]]), ["malformed", "'operation'"]),
        (_edited(provenance="x"), ["provenance must be an object", "'x'"]),
        (_edited(hash="0123456789ab"), ["'0123456789ab'", PAPER.canonical_hash]),
        (_edited(nodes=_nodes_with(1, 1, operation="msa_h16")), [PAPER.canonical_hash, "edited"]),
    ],
)
def test_bad_files_name_the_file_and_the_value(
    content: Any, words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="bad") as caught:
        Genotype.load(path)
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    text = json.dumps(PAPER.to_dict(), indent=2)
    for end in (0, len(text) // 2, len(text) - 1):
        path.write_text(text[:end])
        with pytest.raises(ValueError, match="not valid JSON") as caught:
            Genotype.load(path)
        assert "cut.json" in str(caught.value)
    with pytest.raises(ValueError, match=r"there is no file .*missing\.json"):
        Genotype.load(tmp_path / "missing.json")


def test_a_file_edited_on_purpose(tmp_path: Path) -> None:
    """Without its hash it is accepted; edges in another order keep theirs."""
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(_edited(nodes=_nodes_with(1, 1, operation="msa_h16"), hash=None)))
    assert Genotype.load(path).operations[-1] == "msa_h16"
    values = PAPER.to_dict()
    values["nodes"] = [edges[::-1] for edges in values["nodes"]]
    assert Genotype.from_dict(values).canonical() == PAPER.canonical()
