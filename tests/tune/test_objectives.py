"""Several objectives: what an encoder costs, the Pareto front, and a sweep along it."""

import json
import shlex
from pathlib import Path

import pytest
from support.sweep_process import SweepProcess

from dasvit.presets import get_preset
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES
from tune.objectives import cost
from tune.options import parse_options
from tune.plan import Plan

SEVERAL = "--objectives accuracy macs"


def test_the_plan(plan: Plan) -> None:
    made = parse_options(shlex.split(SEVERAL)).plan
    assert made.objectives == ("accuracy", "macs")
    assert Plan.from_dict(json.loads(json.dumps(made.to_dict()))).objectives == made.objectives
    assert Plan.from_dict(plan.to_dict()).objectives == ("accuracy",)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--objectives macs", "begin with accuracy"),
        ("--objectives accuracy speed", "speed"),
        ("--objectives accuracy macs macs", "each once"),
        (f"{SEVERAL} --scheduler asha --metric supernet_accuracy", "stopped early"),
        (f"{SEVERAL} --search random", "--search random takes no --objectives"),
    ],
)
def test_bad_input(argv: str, message: str) -> None:
    with pytest.raises(ValueError, match="objectives") as error:
        parse_options(shlex.split(argv))
    assert message in str(error.value)


def test_the_papers_encoder_costs_what_the_paper_says() -> None:
    """Table I, but for the head and the images: 10.59 G multiply-adds with attention."""
    found = cost(NAMED_GENOTYPES["dasvit_cifar10"], get_preset("cifar10").retrain)
    assert found["macs"] == pytest.approx(9.876e9 + 0.715e9, rel=0.01)
    assert found["params"] == pytest.approx(50_449_162, rel=0.01)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("one_ray_at_a_time")
def test_a_sweep_along_the_front(tmp_path: Path) -> None:
    argv = [
        *shlex.split(f"{SEVERAL} --num-samples 4 --random-baseline 0 --xi 0 --name front --dim 12"),
        *shlex.split("--stage-layers 1 1 1 --retrain-top 2 --retrain.epochs 2"),
        *shlex.split("--retrain.warmup-epochs 1 --retrain.dim 12 --retrain.depth 2"),
    ]
    sweep = SweepProcess(tmp_path, argv)
    assert sweep.wait() == 0, sweep.error
    values = json.loads((tmp_path / "runs" / "front" / "genotypes.json").read_text())
    retrained = [g for g in values["genotypes"] if g["retrained"]]
    assert 1 <= len(retrained) <= 2 and all(g["on_front"] for g in retrained)
    assert values["genotypes"][0]["retrained"] is not None
    assert all(g["costs"]["macs"] > 0 for g in values["genotypes"])
