"""What `complexity` and `memory` print and draw; and the warning of `search`."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli_calls import Done

import dasvit.commands.fvcore_count as second
import dasvit.search.memory
from dasvit.commands.memory_report import parse_bytes
from dasvit.run.settings import SettingError
from dasvit.search.config import SearchConfig
from dasvit.search.memory import StagePlan

SMALL = ("complexity", "--preset", "digits", "--model", "vit", "--in-channels", "1")
FAST = ("--latency-seconds", "0.01", "--device", "cpu")


def test_text_has_a_line_for_each_cost(succeed: Callable[..., str]) -> None:
    state = torch.get_rng_state()
    counts, second, memory, timed = succeed(*SMALL, *FAST, "--latency-batch", "3").splitlines()
    assert counts.startswith("vit: ") and counts.endswith(" with attention products")
    assert second == "fvcore's count of the multiply-adds: the same within 1 %"
    assert re.fullmatch(r"memory, fp32: .* of weights; activations of one image: .*", memory)
    assert timed.startswith("latency, batch 3 on cpu, 1 thread, float32: median ")
    assert timed.endswith(" images/s")
    assert torch.equal(torch.get_rng_state(), state)


def test_json_holds_all(succeed: Callable[..., str]) -> None:
    values = json.loads(succeed(*SMALL, *FAST, "--json", "--num-classes", "7"))
    assert (values["model"], values["image"], values["num_classes"]) == ("vit", [1, 8, 8], 7)
    assert values["macs_linear"] + values["macs_attention"] == values["macs_total"]
    assert values["macs_fvcore"] == values["macs_total"]
    assert values["bytes"]["weights"] == 4 * values["num_params"]
    assert values["bytes"]["training"] > values["bytes"]["inference"] > 0
    timed = values["latency"]
    assert timed["throughput"] == pytest.approx(1 / timed["median"])
    assert timed["p10"] <= timed["median"] <= timed["p90"]
    assert json.loads(succeed(*SMALL, "--json", "--no-latency"))["latency"] is None


def test_counters_that_disagree_are_named(
    succeed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = second.fvcore_macs
    monkeypatch.setattr(second, "fvcore_macs", lambda *args: 1.011 * count(*args))
    assert succeed(*SMALL, "--no-latency").splitlines()[1].endswith("DIFFERS by +1.1%")


def test_too_large_a_batch_is_one_line(
    call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **settings: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("dasvit.costs.latency", full)
    done = call(*SMALL, "--device", "cpu", "--latency-batch", "9")
    assert done.code == 2
    assert "9 images of 8 × 8 do not fit on cpu; choose a smaller --latency-batch" in done.err


TINY = [
    *("memory", "--preset", "digits", "--operations", "msa_h2", "mlp_r3", "--dim", "48"),
    *("--num-nodes", "1", "--stage-layers", "1", "--stage-ops", "2", "--batch-size", "64"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("24GiB", 24 * 2**30), ("24 GB", 24 * 10**9), ("1.5gib", 3 * 2**29), ("800MiB", 800 * 2**20)],
)
def test_budgets(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["24", "-1GiB", "0GiB", "24 apples"])
def test_malformed_budgets(text: str) -> None:
    with pytest.raises(SettingError, match="--budget must be like 24GiB"):
        parse_bytes(text)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MiB an image."""

    def plan(config: SearchConfig, stage: int) -> StagePlan:
        images = config.batch_size * (2 if config.method.xi else 1)
        return StagePlan(stage=stage, resident=0, peak=2**20 * images)

    monkeypatch.setattr(dasvit.search.memory, "plan_stage", plan)


@pytest.mark.usefixtures("planned")
def test_table_and_picture(workdir: Path, call: Callable[..., Done]) -> None:
    done = call(*TINY, "--budget", "200MiB", "--plot", "f/memory.png")
    assert done.code == 0
    assert done.err.count("looking for the largest batch that fits") == 3
    rows = [line.split("|")[1:-1] for line in done.out.splitlines() if line.startswith("| 0.5")]
    found = [[row[1].strip(), row[-1].strip()] for row in rows]
    assert found == [["1", "64.00 MiB"], ["2", "128.00 MiB"]]
    assert "within 200MiB with --precision bf16 --recompute: --batch-size 187\n" in done.out
    assert {p.name for p in (workdir / "f").iterdir()} == {"memory.png", "memory.svg"}


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize(("method", "ratios"), [("dasvit", (0.5, 1.0, 0.25)), ("darts", (1.0,))])
def test_json(call: Callable[..., Done], method: str, ratios: tuple[float, ...]) -> None:
    """λ is varied where the method selects tokens."""
    found = json.loads(call(*TINY, "--method", method, "--json").out)
    assert found["batch_size"] == 64
    assert {(row["token_ratio"], row["order"]) for row in found["plans"]} == {
        (ratio, order) for ratio in ratios for order in (1, 2)
    }


def test_a_half_of_the_data_set_is_enough(
    call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = "dasvit.commands.memory_report"
    monkeypatch.setattr(f"{report}.memory_table", lambda *args: [])
    monkeypatch.setattr(f"{report}.format_table", lambda rows: "")
    monkeypatch.setattr("dasvit.search.memory.what_fits", lambda *args: [("", 719)])
    done = call("memory", "--preset", "digits", "--budget", "24GiB")
    assert "--batch-size 719, a half of the data set\n" in done.out


def test_check_states_the_plans_error(call: Callable[..., Done]) -> None:
    told = json.loads(call(*TINY, "--check", "--device", "cpu", "--json").out)
    assert told["device"] == "cpu"
    assert [row["stage"] for row in told["stages"]] == [0]
    assert all(row["measured"] > 0 and abs(row["error"]) < 0.01 for row in told["stages"])
    table = call(*TINY, "--check", "--device", "cpu").out.splitlines()
    assert table[0].startswith("| stage | planned (GiB)") and len(table) == 3


def test_a_search_that_will_not_fit_is_warned_of(
    call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dasvit.search.memory.device_memory", lambda device: 1_000_000)
    monkeypatch.setattr(
        "dasvit.search.memory.shortfall", lambda config, available, progress: f"{available} bytes"
    )
    monkeypatch.setattr("dasvit.search.loop.search", stop)
    assert "warning: 1000000 bytes\n" in call("search").err
