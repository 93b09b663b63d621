"""A process that runs trials one after the other carries nothing from one to the next."""

import contextlib
import gc
import os
import random
import sys
from collections.abc import Iterator

from dasvit.run.plugins import plugins_end_here

__all__ = ["process_as_found"]


@contextlib.contextmanager
def process_as_found() -> Iterator[None]:
    """What a trial changes in its process is put back, for the next one: environment, random
    states, number of threads, what plug-ins registered; and device memory is given back."""
    import numpy as np
    import torch

    environment, threads = dict(os.environ), torch.get_num_threads()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state()
    try:
        with plugins_end_here():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        torch.set_num_threads(threads)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
