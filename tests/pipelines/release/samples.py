"""What the tests of the release work on: a small training set of our own, and copies of artifacts with other facts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.artifacts import Artifact, load, seal
from pipelines.evaluation.gate import decide
from pipelines.evaluation.metrics import Difference
from pipelines.evaluation.settings import EvaluationSettings
from pipelines.fingerprint import fingerprint
from pipelines.training.job import TrainingJob, train
from pipelines.training.settings import ClassifySettings, LoraSettings

USE_CASE = "notices"
SUBJECTS = (
    "the north gate", "the second lift", "our newsletter", "the parking area", "the reading room", "the swimming pool",
    "the west entrance", "the canteen", "the bicycle shed", "the visitor desk", "the roof garden", "the mail room",
    "the upper corridor", "the print shop", "the laundry", "the music hall",
)  # fmt: skip
SENTENCES = {
    "closure": ("{} stays closed until further notice.", "Please note that {} is shut this week."),
    "payment": ("The invoice for {} must be paid within thirty days.", "A fee is charged for using {}."),
    "safety": ("Report any injury near {} to the first aider at once.", "Wear a helmet when working at {}."),
}
CATEGORIES = tuple(SENTENCES)


def no_progress(_line: object) -> None:
    """Say nothing."""


def write_training_set(folder: Path, *, multi_label: bool = False) -> Artifact:
    """A small frozen training set of our own sentences."""
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for number, subject in enumerate(SUBJECTS):
        split = "test" if number % 3 == 0 else "validation" if number % 8 == 1 else "train"
        for category, sentences in SENTENCES.items():
            for sentence in sentences:
                labels, text = [category], sentence.format(subject)
                if multi_label and number % 2:
                    other = CATEGORIES[(CATEGORIES.index(category) + 1) % 3]
                    labels, text = sorted([category, other]), f"{text} {SENTENCES[other][0].format(subject)}"
                row = {"id": f"{split}-{len(splits[split])}", "text": text, "labels": labels, "origin": "human"}
                splits[split].append(row)
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        lines = "".join(json.dumps({**row, "group": row["id"], "split": split}) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    facts = {"kind": "training_set", "use_case": USE_CASE, "categories": list(CATEGORIES), "multi_label": multi_label}
    counts = {split: len(rows) for split, rows in splits.items()}
    seal(folder, {"fingerprint": fingerprint(splits), **facts, "rows": counts})
    return load(folder)


def write_report(folder: Path, adapter: Artifact, *, candidate: float = 0.9, champion: str | None = None) -> Artifact:
    """An evaluation report as the suite writes it, with the gate's real decision on the scores given."""
    settings = EvaluationSettings()
    base, beaten = 0.7, None if champion is None else candidate - 0.1
    value = candidate - (base if beaten is None else beaten)
    verdict = decide(
        rows=60,
        candidate=candidate,
        base=base,
        champion=beaten,
        difference=Difference(value, value - 0.08, value + 0.08),
        settings=settings.gate,
    )
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({"verdict": asdict(verdict)}), encoding="utf-8")
    facts = {
        "kind": "evaluation_report",
        "use_case": USE_CASE,
        "adapter": adapter.fingerprint,
        "adapter_files": adapter.manifest["files"],
        **{name: adapter.manifest.get(name) for name in ("task", "prompt", "template_hash")},
        "training_set": adapter.manifest["training_set"],
        "champion": champion,
        "settings": settings.model_dump(mode="json"),
        "verdict": {"passed": verdict.passed, "reasons": list(verdict.reasons)},
    }
    seal(folder, {"fingerprint": fingerprint(facts), **facts})
    return load(folder)


def copied(
    artifact: Artifact, folder: Path, *, edit: Callable[[Path], object] = lambda _folder: None, **changes: Any
) -> Artifact:
    """A sealed copy of an artifact in ``folder``, its files edited and its manifest changed."""
    shutil.copytree(artifact.path, folder)
    (folder / "manifest.json").unlink()
    edit(folder)
    seal(folder, {**{name: value for name, value in artifact.manifest.items() if name != "files"}, **changes})
    return load(folder)


def variant(gguf: Artifact, folder: Path, number: int) -> Artifact:
    """Another export of the same adapter."""
    return copied(gguf, folder / f"variant-{number}", fingerprint=f"{number:064x}")


def trained(training_set: Artifact, folder: Path) -> Artifact:
    """An adapter trained for real."""
    settings = ClassifySettings(epochs=2, batch_size=16, maximum_tokens=48, lora=LoraSettings(rank=4))
    job = TrainingJob(use_case=USE_CASE, training_set=training_set.path, output=folder, settings=settings)
    return train(job, progress=no_progress)
