"""Figures: what they show, that nothing overlaps, and that equal input gives equal files."""

import dataclasses
import random
import sys
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from dasvit.report.events import SearchEpoch
from dasvit.report.plots import (
    encoder_figure,
    heatmap_figure,
    operation_label,
    operation_shares,
    save_encoder,
    save_figure,
    share_figure,
    stage_heatmaps_figure,
)
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES, Edge, Genotype

OPERATIONS = ("zero", "identity", "msa_h8", "msa_h12", "msa_h16", "mlp_r0.5", "mlp_r3", "conv_k3")


def random_genotype(num_nodes: int, seed: int, edges: int | None = None) -> Genotype:
    """Nodes with `edges` incoming edges each, or with any number of them."""
    generator = random.Random(seed)
    nodes = []
    for j in range(num_nodes):
        count = min(edges or generator.randint(1, j + 2), j + 2)
        sources = sorted(generator.sample(range(j + 2), count))
        nodes.append(tuple(Edge(s, generator.choice(OPERATIONS)) for s in sources))
    return Genotype(tuple(nodes))


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for axes in figure.axes for t in axes.texts]


def patches(figure: Figure, *kinds: str) -> dict[str, list]:
    """The first axes' patches by gid, of the kinds asked for."""
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
    canvas = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    shapes = {  # half a pixel of tolerance for lines that end on an outline
        gid: patch.get_path().get_extents(patch.get_transform()).padded(-0.5)
        for gid, (patch,) in patches(figure, "input", "box", "node", "sum", "output").items()
    }
    labels = {t.get_gid(): t.get_window_extent(renderer) for t in figure.axes[0].texts}
    for (name, a), (other, b) in combinations(shapes.items(), 2):
        assert not a.overlaps(b), f"{name} overlaps {other}"
    outside = {}  # labels that are not written inside their own shape
    for gid, label in labels.items():
        assert Bbox.intersection(label, figure.bbox).size == pytest.approx(label.size), gid
        own = [s for s in shapes if s.partition("-")[2] == gid.partition("-")[2]]
        if own and not own[0].startswith("node"):
            box = shapes[own[0]]
            assert (label.min > box.min).all() and (label.max < box.max).all(), (gid, own)
        else:
            outside[gid] = label
    for (name, a), (other, b) in combinations((shapes | outside).items(), 2):
        assert not a.overlaps(b), f"{name} overlaps {other}"

    for gid, (patch,) in patches(figure, "line", "arrow").items():
        (polygon,) = patch.get_path().to_polygons(patch.get_transform(), closed_only=False)
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


@pytest.mark.parametrize("name", sorted(NAMED_GENOTYPES))
def test_encoder_figure_shows_the_papers_encoder(name: str) -> None:
    heads = "8" if name == "dasvit_cifar10" else "12"
    figure = encoder_figure(NAMED_GENOTYPES[name], title="found")
    expected = ["$e_{k-2}$", "$e_{k-1}$", "$o_0$", "$o_1$", "$e_k$", "found"]
    expected += ["MLP ×0.5"] * 3 + [f"MSA {heads} heads"]
    assert sorted(texts(figure)) == sorted(expected)
    assert len(patches(figure, "box")) == 4
    assert len(patches(figure, "node")) == 2 and len(patches(figure, "sum")) == 1
    # An arrow into and out of each of 4 boxes (the former from a branch), 2 into the sum, 1 out.
    assert len(patches(figure, "arrow")) == 4 + 4 + 2 + 1
    assert_nothing_overlaps(figure)


def test_encoder_figure_of_one_node_has_no_second_sum() -> None:
    figure = encoder_figure(
        Genotype(((Edge(0, "identity"),),)), title="A title wider than all of it"
    )
    assert not patches(figure, "sum") and len(patches(figure, "node")) == 1
    assert len(patches(figure, "input")) == 2  # the unread input is there, but faint
    colours = {p.get_edgecolor() for (p,) in patches(figure, "input").values()}
    assert len(colours) == 2
    assert_nothing_overlaps(figure)


def test_encoder_figure_colours_by_kind() -> None:
    names = ("zero", "identity", "msa_h8", "msa_h16", "mlp_r3", "conv_k3", "pool")
    colour = {}
    for name in names:
        ((patch,),) = patches(encoder_figure(Genotype(((Edge(0, name),),))), "box").values()
        colour[name] = patch.get_facecolor()
    assert colour["msa_h8"] == colour["msa_h16"] and colour["conv_k3"] == colour["pool"]
    assert len(set(colour.values())) == 5


def test_nothing_overlaps_in_two_node_encoders() -> None:
    for seed in range(30):
        assert_nothing_overlaps(encoder_figure(random_genotype(2, seed)))


@pytest.mark.parametrize("num_nodes", [1, 3, 4])
@pytest.mark.parametrize("edges", [None, 2, 9])
def test_nothing_overlaps_in_other_encoders(num_nodes: int, edges: int | None) -> None:
    for seed in range(2):
        assert_nothing_overlaps(encoder_figure(random_genotype(num_nodes, seed, edges), "a title"))


def test_the_overlap_check_can_fail() -> None:
    figure = encoder_figure(NAMED_GENOTYPES["dasvit_cifar10"])
    (line,) = next(iter(patches(figure, "line").values()))
    ((box,), *_) = patches(figure, "box").values()
    middle = box.get_path().get_extents()
    line.get_path().vertices = np.array([middle.min - 0.1, *[middle.max] * 2, middle.max + 0.1])
    with pytest.raises(AssertionError, match="runs through"):
        assert_nothing_overlaps(figure)


def test_long_names_of_other_operations_fit() -> None:
    operation = "averylongnameofanoperation_k10.25"
    figure = encoder_figure(Genotype(((Edge(0, operation), Edge(1, "zero")),)))
    assert "averylongnameofanoperation k=10.25" in texts(figure)
    assert_nothing_overlaps(figure)


@pytest.mark.parametrize(
    ("operation", "label"),
    [
        ("zero", "zero"),
        ("identity", "identity"),
        ("msa_h1", "MSA 1 head"),
        ("msa_h12", "MSA 12 heads"),
        ("mlp_r0.5", "MLP ×0.5"),
        ("conv_k3", "conv k=3"),
    ],
)
def test_operation_label(operation: str, label: str) -> None:
    assert operation_label(operation) == label


def test_saved_encoders_are_equal_byte_for_byte(tmp_path) -> None:
    genotype = NAMED_GENOTYPES["dasvit_cifar10"]
    first = save_encoder(genotype, tmp_path / "new" / "a.v1", title="found")
    second = save_encoder(genotype, tmp_path / "b", title="found")
    assert [p.name for p in first] == ["a.v1.png", "a.v1.svg"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert first[0].read_bytes().startswith(b"\x89PNG") and first[0].stat().st_size > 5000
    svg = first[1].read_text(encoding="utf-8")
    assert "<svg" in svg and 'id="box-' in svg and "dc:date" not in svg
    other = save_encoder(NAMED_GENOTYPES["dasvit_imagenet100"], tmp_path / "b", title="found")
    assert other[0].read_bytes() != first[0].read_bytes()


STAGE_0 = (("zero", "identity", "msa_h2", "mlp_r2"),) * 5
STAGE_1 = (("zero", "mlp_r2"), ("identity", "msa_h2")) + (("zero", "msa_h2"),) * 3


def rows(edge_ops: tuple[tuple[str, ...], ...]) -> tuple[tuple[float, ...], ...]:
    """Weights that are all different: edge e gives its last operation most."""
    weights = []
    for e, names in enumerate(edge_ops):
        first = [0.1 + 0.01 * e] * (len(names) - 1)
        weights.append((*first, 1 - sum(first)))
    return tuple(weights)


def test_heatmap_has_a_row_an_edge_and_a_column_an_operation() -> None:
    figure = heatmap_figure(rows(STAGE_0), STAGE_0, title="epoch 3")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "zero",
        "identity",
        "MSA 2 heads",
        "MLP ×2",
    ]
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels[0] == r"$e_{k-2} \rightarrow o_{0}$" and labels[4] == r"$o_0 \rightarrow o_{1}$"
    values = {t.get_gid(): t.get_text() for t in axes.texts}
    assert len(values) == 20
    assert values["value-0-zero"] == "0.10" and values["value-4-mlp_r2"] == "0.58"
    assert not patches(figure, "pruned")
    assert figure.axes[1].get_ylabel() == r"softmax($\alpha$)"
    assert figure.get_suptitle() == "epoch 3"


def test_heatmap_hatches_pruned_cells() -> None:
    figure = heatmap_figure(rows(STAGE_1), STAGE_1)
    pruned = patches(figure, "pruned")
    assert len(pruned) == 5 * 4 - 5 * 2 and "pruned-0-identity" in pruned
    assert all(p.get_hatch() for (p,) in pruned.values())
    # The rows alone determine that zero comes before mlp_r2, and identity before msa_h2.
    columns = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert columns == ["zero", "identity", "MSA 2 heads", "MLP ×2"]


def test_heatmap_columns_keep_the_rows_order_where_it_is_unusual() -> None:
    edge_ops = (("mlp_r2", "zero"), ("zero", "identity"))
    figure = heatmap_figure(((0.5, 0.5), (0.5, 0.5)), edge_ops)
    columns = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert columns == ["MLP ×2", "zero", "identity"]


def test_stage_heatmaps_share_columns_and_colours() -> None:
    figure = stage_heatmaps_figure([(rows(STAGE_0), STAGE_0), (rows(STAGE_1), STAGE_1)])
    left, right, _ = figure.axes
    assert (left.get_title(), right.get_title()) == ("stage 0", "stage 1")
    assert left.get_xlim() == right.get_xlim()
    weight = rows(STAGE_1)[0][1]
    cell = next(p for p in right.patches if p.get_gid() == "cell-0-mlp_r2")
    darkest = max(w for row in rows(STAGE_0) + rows(STAGE_1) for w in row)
    assert weight == darkest and sum(cell.get_facecolor()[:3]) < 1


@pytest.mark.parametrize(
    ("weights", "edge_ops", "operations", "message"),
    [
        (((1.0,),) * 3, (("zero",),) * 3, None, "no encoder has 3 edges"),
        (((1.0,),) * 2, (("zero",),) * 2, ("identity",), r"\['zero'\] are not in"),
    ],
)
def test_heatmap_refuses(weights, edge_ops, operations, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        heatmap_figure(weights, edge_ops, operations=operations)
    with pytest.raises(ValueError, match="at least one stage"):
        stage_heatmaps_figure([])


def test_share_figure_draws_seeds_and_their_mean() -> None:
    runs = {
        "plain DARTS": [
            {"identity": [0.1, 0.3, 0.5], "zero": [0.1, 0.1, 0.1]},
            {"identity": [0.1, 0.5], "zero": [0.1, 0.2]},
        ],
        "DASViT": [{"identity": [0.1, 0.1, 0.1], "zero": [0.2, 0.2, 0.2]}],
    }
    figure = share_figure(runs, stage_starts=(0, 2), title="shares")
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("identity", "zero")
    boundary, first, second, mean, *_ = left.lines
    assert list(boundary.get_xdata()) == [1.5, 1.5]
    np.testing.assert_allclose(first.get_ydata(), [0.1, 0.3, 0.5])
    np.testing.assert_allclose(second.get_ydata(), [0.1, 0.5])
    np.testing.assert_allclose(mean.get_ydata(), [0.1, 0.4])  # epochs that both seeds reached
    assert mean.get_linewidth() > 2 * first.get_linewidth()
    assert [t.get_text() for t in left.get_legend().get_texts()] == [
        "plain DARTS (2 seeds)",
        "DASViT (1 seed)",
    ]
    assert len(right.lines) == 1 + 3 + 2


def test_share_figure_refuses_no_runs() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        share_figure({})
    with pytest.raises(ValueError, match="'DASViT': 0"):
        share_figure({"DASViT": []})


def test_operation_shares_are_in_order_of_epochs() -> None:
    event = SearchEpoch(
        epoch=0,
        total_epochs=2,
        stage=0,
        num_layers=1,
        train_loss=1.0,
        train_accuracy=0.5,
        val_loss=1.0,
        fair_loss=0.0,
        val_accuracy=0.5,
        weights=((0.25, 0.75), (0.5, 0.5)),
        edge_ops=(("zero", "identity"), ("identity", "mlp_r2")),
        type_totals={},
        weight_lr=1e-3,
        seconds=1.0,
    )
    later = dataclasses.replace(event, epoch=1, weights=((0.5, 0.5), (0.5, 0.5)))
    shares = operation_shares([later, event])
    assert shares == {"identity": [0.625, 0.5], "zero": [0.125, 0.25]}


def test_heatmap_and_share_files_are_equal_byte_for_byte(tmp_path) -> None:
    def write(name: str) -> list[bytes]:
        figures = (
            heatmap_figure(rows(STAGE_1), STAGE_1, title="t"),
            share_figure({"DASViT": [{"identity": [0.1, 0.2], "zero": [0.2, 0.1]}]}),
        )
        saved = [save_figure(f, tmp_path / f"{name}{i}") for i, f in enumerate(figures)]
        return [path.read_bytes() for paths in saved for path in paths]

    assert write("a") == write("b")


def test_figures_leave_pyplot_alone() -> None:
    before = sys.modules.get("matplotlib.pyplot")
    numbers = before.get_fignums() if before else []
    encoder_figure(NAMED_GENOTYPES["dasvit_cifar10"])
    heatmap_figure(rows(STAGE_0), STAGE_0)
    after = sys.modules.get("matplotlib.pyplot")
    assert (after.get_fignums() if after else []) == numbers
