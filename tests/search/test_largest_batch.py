"""The largest batch that fits into a device, and warnings before a search that does not."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from support.plans import plan_config
from support.runs import DIGITS

import dasvit.search.memory
from dasvit.cli import main
from dasvit.data.config import DataConfig
from dasvit.data.datasets import load_data, num_train_images
from dasvit.search.config import SearchConfig
from dasvit.search.memory import (
    StagePlan,
    largest_batch,
    plan_search,
    shortfall,
    usable,
    what_fits,
)


def test_the_largest_batch_fits_and_two_more_images_do_not() -> None:
    config = plan_config(stage_layers=(1,), stage_ops=(4,))

    def peak(batch: int) -> int:
        return max(plan.peak for plan in plan_search(replace(config, batch_size=batch)))

    budget = peak(50)
    found = largest_batch(config, budget)
    assert 49 <= found <= 51
    assert peak(found) <= budget < peak(found + 2)
    assert largest_batch(config, peak(1) - 1) == 0


def test_what_is_tried_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    config = plan_config(stage_layers=(1,), stage_ops=(4,))
    fits = dict(what_fits(config, 2**24))
    assert fits[""] < fits["--precision bf16 --recompute"]
    tried: list[SearchConfig] = []
    monkeypatch.setattr(
        dasvit.search.memory, "largest_batch", lambda config, *_: tried.append(config) or len(tried)
    )
    literal = dict(what_fits(replace(config, fused=False), 2**24))
    assert literal == {"": 1, "--precision bf16": 2, "--precision bf16 --recompute --fused": 3}
    assert tried[2] == replace(config, precision="bf16", recompute=True)
    assert list(dict(what_fits(plan_config(dropout=0.1), 2**24))) == ["", "--precision bf16"]


def test_the_largest_batch_fits_in_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only in the one that takes the most of a few images."""
    config = plan_config(stage_layers=(1, 2, 3), stage_ops=(4, 3, 2))
    lines = [(10, 3), (200, 1), (50, 2)]

    def plan(config: SearchConfig, stage: int) -> StagePlan:
        fixed, by_image = lines[stage]
        return StagePlan(stage=stage, resident=0, peak=fixed + by_image * config.batch_size)

    monkeypatch.setattr(dasvit.search.memory, "plan_stage", plan)
    assert largest_batch(config, 340) == 110
    assert largest_batch(config, 230) == 30
    assert largest_batch(config, 201) == 1
    assert largest_batch(config, 200) == 0
    # Another moment becomes the peak: a stage that seemed to allow the most allows the fewest.
    monkeypatch.setattr(
        dasvit.search.memory,
        "plan_stage",
        lambda config, stage: replace(
            plan(config, stage),
            peak=max(plan(config, stage).peak, (stage == 1) * 9 * config.batch_size),
        ),
    )
    assert largest_batch(config, 340) == 340 // 9


@pytest.mark.parametrize("seed", range(300))
def test_the_largest_batch_is_found_along_kinks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few images may all lie on the floor of weights and optimisers, where an image adds nearly
    nothing."""
    draw = random.Random(seed)
    lines = [(draw.uniform(0, 1e4), draw.choice([1, 10, 100]) * draw.random()) for _ in range(6)]
    planned = []

    def peak(stage: int, batch: int) -> int:
        return round(max(f + s * batch for f, s in lines[3 * stage : 3 * stage + 3])) + batch

    def plan(config: SearchConfig, stage: int) -> StagePlan:
        planned.append(config.batch_size)
        return StagePlan(stage=stage, resident=0, peak=peak(stage, config.batch_size))

    monkeypatch.setattr(dasvit.search.memory, "plan_stage", plan)
    answer = draw.choice([1, 20, 33, 34, 200, 5000])
    budget = max(peak(stage, answer) for stage in range(2))
    config = plan_config(stage_layers=(1, 2), stage_ops=(4, 3))
    found = largest_batch(config, budget)
    assert all(peak(stage, found) <= budget for stage in range(2))
    assert any(peak(stage, found + 1) > budget for stage in range(2))
    assert len(planned) < 40


def test_a_plan_that_falls_again_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation may choose another way from some batch size on: here a stage takes 20 images
    worse than 33, and another stage has 20 for its own answer."""

    def peak(stage: int, batch: int) -> int:
        return 3 * batch if stage == 0 else batch + 50 * (batch == 20)

    def plan(config: SearchConfig, stage: int) -> StagePlan:
        return StagePlan(stage=stage, resident=0, peak=peak(stage, config.batch_size))

    monkeypatch.setattr(dasvit.search.memory, "plan_stage", plan)
    assert largest_batch(plan_config(stage_layers=(1, 2), stage_ops=(4, 3)), 60) == 19


def test_no_batch_beyond_all_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        dasvit.search.memory,
        "plan_stage",
        lambda config, stage: StagePlan(stage=stage, resident=0, peak=config.batch_size),
    )
    assert largest_batch(plan_config(), 10**40) == 2**20


def test_no_batch_of_more_images_than_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 1,437 digits 30 % are alpha's."""
    monkeypatch.setattr(
        dasvit.search.memory,
        "plan_stage",
        lambda config, stage: StagePlan(stage=stage, resident=0, peak=config.batch_size),
    )
    train = len(load_data(DIGITS, torch.device("cpu")).train)
    config = plan_config(data=DIGITS, val_fraction=0.3)
    images = train - round(0.3 * train)
    assert num_train_images("digits") == train
    assert set(dict(what_fits(config, 10**9)).values()) == {images}
    assert set(dict(what_fits(config, usable(600))).values()) < set(range(1, images))
    assert largest_batch(config, 20, most=7) == 7
    assert largest_batch(config, 1, most=1) == 1
    assert largest_batch(config, 0, most=1) == 0
    folder = replace(config, data=DataConfig(dataset="folder", data_dir="x", image_size=8))
    assert set(dict(what_fits(folder, 10**9)).values()) == {2**20}
    main(["memory", "--preset", "digits", "--budget", "24GiB"])
    assert "--batch-size 719, a half of the data set\n" in capsys.readouterr().out


def test_a_warning_only_where_it_does_not_fit() -> None:
    config = plan_config(stage_layers=(1,), stage_ops=(4,))
    peak = max(plan.peak for plan in plan_search(config))
    available = next(a for a in itertools.count(peak) if usable(a) == peak)
    assert shortfall(config, available) is None
    said: list[str] = []
    warning = shortfall(config, available - 1, said.append)
    assert warning is not None
    assert warning.startswith(f"{said[0]}; what would fit: ")
    assert len(said) == 4  # before minutes of planning, and while they pass
    assert "--batch-size 1" in warning
    assert "--recompute" in warning
    nothing = shortfall(config, 1000)
    assert nothing is not None
    assert "no batch at all" in nothing


def test_what_is_recommended_is_not_warned_against() -> None:
    """By the plan alone the batch could be larger; one image more is warned against."""
    memory = 24 * 2**30
    config = plan_config(
        stage_layers=(1,), stage_ops=(4,), data=DataConfig(dataset="cifar10", image_size=96)
    )
    batch = dict(what_fits(config, memory))[""]
    assert 0 < batch < largest_batch(config, memory)
    assert shortfall(replace(config, batch_size=batch), memory) is None
    assert shortfall(replace(config, batch_size=batch + 1), memory) is not None


def test_a_gpu_leaves_one_gib() -> None:
    assert usable(24 * 2**30) == 23 * 2**30
    assert usable(141 * 2**30) == 140 * 2**30
    assert usable(16 * 2**20) == 15 * 2**20
