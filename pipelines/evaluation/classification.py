"""Classifiers on the same held-out rows: the usual metrics, by category and slice, and their calibration."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from pipelines.artifacts import Artifact
from pipelines.evaluation.base import base_predictions
from pipelines.evaluation.calibration import calibrated
from pipelines.evaluation.classifier import load_classifier
from pipelines.evaluation.gate import OnSlice, decide
from pipelines.evaluation.metrics import (
    Difference,
    Measured,
    Scores,
    expected_calibration_error,
    measured,
    paired_bootstrap,
    score,
    scores,
)
from pipelines.evaluation.plots import class_bars, confusion, confusion_matrix, metric_bars, slice_differences
from pipelines.evaluation.report import Judged, as_champion, cell, slices_of
from pipelines.evaluation.settings import ClassificationMetric, EvaluationSettings, deciding_metric
from pipelines.labels.examples import Example
from pipelines.training.dataset import indicators

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Indicators = NDArray[np.bool_]

METRICS: tuple[ClassificationMetric, ...] = get_args(ClassificationMetric)


def judge_classifiers(
    candidate: Artifact,
    training_set: Artifact,
    champion: Artifact | None,
    rows: Sequence[Example],
    *,
    settings: EvaluationSettings,
    progress: Callable[[str], None],
) -> Judged:
    """Labels of ``rows`` by all three.

    The champion's labels are mapped by name: a label that it does not know it cannot get right. The base is the untuned
    encoder with a logistic regression on its frozen features, fitted on the training split. A text on which a
    classifier abstains counts as wrong.

    Raises:
        ArtifactError: an adapter, its base or the training set was altered.
        ConfigError: a base is not there.
    """
    categories, multi_label = tuple(training_set.manifest["categories"]), bool(training_set.manifest["multi_label"])
    texts = [row.text for row in rows]
    truth = indicators([row.labels for row in rows], categories)
    progress(f"candidate on {len(rows)} held-out rows")
    tuned = load_classifier(candidate)
    logits = tuned.logits(texts)
    chances = calibrated(logits, tuned.calibration, multi_label=multi_label)
    decided = tuned.decide(chances)
    predictions = {"candidate": indicators(decided, categories)}
    raw = calibrated(logits, None, multi_label=multi_label)
    calibration = {"candidate": _calibration(truth, chances, multi_label=multi_label)}
    before = _calibration(truth, raw, multi_label=multi_label)
    answered = [number for number, labels in enumerate(decided) if labels] if not multi_label else range(len(rows))
    if champion is not None:
        progress(f"champion {champion.fingerprint[:12]} on the same rows")
        with as_champion():
            served = load_classifier(champion)
        predictions["champion"] = indicators(served.predict(texts), categories)
    progress("untuned base on the same rows")
    base_chances, base_labels = base_predictions(candidate, training_set, texts)
    predictions["base"] = indicators(base_labels, categories)
    calibration["base"] = _calibration(truth, base_chances, multi_label=multi_label)

    judged = _judged(rows, truth, predictions, settings, calibration["candidate"])
    found = {name: scores(truth, predicted, categories) for name, predicted in predictions.items()}
    details: dict[str, Any] = {
        "categories": list(categories),
        "scores": {name: asdict(value) for name, value in found.items()},
        "calibration_error": calibration,
        "calibration_error_before": before,
        "abstention": {
            "coverage": len(answered) / len(rows),
            "accuracy_where_answered": score(truth[answered], predictions["candidate"][answered], "accuracy")
            if answered
            else None,
        },
    }
    if multi_label:
        picture = class_bars(found["candidate"].per_class)
    else:
        counts = confusion(truth, predictions["candidate"])
        details["confusion"] = counts.tolist()
        picture = confusion_matrix(counts, categories)
    share = details["abstention"]
    notes = [
        f"Calibration error {calibration['candidate']:.3f} ({before:.3f} before calibration), of the base "
        f"{calibration['base']:.3f}."
    ]
    if not multi_label:
        right = share["accuracy_where_answered"]
        notes.append(
            f"Answered {share['coverage']:.1%} of the rows"
            + (f", {right:.1%} of these rightly." if right is not None else ".")
        )
    lines = _lines(rows, categories, predictions, chances)
    return Judged(
        verdict=judged.verdict,
        metrics=judged.metrics,
        slices=judged.slices,
        details=details,
        files={
            **judged.files,
            "confusion.png": picture,
            "per_class.md": _per_class(found).encode(),
            "predictions.jsonl": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode(),
        },
        notes=notes,
    )


def _judged(
    rows: Sequence[Example],
    truth: Indicators,
    predictions: Mapping[str, Indicators],
    settings: EvaluationSettings,
    calibration_error: float,
) -> Judged:
    """The verdict, and every metric with its interval, on all rows and on each slice."""
    gate = settings.gate
    deciding: Any = deciding_metric(gate, "classify")
    other = "champion" if "champion" in predictions else "base"

    def on(numbers: Sequence[int], resamples: int) -> dict[str, dict[str, Measured | None]]:
        return {
            metric: {
                name: measured(truth[numbers], found[numbers], metric, confidence=gate.confidence, resamples=resamples)
                for name, found in predictions.items()
            }
            for metric in METRICS
        }

    def apart(numbers: Sequence[int]) -> Difference:
        first, second = predictions["candidate"][numbers], predictions[other][numbers]
        return paired_bootstrap(truth[numbers], first, second, deciding, confidence=gate.confidence)

    everything = list(range(len(rows)))
    metrics = on(everything, 1000)
    slices = slices_of(rows, gate)
    tables = {name: on(numbers, 300) for name, numbers in slices.items()}
    differences = {name: apart(numbers) for name, numbers in slices.items()}
    reached = {name: score(truth, predicted, deciding) for name, predicted in predictions.items()}
    whole, champion = apart(everything), "champion" in predictions
    verdict = decide(
        rows=len(rows),
        candidate=reached["candidate"],
        base=reached["base"],
        champion=reached.get("champion"),
        difference=whole,
        settings=gate,
        task="classify",
        has_champion=champion,
        further={metric: score(truth, predictions["candidate"], metric) for metric in METRICS},
        slices={
            name: OnSlice(
                len(numbers),
                score(truth[numbers], predictions["candidate"][numbers], deciding),
                differences[name] if champion else None,
            )
            for name, numbers in slices.items()
        },
        calibration_error=calibration_error,
    )
    shown: dict[str, tuple[int, Difference | None]] = {"all rows": (len(rows), whole)}
    shown |= {name: (len(numbers), differences[name]) for name, numbers in slices.items()}
    return Judged(
        verdict=verdict,
        metrics=metrics,
        slices=tables,
        details={},
        files={
            "metrics.png": metric_bars(metrics),
            "slices.png": slice_differences(shown, metric=deciding, other=other),
        },
    )


def _per_class(found: Mapping[str, Scores]) -> str:
    """Markdown: precision, recall and F1 of the candidate by category, and the others' F1."""
    others = [name for name in found if name != "candidate"]
    lines = ["| category | rows | precision | recall | F1 | " + " | ".join(f"F1 of {name}" for name in others) + " |"]
    lines.append("|" + "---|" * (5 + len(others)))
    for number, one in enumerate(found["candidate"].per_class):
        f1s = [one.f1, *(found[name].per_class[number].f1 for name in others)]
        numbers = " | ".join(f"{value:.3f}" for value in (one.precision, one.recall, *f1s))
        lines.append(f"| {cell(one.category)} | {one.support} | {numbers} |")
    return "\n".join(lines) + "\n"


def _calibration(truth: Indicators, chances: NDArray[np.float32], *, multi_label: bool) -> float:
    """Calibration error of the chosen labels, or, with several labels, of every label of every row."""
    import numpy as np

    chances = chances.astype(np.float64)
    if multi_label:
        return expected_calibration_error(chances.ravel(), truth.ravel())
    chosen = chances.argmax(axis=1)
    return expected_calibration_error(chances.max(axis=1), truth[np.arange(len(truth)), chosen])


def _lines(
    rows: Sequence[Example],
    categories: Sequence[str],
    predictions: Mapping[str, Indicators],
    chances: NDArray[np.float32],
) -> list[dict[str, Any]]:
    """A line a row: what is true, what each classifier says, and the candidate's probabilities."""
    found = []
    for index, row in enumerate(rows):
        line: dict[str, Any] = {"id": row.id, "labels": list(row.labels)}
        for name, matrix in predictions.items():
            line[name] = [category for category, said in zip(categories, matrix[index], strict=True) if said]
        line["probabilities"] = {
            category: round(float(value), 6) for category, value in zip(categories, chances[index], strict=True)
        }
        found.append(line)
    return found
