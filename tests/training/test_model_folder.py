"""A model folder: what a retraining leaves, timm loads, and what is refused."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from dasvit.training.model_card import model_card
from dasvit.training.trained import load_model, open_trained
from PIL import Image
from support import runs
from support.runs import names_in
from support.trained_runs import train_digits
from timm.data import create_transform, resolve_data_config

import dasvit.training.model_folder
from dasvit.deploy.predict import read_image
from dasvit.report.record import load_retrain_result
from dasvit.spaces.cell.genotype import Genotype
from dasvit.training.model_folder import check_room, describe, load_model_folder, save_model_folder

CPU = torch.device("cpu")
BATCH = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = folder / "model" / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return folder / "model"


def test_a_retraining_leaves_a_folder_that_timm_loads(trained_encoder: Path) -> None:
    folder = trained_encoder / "model"
    assert names_in(folder) == ["README.md", "config.json", "genotype.json", "model.safetensors"]
    expected, config = load_model(trained_encoder, CPU)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(model(BATCH), expected(BATCH))
    assert Genotype.load(folder / "genotype.json") == runs.ENCODER
    cfg = model.pretrained_cfg
    assert tuple(cfg["label_names"]) == tuple(map(str, range(10)))
    facts = open_trained(trained_encoder, CPU).facts
    assert tuple(cfg["mean"]) == facts.mean and tuple(cfg["std"]) == facts.std
    data = resolve_data_config(model=model)
    assert (tuple(data["input_size"]), data["crop_pct"]) == ((1, 8, 8), 1.0)
    assert data["crop_mode"] == "center" and data["interpolation"] == "bilinear"
    assert config.data.image_size == facts.image_size == 8


@pytest.mark.parametrize("size", [(8, 8), (30, 14), (11, 40)])
def test_timms_own_transform_feeds_it_as_in_training(
    size: tuple[int, int], trained_encoder: Path, tmp_path: Path
) -> None:
    """Long images too, up to the rounding of a resized pixel to 8 bits, here and there."""
    model = timm.create_model(f"local-dir:{trained_encoder / 'model'}", pretrained=True)
    _, facts = load_model_folder(trained_encoder / "model")
    pixels = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "long.png")
    transform: Any = create_transform(**resolve_data_config(model=model))
    theirs = transform(Image.open(tmp_path / "long.png"))
    step = 1 / 255 / min(facts.std)
    gap = (theirs - read_image(tmp_path / "long.png", facts)).abs()
    assert gap.max() <= 2.01 * step and gap.mean() <= 0.6 * step


def test_the_place_of_the_data_stays_at_home(tmp_path: Path, trained_encoder: Path) -> None:
    model, facts = load_model_folder(trained_encoder / "model")
    settings = {"dim": 12, "data": {"dataset": "folder", "data_dir": "/home/somebody/photos"}}
    model.genotype = Genotype(runs.ENCODER.nodes, {"seed": 3, "settings": settings})
    told = describe(
        model,
        "genotype.json",
        class_names=facts.class_names,
        in_channels=facts.in_channels,
        image_size=facts.image_size,
        mean=facts.mean,
        std=facts.std,
    )
    save_model_folder(tmp_path / "model", model, told, "")
    for path in (tmp_path / "model").glob("*.json"):
        assert "somebody" not in path.read_text()
    left = Genotype.load(tmp_path / "model" / "genotype.json").provenance
    assert left == {"seed": 3, "settings": {"dim": 12, "data": {"dataset": "folder"}}}
    assert settings["data"] == {"dataset": "folder", "data_dir": "/home/somebody/photos"}


def test_timm_fine_tunes_it(trained_encoder: Path) -> None:
    source = f"local-dir:{trained_encoder / 'model'}"
    trained = load_model(trained_encoder, CPU)[0]
    model = timm.create_model(source, pretrained=True, num_classes=3)
    assert model(BATCH).shape == (3, 3)
    torch.testing.assert_close(model.forward_features(BATCH), trained.forward_features(BATCH))
    larger = timm.create_model(source, pretrained=True, img_size=16).eval()
    assert larger(torch.randn(1, 1, 16, 16)).shape == (1, 10)
    trained.set_input_size(16)
    assert torch.equal(larger.embedding.positions, trained.embedding.positions)


def test_the_weights_are_not_written_twice(trained_encoder: Path) -> None:
    once, again = (trained_encoder / p for p in ("model.safetensors", "model/model.safetensors"))
    assert once.samefile(again)


def test_without_links_they_are(
    trained_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*args: Any) -> None:
        raise OSError("not on this file system")

    monkeypatch.setattr(dasvit.training.model_folder.os, "link", no_links)
    trained = open_trained(trained_encoder, CPU)
    weights = trained_encoder / "model.safetensors"
    save_model_folder(tmp_path / "m", trained.model, trained.facts, "card", weights=weights)
    copied = safetensors.torch.load_file(tmp_path / "m" / "model.safetensors")
    torch.testing.assert_close(copied, safetensors.torch.load_file(weights), rtol=0, atol=0)


def test_the_card_has_the_measured_numbers(trained_encoder: Path) -> None:
    text = (trained_encoder / "model" / "README.md").read_text()
    result = load_retrain_result(trained_encoder / "result.json")
    assert text.startswith("---\nlibrary_name: timm\n")
    assert f"| test top-1 accuracy | {100 * result.test_top1:.2f} % |" in text
    assert f"| parameters | {result.num_params:,} |" in text
    assert "| data set | digits |" in text and "| epochs | 2 |" in text
    assert "o_0 = msa_h2(e_{k-2}) + mlp_r0.5(e_{k-1})" in text
    assert "the middle 8 × 8 cut out" in text
    assert "import dasvit.spaces.cell.network  #" in text and "--plugins" not in text


def test_the_card_imports_what_registers(trained_encoder: Path) -> None:
    _, facts = load_model_folder(trained_encoder / "model")
    text = model_card(replace(facts, architecture="autoformer_base_patch16_224", model_args={}))
    assert "import dasvit.training.autoformer  # registers the architecture" in text
    assert "import dasvit" not in model_card(replace(facts, architecture="vit_base_patch16_224"))
    text = model_card(facts, replace(runs.retrain_config(), plugins=("mine.ops",)))
    assert "import mine.ops  # registers operations of its own" in text
    assert "--model PATH_OF_THIS_FOLDER --plugins mine.ops IMAGE" in text


@pytest.mark.parametrize("name", ["vit", "test_vit", "test_resnet"])
def test_comparators_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"data": replace(runs.DIGITS, image_size=16)} if name == "test_vit" else {}
    folder = train_digits(tmp_path / "run", monkeypatch, name, **changes)
    side = 16 if name == "test_vit" else 8
    batch = torch.randn(2, 1, side, side)
    expected = load_model(folder, CPU)[0](batch)
    model = timm.create_model(f"local-dir:{folder / 'model'}", pretrained=True).eval()
    assert torch.equal(model(batch), expected)
    assert torch.equal(load_model_folder(folder / "model")[0](batch), expected)
    assert "genotype.json" not in names_in(folder / "model")


def test_networks_with_token_selection(tmp_path: Path, trained_encoder: Path) -> None:
    facts = open_trained(trained_encoder, CPU).facts
    for where in ("input", "edge"):
        args = facts.model_args | {"token_ratio": 0.5, "token_where": where}
        model = timm.create_model("dasvit", **args).eval()
        chosen = replace(facts, model_args=args)
        save_model_folder(tmp_path / where, model, chosen, "card")
        again, read = load_model_folder(tmp_path / where)
        assert read == chosen
        assert torch.equal(again(BATCH), model(BATCH))


def test_folders_of_all_kinds_open(trained_encoder: Path, own: Path) -> None:
    expected = open_trained(trained_encoder, CPU)
    assert expected.result == load_retrain_result(trained_encoder / "result.json")
    alone = open_trained(trained_encoder / "model", CPU)
    assert alone.facts == expected.facts and alone.result is None
    shutil.rmtree(own / "model")  # an earlier version's
    assert open_trained(own, CPU).facts == expected.facts
    assert torch.equal(alone.model(BATCH), expected.model(BATCH))


# --- Refusals


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_trained(folder, CPU)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "there is no folder .*nowhere")
    refused(tmp_path, r"holds no model: it has no config\.json")
    (tmp_path / "config.json").write_text('{"kind": "dasvit/search/1", "config": {}}')
    refused(tmp_path, "of kind 'dasvit/search/1'")
    (tmp_path / "config.json").write_text('{"architecture": "dasvit"')
    refused(tmp_path, r"config\.json is not valid JSON")
    (tmp_path / "config.json").write_text('{"architecture": "dasvit"}')
    refused(tmp_path, "lacks what a model folder needs.*pretrained_cfg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("label_names"), "has no class names; give label_names"),
        (lambda v: v["label_names"].pop(), "9 label_names for 10 classes"),
        (lambda v: v.update(architecture="dasvit_nano"), "'dasvit_nano' is no network"),
        (lambda v: v["model_args"].update(embed_dim=9), "describes no network .*msa_h2.*dim=9"),
        (lambda v: v["model_args"]["genotype"].pop("schema"), "is not a genotype"),
        (lambda v: v["model_args"].update(depth=2), "does not fit its config.json .* key.s. in"),
        (lambda v: v["model_args"].update(wings=2), "model_args has wings, which a folder may not"),
        (
            lambda v: v["model_args"].update(checkpoint_path="evil.pth"),
            "has checkpoint_path, which",
        ),
        (lambda v: v["model_args"].update(pretrained=True), "model_args has pretrained, which"),
        (lambda v: v["model_args"].update(pretrained_cfg={"file": "x"}), "has pretrained_cfg"),
        (lambda v: v["model_args"].update(genotype="/etc/passwd"), "genotype .* must be an object"),
        (lambda v: v["model_args"].update(num_heads=3), "describes no network .*num_heads"),
        (lambda v: v["pretrained_cfg"].update(std=[0.0]), "std above 0"),
        (lambda v: v["pretrained_cfg"].update(mean=[1, 2]), "needs 1 finite number of each"),
        (lambda v: v["pretrained_cfg"].update(mean=[math.nan]), "needs 1 finite number of each"),
        (lambda v: v["pretrained_cfg"].update(input_size=[1, 16, 16]), "of img_size 8; give both"),
        (lambda v: v["pretrained_cfg"].update(input_size=[2, 8, 8]), r"input_size \[2, 8, 8\]"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    own: Path,
    change: Callable[[dict[str, Any]], Any],
    message: str,
) -> None:
    refused(edit(own, change), message)


def test_weights_that_do_not_fit_are_refused(own: Path) -> None:
    path = own / "model" / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    refused(own / "model", r"there are no weights .*model\.safetensors")
    for size in (0, 20, len(content) - 1):
        path.write_bytes(content[:size])
        refused(own / "model", r"model\.safetensors does not fit its config\.json or is truncated")
    other = timm.create_model("test_vit", num_classes=10)
    safetensors.torch.save_file(other.state_dict(), path)
    refused(own / "model", r"does not fit its config\.json")


def test_too_little_disk(tmp_path: Path) -> None:
    check_room(tmp_path / "new" / "file", 1)
    with pytest.raises(ValueError, match=r"file needs 1073741824\.0 MiB, but only"):
        check_room(tmp_path / "file", 2**50)


def test_a_failed_write_loses_nothing(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = open_trained(own, CPU)
    before = runs.files_of(own)

    def full(path: Path, content: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dasvit.training.model_folder, "write_atomic", full)
    with pytest.raises(ValueError, match=r"cannot write .*No space left on device"):
        save_model_folder(own / "model", trained.model, trained.facts, "card")
    assert runs.files_of(own) == before
