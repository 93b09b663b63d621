"""The subcommands of `python -m dasvit`, one a module: its arguments and `run`."""
