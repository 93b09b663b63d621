"""A function's work on a GPU, captured once as a CUDA graph and launched as one from then on.

A step of the search is thousands of kernels of some microseconds: launched one by one, the host is
the slower of the two.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from dasvit.run.files import first_line

__all__ = ["WARM_UP", "CudaGraphs"]

T = TypeVar("T")

WARM_UP = 3
"""Calls before the capture: libraries choose kernels, optimisers make their states, and what is
compiled is compiled."""


class CudaGraphs(Generic[T]):
    """The CUDA graph of a function of tensors, from its fourth call with arguments of a shape on.

    A graph repeats the kernels of one call on the same memory. So the function must depend on
    nothing but its arguments and tensors that live on, must not wait for the device, and must draw
    no random numbers. The graph keeps what a call takes at its peak, until a call with other shapes
    comes: two would not fit beside each other.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._calls: dict[object, int] = {}
        self._captured: tuple[object, list[Tensor], T, Callable[[], None]] | None = None

    def call(self, function: Callable[..., T], *tensors: Tensor) -> T:
        """Call the function, or replay an earlier call of it.

        Returns:
            Its result. Once there is a graph, the same tensors in every call, overwritten by the
            next.

        Raises:
            ValueError: the function cannot be captured.
        """
        key = tuple((t.shape, t.dtype) for t in tensors)
        if self._captured is None or self._captured[0] != key:
            self._captured = None
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] <= WARM_UP:
                return function(*tensors)
            inputs = [t.clone() for t in tensors]
            result, replay = capture(lambda: function(*inputs), self._device)
            self._captured = key, inputs, result, replay
        _, inputs, result, replay = self._captured
        torch._foreach_copy_(inputs, list(tensors))
        replay()
        return result


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Where captures are taken: on this device (PyTorch's own is on the first), and one for all, as
    cuBLAS keeps a workspace for every stream it meets."""
    return torch.cuda.Stream(device)


def capture(function: Callable[[], T], device: torch.device) -> tuple[T, Callable[[], None]]:
    """Capture a call, whose work is not carried out.

    Args:
        function: what to call.
        device: the GPU that it works on.

    Returns:
        What the call returned, and a function that carries it out.

    Raises:
        ValueError: the call does what a graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    found: list[T] = []
    causes: list[Exception] = []
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.cuda.device(device))
            # A capture that fails to end leaves its stream the current one.
            stack.enter_context(torch.cuda.stream(torch.cuda.current_stream(device)))
            stream = _stream(device)
            # Other threads may go on preparing batches.
            mode = "thread_local"
            stack.enter_context(torch.cuda.graph(graph, stream=stream, capture_error_mode=mode))
            try:
                found.append(function())
            except Exception as error:  # ending the capture fails too, and would hide it
                causes.append(error)
                raise
    except RuntimeError as error:
        cause = causes[0] if causes else error
        if isinstance(cause, torch.OutOfMemoryError) or not isinstance(cause, RuntimeError):
            raise cause from None
        raise ValueError(
            f"the step cannot be captured as a CUDA graph ({first_line(cause)}): most likely an "
            "operation waits for the device; leave cuda_graph out"
        ) from cause
    return found[0], graph.replay
