"""The command line: help, and the round trip of all commands."""

import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import runs
from support.cli_calls import RETRAIN, SEARCH, Done
from support.runs import files_of, names_in

import dasvit.search.loop
import dasvit.search.step
import dasvit.spaces.cell.operations
import dasvit.training.loop
from dasvit.cli import COMMANDS, parse_command
from dasvit.presets import get_preset
from dasvit.report.record import load_retrain_result, load_search_result
from dasvit.search.loop import load_search_config
from dasvit.spaces.cell.genotype import Genotype
from dasvit.training.model_folder import load_retrain_config

# --- Help


def test_help_lists_the_commands(call: Callable[..., Done]) -> None:
    done = call("--help")
    assert (done.code, done.err) == (0, "")
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\w.*\w", done.out, re.MULTILINE)
    assert call() == done


def test_the_program_goes_by_the_name_it_was_called(
    call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dasvit"])
    assert call("--help").out.startswith("usage: dasvit COMMAND")
    out = call("search", "--method", "darts", "--help").out
    assert out.startswith("usage: dasvit search") and "(default: darts)" in out


def names_of(kind: Any, values: Any) -> Iterator[str]:
    """The names of all settings, those inside of others too."""
    for f in dataclasses.fields(kind):
        value = getattr(values, f.name, None)
        if dataclasses.is_dataclass(value):
            yield from names_of(value, value)
        else:
            yield f.name


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(call: Callable[..., Done], command: str) -> None:
    """Two screens with what is needed most; everything else behind --help-all."""
    done = call(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"usage: python -m dasvit {command} ")
    assert done.out.count("\n") <= 60
    args = importlib.import_module(f"dasvit.commands.{command}").Args
    for name in getattr(args, "essentials", ()):
        assert f"\n  --{name.replace('_', '-')}" in done.out, name
    everything = call(command, "--help-all").out
    idle = parse_command([command]).args.idle if hasattr(args, "idle") else ()
    for name in sorted(set(names_of(args, get_preset("digits"))) - set(idle)):
        positional = f"\n  {name.upper().removesuffix('S')}"
        assert f"\n  --{name.replace('_', '-')}" in everything or positional in everything, name
    assert "None" not in everything
    assert not re.search(r"\(default[^)]*\)[^-]{0,20}\(default", everything)


@pytest.mark.parametrize("command", ["search", "retrain", "complexity", "memory"])
def test_settings_start_at_a_preset(command: str) -> None:
    """What a command line without options takes is `get_preset(name)`, from Python too."""
    first = "cifar10" if command in ("complexity", "memory") else "digits"
    for argv, name in (([], first), (["--preset", "fashion_mnist"], "fashion_mnist")):
        args = parse_command([command, *argv]).args
        part = "search" if command in ("search", "memory") else "retrain"
        assert args.preset == name
        assert getattr(args, part) == getattr(get_preset(name), part)


# --- The round trip


def test_search_draw_retrain_evaluate_complexity(
    workdir: Path, succeed: Callable[..., str]
) -> None:
    out = succeed(*SEARCH, "--seed", "3")
    found = workdir / "runs" / "search-digits-seed3"
    assert "searching digits on cpu, results in runs/search-digits-seed3" in out
    assert "epoch 2/2" in out
    config = load_search_config(found)
    assert config.seed == 3
    assert [(s.num_layers, s.num_ops) for s in config.stages] == [(1, 8), (1, 3)]
    result = load_search_result(found / "result.json")
    assert str(result.genotype) in out
    written = {"genotype.json", "alpha.jsonl", "encoder.png", "encoder.svg", "checkpoint.pt"}
    assert written <= set(names_in(found))
    assert [name for name in names_in(found) if name.startswith("events.out.tfevents")]
    (command,) = re.findall(r"^next: python -m dasvit (.*)$", out, re.MULTILINE)
    assert command == (
        "retrain --preset digits --patch-size 4 --model runs/search-digits-seed3/genotype.json"
    )

    # A search's folder stands for its genotype.
    out = succeed("draw", str(found), "--out", "pictures/found", "--title", "found")
    assert str(result.genotype) in out
    assert (workdir / "pictures" / "found.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (workdir / "pictures" / "found.svg").read_text()

    out = succeed(*RETRAIN, *command.split()[1:])
    trained = workdir / "runs" / "retrain-digits-search-digits-seed3-seed0"
    assert f"model: {trained.relative_to(workdir) / 'model'}" in out
    assert Genotype.load(trained / "genotype.json") == result.genotype
    assert load_retrain_config(trained).model == str(Path(command.split()[-1]))
    scores = load_retrain_result(trained / "result.json")
    assert scores.balanced_accuracy is not None and scores.largest_class is not None
    largest = f"largest class {100 * scores.largest_class:.2f} %)"
    assert f"{100 * scores.test_top1:.2f} % (balanced" in out and largest in out
    shown = succeed("evaluate", str(trained), "--device", "cpu", "--plot", "pictures/confusion")
    assert f"test accuracy: {100 * scores.test_top1:.2f} % of 60 images, top-5 " in shown
    assert shown.count("% right") == 10 and "largest class: " in shown
    assert (workdir / "pictures" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    measured = json.loads(succeed("evaluate", str(trained), "--device", "cpu", "--json"))
    assert measured["balanced_accuracy"] == scores.balanced_accuracy
    assert list(measured["recall"]) == list("0123456789")

    size = ("--preset", "digits", "--dim", "12", "--depth", "1", "--patch-size", "4")
    argv = ("complexity", "--model", str(found / "genotype.json"), *size, "--in-channels", "1")
    assert " parameters; " in succeed(*argv, "--no-latency")
    values = json.loads(succeed(*argv, "--json", "--latency-seconds", "0.01", "--device", "cpu"))
    assert values["num_params"] == scores.num_params
    assert values["macs_total"] == values["macs_linear"] + values["macs_attention"]
    assert values["macs_total"] == values["macs_fvcore"]
    assert values["latency"]["runs"] >= 5


def test_a_given_folder_is_used_and_resumed(
    workdir: Path, succeed: Callable[..., str], call: Callable[..., Done]
) -> None:
    succeed(*SEARCH, "--out", "mine/a", "--token-ratio", "0.75")
    assert names_in(workdir) == ["mine"]
    config = load_search_config("mine/a")
    assert config.setting("token_ratio") == 0.75
    before = {k: v for k, v in files_of(workdir).items() if k.endswith((".json", ".jsonl", ".pt"))}
    given = ("search", "--resume", "mine/a", "--device", "cpu")
    refused = call(*given, "--token-ratio", "0.25", "--seed=3")
    assert "leave out --token-ratio, --seed" in refused.err
    assert "finished already: results in mine/a\n" in succeed(*given)
    after = files_of(workdir)
    assert {k: after[k] for k in before} == before

    succeed(*RETRAIN, "--model", "vit", "--out", "mine/b", "--seed", "5")
    assert load_retrain_config("mine/b").seed == 5
    before = {k: v for k, v in files_of(workdir).items() if k.startswith("mine/b/")}
    again = succeed("retrain", "--resume", "mine/b", "--device", "cpu")
    assert again.startswith("finished already: results in mine/b\n")
    assert {k: v for k, v in files_of(workdir).items() if k in before} == before


def test_a_users_operation_is_searched_derived_and_retrained(
    workdir: Path,
    call: Callable[..., Done],
    succeed: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only `zero` and the user's operation are candidates, so every edge derives it."""
    # As if no other test had imported the module.
    families = dasvit.spaces.cell.operations._FAMILIES
    monkeypatch.delitem(families, "conv", raising=False)
    monkeypatch.delitem(sys.modules, "support.plugin_operation", raising=False)
    argv = [*SEARCH, "--operations", "zero", "conv_k3", "--stage-ops", "2", "2", "--out", "found"]
    refused = call(*argv)
    assert refused.code == 2
    assert refused.err.startswith("error: unknown operation 'conv_k3'")
    assert names_in(workdir) == []

    plugins = ("--plugins", "support.plugin_operation")
    assert succeed(*argv, *plugins).endswith(" --plugins support.plugin_operation\n")
    assert "conv" in families
    assert set(Genotype.load("found/genotype.json").operations) == {"conv_k3"}
    rows = runs.rows_without_times(workdir / "found" / "alpha.jsonl")
    assert rows[0]["edge_ops"] == [["zero", "conv_k3"]] * 5
    assert rows[0]["figures"].keys() == {"type/conv"}  # its type takes part in the fairness term
    succeed("draw", "found", "--out", "found/drawn", *plugins)
    succeed(*RETRAIN, "--model", "found/genotype.json", "--out", "trained", *plugins)
    assert "test accuracy" in succeed("evaluate", "trained", "--device", "cpu")


def test_a_named_encoder_is_drawn_here(workdir: Path, succeed: Callable[..., str]) -> None:
    out = succeed("draw", "dasvit_imagenet100")
    assert "msa_h12(o_0)" in out
    assert names_in(workdir) == ["encoder.png", "encoder.svg"]
