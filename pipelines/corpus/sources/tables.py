"""CSV, JSON and JSONL tables, one document a row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from pipelines.corpus.documents import Document
from pipelines.corpus.parsing import decode
from pipelines.corpus.settings import TableSource
from pipelines.corpus.sources.base import NOTHING_KNOWN, Known, Listed, Listing, Source
from pipelines.corpus.sources.location import Location, unavailable
from pipelines.corpus.sources.rows import Row, RowDocuments, cell
from pipelines.errors import ConfigError, DocumentError, SourceError

_TABLES = (".csv", ".json", ".jsonl", ".ndjson")


class TableDocuments(Source):
    """Every row of a CSV, JSON or JSONL file; its id is its key."""

    def __init__(self, settings: TableSource, location: Location) -> None:
        self._settings = settings
        self._location = location
        self._suffix = PurePosixPath(location.path).suffix.lower()
        if self._suffix not in _TABLES:
            raise ConfigError(
                f"source {settings.name!r}: {location.shown} is no table; allowed endings: {', '.join(_TABLES)}"
            )
        uri = Path(location.path).as_uri() if "://" not in location.shown else location.shown
        self._documents = RowDocuments(settings, location.shown, uri)
        self._rows: Mapping[str, Row] = {}

    def list(self, known: Known = NOTHING_KNOWN) -> Listing:
        """Rows in the order of the table."""
        del known
        name = self._settings.name
        with unavailable(name, self._location.shown):
            self._location.files.invalidate_cache()
            if self._location.files.isdir(self._location.path):
                raise SourceError(f"source {name!r}: {self._location.shown} is a folder; a table source needs a file")
            data: bytes = self._location.files.cat_file(self._location.path)
        try:
            columns, rows = (
                _csv_rows(decode(data)) if self._suffix == ".csv" else _json_rows(decode(data), self._suffix)
            )
        except (DocumentError, csv.Error, json.JSONDecodeError) as error:
            raise SourceError(
                f"source {name!r}: {self._location.shown} is no valid {self._suffix} table: {error}"
            ) from error
        if columns:  # an empty JSON list has none, and is a table all the same
            self._documents.check(columns)
        listed, self._rows = self._documents.keyed(rows)
        return Listing(listed)

    def read(self, listed: Listed) -> Document:
        """Fill in the templates."""
        return self._documents.document(listed, self._rows[listed.document_id])


def _csv_rows(text: str) -> tuple[Sequence[str], Sequence[tuple[int, Row]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = [column.strip() for column in next(reader, [])]
    twice = sorted({column for column in header if header.count(column) > 1})
    if not header or twice:
        raise DocumentError(f"columns named twice: {', '.join(twice)}" if twice else "there is no header")
    rows = []
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise DocumentError(f"line {reader.line_num} has {len(row)} cells, the header has {len(header)}")
        rows.append((reader.line_num, dict(zip(header, row, strict=True))))
    return header, rows


def _json_rows(text: str, suffix: str) -> tuple[Sequence[str], Sequence[tuple[int, Row]]]:
    load = partial(json.loads, parse_float=str, parse_int=str)  # numbers as they are written
    if suffix == ".json":
        values = load(text)
        if not isinstance(values, list):
            raise DocumentError(f"it holds a {type(values).__name__}; a JSON table is a list of objects")
        numbered = list(enumerate(values, 1))
    else:
        numbered = [(number, load(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows: list[tuple[int, Row]] = []
    for number, value in numbered:
        if not isinstance(value, dict):
            raise DocumentError(f"row {number} is no object: {value!r:.80}")
        rows.append((number, {key: cell(inner) for key, inner in value.items()}))
    return sorted({key for _, row in rows for key in row}), rows
