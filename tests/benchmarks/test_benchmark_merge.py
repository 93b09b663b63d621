"""Results of runs that measured parts, as one."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import merge
from benchmarks.facts import read_results

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture
def whole() -> dict[str, Any]:
    """Measured on a GPU: three stages, two token ratios."""
    return read_results(RESULTS / "search_step_gpu_compiled.json")


@pytest.fixture
def parts(whole: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """As the runs wrote them that it is made of."""
    found = []
    for stage in whole["plan"]["stages"]:
        for ratio in whole["plan"]["ratios"]:
            part = copy.deepcopy(whole) | {"command": f"run {stage} {ratio:g}"}
            part["plan"] |= {"stages": [stage], "ratios": [ratio]}
            part["rows"] = [
                r for r in part["rows"] if (r["stage"], r["token_ratio"]) == (stage, ratio)
            ]
            part["skipped"] = ["projection: a stage's step is missing", f"stage {stage}"]
            del part["data"], part["projection"]
            found.append((f"{stage}_{ratio}.json", part))
    return found


def test_parts_are_the_whole(whole: dict[str, Any], parts: list) -> None:
    found = merge.merge(parts, read_results(RESULTS / "search_step_gpu.json"))
    for name in ("schema", "environment", "device", "plan", "date", "ablation", "data"):
        assert found[name] == whole[name], name
    order = {"key": lambda r: (r["stage"], r["token_ratio"], r["variant"], r["precision"])}
    assert sorted(found["rows"], **order) == sorted(whole["rows"], **order)
    assert json.loads(json.dumps(found["projection"])) == whole["projection"]
    assert found["skipped"] == [f"stage {s}" for s in (1, 1, 2, 2, 3, 3)]
    assert found["command"].startswith("run 1 1 & run 1 0.5 & run 2 1 & ")


def test_from_the_command_line(
    parts: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, facts in parts[:2]:
        (tmp_path / name).write_text(json.dumps(facts))
    out = tmp_path / "deep" / "all.json"
    merge.run([*(str(tmp_path / name) for name, _ in parts[:2]), "--out", str(out)])
    assert capsys.readouterr().out == f"results: {out}\n"
    found = read_results(out)
    assert found["plan"]["ratios"] == [1.0, 0.5]
    assert found["plan"]["stages"] == [1]
    assert "projection" not in found


def test_what_does_not_belong_together(parts: list, whole: dict[str, Any]) -> None:
    name, other = copy.deepcopy(parts[1])
    other["environment"]["git_commit"] = "another"
    with pytest.raises(ValueError, match=r"differs from 1_1.0.json in environment: git_commit"):
        merge.merge([parts[0], (name, other)])
    name, other = copy.deepcopy(parts[1])
    other["plan"]["precision"] = "fp32"
    with pytest.raises(ValueError, match="in plan: precision"):
        merge.merge([parts[0], (name, other)])
    with pytest.raises(ValueError, match=r"again.json and 1_1.0.json both have the row \(1, 1.0"):
        merge.merge([parts[0], ("again.json", parts[0][1])])
    with pytest.raises(ValueError, match="at least two files, but got 1"):
        merge.merge(parts[:1])
    name, other = copy.deepcopy(parts[1])
    other["processes"] = {}
    with pytest.raises(ValueError, match=r"1_0.5.json is of processes at once"):
        merge.merge([parts[0], (name, other)])
    changed = copy.deepcopy(parts)
    for _, other in changed:
        other["environment"]["git_commit"] += "-dirty"
    with pytest.raises(ValueError, match=r"1_1.0.json is of code that differs from its commit"):
        merge.merge(changed)
    with pytest.raises(ValueError, match="hold no projection"):
        merge.merge(parts, parts[0][1])
    with pytest.raises(ValueError, match="a stage's step is missing"):
        merge.merge(parts[:4], whole)


def test_an_evaluation_of_something_else(parts: list, whole: dict[str, Any]) -> None:
    for what, setting, value in (
        ("device", "name", "another GPU"),
        ("environment", "git_commit", "another"),
        ("plan", "precision", "fp32"),
        ("plan", "sizes", {}),
    ):
        other = copy.deepcopy(whole)
        other[what][setting] = value
        with pytest.raises(ValueError, match=f"--evaluation differs from .* in {what}: {setting}"):
            merge.merge(parts, other)
    other = copy.deepcopy(whole)
    other["projection"]["batch_size"] = 128
    with pytest.raises(ValueError, match="a stage's step is missing"):
        merge.merge(parts, other)


def test_counted_rows_have_no_minutes(parts: list, whole: dict[str, Any]) -> None:
    for _, part in parts:
        part["rows"] = [
            {k: v for k, v in row.items() if "seconds" not in k} for row in part["rows"]
        ]
    assert "projection" not in merge.merge(parts)
    with pytest.raises(ValueError, match="a stage's step is missing"):
        merge.merge(parts, whole)


def test_the_search_is_the_evaluations(parts: list, whole: dict[str, Any]) -> None:
    """Of the same ratio, whatever comes first in the files."""
    other = copy.deepcopy(whole)
    other["projection"]["token_ratio"] = 1.0
    found = merge.merge(parts[::-1], other)["projection"]
    assert found["token_ratio"] == 1.0
    assert found["minutes"] > whole["projection"]["minutes"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"schema": "dasvit/roofline/1"}')
    with pytest.raises(ValueError, match=r"other.json does not hold results of search_step.py"):
        merge.run([str(path), str(path), "--out", str(tmp_path / "all.json")])
    with pytest.raises(ValueError, match="there is no file"):
        merge.run([str(path) + "x", str(path), "--out", str(tmp_path / "all.json")])
