"""Atomic checkpoints, read back without executing anything (`weights_only=True`)."""

import copy
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from dasvit.run.files import atomic_file, first_line, remove_unfinished

__all__ = [
    "CheckpointWriter",
    "check_same_settings",
    "is_due",
    "load_checkpoint",
    "restore",
]


class CheckpointWriter:
    """Writes the checkpoints of a run while it trains on, one at a time.

    What ends a run waits for the file that is being written: leave the context before anything
    is done that supposes it. A process that is killed before leaves the checkpoint before.

    Args:
        path: of the file; what a killed process left half written beside it is removed.
        kind: "search/1" say; `load_checkpoint` insists on it.
    """

    def __init__(self, path: Path, kind: str) -> None:
        remove_unfinished(path)
        self._path, self._kind = path, kind
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None

    def save(self, state: dict[str, Any]) -> None:
        """Copy tensors and plain values into the host's memory, and begin to write them once the
        state before is written. They may change afterwards. How many threads PyTorch computes with
        goes along: the order of float sums depends on it.

        Raises:
            ValueError: the one before could not be written.
        """
        self.wait()
        # Asked here: the thread that writes computes with another number of them.
        facts = {"kind": self._kind, "num_threads": torch.get_num_threads()}
        self._written = self._thread.submit(_write, self._path, facts | _copy_to_host(state))

    @property
    def busy(self) -> bool:
        """Whether the last state is still being written."""
        return self._written is not None and not self._written.done()

    def check(self) -> None:
        """Whether the last state could be written, if that is over: asked after every epoch, so
        that a run does not train on without checkpoints.

        Raises:
            ValueError: it could not.
        """
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Until the last state is in the file.

        Raises:
            ValueError: it could not be written.
        """
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except ValueError as failed:
            if error is None:
                raise
            warnings.warn(str(failed), stacklevel=2)
        finally:
            self._thread.shutdown()


def _copy_to_host(value: Any) -> Any:
    """The same lists and mappings, with copies of their tensors in the host's memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # a state_dict's attributes go along
        copied.update((key, _copy_to_host(each)) for key, each in value.items())
        return copied
    if isinstance(value, list | tuple):
        return type(value)(_copy_to_host(each) for each in value)
    return value


def _write(path: Path, whole: dict[str, Any]) -> None:
    try:
        with atomic_file(path) as file:
            torch.save(whole, file)
    except (OSError, RuntimeError) as error:
        # torch.save says that its file ends elsewhere than it should, and not why.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise ValueError(
            f"cannot write {path} ({cause.strerror or cause}); the last whole checkpoint is kept: "
            "make room, then resume"
        ) from None


def is_due(epochs_done: int, every: int, last: int) -> bool:
    """Whether a checkpoint or an evaluation follows an epoch: each `every`-th, and the `last`."""
    return epochs_done % every == 0 or epochs_done == last


def load_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        ValueError: missing, truncated, not a checkpoint, or of another kind.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are not PyTorch's
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"there is no checkpoint {path}") from None
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise ValueError(f"{path} is not a readable checkpoint ({reason})") from None
    except Exception:  # bytes that are no checkpoint fail in any way
        raise ValueError(
            f"{path} is not a readable checkpoint: it is truncated or was not written here; "
            "delete it to start from the beginning"
        ) from None
    found = state.get("kind") if isinstance(state, dict) else None
    if found != kind:
        raise ValueError(f"{path} is a checkpoint of kind {found!r}, not {kind!r}")
    return state


def restore(
    path: Path,
    kind: str,
    load: Callable[[dict[str, Any]], None],
    data: dict[str, Any] | None = None,
) -> None:
    """Hand a checkpoint to `load`, and take as many threads as its run had: with others it would
    not continue to the same bits.

    Args:
        data: facts about the images, compared with the "data" that were saved.

    Raises:
        ValueError: as `load_checkpoint`, or what it holds does not fit what `load` fills, or the
            images are not those of before.
    """
    state = load_checkpoint(path, kind)
    before = state.get("data", data)
    if before != data:
        raise ValueError(
            f"{path} is of other images ({before} there, {data} now): bring the data back as they "
            "were, or begin in another folder"
        )
    try:
        load(state)
        torch.set_num_threads(state.get("num_threads", torch.get_num_threads()))
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not fit this run ({type(error).__name__}: {first_line(error)})"
        ) from None


def check_same_settings(saved: dict[str, Any], current: dict[str, Any], where: str) -> None:
    """Refuse to continue a run under other settings.

    Raises:
        ValueError: naming each setting that differs, saved and current.
    """
    saved, current = _flat(saved), _flat(current)
    differences = [
        f"{key}: {saved.get(key)!r} there, {current.get(key)!r} now"
        for key in sorted(set(saved) | set(current))
        if saved.get(key) != current.get(key)
    ]
    if differences:
        raise ValueError(
            f"{where} holds a run with other settings ({'; '.join(differences)}); "
            "continue it with its own settings or choose another folder"
        )


def _flat(settings: dict[str, Any], part: str = "") -> dict[str, Any]:
    """Settings by their own names, whichever part they belong to; a part's name goes by the part:
    `{"method": {"name": "darts", "xi": 0}}` is `{"method": "darts", "xi": 0}`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, name)
        else:
            flat[part if part and name == "name" else name] = value
    return flat
