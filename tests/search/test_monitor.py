"""The Hessian's largest eigenvalue, and the early stop that goes by it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.runs import CrashError, crash_after_saving, search_config
from support.search_runs import (
    SIX,
    assert_same_run,
    make_batch,
    make_model,
    make_quick,
    model_config,
)
from torch import Tensor
from torch.testing import assert_close

import dasvit.search.loop
from dasvit.methods import DARTS, GDAS, PCDARTS
from dasvit.report.events import SearchEpoch
from dasvit.run.settings import SettingError
from dasvit.search.config import SearchConfig
from dasvit.search.loop import search
from dasvit.search.monitor import Steadiness, dominant_eigenvalue, epoch_before_sharpness


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", [DARTS, PCDARTS])
def test_the_eigenvalue_is_that_of_the_hessian(kind: type[DARTS]) -> None:
    """Of all architecture parameters together, by double backward; the model is as before."""
    config = model_config(fused=True)
    method = kind.like(config.method)
    if isinstance(method, PCDARTS):
        method = PCDARTS(channel_parts=2)
    model, (images, labels) = make_model(config.replaced(method=method)), make_batch(8)
    names, values = zip(*model.named_arch().items(), strict=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def loss(*arch: Tensor) -> Tensor:
        given = dict(zip(names, arch, strict=True))
        weights = model.method.weights(given, {}, model.t)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return F.cross_entropy(model(images, weights), labels)

    blocks = torch.autograd.functional.hessian(loss, tuple(value.detach() for value in values))
    sizes = [value.numel() for value in values]
    whole = torch.cat(
        [
            torch.cat([blocks[i][j].reshape(sizes[i], sizes[j]) for j in range(len(sizes))], dim=1)
            for i in range(len(sizes))
        ]
    )
    largest = torch.linalg.eigvalsh(whole)[-1]
    assert largest > 1e-4
    assert dominant_eigenvalue(model, (images, labels)) == pytest.approx(largest.item(), rel=0.02)
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("eigenvalues", "epoch"),
    [
        ([], None),
        ([1.0] * 9, None),
        ([1.0] * 20, None),
        ([1.0] * 5 + [1.3] * 5, None),
        ([1.0] * 5 + [1.4] * 5, 4),
        ([9.0] * 3 + [1.0] * 5 + [1.4] * 5, 7),
        ([0.0] * 10, None),
        ([-1.0] * 5 + [-0.1] * 5, None),
        ([-0.1] * 5 + [0.1] * 5, 4),
    ],
    ids=str,
)
def test_when_a_minimum_is_sharp(eigenvalues: list[float], epoch: int | None) -> None:
    assert epoch_before_sharpness(eigenvalues) == epoch


def test_a_search_goes_back_before_the_sharp_minimum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the scores of that epoch, also where it is killed on the way; curves show the value."""
    make_quick(monkeypatch)
    monkeypatch.setattr(
        dasvit.search.loop,
        "dominant_eigenvalue",
        lambda model, batch: 1.0 + float(model.t > 0.5),
    )
    config = search_config(
        operations=SIX, stage_layers=(1,), stage_ops=(6,), dim=8, stage_epochs=16
    )
    method = DARTS(stage_layers=(1,), stage_epochs=16, alpha_lr=0.05)
    config = config.replaced(method=method, monitor="hessian")
    told: list[Any] = []
    found = search(config, tmp_path / "whole", report=told.append)
    epochs = [event for event in told if isinstance(event, SearchEpoch)]
    seen = [event.figures["hessian/eigenvalue"] for event in epochs]
    assert found.stopped is not None and len(epochs) < 16
    back = epoch_before_sharpness(seen)
    assert back == len(epochs) - 6
    assert found.stopped == (f"before the Hessian's eigenvalue grew, in epoch {back + 1} of alpha")
    scores = torch.tensor(epochs[back].weights, dtype=torch.float64)
    assert found.genotype == config.space.derive(scores, epochs[back].edge_ops)
    with monkeypatch.context() as patch:
        crash_after_saving(patch, epoch=6)
        with pytest.raises(CrashError):
            search(config, tmp_path / "killed")
    search(config, tmp_path / "killed", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    for settings in ({"monitor": "hessian"}, {"select": "perturbation"}):
        with pytest.raises(SettingError, match="method gdas draws single operations"):
            SearchConfig().replaced(method=GDAS(), **settings)


def test_steadiness_tells_a_direction_from_noise() -> None:
    """Of 400 steps: gradients around 0, around a tenth of their deviation, and all alike."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 300, generator=draw)
    for shift, wanted in ((0.0, 1.0), (0.1, (1 + 400 * 0.01) ** 0.5), (1.0, (1 + 400) ** 0.5)):
        steadiness = Steadiness()
        for row in noise + shift:
            steadiness.add([row[:200].view(40, 5), row[200:]])
        assert steadiness.value() == pytest.approx(wanted, rel=0.15)
    nothing = Steadiness()
    nothing.add([noise[0]])
    assert math.isnan(nothing.value()) and math.isnan(Steadiness().value())
