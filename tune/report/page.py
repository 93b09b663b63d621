"""The two reports for people: report.html, one page without network or script, and leaderboard.md.

Both are Jinja templates in this folder, over the same tables and sentences.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from dasvit.report.encoder import encoder_figure
from dasvit.report.plots import confusion_figure, operation_shares, share_figure
from dasvit.report.progress import counted
from dasvit.report.record import read_trace
from dasvit.report.style import STYLE, new_figure
from tune.plan import Plan
from tune.report import tables
from tune.report.outcome import VIT, Outcome, best_retraining, pareto_front
from tune.report.reproduce import retrain_command, search_command
from tune.report.worth import gain_over_random, score_correlation, verdict
from tune.store import ResultFolder
from tune.study import LEAST_CONFIGS, importances

__all__ = ["leaderboard_text", "page_text", "scatter_figure"]

DRAWN_ENCODERS = 8
"""Drawings on the page beside those of retrained encoders, so that it stays light."""

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=select_autoescape(["html.jinja"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)

Points = Sequence[tuple[float, float]]


def leaderboard_text(outcome: Outcome) -> str:
    """The text of leaderboard.md."""
    return ENVIRONMENT.get_template("leaderboard.md.jinja").render(_facts(outcome))


def page_text(outcome: Outcome, folder: ResultFolder, *, preset: str) -> str:
    """The text of report.html.

    Args:
        outcome: what the sweep has computed.
        folder: where the searches' traces are.
        preset: that the plan began from, for the commands.
    """
    pictures = {
        "front": _front_pictures(outcome),
        "worth": _worth_pictures(outcome),
        "classes": _class_pictures(outcome),
        "encoders": _encoder_pictures(outcome),
        "shares": _share_pictures(outcome, folder),
    }
    return ENVIRONMENT.get_template("report.html.jinja").render(
        _facts(outcome),
        pictures=pictures,
        importances=importances(folder.study_file),
        least_configs=LEAST_CONFIGS,
        commands=_commands(outcome, preset),
    )


def _facts(outcome: Outcome) -> dict[str, Any]:
    """What both templates show."""
    plan = outcome.plan
    return {
        "outcome": outcome,
        "plan": plan,
        "score": outcome.metric.replace("_", " "),
        "costs": " and ".join(tables.COST_WORDS[name] for name in plan.objectives[1:]),
        "has_plain_darts": plan.plain_darts in {c.config_index for c in outcome.configs},
        "counted": counted,
        "verdict": verdict(outcome),
        "added": gain_over_random(outcome),
        "tau": score_correlation(outcome),
        "tables": {
            name: getattr(tables, name)(outcome)
            for name in (
                *("leaderboard", "encoders", "configurations", "stopped"),
                *("classes", "agreement", "failures", "wall_time"),
            )
        },
    }


def _commands(outcome: Outcome, preset: str) -> list[tuple[str, str, str]]:
    """What repeats each row of the leaderboard without Ray: rank, model, command."""
    plan = outcome.plan
    rows = [
        (str(rank), summary.hash, search_command(plan, summary.trials[0], preset=preset))
        for rank, summary in enumerate(outcome.ranking, start=1)
        if summary.trials
    ]
    for name in outcome.models:
        model = VIT if name == VIT else f"genotypes/{name}.json"
        rows.append(
            ("retrain", name, retrain_command(plan, model, plan.retrain.seed, preset=preset))
        )
    return rows


# --- pictures: a description each, the data and a caption -----------------------------------


@matplotlib.rc_context(STYLE)
def _picture(figure: Figure, description: str, **caption: str) -> dict[str, str]:
    """A figure as SVG inside the page; equal figures give equal text."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    data = base64.b64encode(out.getvalue()).decode()
    return {"alt": description, "source": f"data:image/svg+xml;base64,{data}", **caption}


@matplotlib.rc_context(STYLE)
def scatter_figure(groups: Mapping[str, Points], *, x: str, y: str, front: bool = False) -> Figure:
    """Points of each group by two quantities, and a line through the Pareto front of all (less on
    the x axis is better, more on the y axis)."""
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    if front:
        points = {str(i): p for i, p in enumerate(p for group in groups.values() for p in group)}
        names = pareto_front({name: (-cost, score) for name, (cost, score) in points.items()})
        line = zip(*sorted(points[name] for name in names), strict=True)
        axes.step(*line, where="post", color="#888888", linewidth=1.0, zorder=0)
    for name, group in groups.items():
        if group:
            axes.scatter(*zip(*group, strict=True), s=34, alpha=0.85, label=name)
    axes.set(xlabel=x, ylabel=y)
    axes.margins(x=0.04, y=0.08)
    axes.legend()
    return figure


def _front_pictures(outcome: Outcome) -> list[dict[str, str]]:
    words = f"{outcome.metric.replace('_', ' ')}, %"
    on_front = {summary.hash for summary in outcome.front}
    pictures = []
    for name in outcome.plan.objectives[1:] if outcome.costs else ():
        groups: dict[str, list[tuple[float, float]]] = {"on the front": [], "beaten": []}
        for summary in outcome.ranking:
            point = (
                outcome.costs[summary.hash][name] / 1e6,
                100 * summary.score(outcome.metric).mean,
            )
            groups["on the front" if summary.hash in on_front else "beaten"].append(point)
        cost = tables.COST_WORDS[name]
        figure = scatter_figure(groups, x=f"{cost}, M", y=words, front=True)
        pictures.append(_picture(figure, f"Search score by {cost}, with the Pareto front"))
    return pictures


def _worth_pictures(outcome: Outcome) -> list[dict[str, str]]:
    words, models = outcome.metric.replace("_", " "), outcome.models
    ranked = {s.hash: s for s in outcome.ranking if s.hash in models}
    tests = {name: 100 * model.score("test_top1").mean for name, model in models.items()}
    pictures = []
    if len(ranked) > 1:
        scored: dict[str, list[tuple[float, float]]] = {"found": [], "random": []}
        for name, s in ranked.items():
            point = (100 * s.score(outcome.metric).mean, tests[name])
            scored["found" if s.of_search else "random"].append(point)
        figure = scatter_figure(scored, x=f"{words}, %", y="test top-1, %")
        pictures.append(
            _picture(figure, f"Test accuracy of the retrained encoders by their {words}")
        )
    if len(models) > 2:
        groups: dict[str, list[tuple[float, float]]] = {"found": [], "random": [], "plain ViT": []}
        for name, model in models.items():
            found = name in ranked and ranked[name].of_search
            group = "plain ViT" if name == VIT else "found" if found else "random"
            groups[group].append((model.num_params / 1e6, tests[name]))
        figure = scatter_figure(groups, x="parameters, M", y="test top-1, %", front=True)
        caption = "Everything retrained, by size; the line is the Pareto front."
        alt = "Test accuracy by number of parameters, with the Pareto front"
        pictures.append(_picture(figure, alt, caption=caption))
    return pictures


def _class_pictures(outcome: Outcome) -> list[dict[str, str]]:
    best = best_retraining(outcome)
    if best is None or best.confusion is None or best.class_names is None:
        return []
    figure = confusion_figure(best.confusion, best.class_names)
    return [_picture(figure, "Test images by class and answer", caption="The model in best/.")]


def _encoder_pictures(outcome: Outcome) -> list[dict[str, str]]:
    shown = [
        (f"rank {rank}, {summary.origin}", summary.genotype)
        for rank, summary in enumerate(outcome.ranking, start=1)
        if rank <= DRAWN_ENCODERS or summary.hash in outcome.models
    ]
    return [
        _picture(encoder_figure(g), str(g), caption=f"{title},", code=g.canonical_hash)
        for title, g in shown
    ]


def _group(plan: Plan, config_index: int) -> str:
    if plan.methods or config_index == plan.plain_darts:
        return plan.start(config_index).method.title
    return "searches"


def _share_pictures(outcome: Outcome, folder: ResultFolder) -> list[dict[str, str]]:
    groups: dict[str, list[dict[str, list[float]]]] = {}
    for trial in outcome.search:
        if rows := read_trace(folder.search_dir / trial.name / "alpha.jsonl"):
            name = _group(outcome.plan, trial.config_index)
            groups.setdefault(name, []).append(operation_shares(rows))
    if not groups:
        return []
    stages = () if outcome.plan.methods else outcome.plan.search.stages
    starts = list(accumulate(stage.epochs for stage in stages))[:-1]
    figure = share_figure(groups, stage_starts=starts)
    return [_picture(figure, "Share of identity and zero by epoch")]
