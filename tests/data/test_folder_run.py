"""From a folder of images to a trained network: search, retrain, evaluate, by the command line."""

import warnings
from pathlib import Path

import pytest
from support.batches import write_folder

from dasvit.cli import main
from dasvit.report.record import load_retrain_result, read_trace
from dasvit.run.folder import SkippedImagesWarning
from dasvit.spaces.cell.genotype import Genotype
from dasvit.training.loop import evaluate

FAST_SEARCH = [
    *("--dim", "12", "--operations", "identity", "msa_h2", "mlp_r0.5", "--stage-layers", "1", "2"),
    *("--stage-ops", "3", "2", "--stage-epochs", "1", "--batch-size", "16"),
]
FAST_RETRAIN = ["--dim", "12", "--depth", "2", "--epochs", "2", "--warmup-epochs", "1"]


def test_search_retrain_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On images of 10 by 12 that stream, one of them broken."""
    photos = write_folder(tmp_path / "photos", 20, size=(10, 12))
    (photos / "dog" / "broken.png").write_bytes(b"\x89PNG and no more")
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "folder", "--data-dir", "photos", "--in-memory", "no"]
    words += ["--num-workers", "0", "--device", "cpu"]
    with warnings.catch_warnings():
        warnings.simplefilter("always", SkippedImagesWarning)  # shown, as outside of tests
        main(["search", *words, *FAST_SEARCH, "--out", "found"])
    told = capsys.readouterr()
    [warned] = [line for line in told.err.splitlines() if line.startswith("warning:")]
    assert "1 unreadable images are left out" in warned and "broken.png" in warned
    assert (tmp_path / "found/skipped_images.txt").read_text().endswith("broken.png\n")
    genotype = Genotype.load(tmp_path / "found/genotype.json")
    assert set(genotype.operations) <= {"identity", "msa_h2", "mlp_r0.5"}

    (photos / "dog" / "broken.png").unlink()
    words += ["--model", "found/genotype.json", "--augment", "rand", "--out", "trained"]
    main(["retrain", *words, *FAST_RETRAIN])
    result = load_retrain_result(tmp_path / "trained/result.json")
    assert len(read_trace(tmp_path / "trained/train.jsonl")) == 2
    main(["evaluate", "trained", "--device", "cpu"])
    assert f"test accuracy: {100 * result.test_top1:.2f} % of" in capsys.readouterr().out
    # Another folder's classes are not mistaken for its own.
    (photos / "owl").rename(photos / "emu")
    with pytest.raises(ValueError, match="was trained on other classes or channels"):
        evaluate("trained", data_dir="photos")
