"""Folders of finished retrainings, written as a retraining writes them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dasvit.presets import get_preset
from dasvit.report.events import RetrainResult
from dasvit.report.record import save_result
from dasvit.run.folder import open_folder
from dasvit.run.settings import config_to_dict
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES
from dasvit.training.model_folder import RETRAIN_KIND


def finished(
    folder: Path,
    model: str,
    dataset: str = "cifar10",
    *,
    top1: float = 0.8,
    top5: float = 0.9,
    image_size: int = 224,
    data_dir: str | None = None,
    **changes: Any,
) -> Path:
    """A retraining at the paper's setting unless told otherwise."""
    paper = get_preset("cifar10").retrain
    data = replace(paper.data, dataset=dataset, image_size=image_size, data_dir=data_dir)
    config = replace(paper, data=data, model=model, **changes)
    open_folder(folder, RETRAIN_KIND, config_to_dict(config))
    if model in NAMED_GENOTYPES:
        NAMED_GENOTYPES[model].save(folder / "genotype.json")
    result = RetrainResult(
        model=model, test_top1=top1, test_top5=top5, train_accuracy=0.99, num_params=1, seconds=1.0
    )
    save_result(folder / "result.json", result)
    return folder
