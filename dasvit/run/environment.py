"""What a result was made with: versions, commit, machine."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import dasvit

__all__ = [
    "check_compiler",
    "check_cuda_graph",
    "environment",
    "peak_memory",
    "reset_peak_memory",
    "resolve_device",
]

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "ray", "optuna", "scikit-learn")


def resolve_device(device: str) -> torch.device:
    """A usable device; "auto" is the GPU if there is one.

    Raises:
        ValueError: a malformed name, or a GPU that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu or cuda[:N], but got {device!r}") from None
    if resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda[:N], but got {device!r}")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not there: PyTorch sees {torch.cuda.device_count()} GPUs; "
            "use --device cpu"
        )
    return resolved


def check_compiler(device: torch.device) -> None:
    """Refuse `torch.compile` where what it needs is missing: found out here, not in the first step.

    Raises:
        ValueError: no C++ compiler for a CPU; no Triton or no C compiler for a GPU.
    """
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError("compile needs the Python package triton on a GPU; pip install triton")
    names = ("CXX", "g++", "clang++") if device.type == "cpu" else ("CC", "gcc", "clang")
    variable, *programs = names
    programs = [os.environ[variable]] if os.environ.get(variable) else programs
    if not any(map(shutil.which, programs)):
        raise ValueError(
            f"compile needs a compiler ({' or '.join(programs)}), which is not there: install one "
            f"and name it in {variable}, or leave compile out"
        )


def check_cuda_graph(device: torch.device) -> None:
    """Refuse CUDA graphs where there is no GPU.

    Raises:
        ValueError: the device is a CPU.
    """
    if device.type != "cuda":
        raise ValueError(
            f"cuda_graph needs a GPU, but the device is {device}; leave cuda_graph out there"
        )


def _git_commit() -> str | None:
    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(Path(dasvit.__file__).parent), *args],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie in another project's checkout: its commit is not ours.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "-uno") else commit


def environment() -> dict[str, Any]:
    """Versions, git commit ("-dirty" if files differ), platform, cores, GPUs; JSON-ready."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "dasvit": dasvit.__version__,
        "git_commit": _git_commit(),
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": versions,
    }


def reset_peak_memory(device: torch.device) -> None:
    """Forget what this process held before, for `peak_memory`. Away from Linux a process's memory
    counts from its start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """The most bytes held at once: on a GPU by PyTorch's tensors, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
