"""What a reading understood, for people to look at before anything is stored."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.labels.examples import Submitted
from pipelines.labels.reading import Reading

_NOT_RECOGNISED = "not recognised"


@dataclass(frozen=True, slots=True)
class FilePreview:
    """One file, or the database."""

    file: str
    rows: int
    shapes: Mapping[str, int]
    """Rows by shape, most frequent first."""
    columns: Mapping[str, str]
    """What each column was taken for."""
    ignored: tuple[str, ...]
    """Columns that mean nothing here."""
    problems: Mapping[str, int]
    """Why rows cannot be read, most frequent first; without what is only about one row."""


@dataclass(frozen=True, slots=True)
class ExamplePreview:
    """One row as it was understood."""

    location: str
    shape: str
    turns: tuple[tuple[str, str], ...]
    """Role and text: ``text`` and ``label``, or system, user, assistant, then ``rejected`` and ``context``."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What was understood of everything that was read."""

    files: tuple[FilePreview, ...]
    examples: tuple[ExamplePreview, ...]


def preview(reading: Reading, limit: int = 5) -> Preview:
    """What was understood, with ``limit`` readable rows: the first ones of each file's shapes before any second one."""
    shapes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    problems: defaultdict[str, Counter[str]] = defaultdict(Counter)
    turns: Counter[tuple[str, str]] = Counter()  # rows of a file and shape so far
    shown: list[tuple[int, int, ExamplePreview]] = []
    for number, (row, found) in enumerate(zip(reading.rows, reading.shapes, strict=True)):
        shape = found or _NOT_RECOGNISED
        shapes[row.file][shape] += 1
        if row.problem is not None:
            problems[row.file][_kind(row.problem)] += 1
        elif turns[row.file, shape] < limit:
            shown.append((turns[row.file, shape], number, ExamplePreview(row.location, shape, _turns(row))))
            turns[row.file, shape] += 1
    files = []
    for name in reading.files:
        columns = reading.columns.get(name, {})
        files.append(
            FilePreview(
                file=name,
                rows=shapes[name].total(),
                shapes=dict(shapes[name].most_common()),
                columns={column: meaning for column, meaning in columns.items() if meaning},
                ignored=tuple(column for column, meaning in columns.items() if not meaning),
                problems=dict(problems[name].most_common()),
            )
        )
    examples = (example for _, _, example in sorted(shown, key=lambda each: each[:2])[:limit])
    return Preview(tuple(files), tuple(examples))


def _kind(problem: str) -> str:
    """A problem without what stands in brackets, such as the number of a turn."""
    return re.sub(r" \([^()]*\)$", "", problem) if not problem.startswith("not ") else problem.partition(" (")[0]


def _turns(row: Submitted) -> tuple[tuple[str, str], ...]:
    if not row.messages:
        return ("text", row.text), ("label", "; ".join(row.labels))
    said = [(str(message.role), message.content) for message in row.messages]
    if row.rejected is not None:
        said.append(("rejected", row.rejected))
    if row.context is not None:
        said.append(("context", "\n\n".join(row.context)))
    return tuple(said)
