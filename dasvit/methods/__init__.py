"""Search methods: how architecture parameters become an encoder. One file per method."""

from dasvit.methods.base import (
    DARTS,
    Choice,
    LogUniform,
    Uniform,
    get_method,
    method_names,
    register_method,
)
from dasvit.methods.dasvit import DASViT

__all__ = [
    "DARTS",
    "Choice",
    "DASViT",
    "LogUniform",
    "Uniform",
    "get_method",
    "method_names",
    "register_method",
]
