"""The package stands without Ray and Optuna, help without PyTorch, and every export exists."""

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import dasvit
import dasvit.search.loop
from dasvit.cli import COMMANDS

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(dasvit.__path__, "dasvit.")
    if not module.ispkg and module.name != "dasvit.__main__"
)
HEAVY = ("torch", "torchvision", "timm", "matplotlib", "sklearn", "ray", "optuna")


def imported_by(code: str, *packages: str) -> str:
    """Which of these packages a Python process imports that runs the code."""
    code = f"{code}\nimport sys\nprint([p for p in {packages} if p in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_all_of_dasvit_leaves_ray_and_optuna_alone() -> None:
    assert {"dasvit.cli", "dasvit.report.plots", "dasvit.search.loop"} <= set(MODULES)
    code = f"import importlib\nfor name in {MODULES}: importlib.import_module(name)"
    assert imported_by(code, "torch", "ray", "optuna", "tune") == "['torch']"


def test_help_refusals_and_settings_come_without_pytorch() -> None:
    helps = [["--help"], *([name, "--help-all"] for name in COMMANDS)]
    code = f"""
import dasvit
from dasvit.cli import main
from tune.run_search import main as sweep
dasvit.search, dasvit.SearchConfig(), dasvit.RetrainConfig(), dasvit.get_preset("digits")
for run, argv in [(main, a) for a in {helps}] + [(main, ["search", "--xi", "-1"]),
        (main, ["retrain", "--epochz", "1"]), (sweep, ["--help-all"]), (sweep, ["--seeds", "0"])]:
    try:
        run(argv)
    except SystemExit:
        pass
"""
    assert imported_by(code, *HEAVY) == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_exports_exist(name: str) -> None:
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for export in module.__all__:
        assert getattr(module, export) is not None
        assert not export.startswith("_")


def test_public_names() -> None:
    assert set(dasvit.__all__) <= set(dir(dasvit))
    assert all(getattr(dasvit, name) is not None for name in dasvit.__all__)
    with pytest.raises(AttributeError, match="module 'dasvit' has no attribute 'serach'"):
        dasvit.serach  # noqa: B018


def test_search_is_a_function_and_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is imported first: the package binds the name, `dasvit` finds it lazily."""
    calls: list[object] = []
    monkeypatch.setattr(dasvit.search.loop, "search", lambda *a, **k: calls.append((a, k)))
    dasvit.search("config", "out", resume=True)
    monkeypatch.delattr(dasvit, "search")  # as before any import of the package
    dasvit.search("config", "out", resume=True)
    assert calls == [(("config", "out"), {"resume": True})] * 2
    assert dasvit.search.loop is importlib.import_module("dasvit.search.loop")


def test_timm_knows_the_networks_after_one_import() -> None:
    code = "import dasvit.models, timm\nassert timm.is_model('dasvit')"
    assert imported_by(code, "timm", "ray") == "['timm']"


def test_waiting_threads_sleep() -> None:
    """PyTorch reads the policy when it is imported, which is later; one that is set stays."""
    code = (
        "import os, sys, dasvit.__main__ as program\n"
        "program.main = lambda **_: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)\n"
        "program.program()"
    )
    for given, wanted in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        env |= {"PYTHONPATH": str(ROOT)} | given
        found = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert found.stdout.split() == [wanted, "False"]


def test_the_program_has_a_name_of_its_own(tmp_path: Path) -> None:
    """What pip installs as `dasvit` is the function that `python -m dasvit` runs."""
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, name = scripts["dasvit"].split(":")
    code = f"import sys; sys.argv = ['dasvit', 'draw', 'x']; from {module} import {name}; {name}()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: x is neither a shipped genotype")
