"""Bounds of a step on a device that is not here: what operations read, write and multiply."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from benchmarks import roofline
from benchmarks.roofline import Operation, Work, bound, search_minutes, step_work
from benchmarks.workload import Cell, Sizes, make_batches, make_ours

CPU = torch.device("cpu")
TINY = Sizes(dim=48, image_size=40, patch_size=4)  # attention takes PyTorch's kernel
FLOAT = 4


def work(call: Callable[[], object]) -> list[tuple[str, int, int]]:
    with Work() as noted:
        call()
    return [(o.name, o.flops, o.bytes) for o in noted.operations]


def test_products_and_what_they_move() -> None:
    a, b, c = torch.zeros(10, 20), torch.zeros(20, 5), torch.zeros(10, 5)
    moved = FLOAT * (200 + 100 + 50)
    assert work(lambda: a @ b) == [("mm", 2 * 10 * 20 * 5, moved)]
    # What is added to is read and written.
    assert work(lambda: c.addmm_(a, b)) == [("addmm_", 2 * 10 * 20 * 5, moved + FLOAT * 50)]
    assert work(lambda: torch.bmm(a.expand(3, 10, 20), b.expand(3, 20, 5))) == [
        ("bmm", 3 * 2 * 10 * 20 * 5, FLOAT * (200 + 100 + 3 * 50))
    ]


def test_views_move_nothing_and_values_in_place_move_twice() -> None:
    a = torch.zeros(10, 20)
    assert work(lambda: a.t().view(4, 50) if a.t().is_contiguous() else a.t()[:3]) == []
    assert work(lambda: a.add_(1)) == [("add_", 0, FLOAT * 400)]
    assert work(lambda: torch.empty(5)) == []
    # Half precision is written, and what is written to was not read.
    half = torch.empty(10, 20, dtype=torch.bfloat16)
    assert work(lambda: torch.mul(a, a[0], out=half)) == [("mul", 0, FLOAT * 220 + 2 * 200)]


def test_a_fused_optimiser_reads_four_and_writes_three() -> None:
    parameter = torch.nn.Parameter(torch.zeros(100))
    parameter.grad = torch.zeros(100)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    optimizer.step()
    found = {name: moved for name, _, moved in work(optimizer.step)}
    assert found["_fused_adamw_"] == pytest.approx(7 * FLOAT * 100, rel=0.01)


def test_attention_forward_and_backward() -> None:
    q = torch.zeros(2, 3, 17, 4, requires_grad=True)
    k, v = (torch.zeros(2, 3, 17, 4) for _ in range(2))
    found = work(lambda: torch.autograd.grad(F.scaled_dot_product_attention(q, k, v).sum(), q))
    product = 2 * 2 * 3 * 17 * 17 * 4
    assert [flops for _, flops, _ in found if flops] == [2 * product, 5 * product]


def test_convolution_forward_and_backward() -> None:
    images, weight = torch.zeros(2, 3, 8, 8), torch.zeros(5, 3, 4, 4, requires_grad=True)
    found = work(lambda: torch.autograd.grad(F.conv2d(images, weight, stride=4).sum(), weight))
    assert [flops for _, flops, _ in found if flops] == 2 * [2 * (2 * 5 * 2 * 2) * (3 * 4 * 4)]


def test_the_bound_takes_the_longer_time_of_each() -> None:
    operations = [Operation("mm", 600, 10), Operation("mm", 100, 40), Operation("add", 0, 20)]
    found = bound(operations, rate=100.0, bandwidth=10.0)
    assert found == {
        "seconds": 6.0 + 4.0 + 2.0,
        "products_seconds": 10.0,
        "operations": 3,
        "by_name": {"mm": 10.0, "add": 2.0},
    }


@pytest.mark.parametrize("order", [1, 2])
def test_fake_tensors_do_what_real_ones_do(order: int) -> None:
    cell = Cell(stage=2, token_ratio=0.5, batch_size=2, order=order)
    make = partial(make_ours, cell, TINY, CPU, make_batches(cell, TINY, CPU))
    runner = make()
    runner()
    with Work() as noted:
        runner()
    fake = step_work(lambda: make_ours(cell, TINY, CPU, make_batches(cell, TINY, CPU)))
    assert fake == noted.operations
    # No fewer products than are useful, and little else: patches, head, scores.
    products = sum(o.flops for o in fake)
    assert cell.flops(TINY) < products < 1.15 * cell.flops(TINY)


def test_a_search_has_the_steps_of_all_stages() -> None:
    cells = [(variant, stage) for variant in ("ours", "reference") for stage in (1, 2, 3)]
    rows: list[dict[str, Any]] = [
        {"variant": v, "stage": s, "token_ratio": 0.5, "batch_size": 64, "order": 1, "seconds": s}
        for v, s in cells
    ]
    rows.append(rows[0] | {"batch_size": 128})  # no search: two stages are missing
    found = {row["variant"]: row["minutes"] for row in search_minutes(rows, TINY)}
    assert found == dict.fromkeys(("ours", "reference"), 30 * 390 * (1 + 2 + 3) / 60)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "roofline.json"
    argv = (
        "roofline.py --rate 1e12 --bandwidth 1e11 --dim 48 --patches 5 --batches 4 --ratios 1 "
        f"--stages 1 --out {out}"
    )
    with patch("sys.argv", argv.split()):
        roofline.main()
    facts = json.loads(out.read_text())
    assert [row["variant"] for row in facts["rows"]] == ["ours", "reference"]
    assert facts["rows"][0]["seconds"] < facts["rows"][1]["seconds"]
    assert facts["search_minutes"] == []
    for row in facts["rows"]:
        assert 0 < row["products_seconds"] < row["seconds"]
        assert sum(row["by_name"].values()) == pytest.approx(row["seconds"])
        assert 0 < row["matmul_fraction"] < 1
    assert "stage 1, λ = 1, batch 4, order 1: ours at least" in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["--rate 0", "--bandwidth -1", "--stages 4", "--batches 0"])
def test_what_cannot_be_is_refused(
    argument: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["roofline.py", "--rate", "1e12", "--bandwidth", "1e11", "--out", str(tmp_path / "x")]
    with patch("sys.argv", [*argv, *argument.split()]), pytest.raises(SystemExit) as ended:
        roofline.main()
    assert ended.value.code == 2
    assert argument.split()[0].strip("-") in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
