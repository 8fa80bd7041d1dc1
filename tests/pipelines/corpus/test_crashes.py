"""I9: wherever a sync stops, the next one ends where it would have ended."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipelines.catalog import open_catalog
from pipelines.corpus.audit import audit_collection
from pipelines.corpus.edge import EdgeIndex
from pipelines.environment import REPOSITORY
from tests.pipelines.corpus.crashing import Crash, Steps, sync

PARTS = 4
"""The kills are shared out among this many tests, which run side by side."""

BATCH, ALL_AT_ONCE = 4, 512
"""Chunks of a batch: several batches, or a small sync, which opens the index once."""

Killer = Callable[..., int]


def section(name: str, number: int) -> str:
    return f"## Step {number}\n\nThe {name} needs {number * 7} turns.\n\n"


def before(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in (
        "same",
        "gone-1",
        "gone-2",
        *(f"{kind}-{number}" for kind in ("edited", "renamed") for number in range(5)),
    ):
        (folder / f"{name}.md").write_text("".join(section(name, number) for number in range(3)))


def after(folder: Path) -> None:
    """Edits, deletions, renames, additions, and text that moves from one document to another."""
    for number in range(5):
        name = f"edited-{number}"
        (folder / f"{name}.md").write_text(section(name, 9) + section(name, 1) + section(name, 2))
        (folder / f"renamed-{number}.md").rename(folder / f"under-a-new-name-{number}.md")
        (folder / f"new-{number}.md").write_text(section(f"new-{number}", 1) + section("gone-1", 1))
    (folder / "gone-1.md").unlink()
    (folder / "gone-2.md").unlink()


def state(home: Path) -> dict[str, Any]:
    """What is held, without the times."""
    catalog = open_catalog(f"sqlite:///{home / 'catalog.db'}")
    index = EdgeIndex(home / "index")
    with catalog.connect() as connection:
        documents = connection.exec_driver_sql("select document_id, state, content_hash, chunks from documents").all()
        [collection] = connection.exec_driver_sql("select collection from collections").scalars()
    audit, _ = audit_collection(collection, declared=["docs"], catalog=catalog, index=index)
    catalog.dispose()
    with index.open(collection) as points:
        texts = {point.point_id: (point.document_id, point.text) for point in points.scan(with_text=True)}
        vectors = {point_id: vector.round(5).tolist() for point_id, vector in points.vectors(list(texts)).items()}
    return {"audit": str(audit), "documents": sorted(map(tuple, documents)), "texts": texts, "vectors": vectors}


@pytest.fixture(scope="module")
def started(home_in_memory: Path) -> Path:
    """A home in which the documents are indexed as they were before."""
    root = home_in_memory
    before(root / "documents")
    sync(root / "home", root / "documents")
    after(root / "documents")
    return root


@pytest.fixture(scope="module")
def expected(started: Path) -> dict[str, Any]:
    """Where an undisturbed sync ends."""
    copy(started / "home", started / "undisturbed")
    sync(started / "undisturbed", started / "documents")
    return state(started / "undisturbed")


def copy(home: Path, target: Path) -> None:
    """The engine's files are mostly holes, which Python's own copying would fill."""
    subprocess.run(["cp", "-r", str(home), str(target)], check=True)


@contextmanager
def copied(root: Path) -> Iterator[Path]:
    home = root / "again"
    copy(root / "home", home)
    try:
        yield home
    finally:
        shutil.rmtree(home)


def names_of(started: Path, batch_chunks: int = BATCH) -> list[str]:
    """Every step of the sync, by what was just done."""
    steps = Steps()
    with copied(started) as home:
        sync(home, started / "documents", steps, batch_chunks=batch_chunks)
    return steps.names


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    """Starts a sync in a process of its own that is killed at a step; returns how it ended."""
    program = [sys.executable, "-m", "tests.pipelines.corpus.crashing"]
    with subprocess.Popen(program, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def kill(home: Path, documents: Path, step: int, batch_chunks: int = BATCH) -> int:
            print(json.dumps([str(home), str(documents), step, batch_chunks]), file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield kill
        process.stdin.close()


def test_the_steps_cover_every_kind_of_write(started: Path) -> None:
    names = names_of(started)
    assert len(names) + len(names_of(started, ALL_AT_ONCE)) >= 50
    # A file that was written just before it was listed is read again, and then only its payload is set.
    assert set(names) - {"after set_payload"} == {
        "before commit", "in upsert", "after upsert", "after delete", "after flush", "after optimise",
    }  # fmt: skip


@pytest.mark.parametrize("part", range(PARTS))
def test_a_sync_that_is_killed_at_any_step_is_finished_by_the_next(
    started: Path, expected: dict[str, Any], killer: Killer, part: int
) -> None:
    """I9: SIGKILL at every write boundary; no handler runs, nothing is closed."""
    kill_and_finish(started, expected, killer, BATCH, part, PARTS)


def test_a_small_sync_that_is_killed_at_any_step_is_finished_by_the_next(
    started: Path, expected: dict[str, Any], killer: Killer
) -> None:
    """I9: what is written and what is gone are marked, flushed and committed together."""
    assert names_of(started, ALL_AT_ONCE).count("after flush") <= 2  # one sets payloads, if a time had not settled
    kill_and_finish(started, expected, killer, ALL_AT_ONCE)


def kill_and_finish(
    started: Path, expected: dict[str, Any], killer: Killer, batch: int, part: int = 0, parts: int = 1
) -> None:
    assert expected["audit"].endswith("clean")
    names = names_of(started, batch)
    for step in range(part, len(names), parts):
        with copied(started) as home:
            assert killer(home, started / "documents", step, batch) == -signal.SIGKILL
            report = sync(home, started / "documents")
            assert state(home) == expected, f"killed {names[step]!r}, step {step}"
            assert report.embedded <= 10, "what was new, at most"


def test_a_first_sync_that_is_killed_is_finished_by_the_next(started: Path, killer: Killer) -> None:
    """I9"""
    sync(started / "first", started / "documents")
    for step in (0, 1, 3, 5, 8, 21):
        home = started / str(step)
        home.mkdir()
        assert killer(home, started / "documents", step) == -signal.SIGKILL
        sync(home, started / "documents")
        assert state(home) == state(started / "first")


def test_a_sync_that_fails_at_a_step_closes_what_it_holds(started: Path, expected: dict[str, Any]) -> None:
    """I9: an exception, which the threads have to hand on, instead of a kill."""
    for step in (0, 2, 7, 20):
        with copied(started) as home:
            with pytest.raises(Crash):
                sync(home, started / "documents", Steps(step))
            sync(home, started / "documents")
            assert state(home) == expected


def test_a_half_written_document_that_cannot_be_read_any_more_is_taken_out(tmp_path: Path) -> None:
    """I9, I10"""
    folder, home = tmp_path / "documents", tmp_path / "home"
    before(folder)
    sync(home, folder)
    (folder / "edited.md").write_text(section("edited", 9) + section("edited", 10))
    steps = Steps(1)
    with pytest.raises(Crash):
        sync(home, folder, steps)
    assert steps.names[-1] == "in upsert"
    (folder / "edited.md").write_bytes(b"\xff\x00")
    report = sync(home, folder)
    assert [document for document, _ in report.failures] == ["edited.md"]
    held = state(home)
    assert held["audit"].endswith("clean")
    assert "edited.md" not in {document for document, _ in held["texts"].values()}
    (folder / "edited.md").write_text(section("edited", 9))
    assert sync(home, folder).added == 1
