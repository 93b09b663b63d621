"""TensorBoard event files, read back: tags, steps, values, the HParams tab, resuming."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.events import RETRAIN_EPOCH, RETRAIN_RESULT, SEARCH_EPOCH, STAGE_END
from support.events import SEARCH_RESULT as RESULT
from support.runs import retrain_config, search_config
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from dasvit.report.events import Event, SearchEpoch, StageEnd, scalars
from dasvit.report.tensorboard import TensorBoardReport
from dasvit.run.settings import config_to_dict
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES

GENOTYPE = NAMED_GENOTYPES["dasvit_cifar10"]
EDGE_OPS = (("zero", "identity", "msa_h2"),) * 5
WEIGHTS = ((0.5, 0.3, 0.2), (0.25, 0.25, 0.5), (0.1, 0.2, 0.7), (0.4, 0.4, 0.2), (0.6, 0.1, 0.3))
PRUNED = {
    "edge_ops": (("zero", "identity"), ("identity", "msa_h2")) + (("zero", "msa_h2"),) * 3,
    "weights": ((0.5, 0.5),) * 5,
}
RESULT = dataclasses.replace(
    RESULT,
    genotype=GENOTYPE,
    supernet_accuracy=0.75,
    discretised_accuracy=0.5,
    settings={"xi": 0.25, "token_ratio": 0.5},
)


def search_epoch(epoch: int, **changes: Any) -> SearchEpoch:
    own = {"train_loss": 2.0 - 0.1 * epoch, "weights": WEIGHTS, "edge_ops": EDGE_OPS}
    return dataclasses.replace(SEARCH_EPOCH, epoch=epoch, **own | changes)


def stage_end(stage: int, **changes: Any) -> StageEnd:
    own = {"epoch": 2 * stage + 1, "weights": WEIGHTS, "edge_ops": EDGE_OPS, "genotype": GENOTYPE}
    return dataclasses.replace(STAGE_END, stage=stage, **own | changes)


def write(folder: Path, events: Iterable[Event], **settings: Any) -> EventAccumulator:
    """The events, written as by one process, and what is in the folder then."""
    report = TensorBoardReport(folder, settings)
    for event in events:
        report(event)
    report.close()
    return read(folder)


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def points(accumulator: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(e.step, pytest.approx(e.value)) for e in accumulator.Scalars(tag)]


def text(accumulator: EventAccumulator, tag: str) -> list[tuple[int, str]]:
    events = accumulator.Tensors(f"{tag}/text_summary")
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in events]


def hparams_tab(log_dir: Path) -> dict[str, tuple[dict[str, Any], dict[str, float]]]:
    """What the tab shows as rows: settings and scores, by the run's folder."""
    multiplexer = EventMultiplexer(tensor_size_guidance={"scalars": 0, "hparams": 0})
    multiplexer.AddRunsFromDirectory(str(log_dir))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(log_dir))
    context = Context(TBContext(data_provider=provider))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=100, allowed_statuses=list(api_pb2.Status.values())
    )
    response = Handler(RequestContext(), context, "", request).run()
    tab = {}
    for group in response.session_groups:
        (session,) = group.sessions
        assert session.status == api_pb2.STATUS_SUCCESS
        settings = {name: getattr(v, v.WhichOneof("kind")) for name, v in group.hparams.items()}
        tab[session.name] = (settings, {m.name.tag: m.value for m in group.metric_values})
    return tab


def test_search_epochs_write_all_scalars_and_weights(tmp_path: Path) -> None:
    events = [search_epoch(0), search_epoch(1, val_loss=1.5), search_epoch(2, **PRUNED)]
    found = write(tmp_path, events)
    weights = {f"weights/{name}" for name in EDGE_OPS[0]}
    assert set(found.Tags()["scalars"]) == weights | set(scalars(events[0]))
    for name, value in scalars(events[1]).items():
        assert (1, value) in points(found, name), name
    assert points(found, "loss/train") == [(0, 2.0), (1, 1.9), (2, 1.8)]
    assert points(found, "loss/val") == [(1, 1.5)]  # nan in the others
    # Means over the five edges; after the pruning three have it, with half of the weight.
    assert points(found, "weights/zero") == [(0, 0.37), (1, 0.37), (2, 0.4)]
    # The Custom Scalars tab: one chart of all operations.
    (event,) = found.Tensors("custom_scalars__config__")
    (category,) = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]).category
    (chart,) = category.chart
    shown = {t for t in found.Tags()["scalars"] for p in chart.multiline.tag if re.match(p, t)}
    assert shown == weights


def test_stages_write_figures_and_genotypes(tmp_path: Path) -> None:
    ends = [stage_end(0, accuracy_after=0.25), stage_end(1, **PRUNED)]
    found = write(tmp_path, [*map(search_epoch, (0, 1)), *ends, RESULT])
    assert set(found.Tags()["images"]) == {"operation_weights", "encoder"}
    for tag in found.Tags()["images"]:
        images = found.Images(tag)
        assert [image.step for image in images] == [0, 1]
        assert all(image.encoded_image_string.startswith(b"\x89PNG") for image in images)
    # The scores at the change are one point, where the next stage begins.
    assert points(found, "stage/accuracy_before") == [(2, 0.75)]
    assert points(found, "stage/accuracy_after") == [(2, 0.25)]
    assert points(found, "accuracy/largest_class") == [(2, 0.1)] * 2
    # Later heat maps keep the columns of the first, so the images are of one size.
    assert len({image.width for image in found.Images("operation_weights")}) == 1
    (at, first), _ = text(found, "genotype")
    assert at == 0
    assert "o_1 = mlp_r0.5(e_{k-2}) + msa_h8(o_0)" in first
    assert GENOTYPE.canonical_hash in first


def test_the_hparams_tab_shows_what_tells_the_runs_apart(tmp_path: Path) -> None:
    expected = {}
    for xi in (0.0, 0.25):
        config, folder = search_config(xi=xi), tmp_path / "search" / f"xi_{xi}"
        changes = {"discretised_accuracy": xi / 2, "settings": config.outer_settings}
        result = dataclasses.replace(RESULT, **changes)
        write(folder, [search_epoch(0), result], **config_to_dict(config))
        scores = {"accuracy/discretised": xi / 2, "accuracy/val": 1 / 3}
        own = {"method": "dasvit"} | config.outer_settings
        expected[folder.name] = (own, pytest.approx(scores))
    assert hparams_tab(tmp_path / "search") == expected
    expected = {}
    for seed in (0, 1):
        config, folder = retrain_config(seed=seed), tmp_path / "retrain" / f"seed_{seed}"
        result = dataclasses.replace(RETRAIN_RESULT, test_top1=seed / 4)
        write(folder, [RETRAIN_EPOCH, result], **config_to_dict(config))
        scores = {"accuracy/test": seed / 4}
        expected[folder.name] = ({"model": "vit", "seed": seed}, pytest.approx(scores))
        assert len(list(folder.glob("events*"))) == 1  # no run below
    assert hparams_tab(tmp_path / "retrain") == expected


@pytest.mark.parametrize("restarted", [False, True])
def test_the_score_of_a_search_is_a_metric_too(tmp_path: Path, restarted: bool) -> None:
    settings = {"method": {"stage_layers": [1], "stage_epochs": 2}}
    report = TensorBoardReport(tmp_path, settings, scored=True)
    for event in (search_epoch(0), search_epoch(1), RESULT):
        report(event)
    if restarted:  # a kill during the short training
        report.close()
        report = TensorBoardReport(tmp_path, settings, scored=True)
    report.score(0.875)
    report.close()
    assert points(read(tmp_path), "accuracy/trained") == [(2, 0.875)]
    ((_, metrics),) = hparams_tab(tmp_path).values()
    assert metrics.keys() == {"accuracy/trained", "accuracy/discretised", "accuracy/val"}
    assert (metrics["accuracy/trained"], metrics["accuracy/discretised"]) == (0.875, 0.5)


def test_images_that_were_held_out_are_no_test_images(tmp_path: Path) -> None:
    result = dataclasses.replace(RETRAIN_RESULT, balanced_accuracy=0.25, largest_class=0.625)
    found = write(tmp_path, [result], epochs=2, seed=0, held_out=0.5)
    assert points(found, "accuracy/held_out") == [(2, RETRAIN_RESULT.test_top1)]
    assert points(found, "accuracy/balanced") == [(2, 0.25)]
    assert points(found, "accuracy/largest_class") == [(2, 0.625)]
    assert "accuracy/test" not in found.Tags()["scalars"]


def test_all_settings_are_one_card(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"layers": [2, 4], "plugins": [], "seed": 3, "epochs": 2}
    settings["data"] = {"dataset": "digits", "url": None}
    model = dataclasses.replace(RETRAIN_RESULT, model="genotypes/0a1b.json")
    found = write(tmp_path, [RETRAIN_EPOCH], **settings)
    found = write(tmp_path, [model], **settings)  # resumed after its last epoch
    ((step, table),) = text(found, "settings")
    assert step == 0
    assert len(table.splitlines()) == 2 + 6
    for row in ("| `layers` | `2, 4` |", "| `data.url` | `None` |", "| `plugins` |  |"):
        assert row in table
    assert points(found, "lr/weights") == [(0, RETRAIN_EPOCH.lr)] and not found.Tags()["images"]
    assert points(found, "accuracy/test") == [(2, RETRAIN_RESULT.test_top1)]
    assert hparams_tab(tmp_path)["."][0] == {"model": "0a1b", "seed": 3}


def test_a_resumed_run_replaces_what_the_interrupted_one_wrote(tmp_path: Path) -> None:
    write(tmp_path, [*map(search_epoch, range(4)), stage_end(0, accuracy_after=0.25), RESULT])
    found = write(tmp_path, [*(search_epoch(e, train_loss=7.0 + e) for e in (2, 3)), RESULT])
    assert points(found, "loss/train") == [(0, 2.0), (1, 1.9), (2, 9.0), (3, 10.0)]
    assert points(found, "accuracy/discretised") == [(4, 0.5)]
    assert [image.step for image in found.Images("encoder")] == [0]
    # Resumed after its last epoch: all epochs are kept, the result is replaced.
    found = write(tmp_path, [stage_end(1, accuracy_after=0.5), RESULT])
    assert points(found, "stage/accuracy_after") == [(4, 0.5)]
    assert len(points(found, "loss/train")) == 4
    assert points(found, "accuracy/discretised") == [(4, 0.5)]
    # Resumed with nothing left but the result.
    found = write(tmp_path, [RESULT], method={"stage_layers": [1, 2], "stage_epochs": 2})
    assert len(points(found, "loss/train")) == 4
    assert points(found, "accuracy/discretised") == [(4, 0.5)]
    # Begun anew: everything is hidden.
    assert points(write(tmp_path, [search_epoch(0)]), "loss/train") == [(0, 2.0)]
    # The files are read in the order of their names, which begin with the second.
    seconds = [path.name.split(".")[3] for path in tmp_path.iterdir()]
    assert len(set(seconds)) == 5


def test_events_are_on_disk_before_close(tmp_path: Path) -> None:
    report = TensorBoardReport(tmp_path, {})
    assert not list(tmp_path.iterdir())  # until the first event, it may be another run's folder
    report(search_epoch(0))
    assert points(read(tmp_path), "loss/train") == [(0, 2.0)]
    for _ in range(2):
        report.close()
