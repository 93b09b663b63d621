"""The tables of a sweep's reports, as pandas frames. Pure.

`scores` holds numbers and becomes leaderboard.csv; the others hold what people read: text, and a
share of 1 as a number.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from dasvit.costs import format_count
from dasvit.report.events import edge_name
from dasvit.report.progress import counted, duration
from dasvit.report.statistics import Spread
from tune.report.aggregate import SCORES, GenotypeSummary, rung_score
from tune.report.outcome import VIT, Outcome, best_retraining
from tune.trial_folder import RetrainTrial, SearchTrial

__all__ = [
    "COST_WORDS",
    "agreement",
    "classes",
    "configurations",
    "encoders",
    "failures",
    "leaderboard",
    "ray_seconds",
    "scores",
    "stopped",
    "wall_time",
]

COST_WORDS = {"macs": "multiply-adds", "params": "counted parameters"}
"""Headings of what is minimised: at the retraining's size, with a head of 10 classes."""

SCORE_WORDS = dict(zip(SCORES, ("trained %", "discretised %", "supernet %", "gap"), strict=True))
NOTHING = "–"


def _models(outcome: Outcome) -> list[tuple[str, str, GenotypeSummary | None]]:
    """Rank, name and summary of every model: the ranked encoders, those drawn at random that are
    not among them, and the plain ViT."""
    ranked = [(str(rank), s.hash, s) for rank, s in enumerate(outcome.ranking, start=1)]
    names = {summary.hash for summary in outcome.ranking}
    drawn = [
        ("random", genotype.canonical_hash, None)
        for genotype in outcome.random
        if genotype.canonical_hash not in names
    ]
    return [*ranked, *drawn, (NOTHING, VIT, None)]


def _methods(outcome: Outcome, encoder: GenotypeSummary) -> list[str]:
    """The methods whose searches derived an encoder."""
    names = (outcome.plan.start(trial.config_index).method.name for trial in encoder.trials)
    return list(dict.fromkeys(names))


def _origin(encoder: GenotypeSummary | None, name: str) -> str:
    if name == VIT:
        return "baseline"
    return encoder.origin if encoder else "random"


def leaderboard(outcome: Outcome, *, limit: int | None = None) -> pd.DataFrame:
    """Every model as people read it.

    Args:
        outcome: of the sweep.
        limit: ranked encoders to show.
    """
    on_front = {summary.hash for summary in outcome.front}
    balanced = ["balanced %"] if any(m.knows_classes for m in outcome.models.values()) else []
    words = ["rank", "encoder", "origin", *(["method"] if outcome.plan.methods else [])]
    words += [f"{counted(rung.epochs, 'epoch')} %" for rung in outcome.rungs]
    if not outcome.rungs:
        words += [SCORE_WORDS[outcome.metric]]
    words += ["test top-1 %", *balanced, "parameters", "multiply-adds"]
    words += ["ms per image"] if outcome.plan.cheap_by == "latency" else []
    rows = []
    for rank, name, encoder in _models(outcome):
        row = dict.fromkeys(words, NOTHING)
        row |= {"rank": rank, "encoder": "plain ViT" if name == VIT else name}
        row["origin"] = _origin(encoder, name)
        if encoder and encoder.trials and "method" in row:
            row["method"] = ", ".join(_methods(outcome, encoder))
        for rung in outcome.rungs:
            if own := rung.results.get(name):
                row[f"{counted(rung.epochs, 'epoch')} %"] = rung_score(own).percent
        if encoder and encoder.rungs and "ms per image" in row:
            row["ms per image"] = f"{1e3 * outcome.price(encoder):.2f}"
        if encoder and not outcome.rungs:
            row[SCORE_WORDS[outcome.metric]] = encoder.score(outcome.metric).percent
        if model := outcome.models.get(name):
            row["test top-1 %"] = _of_seeds(
                model.score("test_top1"), len(outcome.plan.retraining_seeds)
            )
            if model.knows_classes:
                row["balanced %"] = model.score("balanced_accuracy").percent
            row["parameters"] = f"{model.num_params / 1e6:.2f} M"
            row["multiply-adds"] = format_count(outcome.costs_of(name)["macs"])
        if outcome.costs:
            costs = outcome.costs.get(name)
            for cost in outcome.plan.objectives[1:]:
                row[COST_WORDS[cost]] = format_count(costs[cost]) if costs else NOTHING
            row["Pareto front"] = "yes" if name in on_front else ""
        rows.append(row)
    if outcome.largest_class is not None:
        share = f"{100 * outcome.largest_class:.1f}"
        rows.append(dict.fromkeys(rows[0], NOTHING))
        rows[-1] |= {"encoder": "largest class", "test top-1 %": share}
    hidden = range(limit, len(outcome.ranking)) if limit else ()
    return pd.DataFrame(rows).drop(index=list(hidden))


def _of_seeds(values: Spread, asked: int) -> str:
    return f"{values.percent} ({counted(values.count, 'seed', asked=asked)})"


def scores(outcome: Outcome) -> pd.DataFrame:
    """Every model with accuracies as ratios. Empty: not measured, or a single value."""
    rows: list[dict[str, Any]] = []
    rungs = [f"rung_{rung.epochs}_epochs" for rung in outcome.rungs]
    for rank, name, encoder in _models(outcome):
        row: dict[str, Any] = {"model": name, "origin": "baseline" if name == VIT else "random"}
        row |= {"encoder": str(outcome.drawn[name])} if name in outcome.drawn else {}
        if encoder:
            row |= {"rank": int(rank), "encoder": str(encoder.genotype)}
            row["origin"] = "proposed" if encoder.proposed else "random"
        if encoder and encoder.trials:
            found = {"found": len(encoder.trials), "origin": "search"}
            found |= {"methods": " ".join(_methods(outcome, encoder))}
            row |= {**found, **_cells(encoder.scores())}
        for column, rung in zip(rungs, outcome.rungs, strict=True):
            if own := rung.results.get(name):
                row |= _cells({column: rung_score(own)})
        if model := outcome.models.get(name):
            row |= _cells(model.scores(("test_top1", "test_top5")))
            row |= {"retrain_seeds": len(model.trials), "num_params": model.num_params}
            row["retrain_seconds"] = model.score("seconds").mean
        rows.append(row | outcome.costs.get(name, {}))
    columns = ["rank", "model", "encoder", "found"]
    for name in (*rungs, *SCORES, "test_top1", "test_top5"):
        columns += [f"{name}_mean", f"{name}_std"]
    costs = list(COST_WORDS) if outcome.costs else []
    columns += [*costs, "retrain_seeds", "num_params", "retrain_seconds", "origin", "methods"]
    whole = dict.fromkeys(["rank", "found", "retrain_seeds", "num_params", *costs], "Int64")
    return pd.DataFrame(rows, columns=columns).astype(whole)


def _cells(spreads: dict[str, Spread]) -> dict[str, Any]:
    means = {f"{name}_mean": spread.mean for name, spread in spreads.items()}
    return means | {f"{name}_std": spread.std for name, spread in spreads.items()}


def encoders(outcome: Outcome) -> pd.DataFrame:
    """Every encoder in words, by rank."""
    rows = [
        (rank, name, str(encoder.genotype if encoder else outcome.drawn[name]))
        for rank, name, encoder in _models(outcome)
        if name != VIT
    ]
    return pd.DataFrame(rows, columns=["rank", "genotype", "encoder"])


def configurations(outcome: Outcome) -> pd.DataFrame:
    """The configurations by their mean score; those without one last."""
    rows = [
        {
            "configuration": str(config.config_index),
            **_method_cell(outcome, config.config_index),
            "seeds": f"{len(config.trials)} of {outcome.plan.seeds}",
            "genotypes": ", ".join(
                name if count == 1 else f"{name} {count}×"
                for name, count in Counter(config.genotypes).items()
            ),
            **{SCORE_WORDS[name]: spread.percent for name, spread in config.scores().items()},
            **{name: _short(value) for name, value in config.settings.items()},
        }
        for config in outcome.configs
    ]
    without = outcome.configs_without_score
    rows += [
        {"configuration": str(i), "seeds": f"0 of {outcome.plan.seeds}"} | _method_cell(outcome, i)
        for i in without
    ]
    return pd.DataFrame(rows).fillna(NOTHING)


def _method_cell(outcome: Outcome, config_index: int) -> dict[str, str]:
    plan = outcome.plan
    return {"method": plan.start(config_index).method.name} if plan.methods else {}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def stopped(outcome: Outcome) -> pd.DataFrame:
    """The searches that the scheduler ended early. Empty if there are none."""
    return pd.DataFrame(
        {
            "search": stop.name,
            "epochs": f"{stop.epochs} of {stop.total_epochs}",
            "supernet % then": f"{100 * stop.score:.1f}",
            **{name: _short(v) for name, v in stop.settings.items() if name != "seed"},
        }
        for stop in outcome.stopped
    )


def classes(outcome: Outcome) -> pd.DataFrame:
    """What the model that is kept gets right of each class. Empty where that is not known."""
    best = best_retraining(outcome)
    if best is None or best.confusion is None or best.class_names is None:
        return pd.DataFrame()
    rows = zip(best.class_names, best.confusion, strict=True)
    return pd.DataFrame(
        {
            "class": name,
            "test images": str(sum(row)),
            "right": row[i] / sum(row) if sum(row) else NOTHING,
        }
        for i, (name, row) in enumerate(rows)
    )


def agreement(outcome: Outcome) -> pd.DataFrame:
    """The vote of each edge."""
    return pd.DataFrame(
        {
            "edge": edge_name(vote.source, vote.node),
            "agreement": vote.agreement,
            "entropy (nats)": f"{vote.entropy:.2f}",
            "votes": ", ".join(f"{name} {count}" for name, count in vote.votes.items()),
        }
        for vote in outcome.votes
    )


def failures(outcome: Outcome) -> pd.DataFrame:
    """The trials without a result. Empty if there are none."""
    return pd.DataFrame(
        {"trial": failure.name, "reason": failure.error or "not started, or interrupted"}
        for failure in outcome.failures
    )


def wall_time(outcome: Outcome) -> pd.DataFrame:
    """Where the time went. Training is the trials' own epochs divided by how many ran at a time;
    the rest of a phase is Ray's: processes, imports, waiting for its controllers."""
    wall = outcome.wall
    concurrent = max(1.0, wall.get("concurrent", 1.0))
    rows = []
    phases = {"search": outcome.search, "ladder": outcome.climbed, "retraining": outcome.retrained}
    for phase, trials in phases.items():
        if wall and (phase != "ladder" or wall.get(phase)):
            spent = wall.get(phase, 0.0)
            training = min(sum(t.training_seconds for t in trials) / concurrent, spent)
            rows.append((f"{phase}: training", duration(training)))
            rows.append((f"{phase}: Ray's overhead", duration(spent - training)))
    if wall:
        rows.append(("starting and stopping Ray, reports", duration(wall.get("other", 0.0))))
        rows.append(("total", duration(wall.get("total", 0.0))))
        overhead = ray_seconds((*outcome.search, *outcome.retrained))
        if overhead is not None:
            rows.append(("Ray's overhead in a trial (median)", f"{overhead:.1f} s"))
    return pd.DataFrame(rows, columns=["part", "time"])


def ray_seconds(trials: Sequence[SearchTrial | RetrainTrial]) -> float | None:
    """Median over the trials of what each took beyond its own epochs, in seconds."""
    beyond = [t.wall_seconds - t.training_seconds for t in trials if t.wall_seconds is not None]
    # A trial that was continued has epochs from before its last start.
    return statistics.median(beyond) if (beyond := [b for b in beyond if b >= 0]) else None
