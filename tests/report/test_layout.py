"""The places of an encoder's drawing: apart in each column, whatever the encoder."""

import random
import subprocess
import sys
from itertools import pairwise

import pytest

from dasvit.report.layout import PADDING, arrival_angles, encoder_layout
from dasvit.spaces.cell.genotype import Edge, Genotype


def any_genotype(num_nodes: int, seed: int) -> Genotype:
    generator = random.Random(seed)
    nodes = []
    for j in range(num_nodes):
        sources = sorted(generator.sample(range(j + 2), generator.randint(1, j + 2)))
        nodes.append(tuple(Edge(s, "msa_h8") for s in sources))
    return Genotype(tuple(nodes))


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 5])
def test_neighbours_in_a_column_keep_their_distance(num_nodes: int):
    for seed in range(3):
        drawing = encoder_layout(any_genotype(num_nodes, seed), box_width=1.0)
        assert sorted(i for column in drawing.columns for i in column) == list(
            range(len(drawing.items))
        )
        for column in drawing.columns:
            for above, below in pairwise(drawing.items[i] for i in column):
                assert above.y - above.below - (below.y + below.above) > 0.9 * PADDING


def test_columns_and_links_run_left_to_right():
    drawing = encoder_layout(any_genotype(4, 0), box_width=1.3)
    for u, v in drawing.links:
        start, end = drawing.items[u], drawing.items[v]
        assert end.column == start.column + 1
        assert start.x + start.width / 2 < end.x - end.width / 2
    boxes = [item for item in drawing.items if item.kind == "box"]
    assert {box.width for box in boxes} == {1.3}
    assert {box.operation for box in boxes} == {"msa_h8"}


def test_lines_that_meet_a_circle_meet_it_apart():
    drawing = encoder_layout(any_genotype(4, 1), box_width=1.0)
    angles = arrival_angles(drawing)
    circles = {v for _, v in angles}
    assert circles == {i for i, x in enumerate(drawing.items) if x.kind in ("node", "sum")}
    for circle in circles:
        links = sorted((drawing.items[u].y, a) for (u, v), a in angles.items() if v == circle)
        assert all(low[1] < high[1] for low, high in pairwise(links))


def test_an_equal_encoder_has_an_equal_layout():
    first, second = (encoder_layout(any_genotype(3, 2), box_width=1.0) for _ in range(2))
    assert first == second


def test_the_layout_needs_no_matplotlib():
    code = "import sys, dasvit.report.layout; print('matplotlib' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
