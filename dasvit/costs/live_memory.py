"""Memory that operations return and that is still alive, counted while they run.

Works on real tensors and on fake ones. What a kernel takes and gives back inside is not seen.
"""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LiveMemory"]


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all memories that operations return while it is active and that are
    alive.

    Args:
        block: every memory counts as a multiple of this many bytes.

    Attributes:
        live: bytes now.
        peak: the most there were at once; may be set back to `live`.
    """

    def __init__(self, block: int = 1) -> None:
        super().__init__()
        self.block = block
        self.live = self.peak = 0
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        before = {id(t.untyped_storage()) for t in _tensors((*args, *kwargs.values()))}
        out = func(*args, **kwargs)
        for t in _tensors((out,)):
            if id(t.untyped_storage()) not in before:
                self._add(t.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._seen:
            return
        size = -(-storage.nbytes() // self.block) * self.block

        def gone(_: object) -> None:
            self.live -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an operation's arguments or results, and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
