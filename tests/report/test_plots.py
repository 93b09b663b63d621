"""Figures of a search: what they show, and that equal input gives equal files."""

import numpy as np
import pytest

from dasvit.report.plots import heatmap_figure, operation_shares, share_figure
from dasvit.report.statistics import spread
from dasvit.spaces.cell.genotype import edge_list

STAGE_0 = (("zero", "identity", "msa_h2", "mlp_r2"),) * 5
STAGE_1 = (("zero", "mlp_r2"), ("identity", "msa_h2")) + (("zero", "msa_h2"),) * 3
RUNS = {
    "plain DARTS": [
        {"identity": [0.1, 0.3, 0.5], "zero": [0.1, 0.1, 0.1]},
        {"identity": [0.1, 0.5], "zero": [0.1, 0.2]},
    ],
    "DASViT": [{"identity": [0.1, 0.1, 0.1], "zero": [0.2, 0.2, 0.2]}],
}


def rows(edge_ops: tuple[tuple[str, ...], ...]) -> tuple[tuple[float, ...], ...]:
    """Weights that are all different: edge e gives its last operation most."""
    first = [[0.1 + 0.01 * e] * (len(names) - 1) for e, names in enumerate(edge_ops)]
    return tuple((*weights, 1 - sum(weights)) for weights in first)


def test_heatmap_has_one_row_per_edge_and_one_column_per_operation() -> None:
    figure = heatmap_figure(rows(STAGE_0), STAGE_0, edge_list(2), title="stage 0")
    axes = figure.axes[0]
    names = [t.get_text() for t in axes.get_xticklabels()]
    assert names == ["zero", "identity", "MSA 2 heads", "MLP ×2"]
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels[0] == r"$e_{k-2} \rightarrow o_{0}$" and labels[4] == r"$o_0 \rightarrow o_{1}$"
    values = {t.get_position(): t.get_text() for t in axes.texts}
    assert len(values) == 20
    assert values[0.5, 0.5] == "0.10" and values[3.5, 4.5] == "0.58"
    assert axes.yaxis_inverted()  # the first edge on top


def test_pruned_cells_are_hatched() -> None:
    figure = heatmap_figure(rows(STAGE_1), STAGE_1, edge_list(2), operations=STAGE_0[0])
    axes = figure.axes[0]
    held = ~np.ma.getmaskarray(axes.collections[0].get_array())
    expected = [[name in row for name in STAGE_0[0]] for row in STAGE_1]
    assert held.tolist() == expected and len(axes.texts) == 10
    assert axes.patch.get_hatch()  # what is seen where no cell is drawn


def test_share_figure_draws_searches_and_their_mean() -> None:
    left, right = share_figure(RUNS, stage_starts=[2], title="shares").axes
    assert (left.get_title(), right.get_title()) == ("identity", "zero")
    boundary, first, second, mean, *_ = left.lines
    assert list(boundary.get_xdata()) == [1.5, 1.5]
    np.testing.assert_allclose(first.get_ydata(), [0.1, 0.3, 0.5])
    np.testing.assert_allclose(second.get_ydata(), [0.1, 0.5])
    np.testing.assert_allclose(mean.get_ydata(), [0.1, 0.4])  # epochs that both reached
    legend = [t.get_text() for t in left.get_legend().get_texts()]
    assert legend == ["plain DARTS (n = 2)", "DASViT (n = 1)"]


def test_operation_shares_are_in_order_of_epochs() -> None:
    edge_ops = [["zero", "identity"], ["identity", "mlp_r2"]]
    trace = [
        {"epoch": 1, "weights": [[0.5, 0.5], [0.5, 0.5]], "edge_ops": edge_ops},
        {"epoch": 0, "weights": [[0.25, 0.75], [0.5, 0.5]], "edge_ops": edge_ops},
    ]
    assert operation_shares(trace) == {"identity": [0.625, 0.5], "zero": [0.125, 0.25]}


def test_spread_by_hand() -> None:
    got = spread([0.2, 0.4, 0.9])
    assert (got.mean, got.count) == (pytest.approx(0.5), 3)
    assert got.std == pytest.approx(((0.09 + 0.01 + 0.16) / 2) ** 0.5)  # n - 1
    assert got.percent == "50.0 ± 36.1"
    assert spread([0.7]).std is None and spread([0.7]).percent == "70.0"
