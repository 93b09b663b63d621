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
from dasvit.methods.betadarts import BetaDARTS
from dasvit.methods.dartsminus import DARTSMinus
from dasvit.methods.dartsplus import DARTSPlus
from dasvit.methods.dasvit import DASViT
from dasvit.methods.drnas import DrNAS
from dasvit.methods.fairdarts import FairDARTS
from dasvit.methods.gdas import GDAS
from dasvit.methods.pcdarts import PCDARTS
from dasvit.methods.pdarts import PDARTS
from dasvit.methods.rsws import RSWS
from dasvit.methods.sdarts import SDARTS

__all__ = [
    "DARTS",
    "GDAS",
    "PCDARTS",
    "PDARTS",
    "RSWS",
    "SDARTS",
    "BetaDARTS",
    "Choice",
    "DARTSMinus",
    "DARTSPlus",
    "DASViT",
    "DrNAS",
    "FairDARTS",
    "LogUniform",
    "Uniform",
    "get_method",
    "method_names",
    "register_method",
]
