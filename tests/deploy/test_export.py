"""Exports: others run them, with the logits of the network they came from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.retrain_runs import train_digits
from support.runs import files_of, names_in, room_for

import dasvit.deploy.export
from dasvit.cli import main
from dasvit.deploy.export import FORMATS, export
from dasvit.training.model_folder import load, save_model_folder

BATCH = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def expected(folder: Path, batch: torch.Tensor = BATCH) -> torch.Tensor:
    with torch.no_grad():
        return load(folder).model(batch)


def run(to: str, path: Path, batch: torch.Tensor = BATCH) -> torch.Tensor:
    """The logits of an exported network, by what others run it with."""
    with torch.no_grad():
        if to == "safetensors":
            return timm.create_model(f"local-dir:{path}", pretrained=True).eval()(batch)
        if to == "torch-export":
            return torch.export.load(path).module()(batch)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: batch.numpy()})[0])


def close(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-5 * max(1, wanted.abs().max()))


@pytest.fixture(autouse=True)
def _installed(request: pytest.FixtureRequest) -> None:
    if "onnx" in request.node.name:
        pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("model", "to"),
    [
        *(("encoder", to) for to in FORMATS),
        *(("input", "torch-export"), ("edge", "onnx"), ("test_resnet", "onnx")),
    ],
)
def test_others_run_it(
    model: str, to: str, trained_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retrainings' folders, and model folders with token selection at the "input" or each "edge";
    of batch sizes too (4 and 7) that were not compared on export."""
    folder = tmp_path / "net"
    facts = load(trained_encoder).facts
    if model in ("input", "edge"):
        facts.model_args.update(token_ratio=0.5, token_where=model)
        network = timm.create_model("dasvit", **facts.model_args).eval()
        save_model_folder(folder, network, facts, "card")
    elif model == "encoder":
        shutil.copytree(trained_encoder, folder)
    else:
        train_digits(folder, monkeypatch, model)
    done = export(folder, to)
    assert done.path == tmp_path / f"net{FORMATS[to]}"
    assert set(names_in(tmp_path)) == {"net", done.path.name}
    files = list(done.path.iterdir()) if to == "safetensors" else [done.path]
    assert done.size == sum(file.stat().st_size for file in files)
    assert 0 <= done.max_difference <= 1e-5 * max(1, done.max_logit) and done.max_logit > 0
    for count in (1, 4, 7):
        close(run(to, done.path, BATCH[:count]), expected(folder, BATCH[:count]))
    if to == "safetensors":
        assert names_in(done.path) == names_in(folder / "model")
        return
    props = {key: json.loads(value) for key, value in metadata_in(to, done.path).items()}
    assert props["class_names"] == list(facts.class_names)
    assert (props["mean"], props["std"]) == (list(facts.mean), list(facts.std))
    assert props["input_size"] == [1, 8, 8]


def metadata_in(to: str, path: Path) -> dict[str, str]:
    if to == "torch-export":
        extra = {"dasvit.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["dasvit.json"])
    import onnx

    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_param and [d.dim_value for d in dims[1:]] == [1, 8, 8]
    return {p.key: p.value for p in proto.metadata_props}


# --- Refusals


def test_a_difference_is_refused(
    trained_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(change: Any) -> None:
        monkeypatch.setitem(
            dasvit.deploy.export._WRITERS,
            "torch-export",
            lambda program, facts: (b"net", lambda images: change(program.module()(images))),
        )

    wrong(lambda logits: logits + 1e-3)
    with pytest.raises(ValueError, match=r"logits differ by 1\.00e-03.*nothing was written"):
        export(trained_encoder, "torch-export", tmp_path / "net.pt2")
    export(trained_encoder, "torch-export", tmp_path / "net.pt2", tolerance=2e-3)
    wrong(lambda logits: logits * torch.nan)
    with pytest.raises(ValueError, match="logits differ by nan"):
        export(trained_encoder, "torch-export", tmp_path / "nan.pt2")
    wrong(lambda logits: logits.missing)
    with pytest.raises(ValueError, match=r"does not run on 1 images .*nothing was written"):
        export(trained_encoder, "torch-export", tmp_path / "error.pt2")
    assert names_in(tmp_path) == ["net.pt2"]


def test_what_exists_is_not_overwritten(own: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("precious")
    with pytest.raises(ValueError, match=r"net\.pt2 exists; .* --force"):
        export(own, "torch-export", path)
    assert path.read_text() == "precious"
    export(own, "torch-export", path, force=True)
    close(run("torch-export", path), expected(own))

    before = files_of(own)
    for source, to, out, message in (
        (own, "safetensors", own, "holds checkpoint.pt"),
        (own, "safetensors", own / "result.json", "no model folder of an earlier export"),
        (own, "safetensors", own / "model", "no model folder of an earlier export"),
        (own, "onnx", own / "model", "is a folder; --to onnx writes one file"),
        (own, "torch-export", tmp_path / "nowhere" / "net.pt2", r"there is no folder .*nowhere"),
        (own, "tflite", None, r"--to must be one of onnx.*but got 'tflite'"),
    ):
        with pytest.raises(ValueError, match=message):
            export(source, to, out, force=True)
    assert files_of(own) == before
    export(own, "safetensors", tmp_path / "again")
    export(own, "safetensors", tmp_path / "again", force=True)
    close(run("safetensors", tmp_path / "again"), expected(own))


def test_too_little_disk_or_a_missing_package(
    trained_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for to in ("torch-export", "safetensors"):
        with room_for(1000), pytest.raises(ValueError, match=r"cannot write .*free some disk"):
            export(trained_encoder, to, tmp_path / "net")
    monkeypatch.setattr(dasvit.run.files.shutil, "disk_usage", lambda path: Full)
    for to in ("torch-export", "safetensors"):
        with pytest.raises(ValueError, match=r"needs 0\.00 GB, and its disk has 0\.00 GB free"):
            export(trained_encoder, to, tmp_path / "net")
    monkeypatch.setattr(dasvit.deploy.export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'--to onnx needs onnx.*pip install "dasvit\[export\]"'):
        export(trained_encoder, "onnx", tmp_path / "net.onnx")
    assert names_in(tmp_path) == []


class Full:
    """A disk."""

    free = 1000


def test_on_the_command_line(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", str(own), "--to", "torch-export"])
    out = capsys.readouterr().out
    assert "largest difference of a logit: " in out
    assert f"torch-export: {tmp_path / 'own.pt2'} (" in out
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(tmp_path), "--to", "onnx"])
    assert capsys.readouterr().err.startswith("error: ")
