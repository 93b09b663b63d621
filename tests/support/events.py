"""One event of each kind."""

import math
from dataclasses import replace

from support.runs import ENCODER

from dasvit.report.events import RetrainEpoch, RetrainResult, SearchEpoch, SearchResult, StageEnd

SEARCH_EPOCH = SearchEpoch(
    epoch=0,
    total_epochs=4,
    stage=0,
    num_layers=2,
    train_loss=2.25,
    train_accuracy=0.125,
    val_loss=math.nan,
    penalty=0.1,
    val_accuracy=1 / 3,
    weights=((0.25, 0.75),) * 5,
    edge_ops=(("zero", "msa_h2"),) * 5,
    figures={"type/msa": 0.75},
    weight_lr=1e-3,
    seconds=0.5,
    steadiness=1.5,
)
STAGE_END = StageEnd(
    epoch=0,
    stage=0,
    weights=SEARCH_EPOCH.weights,
    edge_ops=SEARCH_EPOCH.edge_ops,
    kept=None,
    genotype=ENCODER,
    accuracy_before=0.75,
    accuracy_after=None,
    largest_class=0.1,
)
RETRAIN_EPOCH = RetrainEpoch(
    epoch=0, total_epochs=2, train_loss=2.25, train_accuracy=0.1, lr=1e-6, seconds=0.5
)
SEARCH_RESULT = SearchResult(
    genotype=replace(ENCODER, provenance={"seed": 3, "settings": {"xi": 0.1}}),
    supernet_accuracy=0.6,
    discretised_accuracy=1 / 7,
    skip_share=0.1,
    zero_share=0.2,
    seconds=12.5,
    settings={"xi": 0.1, "seed": 3},
    stages=[{"stage": 0, "accuracy_before": 0.75, "accuracy_after": 0.5, "pruned": {"zero": 5}}],
)
RETRAIN_RESULT = RetrainResult(
    model="vit", test_top1=1 / 3, test_top5=0.9, train_accuracy=1.0, num_params=1234, seconds=5.5
)
