"""What a sweep does with the signals that ask it to end."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

__all__ = ["stoppable"]

STOP_SECONDS = 3.0
"""What the main thread has to write down the times and to leave Ray, after SIGTERM."""

TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def stoppable(again: str) -> Iterator[None]:
    """SIGTERM and a second Ctrl-C end the process soon, with all that it started.

    Batch systems send SIGTERM to Ray's processes too. Then the main thread may wait a minute for
    an answer that cannot come, in code that lets no Python handler run. Hence a thread of its own
    hears the signals, says at once what happens, and ends the process if nobody else does.

    Args:
        again: the command that continues.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    handler = signal.signal(signal.SIGTERM, _leave)
    wakeup = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(heard, again), daemon=True)
    thread.start()
    try:
        yield
    except SystemExit as stop:
        if stop.code == TERMINATED:
            _end(TERMINATED)
        raise
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, handler)
        os.close(told)  # the thread reads the end
        thread.join()
        os.close(heard)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise SystemExit(TERMINATED)


def _listen(heard: int, again: str) -> None:
    interrupted = False
    while numbers := os.read(heard, 1):
        if numbers[0] == signal.SIGTERM:
            _say(f"stopped by SIGTERM; continue with: {again}")
            time.sleep(STOP_SECONDS)
            _end(TERMINATED)
        if numbers[0] == signal.SIGINT and interrupted:
            _say(f"stopped; continue with: {again}")
            _end(128 + signal.SIGINT)
        if numbers[0] == signal.SIGINT:
            interrupted = True
            _say("stopping; Ctrl-C once more ends it without a report")


def _say(line: str) -> None:
    # Not print: the main thread may hold the stream.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode("ascii", errors="backslashreplace"))


def _end(status: int) -> NoReturn:
    """End this process and all below it, without a wait for any of them."""
    for pid in _below(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    os._exit(status)


def _below(root: int) -> list[int]:
    """All processes that descend from one, as far as the system shows them."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):  # gone meanwhile, its file empty
            parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]
