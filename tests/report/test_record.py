"""The JSON lines of a run and its result: written at once, read back, torn lines left out."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from support.events import RETRAIN_EPOCH, RETRAIN_RESULT, SEARCH_EPOCH, SEARCH_RESULT, STAGE_END
from support.runs import ENCODER, names_in

from dasvit.report.record import (
    JsonLinesReport,
    load_retrain_result,
    load_search_result,
    read_trace,
    save_result,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def test_a_line_an_epoch(path: Path) -> None:
    report = JsonLinesReport(path)
    assert read_trace(path) == []
    for event in (SEARCH_EPOCH, STAGE_END, RETRAIN_EPOCH, SEARCH_RESULT, RETRAIN_RESULT):
        report(event)
        assert path.read_text().endswith("\n") or event is SEARCH_EPOCH  # on disk at once
    assert path.read_text().count("\n") == 2
    search, retrain = read_trace(path)
    assert search.keys() == {f.name for f in fields(SEARCH_EPOCH)}
    assert (search["val_loss"], search["val_accuracy"]) == (None, 1 / 3)
    assert search["edge_ops"] == [["zero", "msa_h2"]] * 5
    assert retrain["lr"] == 1e-6
    assert "NaN" not in path.read_text()  # not JSON


@pytest.mark.parametrize("start", [0, 2, 3])
def test_a_resumed_run_replaces_what_comes_again(path: Path, start: int) -> None:
    report = JsonLinesReport(path)
    for epoch in range(3):
        report(replace(RETRAIN_EPOCH, epoch=epoch, train_loss=1.0))
    report = JsonLinesReport(path, start_epoch=start)
    assert [row["epoch"] for row in read_trace(path)] == list(range(start))
    for epoch in range(start, 4):
        report(replace(RETRAIN_EPOCH, epoch=epoch, train_loss=2.0))
    rows = read_trace(path)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert [row["train_loss"] for row in rows] == [1.0] * start + [2.0] * (4 - start)
    assert names_in(path.parent) == [path.name]


def test_a_torn_last_line_is_left_out(path: Path) -> None:
    report = JsonLinesReport(path)
    for epoch in range(2):
        report(replace(RETRAIN_EPOCH, epoch=epoch))
    whole = path.read_text()
    first = whole.index("\n") + 1
    for size in range(first + 1, len(whole) - 1, 9):
        path.write_text(whole[:size])
        assert [row["epoch"] for row in read_trace(path)] == [0]
    JsonLinesReport(path, start_epoch=1)(replace(RETRAIN_EPOCH, epoch=1))
    assert path.read_text() == whole


def test_search_result_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    save_result(path, SEARCH_RESULT)
    loaded = load_search_result(path)
    assert loaded == SEARCH_RESULT
    assert loaded.genotype.provenance == SEARCH_RESULT.genotype.provenance
    values = json.loads(path.read_text())
    assert values["gap"] == SEARCH_RESULT.gap == 0.6 - 1 / 7
    assert values["genotype"]["hash"] == ENCODER.canonical_hash
    del values["stages"]  # an earlier version wrote none
    path.write_text(json.dumps(values))
    assert load_search_result(path) == replace(SEARCH_RESULT, stages=[])


def changed(values: dict[str, Any], **changes: Any) -> str:
    return json.dumps({k: v for k, v in (values | changes).items() if v is not ...})


def test_malformed_results_are_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    save_result(path, SEARCH_RESULT)
    search = json.loads(path.read_text())
    cases = [
        (load_search_result, changed(search, seconds=...), "is not a search result"),
        (load_search_result, changed(search, more=1), "is not a search result"),
        (load_search_result, changed(search, genotype={}), "is not a genotype"),
        (load_search_result, "[]", "is not a search result"),
        (load_search_result, json.dumps(search)[:-5], "not valid JSON"),
        (load_retrain_result, json.dumps(search), "is not a retraining result"),
    ]
    for load, content, message in cases:
        path.write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            load(path)
        assert str(path) in str(caught.value)


def test_retrain_result_round_trip(path: Path) -> None:
    """A matrix has a line per row."""
    names = ["[1,  2]", "b"]
    result = replace(RETRAIN_RESULT, confusion=[[8, 2], [1, 3]], class_names=names)
    save_result(path, result)
    assert "    [ 8, 2 ],\n    [ 1, 3 ]\n" in path.read_text()
    assert load_retrain_result(path) == result
