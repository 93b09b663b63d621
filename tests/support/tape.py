"""A CUDA graph without a GPU: the operations of a call, noted and repeated on the same memory."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")


class Tape(TorchDispatchMode):
    """Notes operations as CUDA graphs note kernels: with the addresses of what they read and
    write, and with every number that comes from Python as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict[str, Any], Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        assert func is not torch.ops.aten._local_scalar_dense.default, "waits for the device"
        draws = torch.Tag.nondeterministic_seeded in func.tags and "attention" not in str(func)
        assert not draws, "draws random numbers"
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                position = [a.name for a in func._schema.arguments].index(argument.name)
                value = args[position] if position < len(args) else kwargs.get(argument.name)
                for tensor in _tensors(value):
                    self._keep(tensor)
        noted = _aliases(args), _aliases(kwargs)
        out = func(*args, **kwargs)
        self._made |= {_memory(t) for t in _tensors(out)} - {
            _memory(t) for t in _tensors([*args, *kwargs.values()])
        }
        self.calls.append((func, *noted, _aliases(out)))
        return out

    def _keep(self, tensor: Tensor) -> None:
        """The values of what the tape overwrites, as they were before it began."""
        key = _memory(tensor)
        if key not in self._made and key not in self._before:
            whole = _alias(tensor, (len(tensor.untyped_storage()) // tensor.itemsize,))
            self._before[key] = whole, whole.clone()

    def undo(self) -> None:
        for whole, values in self._before.values():
            whole.copy_(values)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            inputs = {_memory(t) for t in _tensors([*args, *kwargs.values()])}
            for old, new in zip(_tensors(out), _tensors(func(*args, **kwargs)), strict=True):
                if _memory(old) not in inputs:
                    old.copy_(new)


def record(function: Callable[[], T], device: torch.device) -> tuple[T, Callable[[], None]]:
    """In the place of `dasvit.search.cuda_graph.capture`."""
    with Tape() as tape:
        result = function()
    tape.undo()
    return result, tape.replay


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _alias(tensor: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """The same memory; its shape stays when the tensor's own changes."""
    place = (
        (tensor.storage_offset(), tensor.shape, tensor.stride()) if shape is None else (0, shape)
    )
    return tensor.new_empty(0).set_(tensor.untyped_storage(), *place)


def _aliases(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _alias(value)
    if isinstance(value, dict):
        return {name: _aliases(item) for name, item in value.items()}
    return type(value)(map(_aliases, value)) if isinstance(value, list | tuple) else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
