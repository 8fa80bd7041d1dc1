from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipelines import catalog as schema
from pipelines.corpus.chunking import chunk_document
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.index import Point
from pipelines.corpus.pipeline import embedder_of
from pipelines.corpus.plan import Held, SyncPlan, plan_sync
from pipelines.corpus.settings import RetrievalSettings, TableSource
from pipelines.corpus.sources import open_source
from pipelines.corpus.sources.base import Listed
from pipelines.corpus.sync import SyncReport
from pipelines.errors import ArtifactError, ConfigError, NotBuiltError, SourceError
from tests.pipelines.corpus.conftest import Corpus
from tests.pipelines.corpus.hash_embedder import HashEmbedder


def guide(name: str, sections: int = 6) -> str:
    parts = [
        f"## Step {number}\n\nThe {name} needs {number * 7} turns of part {name}-{number}.\n"
        for number in range(sections)
    ]
    return f"# {name}\n\n" + "\n".join(parts)


def numbers(report: SyncReport) -> dict[str, int]:
    """What a report counts, without the zeros."""
    names = ("added", "changed", "moved", "deleted", "unchanged", "embedded", "reused", "points_deleted")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


# --- the plan


def listed(document_id: str, version: str = "1", **other: str) -> Listed:
    return Listed(document_id, version, f"file:///{document_id}", None, other.get("error"))


def held(document_id: str, version: str = "1", **other: str) -> Held:
    return Held(
        **{"state": "indexed", "version": version, "uri": f"file:///{document_id}", "content_hash": "h", **other}
    )


@pytest.mark.parametrize(
    ("wanted", "known", "read", "delete", "unchanged"),
    [
        (listed("a"), None, ["a"], [], []),
        (listed("a"), held("a"), [], [], ["a"]),
        (listed("a", "2"), held("a"), ["a"], [], []),
        (None, held("a"), [], ["a"], []),
        (None, held("a", state="writing"), [], ["a"], []),
        (None, held("a", state="failed"), [], ["a"], []),
        (listed("a"), held("a", state="writing"), ["a"], [], []),
        (listed("a"), held("a", state="failed"), ["a"], [], []),
        (listed("a"), held("a", uri="file:///elsewhere/a"), ["a"], [], []),
        (listed("a", error="broken"), held("a"), ["a"], [], []),
    ],
)
def test_the_plan_is_the_difference(
    wanted: Listed | None, known: Held | None, read: list[str], delete: list[str], unchanged: list[str]
) -> None:
    plan = plan_sync([wanted] if wanted else [], {"a": known} if known else {})
    assert plan == SyncPlan(tuple([wanted] if read and wanted else []), tuple(delete), len(unchanged))


# --- documents come, change and go


def test_a_second_sync_writes_and_embeds_nothing(corpus: Corpus) -> None:
    """I1"""
    corpus.write("a.md", guide("Pump"))
    corpus.write("b.md", guide("Valve"))
    first = corpus.sync()
    points = corpus.points(first.collection)
    assert numbers(first) == {"added": 2, "embedded": 12}
    second = corpus.sync()
    assert numbers(second) == {"unchanged": 2}
    assert corpus.points(first.collection) == points
    assert second.chunks == len(points) == 12
    assert corpus.audit().clean


def test_every_chunk_of_a_document_is_a_point_with_its_text(corpus: Corpus) -> None:
    """I15, I16"""
    corpus.write("a.md", guide("Pump", 40))
    report = corpus.sync()
    source = open_source(corpus.source(), base=corpus.folder)
    [document] = [source.read(each) for each in source.list().documents]
    chunks = chunk_document(document, corpus.embedder.counter, chunk_tokens=64)
    assert len(chunks) == report.chunks == 40
    with corpus.index.open(report.collection) as points:
        assert {point.point_id: point.text for point in points.scan(with_text=True)} == {
            chunk.chunk_id: chunk.text for chunk in chunks
        }
    corpus.serve()
    hit = corpus.search("Step 31 turns of part Pump-31", 1)[0]
    assert "217 turns" in hit.text


def test_an_edit_re_embeds_only_the_chunks_it_touched_and_the_old_text_is_gone(corpus: Corpus) -> None:
    """I3, I5"""
    corpus.write("a.md", guide("Pump"))
    corpus.write("b.md", guide("Valve"))
    first = corpus.sync()
    before = corpus.points(first.collection)
    corpus.embedder.encoded.clear()
    corpus.write(
        "a.md", guide("Pump").replace("## Step 0", "## New first\n\nRead this.\n\n## Step 0").replace("21 t", "99 t")
    )
    report = corpus.sync()
    after = corpus.points(report.collection)
    assert numbers(report) == {"changed": 1, "unchanged": 1, "embedded": 2, "reused": 5, "points_deleted": 1}
    assert [text.split("\n\n")[1] for text in corpus.embedder.encoded] == [
        "Read this.",
        "The Pump needs 99 turns of part Pump-3.",
    ]
    assert len(after.keys() - before.keys()) == 2
    assert {each for each in before if before[each] == "b.md"} == {each for each in after if after[each] == "b.md"}
    corpus.serve()
    texts = [hit.text for hit in corpus.search("The Pump needs 21 turns of part Pump-3", 100)]
    assert len(texts) == 13
    assert not any("21 turns of part Pump" in text for text in texts)
    assert any("99 turns of part Pump-3" in text for text in texts)


def test_a_changed_document_tells_its_new_version_on_every_chunk(corpus: Corpus) -> None:
    """I22"""
    corpus.write("a.md", guide("Pump"))
    corpus.sync()
    path = corpus.write("a.md", guide("Pump") + "\n## End\n\nDone.\n")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    corpus.sync()
    corpus.serve()
    hits = corpus.search("Pump", 100)
    [listed] = open_source(corpus.source(), base=corpus.folder).list().documents
    assert {hit.version.rstrip("~") for hit in hits} == {listed.version.rstrip("~")}
    assert {str(hit.updated_at) for hit in hits} == {"2023-11-14 22:13:20+00:00"}
    assert len(hits) == 7


def test_a_deleted_document_leaves_no_point(corpus: Corpus) -> None:
    """I6"""
    corpus.write("a.md", guide("Pump"))
    corpus.write("b.md", guide("Valve"))
    corpus.sync()
    (corpus.folder / "a.md").unlink()
    report = corpus.sync()
    assert numbers(report) == {"deleted": 1, "unchanged": 1, "points_deleted": 6}
    assert set(corpus.points(report.collection).values()) == {"b.md"}
    assert corpus.audit().clean


def test_equal_text_in_two_documents_is_two_points_and_one_embedding(corpus: Corpus) -> None:
    """I4"""
    corpus.write("a.md", "# Pump\n\nTurn it on.\n")
    corpus.write("b.md", "# Pump\n\nTurn it on.\n")
    report = corpus.sync()
    assert numbers(report) == {"added": 2, "embedded": 1, "reused": 1}
    assert sorted(corpus.points(report.collection).values()) == ["a.md", "b.md"]
    (corpus.folder / "a.md").unlink()
    corpus.sync()
    assert list(corpus.points(report.collection).values()) == ["b.md"]
    corpus.serve()
    assert [hit.document_id for hit in corpus.search("Turn it on")] == ["b.md"]


def test_equal_documents_of_two_sources_are_told_apart(corpus: Corpus) -> None:
    """I2"""
    corpus.write("a.md", guide("Pump"))
    one, other = corpus.source("one"), corpus.source("other")
    corpus.sync(one)
    report = corpus.sync(other)
    assert numbers(report) == {"added": 1, "reused": 6}
    assert len(corpus.points(report.collection)) == 12
    (corpus.folder / "a.md").unlink()
    corpus.sync(one.model_copy(update={"allow_empty": True}))
    assert len(corpus.points(report.collection)) == 6
    assert corpus.audit("one", "other").clean


def test_a_renamed_document_is_moved_and_embeds_nothing(corpus: Corpus) -> None:
    corpus.write("a.md", guide("Pump"))
    corpus.write("plain.txt", "No heading and no title in here.")
    first = corpus.sync()
    (corpus.folder / "a.md").rename(corpus.folder / "b.md")
    (corpus.folder / "plain.txt").rename(corpus.folder / "simple.txt")
    corpus.embedder.encoded.clear()
    report = corpus.sync(batch_chunks=1)
    assert numbers(report) == {"moved": 2, "reused": 7, "points_deleted": 7}
    assert corpus.embedder.encoded == []
    assert set(corpus.points(first.collection).values()) == {"b.md", "simple.txt"}
    assert corpus.audit().clean


@pytest.mark.parametrize(("origin", "target"), [("a.md", "z.md"), ("z.md", "a.md")])
def test_a_section_that_moves_to_another_document_embeds_nothing(corpus: Corpus, origin: str, target: str) -> None:
    corpus.write(origin, "## Keep\n\nThis stays.\n\n## Move\n\nThis moves elsewhere.\n")
    corpus.write(target, "## Here\n\nThis was here.\n")
    corpus.sync()
    corpus.write(origin, "## Keep\n\nThis stays.\n")
    corpus.write(target, "## Here\n\nThis was here.\n\n## Move\n\nThis moves elsewhere.\n")
    report = corpus.sync(batch_chunks=1)
    assert numbers(report) == {"changed": 2, "reused": 3, "points_deleted": 1}


def test_a_touched_file_is_read_but_embeds_and_rewrites_nothing(corpus: Corpus) -> None:
    """I14"""
    path = corpus.write("a.md", guide("Pump"))
    corpus.sync()
    corpus.serve()
    before = corpus.search("Pump", 1)[0]
    corpus.embedder.encoded.clear()
    os.utime(path, (1_800_000_000, 1_800_000_000))
    report = corpus.sync()
    assert numbers(report) == {"unchanged": 1}
    assert corpus.embedder.encoded == []
    after = corpus.search("Pump", 1)[0]
    changed = ("version", "updated_at", "age_seconds")
    assert after == replace(before, **{name: getattr(after, name) for name in changed})
    assert str(after.updated_at) == "2027-01-15 08:00:00+00:00"
    assert after.version != before.version


def test_the_size_of_a_batch_does_not_change_the_result(
    make_corpus: Callable[..., Corpus], tmp_path: Path, embedder: HashEmbedder
) -> None:
    """I8"""
    results = []
    for batch_chunks in (1, 7, 10_000):
        corpus = make_corpus(EdgeIndex(tmp_path / f"index-{batch_chunks}"), embedder)
        corpus = replace(corpus, catalog=schema.open_catalog(f"sqlite:///{tmp_path / f'{batch_chunks}.db'}"))
        shutil.rmtree(corpus.folder)
        for name in ("Pump", "Valve", "Tank"):
            corpus.write(f"{name}.md", guide(name))
        corpus.sync(batch_chunks=batch_chunks)
        corpus.write("Pump.md", guide("Pump", 3))
        corpus.write("New.md", guide("Tank", 4))
        (corpus.folder / "Valve.md").unlink()
        report = corpus.sync(batch_chunks=batch_chunks)
        with corpus.index.open(report.collection) as points:
            found = {each.point_id: replace(each, version="") for each in points.scan(with_text=True)}
            vectors = {each: vector.round(5).tolist() for each, vector in points.vectors(list(found)).items()}
        results.append((found, vectors, numbers(report)))
        assert corpus.audit().clean
        corpus.catalog.dispose()
    assert results[0] == results[1] == results[2]


def test_a_document_without_text_is_held_and_has_no_chunk(corpus: Corpus) -> None:
    corpus.write("t.csv", "id,notes\nP1,\n")
    table = TableSource(name="docs", type="table", url=str(corpus.folder / "t.csv"), key="id", text="{notes}")
    assert numbers(corpus.sync(table)) == {"added": 1}
    assert numbers(corpus.sync(table)) == {"unchanged": 1}
    assert corpus.serve().audit.clean


# --- documents that cannot be read


def test_an_unreadable_document_is_reported_and_retried_and_holds_nothing_up(corpus: Corpus) -> None:
    """I10, I19"""
    corpus.write("bad.md", b"K\xe4se")
    corpus.write("broken.md", "---\ntitle: [open\n---\n")
    corpus.write("good.md", guide("Pump"))
    report = corpus.sync()
    assert numbers(report) == {"added": 1, "embedded": 6}
    assert [document for document, _ in report.failures] == ["bad.md", "broken.md"]
    assert "not utf-8" in report.failures[0][1].replace("utf-8-sig", "utf-8")
    assert corpus.sync().failures == report.failures
    with corpus.catalog.connect() as connection:
        table = schema.documents.c
        rows = connection.execute(sa.select(table.document_id, table.state, table.attempts, table.error))
        found = {row.document_id: row[1:] for row in rows}
    assert found["bad.md"][:2] == ("failed", 2)
    assert "byte 1" in found["bad.md"][2]
    assert found["good.md"] == ("indexed", 0, None)
    corpus.write("bad.md", "# Cheese\n\nFine now.\n")
    report = corpus.sync()
    assert numbers(report) == {"added": 1, "unchanged": 1, "embedded": 1}
    assert len(report.failures) == 1
    assert corpus.serve().audit.clean


def test_a_document_that_becomes_unreadable_keeps_its_old_text_until_it_can_be_read(corpus: Corpus) -> None:
    corpus.write("a.md", guide("Pump"))
    corpus.sync()
    corpus.write("a.md", b"\xff\x00")
    report = corpus.sync()
    assert len(report.failures) == 1
    assert numbers(report) == {}
    assert report.chunks == 6
    assert corpus.serve().audit.clean
    assert len(corpus.search("Pump", 100)) == 6
    corpus.write("a.md", guide("Pump"))
    report = corpus.sync()
    assert report.failures == ()
    assert numbers(report) == {"unchanged": 1}
    assert numbers(corpus.sync()) == {"unchanged": 1}


def test_an_unreadable_document_that_is_deleted_is_forgotten(corpus: Corpus) -> None:
    corpus.write("a.md", guide("Pump"))
    corpus.write("bad.md", b"\xff\x00")
    corpus.sync()
    (corpus.folder / "bad.md").unlink()
    report = corpus.sync()
    assert report.failures == ()
    assert corpus.serve().audit.documents == 1


# --- sources that cannot be right


def test_a_source_that_lists_nothing_deletes_nothing_unless_it_may(corpus: Corpus) -> None:
    corpus.write("a.md", guide("Pump"))
    report = corpus.sync()
    (corpus.folder / "a.md").unlink()
    withheld = corpus.sync()
    assert withheld.withheld == ("a.md",)
    assert "lists nothing, while 1 documents are held" in str(withheld.withheld_reason)
    assert len(corpus.points(report.collection)) == 6
    assert numbers(corpus.sync(corpus.source(allow_empty=True))) == {"deleted": 1, "points_deleted": 6}


def test_a_source_that_cannot_be_listed_deletes_nothing(corpus: Corpus) -> None:
    corpus.write("docs/a.md", guide("Pump"))
    source = corpus.source(url=str(corpus.folder / "docs"), allow_empty=True)
    report = corpus.sync(source)
    shutil.rmtree(corpus.folder / "docs")
    with pytest.raises(SourceError, match="does not exist"):
        corpus.sync(source)
    assert len(corpus.points(report.collection)) == 6


def test_a_table_is_held_in_sync_row_by_row(corpus: Corpus) -> None:
    rows = [f"P{number},Part {number},{number}.50,2026-01-01" for number in range(20)]
    source = TableSource(
        name="parts",
        type="table",
        url="parts.csv",
        key="id",
        title="{name}",
        text="{name} costs {price}.",
        updated_at="at",
    )
    corpus.write("parts.csv", "\n".join(["id,name,price,at", *rows]))
    assert numbers(corpus.sync(source)) == {"added": 20, "embedded": 20}
    rows[3] = "P3,Part 3,99.00,2026-02-02"  # changed
    rows[4] = "P4,Part 4,4.50,2026-02-02"  # only its time
    rows[5:6] = []
    rows.append("P20,Part 20,20.50,2026-02-02")
    corpus.write("parts.csv", "\n".join(["id,name,price,at", *reversed(rows)]))
    report = corpus.sync(source)
    assert numbers(report) == {
        "added": 1, "changed": 1, "deleted": 1, "unchanged": 18, "embedded": 2, "points_deleted": 2,
    }  # fmt: skip
    corpus.serve("parts")
    hit = corpus.search("Part 3 costs", 100)
    assert {each.document_id: str(each.updated_at)[:10] for each in hit}["P4"] == "2026-02-02"
    assert ["99.00" in each.text for each in hit if each.document_id == "P3"] == [True]
    assert "P5" not in {each.document_id for each in hit}


def test_a_row_whose_key_occurs_twice_keeps_its_old_text(corpus: Corpus) -> None:
    source = TableSource(name="parts", type="table", url="parts.csv", key="id", text="{name}")
    corpus.write("parts.csv", "id,name\n1,Pump\n2,Valve\n")
    corpus.sync(source)
    corpus.write("parts.csv", "id,name\n1,Pump\n1,Other\n2,Valve\n3,Tank\n")
    report = corpus.sync(source)
    assert numbers(report) == {"added": 1, "unchanged": 1, "embedded": 1}
    assert report.failures == (("1", "1: key '1' occurs in rows 2, 3: keep one"),)
    assert len(corpus.points(report.collection)) == 3


# --- the pipeline


def test_chunks_longer_than_the_embedder_takes_are_refused() -> None:
    with pytest.raises(ConfigError, match="chunk_tokens 300 exceeds the 256 tokens"):
        embedder_of(RetrievalSettings(chunk_tokens=300))


def test_another_pipeline_makes_another_collection_and_leaves_the_served_one(corpus: Corpus) -> None:
    """I11, I13"""
    corpus.write("a.md", guide("Pump"))
    first = corpus.sync()
    corpus.serve()
    second = corpus.sync(embedder=HashEmbedder("2"))
    third = corpus.sync(retrieval=RetrievalSettings(chunk_tokens=100))
    assert len({first.collection, second.collection, third.collection}) == 3
    assert (second.embedded, third.embedded, third.reused) == (6, 0, 6)
    assert len(corpus.points(first.collection)) == 6
    assert len(corpus.search("Pump", 100)) == 6
    served = corpus.serve(embedder=HashEmbedder("2"))
    assert (served.previous, served.collection) == (first.collection, second.collection)
    assert len(corpus.points(first.collection)) == 6


def test_a_lost_collection_is_built_anew(edge_corpus: Corpus) -> None:
    edge_corpus.write("a.md", guide("Pump"))
    report = edge_corpus.sync()
    shutil.rmtree(edge_corpus.index._folder / report.collection)  # type: ignore[attr-defined]
    assert numbers(edge_corpus.sync()) == {"added": 1, "embedded": 6}
    assert edge_corpus.serve().audit.clean


# --- audit and serve


def test_the_audit_names_what_is_missing_orphaned_and_stale_and_the_next_sync_mends_it(corpus: Corpus) -> None:
    """I9"""
    for name in ("lost", "stale", "fine"):
        corpus.write(f"{name}.md", guide(name))
    report = corpus.sync()
    vector = corpus.embedder.encode_question("x")
    stray = {"source": "docs", "document_id": "stray.md", "content_hash": "h", "text": "x"}
    with corpus.index.open(report.collection) as points:
        points.delete("docs", ["lost.md"])
        points.set_payload("docs", "stale.md", {"content_hash": "other"})
        points.upsert([Point(f"00000000-0000-4000-8000-{number:012}", vector, stray) for number in range(6)])
    audit = corpus.audit()
    assert not audit.clean
    assert (audit.missing, audit.orphaned, audit.stale) == (("docs/lost.md",), ("docs/stray.md",), ("docs/stale.md",))
    with pytest.raises(ArtifactError, match=r"1 missing \(docs/lost.md\); 1 orphaned"):
        corpus.serve()
    mended = corpus.sync()
    assert numbers(mended) == {
        "changed": 2,
        "deleted": 1,
        "unchanged": 1,
        "embedded": 6,
        "reused": 6,
        "points_deleted": 6,
    }
    assert corpus.serve().audit.clean


def test_a_sync_notices_by_itself_that_points_were_lost(corpus: Corpus) -> None:
    corpus.write("a.md", guide("Pump"))
    corpus.write("b.md", guide("Valve"))
    report = corpus.sync()
    with corpus.index.open(report.collection) as points:
        points.delete("docs", ["a.md"])
    assert numbers(corpus.sync()) == {"changed": 1, "unchanged": 1, "embedded": 6}
    assert corpus.audit().clean


def test_serving_needs_a_completed_sync_of_every_source(corpus: Corpus) -> None:
    corpus.write("a.md", guide("Pump"))
    with pytest.raises(NotBuiltError, match="no completed sync of docs"):
        corpus.serve()
    corpus.sync()
    with pytest.raises(NotBuiltError, match=r"no completed sync of more .*materialise test/more first"):
        corpus.serve("docs", "more")
    assert corpus.serve().previous is None


def test_serving_removes_sources_that_are_no_longer_declared(corpus: Corpus) -> None:
    corpus.write("a.md", guide("Pump"))
    corpus.sync(corpus.source("old"))
    report = corpus.sync()
    assert corpus.audit().orphaned == ("old/a.md",)
    served = corpus.serve()
    assert (served.removed, served.audit.points) == (1, 6)
    assert len(corpus.points(report.collection)) == 6
    waiting = corpus.serve("docs", "old")
    assert "no completed sync of old" in str(waiting.waiting)
    assert waiting.collection == report.collection, "what answered goes on"


def test_an_audit_of_what_was_never_synced_is_not_built(corpus: Corpus) -> None:
    with pytest.raises(NotBuiltError):
        corpus.audit()


# --- speed


def test_unchanged_files_are_neither_parsed_nor_embedded_nor_written(edge_corpus: Corpus) -> None:
    for number in range(1000):
        edge_corpus.write(f"{number % 10}/{number}.md", f"# Part {number}\n\nPart {number} weighs {number} g.\n")
    assert edge_corpus.sync().added == 1000
    time.sleep(0.03)
    edge_corpus.sync()
    report = edge_corpus.sync()
    assert numbers(report) == {"unchanged": 1000}
    assert report.seconds_by_phase["embed"] == report.seconds_by_phase["parse"] == 0.0
