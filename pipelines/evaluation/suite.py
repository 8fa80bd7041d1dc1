"""Candidate, champion and untuned base on the same held-out rows, and the gate's verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.artifacts import MANIFEST, Artifact, load, seal, writing
from pipelines.errors import ArtifactError, ExamplesError
from pipelines.evaluation.base import base_predictions
from pipelines.evaluation.classifier import load_classifier
from pipelines.evaluation.gate import decide
from pipelines.evaluation.metrics import (
    expected_calibration_error,
    paired_bootstrap,
    score,
    scores,
)
from pipelines.evaluation.plots import class_bars, confusion, confusion_matrix
from pipelines.evaluation.settings import EvaluationSettings
from pipelines.fingerprint import fingerprint, write_json_atomically
from pipelines.labels.examples import Example, read_split
from pipelines.training.dataset import indicators

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUITE = "1"
"""Version of what this module makes of equal inputs; part of the report's fingerprint."""


def evaluate(
    candidate: Artifact,
    training_set: Artifact,
    *,
    use_case: str,
    champion: Artifact | None,
    settings: EvaluationSettings,
    folder: Path,
    progress: Callable[[str], None],
) -> Artifact:
    """Score all three on the test split and write ``<folder>/<fingerprint>/``; an equal report is returned as it is.

    The champion is scored anew, its labels mapped by name: a label that it does not know it cannot get right. The base
    is the untuned encoder with a logistic regression on its frozen features, fitted on the training split.

    Raises:
        ArtifactError: the candidate was not trained on ``training_set``, or an artifact or base model was altered.
        ExamplesError: the test split has no row of the origins that count.
    """
    if candidate.manifest["training_set"] != training_set.fingerprint:
        raise ArtifactError(
            f"{candidate.path} was trained on training set {candidate.manifest['training_set'][:12]}, not on "
            f"{training_set.fingerprint[:12]}: its test rows may be among those it learned from; train again"
        )
    key = report_fingerprint(candidate, training_set, use_case=use_case, champion=champion, settings=settings)
    path = folder / key
    if (path / MANIFEST).is_file():
        try:
            return load(path)
        except ArtifactError as error:
            progress(f"evaluating again: {error}")

    categories, multi_label = tuple(training_set.manifest["categories"]), bool(training_set.manifest["multi_label"])
    rows = [row for row in read_split(training_set, "test") if row.origin in settings.origins]
    if not rows:
        raise ExamplesError(
            f"{training_set.path} has no test row of origin {' or '.join(settings.origins)}; add labelled examples"
        )
    texts = [row.text for row in rows]
    truth = indicators([row.labels for row in rows], categories)
    predictions: dict[str, NDArray[np.bool_]] = {}
    calibration: dict[str, float] = {}

    progress(f"candidate on {len(rows)} held-out rows")
    tuned = load_classifier(candidate)
    chances = tuned.probabilities(texts)
    predictions["candidate"] = indicators(tuned.decide(chances), categories)
    calibration["candidate"] = _calibration(truth, chances, multi_label=multi_label)
    if champion is not None:
        progress(f"champion {champion.fingerprint[:12]} on the same rows")
        predictions["champion"] = indicators(load_classifier(champion).predict(texts), categories)
    progress("untuned base on the same rows")
    base_chances, base_labels = base_predictions(candidate, training_set, texts)
    predictions["base"] = indicators(base_labels, categories)
    calibration["base"] = _calibration(truth, base_chances, multi_label=multi_label)

    gate = settings.gate
    metric: Any = gate.metric or "macro_f1"
    other = predictions["base" if champion is None else "champion"]
    difference = paired_bootstrap(truth, predictions["candidate"], other, metric, confidence=gate.confidence)
    reached = {name: score(truth, predicted, metric) for name, predicted in predictions.items()}
    verdict = decide(
        rows=len(rows),
        candidate=reached["candidate"],
        base=reached["base"],
        champion=reached.get("champion"),
        difference=difference,
        settings=gate,
    )
    progress(f"{'passed' if verdict.passed else 'refused'}: {'; '.join(verdict.reasons)}")

    measured = {name: scores(truth, predicted, categories) for name, predicted in predictions.items()}
    report: dict[str, Any] = {
        "categories": list(categories),
        "scores": {name: asdict(value) for name, value in measured.items()},
        "calibration_error": calibration,
        "verdict": asdict(verdict),
    }
    with writing(path) as scratch:
        if multi_label:
            picture = class_bars(measured["candidate"].per_class)
        else:
            counts = confusion(truth, predictions["candidate"])
            report["confusion"] = counts.tolist()
            picture = confusion_matrix(counts, categories)
        (scratch / "confusion.png").write_bytes(picture)
        write_json_atomically(scratch / "report.json", report)
        _write_predictions(scratch / "predictions.jsonl", rows, categories, predictions, chances)
        seal(
            scratch,
            {
                "fingerprint": key,
                "kind": "evaluation_report",
                "use_case": use_case,
                "suite": SUITE,
                "adapter": candidate.fingerprint,
                "adapter_files": dict(candidate.manifest["files"]),
                "training_set": training_set.fingerprint,
                "champion": None if champion is None else champion.fingerprint,
                "settings": settings.model_dump(mode="json"),
                "rows": len(rows),
                "scores": {
                    name: {"accuracy": value.accuracy, "macro_f1": value.macro_f1, "micro_f1": value.micro_f1}
                    for name, value in measured.items()
                },
                "verdict": {"passed": verdict.passed, "reasons": list(verdict.reasons)},
                "versions": {name: version(name) for name in ("torch", "transformers", "peft", "scikit-learn")},
            },
        )
    return load(path)


def report_fingerprint(
    candidate: Artifact,
    training_set: Artifact,
    *,
    use_case: str,
    champion: Artifact | None,
    settings: EvaluationSettings,
) -> str:
    """What a report is made from: exactly these adapter files, rows, champion files and settings."""
    return fingerprint(
        "evaluation_report",
        SUITE,
        use_case,
        candidate.fingerprint,
        dict(candidate.manifest["files"]),
        training_set.fingerprint,
        None if champion is None else dict(champion.manifest["files"]),
        settings.model_dump(mode="json"),
    )


def _calibration(truth: NDArray[np.bool_], chances: NDArray[np.float32], *, multi_label: bool) -> float:
    """Calibration error of the chosen labels, or, with several labels, of every label of every row."""
    import numpy as np

    chances = chances.astype(np.float64)
    if multi_label:
        return expected_calibration_error(chances.ravel(), truth.ravel())
    chosen = chances.argmax(axis=1)
    return expected_calibration_error(chances.max(axis=1), truth[np.arange(len(truth)), chosen])


def _write_predictions(
    path: Path,
    rows: Sequence[Example],
    categories: Sequence[str],
    predictions: Mapping[str, NDArray[np.bool_]],
    chances: NDArray[np.float32],
) -> None:
    """One line a row: what is true, what each classifier says, and the candidate's probabilities."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for index, row in enumerate(rows):
            line: dict[str, Any] = {"id": row.id, "labels": list(row.labels)}
            for name, matrix in predictions.items():
                line[name] = [category for category, said in zip(categories, matrix[index], strict=True) if said]
            line["probabilities"] = {
                category: round(float(value), 6) for category, value in zip(categories, chances[index], strict=True)
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
