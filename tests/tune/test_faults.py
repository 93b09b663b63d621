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


def test_the_whole_sweep_is_ended_in_every_phase(tmp_path: Path, unhurt: dict[str, Any]) -> None:
    """By SIGKILL to the main process, Ctrl-C, and SIGTERM as a batch system sends it to a script in
    the background; the same command each time.

    Ray's two agents wait a minute for their killed server before they end.
    """
    root = tmp_path / "runs" / "small"
    killed = []
    for moment, end, status, words in (
        (lambda: (root / "sweep.json").exists(), "kill", -9, ""),
        (lambda: begun(root, "search"), "interrupt", 130, "\nstopping; "),
        (lambda: begun(root, RUNG), "terminate", 143, "\nstopped by SIGTERM; continue with: "),
        (lambda: begun(root, "retrain"), "kill", -9, ""),
    ):
        sweep = SweepProcess(tmp_path, SMALL, in_background=end == "terminate")
        sweep.wait_until(moment)
        getattr(sweep, end)()
        assert sweep.wait(10 if end == "terminate" else 900) == status
        assert sweep.error.startswith(words) and "Traceback" not in sweep.error
        if end == "kill":
            killed.append(sweep)
        else:
            assert f"{SCRIPT} --name small" in sweep.error
            assert sweep.left_behind() == []
    sweep = SweepProcess(tmp_path, SMALL)
    assert sweep.wait() == 0, sweep.error
    assert results(root) == unhurt
    assert [name for each in (*killed, sweep) for name in each.left_behind(120)] == []


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
    for seed, words in enumerate(
        ("memory", "MemoryError: cannot allocate 99 GiB", "no such kernel", "not finite"), start=1
    ):
        assert words in reasons.pop(f"config_000_seed_{seed}")
    assert reasons == {}
    assert "| 1 of 5 |" in (root / "leaderboard.md").read_text()

    faults.unlink()
    sweep = SweepProcess(tmp_path, argv, **environment)
    assert sweep.wait() == 0, sweep.error
    values = json.loads((root / "genotypes.json").read_text())
    assert values["not_finished"] == []
    assert [c["discretised_accuracy"]["count"] for c in values["configurations"]] == [5]
