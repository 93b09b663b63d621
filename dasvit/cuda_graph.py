"""A function's work on a GPU, captured once as a CUDA graph and launched as one from then on.

A step of the search is thousands of kernels of some microseconds: launched one by one, the host is
the slower of the two.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from dasvit.files import first_line

__all__ = ["WARM_UP", "CudaGraphs"]

T = TypeVar("T")

WARM_UP = 3
"""Calls before the capture: libraries choose kernels, optimisers make their states, and what is
compiled is compiled."""


class CudaGraphs(Generic[T]):
    """The CUDA graphs of a function of tensors: one for the shapes of its arguments, from the
    fourth call with them on.

    A graph repeats the kernels of one call on the same memory. So the function must depend on
    nothing but its arguments and tensors that live on, must not wait for the device, and must draw
    no random numbers. The graphs share their memory, and keep what a call takes at its peak.
    """

    def __init__(self) -> None:
        self._calls: dict[object, int] = {}
        self._captured: dict[object, tuple[list[Tensor], T, Callable[[], None]]] = {}
        self._pool: Any = None

    def call(self, function: Callable[..., T], *tensors: Tensor) -> T:
        """Call the function, or replay an earlier call of it.

        Returns:
            Its result. Once there is a graph, the same tensors in every call, overwritten by the
            next.

        Raises:
            ValueError: the function cannot be captured.
        """
        key = tuple((t.shape, t.dtype) for t in tensors)
        if key not in self._captured:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] <= WARM_UP:
                return function(*tensors)
            inputs = [t.clone() for t in tensors]
            result, replay, self._pool = capture(lambda: function(*inputs), self._pool)
            self._captured[key] = inputs, result, replay
        inputs, result, replay = self._captured[key]
        torch._foreach_copy_(inputs, list(tensors))
        replay()
        return result


def capture(function: Callable[[], T], pool: Any) -> tuple[T, Callable[[], None], Any]:
    """Capture a call, whose work is not carried out.

    Args:
        function: what to call.
        pool: memory of an earlier graph to share, or None.

    Returns:
        What the call returned, a function that carries it out, and the memory of its graph.

    Raises:
        ValueError: the call does what a graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads may go on preparing batches.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = function()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"the step cannot be captured as a CUDA graph ({first_line(error)}): an operation "
            "waits for the device or draws random numbers; leave cuda_graph out"
        ) from error
    return result, graph.replay, graph.pool()
