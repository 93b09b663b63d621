"""benchmarks/sweep_cost.py: what a sweep's trials spent their time on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "sweep_cost.py"


def measure(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_parts_are_medians_over_trials(tmp_path: Path) -> None:
    for number, start in enumerate((1.0, 2.0, 9.0)):
        folder = tmp_path / "run" / "search" / f"trial_{number}"
        folder.mkdir(parents=True)
        parts = {"start": start, "import": 3.0, "other": 0.5, "end": 4.0}
        (folder / "times.json").write_text(json.dumps({"seconds": 10.0, "parts": parts}))
    out = tmp_path / "parts.json"
    done = measure("parts", "--run", str(tmp_path / "run"), "--out", str(out))
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["search"]["trials"] == 3
    assert found["search"]["medians"]["start"] == 2.0
    assert found["environment"]["packages"]["torch"]


def test_a_folder_without_times_is_refused(tmp_path: Path) -> None:
    done = measure("parts", "--run", str(tmp_path), "--out", str(tmp_path / "parts.json"))
    assert done.returncode == 1
    assert "no trial with times" in done.stderr


@pytest.mark.slow
def test_trivial_trials_are_counted(tmp_path: Path) -> None:
    out = tmp_path / "trivial.json"
    done = measure("trivial", "--trials", "20", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["trials"] for row in rows] == list(range(1, 21))
    assert rows[0]["seconds"] < rows[-1]["seconds"]
