"""Predictions on image files: from digits to PNGs, through training and export, to classes."""

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import DIGITS, files_of

from dasvit.cli import main
from dasvit.data.datasets import load_data
from dasvit.data.image_folder import find_class_images
from dasvit.deploy.export import export
from dasvit.deploy.predict import (
    Prediction,
    Unreadable,
    find_images,
    predict,
    read_image,
    to_csv,
)
from dasvit.training.model_folder import ModelFacts, load

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


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `predict`: exit status, output, errors."""

    def run(*words: object) -> tuple[int, str, str]:
        code: object = 0
        try:
            main(["predict", *map(str, words), "--device", "cpu"])
        except SystemExit as stop:
            code = stop.code
        return int(str(code)), *capsys.readouterr()

    return run


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    for name in ("b.png", ".hidden/c.png", "a/._d.png", "a/e.JPG", "f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images([tmp_path]) == [tmp_path / "a/e.JPG", tmp_path / "b.png"]


def test_from_digits_to_classes(
    digits: Path, trained_encoder: Path, tmp_path: Path, say: Callable
) -> None:
    """PNGs get the classes that the test images get; so do the exported folder's."""
    model, split = load(trained_encoder).model, load_data(DIGITS, CPU).test
    images, _ = next(iter(split.batches(12)))
    with torch.no_grad():
        probabilities, classes = model(images).softmax(1).max(1)
    export(trained_encoder, "safetensors", tmp_path / "net")
    said = [
        say(digits, "--model", folder, "--batch-size", 5)
        for folder in (trained_encoder, trained_encoder / "model", tmp_path / "net")
    ]
    assert said[0] == said[1] == said[2]
    code, out, err = said[0]
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [Path(row["path"]).name for row in rows] == [f"{i:02}.png" for i in range(12)]
    assert [row["class"] for row in rows] == [str(c) for c in classes.tolist()]
    shown = torch.tensor([float(row["probability"]) for row in rows])
    torch.testing.assert_close(shown, probabilities, rtol=0, atol=2e-6)

    paths = [digits / "a" / "00.png", digits / "b" / "07.png"]
    code, out, _ = say(*paths, "--model", trained_encoder, "--top-k", 3)
    lines = out.splitlines()
    assert [line.split(": ")[0] for line in lines] == list(map(str, paths))
    shares = [float(part.split()[1]) for part in lines[0].split(": ")[1].split(", ")]
    assert len(shares) == 3 and shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(100 * probabilities[0].item(), abs=0.06)


def test_csv_file(digits: Path, trained_encoder: Path, tmp_path: Path, say: Callable) -> None:
    out = tmp_path / "classes.csv"
    words = (digits, "--model", trained_encoder, "--out", out, "--top-k", 99)
    assert f"predictions: {out} (12 images)" in say(*words)[1]
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert len(rows) == 12 and "probability_10" in rows[0] and "class_11" not in rows[0]
    whole = [sum(float(v) for k, v in row.items() if "probability" in k) for row in rows]
    assert whole == pytest.approx([1] * 12, abs=1e-4)
    out.write_text("mine")
    code, _, err = say(*words)
    assert code == 2 and "exists; choose another --out" in err and out.read_text() == "mine"
    assert say(*words, "--force")[0] == 0
    assert out.read_text().startswith("path,class,probability,class_2,")
    text = to_csv([Prediction(Path("a,b.png"), ('the "x"',), (0.25,))])
    assert list(csv.reader(io.StringIO(text)))[1] == ["a,b.png", 'the "x"', "0.250000"]


def test_unreadable_images_are_named_and_skipped(
    digits: Path, trained_encoder: Path, say: Callable
) -> None:
    content = (digits / "a" / "00.png").read_bytes()
    (digits / "a" / "cut.png").write_bytes(content[: len(content) // 2])
    (digits / "b" / "text.jpg").write_text("no image")
    (digits / "b" / "empty.png").write_bytes(b"")
    (digits / "b" / "gone.png").symlink_to(digits / "nowhere.png")
    code, out, err = say(digits, "--model", trained_encoder)
    assert code == 1 and len(out.splitlines()) == 1 + 12
    skipped = re.findall(r"^skipped: (\S+) is not a readable image", err, re.MULTILINE)
    assert [Path(p).name for p in skipped] == ["cut.png", "empty.png", "gone.png", "text.jpg"]
    assert err.splitlines()[-1] == "error: 4 of 16 images could not be read"
    (row,) = predict(load(trained_encoder), [digits / "b" / "empty.png"])
    assert isinstance(row, Unreadable)


# --- Reading


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "CMYK", "I;16"])
def test_images_of_every_mode(mode: str, tmp_path: Path) -> None:
    """An even grey of 102 is the same number however it is stored."""
    path = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    level = 255 if mode == "1" else 102
    if mode == "I;16":
        Image.fromarray(np.full((8, 8), 102 * 257, np.uint16)).save(path)
    else:
        Image.fromarray(np.full((8, 8), level, np.uint8)).convert(mode).save(path)
    for facts in (RGB, GREY):
        read = read_image(path, facts)
        assert read.shape == (facts.in_channels, 8, 8)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (facts.mean, facts.std))
        wanted = ((level / 255 - mean) / std).expand_as(read)
        torch.testing.assert_close(read, wanted, rtol=0, atol=0.02)


def test_resized_and_normalised_as_in_training(tmp_path: Path) -> None:
    """The same numbers as the data set's own test batches, at another size than the files'."""
    data = load_data(replace(DIGITS, image_size=12), CPU)
    images, _ = next(iter(data.test.batches(3)))
    facts = replace(GREY, image_size=12, mean=data.mean, std=data.std)
    for i in range(3):
        Image.fromarray(data.test.images[i, 0].numpy()).save(tmp_path / f"{i}.png")
        torch.testing.assert_close(read_image(tmp_path / f"{i}.png", facts), images[i])


def test_of_a_long_image_the_middle_is_taken_as_in_training(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i, shape in enumerate([(20, 33, 3), (41, 24, 3)]):
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "d" / name / f"{i}.png")
    settings = {"data_dir": str(tmp_path / "d"), "in_memory": "yes"}
    data = load_data(replace(DIGITS, dataset="folder", image_size=12, **settings), CPU)
    facts = replace(RGB, image_size=12, mean=data.mean, std=data.std)
    images, labels = next(iter(data.test.batches(2)))
    held_out = find_class_images(tmp_path / "d", test_fraction=0.2).test
    assert [label for _, label in held_out] == labels.tolist() == [0, 1]
    for (path, _), image in zip(held_out, images, strict=True):
        torch.testing.assert_close(read_image(Path(path), facts), image)


# --- Refusals


def test_what_cannot_be_is_refused(digits: Path, own: Path, tmp_path: Path, say: Callable) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    before = files_of(own)
    image = digits / "a" / "00.png"
    for words, message in (
        ((tmp_path / "empty", "--model", own), "holds no images; looked for .jpg"),
        ((tmp_path / "none.png", "--model", own), "there is no file or folder"),
        ((image, "--model", digits), "holds no model; give the folder of a finished"),
        ((image, "--model", own, "--top-k", 0), "must be positive, but got"),
        ((image, "--model", own, "--out", tmp_path / "no" / "x.csv"), "there is no folder"),
        ((image, "--model", own, "--out", digits), "exists; choose another --out"),
        (("--model", own), "IMAGE|FOLDER"),
    ):
        code, _, err = say(*words)
        assert code == 2 and message in err, err
        assert err.startswith("error: ") and err.count("\n") == 1
    assert files_of(own) == before
