"""`python -m tune.report RUN_DIR`, on a folder with the files that trials leave."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from dasvit.cli import parse_command
from dasvit.report.events import RetrainResult, SearchResult
from dasvit.report.record import save_result
from tune.plan import Plan
from tune.report.__main__ import main
from tune.report.outcome import Outcome
from tune.report.reproduce import retrain_command, search_command
from tune.store import ResultFolder

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run_dir(plan: Plan, outcome: Outcome, folder: ResultFolder) -> Path:
    """The made-up sweep as trials would have left it, one search unfinished."""
    for trials, where, kind in (
        (outcome.search, folder.search_dir, SearchResult),
        (outcome.retrained, folder.retrain_dir, RetrainResult),
    ):
        for trial in trials:
            (where / trial.name).mkdir(parents=True, exist_ok=True)
            own = {f.name: getattr(trial, f.name) for f in fields(kind)}
            save_result(where / trial.name / "result.json", kind(**own))
    runs = [{"command": "python tune/run_search.py --preset digits --num-samples 2"}]
    folder.write({"settings": plan.to_dict(), "lag": 1, "runs": runs})
    return folder.root


def test_everything_is_rebuilt_without_ray(run_dir: Path, outcome: Outcome) -> None:
    code = (
        "import runpy, sys; sys.modules['ray'] = None; sys.argv[1:] = [sys.argv[1]]; "
        "runpy.run_module('tune.report', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{run_dir / 'report.html'}\n"
    text = (run_dir / "leaderboard.md").read_text()
    assert "3 of 4 searches and 4 of 6 retrainings finished" in text
    best = outcome.ranking[0].hash
    assert (run_dir / "best/model/model.safetensors").read_text() == f"weights of {best}_seed_0"
    page = (run_dir / "report.html").read_text()
    assert "--preset digits" in page and "config_001_seed_1" in page


def test_bad_input_is_one_line(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ResultFolder(tmp_path)

    def refused(*argv: str) -> str:
        assert main(argv or [str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert not (tmp_path / "report.html").exists()
        return error

    assert "one folder is needed" in refused("--nix")
    assert "holds no sweep" in refused()
    folder.sweep_file.write_text("{}")
    assert "no sweep's record" in refused()
    folder.write({"settings": {}})
    assert "malformed settings" in refused()
    folder.write({"settings": plan.to_dict(), "lag": 1, "runs": []})
    assert "no trial of this sweep has finished yet" in refused()


def test_commands_repeat_the_trials(plan: Plan, outcome: Outcome) -> None:
    """What the commands parse to is what the trials computed."""
    data = replace(plan.search.data, augment="shift")
    own = {"stage_layers": (1, 2, 2), "fused": False, "data": data}
    changed = replace(
        plan,
        search=plan.search.replaced(**own),
        retrain=replace(plan.retrain, epochs=9, dim=96),
    )
    drawn = {"token_ratio": 0.1 + 0.2, "xi": 1e-05, "seed": 1}
    trial = replace(outcome.search[1], settings=drawn)
    words = search_command(changed, trial, preset="digits").split()
    assert words[:3] == ["python", "-m", "dasvit"]
    got = parse_command(words[3:]).args
    assert (got.preset, got.search) == ("digits", changed.search.replaced(**drawn))
    darts = replace(trial, config_index=1, settings={"xi": 0.0, "seed": 1})
    got = parse_command(search_command(changed, darts, preset="digits").split()[3:]).args
    assert got.search == changed.search.replaced(seed=1).plain_darts
    words = retrain_command(changed, "genotypes/0a.json", 3, preset="digits").split()
    got = parse_command(words[3:]).args
    assert got.retrain == replace(changed.retrain, model="genotypes/0a.json", seed=3)
