"""Candidate, champion and untuned base on the same held-out rows, and the gate's verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.artifacts import MANIFEST, Artifact, load, seal, writing
from pipelines.errors import ArtifactError, ExamplesError
from pipelines.evaluation.chats import drawn_rows, judge_chats
from pipelines.evaluation.classification import judge_classifiers
from pipelines.evaluation.gate import check_settings
from pipelines.evaluation.report import summary
from pipelines.evaluation.settings import EvaluationSettings
from pipelines.evaluation.stored import ANSWERS
from pipelines.fingerprint import fingerprint, write_json_atomically
from pipelines.labels.examples import Example, read_split
from pipelines.training.settings import Task

SUITE = "2"
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

    The champion is scored anew on the same rows, as it is served: its own base, prompt and template. The report holds
    ``report.json`` (metrics and slices with intervals, the verdict and all that it was made from), ``summary.md``,
    ``metrics.png``, ``slices.png``; of classifiers ``confusion.png`` and ``predictions.jsonl``, of chat models
    ``samples.md`` and ``answers.jsonl``.

    Raises:
        ArtifactError: the candidate was not trained on ``training_set``, an artifact or base model was altered, or the
            champion does another task.
        ConfigError: the gate names a metric of another task, or a base model is not there.
        ExamplesError: the test split has no row of the origins that count.
    """
    task = _task(candidate)
    check_settings(settings.gate, task)
    if candidate.manifest["training_set"] != training_set.fingerprint:
        raise ArtifactError(
            f"{candidate.path} was trained on training set {candidate.manifest['training_set'][:12]}, not on "
            f"{training_set.fingerprint[:12]}: its test rows may be among those it learned from; train again"
        )
    if champion is not None and _task(champion) != task:
        raise ArtifactError(
            f"the champion in {champion.path} was trained for task {_task(champion)!r} and the candidate for {task!r}: "
            "no score compares them; give the new task a use case of its own, or withdraw the champion"
        )
    key = report_fingerprint(candidate, training_set, use_case=use_case, champion=champion, settings=settings)
    path = folder / key
    if (path / MANIFEST).is_file():
        try:
            return load(path)
        except ArtifactError as error:
            progress(f"evaluating again: {error}")

    rows = _rows(training_set, settings, task)
    if task == "generate":
        answers = folder / ANSWERS
        judged = judge_chats(
            candidate, training_set, champion, rows, settings=settings, folder=answers, progress=progress
        )
    else:
        judged = judge_classifiers(candidate, training_set, champion, rows, settings=settings, progress=progress)
    verdict = judged.verdict
    progress(f"{'passed' if verdict.passed else 'refused'}: {'; '.join(verdict.reasons)}")
    report: dict[str, Any] = {
        "task": task,
        "metrics": _plain(judged.metrics),
        "slices": {name: _plain(table) for name, table in judged.slices.items()},
        "verdict": asdict(verdict),
        **judged.details,
    }
    with writing(path) as scratch:
        for name, content in judged.files.items():
            (scratch / name).write_bytes(content)
        (scratch / "summary.md").write_text(summary(judged), encoding="utf-8")
        write_json_atomically(scratch / "report.json", report)
        seal(
            scratch,
            {
                "fingerprint": key,
                "kind": "evaluation_report",
                "use_case": use_case,
                "task": task,
                "suite": SUITE,
                "adapter": candidate.fingerprint,
                "adapter_files": dict(candidate.manifest["files"]),
                "prompt": candidate.manifest.get("prompt"),
                "template_hash": candidate.manifest.get("template_hash"),
                "training_set": training_set.fingerprint,
                "champion": None if champion is None else champion.fingerprint,
                "settings": settings.model_dump(mode="json"),
                "rows": len(rows),
                "scores": judged.scores(),
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
    """What a report is made from: exactly these adapters' files and prompts, these rows and settings."""
    return fingerprint(
        "evaluation_report",
        SUITE,
        use_case,
        candidate.fingerprint,
        *_served(candidate),
        training_set.fingerprint,
        None if champion is None else [champion.fingerprint, *_served(champion)],
        settings.model_dump(mode="json"),
    )


def _served(adapter: Artifact) -> tuple[dict[str, str], dict[str, Any] | None]:
    """What decides how an adapter answers: its files, and the prompt that its manifest states."""
    return dict(adapter.manifest["files"]), adapter.manifest.get("prompt")


def _task(adapter: Artifact) -> Task:
    task: Task = adapter.manifest.get("task", "classify")  # adapters of an earlier version only classify
    return task


def _rows(training_set: Artifact, settings: EvaluationSettings, task: Task) -> list[Example]:
    rows = [row for row in read_split(training_set, "test") if row.origin in settings.origins]
    if not rows:
        raise ExamplesError(
            f"{training_set.path} has no test row of origin {' or '.join(settings.origins)}; add labelled examples"
        )
    return drawn_rows(rows, settings.maximum_rows) if task == "generate" else rows


def _plain(table: Any) -> dict[str, dict[str, Any]]:
    return {
        metric: {name: None if found is None else asdict(found) for name, found in by_model.items()}
        for metric, by_model in table.items()
    }
