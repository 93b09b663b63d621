"""A model folder: what a retraining leaves, timm loads, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from support import runs
from support.retrain_runs import train_digits
from support.runs import names_in
from timm.data import create_transform, resolve_data_config

from dasvit.data.datasets import load_data
from dasvit.deploy.predict import read_image
from dasvit.report.record import load_retrain_result, read_trace
from dasvit.run.checkpoint import load_checkpoint
from dasvit.spaces.cell.genotype import Genotype
from dasvit.training.loop import evaluate
from dasvit.training.model_folder import (
    RETRAIN_KIND,
    load,
    load_retrain_config,
    model_card,
    save_model_folder,
)

BATCH = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def by_timm(folder: Path, **changes: Any) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **changes).eval()


@pytest.mark.parametrize("name", ["encoder", "vit", "test_vit", "test_resnet"])
def test_what_a_retraining_leaves(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trained weights, with the accuracy of the result; timm loads them."""
    side = 16 if name == "test_vit" else 8  # the patch size of timm's
    data = replace(runs.DIGITS, image_size=side)
    run = train_digits(tmp_path / "run", monkeypatch, name, data=data, channels_last=True)
    genotype = ["genotype.json"] * (name == "encoder")
    assert names_in(run) == [
        *("checkpoint.pt", "config.json", *genotype, "model", "result.json", "train.jsonl"),
    ]
    assert names_in(run / "model") == ["README.md", "config.json", *genotype, "model.safetensors"]
    config, result = load_retrain_config(run), load_retrain_result(run / "result.json")
    assert config.data == data and config.channels_last

    trained = load(run)
    state = load_checkpoint(run / "checkpoint.pt", RETRAIN_KIND)["model"]
    torch.testing.assert_close(dict(trained.model.state_dict()), dict(state), rtol=0, atol=0)
    tested = evaluate(run)
    assert (tested.accuracy, tested.top5_accuracy) == (result.test_top1, result.test_top5)
    assert tested.balanced_accuracy == result.balanced_accuracy
    assert tested.largest_class == result.largest_class
    assert tested.confusion == tuple(map(tuple, result.confusion))
    assert tested.class_names == tuple(result.class_names) == tuple("0123456789")
    assert result.model == config.model
    assert result.num_params == sum(p.numel() for p in trained.model.parameters())
    assert result.train_accuracy == read_trace(run / "train.jsonl")[-1]["train_accuracy"]
    assert result.peak_memory_bytes and 100e6 < result.peak_memory_bytes < 50e9
    assert result.latency_seconds and 1e-5 < result.latency_seconds < 10

    model, alone = by_timm(run / "model"), load(run / "model")
    assert alone.facts == trained.facts
    batch = torch.randn(2, 1, side, side)
    for other in (model, alone.model):
        assert torch.equal(other(batch), trained.model(batch))
    if genotype:
        assert Genotype.load(run / "model" / "genotype.json") == runs.ENCODER == model.genotype
    images = load_data(data, torch.device("cpu"))
    resolved = resolve_data_config(model=model)
    assert (tuple(resolved["input_size"]), resolved["crop_pct"]) == ((1, side, side), 1.0)
    assert tuple(resolved["mean"]) == trained.facts.mean == images.mean
    assert tuple(resolved["std"]) == trained.facts.std == images.std
    cfg = model.pretrained_cfg
    assert tuple(cfg["label_names"]) == trained.facts.class_names == images.class_names
    assert not {"tag", "license", "hf_hub_id", "url"} & {k for k, v in cfg.items() if v}
    assert by_timm(run / "model", num_classes=3)(batch).shape == (2, 3)


def test_timm_loads_it_at_another_size(trained_encoder: Path) -> None:
    larger, model = by_timm(trained_encoder / "model", img_size=16), load(trained_encoder).model
    network: Any = model
    network.set_input_size(16)
    batch = torch.randn(2, 1, 16, 16)
    assert torch.equal(larger(batch), model(batch))


@pytest.mark.parametrize("size", [(30, 14), (11, 40)])
def test_timms_own_transform_feeds_it_as_in_training(
    size: tuple[int, int], trained_encoder: Path, tmp_path: Path
) -> None:
    """Long images too, up to the rounding of a resized pixel to 8 bits, here and there."""
    facts = load(trained_encoder).facts
    pixels = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "long.png")
    config = resolve_data_config(model=by_timm(trained_encoder / "model"))
    transform: Any = create_transform(**config)
    theirs = transform(Image.open(tmp_path / "long.png"))
    step = 1 / 255 / min(facts.std)
    gap = (theirs - read_image(tmp_path / "long.png", facts)).abs()
    assert gap.max() <= 2.01 * step and gap.mean() <= 0.6 * step


def test_the_place_of_the_data_stays_at_home(tmp_path: Path, trained_encoder: Path) -> None:
    trained = load(trained_encoder)
    settings = {"dim": 12, "data": {"dataset": "folder", "data_dir": "/home/somebody/photos"}}
    genotype = Genotype(runs.ENCODER.nodes, {"seed": 3, "settings": settings}).to_dict()
    facts = replace(trained.facts, model_args=trained.facts.model_args | {"genotype": genotype})
    save_model_folder(tmp_path / "model", trained.model, facts, "")
    for path in (tmp_path / "model").glob("*.json"):
        assert "somebody" not in path.read_text()
    left = Genotype.load(tmp_path / "model" / "genotype.json").provenance
    assert left == {"seed": 3, "settings": {"dim": 12, "data": {"dataset": "folder"}}}
    assert genotype["provenance"]["settings"]["data"]["data_dir"] == "/home/somebody/photos"


@pytest.mark.parametrize("where", ["input", "edge"])
def test_networks_with_token_selection(where: str, tmp_path: Path, trained_encoder: Path) -> None:
    facts = load(trained_encoder).facts
    facts.model_args.update(token_ratio=0.5, token_where=where)
    model = timm.create_model("dasvit", **facts.model_args).eval()
    save_model_folder(tmp_path / where, model, facts, "card")
    again = load(tmp_path / where)
    assert again.facts == facts
    assert torch.equal(again.model(BATCH), model(BATCH))


def test_the_card(trained_encoder: Path) -> None:
    text = (trained_encoder / "model" / "README.md").read_text()
    result = load_retrain_result(trained_encoder / "result.json")
    assert text.startswith("---\nlibrary_name: timm\n")
    for part in (
        f"| test accuracy | {100 * result.test_top1:.2f} % |",
        f"| parameters | {result.num_params:,} |",
        "o_0 = msa_h2(e_{k-2}) + mlp_r0.5(e_{k-1})\n",
        "import dasvit.models  # registers the architecture",
    ):
        assert part in text
    assert "--plugins" not in text
    facts, config = load(trained_encoder).facts, load_retrain_config(trained_encoder)
    other = replace(facts, architecture="autoformer_base_patch16_224", model_args={})
    assert "import dasvit.models  #" in model_card(other, config, result)
    other = replace(other, architecture="vit_base_patch16_224")
    assert "import dasvit" not in model_card(other, config, result)
    for method, title in (("dasvit", "DASViT"), ("of_a_plugin", "of_a_plugin")):
        genotype = Genotype(runs.ENCODER.nodes, {"settings": {"method": {"name": method}}})
        found = replace(facts, model_args=facts.model_args | {"genotype": genotype.to_dict()})
        assert f"search ({title}):\n" in model_card(found, config, result)
    text = model_card(facts, replace(config, plugins=("mine.ops",)), result)
    assert "import mine.ops  # registers operations of its own" in text
    assert "--model PATH_OF_THIS_FOLDER --plugins mine.ops IMAGE" in text


def test_plugins_are_imported_for_unknown_operations_alone(own: Path) -> None:
    config, model = own / "config.json", own / "model" / "config.json"
    values = json.loads(config.read_text())
    values["config"]["plugins"] = ["gone"]
    config.write_text(json.dumps(values))
    load(own)
    values = json.loads(model.read_text().replace("mlp_r0.5", "gone_r0.5"))
    del values["model_args"]["genotype"]["hash"]
    model.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"gone_r0\.5.*cannot import 'gone'"):
        load(own)


def test_a_fresh_process_loads_it(trained_encoder: Path) -> None:
    line = "import sys, dasvit; print(dasvit.load(sys.argv[1]).facts.architecture)"
    argv = [sys.executable, "-c", line, trained_encoder / "model"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "dasvit\n"


# --- Refusals


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "there is no folder .*nowhere")
    for text, message in (
        ('{"kind": "dasvit/search/1", "config": {}}', "holds no model; give the folder of a fin"),
        ('{"architecture": "dasvit"', r"config\.json is not valid JSON"),
        ("[]", "holds no model"),
        ('{"architecture": "dasvit"}', "lacks what a model folder needs.*pretrained_cfg"),
    ):
        (tmp_path / "config.json").write_text(text)
        refused(tmp_path, message)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"label_names": None}, "has no class names; give label_names"),
        ("", {"label_names": ["a"] * 9}, "9 label_names for 10 classes"),
        ("", {"architecture": "dasvit_nano"}, "'dasvit_nano' is no network"),
        ("model_args", {"embed_dim": 9}, "describes no network .*msa_h2.*dim=9"),
        ("model_args", {"genotype": {"nodes": []}}, "is not a genotype"),
        ("model_args", {"checkpoint_path": "evil.pth"}, "has checkpoint_path, which"),
        ("model_args", {"genotype": "/etc/passwd"}, "genotype .* must be an object"),
        ("pretrained_cfg", {"std": [0.0]}, "std above 0"),
        ("pretrained_cfg", {"mean": [1, 2]}, r"as many finite numbers of each .*\(1\)"),
        ("pretrained_cfg", {"mean": "dark"}, "lacks what a model folder needs"),
        ("pretrained_cfg", {"input_size": [1, 16, 16]}, r"img_size \[8, 8\]; give both"),
        ("pretrained_cfg", {"input_size": [2, 8, 8]}, r"input_size \[2, 8, 8\]"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    own: Path, part: str, change: dict[str, Any], message: str
) -> None:
    path = own / "model" / "config.json"
    values = json.loads(path.read_text())
    (values[part] if part else values).update(change)
    path.write_text(json.dumps(values))
    refused(own, message)


def test_weights_that_do_not_fit_are_refused(own: Path) -> None:
    path = own / "model" / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    refused(own, r"there are no weights .*model\.safetensors")
    path.write_bytes(content[:-1])
    refused(own, r"model\.safetensors does not fit its config\.json or is truncated")
    other = timm.create_model("test_vit", num_classes=10)
    safetensors.torch.save_file(other.state_dict(), path)
    refused(own, r"does not fit its config\.json")


def test_a_failed_write_loses_nothing(own: Path) -> None:
    trained = load(own)
    before = runs.files_of(own)
    with runs.room_for(3000), pytest.raises(ValueError, match=r"cannot write .*free some disk"):
        save_model_folder(own / "model", trained.model, trained.facts, "card")
    assert runs.files_of(own) == before
