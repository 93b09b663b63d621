"""Devices by name, what a result was made with, and imports that are not collected."""

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import dasvit
from dasvit.run.environment import check_compiler, environment, resolve_device


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ValueError, match=f"device '{name}' is not there: PyTorch sees 0 GPUs"):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="'cuda:2' is not there: PyTorch sees 2 GPUs"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["", "cuda:x", "mps"])
def test_other_devices_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"device must be auto, cpu or cuda\[:N\], but got") as e:
        resolve_device(name)
    assert repr(name) in str(e.value)


def test_environment() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["dasvit"] == dasvit.__version__
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == version("torch")
    assert set(found["packages"]) >= {"ray", "optuna", "numpy"}  # None where not installed
    assert found["cpu_count"] >= 1
    assert len(found["gpus"]) == torch.cuda.device_count()


def git(folder: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *args],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_commit_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit of the package's own checkout, marked where files differ; of no other."""
    package = tmp_path / "dasvit"
    package.mkdir()
    file = package / "__init__.py"
    file.write_text("")
    monkeypatch.setattr(dasvit, "__file__", str(file))
    assert environment()["git_commit"] is None  # no checkout at all
    git(tmp_path, "init", "--quiet")
    (tmp_path / "other.txt").write_text("text")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "--quiet", "-m", "other")
    assert environment()["git_commit"] is None  # installed inside someone else's checkout
    git(tmp_path, "add", "dasvit")
    git(tmp_path, "commit", "--quiet", "-m", "package")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert len(commit) == 40
    assert environment()["git_commit"] == commit
    file.write_text("changed = True\n")
    assert environment()["git_commit"] == f"{commit}-dirty"


def test_no_git_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment()["git_commit"] is None


@pytest.mark.parametrize(
    ("device", "variable", "there", "message"),
    [
        ("cpu", "CXX", "", r"a compiler \(g\+\+ or clang\+\+\).* name it in CXX"),
        ("cuda", "CC", "", r"a compiler \(gcc or clang\).* name it in CC"),
        ("cpu", "CXX", "no-such-compiler", r"a compiler \(no-such-compiler\)"),
    ],
)
def test_a_missing_compiler_is_found_before_the_first_step(
    device: str,
    variable: str,
    there: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv(variable, there)
    with pytest.raises(ValueError, match=message):
        check_compiler(torch.device(device))
    (tmp_path / "my-compiler").write_text("")
    (tmp_path / "my-compiler").chmod(0o755)
    monkeypatch.setenv(variable, "my-compiler")
    check_compiler(torch.device(device))


def test_a_gpu_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install triton"):
        check_compiler(torch.device("cuda"))


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
