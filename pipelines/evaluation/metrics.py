"""Metrics and their intervals.

Of classifiers on indicator matrices: boolean arrays (rows, categories), one or several labels a row. Of chat models on
scores a row: float arrays (rows,), NaN where a row says nothing about the metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.evaluation.settings import ClassificationMetric as Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Indicators = NDArray[np.bool_]
    Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One category's scores, each from 0 to 1; ``support`` is its number of true rows."""

    category: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Scores:
    """A classifier's scores on some rows, each from 0 to 1."""

    rows: int
    accuracy: float
    """Share of rows whose label set is exactly right."""
    macro_f1: float
    """Mean F1 of the categories that occur in the truth or in the predictions."""
    micro_f1: float
    per_class: tuple[ClassScores, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better the first of two models is on the same rows, with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric of one model, with its bootstrap interval."""

    value: float
    low: float
    high: float
    rows: int
    """Rows that say something about it."""


def scores(truth: Indicators, predicted: Indicators, categories: Sequence[str]) -> Scores:
    """All metrics of ``predicted`` against ``truth``, both (rows, categories)."""
    hits, false, missed = ((part).sum(axis=0) for part in _outcomes(truth, predicted))
    per_class = tuple(
        ClassScores(
            category,
            precision=_ratio(int(hit), int(hit + wrong)),
            recall=_ratio(int(hit), int(hit + miss)),
            f1=_ratio(2 * int(hit), 2 * int(hit) + int(wrong) + int(miss)),
            support=int(hit + miss),
        )
        for category, hit, wrong, miss in zip(categories, hits, false, missed, strict=True)
    )
    return Scores(
        rows=len(truth),
        accuracy=score(truth, predicted, "accuracy"),
        macro_f1=score(truth, predicted, "macro_f1"),
        micro_f1=score(truth, predicted, "micro_f1"),
        per_class=per_class,
    )


def score(truth: Indicators, predicted: Indicators, metric: Metric) -> float:
    """One metric of ``predicted`` against ``truth``, both (rows, categories); 0 without rows."""
    import numpy as np

    return float(_weighted(truth, predicted, metric, np.ones((1, len(truth))))[0])


def paired_bootstrap(
    truth: Indicators,
    first: Indicators,
    second: Indicators,
    metric: Metric,
    *,
    confidence: float = 0.9,
    resamples: int = 2000,
    seed: int = 17,
) -> Difference:
    """Interval of ``metric(first) - metric(second)`` when the rows are drawn anew, both judged on the same draw.

    Percentile bootstrap (Efron, 1979, doi:10.1214/aos/1176344552), paired over rows as in Koehn (2004, W04-3250).
    """
    import numpy as np

    value = score(truth, first, metric) - score(truth, second, metric)
    if not len(truth):
        return Difference(value, value, value)
    differences = [
        _weighted(truth, first, metric, drawn) - _weighted(truth, second, metric, drawn)
        for drawn in _draws(len(truth), resamples, seed)
    ]
    return Difference(value, *_bounds(np.concatenate(differences), confidence))


def measured(
    truth: Indicators,
    predicted: Indicators,
    metric: Metric,
    *,
    confidence: float = 0.9,
    resamples: int = 1000,
    seed: int = 17,
) -> Measured | None:
    """One metric of ``predicted`` with its bootstrap interval; None without rows."""
    import numpy as np

    if not len(truth):
        return None
    drawn = [_weighted(truth, predicted, metric, weights) for weights in _draws(len(truth), resamples, seed)]
    return Measured(score(truth, predicted, metric), *_bounds(np.concatenate(drawn), confidence), len(truth))


def measured_rows(
    values: Floats,
    weights: Floats | None = None,
    *,
    confidence: float = 0.9,
    resamples: int = 1000,
    seed: int = 17,
) -> Measured | None:
    """Mean of ``values`` (rows,), by ``weights``, with its bootstrap interval; None where no row has a value."""
    import numpy as np

    there = np.isfinite(values)
    if not there.any():
        return None
    weight = (np.ones(len(values)) if weights is None else weights)[there]
    drawn = _means(values[there], weight, resamples, seed)
    value = float(np.average(values[there], weights=weight))
    return Measured(value, *_bounds(drawn, confidence), int(there.sum()))


def paired_bootstrap_rows(
    first: Floats,
    second: Floats,
    weights: Floats | None = None,
    *,
    confidence: float = 0.9,
    resamples: int = 2000,
    seed: int = 17,
) -> Difference | None:
    """Interval of ``mean(first) - mean(second)`` (rows,) on the rows that have both; None where there is none.

    The same bootstrap as ``paired_bootstrap``.
    """
    import numpy as np

    both = np.isfinite(first) & np.isfinite(second)
    if not both.any():
        return None
    weight, apart = (np.ones(len(first)) if weights is None else weights)[both], (first - second)[both]
    value = float(np.average(apart, weights=weight))
    return Difference(value, *_bounds(_means(apart, weight, resamples, seed), confidence))


def expected_calibration_error(confidences: Floats, correct: Indicators, *, bins: int = 15) -> float:
    """Mean distance of confidence from accuracy over equal-width bins (Guo et al., 2017, arXiv:1706.04599).

    Both arrays have one entry a decision: of the chosen label, or, with several labels, of each label of each row.
    """
    import numpy as np

    if not len(confidences):
        return 0.0
    bin_of = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(bin_of, weights=confidences - correct, minlength=bins)
    return float(np.abs(gap).sum() / len(confidences))


def best_threshold(truth: Indicators, probabilities: Floats) -> float:
    """The one decision threshold for every category that gives the best micro-F1; .5 when no threshold beats it.

    ``truth`` and ``probabilities`` are (rows, categories). One threshold, since one for each category overfits the rare
    ones of a small validation split.
    """
    import numpy as np

    candidates = np.round(np.arange(0.05, 0.951, 0.01), 2)
    reached = [score(truth, probabilities >= candidate, "micro_f1") for candidate in candidates]
    best = max(reached, default=0.0)
    if not len(truth) or score(truth, probabilities >= 0.5, "micro_f1") >= best:
        return 0.5
    good = [float(candidate) for candidate, value in zip(candidates, reached, strict=True) if value == best]
    return good[len(good) // 2]


def _draws(rows: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each row is drawn (resamples, rows), in portions that fit the memory."""
    import numpy as np

    rng = np.random.default_rng(seed)
    at_once = max(1, 20_000_000 // rows)  # 160 MB of weights
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        yield rng.multinomial(rows, np.full(rows, 1 / rows), size=count).astype(np.float64)


def _means(values: Floats, weights: Floats, resamples: int, seed: int) -> Floats:
    """Weighted mean of ``values`` in each resample."""
    import numpy as np

    return np.concatenate(
        [drawn @ (values * weights) / (drawn @ weights) for drawn in _draws(len(values), resamples, seed)]
    )


def _bounds(drawn: Floats, confidence: float) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _outcomes(truth: Indicators, predicted: Indicators) -> tuple[Indicators, Indicators, Indicators]:
    """Hits, false alarms and misses, each (rows, categories)."""
    return truth & predicted, ~truth & predicted, truth & ~predicted


def _weighted(truth: Indicators, predicted: Indicators, metric: Metric, weights: Floats) -> Floats:
    """The metric under each row of ``weights`` (resamples, rows)."""
    import numpy as np

    if not len(truth):
        return np.zeros(len(weights))
    if metric == "accuracy":
        exact = (truth == predicted).all(axis=1).astype(np.float64)
        return np.asarray(weights @ exact / weights.sum(axis=1))
    hits, false, missed = (weights @ part.astype(np.float64) for part in _outcomes(truth, predicted))
    if metric == "micro_f1":
        hits, false, missed = (part.sum(axis=1, keepdims=True) for part in (hits, false, missed))
    whole = 2 * hits + false + missed
    occurs = whole > 0  # a category that neither occurs nor is predicted has no F1
    f1 = np.divide(2 * hits, whole, out=np.zeros_like(hits), where=occurs)
    return np.asarray(f1.sum(axis=1) / np.maximum(occurs.sum(axis=1), 1))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
