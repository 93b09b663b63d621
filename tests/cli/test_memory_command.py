"""`python -m dasvit memory`: its table, picture, JSON and refusals."""

import json
from pathlib import Path

import pytest

import dasvit.commands.memory
from dasvit.cli import main
from dasvit.commands.memory_report import figure_1, format_table, memory_figure, parse_bytes
from dasvit.run.settings import SettingError
from dasvit.search.memory import StagePlan

TINY = [
    *("memory", "--preset", "digits", "--operations", "msa_h2", "mlp_r3", "--dim", "96"),
    *("--stage-layers", "1", "--stage-ops", "2", "--batch-size", "64"),
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dasvit.commands.memory.figure_1", lambda config: figure_1(config, (4, 8)))
    monkeypatch.setattr(
        "dasvit.commands.memory.memory_figure", lambda f, **k: memory_figure(f, (4, 8), **k)
    )
    main([*TINY, "--budget", "200MiB", "--plot", str(tmp_path / "f" / "memory")])
    out, told = capsys.readouterr()
    assert told.count("looking for the largest batch that fits") == 3
    rows = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("| 0.5")]
    assert [row[1].strip() for row in rows] == ["1", "2"]
    peaks = [row[-1].split() for row in rows]
    assert 1 < float(peaks[0][0]) <= float(peaks[1][0])
    assert [unit for _, unit in peaks] == ["MiB"] * 2  # as GiB they would be 0.00
    assert "within 200MiB with --precision bf16 --recompute: --batch-size" in out
    assert {p.name for p in (tmp_path / "f").iterdir()} == {"memory.png", "memory.svg"}


def test_the_unit_goes_with_the_most() -> None:
    def row(*gib: float) -> dict:
        plans = [StagePlan(stage=i, resident=0, peak=int(g * 2**30)) for i, g in enumerate(gib)]
        return {"token_ratio": 1.0, "order": 1, "stages": plans}

    assert format_table([row(0.25, 0.5), row(0.125, 1)]).splitlines()[2:] == [
        "| 1 | 1 | 0.25 | 0.50 | 0.50 GiB |",
        "| 1 | 1 | 0.12 | 1.00 | 1.00 GiB |",
    ]
    assert format_table([row(0.25, 0.5)]).endswith("| 1 | 1 | 256.00 | 512.00 | 512.00 MiB |")


@pytest.mark.parametrize("method", ["dasvit", "darts"])
def test_json(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """λ is varied where the method selects tokens."""
    main([*TINY, "--method", method, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["batch_size"] == 64
    assert {(row["token_ratio"], row["order"]) for row in found["plans"]} == {
        (ratio, order)
        for ratio in ((0.5, 1.0, 0.25) if method == "dasvit" else (1.0,))
        for order in (1, 2)
    }
    assert all(p["peak"] > p["resident"] > 0 for row in found["plans"] for p in row["stages"])


def test_a_half_of_the_data_set_is_enough(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dasvit.commands.memory, "memory_table", lambda *args: [])
    monkeypatch.setattr(dasvit.commands.memory, "format_table", lambda rows: "")
    monkeypatch.setattr(dasvit.commands.memory, "what_fits", lambda *args: [("", 719)])
    main(["memory", "--preset", "digits", "--budget", "24GiB"])
    assert "--batch-size 719, a half of the data set\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--budget", "lots"], "--budget must be like 24GiB"),
        (["--plot", ""], "plot must be a path that can be written to, but got ''"),
        (["--plot", "file/memory"], "plot must be a path that can be written to, but got 'file/"),
        (["--check", "--device", "cpu", "--cuda-graph"], "leave compile and cuda_graph out"),
        (["--check", "--device", "cuda:99"], ""),
    ],
    ids=str,
)
def test_refused_before_planning(
    argv: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        main([*TINY, *argv])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    assert message in told


def test_check_states_the_plans_error(capsys: pytest.CaptureFixture[str]) -> None:
    main([*TINY, "--check", "--device", "cpu", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["device"], [row["stage"] for row in told["stages"]]) == ("cpu", [0])
    for row in told["stages"]:
        assert row["measured"] > 0 and abs(row["error"]) < 0.01
    main([*TINY, "--check", "--device", "cpu"])
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("| stage | planned (GiB)") and len(table) == 3


def test_search_warns_before_launch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dasvit.commands.search.device_memory", lambda device: 1_000_000)
    monkeypatch.setattr(
        "dasvit.commands.search.shortfall", lambda config, available, progress: f"{available} bytes"
    )
    monkeypatch.setattr("dasvit.commands.search.search", stop)
    with pytest.raises(SystemExit):
        main(["search", "--preset", "digits", "--out", str(tmp_path / "run")])
    assert "warning: 1000000 bytes\n" in capsys.readouterr().err
