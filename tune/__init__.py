"""The sweep: Ray Tune and Optuna around `dasvit`'s search; `run_search.py` is the entry."""
