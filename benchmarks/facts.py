"""What stands at the head of a file of results."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dasvit.run.environment import environment
from dasvit.run.files import read_json

__all__ = ["STEPS", "code_sha256", "memory_of", "read_results", "run_facts"]

STEPS = "dasvit/search_step/1"
"""The schema of `search_step.py`'s results."""


def read_results(path: Path) -> dict[str, Any]:
    """A results file of `search_step.py`.

    Raises:
        ValueError: it is missing, or something else.
    """
    facts = read_json(path, "results")
    if not isinstance(facts, dict) or facts.get("schema") != STEPS:
        raise ValueError(f"{path} does not hold results of search_step.py ({STEPS})")
    missing = {"plan", "environment", "device", "rows", "ablation", "skipped"} - set(facts)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; was it cut off?")
    return facts


def memory_of(row: dict[str, Any]) -> int:
    """Bytes that a measured step needs: its peak, or what it keeps from step to step where that is
    more (a captured step keeps what its kernels work in; its peak is of a step before)."""
    return max(row["peak_bytes"], row.get("held_bytes", 0))


def run_facts(
    schema: str, script: str, argv: Sequence[str], device: torch.device, *, commit: str = ""
) -> dict[str, Any]:
    """The command, versions, the commit and the device.

    Args:
        commit: the one measured, where git is not at hand.
    """
    machine = environment() | {"code_sha256": code_sha256()}
    if commit:
        machine["git_commit"] = commit
    return {
        "schema": schema,
        "command": " ".join([f"python benchmarks/{script}", *argv]),
        "environment": machine,
        "device": _device_facts(device),
    }


def code_sha256(root: Path = Path(__file__).parents[1]) -> str:
    """Of the Python files that are measured. Shows that a commit named by hand is the one: with it
    checked out, `python -c "from benchmarks.facts import *; print(code_sha256())"` prints the same.
    """
    digest = hashlib.sha256()
    for path in sorted(p for part in ("benchmarks", "dasvit") for p in (root / part).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _device_facts(device: torch.device) -> dict[str, Any]:
    """What the times depend on besides versions."""
    facts: dict[str, Any] = {
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"name": properties.name, "memory_bytes": properties.total_memory}
    return facts
