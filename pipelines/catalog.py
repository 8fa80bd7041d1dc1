"""The SQL catalog (SQLAlchemy): what is indexed, which examples are known, which artifacts exist.

This module owns the schema and the connection; queries live with the domain that they belong to. SQLite in
``FRESHET_HOME`` by default, any SQLAlchemy URL by ``DATABASE_URL``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()


class UtcDateTime(sa.TypeDecorator[datetime]):
    """Aware UTC date-times on every database (SQLite stores none of its own)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """To the database: UTC."""
        del dialect
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive date-time {value!r}: give it a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """From the database: aware."""
        del dialect
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


collections = sa.Table(
    "collections",
    metadata,
    sa.Column("collection", sa.String(128), primary_key=True),
    sa.Column("use_case", sa.String(64), nullable=False, index=True),
    sa.Column("pipeline", sa.JSON, nullable=False),  # what the fingerprint was taken of, to say what changed
    sa.Column("created_at", UtcDateTime, nullable=False),
)
"""Physical collections: one per use case and pipeline fingerprint (embedder, chunker, parser, schema)."""

served_collections = sa.Table(
    "served_collections",
    metadata,
    sa.Column("use_case", sa.String(64), primary_key=True),
    sa.Column("collection", sa.String(128), nullable=False),
    sa.Column("served_at", UtcDateTime, nullable=False),
)
"""Which collection answers questions."""

source_syncs = sa.Table(
    "source_syncs",
    metadata,
    sa.Column("collection", sa.String(128), primary_key=True),
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("synced_at", UtcDateTime, nullable=False),
)
"""Completed syncs: a collection is served only when each declared source has one."""

documents = sa.Table(
    "documents",
    metadata,
    sa.Column("collection", sa.String(128), primary_key=True),
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("document_id", sa.String(1024), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),  # writing | indexed | failed
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("title", sa.Text, nullable=False, default=""),
    sa.Column("version", sa.String(256), nullable=False),  # the source's cheap change token: unchanged, not read
    sa.Column("content_hash", sa.String(64), nullable=False),  # of the parsed text: unchanged, not embedded
    sa.Column("chunks", sa.Integer, nullable=False, default=0),
    sa.Column("updated_at", UtcDateTime),
    sa.Column("indexed_at", UtcDateTime),
    sa.Column("error", sa.Text),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
)
"""Documents as the index holds them; ``writing`` marks one whose points may be half written."""

chunks = sa.Table(
    "chunks",
    metadata,
    sa.Column("collection", sa.String(128), primary_key=True),
    sa.Column("chunk_id", sa.String(36), primary_key=True),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("document_id", sa.String(1024), nullable=False),
    sa.Column("text_hash", sa.String(64), nullable=False),
    sa.Index("chunks_of_document", "collection", "source", "document_id"),
    sa.Index("chunks_by_text", "collection", "text_hash"),
)
"""Chunk ids as committed; ``text_hash`` finds the vector of a text that only moved."""

examples = sa.Table(
    "examples",
    metadata,
    sa.Column("use_case", sa.String(64), primary_key=True),
    sa.Column("example_id", sa.String(64), primary_key=True),  # hash of what it says, so a re-read adds nothing
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("group", sa.Text, nullable=False),
    sa.Column("split", sa.String(16), nullable=False),
    sa.Column("origin", sa.String(16), nullable=False),  # human | rule | model
    sa.Column("author", sa.Text),
    sa.Column("location", sa.Text, nullable=False),  # file and row
    sa.Column("raw", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # accepted | quarantined
    sa.Column("reasons", sa.JSON, nullable=False),
    sa.Column("suite", sa.String(64), nullable=False),  # fingerprint of the expectations that judged it
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Column("trained_at", UtcDateTime),  # first successful training that used it
    sa.Index("examples_untrained", "use_case", "state", "trained_at"),
)
"""Everything submitted, each accepted or quarantined with its reasons."""

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("use_case", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("fingerprint", sa.String(64), primary_key=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
)
"""Finished artifacts on disk: training_set, lora_adapter, evaluation_report, gguf_model."""


def open_catalog(url: str) -> sa.Engine:
    """Connect to the catalog at a SQLAlchemy ``url``, creating what is missing.

    Raises:
        sqlalchemy.exc.OperationalError: the database cannot be reached.
    """
    parsed = sa.make_url(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    if parsed.drivername == "postgresql":  # SQLAlchemy 2.1 reads it as psycopg 3; dagster-postgres brings psycopg2
        parsed = parsed.set(drivername="postgresql+psycopg2")
    if sqlite and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(parsed, connect_args={"timeout": 60} if sqlite else {})
    if sqlite:
        sa.event.listen(engine, "connect", _prepare_sqlite)
    metadata.create_all(engine)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Readers never wait for the writer (WAL), and a commit survives a crash of the process."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def now() -> datetime:
    """The present, aware, in UTC."""
    return datetime.now(UTC)


def insert_or_ignore(engine: sa.Engine, table: sa.Table) -> Any:
    """An INSERT that leaves existing rows alone, in the engine's dialect (SQLite or Postgres)."""
    if engine.dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        return sqlite_insert(table).on_conflict_do_nothing()
    from sqlalchemy.dialects.postgresql import insert as postgres_insert

    return postgres_insert(table).on_conflict_do_nothing()
