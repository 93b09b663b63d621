"""Search methods: how architecture parameters become an encoder. One file per method."""

from dasvit.methods.base import DARTS, get_method, method_names, register_method
from dasvit.methods.dasvit import DASViT

__all__ = ["DARTS", "DASViT", "get_method", "method_names", "register_method"]
