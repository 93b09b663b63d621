"""What a sweep survives, done to real ones; docs/cluster.md lists it.

Whatever happened, the end is that of a sweep that nothing happened to: the same trials, epochs,
genotypes and scores, to the bit.
"""

import errno
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sweep_process import ROOT, SCRIPT, SMALL, SweepProcess, begun, results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.usefixtures("one_ray_at_a_time"),
]


RUNG = "ladder/4_epochs"


def test_the_process_of_a_trial_is_killed(tmp_path: Path, unhurt: dict[str, Any]) -> None:
    """As often as there are CPUs in the search: with what its trial held lost, nothing could go on.
    Then on the ladder and in a retraining."""
    root = tmp_path / "runs" / "small"
    sweep = SweepProcess(tmp_path, SMALL)
    for phase in ("search", "search", RUNG, "retrain"):
        sweep.wait_until(lambda phase=phase: begun(root, phase))
        sweep.kill_one("ray::ImplicitFunc")
    assert sweep.wait() == 0, sweep.error
    assert results(root) == unhurt
    assert sweep.left_behind() == []


def test_the_main_process_is_killed_in_every_phase(tmp_path: Path, unhurt: dict[str, Any]) -> None:
    """In its first seconds, in a search, on the ladder and in a retraining; the same command each
    time.

    Ray's two agents wait a minute for their dead server before they end.
    """
    killed = []
    root = tmp_path / "runs" / "small"
    for moment in (
        lambda: (root / "sweep.json").exists(),
        lambda: begun(root, "search"),
        lambda: begun(root, RUNG),
        lambda: begun(root, "retrain"),
    ):
        sweep = SweepProcess(tmp_path, SMALL)
        sweep.wait_until(moment)
        sweep.kill()
        killed.append(sweep)
        assert not (root / "leaderboard.csv").exists()
    sweep = SweepProcess(tmp_path, SMALL)
    assert sweep.wait() == 0, sweep.error
    assert results(root) == unhurt
    assert [name for each in (*killed, sweep) for name in each.left_behind(120)] == []


def test_ctrl_c(tmp_path: Path, unhurt: dict[str, Any]) -> None:
    """One line that says how to continue, and no process left; continued to the same end."""
    root = tmp_path / "runs" / "small"
    sweep = SweepProcess(tmp_path, SMALL)
    sweep.wait_until(lambda: begun(root, "search"))
    sweep.interrupt()
    assert sweep.wait() == 130
    assert sweep.error.startswith("\nstopping; ")
    assert f"{SCRIPT} --name small" in sweep.error
    assert "Traceback" not in sweep.error
    assert sweep.left_behind() == []
    sweep = SweepProcess(tmp_path, SMALL)
    assert sweep.wait() == 0, sweep.error
    assert results(root) == unhurt


@pytest.mark.parametrize("in_background", [False, True])
def test_sigterm(in_background: bool, tmp_path: Path, unhurt: dict[str, Any]) -> None:
    """As a shutdown and a batch system send it, to all of the group: the line that continues, and
    nothing left within ten seconds."""
    root = tmp_path / "runs" / "small"
    sweep = SweepProcess(tmp_path, SMALL, in_background=in_background)
    sweep.wait_until(lambda: begun(root, "search"))
    sweep.terminate()
    assert sweep.wait(10) == 143
    assert sweep.error.startswith("\nstopped by SIGTERM; continue with: ")
    assert sweep.error.count("\n") == 2 and f"{SCRIPT} --name small" in sweep.error
    assert sweep.left_behind() == []
    sweep = SweepProcess(tmp_path, SMALL)
    assert sweep.wait() == 0, sweep.error
    assert results(root) == unhurt


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "dasvit", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk needs root and mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until nothing more fits."""
    size = 1 << 20
    with path.open("wb", buffering=0) as file:
        while size:
            try:
                file.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2


def test_a_full_disk(tmp_path: Path, small_disk: Path, unhurt: dict[str, Any]) -> None:
    """It fills in the middle of a search: one line that says so; with room again, the same end."""
    root = small_disk / "small"
    argv = [*SMALL, "--storage-path", str(small_disk)]
    sweep = SweepProcess(tmp_path, argv)
    sweep.wait_until(lambda: begun(root, "search"))
    fill(small_disk / "ballast")
    assert sweep.wait() == 1
    assert "No space left on device" in sweep.error
    assert "Traceback" not in sweep.error
    assert sweep.left_behind() == []
    (small_disk / "ballast").unlink()
    sweep = SweepProcess(tmp_path, argv)
    assert sweep.wait() == 0, sweep.error
    assert results(root) == unhurt


def test_trials_that_fail(tmp_path: Path) -> None:
    """Killed for memory, MemoryError, an exception, a loss that is not a number: each is reported
    with its reason and counted; without the cause, the same command runs them."""
    faults = tmp_path / "faults"
    faults.touch()
    argv = [
        *SMALL,
        *("--seeds", "5", "--plugins", "support.faulty_operation", "--stage-ops", "4", "3", "2"),
        *("--operations", "identity", "msa_h2", "mlp_r3", "faulty"),
    ]
    environment = {"FAULTS_WHILE": str(faults), "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"}
    root = tmp_path / "runs" / "small"
    sweep = SweepProcess(tmp_path, argv, **environment)
    assert sweep.wait() == 1
    assert "4 trial(s) failed" in sweep.error
    assert sweep.left_behind() == []
    values = json.loads((root / "genotypes.json").read_text())
    reasons = {failure["name"]: failure["error"] for failure in values["not_finished"]}
    assert list(reasons) == [f"config_000_seed_{seed}" for seed in (1, 2, 3, 4)]
    for (_, reason), words in zip(
        reasons.items(),
        ("memory", "MemoryError: cannot allocate 99 GiB", "no such kernel", "not finite"),
        strict=True,
    ):
        assert words in reason
    assert "| 1 of 5 |" in (root / "leaderboard.md").read_text()
    page = (root / "report.html").read_text()
    assert "4 failed" in page and "no such kernel" in page

    faults.unlink()
    sweep = SweepProcess(tmp_path, argv, **environment)
    assert sweep.wait() == 0, sweep.error
    values = json.loads((root / "genotypes.json").read_text())
    assert values["not_finished"] == []
    assert [c["discretised_accuracy"]["count"] for c in values["configurations"]] == [5]
