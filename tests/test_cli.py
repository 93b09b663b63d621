"""The command line: help, the round trip of all commands, and one line for what a user can mend."""

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
from runs import ENCODER, files_of, names_in

import dasvit.ops
import dasvit.retrain
import dasvit.search
import dasvit.step
from dasvit.arguments import preset_from_argv
from dasvit.cli import main
from dasvit.config import SearchConfig
from dasvit.genotype import Genotype
from dasvit.presets import get_preset
from dasvit.search import load_search_config
from dasvit.trace import load_retrain_result, load_search_result
from dasvit.trained import load_retrain_config

ROOT = Path(__file__).parents[1]
SEARCH = [
    *("search", "--device", "cpu", "--dim", "12", "--patch-size", "4", "--stage-layers", "1", "1"),
    *("--stage-ops", "8", "3", "--stage-epochs", "1", "--batch-size", "32"),
]
RETRAIN = [
    *("retrain", "--device", "cpu", "--dim", "12", "--depth", "1", "--patch-size", "4"),
    *("--epochs", "2", "--warmup-epochs", "1", "--batch-size", "32"),
]


@dataclasses.dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; digits have 128 images for training and 60 for the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")  # of the help
    runs.few_images(monkeypatch, dasvit.search, dasvit.retrain)
    return tmp_path


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command in this process."""

    def run(*argv: str) -> Done:
        capsys.readouterr()
        code: Any = 0
        try:
            main(argv)
        except SystemExit as ended:
            code = ended.code or 0
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def succeed(call: Callable[..., Done]) -> Callable[..., str]:
    """Run a command that must succeed; what it printed."""

    def run(*argv: str) -> str:
        done = call(*argv)
        assert (done.code, done.err) == (0, "")
        return done.out

    return run


# --- Help


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (
            "search",
            [
                *("--preset", "--out", "--resume", "--device", "--dataset", "--data-dir", "--seed"),
                *("--token-ratio", "--gamma-min", "--gamma-max", "--zeta1", "--zeta2", "--xi"),
                *("--skip-weight", "--type-weight", "--operations", "--plugins", "--stage-epochs"),
                *("--stage-layers", "--stage-ops", "--inherit-weights", "--alpha-freeze-epochs"),
            ],
        ),
        (
            "retrain",
            [
                *("--preset", "--model", "--out", "--resume", "--device", "--dataset", "--seed"),
                *("--epochs", "--warmup-epochs", "--lr", "--depth", "--dim", "--label-smoothing"),
            ],
        ),
        ("evaluate", ["--data-dir", "--device", "Folder of a finished"]),
        ("complexity", ["--model", "--preset", "--num-classes", "--in-channels", "--json"]),
        ("draw", ["--out", "--title", "--plugins", "the folder of a search"]),
    ],
)
def test_help(call: Callable[..., Done], command: str, flags: list[str]) -> None:
    done = call(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"python -m dasvit {command}" in done.out
    for flag in flags:
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", done.out), flag
    assert "--config" not in done.out  # settings go by their own names
    assert "--data." not in done.out


def test_help_shows_the_presets_values(call: Callable[..., Done]) -> None:
    shown = {
        preset: " ".join(call("search", f"--preset={preset}", "--help").out.split())
        for preset in ("digits", "cifar10")
    }
    for preset, text in shown.items():
        search = get_preset(preset).search
        for name in ("dim", "weight_lr", "batch_size", "stage_epochs"):
            flag = f"--{name.replace('_', '-')}"
            after = text.split(f" {flag} ", 1)[1]
            default = after.split("(default: ", 1)[1].split(")")[0]
            assert float(default) == getattr(search, name), flag


def test_help_lists_the_commands(call: Callable[..., Done]) -> None:
    done = call("--help")
    assert (done.code, done.err) == (0, "")
    for command in ("search", "retrain", "evaluate", "complexity", "draw"):
        assert re.search(rf"\b{command}\b", done.out)


def test_errors_of_a_real_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dasvit", "search", "--xi", "-1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error: xi (ξ) must be >= 0, but got -1.0; 0 is the first-order approximation\n"
    )
    assert names_in(tmp_path) == []


# --- The round trip


def test_search_draw_retrain_evaluate_complexity(folder: Path, succeed: Callable[..., str]) -> None:
    out = succeed(*SEARCH, "--seed", "3")
    found = folder / "runs" / "search-digits-seed3"
    assert "searching digits on cpu, results in runs/search-digits-seed3" in out
    assert "epoch 1/2" in out
    assert "epoch 2/2" in out
    config = load_search_config(found)
    assert (config.seed, config.stage_layers, config.stage_ops) == (3, (1, 1), (8, 3))
    assert config.alpha_lr == get_preset("digits").search.alpha_lr  # the rest is the preset's
    result = load_search_result(found / "result.json")
    assert str(result.genotype) in out
    assert {"genotype.json", "alpha.jsonl", "encoder.png", "encoder.svg", "checkpoint.pt"} <= set(
        names_in(found)
    )
    assert [name for name in names_in(found) if name.startswith("events.out.tfevents")]
    (command,) = re.findall(r"^next: python -m dasvit (.*)$", out, re.MULTILINE)
    assert command == (
        "retrain --preset digits --patch-size 4 --model runs/search-digits-seed3/genotype.json"
    )

    # A search's folder stands for its genotype.
    out = succeed("draw", str(found), "--out", "pictures/found", "--title", "found")
    assert str(result.genotype) in out
    assert (folder / "pictures" / "found.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (folder / "pictures" / "found.svg").read_text()

    out = succeed(*RETRAIN, *command.split()[1:])
    trained = folder / "runs" / "retrain-digits-search-digits-seed3-seed0"
    assert f"weights: {trained.relative_to(folder) / 'model.safetensors'}" in out
    assert Genotype.load(trained / "genotype.json") == result.genotype
    assert load_retrain_config(trained).model == str(Path(command.split()[-1]))
    scores = load_retrain_result(trained / "result.json")
    shown = f"top-1 {100 * scores.test_top1:.2f} %, top-5 {100 * scores.test_top5:.2f} %"
    assert shown in out
    assert succeed("evaluate", str(trained), "--device", "cpu") == f"test accuracy: {shown}\n"

    size = ("--preset", "digits", "--dim", "12", "--depth", "1", "--patch-size", "4")
    argv = ("complexity", "--model", str(found / "genotype.json"), *size, "--in-channels", "1")
    assert " parameters; " in succeed(*argv, "--no-latency")
    values = json.loads(succeed(*argv, "--json", "--latency-seconds", "0.01", "--device", "cpu"))
    assert values["num_params"] == scores.num_params
    assert values["macs_total"] == values["macs_linear"] + values["macs_attention"]
    assert values["macs_total"] == values["macs_torch"]
    assert values["latency"]["runs"] >= 5


def test_a_given_folder_is_used_and_resumed(folder: Path, succeed: Callable[..., str]) -> None:
    succeed(*SEARCH, "--out", "mine/a", "--token-ratio", "0.75")
    assert names_in(folder) == ["mine"]
    config = load_search_config("mine/a")
    assert config.token_ratio == 0.75
    before = {k: v for k, v in files_of(folder).items() if k.endswith((".json", ".jsonl", ".pt"))}
    # Its own settings hold; those of the command line are ignored.
    succeed("search", "--resume", "mine/a", "--device", "cpu", "--token-ratio", "0.25")
    after = files_of(folder)
    assert {k: after[k] for k in before} == before

    succeed(*RETRAIN, "--model", "vit", "--out", "mine/b", "--seed", "5")
    assert load_retrain_config("mine/b").seed == 5
    before = {k: v for k, v in files_of(folder).items() if k.startswith("mine/b/")}
    succeed("retrain", "--resume", "mine/b", "--device", "cpu")
    assert {k: v for k, v in files_of(folder).items() if k in before} == before


def test_plain_darts_by_its_preset(folder: Path, succeed: Callable[..., str]) -> None:
    argv = ("--dim", "12", "--patch-size", "4", "--stage-epochs", "1", "--batch-size", "32")
    out = succeed("search", "--preset=digits_darts", *argv, "--device", "cpu")
    assert "epoch 1/1" in out
    config = load_search_config(folder / "runs" / "search-digits_darts-seed0")
    assert (config.token_ratio, config.skip_weight, config.type_weight) == (1.0, 0.0, 0.0)
    assert config.stage_layers == get_preset("digits").search.stage_layers[:1]


def test_a_users_operation_is_searched_derived_and_retrained(
    folder: Path,
    call: Callable[..., Done],
    succeed: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only `zero` and the user's operation are candidates, so every edge derives it."""
    # As if no other test had imported the module.
    families = {k: v for k, v in dasvit.ops._FAMILIES.items() if k != "conv"}
    monkeypatch.setattr(dasvit.ops, "_FAMILIES", families)
    monkeypatch.delitem(sys.modules, "plugin_operation", raising=False)
    argv = [*SEARCH, "--operations", "zero", "conv_k3", "--stage-ops", "2", "2", "--out", "found"]
    refused = call(*argv)
    assert refused.code == 2
    assert refused.err.startswith("error: unknown operation 'conv_k3'")
    assert names_in(folder) == []

    plugins = ("--plugins", "plugin_operation")
    succeed(*argv, *plugins)
    assert "conv" in families
    assert set(Genotype.load("found/genotype.json").operations) == {"conv_k3"}
    rows = runs.rows_without_times(folder / "found" / "alpha.jsonl")
    assert rows[0]["edge_ops"] == [["zero", "conv_k3"]] * 5
    assert rows[0]["type_totals"].keys() == {"conv"}  # its type takes part in the fairness term
    succeed("draw", "found", "--out", "found/drawn", *plugins)
    succeed(*RETRAIN, "--model", "found/genotype.json", "--out", "trained", *plugins)
    assert "test accuracy" in succeed("evaluate", "trained", "--device", "cpu")


def test_the_papers_encoder(succeed: Callable[..., str]) -> None:
    """The README's line; the preset is the paper's unless told otherwise."""
    out = succeed("complexity", "--model", "dasvit_cifar10", "--no-latency")
    assert out.splitlines()[0] == (
        "dasvit_cifar10: 50.4 M parameters; 9.88 G multiply-adds, linear and convolution layers; "
        "10.6 G with attention products"
    )


def test_a_named_encoder_is_drawn_here(folder: Path, succeed: Callable[..., str]) -> None:
    out = succeed("draw", "dasvit_imagenet100")
    assert "msa_h12(o_0)" in out
    assert names_in(folder) == ["encoder.png", "encoder.svg"]


def test_the_preset_is_read_first() -> None:
    assert preset_from_argv([], "digits").name == "digits"
    assert preset_from_argv(["search", "--preset", "cifar10"], "digits").name == "cifar10"
    assert preset_from_argv(["--preset=cifar10_darts", "--xi", "1"], "digits").name == (
        "cifar10_darts"
    )
    with pytest.raises(ValueError, match="unknown preset 'mnist'"):
        preset_from_argv(["--preset", "mnist"], "digits")


# --- Bad input


def genotype_file(name: str, content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(content)

    return write


def changed_genotype(**changes: Any) -> str:
    values = ENCODER.to_dict()
    del values["hash"]
    return json.dumps(values | changes)


def nothing(folder: Path) -> None:
    pass


def someones_folder(folder: Path) -> None:
    (folder / "used").mkdir()
    (folder / "used" / "photos.json").write_text("{}")


def someones_file(folder: Path) -> None:
    (folder / "used").write_text("text")


def another_runs_folder(folder: Path) -> None:
    (folder / "used").mkdir()
    (folder / "used" / "config.json").write_text('{"kind": "dasvit/retrain/1", "config": {}}')


def malformed_settings(folder: Path) -> None:
    (folder / "used").mkdir()
    values = {"kind": "dasvit/search/1", "config": {"colour": "blue"}}
    (folder / "used" / "config.json").write_text(json.dumps(values))


def empty_folder(folder: Path) -> None:
    (folder / "used").mkdir()


EDGE_FROM_LATER = [[{"source": 3, "operation": "mlp_r3"}], [{"source": 0, "operation": "mlp_r3"}]]
UNKNOWN_OPERATION = [[{"source": 0, "operation": "pool_k3"}]]
BAD_FILES = {
    "schema": ("schema 'other/9'", changed_genotype(schema="other/9")),
    "no schema": ("is not a genotype", '{"nodes": []}'),
    "operation": ("unknown operation 'pool_k3'", changed_genotype(nodes=UNKNOWN_OPERATION)),
    "later node": ("edge from source 3", changed_genotype(nodes=EDGE_FROM_LATER)),
    "truncated": ("not valid JSON", changed_genotype()[:-20]),
    "hash": ("'0123456789ab'", changed_genotype(hash="0123456789ab")),
    "not JSON": ("not valid JSON", "o_0 = mlp_r3(e_{k-1})"),
}

BAD: list[tuple[str, list[str], Callable[[Path], None]]] = [
    ("unknown preset 'mnist'", ["search", "--preset", "mnist"], nothing),
    ("unknown preset 'mnist'", ["retrain", "--preset=mnist"], nothing),
    ("unknown preset 'mnist'", ["complexity", "--preset", "mnist"], nothing),
    (
        "unknown operation 'pool_k3'",
        [*SEARCH, "--operations", "zero", "pool_k3", "--stage-ops", "2", "2"],
        nothing,
    ),
    ("stage_ops=(8, 3) with 2", [*SEARCH, "--operations", "zero", "identity"], nothing),
    ("unknown data set 'mnist'", [*SEARCH, "--dataset", "mnist"], nothing),
    ("unknown data set 'mnist'", [*RETRAIN, "--model", "vit", "--dataset", "mnist"], nothing),
    ("but got 0.0", [*SEARCH, "--token-ratio", "0"], nothing),
    ("but got 1.5", [*SEARCH, "--token-ratio", "1.5"], nothing),
    ("but got -0.5", [*SEARCH, "--token-ratio", "-0.5"], nothing),
    ("but got nan", [*SEARCH, "--token-ratio", "nan"], nothing),
    (
        "(gamma_min=0.5, gamma_max=0.5)",
        [*SEARCH, "--gamma-min", "0.5", "--gamma-max", "0.5"],
        nothing,
    ),
    ("(gamma_min=0.9, gamma_max=0.5)", [*SEARCH, "--gamma-min", "0.9"], nothing),
    ("heads do not divide the width dim=50", [*SEARCH, "--dim", "50"], nothing),
    ("(vit_heads=5, dim=12)", [*RETRAIN, "--model", "vit", "--vit-heads", "5"], nothing),
    ("but got -0.1", [*SEARCH, "--xi", "-0.1"], nothing),
    ("but got -1", [*SEARCH, "--seed", "-1"], nothing),
    ("patch_size=3, image_size=8", [*SEARCH, "--patch-size", "3"], nothing),
    ("(warmup_epochs=9, epochs=2)", [*RETRAIN, "--warmup-epochs", "9"], nothing),
    ("'cifar10' needs --data-dir", [*SEARCH, "--dataset", "cifar10"], nothing),
    ("no folder nowhere", [*SEARCH, "--dataset", "cifar10", "--data-dir", "nowhere"], nothing),
    (
        "used lacks train-images-idx3",
        [*SEARCH, "--dataset", "fashion_mnist", "--data-dir", "used"],
        empty_folder,
    ),
    (
        "lacks 100 of 100 class folders",
        [*SEARCH, "--dataset", "imagenet100", "--data-dir", "used"],
        empty_folder,
    ),
    ("cannot import 'no_such_plugin'", [*SEARCH, "--plugins", "no_such_plugin"], nothing),
    ("device 'cuda:99' is not there", [*SEARCH, "--device", "cuda:99"], nothing),
    ("but got 'tpu'", [*SEARCH, "--device", "tpu"], nothing),
    ("used holds something else", [*SEARCH, "--out", "used"], someones_folder),
    (
        "used holds something else",
        [*RETRAIN, "--model", "vit", "--out", "used"],
        someones_folder,
    ),
    ("used holds a run already", [*SEARCH, "--out", "used"], another_runs_folder),
    ("used is a file", [*SEARCH, "--out", "used"], someones_file),
    ("cannot write to used/below", [*SEARCH, "--out", "used/below"], someones_file),
    ("no file nowhere/config.json", ["search", "--resume", "nowhere"], nothing),
    ("no file nowhere/config.json", ["retrain", "--resume", "nowhere"], nothing),
    ("kind 'dasvit/retrain/1'", ["search", "--resume", "used"], another_runs_folder),
    ("kind 'dasvit/search/1'", ["retrain", "--resume", "used"], malformed_settings),
    ("unknown settings ['colour']", ["search", "--resume", "used"], malformed_settings),
    ("unknown model 'nonsense'", [*RETRAIN, "--model", "nonsense"], nothing),
    ("nowhere.json is neither", [*RETRAIN, "--model", "nowhere.json"], nothing),
    ("no file nowhere/config.json", ["evaluate", "nowhere", "--device", "cpu"], nothing),
    ("no file used/config.json", ["evaluate", "used", "--device", "cpu"], empty_folder),
    ("kind 'dasvit/search/1'", ["evaluate", "used"], malformed_settings),
    ("unknown model 'nonsense'", ["complexity", "--model", "nonsense"], nothing),
    ("dim=50", ["complexity", "--model", "dasvit_cifar10", "--dim", "50"], nothing),
    ("nonsense is neither", ["draw", "nonsense"], nothing),
    ("used/genotype.json is neither", ["draw", "used"], empty_folder),
    ("cannot write used/a", ["draw", "dasvit_cifar10", "--out", "used/a"], someones_file),
    ("cannot import 'no_such_plugin'", ["draw", "x", "--plugins", "no_such_plugin"], nothing),
    *(
        (message, argv, genotype_file("bad.json", content))
        for message, content in BAD_FILES.values()
        for argv in (
            [*RETRAIN, "--model", "bad.json"],
            ["draw", "bad.json"],
            ["complexity", "--model", "bad.json", "--dim", "12"],
        )
    ),
]


@pytest.mark.parametrize(("fragment", "argv", "prepare"), BAD)
def test_bad_input_is_one_line(
    folder: Path,
    call: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    fragment: str,
    argv: list[str],
    prepare: Callable[[Path], None],
) -> None:
    """The value, exit status 2, nothing computed, nothing written."""
    prepare(folder)
    before = files_of(folder)

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(dasvit.step, "weight_gradient", never)
    monkeypatch.setattr("dasvit.training.Training.epoch", never)
    done = call(*argv)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert fragment in done.err
    assert files_of(folder) == before


def test_corrupt_images_are_one_line_before_training(
    folder: Path, call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real loader
    monkeypatch.chdir(folder)
    (folder / "data" / "cifar-10-batches-py").mkdir(parents=True)
    (folder / "data" / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x04truncated")
    before = files_of(folder)
    for argv in (SEARCH, [*RETRAIN, "--model", "vit"]):
        done = call(*argv, "--dataset", "cifar10", "--data-dir", "data")
        assert done.code == 2
        assert re.fullmatch(r"error: cifar10 in data is missing or corrupt .*\n", done.err)
    assert files_of(folder) == before


def test_a_corrupt_checkpoint_is_one_line(folder: Path, call: Callable[..., Done]) -> None:
    for argv, resume in ((SEARCH, "search"), ([*RETRAIN, "--model", "vit"], "retrain")):
        assert call(*argv, "--out", resume).code == 0
        (folder / resume / "result.json").unlink()
        path = folder / resume / "checkpoint.pt"
        path.write_bytes(path.read_bytes()[:1000])
        done = call(resume, "--resume", resume, "--device", "cpu")
        assert done.code == 2
        assert re.fullmatch(rf"error: {resume}/checkpoint\.pt is not a readable .*\n", done.err)
        assert len(path.read_bytes()) == 1000


def test_a_truncated_model_is_one_line(folder: Path, call: Callable[..., Done]) -> None:
    assert call(*RETRAIN, "--model", "vit", "--out", "vit").code == 0
    path = folder / "vit" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    done = call("evaluate", "vit", "--device", "cpu")
    assert done.code == 2
    assert re.fullmatch(r"error: vit/model\.safetensors .* is truncated .*\n", done.err)


@pytest.mark.parametrize(
    "argv", [["search", "--no-such-flag", "1"], ["search", "--dim", "wide"], ["sweep"], []]
)
def test_what_is_no_command_is_refused(folder: Path, call: Callable[..., Done], argv: list) -> None:
    done = call(*argv)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert all(word in done.err for word in argv if word.startswith(("--no", "wide", "sweep")))
    assert names_in(folder) == []


@pytest.mark.parametrize("command", ["search", "retrain"])
def test_an_interrupt_names_the_way_on(
    folder: Path, call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"dasvit.commands.{command}.{command}", interrupted)
        done = call(*(SEARCH if command == "search" else [*RETRAIN, "--model", "vit"]))
    assert done.code == 130
    assert done.err.count("\n") == 1
    default = {"search": "runs/search-digits-seed0", "retrain": "runs/retrain-digits-vit-seed0"}
    assert f"continue with: python -m dasvit {command} --resume {default[command]}" in done.err


def test_an_interrupted_search_goes_on(
    folder: Path, call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the very command that the error names; TensorBoard files and the trace go on."""
    with monkeypatch.context() as patch:
        patch.setattr(dasvit.search._Run, "enter_next_stage", _interrupt)
        done = call(*SEARCH)
    assert done.code == 130
    (command,) = re.findall(r"python -m dasvit (.*)\n", done.err)
    done = call(*command.split(), "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    assert "epoch 1/2" not in done.out
    assert "epoch 2/2" in done.out
    rows = runs.rows_without_times(folder / "runs" / "search-digits-seed0" / "alpha.jsonl")
    assert [row["epoch"] for row in rows] == [0, 1]


def _interrupt(self: Any) -> None:
    raise KeyboardInterrupt


def test_a_loss_that_is_not_finite_is_one_line(folder: Path, call: Callable[..., Done]) -> None:
    done = call(*SEARCH, "--weight-lr", "1e25", "--grad-clip", "0")
    assert done.code == 1
    assert re.fullmatch(r"error: the loss .* not finite in epoch 0 .* weight_lr.*\n", done.err)


def test_errors_of_the_program_keep_their_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what a user can mend is one line."""

    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("dasvit.commands.search.search", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(SEARCH)


def test_every_setting_of_a_search_has_a_flag(call: Callable[..., Done]) -> None:
    text = call("search", "--help").out
    for f in dataclasses.fields(SearchConfig):
        if f.name != "data":
            assert f"--{f.name.replace('_', '-')}" in text, f.name


def test_a_full_disk_is_one_line(
    folder: Path, call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "found/alpha.jsonl")

    monkeypatch.setattr("dasvit.trace.JsonLinesReport.__call__", full)
    done = call(*SEARCH, "--out", "found")
    assert done.code == 1
    assert done.err == (
        "error: found/alpha.jsonl: No space left on device; mend that, then continue with: "
        "python -m dasvit search --resume found\n"
    )


def test_a_reader_that_goes_ends_it_quietly() -> None:
    """`python -m dasvit table1 | head -1`."""
    command = f"{sys.executable} -m dasvit complexity --help | head -1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stderr == ""
