"""report.html: a sweep on one page that needs no network and no script."""

from collections.abc import Sequence
from itertools import accumulate

from dasvit.report.events import edge_name
from dasvit.report.plots import encoder_figure
from dasvit.report.record import read_trace
from dasvit.run.files import write_atomic
from tune import leaderboard
from tune.aggregate import ConfigSummary, rank_configs, vote
from tune.folder import ResultFolder
from tune.importance import LEAST_CONFIGS, importances
from tune.outcome import VIT, Outcome
from tune.page_figures import pareto_front, scatter_figure, shares, skip_figure
from tune.page_parts import Html, bar, code, document, picture, prose, section, table
from tune.plan import Plan
from tune.reproduce import retrain_command, search_command
from tune.worth import check_rows, gain_sentence, score_sentence

__all__ = ["write_page"]

DRAWN_ENCODERS = 8
"""Drawings on the page beside those of retrained encoders, so that it stays light."""


def write_page(plan: Plan, outcome: Outcome, folder: ResultFolder, *, preset: str) -> None:
    """Write report.html.

    Args:
        plan: what the sweep computes.
        outcome: what it has computed.
        folder: where the traces are, and where to write.
        preset: that the plan began from, for the commands.
    """
    configs = rank_configs(outcome.search, outcome.metric)
    sections = [
        _leaderboard(outcome),
        *_front(outcome),
        _worth(outcome),
        _encoders(outcome),
        *([_settings(outcome, configs)] if configs else []),
        *([_agreement(outcome)] if outcome.search else []),
        *_skips(plan, outcome, folder),
        *_stopped(outcome),
        _failures(outcome),
        _reproduce(plan, outcome, preset),
        section("time", "Wall time", table([["part", "time"], *leaderboard.wall_rows(outcome)])),
    ]
    links = Html(
        "<nav>"
        + "".join(
            f'<a href="#{name}">{title}</a>' for name, title in (_anchor(text) for text in sections)
        )
        + "</nav>"
    )
    page = document(f"dasvit: {outcome.name}", [_head(outcome), links, *sections])
    write_atomic(folder.root / "report.html", page)


def _anchor(text: str) -> tuple[str, str]:
    return text.split('"', 2)[1], text.split("<h2>", 1)[1].split("</h2>", 1)[0]


def _head(outcome: Outcome) -> Html:
    searched = f"{len(outcome.search)} of {outcome.num_searches}"
    asked = len(outcome.retrained) + len(outcome.not_retrained)
    retrained = f"{len(outcome.retrained)} of {asked}"
    found = f"{len(outcome.ranking)} distinct encoders found"
    drawn = f", {len(outcome.random)} drawn at random" if outcome.random else ""
    unfinished = leaderboard.unfinished_words(outcome)
    return Html(
        Html(f"<h1>Sweep {code(outcome.name)}</h1>")
        + prose(
            f"Searched on {outcome.dataset}, retrained on {outcome.retrain_dataset}. {searched} "
            f"searches and {retrained} retrainings finished{unfinished}; "
            f"{found}{drawn}.",
            soft=True,
        )
    )


def _leaderboard(outcome: Outcome) -> Html:
    return section(
        "leaderboard",
        "Leaderboard",
        prose(
            f"Ranked by the mean {outcome.metric.replace('_', ' ')} over all trials that gave the "
            "encoder; ± is the sample standard deviation (n - 1) over trials, or over seeds of the "
            f"retraining. {leaderboard.NO_CHOICE_ON_TEST}"
        ),
        table(leaderboard.table(outcome)),
    )


def _front(outcome: Outcome) -> list[Html]:
    if not outcome.costs:
        return []
    costs = [(name, leaderboard.COST_WORDS[name]) for name in outcome.objectives[1:]]
    pictures = []
    for name, words in costs:
        points = {
            summary.hash: (
                outcome.costs[summary.hash][name] / 1e6,
                100 * getattr(summary, outcome.metric).mean,
            )
            for summary in outcome.ranking
        }
        on_front = [points[summary.hash] for summary in outcome.front]
        rest = [point for point in points.values() if point not in on_front]
        pictures.append(
            picture(
                scatter_figure(
                    {"on the front": on_front, "beaten": rest},
                    x_label=f"{words}, M",
                    y_label=f"{outcome.metric.replace('_', ' ')}, %",
                    front=pareto_front(list(points.values())),
                ),
                f"Search score by {words}, with the Pareto front",
            )
        )
    return [section("front", "Pareto front", prose(leaderboard.front_sentence(outcome)), *pictures)]


def _worth(outcome: Outcome) -> Html:
    models = outcome.models
    found = [
        (100 * getattr(s, outcome.metric).mean, 100 * models[s.hash].test_top1.mean)
        for s in outcome.ranking
        if s.hash in models
    ]
    parts = [prose(gain_sentence(outcome)), prose(score_sentence(outcome))]
    if len(found) > 1:
        words = outcome.metric.replace("_", " ")
        parts.append(
            picture(
                scatter_figure(
                    {"found encoders": found},
                    x_label=f"{words}, %",
                    y_label="test top-1, %",
                ),
                f"Test accuracy of the retrained encoders by their {words}",
            )
        )
    costs = {
        name: (model.num_params / 1e6, 100 * model.test_top1.mean) for name, model in models.items()
    }
    if len(costs) > 2:
        ranked = {summary.hash for summary in outcome.ranking}
        groups = {
            "found": [point for name, point in costs.items() if name in ranked],
            "random": [p for name, p in costs.items() if name not in ranked and name != VIT],
            "plain ViT": [costs[VIT]] if VIT in costs else [],
        }
        parts.append(
            picture(
                scatter_figure(
                    {name: points for name, points in groups.items() if points},
                    x_label="parameters, M",
                    y_label="test top-1, %",
                    front=pareto_front(list(costs.values())),
                ),
                "Test accuracy by number of parameters, with the Pareto front",
                "Everything retrained, by size; the line is the Pareto front.",
            )
        )
    if rows := check_rows(outcome):
        parts += [prose(leaderboard.CHECK), table(rows)]
    return section("worth", "What the search is worth", *parts)


def _encoders(outcome: Outcome) -> Html:
    models = outcome.models
    shown = [
        (f"rank {rank}", summary.hash, summary.genotype)
        for rank, summary in enumerate(outcome.ranking, start=1)
        if rank <= DRAWN_ENCODERS or summary.hash in models
    ]
    shown += [
        ("random", genotype.canonical_hash, genotype)
        for genotype in outcome.random[:DRAWN_ENCODERS]
    ]
    drawings = [
        picture(encoder_figure(genotype), str(genotype), Html(f"{title}, {code(name)}"))
        for title, name, genotype in shown
    ]
    every = {g.canonical_hash: str(g) for g in outcome.random}
    every = {s.hash: str(s.genotype) for s in outcome.ranking} | every
    return section(
        "encoders",
        "Encoders",
        Html(f'<div class="grid">{"".join(drawings)}</div>'),
        table([["genotype", "encoder"], *([code(n), text] for n, text in every.items())], wide=[1]),
    )


def _settings(outcome: Outcome, configs: Sequence[ConfigSummary]) -> Html:
    shares_of = importances(configs, outcome.metric)
    if shares_of:
        words = prose(
            "Share of the search score's variance that a setting explains (fANOVA over the mean "
            f"score of {len(configs)} configurations; with so few, a coarse hint)."
        )
        rows = [[name, bar(share, f"{share:.2f}")] for name, share in shares_of.items()]
        part = table([["setting", "importance"], *rows])
    else:
        words = prose(
            f"Importances need {LEAST_CONFIGS} configurations of different scores; this sweep has "
            f"{len(configs)}."
        )
        part = Html("")
    note = prose(leaderboard.darts_sentence(outcome, configs))
    return section(
        "settings", "Settings", words, part, note, table(leaderboard.config_rows(outcome, configs))
    )


def _agreement(outcome: Outcome) -> Html:
    votes = vote(
        [trial.genotype for trial in outcome.search],
        outcome.operations,
        edges_per_node=outcome.edges_per_node,
    )
    rows = [
        [
            edge_name(v.source, v.node),
            bar(v.agreement, f"{v.agreement:.2f}"),
            f"{v.entropy:.2f}",
            ", ".join(f"{name} {count}" for name, count in v.votes.items()),
        ]
        for v in votes
    ]
    return section(
        "agreement",
        "Agreement by edge",
        prose(
            "One vote a search; none: the derivation did not keep the edge. Agreement is 1 where "
            "all agree, 0 for an even vote among all possible answers; entropy in nats."
        ),
        table([["edge", "agreement", "entropy", "votes"], *rows], wide=[3]),
    )


def _skips(plan: Plan, outcome: Outcome, folder: ResultFolder) -> list[Html]:
    groups: dict[str, list[dict[str, list[float]]]] = {}
    for trial in outcome.search:
        rows = read_trace(folder.search_dir / trial.name / "alpha.jsonl")
        if rows:
            name = "plain DARTS" if outcome.method.is_baseline(trial.settings) else "searches"
            groups.setdefault(name, []).append(shares(rows))
    if not groups:
        return []
    starts = list(accumulate(stage.epochs for stage in plan.search.stages))[:-1]
    return [
        section(
            "skips",
            "Skips by epoch",
            prose(
                "Mean weight of identity and zero over all edges: a thin line a search, a bold one "
                "the mean; dashed where a stage begins."
            ),
            picture(skip_figure(groups, starts), "Share of identity and zero by epoch"),
        )
    ]


def _stopped(outcome: Outcome) -> list[Html]:
    rows = leaderboard.stopped_rows(outcome)
    if not rows:
        return []
    return [section("stopped", "Stopped early", prose(leaderboard.STOPPED), table(rows))]


def _failures(outcome: Outcome) -> Html:
    rows = [[code(f.name), f.error or "not started, or interrupted"] for f in outcome.failures]
    body = table([["trial", "reason"], *rows], wide=[1]) if rows else prose("None.")
    return section("failures", "Failures", body)


def _reproduce(plan: Plan, outcome: Outcome, preset: str) -> Html:
    models = outcome.models
    rows = []
    for rank, summary in enumerate(outcome.ranking, start=1):
        first = summary.trials[0]
        rows.append(
            [str(rank), code(summary.hash), code(search_command(plan, first, preset=preset))]
        )
    for name in models:
        model = VIT if name == VIT else f"genotypes/{name}.json"
        command = retrain_command(plan, model, plan.retrain.seed, preset=preset)
        rows.append(["retrain", code(name), code(command)])
    return section(
        "reproduce",
        "How to reproduce a row",
        prose(
            "Without Ray: the search of the encoder's first trial, and the retraining's first "
            "seed. The genotypes' files lie in this folder."
        ),
        table([["rank", "model", "command"], *rows]),
    )
