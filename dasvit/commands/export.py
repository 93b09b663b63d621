"""`export`: write a trained network for others to run."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dasvit.commands.arguments import Arg

__all__ = ["Args", "run"]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Write a trained network as ONNX, as a model folder, or as a PyTorch program.

    Its logits are compared with the network's before anything is written.
    python -m dasvit export runs/digits/best --to onnx
    """

    folder: Annotated[str, Arg(positional=True, metavar="FOLDER")]
    """Folder of a finished retraining, a sweep's best/, or a model folder."""
    to: Literal["onnx", "safetensors", "torch-export"]
    """onnx; safetensors (the folder that timm and the Hugging Face Hub load); torch-export
    (.pt2)."""
    out: Annotated[str | None, Arg(metavar="PATH")] = None
    """File, or folder for safetensors (default: beside FOLDER, under its name)."""
    force: bool = False
    """Replace what an earlier export wrote there."""
    tolerance: float = 1e-5
    """Largest difference of a logit, in units of max(1, the largest logit)."""
    plugins: Annotated[tuple[str, ...], Arg(metavar="MODULE")] = ()
    """Python modules to import first; they may register operations of their own."""


def run(args: Args) -> None:
    """Export, and say how far the logits are from the network's."""
    from dasvit.deploy.export import export
    from dasvit.run.plugins import load_plugins

    load_plugins(args.plugins)
    done = export(args.folder, args.to, args.out, force=args.force, tolerance=args.tolerance)
    print(
        f"largest difference of a logit: {done.max_difference:.2e} (largest logit "
        f"{done.max_logit:.2e})"
    )
    print(f"{args.to}: {done.path} ({done.size / 2**20:.1f} MiB)")
