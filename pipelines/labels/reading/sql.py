"""Rows of a table or query as records, from any database that SQLAlchemy knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from pipelines.errors import ConfigError, SourceError
from pipelines.labels.reading.records import Record, plain_record
from pipelines.labels.settings import SqlLabels

SQL = "sql"
"""What stands for the file's name in the location of a row."""
_FETCH = 2000  # rows that are held at once
_TIMEOUT_SECONDS = 60.0


def database_rows(settings: SqlLabels, base: Path) -> Iterator[Record]:
    """Every row; those of a table in the order of its key. The database is only read.

    Raises:
        ConfigError: it is no URL of a database, or its driver is not installed.
        SourceError: there is no such table or column, or it may not be read.
        SourceUnavailableError: it cannot be read now.
    """
    from pipelines.corpus.sources.database import Database

    database = Database("labels.sql", settings.url, base, _TIMEOUT_SECONDS)
    try:
        with database.connected() as connection:
            statement: sa.Executable
            if len(settings.query.split()) > 1:
                statement, columns = database.query(connection, settings.query)
            else:
                table, columns = database.table(connection, settings.query.strip())
                key = sa.inspect(connection).get_pk_constraint(table.name, schema=table.schema)["constrained_columns"]
                statement = sa.select(table).order_by(*(table.c[column] for column in key))
            streamed = connection.execute(statement, execution_options={"stream_results": True, "yield_per": _FETCH})
            for number, row in enumerate(streamed, start=1):
                yield plain_record(number, dict(zip(columns, row, strict=True)), cells=True)
    except ConfigError as error:  # the query is a setting too, but what it names is the database's
        raise SourceError(str(error)) from error
    finally:
        database.engine.dispose()
