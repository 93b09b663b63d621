"""Drawings of encoders: what they show, and that nothing overlaps, whatever the encoder."""

import random
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from dasvit.report.encoder import encoder_figure
from dasvit.report.style import save_figure
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES, Edge, Genotype

PAPERS = NAMED_GENOTYPES["dasvit_cifar10"]
OPERATIONS = ("zero", "identity", "msa_h8", "msa_h12", "msa_h16", "mlp_r0.5", "mlp_r3", "conv_k3")


def random_genotype(num_nodes: int, seed: int) -> Genotype:
    """Nodes with any number of incoming edges."""
    generator = random.Random(seed)
    nodes = []
    for j in range(num_nodes):
        sources = sorted(generator.sample(range(j + 2), generator.randint(1, j + 2)))
        nodes.append(tuple(Edge(s, generator.choice(OPERATIONS)) for s in sources))
    return Genotype(tuple(nodes))


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.axes[0].texts]


def patches(figure: Figure, *kinds: str) -> dict[str, list]:
    """The drawing's patches by gid, of the kinds asked for."""
    found: dict[str, list] = {}
    for patch in figure.axes[0].patches:
        gid = patch.get_gid()
        if gid.partition("-")[0] in kinds:
            found.setdefault(gid, []).append(patch)
    return found


def inside(points: np.ndarray, box: Bbox) -> bool:
    return bool(((points > box.min) & (points < box.max)).all(axis=1).any())


def assert_nothing_overlaps(figure: Figure) -> None:
    """In pixels of the rendered figure: shapes, texts, lines and arrow heads keep apart."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    shapes = {  # half a pixel of tolerance for lines that end on an outline
        gid: patch.get_path().get_extents(patch.get_transform()).padded(-0.5)
        for gid, (patch,) in patches(figure, "input", "box", "node", "sum", "output").items()
    }
    outside = {}  # labels that are not written inside their own shape
    for text in figure.axes[0].texts:
        gid, label = text.get_gid(), text.get_window_extent(renderer)
        assert Bbox.intersection(label, figure.bbox).size == pytest.approx(label.size), gid
        own = [s for s in shapes if s.partition("-")[2] == gid.partition("-")[2]]
        if own and not own[0].startswith("node"):
            box = shapes[own[0]]
            assert (label.min > box.min).all() and (label.max < box.max).all(), (gid, own)
        else:
            outside[gid] = label
    for (name, a), (other, b) in combinations((shapes | outside).items(), 2):
        assert not a.overlaps(b), f"{name} overlaps {other}"

    for gid, (patch,) in patches(figure, "line").items():
        polygons = patch.get_path().to_polygons(patch.get_transform(), closed_only=False)
        for polygon in polygons:
            steps = np.linspace(0, len(polygon) - 1, 40 * len(polygon))
            points = np.stack(
                [np.interp(steps, np.arange(len(polygon)), polygon[:, k]) for k in (0, 1)], axis=1
            )
            for name, box in (shapes | outside).items():
                if name.startswith(("node", "sum")):  # round: its corners are free
                    distance = np.linalg.norm(points - (box.min + box.max) / 2, axis=1).min()
                    assert distance > box.width / 2 - 0.5, f"{gid} runs through {name}"
                else:
                    assert not inside(points, box), f"{gid} runs through {name}"


def test_the_papers_encoder() -> None:
    figure = encoder_figure(PAPERS, title="found")
    expected = ["$e_{k-2}$", "$e_{k-1}$", "$o_0$", "$o_1$", "$e_k$", "found", "MSA 8 heads"]
    assert sorted(texts(figure)) == sorted([*expected, *["MLP ×0.5"] * 3])
    # Into and out of each of 4 boxes, 2 into the sum and 1 out, and 4 lanes.
    sizes = {"box": 4, "node": 2, "sum": 1, "line": 4 + 4 + 2 + 1 + 4}
    assert {kind: len(patches(figure, kind)) for kind in sizes} == sizes
    assert_nothing_overlaps(figure)


def test_one_node_has_no_second_sum_and_an_unread_input_is_faint() -> None:
    figure = encoder_figure(Genotype(((Edge(0, "identity"),),)), "A title wider than all of it")
    assert not patches(figure, "sum") and len(patches(figure, "node")) == 1
    colours = {p.get_edgecolor() for (p,) in patches(figure, "input").values()}
    assert len(patches(figure, "input")) == len(colours) == 2
    assert_nothing_overlaps(figure)


def test_colours_are_by_kind() -> None:
    names = ("zero", "identity", "msa_h8", "msa_h16", "mlp_r3", "conv_k3", "pool")
    figures = {name: encoder_figure(Genotype(((Edge(0, name),),))) for name in names}
    colour = {n: patches(f, "box").popitem()[1][0].get_facecolor() for n, f in figures.items()}
    assert colour["msa_h8"] == colour["msa_h16"] and colour["conv_k3"] == colour["pool"]
    assert len(set(colour.values())) == 5


@pytest.mark.parametrize(("num_nodes", "count"), [(1, 1), (2, 6), (3, 2), (5, 2)])
def test_nothing_overlaps(num_nodes: int, count: int) -> None:
    for seed in range(count):
        assert_nothing_overlaps(encoder_figure(random_genotype(num_nodes, seed), "a title"))


def test_equal_encoders_give_equal_files(tmp_path) -> None:
    first = save_figure(encoder_figure(PAPERS, "found"), tmp_path / "new" / "a.v1")
    second = save_figure(encoder_figure(PAPERS, "found"), tmp_path / "c.svg")
    assert [p.name for p in first] == ["a.v1.png", "a.v1.svg"]
    assert [p.name for p in second] == ["c.png", "c.svg"]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
