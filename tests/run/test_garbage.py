"""Imports that the garbage collector leaves alone."""

import subprocess
import sys

import pytest

IMPORTS = """
import gc
from dasvit.run.garbage import lasting_imports
if {disabled}:
    gc.disable()
with lasting_imports():
    inside = gc.isenabled()
    import json
print(inside, gc.isenabled(), gc.get_freeze_count() > 1000)
"""


@pytest.mark.parametrize("disabled", [False, True])
def test_collector_is_off_inside_and_as_before_after(disabled: bool) -> None:
    code = IMPORTS.format(disabled=disabled)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(not disabled), "True"]
    assert done.stderr == ""
