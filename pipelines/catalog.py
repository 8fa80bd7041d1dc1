"""The SQL catalog (SQLAlchemy): what is indexed, which examples are known, which artifacts exist.

This module owns the schema and the connection; queries live with the domain that they belong to. SQLite in
``FRESHET_HOME`` by default, any SQLAlchemy URL by ``DATABASE_URL``.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pipelines.errors import LockedError

_POLL_SECONDS = 0.1

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
    sa.Column("retrieval", sa.JSON),  # the settings that asked for it: it is kept fresh and searched by these
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False, server_default="0"),  # counts the syncs that changed something
    sa.Column("audited_revision", sa.Integer),  # the last that was found equal to the catalog
    sa.Column("audited_at", UtcDateTime),  # when that was
    sa.Column("compared_at", UtcDateTime),  # when every single point was last compared
    sa.Column("retired_at", UtcDateTime),  # since when another one answers instead
)
"""Physical collections: one per use case and pipeline fingerprint (embedder, chunker, parser, schema)."""

served_collections = sa.Table(
    "served_collections",
    metadata,
    sa.Column("use_case", sa.String(64), primary_key=True),
    sa.Column("collection", sa.String(128), nullable=False),
    sa.Column("served_at", UtcDateTime, nullable=False),
    sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()),  # switched back by hand: it stays
)
"""Which collection answers questions."""

source_syncs = sa.Table(
    "source_syncs",
    metadata,
    sa.Column("collection", sa.String(128), primary_key=True),
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("synced_at", UtcDateTime, nullable=False),
    sa.Column("state", sa.JSON),  # what the source asked to be handed back: watermarks, validators
)
"""Completed syncs: a collection is served only when each declared source has one."""

sync_lags = sa.Table(
    "sync_lags",
    metadata,
    sa.Column("use_case", sa.String(64), primary_key=True),
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("synced_at", UtcDateTime, primary_key=True),
    sa.Column("p50", sa.Float, nullable=False),
    sa.Column("p95", sa.Float, nullable=False),
    sa.Column("max", sa.Float, nullable=False),
    sa.Column("documents", sa.Integer, nullable=False),
    sa.Column("ahead", sa.Integer, nullable=False),
)
"""Seconds from the source's change to being searchable, of each sync that found changes."""

withheld_deletions = sa.Table(
    "withheld_deletions",
    metadata,
    sa.Column("collection", sa.String(128), primary_key=True),
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("document_id", sa.String(1024), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("since", UtcDateTime, nullable=False),
)
"""Documents that a source no longer lists and that stay until somebody approves."""

FORGOTTEN_EXAMPLES = "labels"
"""In the place of a source's name, which none may have: a forgotten labelled example."""

forgotten = sa.Table(
    "forgotten",
    metadata,
    sa.Column("use_case", sa.String(64), primary_key=True),
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("document_hash", sa.String(64), primary_key=True),  # of the id, which may itself be personal
    sa.Column("forgotten_at", UtcDateTime, nullable=False),
)
"""Documents and examples that were erased: a sync or an intake passes over them, whatever their source says."""

retrieval_scores = sa.Table(
    "retrieval_scores",
    metadata,
    sa.Column("use_case", sa.String(64), primary_key=True),
    sa.Column("scored_at", UtcDateTime, primary_key=True),
    sa.Column("collection", sa.String(128), primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("golden", sa.String(64), nullable=False),  # fingerprint of the questions
    sa.Column("generated", sa.Boolean, nullable=False),
    sa.Column("questions", sa.Integer, nullable=False),
    sa.Column("k", sa.Integer, nullable=False),
    sa.Column("recall", sa.Float, nullable=False),
    sa.Column("mrr", sa.Float, nullable=False),
    sa.Column("ndcg", sa.Float, nullable=False),
)
"""Golden questions over time."""

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
    sa.Column("state", sa.String(16), nullable=False),  # accepted | quarantined | superseded | withdrawn
    sa.Column("reasons", sa.JSON, nullable=False),
    sa.Column("suite", sa.String(64), nullable=False),  # fingerprint of the expectations that judged it
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Column("trained_at", UtcDateTime),  # first successful training that used it
    sa.Column("messages", sa.JSON),  # of a chat: [{"role", "content"}]
    sa.Column("rejected", sa.Text),
    sa.Column("context", sa.JSON),  # [text]; JSON null where the row does not say
    sa.Column("item", sa.String(256)),  # of the rows about one item only the newest counts
    sa.Column("labelled_at", UtcDateTime),
    sa.Column("slices", sa.JSON),
    sa.Column("warnings", sa.JSON),  # flagged, and accepted all the same
    sa.Index("examples_untrained", "use_case", "state", "trained_at"),
)
"""Everything submitted, each accepted or quarantined with its reasons."""

sa.Index(  # the oldest that waits, at once
    "examples_waiting",
    examples.c.use_case,
    examples.c.state,
    examples.c.split,
    examples.c.received_at,
    sqlite_where=examples.c.trained_at.is_(None),
    postgresql_where=examples.c.trained_at.is_(None),
)

example_reviews = sa.Table(
    "example_reviews",
    metadata,
    sa.Column("use_case", sa.String(64), primary_key=True),
    sa.Column("example_id", sa.String(64), primary_key=True),
    sa.Column("decision", sa.String(16), nullable=False),  # release | reject | replace
    sa.Column("replacement", sa.Text),  # the row that stands for it, as JSON
    sa.Column("author", sa.Text),
    sa.Column("note", sa.Text),
    sa.Column("decided_at", UtcDateTime, nullable=False),
)
"""What people decided about single examples: it outweighs the expectations."""

feedback = sa.Table(
    "feedback",
    metadata,
    sa.Column("use_case", sa.String(64), primary_key=True),
    sa.Column("feedback_id", sa.String(64), primary_key=True),  # the application's own, so that repeating is harmless
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Column("messages", sa.JSON, nullable=False),  # the chat up to the question: [{"role", "content"}]
    sa.Column("answer", sa.Text),  # what was answered; labels joined by "; " where a model classifies
    sa.Column("correction", sa.Text),  # what should have been
    sa.Column("labels", sa.JSON),  # what should have been, where a model classifies
    sa.Column("thumb", sa.SmallInteger),  # 1 up, -1 down
    sa.Column("context", sa.JSON),  # what had been retrieved: [text]
    sa.Column("version", sa.String(128)),  # published version that answered
    sa.Column("conversation", sa.String(256)),  # the group of the example that is made of it
    sa.Column("author", sa.Text),
    sa.Column("origin", sa.String(16), nullable=False, server_default="human"),
    sa.Index("feedback_by_time", "use_case", "received_at"),
    sa.Index("feedback_by_version", "use_case", "version", "received_at"),
)
"""What applications report: an answer, a correction, a thumb."""

answers = sa.Table(
    "answers",
    metadata,
    sa.Column("use_case", sa.String(64), primary_key=True),
    sa.Column("answer_id", sa.String(64), primary_key=True),
    sa.Column("answered_at", UtcDateTime, nullable=False),
    sa.Column("messages", sa.JSON, nullable=False),  # the chat up to the question: [{"role", "content"}]
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("hits", sa.JSON),  # what was retrieved: [{"source", "document_id", "version", "text", ...}]; null: nobody
    sa.Column("version", sa.String(128), nullable=False),  # published version that answered
    sa.Column("file", sa.Text, nullable=False),  # its GGUF file
    sa.Column("finish", sa.String(16), nullable=False),  # stop | length | cancelled
    sa.Column("refused", sa.Boolean, nullable=False),  # said that it does not know
    sa.Column("conversation", sa.String(256)),
    sa.Column("author", sa.Text),  # who asked
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("answer_tokens", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),  # from the question to the last word
    sa.Index("answers_by_time", "use_case", "answered_at"),
)
"""What served models answered, for feedback to refer to."""

approvals = sa.Table(
    "approvals",
    metadata,
    sa.Column("use_case", sa.String(64), primary_key=True),
    sa.Column("report", sa.String(64), primary_key=True),  # fingerprint of the evaluation report
    sa.Column("approved", sa.Boolean, nullable=False),
    sa.Column("author", sa.Text),
    sa.Column("note", sa.Text),
    sa.Column("decided_at", UtcDateTime, nullable=False),
)
"""Candidates that a person approved or refused."""

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


_complete: set[str] = set()
"""Servers' catalogs that this process found to have everything: on Postgres a look takes 60 ms, on SQLite 4."""


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
    if sqlite or url not in _complete:
        metadata.create_all(engine)
        _add_missing_columns(engine)
        _add_missing_indexes(engine)
        _complete.add(url)
    return engine


def _add_missing_columns(engine: sa.Engine) -> None:
    """A catalog of an earlier version gains what is new; every later column is optional or has a default."""
    inspector = sa.inspect(engine)
    missing = []
    for table in metadata.sorted_tables:
        held = {column["name"] for column in inspector.get_columns(table.name)}
        missing += [(table.name, column) for column in table.columns if column.name not in held]
    if missing:
        from alembic.migration import MigrationContext
        from alembic.operations import Operations

        with engine.begin() as connection:
            operations = Operations(MigrationContext.configure(connection))
            for table_name, column in missing:
                added = sa.Column(
                    column.name, column.type, nullable=column.nullable, server_default=column.server_default
                )
                operations.add_column(table_name, added)


def _add_missing_indexes(engine: sa.Engine) -> None:
    """The same for indexes: ``create_all`` makes those of new tables only."""
    inspector = sa.inspect(engine)
    missing = []
    for table in metadata.sorted_tables:
        held = {index["name"] for index in inspector.get_indexes(table.name)}
        missing += [index for index in table.indexes if index.name not in held]
    if missing:
        with engine.begin() as connection:
            for index in missing:
                connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Readers never wait for the writer (WAL), and a commit survives a crash of the process."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


@contextmanager
def exclusive(engine: sa.Engine, name: str, *, seconds: float) -> Iterator[None]:
    """Hold the lock ``name`` among everybody who uses this catalog; it falls with the process that holds it.

    Postgres holds it as a session's advisory lock, SQLite as a file beside the database.

    Raises:
        LockedError: somebody else has it for more than ``seconds``.
    """
    busy = LockedError(f"{name} is held by another run, for more than {seconds:g} s: it will be tried again")
    if engine.dialect.name == "sqlite":
        from filelock import FileLock, Timeout

        database = engine.url.database
        folder = Path(database).parent if database and database != ":memory:" else Path(tempfile.gettempdir())
        lock = FileLock(folder / "locks" / hashlib.sha256(name.encode()).hexdigest()[:16])
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=seconds)
        except Timeout as error:
            raise busy from error
        try:
            yield
        finally:
            lock.release()
        return
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        deadline = time.monotonic() + seconds
        while not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key))):
            if time.monotonic() > deadline:
                raise busy
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            connection.execute(sa.select(sa.func.pg_advisory_unlock(key)))


def now() -> datetime:
    """The present, aware, in UTC."""
    return datetime.now(UTC)


def purge(engine: sa.Engine) -> None:
    """Leave nothing of what was deleted in the files of an embedded catalog; a server vacuums in its own time."""
    if engine.dialect.name == "sqlite":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def insert_or_ignore(engine: sa.Engine, table: sa.Table) -> Any:
    """An INSERT that leaves existing rows alone, in the engine's dialect (SQLite or Postgres)."""
    if engine.dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        return sqlite_insert(table).on_conflict_do_nothing()
    from sqlalchemy.dialects.postgresql import insert as postgres_insert

    return postgres_insert(table).on_conflict_do_nothing()
