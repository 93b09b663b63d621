"""Several objectives: what an encoder costs, and a sweep along the Pareto front."""

import json
from pathlib import Path

import pytest
from support.sweep_process import SweepProcess

from dasvit.presets import get_preset
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES
from tune.objectives import cost


def test_the_papers_encoder_costs_what_the_paper_says() -> None:
    """Table I, but for the head and the images: 10.59 G multiply-adds with attention."""
    found = cost(NAMED_GENOTYPES["dasvit_cifar10"], get_preset("cifar10").retrain)
    assert found["macs"] == pytest.approx(9.876e9 + 0.715e9, rel=0.01)
    assert found["params"] == pytest.approx(50_449_162, rel=0.01)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("one_ray_at_a_time")
def test_a_sweep_along_the_front(tmp_path: Path) -> None:
    options = (
        "--objectives accuracy macs --num-samples 4 --random-baseline 0 --xi 0 --name front "
        "--dim 12 --stage-layers 1 1 1 --retrain-top 2 --retrain.epochs 2 "
        "--retrain.warmup-epochs 1 --retrain.dim 12 --retrain.depth 2"
    )
    sweep = SweepProcess(tmp_path, options.split())
    assert sweep.wait() == 0, sweep.error
    values = json.loads((tmp_path / "runs" / "front" / "genotypes.json").read_text())
    retrained = [g for g in values["genotypes"] if g["retrained"]]
    assert 1 <= len(retrained) <= 2 and all(g["on_front"] for g in retrained)
    assert values["genotypes"][0]["retrained"] is not None
    assert all(g["costs"]["macs"] > 0 for g in values["genotypes"])
