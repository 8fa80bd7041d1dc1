"""Retrieval quality and freshness over time, and a candidate against the served index, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from pipelines.corpus.freshness import Lag
from pipelines.corpus.quality import Comparison
from pipelines.figures import canvas, png

# Okabe & Ito's colours, which the colour-blind tell apart; markers differ too.
_BLUE, _ORANGE, _GREEN, _VERMILION, _PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"


@dataclass(frozen=True, slots=True)
class QualityPoint:
    """Scores of one collection at one time; the names are those of the catalog's ``retrieval_scores``."""

    scored_at: datetime
    collection: str
    golden: str
    """Fingerprint of the questions."""
    generated: bool
    k: int
    recall: float
    mrr: float
    ndcg: float


@dataclass(frozen=True, slots=True)
class FreshnessPoint:
    """Lag of the documents of one sync."""

    at: datetime
    lag: Lag


def quality_over_time(points: Sequence[QualityPoint]) -> bytes:
    """PNG of recall@k, MRR@k and nDCG@k over time, oldest first, at least one.

    A dashed line stands where another collection answers, a dotted one where the questions or k changed: scores left
    and right of that do not compare. Generated questions change with the documents all the time, and are not marked.
    """
    figure, axes = canvas(width=8, height=4)
    times, last = [point.scored_at for point in points], points[-1]
    for values, name, colour, marker in (
        ([point.recall for point in points], f"recall@{last.k}", _BLUE, "o"),
        ([point.mrr for point in points], f"MRR@{last.k}", _ORANGE, "s"),
        ([point.ndcg for point in points], f"nDCG@{last.k}", _GREEN, "^"),
    ):
        axes.plot(times, values, color=colour, marker=marker, markersize=4, label=name)
    asked = [(point.generated, point.k, "" if point.generated else point.golden) for point in points]
    _mark(axes, times, [point.collection for point in points], "--", _VERMILION, "other collection")
    _mark(axes, times, asked, ":", _PURPLE, "other questions")
    source = "questions made from titles" if last.generated else "golden questions"
    axes.set(ylim=(-0.02, 1.02), ylabel=f"mean over {source} (0 to 1)")
    _over_time(figure, axes, times)
    return png(figure)


def freshness_over_time(points: Sequence[FreshnessPoint]) -> bytes:
    """PNG of the lag from update to index in minutes, on a log axis that starts at one second; at least one point."""
    figure, axes = canvas(width=8, height=4)
    slowest = max(point.lag.max for point in points) / 60
    for name, label, colour, marker in (
        ("max", "slowest document", _VERMILION, "^"),
        ("p95", "95 % within", _ORANGE, "s"),
        ("p50", "half within", _BLUE, "o"),
    ):
        minutes = [max(getattr(point.lag, name), 1) / 60 for point in points]
        axes.plot([point.at for point in points], minutes, color=colour, marker=marker, markersize=4, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(ylim=(1 / 70, max(10, 1.5 * slowest)), ylabel="from update to searchable (minutes)")
    _over_time(figure, axes, [point.at for point in points])
    return png(figure)


def question_changes(comparison: Comparison) -> bytes:
    """PNG of each question's change of nDCG@k, the worst first, with the mean and its 95 % interval."""
    changes = [change for _, change in comparison.changes]
    figure, axes = canvas(width=8, height=4)
    places = range(1, len(changes) + 1)
    colours = [_VERMILION if change < 0 else _BLUE for change in changes]
    axes.bar(places, changes, width=1.0 if len(changes) > 100 else 0.8, color=colours)
    axes.axhspan(comparison.low, comparison.high, color=_GREEN, alpha=0.25, linewidth=0, zorder=0)
    axes.axhline(comparison.difference, color=_GREEN, label=f"mean {comparison.difference:+.3f}, 95 % interval shaded")
    axes.axhline(0, color="black", linewidth=0.8)
    worse, better = sum(change < 0 for change in changes), sum(change > 0 for change in changes)
    axes.set(
        ylim=(-1.05, 1.05),
        xlabel=f"questions, sorted: {worse} worse, {len(changes) - worse - better} the same, {better} better",
        ylabel=f"nDCG@{comparison.k}, candidate minus served",
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", frameon=False)
    return png(figure)


def _mark(axes: Any, times: Sequence[datetime], values: Sequence[Any], style: str, colour: str, label: str) -> None:
    """A vertical line wherever a value is another than the one before."""
    changes = [time for time, (before, after) in zip(times[1:], pairwise(values), strict=True) if before != after]
    for number, time in enumerate(changes):
        axes.axvline(time, color=colour, linestyle=style, linewidth=2, label=None if number else label)


def _over_time(figure: Any, axes: Any, times: Sequence[datetime]) -> None:
    from matplotlib.dates import ConciseDateFormatter

    formatter: Any = ConciseDateFormatter  # matplotlib does not type it
    axes.xaxis.set_major_formatter(formatter(axes.xaxis.get_major_locator(), tz=UTC))
    if len(set(times)) == 1:  # matplotlib would show four years
        axes.set_xlim(times[0] - timedelta(hours=1), times[0] + timedelta(hours=1))
    axes.set_xlabel("time (UTC)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
