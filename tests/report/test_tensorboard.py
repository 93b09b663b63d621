"""TensorBoard event files, read back: tags, steps, values, hyper-parameters, resuming."""

import dataclasses
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from dasvit.report.events import (
    RetrainEpoch,
    RetrainResult,
    SearchEpoch,
    SearchResult,
    StageEnd,
    scalars,
)
from dasvit.report.tensorboard import TensorBoardReport
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES

GENOTYPE = NAMED_GENOTYPES["dasvit_cifar10"]
EDGE_OPS = (("zero", "identity", "msa_h2"),) * 5
WEIGHTS = ((0.5, 0.3, 0.2), (0.25, 0.25, 0.5), (0.1, 0.2, 0.7), (0.4, 0.4, 0.2), (0.6, 0.1, 0.3))
PRUNED = (("zero", "identity"), ("identity", "msa_h2")) + (("zero", "msa_h2"),) * 3


def search_epoch(epoch: int, **changes: Any) -> SearchEpoch:
    event = SearchEpoch(
        epoch=epoch,
        total_epochs=4,
        stage=0,
        num_layers=2,
        train_loss=2.0 - 0.1 * epoch,
        train_accuracy=0.25,
        val_loss=math.nan,
        fair_loss=0.5,
        val_accuracy=0.125,
        weights=WEIGHTS,
        edge_ops=EDGE_OPS,
        type_totals={"msa": 0.4, "mlp": 0.0},
        weight_lr=1e-3,
        seconds=3.0,
    )
    return dataclasses.replace(event, **changes)


def stage_end(stage: int, **changes: Any) -> StageEnd:
    event = StageEnd(
        epoch=2 * stage + 1,
        stage=stage,
        weights=WEIGHTS,
        edge_ops=EDGE_OPS,
        kept=None,
        genotype=GENOTYPE,
    )
    return dataclasses.replace(event, **changes)


SEARCH_RESULT = SearchResult(
    genotype=GENOTYPE,
    supernet_accuracy=0.75,
    discretised_accuracy=0.5,
    skip_share=0.25,
    zero_share=0.125,
    seconds=60.0,
    settings={"xi": 0.25, "token_ratio": 0.5},
)


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def points(accumulator: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(e.step, pytest.approx(e.value)) for e in accumulator.Scalars(tag)]


def text(accumulator: EventAccumulator, tag: str) -> list[tuple[int, str]]:
    events = accumulator.Tensors(f"{tag}/text_summary")
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in events]


def hparams(accumulator: EventAccumulator) -> tuple[dict[str, Any], list[str]]:
    """The settings of the run and the metrics shown beside them."""
    content = accumulator.PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert metadata.SESSION_END_INFO_TAG in content
    values = {k: getattr(v, v.WhichOneof("kind")) for k, v in start.hparams.items()}
    return values, [info.name.tag for info in experiment.metric_infos]


def test_search_epoch_writes_all_scalars_and_weights(tmp_path: Path) -> None:
    events = [search_epoch(0), search_epoch(1, val_loss=1.5)]
    with TensorBoardReport(tmp_path) as report:
        for event in events:
            report(event)
    found = read(tmp_path)
    weights = {
        f"weights/{edge}/{name}"
        for edge in ("e_{k-2}->o_0", "e_{k-1}->o_0", "e_{k-2}->o_1", "e_{k-1}->o_1", "o_0->o_1")
        for name in EDGE_OPS[0]
    }
    assert set(found.Tags()["scalars"]) == weights | set(scalars(events[0]))
    for name, value in scalars(events[1]).items():
        assert points(found, name)[-1] == (1, value), name
    assert points(found, "loss/train") == [(0, 2.0), (1, 1.9)]
    assert points(found, "loss/val") == [(1, 1.5)]  # nan in epoch 0
    assert points(found, "weights/e_{k-1}->o_0/msa_h2") == [(0, 0.5), (1, 0.5)]
    assert points(found, "weights/o_0->o_1/zero") == [(0, 0.6), (1, 0.6)]


def test_pruned_operations_are_no_longer_written(tmp_path: Path) -> None:
    with TensorBoardReport(tmp_path) as report:
        report(search_epoch(0))
        report(search_epoch(1, edge_ops=PRUNED, weights=((0.5, 0.5),) * 5))
    found = read(tmp_path)
    assert points(found, "weights/e_{k-2}->o_0/msa_h2") == [(0, 0.2)]
    assert points(found, "weights/e_{k-2}->o_0/identity") == [(0, 0.3), (1, 0.5)]


def test_one_chart_an_edge_holds_all_its_weights(tmp_path: Path) -> None:
    with TensorBoardReport(tmp_path) as report:
        report(search_epoch(0))
        report(search_epoch(1))
    (event,) = read(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    (category,) = layout.category
    assert [chart.title for chart in category.chart][::4] == ["e_{k-2}->o_0", "o_0->o_1"]
    (pattern,) = category.chart[0].multiline.tag
    assert re.match(pattern, "weights/e_{k-2}->o_0/msa_h2")
    assert not re.match(pattern, "weights/e_{k-2}->o_1/msa_h2")


def test_stage_end_writes_figures_and_genotype(tmp_path: Path) -> None:
    with TensorBoardReport(tmp_path) as report:
        report(stage_end(0))
        report(stage_end(1, edge_ops=PRUNED, weights=((0.5, 0.5),) * 5))
    found = read(tmp_path)
    assert set(found.Tags()["images"]) == {"operation_weights", "encoder"}
    for tag in ("operation_weights", "encoder"):
        images = found.Images(tag)
        assert [image.step for image in images] == [0, 1]
        for image in images:
            assert image.encoded_image_string.startswith(b"\x89PNG")
            assert image.width > 300 and image.height > 100
    # Later heat maps keep the columns of the first, so the images are of one size.
    assert len({image.width for image in found.Images("operation_weights")}) == 1
    (step, first), _ = text(found, "genotype")
    assert step == 0
    assert "o_1 = mlp_r0.5(e_{k-2}) + msa_h8(o_0)" in first and GENOTYPE.canonical_hash in first


def test_search_result_writes_hparams_into_the_same_folder(tmp_path: Path) -> None:
    settings = {
        "xi": 0.0,
        "seed": 3,
        "stage_layers": [2, 4, 6],
        "data": {"dataset": "digits", "download": False},
        "nothing": None,
    }
    with TensorBoardReport(tmp_path, hparams=settings) as report:
        report(search_epoch(0))
        report(SEARCH_RESULT)
    assert len(list(tmp_path.iterdir())) == 1  # one event file, no run of its own below
    found = read(tmp_path)
    values, metrics = hparams(found)
    assert values == {
        "xi": 0.25,  # the result's settings are the ones that were used
        "token_ratio": 0.5,
        "seed": 3,
        "stage_layers": "2, 4, 6",
        "data.dataset": "digits",
        "data.download": False,
        "nothing": "None",
    }
    assert metrics == [f"hparam/{name}" for name in scalars(SEARCH_RESULT)]
    assert points(found, "hparam/supernet_accuracy") == [(1, 0.75)]
    assert points(found, "hparam/gap") == [(1, 0.25)]
    assert points(found, "hparam/zero_share") == [(1, 0.125)]
    assert [image.step for image in found.Images("result/encoder")] == [1]
    ((step, genotype),) = text(found, "result/genotype")
    assert step == 1 and "msa_h8(o_0)" in genotype


def test_retraining(tmp_path: Path) -> None:
    epochs = [
        RetrainEpoch(
            epoch=e, total_epochs=2, train_loss=1.0 - e, train_accuracy=0.5, lr=1e-3, seconds=2.0
        )
        for e in range(2)
    ]
    result = RetrainResult(
        model="dasvit_cifar10",
        test_top1=0.75,
        test_top5=math.nan,
        train_accuracy=0.875,
        num_params=50_449_162,
        seconds=4.0,
    )
    with TensorBoardReport(tmp_path, hparams={"lr": 1e-3}) as report:
        for event in (*epochs, result):
            report(event)
    found = read(tmp_path)
    assert points(found, "loss/train") == [(0, 1.0), (1, 0.0)]
    assert points(found, "lr/weights") == [(0, 1e-3), (1, 1e-3)]
    assert points(found, "hparam/test_top1") == [(2, 0.75)]
    assert points(found, "hparam/num_params") == [(2, 50_449_162)]
    values, metrics = hparams(found)
    assert values == {"model": "dasvit_cifar10", "lr": 1e-3}
    assert "hparam/test_top1" in metrics and "hparam/test_top5" not in metrics  # nan
    assert not found.Tags()["images"]


def test_a_resumed_run_replaces_what_the_interrupted_one_wrote(tmp_path: Path) -> None:
    with TensorBoardReport(tmp_path) as report:
        for epoch in range(4):
            report(search_epoch(epoch))
        report(stage_end(0))
        report(SEARCH_RESULT)
    with TensorBoardReport(tmp_path, start_epoch=2) as report:
        for epoch in (2, 3):
            report(search_epoch(epoch, train_loss=7.0 + epoch))
        report(SEARCH_RESULT)
    found = read(tmp_path)
    assert points(found, "loss/train") == [(0, 2.0), (1, 1.9), (2, 9.0), (3, 10.0)]
    assert points(found, "hparam/gap") == [(4, 0.25)]
    assert [image.step for image in found.Images("result/encoder")] == [4]
    assert [image.step for image in found.Images("encoder")] == [0]


def test_a_run_resumed_after_its_last_epoch_replaces_its_result(tmp_path: Path) -> None:
    for start, events in ((0, [search_epoch(0), SEARCH_RESULT]), (1, [SEARCH_RESULT])):
        with TensorBoardReport(tmp_path, start_epoch=start) as report:
            for event in events:
                report(event)
    found = read(tmp_path)
    assert points(found, "loss/train") == [(0, 2.0)]
    assert points(found, "hparam/gap") == [(1, 0.25)]


def test_a_run_that_starts_anew_hides_the_old_one(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        with TensorBoardReport(tmp_path) as report:
            report(search_epoch(0, train_loss=loss))
    assert points(read(tmp_path), "loss/train") == [(0, 2.0)]


def test_event_files_of_one_run_have_names_in_order(tmp_path: Path) -> None:
    seconds = []
    for start in range(2):
        TensorBoardReport(tmp_path, start_epoch=start).close()
        seconds.append({path.name.split(".")[3] for path in tmp_path.iterdir()})
    assert len(seconds[0]) == 1 and max(seconds[1] - seconds[0]) > max(seconds[0])


def test_events_are_on_disk_before_close(tmp_path: Path) -> None:
    report = TensorBoardReport(tmp_path)
    try:
        report(search_epoch(0))
        assert points(read(tmp_path), "loss/train") == [(0, 2.0)]
    finally:
        report.close()
        report.close()
    assert points(read(tmp_path), "loss/train") == [(0, 2.0)]


def test_figures_leave_pyplot_alone(tmp_path: Path) -> None:
    with TensorBoardReport(tmp_path) as report:
        report(stage_end(0))
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
