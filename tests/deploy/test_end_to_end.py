"""As a user types it: from a folder of images to classes of other images."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from support.runs import names_in
from timm.data import create_transform, resolve_data_config

from dasvit.cli import main
from dasvit.deploy.predict import read_image
from dasvit.report.record import load_retrain_result, read_trace
from dasvit.spaces.cell.genotype import Genotype
from dasvit.training.model_folder import load

CLASSES = ("nought", "one", "two")
OPERATIONS = ("identity", "msa_h2", "mlp_r0.5")
DATA = ("--dataset", "folder", "--data-dir", "photos", "--device", "cpu")
SEARCH = (
    *("--dim", "12", "--patch-size", "4", "--operations", *OPERATIONS, "--stage-layers", "1", "2"),
    *("--stage-ops", "3", "2", "--stage-epochs", "1", "--batch-size", "16"),
)
RETRAIN = (
    *("--dim", "12", "--patch-size", "4", "--depth", "2", "--batch-size", "16"),
    *("--epochs", "8", "--warmup-epochs", "1", "--lr", "3e-3"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """photos/train and photos/val with 32 and 8 of scikit-learn's digits a class, as PNGs, one
    more that is broken, and new/ with 4 more of each."""
    images, labels = load_digits(return_X_y=True)
    for label, name in enumerate(CLASSES):
        for i, pixels in enumerate(images[labels == label][:44]):
            place = "photos/train" if i < 32 else "photos/val" if i < 40 else "new"
            path = tmp_path / place / name / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels.reshape(8, 8) * 15.9).astype(np.uint8)).save(path)
    (tmp_path / "photos/train/one/broken.png").write_bytes(b"\x89PNG and no more")
    return tmp_path


@pytest.fixture
def dasvit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What a command prints, run in `folder`."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DASVIT_CACHE", str(folder / "cache"))

    def run(*words: str) -> str:
        main(words)
        return "".join(capsys.readouterr())

    return run


def close(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("always::dasvit.run.folder.SkippedImagesWarning")
def test_from_images_to_classes_of_others(folder: Path, dasvit: Callable[..., str]) -> None:
    said = dasvit("search", *DATA, *SEARCH, "--out", "found")
    assert "warning: 1 unreadable images are left out" in said
    assert "retrain --preset digits --dataset folder --data-dir photos" in said
    assert (folder / "found/skipped_images.txt").read_text().endswith("broken.png\n")
    genotype = Genotype.load(folder / "found" / "genotype.json")
    assert set(genotype.operations) <= set(OPERATIONS)
    assert len(read_trace(folder / "found" / "alpha.jsonl")) == 2  # an epoch a stage

    (folder / "photos/train/one/broken.png").unlink()
    streamed = ("--in-memory", "no", "--num-workers", "0")
    found = ("--model", "found/genotype.json", "--out", "trained")
    dasvit("retrain", *DATA, *RETRAIN, *streamed, *found)
    result = load_retrain_result(folder / "trained" / "result.json")
    assert result.test_top1 > 0.5  # of three classes
    assert len(read_trace(folder / "trained" / "train.jsonl")) == 8
    assert Genotype.load(folder / "trained" / "genotype.json") == genotype
    said = dasvit("evaluate", "trained", "--device", "cpu")
    assert f"test accuracy: {100 * result.test_top1:.2f} % of" in said

    dasvit("export", "trained", "--to", "safetensors", "--out", "net")
    assert names_in(folder / "net") == names_in(folder / "trained" / "model")

    dasvit(
        "predict", "new", "--model", "trained", "--out", "new.csv", "--top-k", "3",
        "--device", "cpu",
    )  # fmt: skip
    with (folder / "new.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    paths = sorted((folder / "new").glob("*/*.png"))
    assert [folder / row["path"] for row in rows] == paths and len(paths) == 12

    trained = load(folder / "trained")
    assert trained.facts.class_names == CLASSES
    images = torch.stack([read_image(path, trained.facts) for path in paths])
    with torch.no_grad():
        logits = trained.model(images)
        theirs = timm.create_model(f"local-dir:{folder / 'net'}", pretrained=True).eval()
        transform = create_transform(**resolve_data_config(model=theirs))
        close(theirs(torch.stack([transform(Image.open(path)) for path in paths])), logits)

    shares, order = logits.softmax(1).sort(dim=1, descending=True)
    for i, names in enumerate(("class", "class_2", "class_3")):
        assert [row[names] for row in rows] == [CLASSES[c] for c in order[:, i].tolist()]
        column = names.replace("class", "probability")
        close(torch.tensor([float(row[column]) for row in rows]), shares[:, i])
    right = [row["class"] == path.parent.name for row, path in zip(rows, paths, strict=True)]
    assert sum(right) > len(right) / 2

    onnxruntime = pytest.importorskip("onnxruntime")
    dasvit("export", "trained", "--to", "onnx", "--out", "net.onnx")
    session = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    (exported,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    close(torch.from_numpy(exported), logits)
