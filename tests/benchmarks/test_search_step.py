"""`search_step.py` from its command line to the page and pictures of its results."""

import json
from pathlib import Path

import pytest
import torch
from support.benchmark_calls import assert_refused

from benchmarks import render, search_step
from benchmarks.facts import code_sha256, run_facts
from benchmarks.measurement import Measurement


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "quick.json"
    search_step.run(["--device", "cpu", "--quick", "--orders", "1", "--out", str(out)])
    return out


def test_quick_run_and_its_page(results: Path) -> None:
    facts = json.loads(results.read_text(encoding="utf-8"))
    rows = facts["rows"]
    assert len(rows) == 3 * 2 * 2
    assert {row["status"] for row in rows} == {"ok"}
    for row in rows:
        rate = row["useful_flops"] / row["median_seconds"] / row["matmul_rate"]
        assert row["matmul_fraction"] == pytest.approx(rate)
        assert row["images_per_second"] == pytest.approx(8 / row["median_seconds"])
        assert row["peak_bytes"] > 0
    projection = facts["projection"]
    assert projection["minutes"] > projection["minutes_sparse"] > 0
    for took in projection["checkpoint_seconds"].values():
        assert 0 < took["copied"] < 60
        assert 0 < took["written"] < 60
    assert projection["plan_seconds"] > 0
    assert [path.name for path in results.parent.glob("tmp*")] == []
    assert facts["skipped"] == []
    page = render.markdown(facts)
    assert page.count("\n| 1, 4, 1, 0.5 |") == 2
    assert f"{projection['minutes_sparse']:.1f} minutes with one in 10)" in page
    assert [a["token_ratio"] for a in facts["ablation"]] == [0.5, 1.0]
    for ablation in facts["ablation"]:
        assert len(ablation["ways"]) >= 8
        for name in ablation["ways"]:
            assert f"\n| {name} |" in page
    render.main([str(results)])
    assert all(results.with_suffix(end).stat().st_size > 0 for end in (".md", ".png", ".svg"))


def test_the_page_says_what_did_not_run(results: Path) -> None:
    facts = json.loads(results.read_text(encoding="utf-8"))
    facts["rows"][1] = {k: facts["rows"][1][k] for k in (*asdict_keys(), "variant", "precision")}
    facts["rows"][1]["status"] = "oom"
    facts["skipped"] = ["stage 9"]
    page = render.markdown(facts)
    assert "| oom |" in page
    assert "stage 9" in page
    assert render.figure(facts).get_axes()


def test_the_page_names_what_a_captured_step_keeps(results: Path) -> None:
    facts = json.loads(results.read_text(encoding="utf-8"))
    ours = next(row for row in facts["rows"] if row["variant"] == "ours")
    before = render.markdown(facts)
    ours["held_bytes"] = ours["peak_bytes"] // 2
    assert render.markdown(facts) == before
    ours["held_bytes"] = 4321 * 2**20
    assert "| 4321 |" in render.markdown(facts)
    facts["plan"]["cuda_graph"] = True
    assert "before its capture" in render.markdown(facts)  # not all rows say it
    for row in facts["rows"]:
        row["held_bytes"] = 0
    assert "before its capture" not in render.markdown(facts)


def test_the_page_says_that_the_code_was_changed(results: Path) -> None:
    facts = json.loads(results.read_text(encoding="utf-8"))
    whole = "0123456789" * 4
    for commit, shown in ((whole, "0123456,"), (f"{whole}-dirty", "0123456-dirty,")):
        facts["environment"]["git_commit"] = commit
        assert f"commit {shown}" in render.markdown(facts)


def test_a_commit_named_by_hand_is_marked(results: Path) -> None:
    facts = json.loads(results.read_text(encoding="utf-8"))
    named = run_facts("", "search_step.py", [], torch.device("cpu"), commit="0123456789")
    assert "commit 0123456 (named by hand)," in render.markdown(facts | named)
    for commit in (None, "0123456789" * 4):
        facts["environment"]["git_commit"] = commit
        assert "named" not in render.markdown(facts)


def test_the_digest_tells_code_apart(results: Path, tmp_path: Path) -> None:
    facts = json.loads(results.read_text(encoding="utf-8"))
    assert facts["environment"]["code_sha256"] == code_sha256()
    for part in ("benchmarks", "dasvit/config"):
        (tmp_path / part).mkdir(parents=True)
    file = tmp_path / "dasvit/config/a.py"
    file.write_text("a = 1")
    found = [code_sha256(tmp_path)]
    file.write_text("a = 2")
    found.append(code_sha256(tmp_path))
    file.rename(file.with_name("b.py"))
    found.append(code_sha256(tmp_path))
    assert len(set(found)) == 3
    file.with_name("b.txt").write_text("notes")
    assert code_sha256(tmp_path) == found[-1]


@pytest.mark.parametrize("when", ["before it", "within it"])
def test_the_projection_keeps_to_the_budget(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Measurement.projection

    def late(self: Measurement) -> None:
        def evaluation_seconds(*args: object, **options: object) -> float:
            self._end = 0.0
            return 1e-3

        if when == "before it":
            self._end = 0.0
        monkeypatch.setattr("benchmarks.measurement.evaluation_seconds", evaluation_seconds)
        project(self)

    monkeypatch.setattr(Measurement, "projection", late)
    out = tmp_path / "late.json"
    search_step.run(["--device", "cpu", "--quick", "--orders", "1", "--out", str(out)])
    facts = json.loads(out.read_text(encoding="utf-8"))
    assert ("projection" in facts) == (when == "within it")
    left_out = [s for s in facts["skipped"] if s.startswith("projection")]
    assert left_out == [
        "projection: no time left"
        if when == "before it"
        else "projection: checkpoints and the plan"
    ]
    assert facts["ablation"] == []
    if when == "within it":
        assert "minutes_sparse" not in facts["projection"]
        assert "without checkpoints" in render.markdown(facts)


def asdict_keys() -> tuple[str, ...]:
    return ("stage", "token_ratio", "batch_size", "order")


def test_no_time_is_recorded_as_skipped(tmp_path: Path) -> None:
    out = tmp_path / "none.json"
    search_step.run(["--device", "cpu", "--quick", "--budget-seconds", "0", "--out", str(out)])
    facts = json.loads(out.read_text(encoding="utf-8"))
    assert facts["rows"] == []
    assert len([s for s in facts["skipped"] if s.startswith("stage")]) == 6
    assert render.markdown(facts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "4"], "stages must be some of"),
        (["--ratios", "0"], "token_ratio"),
        (["--batches", "0"], "batches must be positive"),
        (["--dim", "50"], "multiple of 48"),
        (["--precision", "fp8"], "fp8"),
        (["--device", "cpu", "--cuda-graph"], "cuda_graph needs a GPU"),
        (["--patches", "-1"], "dim and patches must be >= 0"),
        (["--device", "tpu9"], "device must be"),
        (["--repeats", "1"], "at least 3"),
        (["--device", "cpu", "--threads", "0"], "threads must be positive, but got 0"),
        (["--device", "cpu", "--out", "."], "out must be a file, but . is a folder"),
        (["--device", "cpu", "--budget-seconds", "-1"], "budget_seconds must be >= 0"),
        (
            ["--device", "cpu", "--budget-seconds", "nan"],
            "budget_seconds must be >= 0, but got nan",
        ),
        (["--device", "cpu", "--group-seconds", "-1"], "group_seconds must be >= 0"),
        (["--device", "cpu", "--stages", "1", "1"], "stages must name each once, but got (1, 1)"),
        (["--device", "cpu", "--batches", "4", "4"], "batches must name each once"),
        (["--device", "cpu", "--ratios", "1", "1"], "ratios must name each once"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_refused(search_step.main, arguments, message, monkeypatch, capsys)


def test_render_refuses_other_files(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="does not hold results"):
        render.main([str(other)])
    with pytest.raises(ValueError, match="there is no file"):
        render.main([str(tmp_path / "none.json")])
