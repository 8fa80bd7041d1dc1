"""A changed pipeline builds beside the served index, which stays fresh until a gate lets the new one take its place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipelines import catalog as schema
from pipelines.corpus import sync as sync_module
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.index import VectorIndex
from pipelines.corpus.pipeline import served_collection, wanted_pipeline
from pipelines.corpus.serving import quality_history, switch_index
from pipelines.corpus.settings import GoldenSettings, RetrievalSettings
from pipelines.errors import LockedError, NotBuiltError
from tests.pipelines.corpus.conftest import Corpus
from tests.pipelines.corpus.hash_embedder import HashEmbedder

LARGER = RetrievalSettings(chunk_tokens=128)


def parts(corpus: Corpus, count: int = 30) -> None:
    names = ("valve", "pump", "tank", "filter", "gauge", "nozzle", "gasket", "flange", "spindle", "bearing")
    for number in range(count):
        name = f"{names[number % 10]} model {number}"
        corpus.write(f"{number}.md", f"# The {name}\n\nThe {name} weighs {number * 3} grams.\n")


@pytest.fixture
def built(edge_corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """Served, with the settings of ``SMALL_CHUNKS``; a test's embedder of hashes stands for every named one."""
    monkeypatch.setattr("pipelines.corpus.pipeline.open_embedder", lambda *_, **__: edge_corpus.embedder)
    parts(edge_corpus)
    edge_corpus.sync()
    edge_corpus.serve()
    return edge_corpus


def test_the_old_index_serves_and_stays_fresh_until_the_new_one_is_whole(built: Corpus) -> None:
    """I11, I13"""
    old = served_collection("test", built.catalog)
    built.write("new.md", "# The turbine\n\nThe turbine spins.\n")
    report = built.sync(retrieval=LARGER)
    assert report.collection != old
    assert report.kept_fresh is not None
    assert (report.kept_fresh.collection, report.kept_fresh.added) == (old, 1)
    assert served_collection("test", built.catalog) == old
    assert "turbine" in built.search("turbine", 1, retrieval=LARGER)[0].text
    served = built.serve(retrieval=LARGER)
    assert (served.collection, served.previous, served.waiting) == (report.collection, old, None)
    assert served.comparison is not None
    assert not served.comparison.refused
    assert built.index.exists(str(old))


def test_a_rebuild_with_the_same_embedder_embeds_no_text_again(built: Corpus) -> None:
    built.embedder.encoded.clear()
    typed = built.retrieval.model_copy(update={"metadata": {"product": "keyword"}})
    report = built.sync(retrieval=typed)
    assert (report.added, report.embedded) == (30, 0)
    assert built.embedder.encoded == []


def test_an_interrupted_rebuild_goes_on_where_it_stopped(built: Corpus) -> None:
    built.embedder.encoded.clear()
    old, calls = served_collection("test", built.catalog), 0

    def stop_at_third(texts: list[str]) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return HashEmbedder(revision="2").encode(texts)

    other = HashEmbedder(revision="2")
    other.encode = stop_at_third  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        built.sync(embedder=other, batch_chunks=8)
    assert served_collection("test", built.catalog) == old
    report = built.sync(embedder=HashEmbedder(revision="2"), batch_chunks=8)
    assert 0 < report.added < 30
    assert built.serve(embedder=HashEmbedder(revision="2")).collection == report.collection


def test_an_index_that_answers_worse_is_refused_and_the_old_one_goes_on(built: Corpus) -> None:
    class Forgetful(HashEmbedder):
        def encode(self, texts):  # type: ignore[no-untyped-def]
            vectors = super().encode(texts)
            vectors[:] = vectors[:1]  # every text the same
            return vectors

    dense = built.retrieval.model_copy(update={"mode": "dense"})
    old = served_collection("test", built.catalog)
    bad = Forgetful(revision="bad")
    built.sync(retrieval=dense, embedder=bad)
    served = built.serve(retrieval=dense, embedder=bad)
    assert served.refused
    assert served.collection == old
    assert served.comparison is not None
    assert served.comparison.high < 0
    assert served_collection("test", built.catalog) == old


def test_switching_back_is_one_step_and_holds_until_somebody_goes_on(built: Corpus) -> None:
    old = served_collection("test", built.catalog)
    new = built.sync(retrieval=LARGER).collection
    built.serve(retrieval=LARGER)
    stores = {"use_case": "test", "catalog": built.catalog, "index": built.index, "embedder": built.embedder}
    assert switch_index(retrieval=LARGER, **stores) == old
    built.write("late.md", "# The turbine\n\nThe turbine spins.\n")
    assert built.sync(retrieval=LARGER).kept_fresh is not None
    served = built.serve(retrieval=LARGER)
    assert (served.collection, served_collection("test", built.catalog)) == (old, old)
    assert "switched back" in str(served.waiting)
    assert "turbine" in built.search("turbine", 1, retrieval=LARGER)[0].text
    assert switch_index(retrieval=LARGER, collection=new, **stores) == new
    assert built.serve(retrieval=LARGER).waiting is None
    with pytest.raises(NotBuiltError, match="no collection 'elsewhere'"):
        switch_index(retrieval=LARGER, collection="elsewhere", **stores)


def test_a_replaced_index_is_dropped_when_its_time_is_over_and_a_served_one_never(built: Corpus) -> None:
    """I13"""
    old = str(served_collection("test", built.catalog))
    built.sync(retrieval=LARGER)
    assert built.serve(retrieval=LARGER).dropped == ()
    with built.catalog.begin() as connection:
        table = schema.collections
        past = schema.now() - timedelta(days=8)
        connection.execute(sa.update(table).where(table.c.collection == old).values(retired_at=past))
    served = built.serve(retrieval=LARGER)
    assert served.dropped == (old,)
    assert not built.index.exists(old)
    assert built.index.exists(served.collection)
    hasty = LARGER.model_copy(update={"keep_days": 0.0})
    assert built.serve(retrieval=hasty).dropped == ()


def test_scores_are_kept_over_time_and_not_taken_again_where_nothing_changed(built: Corpus) -> None:
    assert [each.generated for each in quality_history("test", built.catalog)] == [True]
    built.embedder.encoded.clear()
    assert built.serve().quality is None
    built.write("new.md", "# The turbine\n\nThe turbine spins.\n")
    built.sync()
    assert built.serve().quality is None, "asked a moment ago"
    with built.catalog.begin() as connection:
        connection.execute(sa.update(schema.retrieval_scores).values(scored_at=schema.now() - timedelta(hours=2)))
    quality = built.serve().quality
    assert quality is not None
    assert quality.ndcg > 0.9
    assert len(quality_history("test", built.catalog)) == 2


def test_golden_questions_come_from_a_file_where_there_is_one(built: Corpus) -> None:
    (built.folder.parent / "golden.csv").write_text(
        "question,relevant\nHow heavy is valve model 0?,0.md\nWhat is the turbine?,missing.md\n", encoding="utf-8"
    )
    asked = built.retrieval.model_copy(update={"golden": GoldenSettings(url="golden.csv", k=5)})
    served = built.serve(retrieval=asked, base=built.folder.parent)
    assert served.quality is not None
    assert served.questions is not None
    assert (served.generated, served.quality.questions) == (False, 1)
    assert served.questions.unanswerable == ("What is the turbine?",)


def test_two_syncs_of_one_source_at_once_end_as_one(
    make_corpus: Callable[[VectorIndex, HashEmbedder], Corpus], edge: EdgeIndex
) -> None:
    corpora = [make_corpus(EdgeIndex(edge._folder), HashEmbedder()) for _ in range(2)]
    parts(corpora[0], 60)
    reports = []
    threads = [threading.Thread(target=lambda each=each: reports.append(each.sync(batch_chunks=4))) for each in corpora]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(report.added for report in reports) == [0, 60]
    assert corpora[0].audit().clean


def test_a_sync_that_cannot_get_its_turn_says_so(edge_corpus: Corpus) -> None:
    edge_corpus.write("a.md", "# A\n\nText.\n")
    with schema.exclusive(edge_corpus.catalog, "the sync of test/docs", seconds=1.0):
        caught: list[BaseException] = []

        def run() -> None:
            try:
                edge_corpus.sync(lock_seconds=0.2)
            except LockedError as error:
                caught.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert "the sync of test/docs is held by another run" in str(caught[0])


def test_readers_never_find_a_live_document_without_chunks(built: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """I17"""
    built.write("watched.md", "# The turbine\n\nThe turbine spins 0 times.\n")
    collection = built.sync().collection
    stop, empty, seen = threading.Event(), 0, set()

    def read() -> None:
        nonlocal empty
        index = EdgeIndex(built.index._folder)  # type: ignore[attr-defined]
        while not stop.is_set():
            with index.open(collection) as points:
                texts = [each.text for each in points.scan("docs", with_text=True) if each.document_id == "watched.md"]
            empty += not texts
            seen.update(texts)
            time.sleep(0.05)  # a lock that is polled goes to whoever asks more often

    reader = threading.Thread(target=read)
    reader.start()
    deadline, turn = time.monotonic() + 60, 0
    while turn < 15 or (len(seen) < 4 and time.monotonic() < deadline):  # a busy machine lets the reader in late
        turn += 1
        built.write("watched.md", f"# The turbine\n\nThe turbine spins {turn} times.\n")
        built.sync()
    stop.set()
    reader.join()
    assert empty == 0
    assert len(seen) > 3


def test_the_served_index_is_refreshed_again_and_again_during_a_long_rebuild(
    built: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_module, "_FRESH_SECONDS", 0.0)
    lines: list[str] = []
    built.sync(embedder=HashEmbedder(revision="2"), batch_chunks=4, progress=lines.append)
    assert sum("which still answers" in line for line in lines) > 3


def test_a_wanted_pipeline_that_is_the_served_one_keeps_nothing_else_fresh(built: Corpus) -> None:
    assert built.sync().kept_fresh is None
    assert wanted_pipeline("test", built.retrieval, built.embedder).collection == served_collection(
        "test", built.catalog
    )


def test_a_catalog_of_an_earlier_version_gains_the_new_columns(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    old = sa.create_engine(url)
    with old.begin() as connection:
        connection.exec_driver_sql(
            "create table collections (collection varchar(128) primary key, use_case varchar(64) not null, "
            "pipeline json not null, created_at datetime not null)"
        )
        connection.exec_driver_sql("insert into collections values ('c', 'test', '{}', '2026-01-01 00:00:00')")
    old.dispose()
    catalog = schema.open_catalog(url)
    with catalog.connect() as connection:
        row = connection.execute(sa.select(schema.collections)).one()
    assert (row.collection, row.revision, row.retired_at) == ("c", 0, None)
    catalog.dispose()


def test_an_audited_index_to_which_nothing_was_written_is_not_opened_for_an_hour(
    built: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("opened")

    assert built.sync().unchanged == 30
    with monkeypatch.context() as closed:
        closed.setattr(EdgeIndex, "open", refuse)
        assert built.sync().unchanged == 30
        assert built.serve().audit.mode == "unchanged"
    with built.catalog.begin() as connection:
        connection.execute(sa.update(schema.collections).values(audited_at=schema.now() - timedelta(hours=2)))
    assert built.serve().audit.mode == "sampled"
    with built.catalog.begin() as connection:
        connection.execute(sa.update(schema.collections).values(compared_at=schema.now() - timedelta(days=2)))
    assert built.serve().audit.mode == "full"
