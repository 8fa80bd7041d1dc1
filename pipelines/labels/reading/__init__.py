"""Reading labelled examples from files and databases, in all the shapes that people have.

Every row comes out, readable or not; a file or database that cannot be read is an error, never "nothing new".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.labels.examples import Submitted
from pipelines.labels.reading.files import open_files
from pipelines.labels.reading.shapes import Recogniser
from pipelines.labels.reading.sql import SQL, database_rows
from pipelines.labels.settings import LabelSettings, Shape
from pipelines.training.settings import Task

__all__ = ["SQL", "Reading", "read_examples"]


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that the files and the database hold now."""

    files: tuple[str, ...]
    """Names of the files; ``sql`` where a database was read."""
    rows: tuple[Submitted, ...]
    shapes: tuple[Shape | None, ...] = ()
    """Of each row; None where none was recognised."""
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By file: each column, and what it was taken for; nothing where it was ignored."""


def read_examples(settings: LabelSettings, *, base: Path, task: Task = "classify") -> Reading:
    """Read the folder or file at ``settings.url``, then ``settings.sql``; a relative path starts at ``base``.

    For the task ``generate`` every readable row is a chat whose last turn is the assistant's; for ``classify`` it is a
    text with labels.

    Raises:
        SourceError: nothing is there, no file matches, a file is broken as a whole or of an unknown format, or the
            database has no such table.
        SourceUnavailableError: it cannot be read now.
        ConfigError: the URL's protocol, or the database's driver, is not known.
    """
    places = {} if settings.url is None else dict(open_files(settings.url, settings.glob, base))
    if settings.sql is not None:
        places[SQL] = database_rows(settings.sql, base)
    rows: list[Submitted] = []
    shapes: list[Shape | None] = []
    columns: dict[str, Mapping[str, str]] = {}
    for name, records in places.items():
        recogniser = Recogniser(settings, task, name)
        for record in records:
            row, shape = recogniser.recognise(record)
            rows.append(row)
            shapes.append(shape)
        columns[name] = recogniser.columns
    return Reading(tuple(places), tuple(rows), tuple(shapes), columns)
