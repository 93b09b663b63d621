"""Our counts of Table I's networks at 100 classes, so that not every test counts them anew;
`test_table1.py` compares them with a count."""

from benchmarks.table1 import ROWS, CountedRow
from dasvit.costs import Complexity

_COUNTS = {  # parameters, multiply-adds of weights, of attention products
    "VGG-16": (134_670_244, 15_466_577_920, 0),
    "VGG-19": (139_979_940, 19_628_376_064, 0),
    "ResNet-50": (23_712_932, 4_087_341_056, 0),
    "ResNet-152": (58_348_708, 11_511_783_424, 0),
    "EfficientNet-B7": (64_043_060, 5_167_561_152, 0),
    "RegNetY-12GF": (49_805_644, 12_090_360_576, 0),
    "RegNetY-16GF": (80_867_640, 15_908_788_672, 0),
    "ViT-B/16": (85_875_556, 16_847_809_536, 715_327_488),
    "TNT-B": (64_851_780, 13_404_231_680, 644_275_200),
    "CaiT-S36": (67_874_212, 12_839_400_960, 1_062_428_160),
    "AutoFormer-B": (53_172_388, 10_399_097_088, 1_033_465_940),
    "DASViT": (50_518_372, 9_876_089_856, 715_327_488),
}

COUNTED = [
    CountedRow(
        row=row,
        found=Complexity(num_params=params, macs_linear=linear, macs_attention=attention),
    )
    for row in ROWS
    for params, linear, attention in [_COUNTS[row.name]]
]
