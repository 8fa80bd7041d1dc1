"""What the catalog says that a collection holds: queries on its documents and chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from pipelines import catalog as schema
from pipelines.corpus.plan import Held

SQL_VALUES = 500
"""Bound parameters per statement, below every database's limit."""

DocumentKey = tuple[str, str]
"""Source and document id."""


def pages(values: Sequence[str], size: int = SQL_VALUES) -> Iterator[Sequence[str]]:
    """``values`` in parts of at most ``size``."""
    return (values[start : start + size] for start in range(0, len(values), size))


def which(
    table: sa.Table, collection: str, source: str, document_ids: Sequence[str]
) -> tuple[sa.ColumnElement[bool], ...]:
    """The rows of some documents."""
    return (table.c.collection == collection, table.c.source == source, table.c.document_id.in_(document_ids))


def held_documents(collection: str, source: str, catalog: sa.Engine) -> dict[str, Held]:
    """Every document of one source, by id."""
    table = schema.documents.c
    columns = (table.document_id, table.state, table.version, table.uri, table.content_hash)
    query = sa.select(*columns).where(table.collection == collection, table.source == source)
    with catalog.connect() as connection:
        return {row[0]: Held(*row[1:]) for row in connection.execute(query)}


def chunk_count(collection: str, catalog: sa.Engine, source: str | None = None) -> int:
    """Chunks of one source, or all."""
    table = schema.chunks.c
    query = sa.select(sa.func.count()).where(table.collection == collection)
    with catalog.connect() as connection:
        return int(connection.scalar(query if source is None else query.where(table.source == source)) or 0)


def chunk_texts(collection: str, source: str, document_ids: Sequence[str], catalog: sa.Engine) -> dict[str, str]:
    """Text hash by chunk id, of some documents."""
    table, found = schema.chunks.c, {}
    with catalog.connect() as connection:
        for page in pages(document_ids):
            query = sa.select(table.chunk_id, table.text_hash).where(*which(schema.chunks, collection, source, page))
            found.update({row.chunk_id: row.text_hash for row in connection.execute(query)})
    return found


def chunks_by_text(collection: str, text_hashes: Sequence[str], catalog: sa.Engine) -> dict[str, str]:
    """Text hash by chunk id, of every chunk with one of these texts."""
    table, found = schema.chunks.c, {}
    with catalog.connect() as connection:
        for page in pages(text_hashes):
            query = sa.select(table.chunk_id, table.text_hash).where(
                table.collection == collection, table.text_hash.in_(page)
            )
            found.update({row.chunk_id: row.text_hash for row in connection.execute(query)})
    return found


def forget_rows(connection: sa.Connection, collection: str, source: str, document_ids: Sequence[str]) -> None:
    """Remove documents and their chunks."""
    for table in (schema.chunks, schema.documents, schema.withheld_deletions):
        for page in pages(document_ids):
            connection.execute(sa.delete(table).where(*which(table, collection, source, page)))


def forget_collection(connection: sa.Connection, collection: str) -> None:
    """Remove everything that is said of a collection."""
    for table in (
        schema.chunks,
        schema.documents,
        schema.source_syncs,
        schema.withheld_deletions,
        schema.collections,
    ):
        connection.execute(sa.delete(table).where(table.c.collection == collection))


def mark_rows(connection: sa.Connection, collection: str, source: str, document_ids: Sequence[str]) -> None:
    """Note of documents that the catalog knows that their points are about to change."""
    for page in pages(document_ids):
        rows = which(schema.documents, collection, source, page)
        connection.execute(sa.update(schema.documents).where(*rows).values(state="writing"))


def mark_writing(collection: str, documents: Iterable[DocumentKey], catalog: sa.Engine) -> None:
    """The next sync writes these again, or removes them: also those of which the catalog did not know."""
    with catalog.begin() as connection:
        for source, document_id in sorted(documents):
            rows = which(schema.documents, collection, source, [document_id])
            if not connection.execute(sa.update(schema.documents).where(*rows).values(state="writing")).rowcount:
                key = {"collection": collection, "source": source, "document_id": document_id}
                unknown = {"state": "writing", "uri": "", "title": "", "version": "", "content_hash": "", "chunks": 0}
                connection.execute(sa.insert(schema.documents).values(**key, **unknown, attempts=0))
        touch(connection, collection)


def touch(connection: sa.Connection, collection: str) -> None:
    """Note that the collection changed."""
    table = schema.collections
    connection.execute(sa.update(table).where(table.c.collection == collection).values(revision=table.c.revision + 1))


def forgotten_documents(use_case: str, source: str, catalog: sa.Engine) -> set[str]:
    """Hashes of the ids of erased documents."""
    table = schema.forgotten.c
    query = sa.select(table.document_hash).where(table.use_case == use_case, table.source == source)
    with catalog.connect() as connection:
        return set(connection.scalars(query))


def withheld_documents(collection: str, catalog: sa.Engine) -> list[dict[str, Any]]:
    """Every withheld deletion, oldest first."""
    table = schema.withheld_deletions.c
    query = sa.select(table.source, table.document_id, table.reason, table.since).where(table.collection == collection)
    with catalog.connect() as connection:
        return [dict(row) for row in connection.execute(query.order_by(table.since, table.document_id)).mappings()]


def stale_documents(collection: str, catalog: sa.Engine) -> list[dict[str, Any]]:
    """Documents that are known to say something else at their source: unreadable ones and withheld deletions.

    Each is a mapping of source, document_id, since and why, oldest first.
    """
    table = schema.documents.c
    query = sa.select(table.source, table.document_id, table.indexed_at.label("since"), table.error.label("why")).where(
        table.collection == collection, table.state == "failed", table.chunks > 0
    )
    with catalog.connect() as connection:
        unreadable = [dict(row) for row in connection.execute(query).mappings()]
    withheld = [
        {"source": each["source"], "document_id": each["document_id"], "since": each["since"], "why": each["reason"]}
        for each in withheld_documents(collection, catalog)
    ]
    return sorted(unreadable + withheld, key=lambda each: (each["since"], each["document_id"]))
