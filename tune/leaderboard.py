"""The leaderboard of a sweep as rows, as Markdown and as CSV. Pure."""

import csv
import io
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dasvit.costs import format_count
from dasvit.report.events import edge_name
from dasvit.report.progress import duration
from tune.aggregate import (
    ConfigSummary,
    EdgeVote,
    GenotypeSummary,
    ModelSummary,
    Spread,
    seed_count,
)
from tune.outcome import VIT, Outcome
from tune.trials import RetrainTrial, SearchTrial
from tune.worth import check_rows, gain_sentence, score_sentence

__all__ = [
    "config_rows",
    "darts_sentence",
    "front_sentence",
    "markdown",
    "percent",
    "ray_seconds",
    "stopped_rows",
    "table",
    "table_csv",
    "unfinished_words",
    "wall_rows",
]

COST_WORDS = {"macs": "multiply-adds", "params": "parameters, counted"}
"""Headings of what is minimised: at the retraining's size, with a head of 10 classes."""

NO_CHOICE_ON_TEST = (
    "The test set is looked at once, at the end of each retraining, and no choice is made on it: "
    "encoders are ranked, and the best model is chosen, by the search score on validation images; "
    "test accuracy is only shown beside it."
)


STOPPED = (
    "ASHA ended these searches: at the same epoch the supernets of others were better. They "
    "derived no encoder, and are neither ranked nor retrained."
)

CHECK = (
    "The best configurations searched again on seeds that had no part in choosing them. The best "
    "of many noisy scores is optimistic; the fresh ones are not, and change no rank."
)


def table(outcome: Outcome, *, limit: int | None = None) -> list[list[str]]:
    """The leaderboard as rows of text, a heading first: the found encoders by rank, then those
    drawn at random, then the plain ViT.

    Args:
        limit: found encoders to show.
    """
    rows = [
        [
            "rank",
            "genotype",
            "found",
            "discretised %",
            "supernet %",
            "gap",
            "test top-1 %",
            "parameters",
            *(COST_WORDS[name] for name in outcome.objectives[1:] if outcome.costs),
            *(["Pareto front"] if outcome.costs else []),
        ]
    ]
    models, asked = outcome.models, outcome.retrain_seeds
    for rank, summary in enumerate(outcome.ranking[:limit], start=1):
        model = models.get(summary.hash)
        rows.append(
            [
                str(rank),
                summary.hash,
                f"{summary.count}×",
                percent(summary.discretised_accuracy),
                percent(summary.supernet_accuracy),
                percent(summary.gap),
                *_tested(model, asked),
                *_costs(outcome, summary.hash),
            ]
        )
    ranked = {summary.hash for summary in outcome.ranking}
    for genotype in outcome.random:
        name = genotype.canonical_hash
        if name not in ranked:
            tested = _tested(models.get(name), asked)
            rows.append(["random", name, *["–"] * 4, *tested, *_costs(outcome, name)])
    if VIT in models:
        tested = _tested(models[VIT], asked)
        rows.append(["–", "plain ViT", *["–"] * 4, *tested, *_costs(outcome, VIT)])
    return rows


def _costs(outcome: Outcome, name: str) -> list[str]:
    if not outcome.costs:
        return []
    known = outcome.costs.get(name)
    counts = [format_count(known[cost]) if known else "–" for cost in outcome.objectives[1:]]
    return [*counts, "yes" if name in {summary.hash for summary in outcome.front} else ""]


def front_sentence(outcome: Outcome) -> str:
    """What the Pareto front is of, and a space; nothing with one objective."""
    if not outcome.costs:
        return ""
    costs = " and ".join(COST_WORDS[name] for name in outcome.objectives[1:])
    return (
        f"Pareto front: no other encoder is as good in {_words(outcome.metric)} and {costs}, and "
        f"better in one; {len(outcome.front)} of {len(outcome.ranking)} encoders are on it. Costs "
        "are counted for RGB images and 10 classes, which shifts all encoders alike. "
    )


def percent(spread: Spread) -> str:
    """`94.1 ± 0.3` in percent; a single value has no spread."""
    mean = f"{100 * spread.mean:.1f}"
    return mean if spread.std is None else f"{mean} ± {100 * spread.std:.1f}"


def _tested(model: ModelSummary | None, asked: int) -> list[str]:
    if model is None:
        return ["–", "–"]
    tested = f"{percent(model.test_top1)} ({seed_count(model.test_top1.count, asked)})"
    return [tested, f"{model.num_params / 1e6:.2f} M"]


def markdown(
    outcome: Outcome,
    ranking: Sequence[GenotypeSummary],
    configs: Sequence[ConfigSummary],
    votes: Sequence[EdgeVote],
) -> str:
    """The text of leaderboard.md."""
    trials = (len(outcome.search), outcome.num_searches)
    models = (len(outcome.retrained), len(outcome.retrained) + len(outcome.not_retrained))
    lines = [
        f"# Leaderboard of the sweep `{outcome.name}`",
        "",
        f"Searched on {outcome.dataset}, retrained on {outcome.retrain_dataset}. "
        f"{trials[0]} of {trials[1]} search trials and {models[0]} of {models[1]} retrainings "
        f"finished{unfinished_words(outcome)}; {len(ranking)} distinct encoders.",
        "",
        f"Ranked by the mean {_words(outcome.metric)} over all trials that gave the encoder. "
        f"{NO_CHOICE_ON_TEST}",
        "",
        "Mean ± sample standard deviation (n - 1) over those trials, and of *Test* over the "
        "retraining's seeds; a single one has no ±. *Discretised*: validation accuracy of the "
        "derived network with the supernet's weights. *Supernet*: of the supernet itself. *Gap*: "
        "the difference, in points. *Test*: on held-out images after training from scratch.",
        "",
        *_markdown_table(table(outcome)),
        "",
        f"{front_sentence(outcome)}{gain_sentence(outcome)} {score_sentence(outcome)}",
        "",
        "## Encoders",
        "",
        *(
            f"{rank}. `{summary.hash}`: {summary.genotype}"
            for rank, summary in enumerate(ranking, start=1)
        ),
        *(f"- `{genotype.canonical_hash}` (random): {genotype}" for genotype in outcome.random),
        "",
        "## Agreement by edge",
        "",
        "One vote a trial; `none`: the derivation did not keep the edge. Agreement is 1 where all "
        "agree and 0 for an even vote among all possible answers.",
        "",
        *_markdown_table(
            [
                ["edge", "agreement", "entropy (nats)", "votes"],
                *(
                    [
                        edge_name(v.source, v.node),
                        f"{v.agreement:.2f}",
                        f"{v.entropy:.2f}",
                        ", ".join(f"{name} {count}" for name, count in v.votes.items()),
                    ]
                    for v in votes
                ),
            ]
        ),
        "",
        "## Configurations",
        "",
        "Each with its mean over its finished seeds ± the sample standard deviation (n - 1) over "
        "them; a single seed has no ±. *Seeds*: that the mean is over, and how many were asked "
        "for; one that failed is in no mean. *Genotypes*: what its seeds derived, by the names "
        "above, with their number where it is more than one." + darts_sentence(outcome, configs),
        "",
        *_markdown_table(config_rows(outcome, configs)),
        "",
        *_stopped(outcome),
        *_check(outcome),
        "## Wall time",
        "",
        *_markdown_table([["part", "time"], *wall_rows(outcome)]),
    ]
    if outcome.failures:
        lines += ["", "## Not finished", ""]
        lines += [
            f"- `{f.name}`: {f.error or 'not started, or interrupted'}" for f in outcome.failures
        ]
    return "\n".join(lines) + "\n"


def darts_sentence(outcome: Outcome, configs: Sequence[ConfigSummary]) -> str:
    """Which configuration is the baseline, after a space; or that none is."""
    found = [str(c.config_index) for c in configs if outcome.method.is_baseline(c.settings)]
    if not configs:
        return ""
    if not found:
        return " None of those with a score is plain DARTS: this table has no such baseline."
    return f" Configuration {found[0]} is plain DARTS in first order."


def _check(outcome: Outcome) -> list[str]:
    rows = check_rows(outcome)
    return ["## Check on fresh seeds", "", CHECK, "", *_markdown_table(rows), ""] if rows else []


def _stopped(outcome: Outcome) -> list[str]:
    rows = stopped_rows(outcome)
    return ["## Stopped early", "", STOPPED, "", *_markdown_table(rows), ""] if rows else []


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    rule = " | ".join("---" for _ in rows[0])
    return [f"| {line} |" for line in (head, rule, *body)]


def unfinished_words(outcome: Outcome) -> str:
    """`, 3 stopped early, 2 failed (reasons below)`, or nothing."""
    words = f", {len(outcome.stopped)} stopped early" if outcome.stopped else ""
    return words + (f", {len(outcome.failed)} failed (reasons below)" if outcome.failed else "")


def stopped_rows(outcome: Outcome) -> list[list[str]]:
    """The searches that the scheduler ended early as rows, a heading first; empty if there are
    none."""
    if not outcome.stopped:
        return []
    names = [name for name in outcome.stopped[0].settings if name != "seed"]
    return [
        ["search", "epochs", "supernet % then", *names],
        *(
            [
                stop.name,
                f"{stop.epochs} of {stop.total_epochs}",
                f"{100 * stop.score:.1f}",
                *(_short(stop.settings[name]) for name in names),
            ]
            for stop in outcome.stopped
        ),
    ]


def config_rows(outcome: Outcome, configs: Sequence[ConfigSummary]) -> list[list[str]]:
    """The configurations as rows, a heading first; those without a score last."""
    names = list(configs[0].settings) if configs else []
    scores = ["discretised %", "supernet %", "gap"]
    heading = ["configuration", "seeds", "genotypes", *scores, *names]
    rows = [
        [
            str(config.config_index),
            _of(config.discretised_accuracy.count, outcome.seeds),
            ", ".join(
                name if count == 1 else f"{name} {count}×"
                for name, count in Counter(config.genotypes).items()
            ),
            percent(config.discretised_accuracy),
            percent(config.supernet_accuracy),
            percent(config.gap),
            *(_short(config.settings[name]) for name in names),
        ]
        for config in configs
    ]
    unknown = ["–"] * (len(heading) - 2)
    without = [[str(i), _of(0, outcome.seeds), *unknown] for i in outcome.configs_without_score]
    return [heading, *rows, *without]


def _of(finished: int, asked: int) -> str:
    return f"{finished} of {asked}" if asked else str(finished)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def wall_rows(outcome: Outcome) -> list[list[str]]:
    """Where the time went. Training is the trials' own epochs divided by how many ran at a time;
    the rest of a phase is Ray's: processes, imports, waiting for its controllers."""
    wall = outcome.wall
    if not wall:
        return []
    concurrent = max(1.0, wall.get("concurrent", 1.0))
    parts = []
    phases = {"search": outcome.search, "check": outcome.checked, "retraining": outcome.retrained}
    for phase, trials in phases.items():
        if phase == "check" and not wall.get(phase):
            continue
        training = min(sum(t.seconds for t in trials) / concurrent, wall.get(phase, 0.0))
        parts.append([f"{phase}: training", duration(training)])
        parts.append([f"{phase}: Ray's overhead", duration(wall.get(phase, 0.0) - training)])
    parts.append(["starting and stopping Ray, reports", duration(wall.get("other", 0.0))])
    parts.append(["total", duration(wall.get("total", 0.0))])
    overhead = ray_seconds((*outcome.search, *outcome.retrained))
    if overhead is not None:
        parts.append(["Ray's overhead in a trial (median)", f"{overhead:.1f} s"])
    return parts


def ray_seconds(trials: Sequence[SearchTrial | RetrainTrial]) -> float | None:
    """Median over the trials of what each took beyond its own epochs, in seconds."""
    beyond = [t.wall_seconds - t.seconds for t in trials if t.wall_seconds is not None]
    # A trial that was continued has epochs from before its last start.
    return statistics.median(beyond) if (beyond := [b for b in beyond if b >= 0]) else None


def table_csv(outcome: Outcome, ranking: Sequence[GenotypeSummary]) -> str:
    """One row a model; accuracies are ratios. An empty cell: not measured, or a single value."""
    models = outcome.models
    rows: list[dict[str, Any]] = []
    for rank, summary in enumerate(ranking, start=1):
        row: dict[str, Any] = {
            "rank": rank,
            "model": summary.hash,
            "encoder": str(summary.genotype),
            "found": summary.count,
            **outcome.costs.get(summary.hash, {}),
        }
        for name in ("discretised_accuracy", "supernet_accuracy", "gap"):
            row |= _spread_cells(name, getattr(summary, name))
        rows.append(row | {"origin": "search"} | _model_cells(models.get(summary.hash)))
    ranked = {summary.hash for summary in ranking}
    for genotype in outcome.random:
        name = genotype.canonical_hash
        if name not in ranked:
            row = {"model": name, "encoder": str(genotype), "origin": "random"}
            rows.append(row | outcome.costs.get(name, {}) | _model_cells(models.get(name)))
    if VIT in models:
        row = {"model": VIT, "origin": "baseline", **outcome.costs.get(VIT, {})}
        rows.append(row | _model_cells(models[VIT]))
    columns = ["rank", "model", "encoder", "found"]
    for name in ("discretised_accuracy", "supernet_accuracy", "gap", "test_top1", "test_top5"):
        columns += [f"{name}_mean", f"{name}_std"]
    columns += list(COST_WORDS) if outcome.costs else []
    columns += ["retrain_seeds", "num_params", "retrain_seconds", "origin"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _spread_cells(name: str, spread: Spread) -> dict[str, Any]:
    return {f"{name}_mean": spread.mean, f"{name}_std": "" if spread.std is None else spread.std}


def _model_cells(model: ModelSummary | None) -> dict[str, Any]:
    if model is None:
        return {}
    return {
        **_spread_cells("test_top1", model.test_top1),
        **_spread_cells("test_top5", model.test_top5),
        "retrain_seeds": model.test_top1.count,
        "num_params": model.num_params,
        "retrain_seconds": model.seconds.mean,
    }
