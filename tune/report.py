"""What a sweep leaves for people: leaderboard, genotypes, the best model. Pure: no Ray."""

import csv
import dataclasses
import io
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dasvit.files import write_atomic
from dasvit.genotype import Genotype
from dasvit.metrics import edge_name
from dasvit.plots import save_encoder
from dasvit.progress import duration
from tune.aggregate import (
    ConfigSummary,
    EdgeVote,
    GenotypeSummary,
    ModelSummary,
    Spread,
    rank_configs,
    rank_genotypes,
    summarize_model,
    vote,
)
from tune.folder import ResultFolder
from tune.trials import Failure, RetrainTrial, SearchTrial, retrain_dirname

__all__ = [
    "VIT",
    "Outcome",
    "best_retraining",
    "ray_seconds",
    "save_genotypes",
    "table",
    "write_report",
]

VIT = "vit"
SCHEMA = "dasvit/genotypes/1"
NO_CHOICE_ON_TEST = (
    "The test set is looked at once, at the end of each retraining, and no choice is made on it: "
    "encoders are ranked, and the best model is chosen, by the search score on validation images; "
    "test accuracy is only shown beside it."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A sweep as far as it has come.

    Attributes:
        name: of the sweep.
        dataset, retrain_dataset: searched and retrained on.
        metric: that ranks.
        operations: candidates of the search.
        edges_per_node: that its derivation keeps.
        search, retrained: finished trials.
        not_searched, not_retrained: the others.
        wall: seconds of all runs so far ("search", "retraining", "other", "total") and the
            trials at a time ("concurrent"); empty if unknown.
    """

    name: str
    dataset: str
    retrain_dataset: str
    metric: str
    operations: tuple[str, ...]
    edges_per_node: int = 2
    search: tuple[SearchTrial, ...] = ()
    not_searched: tuple[Failure, ...] = ()
    retrained: tuple[RetrainTrial, ...] = ()
    not_retrained: tuple[Failure, ...] = ()
    wall: dict[str, float] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[Failure, ...]:
        return (*self.not_searched, *self.not_retrained)

    @property
    def complete(self) -> bool:
        return bool(self.search) and not self.failures

    @property
    def search_interrupted(self) -> bool:
        return any(failure.error is None for failure in self.not_searched)

    @property
    def interrupted(self) -> bool:
        """Trials are left that have not failed. Without a finished search there is nothing to
        retrain, so that retrainings are not waited for."""
        left = self.failures if self.search else self.not_searched
        return any(failure.error is None for failure in left)

    @property
    def ranking(self) -> list[GenotypeSummary]:
        return rank_genotypes(self.search, self.metric)

    @property
    def models(self) -> dict[str, ModelSummary]:
        """The retrained models by canonical hash, and "vit"."""
        names = dict.fromkeys(trial.model for trial in self.retrained)
        return {
            name: summarize_model([t for t in self.retrained if t.model == name]) for name in names
        }


def save_genotypes(ranking: Sequence[GenotypeSummary], folder: ResultFolder) -> list[str]:
    """Write each genotype as `genotypes/<hash>.json`, with where it came from; their hashes."""
    folder.genotypes_dir.mkdir(parents=True, exist_ok=True)
    for summary in ranking:
        sources = [
            {
                "trial": trial.name,
                "seed": trial.seed,
                "settings": trial.settings,
                "alpha_trace": f"search/{trial.name}/alpha.jsonl",
            }
            for trial in summary.trials
        ]
        genotype = Genotype(summary.genotype.nodes, {"sweep": folder.root.name, "trials": sources})
        genotype.save(folder.genotypes_dir / f"{summary.hash}.json")
    return [summary.hash for summary in ranking]


def best_retraining(outcome: Outcome) -> RetrainTrial | None:
    """The model to keep: of the encoder with the best search score, the first seed that has
    finished. Not the seed that tests best."""
    if not outcome.search:
        return None
    best = outcome.ranking[0].hash
    candidates = [trial for trial in outcome.retrained if trial.model == best]
    return min(candidates, key=lambda trial: trial.seed, default=None)


def write_report(outcome: Outcome, folder: ResultFolder) -> None:
    """Write leaderboard.md, leaderboard.csv, genotypes.json and best/."""
    ranking = outcome.ranking
    configs = rank_configs(outcome.search, outcome.metric)
    votes = vote(
        [trial.genotype for trial in outcome.search],
        outcome.operations,
        edges_per_node=outcome.edges_per_node,
    )
    write_atomic(folder.root / "leaderboard.md", _markdown(outcome, ranking, configs, votes))
    write_atomic(folder.root / "leaderboard.csv", _csv(outcome, ranking))
    values = _genotypes(outcome, ranking, configs, votes)
    write_atomic(folder.root / "genotypes.json", json.dumps(values, indent=2) + "\n")
    _copy_best(outcome, folder)


def table(outcome: Outcome, *, limit: int | None = None) -> list[list[str]]:
    """The leaderboard as rows of text, a heading first: all encoders that were retrained, then
    others by rank, then the baseline."""
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
        ]
    ]
    models = outcome.models
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
                *_tested(model),
            ]
        )
    if VIT in models:
        rows.append(["–", "plain ViT", "–", "–", "–", "–", *_tested(models[VIT])])
    return rows


def percent(spread: Spread) -> str:
    """`94.1 ± 0.3` in percent; a single value has no spread."""
    mean = f"{100 * spread.mean:.1f}"
    return mean if spread.std is None else f"{mean} ± {100 * spread.std:.1f}"


def _tested(model: ModelSummary | None) -> list[str]:
    if model is None:
        return ["–", "–"]
    tested = percent(model.test_top1)
    tested += f" ({model.test_top1.count} seeds)" if model.test_top1.count > 1 else " (1 seed)"
    return [tested, f"{model.num_params / 1e6:.2f} M"]


def _markdown(
    outcome: Outcome,
    ranking: Sequence[GenotypeSummary],
    configs: Sequence[ConfigSummary],
    votes: Sequence[EdgeVote],
) -> str:
    trials = (len(outcome.search), len(outcome.search) + len(outcome.not_searched))
    models = (len(outcome.retrained), len(outcome.retrained) + len(outcome.not_retrained))
    lines = [
        f"# Leaderboard of the sweep `{outcome.name}`",
        "",
        f"Searched on {outcome.dataset}, retrained on {outcome.retrain_dataset}. "
        f"{trials[0]} of {trials[1]} search trials and {models[0]} of {models[1]} retrainings "
        f"finished; {len(ranking)} distinct encoders.",
        "",
        f"Ranked by the mean {_words(outcome.metric)} over all trials that gave the encoder. "
        f"{NO_CHOICE_ON_TEST}",
        "",
        "Mean ± sample standard deviation. *Discretised*: validation accuracy of the derived "
        "network with the supernet's weights. *Supernet*: of the supernet itself. *Gap*: the "
        "difference, in points. *Test*: on held-out images after training from scratch.",
        "",
        *_markdown_table(table(outcome)),
        "",
        "## Encoders",
        "",
        *(
            f"{rank}. `{summary.hash}`: {summary.genotype}"
            for rank, summary in enumerate(ranking, start=1)
        ),
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
        *_markdown_table(_config_rows(configs)),
        "",
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


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    rule = " | ".join("---" for _ in rows[0])
    return [f"| {line} |" for line in (head, rule, *body)]


def _config_rows(configs: Sequence[ConfigSummary]) -> list[list[str]]:
    names = list(configs[0].settings) if configs else []
    heading = ["configuration", "discretised %", "supernet %", "gap", *names]
    rows = [
        [
            str(config.config_index),
            percent(config.discretised_accuracy),
            percent(config.supernet_accuracy),
            percent(config.gap),
            *(_short(config.settings[name]) for name in names),
        ]
        for config in configs
    ]
    return [heading, *rows]


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
    for phase, trials in (("search", outcome.search), ("retraining", outcome.retrained)):
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


def _csv(outcome: Outcome, ranking: Sequence[GenotypeSummary]) -> str:
    """One row a model; accuracies are ratios. An empty cell: not measured, or a single value."""
    models = outcome.models
    rows: list[dict[str, Any]] = []
    for rank, summary in enumerate(ranking, start=1):
        row: dict[str, Any] = {
            "rank": rank,
            "model": summary.hash,
            "encoder": str(summary.genotype),
            "found": summary.count,
        }
        for name in ("discretised_accuracy", "supernet_accuracy", "gap"):
            row |= _spread_cells(name, getattr(summary, name))
        rows.append(row | _model_cells(models.get(summary.hash)))
    if VIT in models:
        rows.append({"model": VIT, **_model_cells(models[VIT])})
    columns = ["rank", "model", "encoder", "found"]
    for name in ("discretised_accuracy", "supernet_accuracy", "gap", "test_top1", "test_top5"):
        columns += [f"{name}_mean", f"{name}_std"]
    columns += ["retrain_seeds", "num_params", "retrain_seconds"]
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


def _genotypes(
    outcome: Outcome,
    ranking: Sequence[GenotypeSummary],
    configs: Sequence[ConfigSummary],
    votes: Sequence[EdgeVote],
) -> dict[str, Any]:
    models = outcome.models
    return {
        "schema": SCHEMA,
        "sweep": outcome.name,
        "ranked_by": outcome.metric,
        "genotypes": [
            {
                "rank": rank,
                "hash": summary.hash,
                "encoder": str(summary.genotype),
                "genotype": summary.genotype.to_dict(),
                "count": summary.count,
                **_spreads(summary),
                "trials": [_trial(trial) for trial in summary.trials],
                "retrained": _model(models.get(summary.hash)),
            }
            for rank, summary in enumerate(ranking, start=1)
        ],
        "baseline": _model(models.get(VIT)),
        "votes": [
            {"edge": edge_name(v.source, v.node), "agreement": v.agreement, **dataclasses.asdict(v)}
            for v in votes
        ],
        "configurations": [
            {
                "config_index": config.config_index,
                "settings": config.settings,
                **_spreads(config),
                "genotypes": list(config.genotypes),
            }
            for config in configs
        ],
        "not_finished": [dataclasses.asdict(failure) for failure in outcome.failures],
    }


def _spreads(summary: GenotypeSummary | ConfigSummary) -> dict[str, Any]:
    return {
        name: dataclasses.asdict(getattr(summary, name))
        for name in ("discretised_accuracy", "supernet_accuracy", "gap")
    }


def _trial(trial: SearchTrial) -> dict[str, Any]:
    values = {f.name: getattr(trial, f.name) for f in dataclasses.fields(trial)}
    values.pop("genotype")
    return values | {"gap": trial.gap}


def _model(model: ModelSummary | None) -> dict[str, Any] | None:
    return None if model is None else dataclasses.asdict(model)


def _copy_best(outcome: Outcome, folder: ResultFolder) -> None:
    """best/ is whole or not there: `python -m dasvit evaluate` runs on it."""
    best = best_retraining(outcome)
    if best is None:
        # An earlier report's best is of another encoder: none is better than a wrong one.
        shutil.rmtree(folder.best_dir, ignore_errors=True)
        return
    source = folder.retrain_dir / retrain_dirname(best.model, best.seed)
    fresh = folder.root / ".best.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for path in ("config.json", "genotype.json", "model.json", "model.safetensors", "result.json"):
        if (source / path).exists():
            shutil.copyfile(source / path, fresh / path)
    genotype = Genotype.load(source / "genotype.json")
    save_encoder(genotype, fresh / "encoder", f"{outcome.name}: best encoder")
    old: Path = folder.best_dir
    shutil.rmtree(old, ignore_errors=True)
    fresh.rename(old)
