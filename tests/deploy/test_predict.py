"""Predictions on image files: from digits to PNGs, through training and export, to classes."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dasvit.training.trained import open_trained
from PIL import Image
from support.runs import DIGITS, files_of

from dasvit.cli import main
from dasvit.data.config import DataConfig
from dasvit.data.datasets import load_data
from dasvit.data.folder import find_images as find_classes
from dasvit.deploy.export import export
from dasvit.deploy.predict import Prediction, Unreadable, find_images, predict, read_image, to_csv
from dasvit.training.model_folder import ModelFacts

CPU = torch.device("cpu")
RGB = ModelFacts("x", {}, ("a", "b"), 3, 8, (0.5, 0.25, 0.1), (0.5, 0.2, 0.3))
GREY = ModelFacts("x", {}, ("a", "b"), 1, 8, (0.3,), (0.4,))


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Twelve test digits as PNGs, in two folders."""
    images = load_data(DIGITS, CPU).test.images[:12, 0].numpy()
    for i, pixels in enumerate(images):
        path = tmp_path / "digits" / ("a" if i < 6 else "b") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "digits"


def run(*words: object) -> int:
    try:
        main(["predict", *map(str, words), "--device", "cpu"])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_from_digits_to_classes(
    digits: Path, trained_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PNGs get the classes that the test images get; so do the exported folder's."""
    model, split = open_trained(trained_encoder, CPU).model, load_data(DIGITS, CPU).test
    images, _ = next(iter(split.batches(12)))
    with torch.no_grad():
        probabilities, classes = model(images).softmax(1).max(1)
    export(trained_encoder, "safetensors", tmp_path / "net")
    texts = []
    for folder in (trained_encoder, trained_encoder / "model", tmp_path / "net"):
        assert run(digits, "--model", folder, "--batch-size", 5) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
    rows = list(csv.DictReader(io.StringIO(texts[0])))
    assert [Path(row["path"]).name for row in rows] == [f"{i:02}.png" for i in range(12)]
    assert [row["class"] for row in rows] == [str(c) for c in classes.tolist()]
    shown = torch.tensor([float(row["probability"]) for row in rows])
    torch.testing.assert_close(shown, probabilities, rtol=0, atol=2e-6)


def test_images_one_by_one(
    digits: Path, trained_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [digits / "a" / "00.png", digits / "b" / "07.png"]
    assert run(*paths, "--model", trained_encoder, "--top-k", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == list(map(str, paths))
    shares = [float(part.split()[1]) for part in lines[0].split(": ")[1].split(", ")]
    assert len(shares) == 3 and shares == sorted(shares, reverse=True)


def test_csv_file(
    digits: Path, trained_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "classes.csv"
    words = (digits, "--model", trained_encoder, "--out", out, "--top-k", 99)
    assert run(*words) == 0
    assert f"predictions: {out} (12 images)" in capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert len(rows) == 12 and "probability_10" in rows[0] and "class_11" not in rows[0]
    whole = [sum(float(v) for k, v in row.items() if "probability" in k) for row in rows]
    assert whole == pytest.approx([1] * 12, abs=1e-4)
    out.write_text("mine")
    assert run(*words) == 2
    assert "exists; choose another --out" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run(*words, "--force") == 0
    assert out.read_text().startswith("path,class,probability,class_2,")


def test_unreadable_images_are_named_and_skipped(
    digits: Path, trained_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (digits / "a" / "00.png").read_bytes()
    (digits / "a" / "cut.png").write_bytes(content[: len(content) // 2])
    (digits / "b" / "text.jpg").write_text("no image")
    (digits / "b" / "empty.png").write_bytes(b"")
    (digits / "b" / "gone.png").symlink_to(digits / "nowhere.png")
    assert run(digits, "--model", trained_encoder) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 + 12
    skipped = re.findall(r"^skipped: (\S+) is not a readable image", err, re.MULTILINE)
    assert [Path(p).name for p in skipped] == ["cut.png", "empty.png", "gone.png", "text.jpg"]
    assert err.splitlines()[-1] == "error: 4 of 16 images could not be read"
    only = [digits / "b" / "empty.png"]
    facts = open_trained(trained_encoder, CPU)
    (row,) = predict(facts.model, facts.facts, only)
    assert isinstance(row, Unreadable)


# --- Reading


@pytest.mark.parametrize("facts", [RGB, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "CMYK", "I;16"])
def test_images_of_every_mode(mode: str, facts: ModelFacts, tmp_path: Path) -> None:
    """An even grey of 102 is the same number however it is stored."""
    suffix = "tif" if mode == "CMYK" else "png"
    path = tmp_path / f"image.{suffix}"
    level = 255 if mode == "1" else 102
    if mode == "I;16":
        Image.fromarray(np.full((8, 8), 102 * 257, np.uint16)).save(path)
    else:
        Image.fromarray(np.full((8, 8), level, np.uint8)).convert(mode).save(path)
    read = read_image(path, facts)
    assert read.shape == (facts.in_channels, 8, 8)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (facts.mean, facts.std))
    torch.testing.assert_close(
        read, ((level / 255 - mean) / std).expand_as(read), rtol=0, atol=0.02
    )


def test_resized_and_normalised_as_in_training(tmp_path: Path) -> None:
    """The same numbers as the data set's own test batches, at another size than the files'."""
    data = load_data(replace(DIGITS, image_size=12), CPU)
    images, _ = next(iter(data.test.batches(3)))
    facts = replace(GREY, image_size=12, mean=data.mean, std=data.std)
    for i in range(3):
        Image.fromarray(data.test.images[i, 0].numpy()).save(tmp_path / f"{i}.png")
        torch.testing.assert_close(read_image(tmp_path / f"{i}.png", facts), images[i])


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_of_a_long_image_the_middle_is_taken_as_in_training(tmp_path: Path, in_memory: str) -> None:
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i, shape in enumerate([(20, 33, 3), (41, 24, 3)]):
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "d" / name / f"{i}.png")
    config = DataConfig(
        dataset="folder",
        data_dir=str(tmp_path / "d"),
        image_size=12,
        augment="none",
        in_memory=in_memory,
    )
    data = load_data(config, CPU)
    facts = replace(RGB, image_size=12, mean=data.mean, std=data.std)
    images, labels = next(iter(data.test.batches(2)))
    held_out = find_classes(tmp_path / "d", test_fraction=0.2).test
    assert [label for _, label in held_out] == labels.tolist() == [0, 1]
    for (path, _), image in zip(held_out, images, strict=True):
        torch.testing.assert_close(read_image(Path(path), facts), image)


def test_rows_and_columns_stay_in_place(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[1, 6] = (255, 0, 128)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    facts = ModelFacts("x", {}, ("a",), 3, 8, (0.0,) * 3, (1.0,) * 3)
    read = read_image(tmp_path / "x.png", facts)
    torch.testing.assert_close(read[:, 1, 6], torch.tensor([1.0, 0.0, 128 / 255]))
    assert read.count_nonzero() == 2


def test_csv_quotes_names() -> None:
    text = to_csv([Prediction(Path("a,b.png"), ('the "x"',), (0.25,))])
    assert list(csv.reader(io.StringIO(text)))[1] == ["a,b.png", 'the "x"', "0.250000"]
    assert to_csv([]) == "path,class,probability\n"


# --- Refusals


def test_what_cannot_be_is_refused(
    digits: Path,
    own: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    before = files_of(own)
    image = digits / "a" / "00.png"
    for words, message in (
        ((tmp_path / "empty", "--model", own), "holds no images; looked for .jpg"),
        ((tmp_path / "none.png", "--model", own), "there is no file or folder"),
        ((image, "--model", digits), "holds no model: it has no config.json"),
        ((image, "--model", own, "--top-k", 0), "must be positive, but got"),
        ((image, "--model", own, "--out", tmp_path / "no" / "x.csv"), "there is no folder"),
        (("--model", own), "no images were named|required"),
        ((image, "--model", own, "--out", digits), "exists; choose another --out"),
    ):
        assert run(*words) == 2, words
        err = capsys.readouterr().err
        assert any(part in err for part in message.split("|")), err
        assert err.startswith("error: ") and err.count("\n") == 1
    assert files_of(own) == before
    with pytest.raises(ValueError, match="no images were named"):
        find_images([])
