"""`python -m dasvit memory`: what it prints and draws, and what it refuses; and the warning of
`search`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli_calls import Done

import dasvit.search.memory
from dasvit.commands.memory_report import format_table, parse_bytes
from dasvit.run.settings import SettingError
from dasvit.search.config import SearchConfig
from dasvit.search.memory import StagePlan

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


@pytest.mark.parametrize("text", ["24", "GiB", "-1GiB", "0GiB", "24 apples", ""])
def test_malformed_budgets(text: str) -> None:
    with pytest.raises(SettingError, match="--budget must be like 24GiB"):
        parse_bytes(text)


def test_table_and_picture(
    workdir: Path, call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(config: SearchConfig, stage: int) -> StagePlan:
        images = config.batch_size * (2 if config.method.xi else 1)
        return StagePlan(stage=stage, resident=0, peak=2**20 * images)

    monkeypatch.setattr(dasvit.search.memory, "plan_stage", plan)
    done = call(*TINY, "--budget", "200MiB", "--plot", "f/memory.png")
    assert done.code == 0
    assert done.err.count("looking for the largest batch that fits") == 3
    rows = [line.split("|")[1:-1] for line in done.out.splitlines() if line.startswith("| 0.5")]
    found = [[row[1].strip(), row[-1].strip()] for row in rows]
    assert found == [["1", "64.00 MiB"], ["2", "128.00 MiB"]]
    assert "within 200MiB with --precision bf16 --recompute: --batch-size 187\n" in done.out
    assert {p.name for p in (workdir / "f").iterdir()} == {"memory.png", "memory.svg"}


def test_the_unit_goes_with_the_most() -> None:
    def row(*gib: float) -> dict:
        plans = [StagePlan(stage=i, resident=0, peak=int(g * 2**30)) for i, g in enumerate(gib)]
        return {"token_ratio": 1.0, "order": 1, "stages": plans}

    assert format_table([row(0.25, 0.5), row(0.125, 1)]).splitlines()[2:] == [
        "| 1 | 1 | 0.25 | 0.50 | 0.50 GiB |",
        "| 1 | 1 | 0.12 | 1.00 | 1.00 GiB |",
    ]
    assert format_table([row(0.25, 0.5)]).endswith("| 1 | 1 | 256.00 | 512.00 | 512.00 MiB |")


@pytest.mark.parametrize(("method", "ratios"), [("dasvit", (0.5, 1.0, 0.25)), ("darts", (1.0,))])
def test_json(call: Callable[..., Done], method: str, ratios: tuple[float, ...]) -> None:
    """λ is varied where the method selects tokens."""
    found = json.loads(call(*TINY, "--method", method, "--json").out)
    assert found["batch_size"] == 64
    assert {(row["token_ratio"], row["order"]) for row in found["plans"]} == {
        (ratio, order) for ratio in ratios for order in (1, 2)
    }
    assert all(p["peak"] > p["resident"] > 0 for row in found["plans"] for p in row["stages"])


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


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--budget", "lots"], "--budget must be like 24GiB or 24GB, but got 'lots'"),
        (["--plot", ""], "plot must be a path that can be written to, but got ''"),
        (["--plot", "file/x"], "plot must be a path that can be written to, but got 'file/x'"),
        (["--check", "--budget", "1GiB"], "leave budget and plot out"),
        (["--check", "--cuda-graph"], "leave compile and cuda_graph out"),
        (["--check", "--device", "cuda:99"], "device 'cuda:99' is not there"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(
    workdir: Path, call: Callable[..., Done], argv: list[str], message: str
) -> None:
    """Before anything is planned."""
    (workdir / "file").write_text("")
    done = call(*TINY, *argv)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ") and done.err.count("\n") == 1 and message in done.err


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
