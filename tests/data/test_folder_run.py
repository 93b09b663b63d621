"""From a folder of images to a trained network: search, retrain, evaluate, by the command line."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

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


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 of scikit-learn's digits of three classes as PNGs of 10 × 12, and one broken file."""
    root = tmp_path_factory.mktemp("photos")
    images, labels = load_digits(return_X_y=True)
    for label in range(3):
        folder = root / f"digit {label}"
        folder.mkdir()
        for i, pixels in enumerate(images[labels == label][:40]):
            image = Image.fromarray((pixels.reshape(8, 8) * 15.9).astype(np.uint8))
            image.resize((10, 12)).save(folder / f"{i:02d}.png")
    (root / "digit 1" / "broken.png").write_bytes(b"\x89PNG and no more")
    return root


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_search_retrain_evaluate(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    in_memory: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DASVIT_CACHE", str(tmp_path / "cache"))
    data = ["--dataset", "folder", "--data-dir", str(photos), "--in-memory", in_memory]
    workers = ["--num-workers", "0", "--device", "cpu"]
    with warnings.catch_warnings():
        warnings.simplefilter("always", SkippedImagesWarning)  # shown, as outside of tests
        main(["search", *data, *workers, *FAST_SEARCH, "--out", "found"])
    told = capsys.readouterr()
    [warned] = [line for line in told.err.splitlines() if line.startswith("warning:")]
    assert "1 unreadable images are left out" in warned and "broken.png" in warned
    assert (tmp_path / "found/skipped_images.txt").read_text().endswith("broken.png\n")
    genotype = Genotype.load(tmp_path / "found/genotype.json")
    assert set(genotype.operations) <= {"identity", "msa_h2", "mlp_r0.5"}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedImagesWarning)
        main(["retrain", *data, *workers, *FAST_RETRAIN, "--model", "found/genotype.json",
              "--augment", "rand", "--out", "trained"])  # fmt: skip
    result = load_retrain_result(tmp_path / "trained/result.json")
    assert len(read_trace(tmp_path / "trained/train.jsonl")) == 2
    main(["evaluate", "trained", "--device", "cpu"])
    assert f"top-1 {100 * result.test_top1:.2f} %" in capsys.readouterr().out


def test_another_folders_classes_are_not_mistaken_for_its_own(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--dataset", "folder", "--data-dir", str(photos)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedImagesWarning)
        main(["retrain", *data, *FAST_RETRAIN, "--model", "vit", "--device", "cpu",
              "--out", "trained"])  # fmt: skip
    other = tmp_path / "other"
    for name in ("digit 0", "digit 1", "digit 9"):
        (other / name).mkdir(parents=True)
        for path in sorted((photos / "digit 0").iterdir())[:4]:
            (other / name / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="was trained on other classes or channels"):
        evaluate("trained", data_dir=str(other))
