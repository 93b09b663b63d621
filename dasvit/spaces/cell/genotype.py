"""The genotype: which operation sits on which edge of the encoder. Values only, no torch.

Sources are numbered 0 = `e_{k-2}`, 1 = `e_{k-1}`, 2 = `o_0`, 3 = `o_1`, and so on; node `j`
may read sources 0 to `j + 1`. The encoder's output is the sum of its nodes (Eq. 22).
"""

import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dasvit.run.files import read_json, write_atomic
from dasvit.spaces.base import EdgeOps

__all__ = [
    "NAMED_GENOTYPES",
    "SCHEMA",
    "Edge",
    "Genotype",
    "edge_list",
    "one_hot",
    "source_name",
]

SCHEMA = "dasvit/genotype/1"
NUM_INPUTS = 2
MAX_NODES = 6
_OPERATION_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z][0-9]+(\.[0-9]+)?)?")


def edge_list(num_nodes: int) -> tuple[tuple[int, int], ...]:
    """All `(source, node)` pairs of an encoder, node by node: 5 of them for 2 nodes."""
    return tuple((s, j) for j in range(num_nodes) for s in range(j + NUM_INPUTS))


def source_name(source: int) -> str:
    """`e_{k-2}`, `e_{k-1}`, `o_0`, `o_1`, …"""
    return ("e_{k-2}", "e_{k-1}")[source] if source < NUM_INPUTS else f"o_{source - NUM_INPUTS}"


def one_hot(genotype: "Genotype", edge_ops: EdgeOps) -> list[list[float]]:
    """The weights of the candidates under which a supernet is this encoder: 1 for its operations,
    else 0.

    Args:
        genotype: with as many nodes as the supernet.
        edge_ops: the candidates of each edge.

    Raises:
        ValueError: the genotype has an operation that its edge does not hold.
    """
    rows = [[0.0] * len(names) for names in edge_ops]
    places = edge_list(len(genotype.nodes))
    for node, edges in enumerate(genotype.nodes):
        for edge in edges:
            wire = (edge.source, node)
            names = edge_ops[places.index(wire)]
            if edge.operation not in names:
                raise ValueError(
                    f"the supernet's edge {wire} holds {names}, not {edge.operation!r}"
                )
            rows[places.index(wire)][names.index(edge.operation)] = 1.0
    return rows


@dataclass(frozen=True, order=True, slots=True)
class Edge:
    """One edge into a node: where it comes from and what it does."""

    source: int
    operation: str


@dataclass(frozen=True, slots=True)
class Genotype:
    """An encoder, node by node. Equality and hash ignore provenance.

    Raises:
        ValueError: no node or more than six, a node without an edge, an edge from a later node,
            two edges from one source into one node, or a malformed operation name.
    """

    nodes: tuple[tuple[Edge, ...], ...]
    provenance: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.nodes) <= MAX_NODES:
            raise ValueError(f"a genotype has 1 to {MAX_NODES} nodes, but got {len(self.nodes)}")
        for j, edges in enumerate(self.nodes):
            if not edges:
                raise ValueError(f"node o_{j} has no incoming edge; each node needs at least one")
            for edge in edges:
                if not 0 <= edge.source < j + NUM_INPUTS:
                    raise ValueError(
                        f"node o_{j} has an edge from source {edge.source}; only the sources 0 to "
                        f"{j + NUM_INPUTS - 1} come before it"
                    )
                if not _OPERATION_NAME.fullmatch(edge.operation):
                    raise ValueError(
                        f"node o_{j}: {edge.operation!r} is not an operation's name (like msa_h8)"
                    )
            sources = [edge.source for edge in edges]
            if len(set(sources)) != len(sources):
                raise ValueError(f"node o_{j} has two edges from one source: {sources}")

    def __str__(self) -> str:
        lines = [
            f"o_{j} = " + " + ".join(f"{e.operation}({source_name(e.source)})" for e in edges)
            for j, edges in enumerate(self.nodes)
        ]
        output = " + ".join(f"o_{j}" for j in range(len(self.nodes)))
        return "; ".join([*lines, f"e_k = {output}"])

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations of all edges, node by node."""
        return tuple(edge.operation for edges in self.nodes for edge in edges)

    @property
    def families(self) -> set[str]:
        """Under what its operations are registered: "msa" of msa_h8."""
        return {operation.partition("_")[0] for operation in self.operations}

    def canonical(self) -> "Genotype":
        """The same function in its canonical form; provenance is kept.

        Encoders that differ only in the names of their nodes, in the order of their edges, or in
        which of several unread nodes a term is added to (all of them end in the output's sum) have
        one canonical form. It can have fewer nodes.
        """
        read = {e.source - NUM_INPUTS for edges in self.nodes for e in edges} & set(
            range(len(self.nodes))
        )
        candidates = [self._arranged(order) for order in itertools.permutations(sorted(read))]
        return Genotype(min(c for c in candidates if c is not None), self.provenance)

    def _arranged(self, order: tuple[int, ...]) -> tuple[tuple[Edge, ...], ...] | None:
        """The nodes that others read in this order, then the unread ones' terms dealt out anew;
        None if a node would come before one it reads."""
        position = {old: new for new, old in enumerate(order)}

        def rename(edge: Edge) -> Edge:
            node = edge.source - NUM_INPUTS
            return edge if node < 0 else Edge(position[node] + NUM_INPUTS, edge.operation)

        nodes = [tuple(sorted(map(rename, self.nodes[old]))) for old in order]
        if any(e.source >= j + NUM_INPUTS for j, edges in enumerate(nodes) for e in edges):
            return None
        # Unread nodes only add to the output: the i-th term from a source goes to the i-th node.
        unread: list[list[Edge]] = []
        terms = sorted(
            rename(e) for j, edges in enumerate(self.nodes) if j not in position for e in edges
        )
        for _, group in itertools.groupby(terms, key=lambda e: e.source):
            for i, edge in enumerate(group):
                if i == len(unread):
                    unread.append([])
                unread[i].append(edge)
        return (*nodes, *(tuple(edges) for edges in unread))

    @property
    def canonical_hash(self) -> str:
        """12 hexadecimal digits, equal for equal encoders on every machine."""
        nodes = [[[e.source, e.operation] for e in edges] for edges in self.canonical().nodes]
        return hashlib.sha256(json.dumps([SCHEMA, nodes]).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, with schema and canonical hash."""
        return {
            "schema": SCHEMA,
            "hash": self.canonical_hash,
            "nodes": [
                [{"source": e.source, "operation": e.operation} for e in edges]
                for edges in self.nodes
            ],
            "provenance": self.provenance,
        }

    @classmethod
    def from_dict(cls, values: Any, *, where: str = "genotype") -> "Genotype":
        """The inverse of `to_dict`.

        Args:
            where: what to call the source in errors, a file's path say.

        Raises:
            ValueError: naming what is wrong with `values`.
        """
        if not isinstance(values, dict) or "schema" not in values:
            raise ValueError(f"{where} is not a genotype: it has no schema entry ({SCHEMA!r})")
        if values["schema"] != SCHEMA:
            raise ValueError(
                f"{where} has schema {values['schema']!r}; this version reads {SCHEMA!r}"
            )
        try:
            nodes = tuple(
                tuple(
                    Edge(source=_integer(e["source"]), operation=str(e["operation"])) for e in edges
                )
                for edges in values["nodes"]
            )
            provenance = values.get("provenance") or {}
            if not isinstance(provenance, dict):
                raise ValueError(f"provenance must be an object, but got {provenance!r}")
            genotype = cls(nodes, provenance)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{where}: malformed nodes ({type(error).__name__}: {error})"
            ) from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if "hash" in values and values["hash"] != genotype.canonical_hash:
            raise ValueError(
                f"{where}: its hash {values['hash']!r} does not match its nodes "
                f"({genotype.canonical_hash!r}); was it edited? Remove the hash entry to accept it"
            )
        return genotype

    def save(self, path: str | Path) -> None:
        """Write as JSON; a crash leaves the old file or the new one, never half a file."""
        write_atomic(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Genotype":
        """Read a genotype file.

        Raises:
            ValueError: naming the file and what is wrong with it.
        """
        return cls.from_dict(read_json(path, "genotype"), where=str(path))


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"source must be a whole number, but got {value!r}")
    return value


def _paper_encoder(msa: str, dataset: str) -> Genotype:
    # Eq. 20-22, Figures 5 and 6.
    return Genotype(
        (
            (Edge(0, "mlp_r0.5"), Edge(1, "mlp_r0.5")),
            (Edge(0, "mlp_r0.5"), Edge(2, msa)),
        ),
        {"source": f"DASViT (2025), Eq. 20-22, {dataset}"},
    )


# Paper gap: the text does not say which data set's encoder has 8 heads and which 12; both have
# the same parameters and multiply-adds. See docs/fidelity.md.
NAMED_GENOTYPES: dict[str, Genotype] = {
    "dasvit_cifar10": _paper_encoder("msa_h8", "CIFAR-10"),
    "dasvit_imagenet100": _paper_encoder("msa_h12", "ImageNet-100"),
}
