"""What changed from one training set to the next, for people to read."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from pipelines.artifacts import Artifact
from pipelines.errors import ArtifactError
from pipelines.fingerprint import text_hash
from pipelines.labels.examples import SPLITS

_NEARLY = 0.7  # ratio of matching characters from which a text of the same group is the other one, edited
_COMPARED = 50  # added rows of a group that a removed one is compared with; beyond, both show as what they are
_CUT = 160
_SAMPLES = 10

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """One example before and after; None where it was not, or is no more."""

    before: Row | None
    after: Row | None


@dataclass(frozen=True, slots=True)
class TrainingSetDifference:
    """What a training set has that the one before had not, and the other way round, in rows."""

    added: int
    removed: int
    changed: int
    """Rows in the place of others: of the same item, or of the same group with nearly the same text."""
    added_by_category: Mapping[str, int]
    """Changed rows aside, as below."""
    removed_by_category: Mapping[str, int]
    before: Mapping[tuple[str, str], int]
    """Rows by ``("split" | "category" | "origin" | "slice", its name)``."""
    after: Mapping[tuple[str, str], int]
    samples: tuple[Change, ...]
    """The first few of each kind by id: changed, added, removed."""

    def markdown(self) -> str:
        """Counts in a table, then the samples with their texts cut."""
        lines = [
            f"**{self.added} added, {self.removed} removed, {self.changed} changed**",
            "",
            "| | before | after | |",
            "|---|---|---|---|",
        ]
        for key in sorted(self.before.keys() | self.after.keys()):
            old, new = self.before.get(key, 0), self.after.get(key, 0)
            lines.append(f"| {_cell(': '.join(key))} | {old} | {new} | {f'{new - old:+}' if new != old else ''} |")
        if self.samples:
            lines += ["", "| | split | before | after |", "|---|---|---|---|"]
        for sample in self.samples:
            kind = "changed" if sample.before and sample.after else "added" if sample.after else "removed"
            split = (sample.after or sample.before or {}).get("split", "")
            lines.append(f"| {kind} | {split} | {_says(sample.before)} | {_says(sample.after)} |")
        return "\n".join(lines)


def diff(old: Artifact | None, new: Artifact, *, samples: int = _SAMPLES) -> TrainingSetDifference:
    """What ``new`` adds to ``old`` (None: there was none), what it no longer has, and what it has instead.

    Raises:
        ArtifactError: a file of a training set is missing.
    """
    gone: dict[str, tuple[str, str, str]] = {}
    counts: tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]] = (Counter(), Counter())
    for row in _rows(old):
        counts[0].update(_kinds(row))
        gone[row["id"]] = _mark(row)
    come: dict[str, tuple[str, str, str]] = {}
    pairs: list[tuple[str, str]] = []
    for row in _rows(new):
        counts[1].update(_kinds(row))
        before = gone.pop(row["id"], None)
        if before is None:
            come[row["id"]] = _mark(row)
        elif before[2] != _mark(row)[2]:
            pairs.append((row["id"], row["id"]))
    items = {item for item, _, _ in gone.values() if item} & {item for item, _, _ in come.values() if item}
    groups = {group for _, group, _ in gone.values()} & {group for _, group, _ in come.values()}

    def maybe(marks: Mapping[str, tuple[str, str, str]]) -> set[str]:
        """Ids that could be one side of a change, and those to show."""
        likely = {key for key, (item, group, _) in marks.items() if item in items or group in groups}
        return likely | set(sorted(marks.keys() - likely)[:samples]) | {key for key, _ in pairs}

    old_rows, new_rows = _chosen(old, maybe(gone)), _chosen(new, maybe(come))
    pairs += _edits(
        {key: row for key, row in old_rows.items() if key in gone},
        {key: row for key, row in new_rows.items() if key in come},
    )
    changes = [Change(old_rows[before], new_rows[after]) for before, after in sorted(pairs)]
    added = sorted(come.keys() - {after for _, after in pairs})
    removed = sorted(gone.keys() - {before for before, _ in pairs})
    shown = [
        *changes[:samples],
        *(Change(None, row) for row in _chosen(new, set(added[:samples])).values()),
        *(Change(row, None) for row in _chosen(old, set(removed[:samples])).values()),
    ]
    return TrainingSetDifference(
        added=len(added),
        removed=len(removed),
        changed=len(changes),
        added_by_category=_by_category(new, set(added)),
        removed_by_category=_by_category(old, set(removed)),
        before=dict(counts[0]),
        after=dict(counts[1]),
        samples=tuple(shown),
    )


def _rows(training_set: Artifact | None) -> Iterator[Row]:
    if training_set is None:
        return
    for split in SPLITS:
        path = training_set.path / f"{split}.jsonl"
        if not path.is_file():
            raise ArtifactError(f"{training_set.path} has no {path.name}; materialise its asset again")
        with path.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                yield {**json.loads(line), "split": split}


def _chosen(training_set: Artifact | None, ids: set[str]) -> dict[str, Row]:
    return {row["id"]: row for row in _rows(training_set) if row["id"] in ids} if ids else {}


def _mark(row: Row) -> tuple[str, str, str]:
    """Item, group, and a hash of what an example says, what was retrieved for it aside."""
    said = [row["text"], row["labels"], row.get("messages"), row["split"]]
    return row.get("item") or "", row["group"], text_hash(json.dumps(said, ensure_ascii=False))[:16]


def _kinds(row: Row) -> Iterator[tuple[str, str]]:
    yield "split", row["split"]
    yield "origin", row["origin"]
    for label in row["labels"]:
        yield "category", label
    for name in row.get("slices", ()):
        yield "slice", name


def _edits(gone: Mapping[str, Row], come: Mapping[str, Row]) -> list[tuple[str, str]]:
    """Ids of removed rows with those of the added rows that stand in their place, each at most once."""
    by_item = {row["item"]: key for key, row in come.items() if row.get("item")}
    by_group: dict[str, list[str]] = defaultdict(list)
    for key, row in come.items():
        by_group[row["group"]].append(key)
    found: list[tuple[str, str]] = []
    taken: set[str] = set()
    for key, row in gone.items():
        after = by_item.get(row.get("item", ""))
        if after is None or after in taken:
            candidates = [other for other in by_group.get(row["group"], ()) if other not in taken][:_COMPARED]
            ratio, after = max(((_alike(row, come[other]), other) for other in candidates), default=(0.0, ""))
            if ratio < _NEARLY:
                continue
        taken.add(after)
        found.append((key, after))
    return found


def _alike(one: Row, other: Row) -> float:
    """1.0 where only labels or the answer differ; a row cut to a thousand characters is told by these."""
    texts = one["text"][:1000], other["text"][:1000]
    return 1.0 if texts[0] == texts[1] else SequenceMatcher(None, *texts, autojunk=False).ratio()


def _by_category(training_set: Artifact | None, ids: set[str]) -> dict[str, int]:
    found: Iterable[Row] = _rows(training_set) if ids else ()
    return dict(sorted(Counter(label for row in found if row["id"] in ids for label in row["labels"]).items()))


def _says(row: Row | None) -> str:
    """Labels and text, or question and answer, cut."""
    if row is None:
        return ""
    turns: Sequence[Mapping[str, str]] = row.get("messages", ())
    if not turns:
        return f"**{_cell(', '.join(row['labels']))}** {_cell(_short(row['text']))}"
    return f"{_cell(_short(row['text']))} → {_cell(_short(turns[-1]['content']))}"


def _short(text: str) -> str:
    return text if len(text) <= _CUT else text[: _CUT - 1] + "…"


def _cell(text: str) -> str:
    """Cannot break out of its cell."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
