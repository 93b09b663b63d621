"""What of a search can be refused before it begins."""

import torch

from dasvit.costs import check_num_params
from dasvit.data.datasets import check_data
from dasvit.run.files import first_line
from dasvit.run.plugins import load_plugins
from dasvit.search.config import SearchConfig
from dasvit.search.model import build_search_model

__all__ = ["check_search", "check_supernet"]


def check_search(config: SearchConfig) -> None:
    """Everything that can be refused before training: operations, width, size, data set.

    Raises:
        ValueError: one line with the value and the remedy.
    """
    check_data(config.data)
    check_supernet(config)


def check_supernet(config: SearchConfig) -> None:
    """The part of `check_search` that needs no data: operations, width, size.

    Raises:
        ValueError: one line with the value and the remedy.
    """
    load_plugins(config.plugins)
    config.space.check(draws_nothing=config.compile or config.cuda_graph)
    size = config.data.image_size
    try:
        with torch.device("meta"), torch.no_grad():
            model = build_search_model(config, num_layers=1, in_channels=3, num_classes=2)
            model(torch.empty(2, 3, size, size))
    except RuntimeError as error:  # too large to count, or a registered operation's shapes
        raise ValueError(
            f"the operations do not run at dim={config.space.dim} ({first_line(error)})"
        ) from None
    layer = sum(p.numel() for p in model.supernet.cells[0].parameters())
    total = sum(p.numel() for p in model.parameters())
    check_num_params(total + layer * (max(s.num_layers for s in config.stages) - 1))
