"""Finished retrainings read back from folders, and put together over seeds."""

from pathlib import Path

import pytest
from support.finished import finished
from support.runs import few_images, retrain_config

import dasvit.training.loop
from benchmarks.table1_results import find_runs, group_runs
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES
from dasvit.training.loop import retrain


def test_a_real_retraining_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_images(monkeypatch, dasvit.training.loop)
    result = retrain(retrain_config(epochs=2), tmp_path / "deep" / "one")
    (run,) = find_runs([tmp_path])
    assert run.folder == tmp_path / "deep" / "one"
    assert (run.result, run.config, run.encoder) == (result, retrain_config(epochs=2), None)


def test_a_derived_network_has_the_hash_of_its_folders_genotype(tmp_path: Path) -> None:
    finished(tmp_path / "a", "dasvit_cifar10")
    finished(tmp_path / "b", "somewhere/genotype.json")  # the file is gone, its copy is not
    NAMED_GENOTYPES["dasvit_imagenet100"].save(tmp_path / "b" / "genotype.json")
    hashes = [run.encoder for run in find_runs([tmp_path])]
    assert hashes == [
        NAMED_GENOTYPES[name].canonical_hash for name in ("dasvit_cifar10", "dasvit_imagenet100")
    ]


def test_unfinished_runs_and_searches_are_left_out(tmp_path: Path) -> None:
    finished(tmp_path / "done", "resnet50")
    (finished(tmp_path / "half", "resnet50") / "result.json").unlink()
    search = tmp_path / "search"
    search.mkdir()
    (search / "config.json").write_text('{"kind": "dasvit/search/1", "config": {}}')
    (search / "result.json").write_text("{}")
    (tmp_path / "result.json").write_text("{}")  # of something else
    assert [run.folder.name for run in find_runs([tmp_path])] == ["done"]


def test_a_folder_given_twice_counts_once(tmp_path: Path) -> None:
    folder = finished(tmp_path / "a", "resnet50")
    assert len(find_runs([tmp_path, folder, str(folder)])) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model": "resnet50"}', "is not a retraining result"),
        ('{"model": "resn', "is not valid JSON"),
    ],
)
def test_a_malformed_result_is_named(tmp_path: Path, content: str, message: str) -> None:
    (finished(tmp_path / "a", "resnet50") / "result.json").write_text(content)
    with pytest.raises(ValueError, match=message) as refused:
        find_runs([tmp_path])
    assert "result.json" in str(refused.value)


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        find_runs([tmp_path / "missing"])
    finished(tmp_path / "full" / "a", "resnet50")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no finished retraining in .*empty"):
        find_runs([tmp_path / "full", tmp_path / "empty"])


def test_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    for seed, top1 in ((2, 0.80), (0, 0.70), (1, 0.90)):
        finished(tmp_path / str(seed), "resnet50", seed=seed, top1=top1, top5=0.95,
                 data_dir=f"/disk{seed}")  # fmt: skip
    finished(tmp_path / "other", "resnet50", lr=0.5, seed=2, top1=0.3)
    many, one = sorted(group_runs(find_runs([tmp_path])), key=lambda s: -len(s.runs))
    assert many.seeds == (0, 1, 2)
    assert many.top1 == pytest.approx((0.80, 0.10))
    assert many.top5 == pytest.approx((0.95, 0.0))
    assert (one.seeds, one.top1) == ((2,), (0.3, None))


def test_one_encoder_by_two_paths_is_one(tmp_path: Path) -> None:
    finished(tmp_path / "a", "dasvit_cifar10", seed=0)
    finished(tmp_path / "b", "found/genotype.json", seed=1)
    NAMED_GENOTYPES["dasvit_cifar10"].save(tmp_path / "b" / "genotype.json")
    (scores,) = group_runs(find_runs([tmp_path]))
    assert scores.seeds == (0, 1)


def test_the_same_seed_twice_is_refused(tmp_path: Path) -> None:
    finished(tmp_path / "a", "resnet50", seed=3)
    finished(tmp_path / "copy", "resnet50", seed=3)
    with pytest.raises(ValueError, match=r"a and .*copy are the same retraining .* seed 3"):
        group_runs(find_runs([tmp_path]))
