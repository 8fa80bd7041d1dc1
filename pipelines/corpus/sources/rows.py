"""Rows to documents: what tables, databases and APIs share."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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
        places: dict[str, list[int]] = defaultdict(list)
        by_key: dict[str, Row] = {}
        for number, row in rows:
            key = row.get(self._settings.key, "").strip()
            places[key].append(number)
            by_key[key] = row
        if empty := places.get(""):
            raise SourceError(
                f"source {self._settings.name!r}: no {self._settings.key} in row {numbers(empty)} of {self._shown}; "
                "every row needs a key"
            )
        listed = []
        for key, row in by_key.items():
            each = self.listed(row, place=f"row {places[key][0]}")
            if len(places[key]) > 1:
                twice = f"key {key!r} occurs in rows {numbers(places[key])}: keep one"
                each = Listed(each.document_id, each.version, each.uri, each.updated_at, twice)
            listed.append(each)
        return listed, by_key

    def listed(self, row: Row, *, place: str) -> Listed:
        """One row; its version is the fingerprint of all that it says.

        Raises:
            SourceError: its key cannot be stored.
        """
        key = row.get(self._settings.key, "").strip()
        if not key or len(key) > LONGEST_ID or not storable(key):
            raise SourceError(
                f"source {self._settings.name!r}: key {key!r:.100} in {place} is no text of 1 to {LONGEST_ID} "
                "characters"
            )
        updated_at, error = stated_moment(row.get(self._settings.updated_at or "", ""))
        return Listed(key, fingerprint(dict(row))[:32], f"{self._uri}#{quote(key)}", updated_at, error)

    def document(self, listed: Listed, row: Row) -> Document:
        """Fill in the templates; every column is metadata.

        Raises:
            DocumentError: the row is no text, or was found wrong when it was listed.
        """
        if listed.error is not None:
            raise DocumentError(f"{listed.document_id}: {listed.error}")
        text, title = self._text.fill(row), " ".join(self._title.fill(row).split())
        if bad := next((value for value in (text, title) if not storable(value)), None):
            raise DocumentError(
                f"{listed.document_id}: {bad!r} holds characters that are no text: NUL or half an emoji"
            )
        parsed = parse_text(text)
        if title:
            parsed = Parsed(title, tuple(type(each)((title,), each.blocks) for each in parsed.sections))
        return document(self._settings.name, listed, parsed, title or listed.document_id, dict(row))


def cell(value: Any) -> str:
    """A JSON value as text: nothing for null, lists of texts joined by commas, numbers as they are written."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
