"""Tables and queries of any database that SQLAlchemy knows, one document a row.

How a change is found, with ``updated_at``: a listing reads each row's key and update time, and the time is the row's
version. That alone would miss a second edit that bears the time of the first: within one tick of the clock, by a
transaction that commits late, or by a machine whose clock differs. So the version of a row whose time is less than
``overlap_minutes`` ago (or ahead, or missing) also holds the fingerprint of its columns; once the time is older, the
version becomes the bare time, and the row is read a last time. An ``incremental`` listing asks for rows from the newest
time of the last listing on, less the same overlap, so it meets each of those rows again until it is settled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import sqlalchemy as sa

from pipelines.catalog import now
from pipelines.corpus.documents import Document
from pipelines.corpus.settings import SqlSource
from pipelines.corpus.sources.base import NOTHING_KNOWN, Known, Listed, Listing, Source, moment
from pipelines.corpus.sources.database import Database
from pipelines.corpus.sources.rows import Row, RowDocuments, cell, is_marked
from pipelines.errors import ConfigError, DocumentError, SourceError
from pipelines.fingerprint import fingerprint

_BATCH = 500  # keys of one IN list
_FETCH = 2000  # rows that are held at once
_MILLISECONDS = 1e11  # larger numbers are milliseconds since 1970: as seconds they were the year 5138
_KINDS: Mapping[type, Callable[[str], Any]] = {int: int, float: float, Decimal: Decimal, UUID: UUID, str: str}


class SqlDocuments(Source):
    """Every row of a table or query; its id is its key as text. The database is only read."""

    def __init__(self, settings: SqlSource, base: Path) -> None:
        self._settings = settings
        self._name = f"source {settings.name!r}"
        self._database = Database(self._name, settings.url, base, settings.timeout_seconds)
        table = f"/{quote(settings.table)}" if settings.table else ""
        shown = self._database.shown
        what = f"{settings.table or 'the query'} of {shown}"
        self._documents = RowDocuments(settings, what, shown + table)
        self._overlap = timedelta(minutes=settings.overlap_minutes)
        self._origin: tuple[sa.FromClause, Sequence[str]] | None = None
        self._sample: Any = None  # an update time as the database has it
        self._kind: type | None = None  # of the keys
        self._raw: dict[str, Any] = {}  # keys that their texts do not tell

    def list(self, known: Known = NOTHING_KNOWN) -> Listing:
        """Every row, or every row that may have changed since ``known``; deletions by mark or by absence."""
        with self._database.connected() as connection:
            self._columns(connection)
            if self._settings.updated_at is None:
                rows = enumerate(self._rows(connection, self._select()), 1)
                return Listing(self._documents.index((number, row) for number, (_, row) in rows))
            if not self._settings.incremental:
                return Listing(self._scan(connection, [self._scanned()])[0])
            return self._incremental(connection, known)

    def _incremental(self, connection: sa.Connection, known: Known) -> Listing:
        started, state, settings = now(), known.state, self._settings
        read_by = fingerprint(
            self._documents.look, settings.table, settings.query, settings.updated_at, settings.deleted
        )[:16]
        newest = self._newest(connection)
        # A time in the future must not hide what is written until then.
        watermark = min(newest, started).isoformat() if newest else state.get("watermark")
        age = started - moment(state["full_at"]) if "full_at" in state else timedelta.max
        due = not timedelta(0) <= age < timedelta(hours=settings.full_listing_hours)
        if due or not known.versions or state.get("read_by") != read_by or "watermark" not in state:
            listed, _ = self._scan(connection, [self._scanned()])
            gone = known.versions.keys() - {each.document_id for each in listed}
            full_at = started.isoformat()
            removed = None
        else:
            since = self._since(moment(state["watermark"]) - self._overlap)
            again = [self._scanned().where(keys) for keys in self._where(known.retry)]
            listed, marked = self._scan(connection, [self._scanned().where(since), *again])
            ids = {each.document_id for each in listed}
            # What was to go stays named until it has gone: a deletion may have been withheld.
            gone = ((marked | set(state["gone"])) & known.versions.keys() | set(known.retry)) - ids
            full_at = state["full_at"]
            removed = gone
        state = {"read_by": read_by, "watermark": watermark, "full_at": full_at, "gone": sorted(gone)}
        return Listing(listed, removed, state=state if watermark else {})

    def _scan(
        self, connection: sa.Connection, statements: Sequence[sa.Select[Any]]
    ) -> tuple[Sequence[Listed], set[str]]:
        """Rows by key and update time, without those marked as deleted, and the keys of those."""
        cutoff = now() - self._overlap
        listed: dict[str, Listed] = {}
        unsettled: set[str] = set()
        deleted: set[str] = set()

        def fail_twice(key: str) -> None:
            listed[key] = replace(listed[key], error=f"key {key!r} occurs in more than one row: keep one")
            unsettled.discard(key)

        for statement in statements:
            seen: set[str] = set()
            for raw, stamp, *mark in self._stream(connection, statement):
                key = self._key(raw)
                if mark and is_marked(mark[0]):
                    deleted.add(key)
                elif key in seen:
                    fail_twice(key)
                elif key not in listed:
                    updated_at, error = _when(stamp)
                    version = f"{updated_at.isoformat()}-{self._documents.look}" if updated_at else "?"
                    listed[key] = Listed(key, version, self._documents.uri(key), updated_at, error)
                    if error is None and (updated_at is None or updated_at >= cutoff - _tick(stamp)):
                        unsettled.add(key)
                seen.add(key)
        for key, row in self._fetch(connection, set(unsettled)):
            if key in unsettled:
                unsettled.remove(key)
                version = f"{listed[key].version}~{fingerprint(dict(row))[:32]}"
                listed[key] = replace(listed[key], version=version)
            else:
                fail_twice(key)
        for key in unsettled:  # never taken for deleted by this listing: the next one tells
            error = f"{key}: went away while it was listed, or its key does not find it"
            listed[key] = replace(listed[key], error=error)
        return [*listed.values()], deleted - listed.keys()

    def read(self, listed: Listed) -> Document:
        """Fill in the templates."""
        [(_, found)] = self.read_all([listed])
        if isinstance(found, DocumentError):
            raise found
        return found

    def read_all(self, listed: Iterable[Listed]) -> Iterator[tuple[Listed, Document | DocumentError]]:
        """Fill in the templates; rows are fetched by key, many at once, and no lock is held while they are used."""
        wanted = iter(listed)
        while batch := [*itertools.islice(wanted, _BATCH if self._settings.table else 20 * _BATCH)]:
            with self._database.connected() as connection:
                self._columns(connection)
                rows = dict(self._fetch(connection, {each.document_id for each in batch if each.error is None}))
            yield from self._documents.read_all(batch, rows.items())

    def close(self) -> None:
        """Close the connections."""
        self._database.engine.dispose()

    def _fetch(self, connection: sa.Connection, keys: Collection[str]) -> Iterator[tuple[str, Row]]:
        """Whole rows by key, without those marked as deleted."""
        if self._settings.query is not None and len(keys) > 4 * _BATCH:  # each IN list would run the query again
            yield from ((key, row) for key, row in self._rows(connection, self._select()) if key in keys)
            return
        for where in self._where(keys):
            yield from self._rows(connection, self._select().where(where))

    def _rows(self, connection: sa.Connection, statement: sa.Select[Any]) -> Iterator[tuple[str, Row]]:
        _, columns = self._columns(connection)
        key, mark = columns.index(self._settings.key), self._settings.deleted
        at = None if mark is None else columns.index(mark)
        for values in self._stream(connection, statement):
            if at is None or not is_marked(values[at]):
                yield self._key(values[key]), dict(zip(columns, map(cell, values), strict=True))

    def _stream(self, connection: sa.Connection, statement: sa.Select[Any]) -> Iterator[Sequence[Any]]:
        yield from connection.execute(statement, execution_options={"stream_results": True, "yield_per": _FETCH})

    def _select(self) -> sa.Select[Any]:
        origin, columns = self._origin or (sa.table(""), ())
        return sa.select(*(origin.c[column] for column in columns))

    def _scanned(self) -> sa.Select[Any]:
        """Key, update time and mark of deletion."""
        settings, (origin, _) = self._settings, self._origin or (sa.table(""), ())
        named = (settings.key, settings.updated_at, settings.deleted)
        return sa.select(*(origin.c[column] for column in named if column))

    def _key(self, raw: Any) -> str:
        key = cell(raw).strip()
        if not key:
            raise SourceError(f"{self._name}: a row has no {self._settings.key}; every row needs a key")
        self._documents.checked(key, place="a row")
        if self._kind is None:
            self._kind = type(raw)
        if type(raw) is not self._kind or self._kind not in _KINDS or (self._kind is str and raw != key):
            self._raw[key] = raw
        return key

    def _where(self, keys: Iterable[str]) -> Iterator[sa.ColumnElement[bool]]:
        """Conditions that find the rows with ``keys``, at most so many each."""
        origin = self._origin
        if origin is None:
            return
        column, raws = origin[0].c[self._settings.key], (self._restored(key) for key in keys)
        some = (raw for raw in raws if raw is not None)
        while batch := [*itertools.islice(some, _BATCH)]:
            yield column.in_(batch)

    def _restored(self, key: str) -> Any:
        """A key as the database has it, or None where none of its rows can have it."""
        if key in self._raw:
            return self._raw[key]
        try:
            return _KINDS.get(self._kind or str, str)(key)
        except (ValueError, ArithmeticError):
            return None

    def _newest(self, connection: sa.Connection) -> datetime | None:
        raw = connection.scalar(sa.select(sa.func.max(self._time())))
        if isinstance(raw, str):
            raise ConfigError(
                f"{self._name}: column {self._settings.updated_at!r} holds text such as {raw!r}, which does not sort "
                "by time: take a date-time column, cast it in a 'query', or leave out 'incremental'"
            )
        self._sample = raw
        return _when(raw)[0]

    def _time(self) -> sa.ColumnElement[Any]:
        origin, _ = self._origin or (sa.table(""), ())
        column = origin.c[str(self._settings.updated_at)]
        if self._database.sqlite is None:
            return column
        # SQLite has no times: text or numbers, as whoever writes them likes. Both as seconds since 1970.
        seconds = sa.case((column >= _MILLISECONDS, column / 1000.0), else_=column)
        julian = (sa.func.julianday(column) - 2440587.5) * 86400.0
        return sa.case((sa.func.typeof(column) == "text", julian), else_=seconds)

    def _since(self, when: datetime) -> sa.ColumnElement[bool]:
        """Rows updated at ``when`` or later, or at no known time; compared as the column compares."""
        column, sample = self._time(), self._sample
        since: Any
        if isinstance(sample, datetime):
            since = when if sample.tzinfo else when.replace(tzinfo=None)
        elif isinstance(sample, date):
            since = when.date()
        else:
            since = when.timestamp() - 0.001
            if sample is not None and sample >= _MILLISECONDS:
                since *= 1000
        return sa.or_(column >= since, column.is_(None))

    def _columns(self, connection: sa.Connection) -> tuple[sa.FromClause, Sequence[str]]:
        """What is selected from, and its columns.

        Raises:
            ConfigError: there is no such table or column.
        """
        if self._origin is not None:
            return self._origin
        settings = self._settings
        if settings.query is not None:
            statement, columns = self._database.query(connection, settings.query)
            origin: sa.FromClause = statement.subquery("rows_of_query")
        else:
            origin, columns = self._database.table(connection, str(settings.table))
        self._documents.check(columns)
        if settings.deleted is not None and settings.deleted not in columns:
            raise ConfigError(f"{self._name}: there is no column {settings.deleted!r}; columns: {', '.join(columns)}")
        self._origin = origin, columns
        if self._kind is None and (key := connection.scalar(sa.select(origin.c[settings.key]).limit(1))) is not None:
            self._key(key)
        return self._origin


def _tick(value: Any) -> timedelta:
    """How long the clock that wrote an update time stands still: a day where it is only a date."""
    day = (isinstance(value, date) and not isinstance(value, datetime)) or (isinstance(value, str) and len(value) <= 10)
    return timedelta(days=day)


def _when(value: Any) -> tuple[datetime | None, str | None]:
    """An update time, and what is wrong with it."""
    try:
        if value is None or value == "":
            return None, None
        if isinstance(value, int | float | Decimal):
            seconds = float(value)
            return moment(seconds / 1000 if abs(seconds) >= _MILLISECONDS else seconds), None
        return moment(value if isinstance(value, datetime) else str(value).strip()).astimezone(UTC), None
    except (ValueError, OverflowError, OSError):
        return None, f"update time {value!r:.100} is no time: neither ISO 8601 nor seconds or milliseconds since 1970"
