"""The program `dasvit`, or `python -m dasvit`."""

import os

from dasvit.cli import main
from dasvit.run.garbage import lasting_imports


def program() -> None:
    """A command line as a process of its own."""
    # Threads that wait sleep. Spinning, the default, makes small networks many times as slow where
    # other programs want the same cores. Read when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main(imports=lasting_imports())


if __name__ == "__main__":
    program()
