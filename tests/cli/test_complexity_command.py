"""`python -m dasvit complexity`: what it prints, as text and JSON, and what it refuses."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import dasvit.commands.fvcore_count as second
from dasvit.cli import main
from dasvit.costs import Latency

SMALL = ("complexity", "--preset", "digits", "--model", "vit", "--in-channels", "1")
FAST = ("--latency-seconds", "0.01", "--device", "cpu")
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> str:
        capsys.readouterr()
        main(argv)
        return capsys.readouterr().out

    return run


def test_text_has_a_line_for_each_cost(run: Run) -> None:
    state = torch.get_rng_state()
    counts, second, memory, timed = run(*SMALL, *FAST, "--latency-batch", "3").splitlines()
    assert counts.startswith("vit: ") and counts.endswith(" with attention products")
    assert second == "fvcore's count of the multiply-adds: the same within 1 %"
    assert re.fullmatch(r"memory, fp32: .* of weights; activations of one image: .*", memory)
    assert timed.startswith("latency, batch 3 on cpu, 1 thread, float32: median ")
    assert timed.endswith(" images/s")
    assert torch.equal(torch.get_rng_state(), state)


def test_json_holds_all(run: Run) -> None:
    values = json.loads(run(*SMALL, *FAST, "--json", "--num-classes", "7"))
    assert (values["model"], values["image"], values["num_classes"]) == ("vit", [1, 8, 8], 7)
    assert values["macs_linear"] + values["macs_attention"] == values["macs_total"]
    assert values["macs_fvcore"] == values["macs_total"]
    assert values["bytes"]["weights"] == 4 * values["num_params"]
    assert values["bytes"]["training"] > values["bytes"]["inference"] > 0
    timed = values["latency"]
    assert timed["throughput"] == pytest.approx(1 / timed["median"])
    assert timed["p10"] <= timed["median"] <= timed["p90"]
    assert json.loads(run(*SMALL, "--json", "--no-latency"))["latency"] is None


@pytest.mark.parametrize(
    ("factor", "shown"),
    [(1.009, "the same within 1 %"), (1.011, "DIFFERS by +1.1%"), (0.5, "DIFFERS by -50.0%")],
)
def test_counters_that_disagree_are_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, factor: float, shown: str
) -> None:
    count = second.fvcore_macs
    monkeypatch.setattr(second, "fvcore_macs", lambda *args: factor * count(*args))
    assert run(*SMALL, "--no-latency").splitlines()[1].endswith(shown)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--latency-batch", "0"], "latency_batch must be at least 1, but got 0"),
        (["--latency-seconds", "nan"], "latency_seconds must be a finite number, but got nan"),
        (["--num-classes", "-1"], "num_classes must be at least 1, but got -1"),
        (["--device", "tpu"], "device must be auto, cpu or cuda[:N], but got 'tpu'"),
        (["--dim", "60000", "--vit-heads", "10"], "parameters, more than one device can train"),
        (["--model", "vgg16"], "model 'vgg16' does not run on images of 8 × 8"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*SMALL, *argv])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_too_large_a_batch_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(message: str) -> Callable[..., Latency]:
        def latency(*args: Any, **settings: Any) -> Latency:
            raise RuntimeError(message)

        return latency

    timing = "dasvit.costs.latency"
    monkeypatch.setattr(timing, fails("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(SystemExit) as ended:
        main([*SMALL, "--device", "cpu", "--latency-batch", "9"])
    assert ended.value.code == 2
    assert "9 images of 8 × 8 do not fit on cpu; choose a smaller --latency-batch" in (
        capsys.readouterr().err
    )
    monkeypatch.setattr(timing, fails("a fault of ours"))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(*SMALL, "--device", "cpu")
