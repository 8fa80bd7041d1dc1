"""Index against catalog: counts, ids and hashes, of everything or of a sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from pipelines import catalog as schema
from pipelines.corpus.index import StoredPoint, VectorIndex
from pipelines.corpus.ledger import DocumentKey, chunk_count, mark_writing, pages, which
from pipelines.errors import NotBuiltError
from pipelines.fingerprint import text_hash

Mode = Literal["full", "sampled", "unchanged"]

SAMPLE = 50
"""Documents of a sampled audit, drawn at random; what was written since the last audit is compared as well."""
_MOST_RECENT = 2_000
_ROWS = 1_000  # of the catalog, fetched together
_BYTES = {"sqlite": "BINARY", "postgresql": "C"}  # collations that order ids as the index does
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class AuditReport:
    """How many there are, and the documents, as ``source/id``, where index and catalog differ."""

    mode: Mode
    """unchanged: only counted in the catalog, because nothing was written since the last audit."""
    documents: int
    """In the catalog."""
    points: int
    """In the index."""
    compared: int
    """Documents whose points were compared one by one."""
    missing: tuple[str, ...] = ()
    """With chunks of which the index has no point."""
    orphaned: tuple[str, ...] = ()
    """With points that the catalog does not know, or of a source that is not declared."""
    stale: tuple[str, ...] = ()
    """With points of another version of their text, or with other text than was cut."""
    duplicates: tuple[str, ...] = ()
    """With a point that the index returned twice."""
    unfinished: tuple[str, ...] = ()
    """Left half written by a crash."""

    @property
    def clean(self) -> bool:
        """Whether index and catalog agree."""
        return not any(ids for _, ids in self._kinds)

    @property
    def _kinds(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return (
            ("missing", self.missing),
            ("orphaned", self.orphaned),
            ("stale", self.stale),
            ("duplicate", self.duplicates),
            ("unfinished", self.unfinished),
        )

    def __str__(self) -> str:
        found = [
            f"{len(ids)} {name} ({', '.join(ids[:_SHOWN])}{', …' if len(ids) > _SHOWN else ''})"
            for name, ids in self._kinds
            if ids
        ]
        compared = {
            "full": "",
            "sampled": f", {self.compared} documents compared",
            "unchanged": ", unchanged since the last audit",
        }[self.mode]
        return f"{self.documents} documents, {self.points} points{compared}: {'; '.join(found) or 'clean'}"


def audit_collection(
    collection: str,
    *,
    catalog: sa.Engine,
    index: VectorIndex,
    declared: Collection[str] | None = None,
    mode: Mode = "full",
    since: datetime | None = None,
) -> tuple[AuditReport, set[DocumentKey]]:
    """Compare ``collection`` with the catalog; the report, and every document that it concerns.

    Args:
        collection: its name.
        catalog: what should be there.
        index: what is there.
        declared: sources that may have points; None for all.
        mode: every point with its text; or the counts, a sample, and what was written ``since``, and everything only
            where the counts differ.
        since: only of use to a sampled audit.

    Raises:
        NotBuiltError: there is no such collection.
    """
    if not index.exists(collection):
        raise NotBuiltError(f"there is no collection {collection} yet: materialise the sources first")
    if mode == "sampled":
        return _sampled(collection, catalog, index, declared, since)
    return _compare(collection, catalog, index, declared=declared)


def mark_differences(collection: str, source: str, catalog: sa.Engine, index: VectorIndex) -> None:
    """Where index and catalog do not even agree on a number, find the documents, so that they are written again.

    What was audited since it changed last is not counted again.
    """
    revision, audited = revision_of(collection, catalog)
    if revision == audited:
        return
    with index.open(collection) as points:
        counted = points.count(source)
    if counted != chunk_count(collection, catalog, source):
        _, documents = _compare(collection, catalog, index, source=source)
        mark_writing(collection, documents, catalog)


def revision_of(collection: str, catalog: sa.Engine) -> tuple[int, int | None]:
    """How often the collection changed, and how often it had when it was last found equal to the catalog."""
    table = schema.collections.c
    query = sa.select(table.revision, table.audited_revision).where(table.collection == collection)
    with catalog.connect() as connection:
        row = connection.execute(query).one_or_none()
    return (0, None) if row is None else (row.revision, row.audited_revision)


def unchanged(collection: str, catalog: sa.Engine) -> AuditReport:
    """The report on a collection to which nothing was written since the last audit."""
    table = schema.documents.c
    with catalog.connect() as connection:
        held = connection.scalar(sa.select(sa.func.count()).where(table.collection == collection))
    return AuditReport("unchanged", int(held or 0), chunk_count(collection, catalog), 0)


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the catalog says of one chunk."""

    document: DocumentKey
    text_hash: str
    content_hash: str | None
    """Of its document; None where the catalog does not know that."""


def _compare(
    collection: str,
    catalog: sa.Engine,
    index: VectorIndex,
    *,
    source: str | None = None,
    declared: Collection[str] | None = None,
) -> tuple[AuditReport, set[DocumentKey]]:
    """Both in the order of their ids, side by side: what is held in memory does not grow with the collection."""
    table = schema.documents
    here = [table.c.collection == collection, *([] if source is None else [table.c.source == source])]
    wrong: dict[str, set[DocumentKey]] = defaultdict(set)
    points_seen = 0
    with catalog.connect() as connection, index.open(collection) as points:
        expected = _expected(connection, collection, source)
        wanted = next(expected, None)
        last = ""
        for point in points.scan(source, with_text=True):
            key = (point.source, point.document_id)
            if point.point_id == last:
                wrong["duplicates"].add(key)
                continue
            last = point.point_id
            points_seen += 1
            while wanted is not None and wanted[0] < point.point_id:
                wrong["missing"].add(wanted[1].document)
                wanted = next(expected, None)
            undeclared = declared is not None and point.source not in declared
            if wanted is None or wanted[0] != point.point_id or wanted[1].document != key or undeclared:
                wrong["orphaned"].add(key)
            elif _is_stale(point, wanted[1].content_hash, wanted[1].text_hash):
                wrong["stale"].add(key)
            if wanted is not None and wanted[0] == point.point_id:
                wanted = next(expected, None)
        while wanted is not None:
            wrong["missing"].add(wanted[1].document)
            wanted = next(expected, None)
        documents = int(connection.scalar(sa.select(sa.func.count()).select_from(table).where(*here)) or 0)
        unfinished = sa.select(table.c.source, table.c.document_id).where(*here, table.c.state == "writing")
        wrong["unfinished"] = {(row[0], row[1]) for row in connection.execute(unfinished)}
    return AuditReport("full", documents, points_seen, documents, **_named(wrong)), set().union(*wrong.values())


def _expected(connection: sa.Connection, collection: str, source: str | None) -> Iterator[tuple[str, _Expected]]:
    """Every chunk of the catalog with its id, in the order of the ids."""
    chunks, documents = schema.chunks.c, schema.documents.c
    same = sa.and_(*(chunks[name] == documents[name] for name in ("collection", "source", "document_id")))
    query = (
        sa.select(chunks.chunk_id, chunks.source, chunks.document_id, chunks.text_hash, documents.content_hash)
        .select_from(schema.chunks.outerjoin(schema.documents, same))
        .where(chunks.collection == collection)
        .order_by(sa.collate(chunks.chunk_id, _BYTES[connection.dialect.name]))
        .execution_options(yield_per=_ROWS)
    )
    for row in connection.execute(query if source is None else query.where(chunks.source == source)):
        yield row[0], _Expected((row[1], row[2]), row[3], row[4])


def _sampled(
    collection: str,
    catalog: sa.Engine,
    index: VectorIndex,
    declared: Collection[str] | None,
    since: datetime | None,
) -> tuple[AuditReport, set[DocumentKey]]:
    table, chunks = schema.documents, schema.chunks
    here = table.c.collection == collection
    columns = sa.select(table.c.source, table.c.document_id, table.c.content_hash, table.c.state)
    with catalog.connect() as connection:
        held = int(connection.scalar(sa.select(sa.func.count()).select_from(table).where(here)) or 0)
        rows = list(connection.execute(columns.where(here).order_by(sa.func.random()).limit(SAMPLE)))
        if since is not None:
            recent = columns.where(here, table.c.indexed_at >= since).limit(_MOST_RECENT)
            rows += list(connection.execute(recent))
        rows += list(connection.execute(columns.where(here, table.c.state == "writing").limit(_MOST_RECENT)))
        sources = set(connection.scalars(sa.select(table.c.source).where(here).distinct()))
        sampled = {(row[0], row[1]): row for row in rows}
        wanted: dict[str, _Expected] = {}
        for source in sources:
            for page in pages([key[1] for key in sampled if key[0] == source]):
                query = sa.select(chunks.c.chunk_id, chunks.c.document_id, chunks.c.text_hash)
                found = connection.execute(query.where(*which(chunks, collection, source, page)))
                wanted |= {
                    row[0]: _Expected((source, row[1]), row[2], sampled[source, row[1]].content_hash) for row in found
                }
    wrong: dict[str, set[DocumentKey]] = defaultdict(set)
    with index.open(collection) as points:
        total = points.count()
        counted = {source: points.count(source) for source in sources}
        stored = points.fetch(list(wanted), with_text=True)
    for chunk_id, each in wanted.items():
        point = stored.get(chunk_id)
        if point is None:
            wrong["missing"].add(each.document)
        elif (point.source, point.document_id) != each.document or _is_stale(point, each.content_hash, each.text_hash):
            wrong["stale"].add(each.document)
    wrong["unfinished"] = {key for key, row in sampled.items() if row.state == "writing"}
    undeclared = declared is not None and not sources <= set(declared)
    differing = any(count != chunk_count(collection, catalog, source) for source, count in counted.items())
    if undeclared or differing or total != sum(counted.values()):  # a sample cannot say which documents
        return _compare(collection, catalog, index, declared=declared)
    report = AuditReport("sampled", held, total, len(sampled), **_named(wrong))
    return report, set().union(*wrong.values())


def _is_stale(point: StoredPoint, content_hash: str | None, digest: str) -> bool:
    return content_hash != point.content_hash or text_hash(point.text or "") != digest


def _named(wrong: dict[str, set[DocumentKey]]) -> dict[str, tuple[str, ...]]:
    return {kind: tuple(sorted("/".join(key) for key in keys)) for kind, keys in wrong.items()}
