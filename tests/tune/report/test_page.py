"""report.html: what it holds, that it needs nothing else, and that a browser has no complaint."""

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from support.events import SEARCH_EPOCH
from support.sweep_trials import chain, search_trial

from dasvit.report.record import JsonLinesReport
from tune.report.outcome import Outcome
from tune.report.page import page_text
from tune.store import ResultFolder
from tune.study import open_study
from tune.trial_folder import Failure

VOID = {"meta", "link", "img", "br"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


class Page(HTMLParser):
    """Tags, their attributes and whether they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        assert self.open == []

    @property
    def ids(self) -> list[str]:
        return [str(value) for name, value in self.attributes if name == "id"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> ResultFolder:
    return ResultFolder(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def sweep(outcome: Outcome, traces: ResultFolder) -> Outcome:
    """With traces, a study, a failure, a random encoder and eight configurations; the best encoder
    and the ViT know how they answer."""
    found = [trial.genotype for trial in outcome.search]
    trials, study = [], open_study(traces.study_file)
    domains = {name: FloatDistribution(0.0, 100.0) for name in ("token_ratio", "skip_weight")}
    for i in range(8):
        params, score = {"token_ratio": 0.3 + 0.08 * i, "skip_weight": 0.01 * 3**i}, 0.4 + 0.05 * i
        study.add_trial(create_trial(params=params, distributions=dict(domains), value=score))
        own = {"xi": 0.0, "seed": 0} | (params if i != 1 else {})  # the second is plain DARTS
        trials.append(search_trial(i, 0, found[2 * (i % 2)], score, 0.8, settings=own))
        path = traces.search_dir / trials[-1].name
        path.mkdir(parents=True)
        write = JsonLinesReport(path / "alpha.jsonl")
        for epoch in range(2):
            write(replace(SEARCH_EPOCH, epoch=epoch))
    best = trials[-1].genotype.canonical_hash
    answers = {(best, 0): [[8, 2], [1, 3]], (best, 1): [[10, 0], [0, 4]], ("vit", 0): [[5, 5]] * 2}
    return replace(
        outcome,
        search=tuple(trials),
        random=(chain("mlp_r3", "msa_h2"),),
        not_searched=(Failure("config_008_seed_0", "loss is <nan> & gone"),),
        retrained=tuple(
            replace(t, class_names=["ok", "a <b>"], confusion=answers.get((t.model, t.seed)))
            for t in outcome.retrained
        ),
    )


@pytest.fixture(scope="module")
def page(sweep: Outcome, traces: ResultFolder) -> str:
    return page_text(sweep, traces, preset="digits")


def test_the_page_is_whole_and_alone(page: str, sweep: Outcome) -> None:
    parsed = Page(page)
    assert "://" not in re.sub(r'src="data:[^"]*"', "", page)
    linked = [str(value) for name, value in parsed.attributes if name in ("src", "href")]
    assert all(value.startswith(("data:", "#")) for value in linked)
    assert {value[1:] for value in linked if value.startswith("#")} == set(parsed.ids)
    assert all(value for name, value in parsed.attributes if name == "alt")
    sections = "leaderboard worth encoders settings agreement skips classes failures reproduce time"
    assert sorted(parsed.ids) == sorted(sections.split())
    for summary in sweep.ranking:
        assert page.count(summary.hash) >= 3
    for part in (
        "loss is &lt;nan&gt; &amp; gone",  # escaped, once
        "python -m dasvit search --preset digits",
        "python -m dasvit retrain --preset digits --model vit",
        "what the search adds is not measured",  # the random encoder was not retrained
        "Test images by class and answer",
    ):
        assert part in page
    # The score rises with both settings: two importances that share the whole.
    names = "token_ratio|skip_weight|xi"
    shown = re.findall(rf"<tr>\s*<td>({names})</td>\s*<td><span.*?</span>([\d.]+)", page)
    assert {name for name, _ in shown} == {"token_ratio", "skip_weight"}
    assert sum(float(share) for _, share in shown) == pytest.approx(1.0, abs=0.02)
    # The kept model class by class: the best encoder's first seed, not the better one, nor the ViT.
    cells = r">(ok|a &lt;b&gt;)</td>\s*<td>(\d+)</td>\s*<td>.*?</span>([\d.]+)"
    rows = re.findall(cells, page, re.DOTALL)
    assert rows == [("ok", "10", "0.80"), ("a &lt;b&gt;", "4", "0.75")]


def test_several_objectives_have_a_picture_of_the_front(several: Outcome, tmp_path: Path) -> None:
    page = page_text(several, ResultFolder(tmp_path), preset="digits")
    assert "front" in Page(page).ids and "Search score by multiply-adds" in page


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_a_browser_renders_it_without_errors(page: str, tmp_path: Path) -> None:
    """Nor does the page's own policy forbid what it shows."""
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-background-networking "
        "--disable-component-update --disable-sync --no-first-run --enable-logging=stderr "
        f"--v=0 --user-data-dir={tmp_path / 'profile'} --dump-dom"
    )
    command = [str(CHROMIUM), *flags.split(), path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ":CONSOLE" not in done.stderr
    assert done.stdout.count("<section") == page.count("<section")
