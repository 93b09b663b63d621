"""TensorBoard's own HParams tab over runs of the program: every trial, its settings and scores."""

from pathlib import Path
from typing import Any

import pytest
from support.runs import few_images, retrain_config, search_config
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

import dasvit.search.loop
import dasvit.training.loop
from dasvit.report.events import scalars
from dasvit.report.tensorboard import tensorboard_report
from dasvit.search.config import OUTER_SETTINGS
from dasvit.search.loop import search
from dasvit.training.loop import retrain


def session_groups(log_dir: Path) -> dict[str, Any]:
    """What the tab shows as rows, by the run's folder."""
    multiplexer = EventMultiplexer(tensor_size_guidance={"scalars": 0, "hparams": 0})
    multiplexer.AddRunsFromDirectory(str(log_dir))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(log_dir))
    context = Context(TBContext(data_provider=provider))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=100, allowed_statuses=list(api_pb2.Status.values())
    )
    response = Handler(RequestContext(), context, "", request).run()
    groups = {group.sessions[0].name: group for group in response.session_groups}
    assert response.total_size == len(groups)
    assert all(len(group.sessions) == 1 for group in groups.values())
    return groups


def settings_of(group: Any) -> dict[str, Any]:
    return {name: getattr(v, v.WhichOneof("kind")) for name, v in group.hparams.items()}


def scores_of(group: Any) -> dict[str, float]:
    return {f"{metric.name.tag}": metric.value for metric in group.metric_values}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    few_images(monkeypatch, dasvit.search.loop, dasvit.training.loop, train=64, test=20)


def test_every_search_is_a_row_with_its_settings_and_scores(tmp_path: Path) -> None:
    results = {}
    for name, xi, seed in (("first", 0.0, 0), ("second", 0.25, 3)):
        config = search_config(
            xi=xi, seed=seed, stage_layers=(1,), stage_ops=(8,), stage_epochs=1, token_ratio=0.75
        )
        settings = {setting: getattr(config, setting) for setting in OUTER_SETTINGS}
        report = tensorboard_report(tmp_path / name, settings)
        results[name] = search(config, tmp_path / name, report=report)
    groups = session_groups(tmp_path)
    assert set(groups) == set(results)
    for name, result in results.items():
        assert settings_of(groups[name]) == result.settings
        assert groups[name].sessions[0].status == api_pb2.STATUS_SUCCESS
        expected = {f"hparam/{k}": pytest.approx(v) for k, v in scalars(result).items()}
        assert scores_of(groups[name]) == expected
    assert settings_of(groups["second"])["xi"] == 0.25


def test_every_retraining_is_a_row_with_its_settings_and_scores(tmp_path: Path) -> None:
    results = {}
    for seed in (0, 1):
        config = retrain_config(seed=seed, epochs=1, warmup_epochs=0)
        settings = {"model": config.model, "seed": seed, "lr": config.lr}
        name = f"vit_seed_{seed}"
        report = tensorboard_report(tmp_path / name, settings)
        results[name] = retrain(config, tmp_path / name, report=report)
    groups = session_groups(tmp_path)
    assert set(groups) == set(results)
    for name, result in results.items():
        seed = float(name[-1])
        assert settings_of(groups[name]) == {"model": "vit", "seed": seed, "lr": 3e-3}
        expected = {f"hparam/{k}": pytest.approx(v) for k, v in scalars(result).items()}
        assert scores_of(groups[name]) == expected
        assert "hparam/test_top1" in expected
