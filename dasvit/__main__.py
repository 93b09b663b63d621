"""The program `dasvit`, or `python -m dasvit`."""

from dasvit.cli import main
from dasvit.run.garbage import lasting_imports


def program() -> None:
    """A command line as a process of its own."""
    main(imports=lasting_imports())


if __name__ == "__main__":
    program()
