"""The model card: what a network is, how it was trained, and what was measured."""

import importlib.metadata

import timm

import dasvit
from dasvit.report.events import RetrainResult
from dasvit.spaces.cell.genotype import Genotype
from dasvit.training.config import RetrainConfig
from dasvit.training.model_folder import ModelFacts

__all__ = ["model_card"]

FOUND = ", its encoder found by differentiable architecture search (DASViT)"


def model_card(
    facts: ModelFacts, config: RetrainConfig | None = None, result: RetrainResult | None = None
) -> str:
    """README.md of a model folder, in the Hugging Face Hub's form.

    Args:
        config: of the training; None where it is not known.
        result: of the training; without it no number is printed.
    """
    genotype = facts.model_args.get("genotype")
    encoder = str(Genotype.from_dict(genotype)) if genotype else None
    parts = [
        "---\nlibrary_name: timm\npipeline_tag: image-classification\n"
        "tags:\n- image-classification\n- timm\n- dasvit\n---\n",
        f"# {facts.architecture}\n",
        f"An image classifier{FOUND if encoder else ''}.\n",
    ]
    if encoder:
        parts.append("```text\n" + encoder.replace("; ", "\n") + "\n```\n")
    parts += ["## Measured\n", _measured(config, result), "## Images\n", _images(facts)]
    parts += ["## Use\n", _use(facts, config.plugins if config is not None else ())]
    return "\n".join(parts)


def _measured(config: RetrainConfig | None, result: RetrainResult | None) -> str:
    if result is None:
        return "Not measured.\n"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm"))
    rows = [
        ("test top-1 accuracy", f"{100 * result.test_top1:.2f} %"),
        ("test top-5 accuracy", f"{100 * result.test_top5:.2f} %"),
        ("training accuracy, last epoch", f"{100 * result.train_accuracy:.2f} %"),
        ("parameters", f"{result.num_params:,}"),
        ("training time", f"{result.seconds:.0f} s"),
    ]
    if config is not None:
        rows += [
            ("data set", config.data.dataset),
            ("epochs", str(config.epochs)),
            ("seed", str(config.seed)),
        ]
    rows.append(("written by", f"dasvit {dasvit.__version__}, {versions}"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"One run; the test set was looked at once.\n\n| | |\n| --- | --- |\n{table}\n"


def _images(facts: ModelFacts) -> str:
    kind = "grey" if facts.in_channels == 1 else "RGB"
    size = facts.image_size
    names = ", ".join(facts.class_names[:20]) + (" …" if len(facts.class_names) > 20 else "")
    return (
        f"As {kind}, the shorter side resized to {size} (bilinear, antialiased), the middle "
        f"{size} × {size} cut out, scaled to [0, 1], less the mean {_numbers(facts.mean)}, over "
        f"the standard deviation {_numbers(facts.std)}.\n\n"
        f"{len(facts.class_names)} classes: {names}\n"
    )


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{v:.4f}" for v in values)


def _use(facts: ModelFacts, plugins: tuple[str, ...]) -> str:
    register = "".join(
        f"import {module}  # registers {what}\n" for module, what in _modules(facts, plugins)
    )
    flags = f" --plugins {' '.join(plugins)}" if plugins else ""
    return (
        f"```python\nimport timm\n{register}"
        + '\nmodel = timm.create_model("local-dir:PATH_OF_THIS_FOLDER", pretrained=True).eval()\n'
        "```\n\n"
        f"```bash\npython -m dasvit predict --model PATH_OF_THIS_FOLDER{flags} IMAGE\n```\n"
    )


def _modules(facts: ModelFacts, plugins: tuple[str, ...]) -> list[tuple[str, str]]:
    """What must be imported before timm knows the network, and why."""
    module = timm.model_entrypoint(facts.architecture).__module__
    own = [(module, "the architecture")] if module.startswith("dasvit.") else []
    return own + [(name, "operations of its own") for name in plugins]
