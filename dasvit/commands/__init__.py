"""The subcommands of `python -m dasvit`, one per module: its arguments and `run`."""
