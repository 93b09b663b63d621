"""Search spaces: which networks exist, and their supernet."""

from dasvit.spaces.cell.space import CellSpace

__all__ = ["CellSpace"]
