"""The commands in README and docs are ones that the programs take."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from dasvit.cli import parse_command
from dasvit.commands.arguments import parse

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
SEPARATORS = {"&&", "||", ";", "|", "&"}
REDIRECTIONS = {">", ">>", "<", "2>"}


def commands(text: str) -> list[list[str]]:
    """Every command of a page's code, as words; those inside a quoted word (`ray exec` runs one on
    the cluster) too."""
    fences = re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for fence in fences for line in fence.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", prose)
    return [words for line in lines if is_ours(line) for words in split(line)]


def is_ours(line: str) -> bool:
    # Not every line of code is shell; and what is of other programs is not looked at.
    return (
        re.search(r"\b(ray|tune/run_search\.py|python -m dasvit|benchmarks/\w+\.py)\b", line)
        is not None
    )


def split(line: str) -> list[list[str]]:
    line = re.sub(r"\$\w+", "1", line)  # a loop's variable
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.commenters = "#"
    found: list[list[str]] = [[]]
    inner: list[list[str]] = []
    skip = False
    for word in lexer:
        if word in SEPARATORS:
            found.append([])
        elif word in REDIRECTIONS:
            skip = True
        elif skip:
            skip = False
        else:
            found[-1].append(word)
            if is_ours(word) and " " in word:
                inner += split(word)
    found = [words[words[0] == "do" :] for words in found if words]  # the body of a loop
    return found + inner


def of(*start: str) -> list[tuple[str, list[str]]]:
    """The arguments of every command that starts like this, with the page that has it."""
    return [
        (page.name, words[len(start) :])
        for page in PAGES
        for words in commands(page.read_text(encoding="utf-8"))
        if words[: len(start)] == list(start) and len(words) > len(start)
    ]


def label(value: object) -> str | None:
    return " ".join(value) if isinstance(value, list) else None


DASVIT = of("python", "-m", "dasvit")
SWEEP = of("python", "tune/run_search.py")
RAY = of("ray")
BENCHMARKS = [  # those whose settings are a class
    (page, name, words)
    for name in ("search_step", "profile_step", "roofline", "merge")
    for page, words in of("python", f"benchmarks/{name}.py")
]


@pytest.mark.parametrize(("page", "name", "words"), BENCHMARKS, ids=label)
def test_the_benchmark_takes_it(page: str, name: str, words: list[str]) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    parse(module.Args, words)  # raises ValueError


def test_commands_are_found_where_they_hide() -> None:
    text = """Run `ray down x.yaml` at the end.
```bash
pip install x && python -m dasvit draw a --out b   # and a comment
for x in 1 2; do python benchmarks/y.py --z $x; done
ray exec x.yaml --tmux 'cd ~ && python tune/run_search.py --preset cifar10 \\
    --address auto' > log
```
"""
    found = commands(text)
    assert ["python", "-m", "dasvit", "draw", "a", "--out", "b"] in found
    assert ["python", "tune/run_search.py", "--preset", "cifar10", "--address", "auto"] in found
    assert ["ray", "down", "x.yaml"] in found
    assert ["python", "benchmarks/y.py", "--z", "1"] in found
    assert [words[:4] for words in found if words[:2] == ["ray", "exec"]] == [
        ["ray", "exec", "x.yaml", "--tmux"]
    ]
    assert not any("log" in words for words in found)


def test_the_pages_have_commands() -> None:
    assert {page for page, _ in DASVIT} >= {"README.md", "CONTRIBUTING.md", "fidelity.md"}
    assert {page for page, _ in SWEEP} >= {"README.md", "cluster.md"}
    assert {name for _, name, _ in BENCHMARKS} == {
        "search_step", "profile_step", "roofline", "merge"
    }  # fmt: skip
    assert len(BENCHMARKS) >= 8
    assert {words[0] for _, words in RAY} >= {"up", "exec", "attach", "status", "down"}


@pytest.mark.parametrize(("page", "words"), DASVIT, ids=label)
def test_dasvit_takes_it(page: str, words: list[str]) -> None:
    if len(words) == 1:  # only the name of a command
        with pytest.raises(SystemExit) as stop:
            parse_command([*words, "--help"])
        assert stop.value.code == 0
        return
    parse_command(words)  # raises ValueError


@pytest.mark.parametrize(("page", "words"), SWEEP, ids=label)
def test_the_sweep_takes_it(page: str, words: list[str]) -> None:
    pytest.importorskip("ray")
    from tune.options import parse_options

    options = parse_options(words)
    assert options.preset in words or options.preset == "digits"


@pytest.mark.parametrize(("page", "words"), RAY, ids=label)
def test_ray_takes_it(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from ray.scripts.scripts import cli

    monkeypatch.chdir(ROOT)
    group = cli.make_context("ray", list(words), resilient_parsing=True)
    command = cli.get_command(group, words[0])
    assert command is not None, f"ray has no {words[0]}"
    if len(words) > 1:  # else only the name of a command
        command.make_context(words[0], words[1:], parent=group)  # raises click's UsageError


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_commands_name_exist(page: Path) -> None:
    """`python benchmarks/x.py`, `cluster/gpu.yaml`, and links to files of the checkout."""
    text = page.read_text(encoding="utf-8")
    folders = r"(?:benchmarks|tune|cluster|tests)"
    named = set(re.findall(rf"\b({folders}/[\w./]+\.(?:py|yaml|txt))\b", text))
    named.discard("tests/test_NAME.py")
    linked = {
        (page.parent / link).resolve().relative_to(ROOT)
        for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text)
    }
    missing = [str(name) for name in {*named, *linked} if not (ROOT / name).exists()]
    assert not missing


def _dotted(text: str) -> list[str]:
    """`module.symbol`, as fidelity.md names what is in `dasvit`."""
    names = re.findall(r"`([a-z_]+\.[A-Za-z_][A-Za-z_.]*)(?:\([^`]*\))?`", text)
    modules = {path.stem for path in (ROOT / "dasvit").glob("*.py")}
    return sorted({name for name in names if name.partition(".")[0] in modules})


@pytest.mark.parametrize("name", _dotted((ROOT / "docs" / "fidelity.md").read_text()))
def test_symbols_of_fidelity_exist(name: str) -> None:
    module, *attributes = name.split(".")
    found = importlib.import_module(f"dasvit.{module}")
    for attribute in attributes:
        found = getattr(found, attribute)


def test_fidelity_names_symbols() -> None:
    assert len(_dotted((ROOT / "docs" / "fidelity.md").read_text())) > 30
