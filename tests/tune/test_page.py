"""report.html: what it holds, that it needs nothing else, and that a browser has no complaint."""

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tune.page import write_page
from tune.page_figures import pareto_front, shares
from tune.page_parts import code, table
from tune.trials import Failure

VOID = {"meta", "link", "img", "br"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


class Page(HTMLParser):
    """Tags, their attributes and whether they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page(plan, outcome, folder, make_chain, search_trial) -> Path:
    """Of a sweep with traces, a failure, a random encoder and eight configurations."""
    found = [trial.genotype for trial in outcome.search]
    more = [
        search_trial(
            i, 0, found[2 * (i % 2)], 0.4 + 0.05 * i, 0.8,
            settings={"token_ratio": 0.3 + 0.08 * i, "skip_weight": 0.01 * 3**i,
                      "xi": 0.0, "seed": 0},
        )
        for i in range(8)
    ]  # fmt: skip
    sweep = dataclasses.replace(
        outcome,
        search=tuple(more),
        random=(make_chain("mlp_r3", "msa_h2"),),
        not_searched=(Failure("config_008_seed_0", "loss is <nan> & gone"),),
    )
    for i, trial in enumerate(more):
        path = folder.search_dir / trial.name
        path.mkdir(parents=True)
        rows = [
            {
                "epoch": epoch,
                "weights": [[0.5 - 0.01 * i, 0.2 + 0.01 * epoch, 0.3]] * 5,
                "edge_ops": [["zero", "identity", "msa_h2"]] * 5,
            }
            for epoch in range(6)
        ]
        (path / "alpha.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_page(plan, sweep, folder, preset="digits")
    return folder.root / "report.html"


def test_the_page_is_whole_and_alone(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert "://" not in re.sub(r'src="data:[^"]*"', "", text)
    linked = [value for name, value in parsed.attributes if name in ("src", "href")]
    assert linked and all(value and value.startswith(("data:", "#")) for value in linked)
    assert {value[1:] for value in linked if value and value.startswith("#")} == set(parsed.ids)
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert all(value for name, value in parsed.attributes if name == "alt")


def test_what_the_page_holds(page: Path, outcome) -> None:
    text = page.read_text(encoding="utf-8")
    sections = "leaderboard worth encoders settings agreement skips failures reproduce time"
    assert Page(text).ids == sections.split()
    for summary in outcome.ranking:
        assert text.count(summary.hash) >= 3
    assert "loss is &lt;nan&gt; &amp; gone" in text
    # The score rises with both settings, xi does not vary: two importances that share the whole.
    names = "token_ratio|skip_weight|xi"
    shown = re.findall(rf"<tr><td>({names})</td><td><span.*?</span>([\d.]+)", text)
    assert {name for name, _ in shown} == {"token_ratio", "skip_weight"}
    assert sum(float(share) for _, share in shown) == pytest.approx(1.0, abs=0.02)
    assert "python -m dasvit search --preset digits" in text
    assert "python -m dasvit retrain --preset digits --model vit" in text
    # The random encoder was not retrained.
    assert "what the search adds is not measured" in text


def test_equal_sweeps_give_equal_pages(page: Path, plan, outcome, folder) -> None:
    write_page(plan, outcome, folder, preset="digits")
    first = page.read_bytes()
    write_page(plan, outcome, folder, preset="digits")
    assert page.read_bytes() == first


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_a_browser_renders_it_without_errors(page: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None

    def browse(path: Path) -> subprocess.CompletedProcess[str]:
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-background-networking "
            "--disable-component-update --disable-sync --no-first-run --enable-logging=stderr "
            f"--v=0 --user-data-dir={tmp_path / path.stem} --dump-dom"
        )
        command = [CHROMIUM, *flags.split(), path.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    done = browse(page)
    assert ":CONSOLE" not in done.stderr
    assert done.stdout.count("<section") == page.read_text(encoding="utf-8").count("<section")
    # The same check does see an error: what the page's policy forbids.
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8")
    broken.write_text(text.replace("<nav>", '<img alt="" src="https://localhost/x.png"><nav>'))
    assert ":CONSOLE" in browse(broken).stderr


def test_text_is_escaped_once() -> None:
    made = table([["a<b", "x"], [code("1 & 2"), "<i>"]])
    assert "<th>a&lt;b</th>" in made and "<code>1 &amp; 2</code>" in made and "&lt;i&gt;" in made


def test_pareto_front() -> None:
    points = [(3.0, 0.7), (1.0, 0.5), (2.0, 0.4), (2.0, 0.6), (4.0, 0.7), (1.0, 0.3)]
    assert pareto_front(points) == [(1.0, 0.5), (2.0, 0.6), (3.0, 0.7)]
    assert pareto_front([]) == []


def test_shares_of_a_trace() -> None:
    row = {"weights": [[0.2, 0.8], [0.6, 0.4]], "edge_ops": [["zero", "identity"], ["zero", "x"]]}
    assert shares([row])["zero"] == [pytest.approx(0.4)]
