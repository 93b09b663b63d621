"""What a sweep's search is worth: its best beside random encoders, its score beside the test. Pure.

The test accuracies are read here to judge the search. Nothing is chosen by them.
"""

from dasvit.report.progress import counted
from tune.aggregate import Spread, rank_configs, seed_count
from tune.estimates import Estimate, mean_difference, rank_correlation
from tune.outcome import Outcome

__all__ = ["check_rows", "gain_over_random", "gain_sentence", "score_correlation", "score_sentence"]


def gain_over_random(outcome: Outcome) -> Estimate | None:
    """Test accuracy of the encoder that ranks first minus the random mean (ratios).

    One side are the retrainings of that encoder, one value a seed; the other the random
    encoders, one value each: its mean over its seeds. Welch's 95 % interval; `count` is the number
    of random encoders. None without either side.
    """
    models = outcome.models
    ranking = outcome.ranking
    if not ranking:
        return None
    best = [t.test_top1 for t in outcome.retrained if t.model == ranking[0].hash]
    drawn = [
        models[g.canonical_hash].test_top1.mean
        for g in outcome.random
        if g.canonical_hash in models
    ]
    return mean_difference(best, drawn)


def gain_sentence(outcome: Outcome) -> str:
    """`gain_over_random` in words, in percentage points."""
    gain = gain_over_random(outcome)
    if gain is None:
        return (
            "No random encoder was retrained beside a found one, so what the search adds is not "
            "measured (--random-baseline K draws K encoders)."
        )
    best = outcome.ranking[0].hash
    seeds = sum(t.model == best for t in outcome.retrained)
    text = (
        f"The encoder that ranks first ({best}, {seed_count(seeds, outcome.retrain_seeds)}) tests "
        f"{100 * gain.value:+.1f} points from the mean of {counted(gain.count, 'random encoder')}"
    )
    if gain.low is None or gain.high is None:
        return f"{text}; an interval needs two seeds and two random encoders that differ."
    return f"{text}; 95 % interval {_points(gain.low)} to {_points(gain.high)} (Welch's t)."


def check_rows(outcome: Outcome) -> list[list[str]]:
    """A checked configuration each, best first: its score in the search, which chose it, and on
    fresh seeds; in percent, under a heading. Empty without a check."""
    again = {c.config_index: c for c in rank_configs(outcome.checked, outcome.metric)}
    rows = [["configuration", "score that chose it, %", "on fresh seeds, %", "change"]]
    for config in rank_configs(outcome.search, outcome.metric):
        if config.config_index in again:
            before = getattr(config, outcome.metric)
            after = getattr(again[config.config_index], outcome.metric)
            change = f"{_points(after.mean - before.mean)}"
            rows.append(
                [
                    str(config.config_index),
                    _score(before, outcome.seeds),
                    _score(after, outcome.check_seeds),
                    change,
                ],
            )
    return rows if len(rows) > 1 else []


def score_correlation(outcome: Outcome) -> Estimate | None:
    """Kendall's τ of search score and test accuracy over the encoders that have both; None with
    fewer than three."""
    models = outcome.models
    pairs = [
        (getattr(summary, outcome.metric).mean, models[summary.hash].test_top1.mean)
        for summary in outcome.ranking
        if summary.hash in models
    ]
    return rank_correlation([x for x, _ in pairs], [y for _, y in pairs])


def score_sentence(outcome: Outcome) -> str:
    """`score_correlation` in words."""
    tau = score_correlation(outcome)
    words = outcome.metric.replace("_", " ")
    if tau is None:
        return (
            f"Kendall's τ between {words} and test accuracy needs three retrained encoders of "
            "different scores (--retrain-top)."
        )
    text = f"Kendall's τ between {words} and test accuracy is {tau.value:+.2f} (n = {tau.count}"
    if tau.low is None or tau.high is None:
        return f"{text}; too few for an interval: all resamples agree)."
    return f"{text}, 95 % bootstrap interval {tau.low:+.2f} to {tau.high:+.2f})."


def _score(values: Spread, asked: int) -> str:
    mean = f"{100 * values.mean:.1f}"
    std = "" if values.std is None else f" ± {100 * values.std:.1f}"
    return f"{mean}{std} ({seed_count(values.count, asked)})"


def _points(ratio: float) -> str:
    return f"{100 * ratio:+.1f}"
