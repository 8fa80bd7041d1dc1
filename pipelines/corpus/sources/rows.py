"""Rows to documents: what tables, databases and APIs share."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from pipelines.corpus.documents import Document
from pipelines.corpus.parsing import Parsed, parse_text
from pipelines.corpus.settings import RowSource
from pipelines.corpus.sources.base import LONGEST_ID, Listed, document, numbers, stated_moment, storable
from pipelines.errors import ConfigError, DocumentError, SourceError
from pipelines.fingerprint import fingerprint

Row = Mapping[str, str]


class RowDocuments:
    """Turns the rows of one source into documents, by its templates."""

    def __init__(self, settings: RowSource, shown: str, uri: str) -> None:
        self._settings = settings
        self._shown = shown
        self._uri = uri
        self._text = Template(settings.text)
        self._title = Template(settings.title or "")
        self.look = fingerprint(settings.text, settings.title, settings.key)[:8]
        """Fingerprint of what makes a document of a row: other templates, other documents."""

    @property
    def columns(self) -> frozenset[str]:
        """Columns that the settings name."""
        named = {self._settings.key, *self._text.columns, *self._title.columns}
        return frozenset(named | ({self._settings.updated_at} if self._settings.updated_at else set()))

    def check(self, columns: Sequence[str]) -> None:
        """Whether the rows have the columns.

        Raises:
            ConfigError: a column that the settings name is not there.
        """
        if unknown := sorted(self.columns - set(columns)):
            raise ConfigError(
                f"source {self._settings.name!r}: {self._shown} has no column {', '.join(map(repr, unknown))}; "
                f"columns: {', '.join(columns)}"
            )

    def keyed(self, rows: Iterable[tuple[int, Row]]) -> tuple[list[Listed], dict[str, Row]]:
        """Every numbered row as it is listed, and the rows by document id.

        Raises:
            SourceError: a row has no key, or one that cannot be stored.
        """
        by_key: dict[str, Row] = {}

        def remembered() -> Iterator[tuple[int, Row]]:
            for number, row in rows:
                by_key[self.key(row)] = row
                yield number, row

        return self.index(remembered()), by_key

    def index(self, rows: Iterable[tuple[int, Row]]) -> list[Listed]:
        """Every numbered row as it is listed; no row is kept.

        Raises:
            SourceError: a row has no key, or one that cannot be stored.
        """
        listed: list[Listed] = []
        places: dict[str, tuple[int, int]] = {}  # number of the row, place in the listing
        twice: dict[str, list[int]] = {}
        empty: list[int] = []
        for number, row in rows:
            key = self.key(row)
            if not key:
                empty.append(number)
            elif key in places:
                twice.setdefault(key, [places[key][0]]).append(number)
            else:
                places[key] = number, len(listed)
                listed.append(self.listed(row, place=f"row {number}"))
        if empty:
            raise SourceError(
                f"source {self._settings.name!r}: no {self._settings.key} in row {numbers(empty)} of {self._shown}; "
                "every row needs a key"
            )
        for key, found in twice.items():
            at = places[key][1]
            listed[at] = replace(listed[at], error=f"key {key!r} occurs in rows {numbers(found)}: keep one")
        return listed

    def key(self, row: Row) -> str:
        """Document id of a row."""
        return row.get(self._settings.key, "").strip()

    def listed(self, row: Row, *, place: str) -> Listed:
        """One row; its version is the fingerprint of all that it says, and of the templates.

        Raises:
            SourceError: its key cannot be stored.
        """
        updated_at, error = stated_moment(row.get(self._settings.updated_at or "", ""))
        version = fingerprint(dict(row), self.look)[:32]
        key = self.checked(self.key(row), place=place)
        return Listed(key, version, self.uri(key), updated_at, error)

    def checked(self, key: str, *, place: str) -> str:
        """A key that can be stored.

        Raises:
            SourceError: it cannot.
        """
        if not key or len(key) > LONGEST_ID or not storable(key):
            raise SourceError(
                f"source {self._settings.name!r}: key {key!r:.100} in {place} is no text of 1 to {LONGEST_ID} "
                "characters"
            )
        return key

    def uri(self, key: str) -> str:
        """Where the row with a key is."""
        return f"{self._uri}#{quote(key)}"

    def read_all(
        self, listed: Iterable[Listed], rows: Iterable[tuple[str, Row]]
    ) -> Iterator[tuple[Listed, Document | DocumentError]]:
        """Each of ``listed`` in order, from ``rows`` by key; rows that come before their turn wait."""
        coming, early = iter(rows), dict[str, Row]()
        for each in listed:
            while each.error is None and each.document_id not in early:
                if (found := next(coming, None)) is None:
                    break
                early[found[0]] = found[1]
            row = early.pop(each.document_id, None)
            if row is None and each.error is None:
                gone = f"{each.document_id}: went away while it was read; the next listing will tell"
                yield each, DocumentError(gone)
                continue
            try:
                yield each, self.document(each, row or {})
            except DocumentError as error:
                yield each, error

    def document(self, listed: Listed, row: Row) -> Document:
        """Fill in the templates; every column is metadata.

        Raises:
            DocumentError: the row is no text, or was found wrong when it was listed.
        """
        if listed.error is not None:
            raise DocumentError(f"{listed.document_id}: {listed.error}")
        text, title = self._text.fill(row), " ".join(self._title.fill(row).split())
        if bad := next((value for value in row.values() if not storable(value)), None):
            raise DocumentError(
                f"{listed.document_id}: {bad!r} holds characters that are no text: NUL or half an emoji"
            )
        parsed = parse_text(text)
        if title:
            parsed = Parsed(title, tuple(type(each)((title,), each.blocks) for each in parsed.sections))
        return document(self._settings.name, listed, parsed, title or listed.document_id, dict(row))


def cell(value: Any) -> str:
    """A value as people write it.

    Nothing for null; dates and times in ISO 8601; whole numbers without a decimal point; lists of texts joined by
    commas; bytes that are no text as their SHA-256.
    """
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float():
            if not math.isfinite(value):
                return "" if math.isnan(value) else str(value)
            return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)
        case Decimal():
            return format(value, "f") if value.is_finite() else ""
        case datetime() | date() | time():
            return value.isoformat()
        case bytes() | memoryview():
            return _bytes(bytes(value))
        case list() if all(isinstance(item, str) for item in value):
            return ", ".join(value)
        case list() | dict():
            return json.dumps(value, ensure_ascii=False, default=cell)
        case _:
            return str(value)


def _bytes(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return f"sha256:{hashlib.sha256(value).hexdigest()}"


def is_marked(value: Any) -> bool:
    """Whether a mark of deletion says so: true, a number other than 0, any time or text but a word for no."""
    return cell(value).strip().lower() not in ("", "0", "false", "f", "no", "n")


class Template:
    """Text with columns in single braces; ``{{`` and ``}}`` are braces. Nothing is evaluated."""

    _PART = re.compile(r"(\{\{|\}\})|\{([^{}]+)\}|([{}])")

    def __init__(self, template: str) -> None:
        self._template = template
        found = list(self._PART.finditer(template))
        if stray := next((match for match in found if match[3]), None):
            raise ConfigError(
                f"template {template!r}: {stray[3]!r} at {stray.start()} is alone; write columns as '{{name}}', and "
                "braces doubled"
            )
        self.columns = frozenset(match[2] for match in found if match[2])

    def fill(self, row: Mapping[str, str]) -> str:
        """The text for one row; a column that the row lacks is empty."""
        return self._PART.sub(lambda match: row.get(match[2], "") if match[2] else match[1][0], self._template)
