"""The package stands without Ray and Optuna, and every module names what it exports."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import dasvit

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    f"dasvit.{module.name}"
    for module in pkgutil.iter_modules(dasvit.__path__)
    if module.name != "__main__"
)


def test_all_of_dasvit_leaves_ray_and_optuna_alone() -> None:
    assert {
        "dasvit.cli",
        "dasvit.report.plots",
        "dasvit.search.loop",
        "dasvit.report.tensorboard",
    } <= set(MODULES)
    code = f"""
import importlib, sys
for name in {MODULES}:
    importlib.import_module(name)
found = [m for m in sys.modules if m.partition(".")[0] in ("ray", "optuna", "tune")]
print(len(sys.modules), found)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded, _, found = done.stdout.strip().partition(" ")
    assert int(loaded) > 500
    assert found == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_exports_exist(name: str) -> None:
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__) > 0
    for export in module.__all__:
        assert getattr(module, export) is not None
        assert not export.startswith("_")
