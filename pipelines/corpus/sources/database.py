"""A database that is only read, whose failures say what they mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pipelines.corpus.sources.location import cause, scrub, secrets_of
from pipelines.errors import ConfigError, FreshetError, SourceError, SourceUnavailableError
from pipelines.settings import without_credentials

_WRONG = ("42", "3D", "0A")  # SQLSTATE classes: names and syntax, no such database, not supported


class Database:
    """Connections to a database, each for one transaction that can only read.

    Args:
        name: what messages call it.
        url: SQLAlchemy URL; the path of a SQLite file starts at ``base``.
        base: where relative paths start.
        timeout_seconds: how long to wait for a connection, a lock or a statement.

    Raises:
        ConfigError: it is no such URL, or its driver is not installed.
    """

    def __init__(self, name: str, url: str, base: Path, timeout_seconds: float) -> None:
        self._name = name
        self._seconds = timeout_seconds
        self._secrets = secrets_of(url)
        self.sqlite: Path | None = None
        self.engine = self._open(url, base)
        self.shown = without_credentials(url if self.sqlite is None else f"sqlite:///{self.sqlite}")
        """Its URL, for people."""

    def _open(self, given: str, base: Path) -> sa.Engine:
        try:
            url = sa.make_url(given)
        except (sa.exc.ArgumentError, ValueError):
            raise ConfigError(
                f"{self._name}: its url is no SQLAlchemy URL; write it as postgresql://user:password@host/database or "
                "sqlite:///file.db, with special characters of the password percent-encoded"
            ) from None
        if url.drivername in ("postgresql", "postgres"):  # SQLAlchemy 2.1 reads it as psycopg 3; psycopg2 is here
            url = url.set(drivername="postgresql+psycopg2")
        seconds, backend = self._seconds, url.get_backend_name()
        options: dict[str, Any] = {}
        if backend == "sqlite":
            if not url.database or url.database.startswith((":memory:", "file:")):
                raise ConfigError(f"{self._name}: {url.database!r} is no SQLite file; write sqlite:///path/to/file.db")
            path = self.sqlite = base / Path(url.database).expanduser()
            options["creator"] = lambda: sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=seconds, check_same_thread=False
            )
        elif backend in ("postgresql", "mysql", "mariadb"):
            options["connect_args"] = {"connect_timeout": max(1, round(seconds))}
        try:
            return sa.create_engine(url, poolclass=sa.NullPool, hide_parameters=True, **options)
        except (ImportError, sa.exc.ArgumentError) as error:
            raise ConfigError(
                f"{self._name}: no driver for {url.drivername!r}: {scrub(str(error), self._secrets)}; install it, or "
                "name an installed one, as in postgresql+psycopg2://"
            ) from cause(error, self._secrets)

    @contextmanager
    def connected(self) -> Iterator[sa.Connection]:
        """A connection whose transaction can only read, and whose failures say what they mean.

        Raises:
            ConfigError: the database does not understand what it is asked.
            SourceError: it does not exist, may not be read, or holds a value that cannot be.
            SourceUnavailableError: it cannot be read now.
        """
        if self.sqlite is not None and not self.sqlite.is_file():
            raise SourceError(f"{self._name}: {self.sqlite} does not exist; correct its url, or bring it back")
        try:
            with self.engine.connect() as connection:
                if self.engine.dialect.name == "postgresql":
                    connection.execute(sa.text("SET TRANSACTION READ ONLY"))
                    limit = sa.func.set_config("statement_timeout", str(round(self._seconds * 1000)), True)
                    connection.execute(sa.select(limit, sa.func.set_config("TimeZone", "UTC", True)))
                yield connection
        except FreshetError:
            raise
        except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
            raise self._meaning(error) from cause(error, self._secrets)
        except (ValueError, OverflowError) as error:  # of a driver, such as a year before 1 or after 9999
            raise SourceError(
                f"{self._name}: a value cannot be read: {scrub(str(error), self._secrets)}; make it text in a 'query'"
            ) from cause(error, self._secrets)

    def query(self, connection: sa.Connection, query: str) -> tuple[sa.TextualSelect, Sequence[str]]:
        """A SELECT as it stands, and its columns.

        Raises:
            ConfigError: it names a column twice.
        """
        text = sa.text(query.strip().rstrip(";").replace(":", r"\:"))
        wrapped = sa.select(sa.text("*")).select_from(text.columns().subquery("rows_of_query"))
        columns: Sequence[str] = [*connection.execute(wrapped.where(sa.false())).keys()]
        if twice := sorted({column for column in columns if columns.count(column) > 1}):
            raise ConfigError(f"{self._name}: columns named twice: {', '.join(twice)}; give them names with AS")
        return text.columns(*map(sa.column, columns)), columns

    def table(self, connection: sa.Connection, name: str) -> tuple[sa.TableClause, Sequence[str]]:
        """A table or view, ``schema.name`` where it is in another schema, and its columns.

        Raises:
            ConfigError: there is none.
        """
        inspector = sa.inspect(connection)
        schema, _, table = name.rpartition(".")
        for at, called in ((None, name), (schema, table)):
            if (at is None or at) and inspector.has_table(called, schema=at):
                columns = [str(column["name"]) for column in inspector.get_columns(called, schema=at)]
                return sa.table(called, *map(sa.column, columns), schema=at), columns
        there = sorted([*inspector.get_table_names(), *inspector.get_view_names()])
        raise ConfigError(f"{self._name}: there is no table {name!r}; tables: {', '.join(there) or 'none'}")

    def _meaning(self, error: Exception) -> FreshetError:
        driver: Any = getattr(error, "orig", None) or error
        said = " ".join(scrub(str(driver), self._secrets).split())
        code = str(getattr(driver, "pgcode", None) or getattr(driver, "sqlstate", None) or "")
        if code == "42501":
            return SourceError(f"{self._name}: may not be read: {said}; grant SELECT to its user")
        if code.startswith(_WRONG) or getattr(driver, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
            return ConfigError(f"{self._name}: the database does not understand: {said}")
        if not code and isinstance(error, sa.exc.ProgrammingError):
            return ConfigError(f"{self._name}: the database does not understand: {said}")
        return SourceUnavailableError(f"{self._name}: cannot be read now: {said}")
