"""What stands at the head of a file of results."""

from collections.abc import Sequence
from typing import Any

import torch

from dasvit.environment import environment

__all__ = ["run_facts"]


def run_facts(
    schema: str, script: str, argv: Sequence[str], device: torch.device, *, commit: str = ""
) -> dict[str, Any]:
    """The command, versions, the commit and the device.

    Args:
        commit: the one measured, where git is not at hand.
    """
    machine = environment()
    if commit:
        machine["git_commit"] = commit
    return {
        "schema": schema,
        "command": " ".join([f"python benchmarks/{script}", *argv]),
        "environment": machine,
        "device": _device_facts(device),
    }


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
