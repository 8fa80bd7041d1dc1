"""I7: what may not be deleted unasked."""

from __future__ import annotations

import shutil

import pytest

from pipelines.corpus.documents import Document
from pipelines.corpus.plan import renamed, why_withheld
from pipelines.corpus.settings import FolderSource
from pipelines.corpus.sources.base import NOTHING_KNOWN, Known, Listed, Listing, Source
from tests.conftest import shared_data
from tests.pipelines.corpus.conftest import Corpus
from tests.pipelines.corpus.hash_embedder import HashEmbedder


def source(**settings: object) -> FolderSource:
    return FolderSource.model_validate({"name": "docs", "type": "folder", "url": "docs", **settings})


@pytest.mark.parametrize(
    ("settings", "listed", "held", "deletions", "approved", "withheld"),
    [
        ({}, 100, 100, 0, 0, False),
        ({}, 80, 100, 20, 0, False),  # as many as always may go
        ({}, 70, 100, 30, 0, True),  # more than 20, and more than a fifth
        ({}, 970, 1000, 30, 0, False),  # more than 20, but few of them
        ({}, 70, 100, 30, 30, False),
        ({}, 70, 100, 30, 29, True),  # the ceiling holds
        ({}, 0, 1, 1, 0, True),  # nothing listed at all
        ({}, 0, 1, 1, 1, False),
        ({"allow_empty": True}, 0, 100, 100, 0, False),
        ({"max_deletions": 0, "max_deleted_share": 0.0}, 99, 100, 1, 0, True),
        ({"max_deleted_share": 1.0}, 1, 100, 99, 0, False),
    ],
)
def test_deletions_are_withheld_above_a_count_and_a_share(
    settings: dict[str, object], listed: int, held: int, deletions: int, approved: int, withheld: bool
) -> None:
    reason = why_withheld(source(**settings), listed=listed, held=held, deletions=deletions, approved=approved)
    assert (reason is not None) == withheld
    if reason is not None:
        assert str(held) in reason


def test_a_partial_listing_deletes_nothing_whatever_was_approved() -> None:
    reason = why_withheld(source(), listed=9, held=10, deletions=1, partial="page 3 timed out", approved=10)
    assert reason is not None
    assert "page 3 timed out" in reason


STRICT = {"max_deletions": 1, "max_deleted_share": 0.5}


def test_withheld_documents_stay_and_additions_still_arrive(corpus: Corpus) -> None:
    for number in range(4):
        corpus.write(f"{number}.md", f"Part {number} is a valve.\n")
    first = corpus.sync(corpus.source(**STRICT))
    for number in range(3):
        (corpus.folder / f"{number}.md").unlink()
    corpus.write("new.md", "Part 9 is a pump.\n")
    report = corpus.sync(corpus.source(**STRICT))
    assert (report.added, report.deleted) == (1, 0)
    assert report.withheld == ("0.md", "1.md", "2.md")
    assert "3 of 4 documents (75%) are gone at once" in str(report.withheld_reason)
    assert set(corpus.points(first.collection).values()) == {"0.md", "1.md", "2.md", "3.md", "new.md"}
    assert corpus.audit().clean
    with corpus.catalog.connect() as connection:
        since = connection.exec_driver_sql("select distinct since from withheld_deletions").scalars().all()
    assert len(since) == 1
    again = corpus.sync(corpus.source(**STRICT))
    assert again.withheld == report.withheld
    with corpus.catalog.connect() as connection:
        assert connection.exec_driver_sql("select distinct since from withheld_deletions").scalars().all() == since


def test_an_approval_has_a_ceiling_and_holds_once(corpus: Corpus) -> None:
    for number in range(6):
        corpus.write(f"{number}.md", f"Part {number} is a valve.\n")
    corpus.sync(corpus.source(**STRICT))
    for number in range(5):
        (corpus.folder / f"{number}.md").unlink()
    source = corpus.source(**STRICT)
    assert len(corpus.sync(source, approve_deletions=4).withheld) == 5
    approved = corpus.sync(source, approve_deletions=5)
    assert (approved.deleted, approved.withheld, approved.withheld_reason) == (5, (), None)
    with corpus.catalog.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from withheld_deletions").scalar() == 0
    assert corpus.audit().clean


def test_a_document_that_comes_back_is_no_longer_withheld(corpus: Corpus) -> None:
    for number in range(4):
        corpus.write(f"{number}.md", f"Part {number} is a valve.\n")
    corpus.sync(corpus.source(**STRICT))
    hidden = corpus.folder.parent / "hidden"
    corpus.folder.rename(hidden)
    corpus.folder.mkdir()
    assert len(corpus.sync(corpus.source(**STRICT)).withheld) == 4
    corpus.folder.rmdir()
    hidden.rename(corpus.folder)
    report = corpus.sync(corpus.source(**STRICT))
    assert report.withheld == ()
    assert report.embedded == 0


def test_a_moved_tree_is_not_taken_for_a_deletion(corpus: Corpus) -> None:
    for number in range(10):
        corpus.write(f"old/{number}.md", f"# Part {number}\n\nPart {number} is a valve.\n")
    first = corpus.sync(corpus.source(**STRICT))
    (corpus.folder / "old").rename(corpus.folder / "new")
    report = corpus.sync(corpus.source(**STRICT))
    assert (report.moved, report.withheld, report.embedded) == (10, (), 0)
    assert all(each.startswith("new/") for each in corpus.points(first.collection).values())


class Changes(Source):
    """Lists only what changed: here, one deletion."""

    def list(self, known: Known = NOTHING_KNOWN) -> Listing:
        del known
        return Listing((), removed=("0.md",))

    def read(self, listed: Listed) -> Document:
        raise AssertionError(f"{listed} is not listed")


def test_a_listing_of_changes_without_documents_is_no_empty_source(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        corpus.write(f"{number}.md", f"Part {number} is a valve.\n")
    first = corpus.sync()
    monkeypatch.setattr("pipelines.corpus.sync.open_source", lambda *_, **__: Changes())
    report = corpus.sync()
    assert (report.deleted, report.withheld, report.unchanged) == (1, (), 3)
    assert set(corpus.points(first.collection).values()) == {"1.md", "2.md", "3.md"}


@pytest.mark.parametrize(
    ("gone", "new", "expected"),
    [
        ({"a/x.md": "1"}, {"b/y.md": "1"}, {"a/x.md"}),  # the same text
        ({"a/x.md": "1"}, {"b/X.md": "2"}, {"a/x.md"}),  # the same name, edited on the way
        ({"a/x.md": "1"}, {"b/y.md": "2"}, set()),
        ({"a/index.md": "1", "b/index.md": "2"}, {"c/index.md": "3"}, {"a/index.md"}),  # one explains one
        ({"a/x.md": "1"}, {}, set()),  # a listing that lacks documents shows no new ones
    ],
)
def test_what_came_back_under_another_name_is_not_gone(
    gone: dict[str, str], new: dict[str, str], expected: set[str]
) -> None:
    assert renamed(gone, new) == expected


@pytest.mark.parametrize(
    ("data", "before", "after"), [("handbook-18f", "v1", "v2"), ("companies-remoteintech", "v2", "v3")]
)
def test_a_real_tree_that_moves_leaves_no_duplicate_and_needs_no_approval(
    edge_corpus: Corpus, data: str, before: str, after: str
) -> None:
    """The whole tree moves, most files edited on the way (and one set renames every file)."""
    root = shared_data(data)
    files = [{path.name for path in (root / version).rglob("*.md")} for version in (before, after)]
    kept = sorted(files[0] & files[1])[:60]
    for version in (before, after):
        shutil.rmtree(edge_corpus.folder)
        for path in (root / version).rglob("*.md"):
            if path.name in kept:
                edge_corpus.write(str(path.relative_to(root / version)), path.read_bytes())
        edge_corpus.embedder.encoded.clear()
        report = edge_corpus.sync()
    assert report.withheld == ()
    held = set(edge_corpus.points(report.collection).values())
    assert held <= {path.relative_to(edge_corpus.folder).as_posix() for path in edge_corpus.folder.rglob("*.md")}
    assert edge_corpus.audit().clean
    assert len(set(edge_corpus.embedder.encoded)) == report.embedded < report.chunks


def test_a_move_that_a_crash_interrupted_still_needs_no_approval(edge_corpus: Corpus) -> None:
    for number in range(12):
        edge_corpus.write(f"old/{number}.md", f"# Part {number}\n\nPart {number} is a valve.\n")
    edge_corpus.sync(edge_corpus.source(**STRICT))
    (edge_corpus.folder / "old").rename(edge_corpus.folder / "new")

    class Stopped(HashEmbedder):
        def encode(self, texts):  # type: ignore[no-untyped-def]
            if texts:
                raise KeyboardInterrupt
            return super().encode(texts)

    edge_corpus.write("new/13.md", "# Part 13\n\nPart 13 is a pump.\n")
    (edge_corpus.folder / "new" / "13.md").rename(edge_corpus.folder / "zz.md")
    with pytest.raises(KeyboardInterrupt):
        edge_corpus.sync(edge_corpus.source(**STRICT), embedder=Stopped(), batch_chunks=1)
    report = edge_corpus.sync(edge_corpus.source(**STRICT))
    assert report.withheld == ()
    assert edge_corpus.audit().clean
