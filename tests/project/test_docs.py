"""README and docs keep to their length, and what they name exists and runs."""

import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dasvit.cli import parse_command
from dasvit.methods import base as methods
from dasvit.spaces.cell import operations

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
FOLDERS = "dasvit|tune|benchmarks|cluster|tests|docs"


def words(page: Path) -> int:
    return len(page.read_text(encoding="utf-8").split())


def test_readme_and_docs_are_short() -> None:
    assert words(ROOT / "README.md") <= 700
    assert sum(map(words, DOCS)) <= 7000


def fences(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Every command of the code on a page, as words; one in quotes (`ray exec … 'cd x && y'`) is a
    command of its own."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(fences(page, "bash")).replace("\\\n", " ").splitlines()
    lines += [line.replace("\n", " ") for line in re.findall(r"`([^`]+)`", prose)]
    return [command for line in lines for command in split(line)]


def split(line: str) -> list[list[str]]:
    if not re.search(r"\b(dasvit|ray|run_search\.py)\b", line):
        return []
    lexer = shlex.shlex(re.sub(r"\$\w+", "1", line), posix=True, punctuation_chars=True)
    lexer.commenters, lexer.whitespace_split = "#", True
    found: list[list[str]] = [[]]
    for word in lexer:
        if word in ("&&", "||", ";", "|", "&"):
            found.append([])
        elif word in (">", ">>"):
            break
        else:
            found[-1].append(word)
            found[:0] = split(word) if "&&" in word else []
    return [command[1:] if command and "=" in command[0] else command for command in found]


def of(*starts: str) -> list[Any]:
    """The arguments of every command on all pages that begins with one of these."""
    heads = [start.split() for start in starts]
    return [
        pytest.param(command[len(head) :], id=f"{page.name}: {' '.join(command[len(head) :])}")
        for page in PAGES
        for command in commands(page)
        for head in heads
        if command[: len(head)] == head and len(command) > len(head) and "…" not in command
    ]


DASVIT = of("dasvit", "python -m dasvit")
SWEEP = of("python tune/run_search.py", "~/dasvit-env/bin/python tune/run_search.py")
RAY = of("ray")


def test_commands_are_found() -> None:
    assert len(DASVIT) > 20 and len(SWEEP) > 5 and len(RAY) > 10


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs that pages write (As `NAME.py`: …) in the working folder; what they register is
    forgotten afterwards."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, code in re.findall(r"As `(\w+\.py)`:\n+```python\n(.*?)```", text, re.DOTALL):
            (tmp_path / name).write_text(code, encoding="utf-8")
            monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    families = {k: v for k, v in operations._FAMILIES.items() if is_ours(v.build)}
    monkeypatch.setattr(operations, "_FAMILIES", families)
    ours = {k: v for k, v in methods._METHODS.items() if is_ours(v)}
    monkeypatch.setattr(methods, "_METHODS", ours)


def is_ours(registered: Any) -> bool:
    return registered.__module__.startswith("dasvit")  # other tests register theirs


@pytest.mark.parametrize("argv", DASVIT)
def test_dasvit_takes_it(argv: list[str], programs: None) -> None:
    if len(argv) == 1 or argv[-1].startswith("--help"):
        with pytest.raises(SystemExit) as stop:
            parse_command([argv[0], "--help"])
        assert stop.value.code == 0
    else:
        parse_command(argv)  # raises ValueError


@pytest.mark.parametrize("argv", SWEEP)
def test_the_sweep_takes_it(argv: list[str], programs: None) -> None:
    pytest.importorskip("ray")
    from tune.options import parse_options
    from tune.own_space import load_space

    plan = parse_options(argv).plan
    if plan.space:
        assert load_space(plan.space, plan.search, fixed=())


@pytest.mark.parametrize("argv", RAY)
def test_ray_takes_it(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from ray.scripts.scripts import cli

    monkeypatch.chdir(ROOT)
    group = cli.make_context("ray", list(argv), resilient_parsing=True)
    command = cli.get_command(group, argv[0])
    assert command is not None
    if len(argv) > 1:
        command.make_context(argv[0], argv[1:], parent=group)  # raises click's UsageError


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page: Path) -> None:
    """Links with their headings, paths of the checkout, and the README's tree; `fidelity.md` names
    files inside `dasvit/`."""
    text = page.read_text(encoding="utf-8")
    missing = []
    for link, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", text):
        target = (page.parent / link).resolve() if link else page
        if not target.exists() or (heading and heading not in headings(target)):
            missing.append(f"{link}#{heading}")
    code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^\S+/ ", text, re.MULTILINE)
    named = re.findall(rf"(?<![\w./-])((?:{FOLDERS})/[\w./]*)(?![\w*<…])", "\n".join(code))
    if page.name == "fidelity.md":
        inside = re.findall(rf"`(?!{FOLDERS})((?:\w+/)+\w+\.py)`", text)
        named += [f"dasvit/{name}" for name in inside]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing


def headings(page: Path) -> list[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_pages_that_the_code_names_exist() -> None:
    code = (p for top in FOLDERS.split("|") for p in (ROOT / top).rglob("*.py"))
    named = (m for p in code for m in re.findall(r"docs/[\w/-]+\.\w+", p.read_text("utf-8")))
    assert not {name for name in named if name.endswith(".md") and not (ROOT / name).exists()}


def test_every_data_file_is_read_by_a_page() -> None:
    """docs/results holds what a page shows, and the numbers behind it (the same stem)."""
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    text += (ROOT / "README.md").read_text(encoding="utf-8")
    unread = [p.name for p in (ROOT / "docs" / "results").iterdir() if p.stem not in text]
    assert not unread


def test_the_operation_and_the_method_of_contributing_work(programs: None) -> None:
    for name in ("my_operations", "my_methods"):
        importlib.import_module(name)
    tokens = torch.randn(2, 5, 8)
    assert operations.build_operation("glu_r2", 8)(tokens).shape == tokens.shape
    shown = Path("my_methods.py").read_text(encoding="utf-8").partition("@register_method")[2]
    tried = ROOT / "tests" / "support" / "plugin_method.py"
    assert shown in tried.read_text(encoding="utf-8")
    method = methods.get_method("decided")(decision=2.0)
    penalty = method.penalty({}, torch.full((3, 8), 1 / 8), None, torch.tensor(0.5))
    torch.testing.assert_close(penalty, torch.tensor(7 / 8))
