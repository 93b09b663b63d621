"""`python -m tune.report RUN_DIR`, on a folder with the files that trials leave."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from dasvit.cli import parse_command
from dasvit.report.events import RetrainResult, SearchResult
from dasvit.report.record import save_result
from tune.report.__main__ import main
from tune.report.reproduce import retrain_command, search_command

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run_dir(plan, outcome, folder) -> Path:
    """The made-up sweep as trials would have left it, one search unfinished."""
    for trial in outcome.search:
        path = folder.search_dir / trial.name
        path.mkdir(parents=True)
        own = {f.name: getattr(trial, f.name) for f in dataclasses.fields(SearchResult)}
        save_result(path / "result.json", SearchResult(**own))
    for trial in outcome.retrained:
        own = {f.name: getattr(trial, f.name) for f in dataclasses.fields(RetrainResult)}
        save_result(folder.retrain_dir / trial.name / "result.json", RetrainResult(**own))
    runs = [{"command": "python tune/run_search.py --preset digits --num-samples 2"}]
    folder.write({"settings": plan.to_dict(), "lag": 1, "runs": runs})
    return folder.root


def test_everything_is_rebuilt_without_ray(run_dir: Path, outcome) -> None:
    code = (
        "import runpy, sys; sys.modules['ray'] = None; sys.argv[1:] = [sys.argv[1]]; "
        "runpy.run_module('tune.report', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run_dir)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{run_dir / 'report.html'}\n"
    text = (run_dir / "leaderboard.md").read_text()
    assert "3 of 4 searches and 4 of 6 retrainings finished" in text
    best = outcome.ranking[0].hash
    assert (run_dir / "best/model/model.safetensors").read_text() == f"weights of {best}_seed_0"
    page = (run_dir / "report.html").read_text()
    assert "--preset digits" in page and "config_001_seed_1" in page


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "one folder is needed; usage: python -m tune.report RUN_DIR"),
        (["--nix"], "one folder is needed"),
        (["nowhere"], "nowhere holds no sweep"),
        (["empty"], "no trial of this sweep has finished yet"),
        (["other"], "no sweep's record"),
        (["torn"], "malformed settings"),
    ],
)
def test_bad_input_is_one_line(
    argv, message, run_dir: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "other", "torn"):
        Path(name).mkdir()
    Path("empty/sweep.json").write_text((run_dir / "sweep.json").read_text())
    Path("other/sweep.json").write_text("{}")
    Path("torn/sweep.json").write_text('{"schema": "dasvit/sweep/2", "settings": {}, "runs": []}')
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.glob("*/report.html"))


def test_commands_repeat_the_trials(plan, outcome) -> None:
    """What the commands parse to is what the trials computed."""
    data = dataclasses.replace(plan.search.data, augment="shift")
    own = {"stage_layers": (1, 2, 2), "fused": False, "data": data}
    changed = dataclasses.replace(
        plan,
        search=plan.search.replaced(**own),
        retrain=dataclasses.replace(plan.retrain, epochs=9, dim=96),
    )
    drawn = {"token_ratio": 0.1 + 0.2, "xi": 1e-05, "seed": 1}
    trial = dataclasses.replace(outcome.search[1], settings=drawn)
    words = search_command(changed, trial, preset="digits").split()
    assert words[:3] == ["python", "-m", "dasvit"]
    got = parse_command(words[3:]).args
    assert got.preset == "digits"
    assert got.search == changed.search.replaced(**drawn)
    darts = dataclasses.replace(trial, config_index=1, settings={"xi": 0.0, "seed": 1})
    got = parse_command(search_command(changed, darts, preset="digits").split()[3:]).args
    assert got.search == changed.search.replaced(seed=1).plain_darts
    words = retrain_command(changed, "genotypes/0a.json", 3, preset="digits").split()
    got = parse_command(words[3:]).args
    assert got.retrain == dataclasses.replace(changed.retrain, model="genotypes/0a.json", seed=3)
