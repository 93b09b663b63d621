"""Exports: others run them, with the logits of the network they came from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from dasvit.training.trained import open_trained
from support.runs import files_of, names_in
from support.trained_runs import train_digits

import dasvit.deploy.export
from dasvit.cli import main
from dasvit.deploy.export import FORMATS, export
from dasvit.training.model_folder import save_model_folder

CPU = torch.device("cpu")
BATCH = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def expected(folder: Path, batch: torch.Tensor = BATCH) -> torch.Tensor:
    with torch.no_grad():
        return open_trained(folder, CPU).model(batch)


def close(actual: Any, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(actual), wanted, rtol=0, atol=1e-5)


def onnx_logits(path: Path, batch: torch.Tensor = BATCH) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch.numpy()})[0]


def test_onnx_runs_in_onnxruntime(trained_encoder: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "net.onnx"
    done = export(trained_encoder, "onnx", path)
    assert (done.path, done.size) == (path, path.stat().st_size)
    assert 0 <= done.max_difference <= 1e-5 and done.max_logit > 0
    assert names_in(tmp_path) == ["net.onnx"]
    for count in (1, 4, 7):  # 4 and 7 are none of those compared on export
        close(onnx_logits(path, BATCH[:count]), expected(trained_encoder, BATCH[:count]))
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    facts = open_trained(trained_encoder, CPU).facts
    props = {p.key: json.loads(p.value) for p in proto.metadata_props}
    assert props["class_names"] == list(facts.class_names)
    assert props["mean"] == list(facts.mean) and props["std"] == list(facts.std)
    assert props["input_size"] == [1, 8, 8]
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_param and [d.dim_value for d in dims[1:]] == [1, 8, 8]


def test_torch_export(trained_encoder: Path, tmp_path: Path) -> None:
    export(trained_encoder, "torch-export", tmp_path / "net.pt2")
    extra = {"dasvit.json": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=extra).module()
    for count in (1, 7):
        close(program(BATCH[:count]).detach(), expected(trained_encoder, BATCH[:count]))
    assert json.loads(json.loads(extra["dasvit.json"])["input_size"]) == [1, 8, 8]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript(trained_encoder: Path, tmp_path: Path) -> None:
    export(trained_encoder, "torchscript", tmp_path / "net.pt")
    program = torch.jit.load(tmp_path / "net.pt")
    for count in (1, 7):
        close(program(BATCH[:count]).detach(), expected(trained_encoder, BATCH[:count]))


def test_safetensors(trained_encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "net"
    done = export(trained_encoder, "safetensors", out)
    assert done.max_difference == 0
    assert names_in(out) == ["README.md", "config.json", "genotype.json", "model.safetensors"]
    assert names_in(tmp_path) == ["net"]
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    close(model(BATCH).detach(), expected(trained_encoder))
    tensors = safetensors.torch.load_file(out / "model.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    assert "test top-1 accuracy" in (out / "README.md").read_text()


@pytest.mark.parametrize("where", ["input", "edge"])
@pytest.mark.parametrize("to", ["onnx", "torch-export", "torchscript"])
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_token_selection_is_exported(
    to: str, where: str, trained_encoder: Path, tmp_path: Path
) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    facts = open_trained(trained_encoder, CPU).facts
    args = facts.model_args | {"token_ratio": 0.5, "token_where": where}
    model = timm.create_model("dasvit", **args).eval()
    save_model_folder(tmp_path / "net", model, replace(facts, model_args=args), "card")
    done = export(tmp_path / "net", to)
    assert done.path == tmp_path / f"net{FORMATS[to]}"
    load = {
        "onnx": lambda p: lambda x: onnx_logits(p, x),
        "torch-export": lambda p: torch.export.load(p).module(),
        "torchscript": torch.jit.load,
    }[to]
    with torch.no_grad():
        close(load(done.path)(BATCH), model(BATCH))


@pytest.mark.parametrize("name", ["vit", "test_resnet"])
def test_comparators_as_onnx(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    folder = train_digits(tmp_path / "run", monkeypatch, name)
    done = export(folder, "onnx")
    assert done.path == tmp_path / "run.onnx"
    wanted = expected(folder)
    np.testing.assert_allclose(
        onnx_logits(done.path), wanted, rtol=0, atol=1e-5 * max(1, wanted.abs().max().item())
    )


# --- Refusals


def test_a_difference_is_refused(
    trained_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = dasvit.deploy.export._write_torch_export

    def wrong(model: torch.nn.Module, facts: Any) -> Any:
        content, run = true(model, facts)
        return content, lambda images: run(images) + 1e-3

    monkeypatch.setitem(dasvit.deploy.export._WRITERS, "torch-export", wrong)
    with pytest.raises(ValueError, match=r"logits differ by 1\.00e-03.*nothing was written"):
        export(trained_encoder, "torch-export", tmp_path / "net.pt2")
    export(trained_encoder, "torch-export", tmp_path / "net.pt2", tolerance=2e-3)
    monkeypatch.setitem(
        dasvit.deploy.export._WRITERS,
        "torch-export",
        lambda *a: (b"", lambda x: x.sum() * torch.nan),
    )
    with pytest.raises(ValueError, match=r"gives \(\) for \(1, 10\); nothing was written"):
        export(trained_encoder, "torch-export", tmp_path / "nan.pt2")
    assert names_in(tmp_path) == ["net.pt2"]


def test_what_exists_is_not_overwritten(own: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("precious")
    with pytest.raises(ValueError, match=r"net\.pt2 exists; .* --force"):
        export(own, "torch-export", path)
    assert path.read_text() == "precious"
    export(own, "torch-export", path, force=True)
    close(torch.export.load(path).module()(BATCH).detach(), expected(own))

    before = files_of(own)
    for out, message in (
        (own, "holds checkpoint.pt"),
        (tmp_path, "holds "),
        (own / "model", "holds|no model folder"),
        (own / "result.json", "no model folder"),
    ):
        if out == own / "model":
            continue
        with pytest.raises(ValueError, match=message):
            export(own, "safetensors", out, force=True)
    with pytest.raises(ValueError, match="no model folder of an earlier export"):
        export(own / "model", "safetensors", own / "model", force=True)
    with pytest.raises(ValueError, match="is a folder; --to onnx writes one file"):
        export(own, "onnx", own / "model", force=True)
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        export(own, "torch-export", tmp_path / "nowhere" / "net.pt2")
    assert files_of(own) == before
    export(own, "safetensors", tmp_path / "again")
    export(own, "safetensors", tmp_path / "again", force=True)
    close(
        timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True)
        .eval()(BATCH)
        .detach(),
        expected(own),
    )


def test_too_little_disk_or_a_missing_package(
    trained_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(dasvit.training.model_folder.shutil, "disk_usage", lambda path: Full)
    for to in ("torch-export", "safetensors"):
        with pytest.raises(ValueError, match=r"needs .* MiB, but only 0\.0 MiB are free"):
            export(trained_encoder, to, tmp_path / "net")
    monkeypatch.setattr(dasvit.deploy.export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'--to onnx needs onnx.*pip install "dasvit\[export\]"'):
        export(trained_encoder, "onnx", tmp_path / "net.onnx")
    with pytest.raises(ValueError, match=r"--to must be one of onnx.*but got 'tflite'"):
        export(trained_encoder, "tflite")
    assert names_in(tmp_path) == []


def test_a_disk_that_fills_up(
    trained_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dasvit.deploy.export, "write_atomic", full)
    monkeypatch.setattr(dasvit.training.model_folder, "write_atomic", full)
    for to in ("torch-export", "safetensors"):
        with pytest.raises(ValueError, match=r"cannot write .*No space left"):
            export(trained_encoder, to, tmp_path / "net")
    assert names_in(tmp_path) == []


def test_on_the_command_line(
    own: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["export", str(own), "--to", "torch-export"])
    out = capsys.readouterr().out
    assert "largest difference of a logit: " in out
    assert f"torch-export: {tmp_path / 'own.pt2'} (" in out
    assert (tmp_path / "own.pt2").exists()
    for words, message in (
        ([str(tmp_path), "--to", "onnx"], "error: "),
        ([str(own), "--to", "tflite"], "error: "),
        ([str(own), "--to", "torch-export"], "exists"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["export", *words])
        assert stop.value.code == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
