"""Trained networks in the formats that others run, each compared with the network it came from."""

import importlib.util
import io
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dasvit.run.files import check_free_space, first_line, replace_folder, write_atomic
from dasvit.run.seed import generator
from dasvit.training.model_folder import FILES, ModelFacts, Trained, find_model_folder, load

__all__ = ["FORMATS", "TOLERANCE", "Exported", "export", "metadata"]

FORMATS = {
    "onnx": ".onnx",
    "safetensors": "-safetensors",
    "torch-export": ".pt2",
}
"""What can be written, and how its name ends."""
TOLERANCE = 1e-5
"""Largest difference of a logit, in units of max(1, the largest logit)."""
BATCHES = (1, 2, 5)
"""Batch sizes that are compared; the second is the one that is traced."""
_PROTOBUF_LIMIT = 2**31 - 2**20

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        max_difference: largest absolute difference of a logit over batches of 1, 2 and 5 random
            images. max_logit: the largest absolute logit among them.
    """

    path: Path
    size: int
    max_difference: float
    max_logit: float


def metadata(facts: ModelFacts) -> dict[str, str]:
    """What a network's user needs besides the graph; the values are JSON."""
    return {
        "architecture": json.dumps(facts.architecture),
        "class_names": json.dumps(list(facts.class_names)),
        "input_size": json.dumps([facts.in_channels, facts.image_size, facts.image_size]),
        "mean": json.dumps(list(facts.mean)),
        "std": json.dumps(list(facts.std)),
        "resize": json.dumps("bilinear, antialiased, shorter side, middle cut out"),
        "pixel_range": json.dumps([0, 1]),
    }


def export(
    folder: str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    force: bool = False,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write a trained network in another format, after its logits were found equal (fp32, CPU).

    Args:
        folder: a retraining's, a sweep's best/, or a model folder.
        to: one of `FORMATS`.
        out: file or (safetensors) folder; by default beside `folder`, under its name.
        force: replace what lies there.

    Raises:
        ValueError: an unknown format, no such model, an output that exists, too little disk, a
            package that is missing, or logits that differ.
    """
    if to not in FORMATS:
        raise ValueError(f"--to must be one of {', '.join(FORMATS)}, but got {to!r}")
    if out is None:
        whole = Path(folder).resolve()
        out = whole.with_name(whole.name + FORMATS[to])
    path, source = Path(out), find_model_folder(folder)
    if path.exists() and not force:
        raise ValueError(f"{path} exists; choose another --out, or replace it with --force")
    if path.exists() and to == "safetensors":
        _check_replaceable(path, source.resolve())
    elif path.is_dir():
        raise ValueError(f"{path} is a folder; --to {to} writes one file")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}; make it, or choose another --out")
    if to == "onnx":
        _check_onnx()
    trained = load(folder)
    weights = sum(t.nbytes for t in trained.model.state_dict().values())
    check_free_space(path, int(1.1 * weights) + 2**20)
    if to == "safetensors":
        return _copy_folder(trained, source, path, tolerance)
    content, run = _convert(trained, to)
    differences = _compare(trained, run, to, tolerance)
    check_free_space(path, len(content))
    try:
        write_atomic(path, content)
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error}); free some disk or rights") from None
    return Exported(path, len(content), *differences)


def _check_replaceable(path: Path, source: Path) -> None:
    """--force replaces a model folder, never anything else and never the source."""
    foreign = sorted(p.name for p in path.iterdir() if p.name not in FILES) if path.is_dir() else []
    if not path.is_dir() or foreign or path.resolve() in (source, *source.parents):
        what = f"holds {foreign[0]}" if foreign else "is no model folder of an earlier export"
        raise ValueError(f"{path} {what}; choose another --out")


def _copy_folder(trained: Trained, source: Path, path: Path, tolerance: float) -> Exported:
    """The model folder itself, loaded again before it takes its place."""
    found: list[Exported] = []

    def fill(fresh: Path) -> None:
        for file in filter(Path.is_file, (source / name for name in FILES)):
            shutil.copyfile(file, fresh / file.name)
        differences = _compare(trained, load(fresh).model, "safetensors", tolerance)
        size = sum(file.stat().st_size for file in fresh.iterdir())
        found.append(Exported(path, size, *differences))

    replace_folder(path, fill)
    return found[0]


def _compare(trained: Trained, run: Run, to: str, tolerance: float) -> tuple[float, float]:
    facts = trained.facts
    difference = largest = 0.0
    for count in BATCHES:
        shape = (count, facts.in_channels, facts.image_size, facts.image_size)
        images = torch.randn(shape, generator=generator(0, "export", count))
        with torch.no_grad():
            expected = trained.model(images)
            try:
                gap = (run(images) - expected).abs().max().item()
            except Exception as error:  # the runtime's own kinds
                raise ValueError(
                    f"the {to} form does not run on {count} images ({first_line(error)}); nothing "
                    "was written"
                ) from None
        largest = max(largest, expected.abs().max().item())
        if not gap <= tolerance * max(1.0, largest):  # NaN too
            raise ValueError(
                f"the {to} form's logits differ by {gap:.2e} (largest logit {largest:.2e}, "
                f"tolerance {tolerance:g}); nothing was written"
            )
        difference = max(difference, gap)
    return difference, largest


def _check_onnx() -> None:
    missing = [p for p in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(p)]
    if missing:
        raise ValueError(
            f"--to onnx needs {', '.join(missing)}, not installed here; "
            'pip install "dasvit[export]"'
        )


def _write_onnx(program: ExportedProgram, facts: ModelFacts) -> tuple[bytes, Run]:
    import onnx
    import onnxruntime

    made: Any = torch.onnx.export(
        program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
    )
    proto = made.model_proto
    onnx.helper.set_model_props(proto, metadata(facts))
    if proto.ByteSize() > _PROTOBUF_LIMIT:
        raise ValueError(
            f"the network has {proto.ByteSize() / 2**30:.1f} GiB, over ONNX's 2 GiB for one file"
        )
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)

    return content, run


def _write_torch_export(program: ExportedProgram, facts: ModelFacts) -> tuple[bytes, Run]:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"dasvit.json": json.dumps(metadata(facts))})
    buffer.seek(0)
    return buffer.getvalue(), torch.export.load(buffer).module()


_WRITERS: dict[str, Callable[[ExportedProgram, ModelFacts], tuple[bytes, Run]]] = {
    "onnx": _write_onnx,
    "torch-export": _write_torch_export,
}


def _convert(trained: Trained, to: str) -> tuple[bytes, Run]:
    """The file's content, and the network in it; many kinds of errors become one line."""
    facts = trained.facts
    shape = (BATCHES[1], facts.in_channels, facts.image_size, facts.image_size)
    images = torch.randn(shape, generator=generator(0, "export"))
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        # The ONNX exporter warns of what it does inside; the comparison that follows counts.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(trained.model, (images,), dynamic_shapes=shapes)
            return _WRITERS[to](program, facts)
    except Exception as error:
        raise ValueError(
            f"PyTorch cannot turn this network into {to} ({first_line(error)}); "
            "--to safetensors always works"
        ) from None
