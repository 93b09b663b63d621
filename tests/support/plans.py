"""Small searches whose memory several test files plan."""

from support.runs import search_config

from dasvit.search.config import SearchConfig


def plan_config(**changes: object) -> SearchConfig:
    """Wide enough that activations outweigh what every memory is rounded up by."""
    values = {
        "operations": ("identity", "msa_h2", "mlp_r0.5", "mlp_r3"),
        "dim": 48,
        "batch_size": 16,
        "stage_layers": (1, 2),
        "stage_ops": (4, 2),
    }
    return search_config(**values | changes)
