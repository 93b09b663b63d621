"""A whole sweep in a process of its own, watched, and hurt on purpose."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tune" / "run_search.py"

BASE = [
    *("--name", "small", "--num-samples", "1", "--seeds", "2", "--dim", "12"),
    *("--stage-epochs", "2", "--stage-layers", "1", "1", "1", "--token-ratio", "0.5", "--xi", "0"),
    *("--retrain-top", "1", "--retrain-seeds", "1", "--retrain.dim", "12", "--retrain.depth", "2"),
    *("--retrain.epochs", "4", "--retrain.warmup-epochs", "1"),
]
SMALL = [*BASE, "--random-baseline", "0"]
"""Arguments of a sweep of two searches, a rung of the ladder and two retrainings."""


class SweepProcess:
    """`tune/run_search.py` running in `folder`; every process under it is remembered."""

    def __init__(
        self, folder: Path, argv: Sequence[str], *, in_background: bool = False, **environment: str
    ) -> None:
        """Args:
        in_background: as a script starts it with `&`: Ctrl-C is ignored from the start.
        """
        command = [sys.executable, str(SCRIPT), *argv]
        if in_background:
            command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
        self._log, self._err = folder / "sweep.log", folder / "sweep.err"
        with self._log.open("w") as log, self._err.open("w") as err:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=log,
                stderr=err,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                start_new_session=True,
            )
        self._seen: dict[int, str] = {}
        self._looked = 0.0

    def wait_until(self, condition: Callable[[], Any], seconds: float = 600) -> Any:
        """The condition's first true value."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if value := condition():
                self._look()
                return value
            self._look(every=1.0)
            time.sleep(0.05)
        self.kill()
        raise AssertionError(f"it did not come to that: {self.output} {self.error}")

    def wait(self, seconds: float = 900) -> int:
        """The exit status."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self._look(every=1.0)
            time.sleep(0.2)
        if self.process.poll() is None:
            self.kill()
            raise AssertionError(f"not ended in {seconds} s: {self.output} {self.error}")
        return self.process.returncode

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal does it: to all of the group."""
        self._signal(signal.SIGINT)

    def terminate(self) -> None:
        """SIGTERM to all of the group."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        self._look()
        os.killpg(self.process.pid, number)

    def kill(self) -> int:
        """SIGKILL to the main process alone."""
        self._look()
        self.process.kill()
        return self.process.wait()

    def kill_one(self, title: str) -> str:
        """SIGKILL to a process under it whose title begins so; the title."""
        pid = self.wait_until(lambda: self._titled(title))
        os.kill(pid, signal.SIGKILL)
        return title

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def error(self) -> str:
        return self._err.read_text()

    def left_behind(self, seconds: float = 30) -> list[str]:
        """What still runs of all that ever ran under it, once it had time to end."""
        deadline = time.monotonic() + seconds
        assert len(self._seen) > 0
        while True:
            alive = [
                _title(pid) or str(pid)
                for pid, started in self._seen.items()
                if _stat(pid)[1:] == [started] and _stat(pid)[0] != "Z"
            ]
            if not alive or time.monotonic() > deadline:
                return alive
            time.sleep(0.5)

    def _look(self, every: float = 0.0) -> None:
        """Remember what runs, unless it is less than `every` seconds ago."""
        if time.monotonic() - self._looked < every:
            return
        self._looked = time.monotonic()
        for pid in _under(self.process.pid):
            if pid not in self._seen and (stat := _stat(pid)):
                self._seen[pid] = stat[1]

    def _titled(self, title: str) -> int | None:
        return next((p for p in _under(self.process.pid) if _title(p).startswith(title)), None)


def _stat(pid: int) -> list[str]:
    """State and start time; empty if it is gone. (A number can be given to another process.)"""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [fields[0], fields[19]]


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def _under(root: int) -> list[int]:
    """All processes that descend from one."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.name))
    found, todo = [], [root]
    while todo:
        todo += (below := children.get(todo.pop(), []))
        found += below
    return found


def results(root: Path) -> dict[str, Any]:
    """All that a sweep computed, by trial, without the times: results, epochs, and the ranking."""
    found: dict[str, Any] = {}
    for path in sorted((*root.glob("*/*/result.json"), *root.glob("*/*/*/result.json"))):
        name = str(path.parent.relative_to(root))
        epochs = [
            _timeless(json.loads(line))
            for trace in ("alpha.jsonl", "train.jsonl")
            if (path.parent / trace).exists()
            for line in (path.parent / trace).read_text().splitlines()
        ]
        found[name] = (_timeless(json.loads(path.read_text())), epochs)
    with (root / "leaderboard.csv").open() as file:
        return found | {"ranking": [row["model"] for row in csv.DictReader(file)]}


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in values.items() if "second" not in k and "memory" not in k}
    if "model" in kept:  # the genotype's file, in the folder of the sweep
        kept["model"] = Path(kept["model"]).name
    if isinstance(kept.get("genotype"), dict):
        kept["genotype"] = {k: v for k, v in kept["genotype"].items() if k != "provenance"}
    return kept


def begun(root: Path, phase: str) -> bool:
    """Whether a trial of a phase has written down its first epoch and is not finished."""
    return any(
        trace.stat().st_size > 0 and not (trace.parent / "result.json").exists()
        for name in ("alpha.jsonl", "train.jsonl")
        for trace in (root / phase).glob(f"*/{name}")
    )
