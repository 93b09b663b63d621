"""What ends, and what is said, when a signal comes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where whoever started us ignores it
from tune.signals import stoppable
with stoppable("the command"):
    # Else it would hold our streams open.
    closed = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.DEVNULL)
    child = subprocess.Popen(["sleep", "600"], start_new_session=True, **closed)
    print(child.pid, flush=True)
    try:
        time.sleep(600)
    finally:
        {way_out}
"""
HANGS = "import ctypes; ctypes.CDLL(None).sleep(600)"
"""In code that lets no Python handler run."""

Started = tuple["subprocess.Popen[str]", int]


@pytest.fixture
def started(request: pytest.FixtureRequest) -> Iterator[Started]:
    """The program with this way out, and its child, which another group holds."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(way_out=request.param)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout is not None
    yield process, int(process.stdout.readline())
    process.kill()
    process.communicate()


def ends(pid: int, seconds: float = 5) -> bool:
    """Whether a process is gone, once a busy machine had time to end it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("started", ["pass", HANGS], indirect=True)
def test_sigterm_ends_all(started: Started) -> None:
    process, child = started
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 143
    assert error == "\nstopped by SIGTERM; continue with: the command\n"
    assert ends(child)


@pytest.mark.parametrize("started", [HANGS], indirect=True)
def test_a_second_ctrl_c_ends_all(started: Started) -> None:
    process, child = started
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    said = process.stderr.readline() + process.stderr.readline()
    assert said == "\nstopping; Ctrl-C once more ends it without a report\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == "\nstopped; continue with: the command\n"
    assert ends(child)
