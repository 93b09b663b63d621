"""What a sweep does with the signal that asks it to end."""

import contextlib
import os
import signal
from collections.abc import Iterator

__all__ = ["sigterm_as_ctrl_c"]


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM acts as Ctrl-C does: on that way out Ray's processes end, too.

    Where Ctrl-C is ignored, as in what a script starts in the background, SIGTERM still ends the
    sweep, except while Tune listens to Ctrl-C itself.
    """

    def interrupt(*_: object) -> None:
        if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
