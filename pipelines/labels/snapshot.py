"""Training sets: frozen, content-addressed snapshots of all accepted examples, with their splits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from pipelines import artifacts
from pipelines.artifacts import Artifact
from pipelines.catalog import examples, now
from pipelines.errors import ArtifactError, ExamplesError
from pipelines.fingerprint import fingerprint
from pipelines.labels.examples import SPLITS, Example, Split, read_split
from pipelines.labels.intake import ACCEPTED
from pipelines.labels.leakage import leaked_pairs
from pipelines.labels.settings import LabelSettings

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class TrainingSetDifference:
    """What a training set has that the one before had not, and the other way round, in rows."""

    added: int
    removed: int
    added_by_category: Mapping[str, int]
    removed_by_category: Mapping[str, int]


def freeze_training_set(
    settings: LabelSettings,
    *,
    use_case: str,
    catalog: sa.Engine,
    folder: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> Artifact:
    """Freeze every accepted example, old and new, in ``folder/<fingerprint>/``: the latest training set.

    With ``near_copies: leave_out``, training examples nearly equal to held-out ones stay out. The folder has
    ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl`` (lines ``{"id", "text", "labels", "group", "origin"}``
    sorted by id) and ``manifest.json``. The same examples give the same fingerprint, and nothing is written again.

    Raises:
        ExamplesError: nothing to train on, nothing to evaluate on, or fewer than two categories to tell apart.
    """
    by_split = _accepted(catalog, use_case)
    left_out: list[str] = []
    if settings.near_copies == "leave_out":
        left_out = sorted({pair.train.id for pair in leaked_pairs(by_split)})
        by_split["train"] = [example for example in by_split["train"] if example.id not in set(left_out)]
        progress(f"{len(left_out)} training examples left out: near-copies of held-out ones")
    counts = {split: Counter(label for example in rows for label in example.labels) for split, rows in by_split.items()}
    categories = sorted(settings.categories or {label for count in counts.values() for label in count})
    _check(use_case, by_split, counts)
    not_in_train = [category for category in categories if not counts["train"][category]]
    if not_in_train:
        progress(f"no training example of {', '.join(not_in_train)}: the model cannot learn it from this set")
    identity = fingerprint(
        SCHEMA,
        categories,
        settings.multi_label,
        left_out,
        {split: [example.id for example in rows] for split, rows in by_split.items()},
    )
    path = folder / identity
    try:
        artifact = artifacts.load(path)
        progress(f"unchanged: {identity[:12]}")
    except ArtifactError:
        with artifacts.writing(path) as scratch:
            for split, rows_of_split in by_split.items():
                with (scratch / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
                    file.writelines(_line(example) for example in rows_of_split)
            manifest = {
                "fingerprint": identity,
                "kind": "training_set",
                "schema": SCHEMA,
                "use_case": use_case,
                "categories": categories,
                "not_in_train": not_in_train,
                "left_out": left_out,
                "multi_label": settings.multi_label,
                "rows": {split: len(rows_of_split) for split, rows_of_split in by_split.items()},
                "by_category": {split: dict(sorted(count.items())) for split, count in counts.items()},
                "created_at": now().isoformat(),
            }
            artifacts.seal(scratch, manifest)
        artifact = artifacts.load(path)
        progress(f"frozen: {identity[:12]}, " + ", ".join(f"{len(by_split[split])} {split}" for split in SPLITS))
    artifacts.record(catalog, use_case, "training_set", artifact)
    return artifact


def diff(old: Artifact, new: Artifact) -> TrainingSetDifference:
    """What ``new`` adds to ``old`` and what it no longer has, by example id."""
    before = {example.id: example for split in SPLITS for example in read_split(old, split)}
    after = {example.id: example for split in SPLITS for example in read_split(new, split)}
    added = [after[key] for key in after.keys() - before.keys()]
    removed = [before[key] for key in before.keys() - after.keys()]
    return TrainingSetDifference(len(added), len(removed), _by_category(added), _by_category(removed))


def _accepted(catalog: sa.Engine, use_case: str) -> dict[Split, list[Example]]:
    c = examples.c
    query = (
        sa.select(c.split, c.example_id, c.text, c.labels, c.group, c.origin)
        .where(c.use_case == use_case, c.state == ACCEPTED)
        .order_by(c.example_id)
    )
    by_split: dict[Split, list[Example]] = {split: [] for split in SPLITS}
    with catalog.connect() as connection:
        for split, example_id, text, labels, group, origin in connection.execute(query):
            by_split[split].append(Example(example_id, text, tuple(labels), group, origin))
    return by_split


def _check(use_case: str, by_split: Mapping[Split, list[Example]], counts: Mapping[Split, Mapping[str, int]]) -> None:
    numbers = ", ".join(f"{len(by_split[split])} {split}" for split in SPLITS)
    purposes: dict[Split, str] = {"train": "train", "test": "evaluate"}
    for split, purpose in purposes.items():
        if not by_split[split]:
            raise ExamplesError(
                f"{use_case} has no accepted example to {purpose} on ({numbers}); groups are never split, so a few "
                "large ones can fall on one side: submit more examples, finer groups, or given splits"
            )
    if len(counts["train"]) < 2:
        raise ExamplesError(
            f"{use_case} has training examples of {', '.join(counts['train']) or 'no category'} only; at least two "
            "categories are needed"
        )


def _line(example: Example) -> str:
    record = {
        "id": example.id,
        "text": example.text,
        "labels": example.labels,
        "group": example.group,
        "origin": example.origin,
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def _by_category(found: list[Example]) -> dict[str, int]:
    return dict(sorted(Counter(label for example in found for label in example.labels).items()))
