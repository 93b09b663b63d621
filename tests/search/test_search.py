"""A search's determinism, golden trace, files and errors."""

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import runs
from support.runs import DIGITS, files_of, names_in, search_config
from support.search_runs import Searched, assert_same_run, run

import dasvit.search.loop
import dasvit.search.step
from dasvit.data.config import DataConfig
from dasvit.report.events import SearchEpoch, operation_share
from dasvit.report.record import load_search_result
from dasvit.run.checkpoint import load_checkpoint
from dasvit.run.settings import config_to_dict
from dasvit.search.architect import arch_gradient, weight_gradient
from dasvit.search.loop import KIND, load_search_config, search
from dasvit.spaces.cell.genotype import Genotype

GOLDEN = Path(__file__).parents[1] / "golden_search.txt"


@pytest.mark.usefixtures("few_searched")
def test_the_seed_decides(searched_once: Searched, tmp_path: Path) -> None:
    torch.rand(5)  # what happened before does not matter
    search(search_config(), tmp_path)
    assert_same_run(tmp_path, searched_once().folder)
    left, right = (searched_once(**seed).state["model"] for seed in ({}, {"seed": 1}))
    assert not torch.equal(left["arch.alpha"], right["arch.alpha"])
    assert not torch.equal(left["supernet.head.weight"], right["supernet.head.weight"])


# --- Golden trace


def golden_trace(folder: Path) -> str:
    """The first epochs of a tiny search, one line each.

    Few steps at a small rate: no token is near enough to the edge of the selection for the last
    bits, which differ between machines, to decide.
    """
    config = search_config(
        stage_epochs=1,
        batch_size=359,
        weight_lr=1e-3,
        weight_decay=1.0,
        alpha_lr=3e-3,
        skip_weight=1.0,
        xi=0.5,
        dropout=0.1,
    )
    lines = ["epoch train_loss val_loss fair_loss weight_lr identity zero entropy"]
    for e in run(config, folder).epochs:
        entropy = -sum(w * math.log(w) for row in e.weights for w in row) / len(e.weights)
        values = (
            *(e.train_loss, e.val_loss, e.penalty, e.weight_lr),
            operation_share(e.weights, e.edge_ops, "identity"),
            operation_share(e.weights, e.edge_ops, "zero"),
            entropy,
        )
        lines.append(" ".join([str(e.epoch), *(f"{v:.8g}" for v in values)]))
    return "\n".join(lines) + "\n"


def test_golden_trace(tmp_path: Path) -> None:
    """A refactor leaves the numbers alone. Regenerate: `python tests/search/test_search.py`."""
    expected = [line.split() for line in GOLDEN.read_text().splitlines() if line[0] != "#"]
    actual = [line.split() for line in golden_trace(tmp_path).splitlines()]
    assert actual[0] == expected[0]
    assert len(actual) == len(expected)
    for a, e in zip(actual[1:], expected[1:], strict=True):
        assert [float(x) for x in a] == pytest.approx([float(x) for x in e], rel=1e-4, abs=1e-6)


# --- Files


def test_files_of_a_search(searched_once: Searched) -> None:
    found, config = searched_once(), search_config()
    folder = found.folder
    files = ["alpha.jsonl", "checkpoint.pt", "config.json", "genotype.json", "result.json"]
    assert names_in(folder) == files
    assert load_search_config(folder) == config
    genotype = Genotype.load(folder / "genotype.json")
    assert genotype.provenance == {
        "seed": 0,
        "epoch": 6,
        "alpha_trace": "alpha.jsonl",
        "settings": config_to_dict(config),
    }
    result = load_search_result(folder / "result.json")
    assert result == found.result
    assert result.genotype == genotype
    assert result.settings == {**config.method.outer_settings(), "seed": 0}
    assert json.loads((folder / "result.json").read_text())["gap"] == result.gap
    names = {f.name for f in dataclasses.fields(SearchEpoch)} - {"seconds"}
    assert all(set(row) == names for row in runs.rows_without_times(folder / "alpha.jsonl"))


@pytest.mark.usefixtures("few_searched")
def test_a_folder_is_used_once(searched_once: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished search returns its result at once; without `resume`, or with other settings, it is
    refused; nothing is written."""
    folder = searched_once().folder
    before = files_of(folder)
    with monkeypatch.context() as patch:
        patch.setattr(dasvit.search.loop, "load_data", None)  # not even the data are read
        again = run(search_config(), folder, resume=True)
    assert (again.result, again.events) == (searched_once().result, [])
    with pytest.raises(ValueError, match="holds a run already; resume it or choose another"):
        search(search_config(), folder)
    other = search_config(xi=0.25, data=replace(DIGITS, augment="shift"))
    with pytest.raises(ValueError, match="other settings") as caught:
        search(other, folder, resume=True)
    assert "(augment: 'none' there, 'shift' now; xi: 0.0 there, 0.25 now)" in str(caught.value)
    assert files_of(folder) == before


def test_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    bad: list[tuple[dict[str, Any], str]] = [
        ({"operations": ("zero", "msa_h5"), "stage_ops": (2, 2, 2)}, "msa_h5: 5 heads do not"),
        ({"operations": ("zero", "pool_k3"), "stage_ops": (2, 2, 2)}, "unknown operation 'pool_k3"),
        (
            {"operations": ("msa_h2", "mlp_r99999999999999"), "stage_ops": (2, 2, 2)},
            "mlp_r1e[+]14 has more than 1048576 hidden units at dim=12",
        ),
        ({"stage_layers": (1, 1, 1000), "dim": 1200}, "G parameters, more than one device"),
        ({"data": DataConfig(dataset="mnist")}, "unknown data set 'mnist'; known: digits"),
        ({"data": DataConfig(dataset="cifar10")}, "needs --data-dir"),
        ({"plugins": ("no_such_plugin",)}, "cannot import 'no_such_plugin'"),
    ]
    for changes, message in bad:
        with pytest.raises(ValueError, match=message):
            search(search_config(**changes), folder)
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda"):
        search(search_config(), folder, device="tpu")
    with pytest.raises(ValueError, match=r"0\.0001 \(val_fraction"):
        search(search_config(val_fraction=0.0001), tmp_path / "split")
    assert not folder.exists()


# --- Losses that are not finite


@pytest.mark.usefixtures("few_searched")
def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = search_config()
    with monkeypatch.context() as patch:
        factors = iter([1.0] * 5 + [math.nan])

        def poisoned(*args: Any) -> Any:
            grads, loss, logits = weight_gradient(*args)
            return grads, loss * next(factors), logits

        patch.setattr(dasvit.search.step, "weight_gradient", poisoned)
        with pytest.raises(FloatingPointError, match="not finite in epoch 2") as caught:
            search(config, tmp_path)
    assert "weight_lr" in str(caught.value)
    assert load_checkpoint(tmp_path / "checkpoint.pt", KIND)["epoch"] == 2
    assert len(runs.rows_without_times(tmp_path / "alpha.jsonl")) == 2
    assert not (tmp_path / "result.json").exists()
    assert 0 <= search(config, tmp_path, resume=True).supernet_accuracy <= 1


@pytest.mark.usefixtures("few_searched")
def test_weights_and_alphas_that_are_not_finite_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(FloatingPointError, match="not finite in epoch 0"):
        search(search_config(weight_lr=1e25), tmp_path / "rate")

    def poisoned(*args: Any, **options: Any) -> Any:
        found = arch_gradient(*args, **options)
        (gradient,) = found.gradients
        return replace(found, gradients=[gradient.index_fill(0, torch.tensor([4]), math.inf)])

    monkeypatch.setattr(dasvit.search.step, "arch_gradient", poisoned)
    with pytest.raises(FloatingPointError, match="not finite in epoch 0"):
        search(search_config(), tmp_path / "alpha")
    assert not list(tmp_path.glob("*/checkpoint.pt"))


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        note = GOLDEN.read_text().splitlines()[0]
        GOLDEN.write_text(f"{note}\n{golden_trace(Path(folder) / 'run')}")
