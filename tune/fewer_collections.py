"""For Ray's processes, which import this as they start (see `tune.cluster`): garbage collections.

A trial is half a dozen processes that do little but import Ray and PyTorch. With Python's own
thresholds a fifth of that time goes into looking for garbage among what they import.
"""

import gc

gc.set_threshold(100_000, 20, 100)
