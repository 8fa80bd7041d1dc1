"""Training in four parts, of which ``--task`` chooses: ``python -m benchmarks.training``.

``opp115`` and ``banking77``: LoRA on MiniLM against TF-IDF with logistic regression. Both train on the same rows and
are scored on the same test rows. Whatever is chosen is chosen on validation rows: the best epoch, the calibration and
the decision threshold of the adapter, the regularisation and the threshold of the baseline. The adapter is trained by
``pipelines.training.train`` with the default settings of a use case, on OPP-115 with ``refit`` besides, which
takes twice as long. ``generation`` and ``trigger`` are the benchmarks of those names.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import report
from pipelines.artifacts import Artifact, load, seal, writing
from pipelines.environment import REPOSITORY
from pipelines.evaluation.classifier import load_classifier
from pipelines.evaluation.metrics import best_threshold, expected_calibration_error, score, scores
from pipelines.fingerprint import fingerprint
from pipelines.labels.examples import read_split
from pipelines.release.export import export
from pipelines.release.settings import ReleaseSettings
from pipelines.training.dataset import indicators
from pipelines.training.job import TrainingJob, train
from pipelines.training.progress import Progress
from pipelines.training.settings import ClassifySettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Labelled = tuple[str, list[str]]
QUICK_ROWS = 320
TELL_EVERY_SECONDS = 15
PARTS = ("generation", "trigger")
"""Benchmarks beside this one, each a part of it."""


@dataclass(frozen=True, slots=True)
class Task:
    """A public data set with the split that it is published with."""

    name: str
    folder: str
    read: Callable[[Path], dict[str, list[Labelled]]]
    multi_label: bool
    settings: ClassifySettings

    @property
    def metric(self) -> str:
        """What is reported of it."""
        return "micro_f1" if self.multi_label else "accuracy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write rows and figures to this file")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} training rows, one epoch: does it run?")
    parser.add_argument(
        "--data",
        type=Path,
        default=REPOSITORY.parent / "shared" / "data",
        help="folder with compliance-opp115/ and intents-banking77/",
    )
    parser.add_argument("--export", action="store_true", help="export to GGUF too, and compare with the merged model")
    parser.add_argument(
        "--task", choices=[*(task.name for task in TASKS), *PARTS], action="append", help="only this one"
    )
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for task in TASKS:
            if chosen.task and task.name not in chosen.task:
                continue
            if not (chosen.data / task.folder).is_dir():
                missing[task.name] = f"{chosen.data / task.folder} is not there"
                continue
            contenders = measure(task, chosen.data / task.folder, Path(scratch), quick=chosen.quick, gguf=chosen.export)
            rows += contenders
            ours = contenders[-1]
            figures[f"{task.name}_{task.metric}"] = ours[task.metric]
            figures |= {f"{task.name}_{name}": ours[name] for name in ("ece", "minutes")}
            figures |= {f"{task.name}_{name}": value for name, value in ours.items() if name.endswith("_agreement")}
    for name in PARTS:
        if chosen.task and name not in chosen.task:
            continue
        try:
            more, found = import_module(f"benchmarks.{name}").measure(quick=chosen.quick)
        except ImportError as error:
            missing[name] = str(error)
            continue
        rows += [{"task": name, **row} for row in more]
        figures |= found
    for name, reason in missing.items():
        print(f"{name}: not measured, {reason}", flush=True)
    report(
        "training",
        rows,
        figures,
        packages=["torch", "transformers", "peft", "scikit-learn", "trl", "dagster"],
        json_file=chosen.json,
        quick=chosen.quick,
        not_measured=missing,
    )


def measure(task: Task, data: Path, scratch: Path, *, quick: bool, gguf: bool) -> list[dict[str, Any]]:
    """Both contenders on one task, ours last; with ``gguf``, how often each exported file agrees with the model."""
    splits = task.read(data)
    if quick:
        splits = {name: rows[:QUICK_ROWS] for name, rows in splits.items()}
    training_set = freeze(scratch / task.name / "training_set", splits, multi_label=task.multi_label)
    print(f"{task.name}: " + ", ".join(f"{len(rows)} {name}" for name, rows in splits.items()), flush=True)

    started = time.monotonic()
    chances, threshold = tf_idf(training_set)
    baseline = scored(task, "TF-IDF + logistic regression", training_set, chances, threshold, started)

    started, told = time.monotonic(), 0.0

    def tell(point: Progress) -> None:
        nonlocal told
        if time.monotonic() - told >= TELL_EVERY_SECONDS or point.step == point.steps:
            told = time.monotonic()
            print(f"  {point.line()}", flush=True)

    settings = task.settings.model_copy(update={"epochs": 1}) if quick else task.settings
    job = TrainingJob(
        use_case=task.name,
        training_set=training_set.path,
        output=scratch / task.name / "lora_adapter",
        settings=settings,
    )
    adapter = train(job, progress=tell)
    tuned = load_classifier(adapter)
    found = tuned.probabilities([row.text for row in read_split(training_set, "test")])
    threshold = next(iter(tuned.thresholds.values()), 0.5)
    ours = scored(task, "LoRA on all-MiniLM-L6-v2", training_set, found, threshold, started)
    effective = adapter.manifest["effective"]
    ours |= {"threads": adapter.manifest["threads"], "precision": adapter.manifest["precision"]}
    ours |= {name: effective[name] for name in ("epochs", "best_epoch", "steps", "tokens")}
    if gguf:
        folder = scratch / task.name / "gguf_model"
        exported = export(adapter, training_set, settings=ReleaseSettings(), folder=folder, progress=print)
        found = exported.manifest["quantisations"]
        ours |= {f"{name.lower()}_agreement": parity["agreement"] for name, parity in found.items()}
        ours |= {f"{name.lower()}_row_agreement": parity["row_agreement"] for name, parity in found.items()}
    return [baseline, ours]


def scored(
    task: Task,
    contender: str,
    training_set: Artifact,
    chances: NDArray[np.floating[Any]],
    threshold: float,
    started: float,
) -> dict[str, Any]:
    """A row of the report; ``minutes`` are everything from the texts to the test split's probabilities."""
    import numpy as np

    minutes = (time.monotonic() - started) / 60
    categories = training_set.manifest["categories"]
    truth = indicators([row.labels for row in read_split(training_set, "test")], categories)
    if task.multi_label:
        predicted = chances >= threshold
        error = expected_calibration_error(chances.ravel(), truth.ravel())
    else:
        chosen = chances.argmax(axis=1)
        predicted = np.eye(len(categories), dtype=bool)[chosen]
        error = expected_calibration_error(chances.max(axis=1), truth[np.arange(len(truth)), chosen])
    reached = scores(truth, predicted, categories)
    return {
        "task": task.name,
        "contender": contender,
        "test_rows": reached.rows,
        "accuracy": reached.accuracy,
        "micro_f1": reached.micro_f1,
        "macro_f1": reached.macro_f1,
        "ece": error,
        "threshold": threshold if task.multi_label else None,
        "minutes": minutes,
    }


def tf_idf(training_set: Artifact) -> tuple[NDArray[np.floating[Any]], float]:
    """Test probabilities and threshold of TF-IDF (words and pairs) with logistic regression, tuned on validation."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    multi_label, categories = training_set.manifest["multi_label"], training_set.manifest["categories"]
    rows = {split: read_split(training_set, split) for split in ("train", "validation", "test")}
    truth = {split: indicators([row.labels for row in part], categories) for split, part in rows.items()}
    vectoriser = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    features = {"train": vectoriser.fit_transform(row.text for row in rows["train"])}
    features |= {split: vectoriser.transform(row.text for row in rows[split]) for split in ("validation", "test")}
    best: tuple[float, Any, float] = (-1.0, None, 0.5)
    for strength in (1, 10, 100):
        model = LogisticRegression(C=strength, max_iter=1000)
        if multi_label:
            model = OneVsRestClassifier(model).fit(features["train"], truth["train"])
            chances = model.predict_proba(features["validation"])
            threshold = best_threshold(truth["validation"], chances)
            reached = score(truth["validation"], chances >= threshold, "micro_f1")
        else:
            model = model.fit(features["train"], truth["train"].argmax(axis=1))
            threshold = 0.5
            reached = float((model.predict(features["validation"]) == truth["validation"].argmax(axis=1)).mean())
        if reached > best[0]:
            best = (reached, model, threshold)
    return _over_all(best[1], features["test"], len(categories), multi_label=multi_label), best[2]


def _over_all(model: Any, features: Any, categories: int, *, multi_label: bool) -> NDArray[np.floating[Any]]:
    """Probabilities in a column for each category, 0 for one without a training row."""
    import numpy as np

    found = model.predict_proba(features)
    if multi_label:
        return np.asarray(found)
    chances = np.zeros((found.shape[0], categories))
    chances[:, model.classes_] = found
    return chances


def freeze(folder: Path, splits: dict[str, list[Labelled]], *, multi_label: bool) -> Artifact:
    """A training set of given splits, as ``pipelines.training`` reads it."""
    with writing(folder) as scratch:
        for split, rows in splits.items():
            lines = [
                {
                    "id": f"{split}-{number}",
                    "text": text,
                    "labels": labels,
                    "group": f"{split}-{number}",
                    "origin": "human",
                }
                for number, (text, labels) in enumerate(rows)
            ]
            (scratch / f"{split}.jsonl").write_text(
                "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
            )
        categories = sorted({label for rows in splits.values() for _, labels in rows for label in labels})
        seal(
            scratch,
            {
                "fingerprint": fingerprint(splits, multi_label),
                "kind": "training_set",
                "categories": categories,
                "multi_label": multi_label,
                "rows": {split: len(rows) for split, rows in splits.items()},
            },
        )
    return load(folder)


def opp115(folder: Path) -> dict[str, list[Labelled]]:
    """Privacy-policy segments with one or more of 10 labels, in the files' own splits."""

    def rows(name: str) -> list[Labelled]:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        return [(row["text"], row["label"]) for row in map(json.loads, lines)]

    return {"train": rows("train.jsonl"), "validation": rows("valid.jsonl"), "test": rows("test.jsonl")}


def banking77(folder: Path) -> dict[str, list[Labelled]]:
    """Bank customers' questions by 77 intents; a tenth of the training file, by a hash, validates."""

    def rows(name: str) -> Sequence[Labelled]:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            return [(row["text"], [row["category"]]) for row in csv.DictReader(file)]

    def for_validation(row: Labelled) -> bool:
        return int(hashlib.sha256(row[0].encode()).hexdigest(), 16) % 10 == 0

    given = rows("train.csv")
    return {
        "train": [row for row in given if not for_validation(row)],
        "validation": [row for row in given if for_validation(row)],
        "test": list(rows("test.csv")),
    }


TASKS = (
    Task("opp115", "compliance-opp115", opp115, multi_label=True, settings=ClassifySettings(refit=True)),
    Task("banking77", "intents-banking77", banking77, multi_label=False, settings=ClassifySettings()),
)

if __name__ == "__main__":
    main()
