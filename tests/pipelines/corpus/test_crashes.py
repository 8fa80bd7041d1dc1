"""I9: wherever a sync stops, the next one ends where it would have ended."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipelines.catalog import open_catalog
from pipelines.corpus.audit import audit_collection
from pipelines.corpus.edge import EdgeIndex
from pipelines.environment import REPOSITORY
from tests.pipelines.corpus.crashing import Crash, Steps, sync


def section(name: str, number: int) -> str:
    return f"## Step {number}\n\nThe {name} needs {number * 7} turns.\n\n"


def before(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("edited", "gone", "renamed", "same"):
        (folder / f"{name}.md").write_text("".join(section(name, number) for number in range(3)))


def after(folder: Path) -> None:
    """An edit, a deletion, a rename, an addition, and a document that cannot be read any more."""
    (folder / "edited.md").write_text(section("edited", 9) + section("edited", 1) + section("edited", 2))
    (folder / "gone.md").unlink()
    (folder / "renamed.md").rename(folder / "under-a-new-name.md")
    (folder / "new.md").write_text(section("new", 1) + section("gone", 1))


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
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the documents are indexed as they were before."""
    root = tmp_path_factory.mktemp("crashes")
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


def test_the_steps_cover_every_kind_of_write(started: Path) -> None:
    steps = Steps()
    with copied(started) as home:
        sync(home, started / "documents", steps)
    assert len(steps.names) >= 15
    # A file that was written just before it was listed is read again, and then only its payload is set.
    assert set(steps.names) - {"after set_payload"} == {
        "before commit", "in upsert", "after upsert", "after delete", "after flush", "after optimise",
    }  # fmt: skip


def test_a_sync_that_stops_at_any_step_is_finished_by_the_next(started: Path, expected: dict[str, Any]) -> None:
    """I9"""
    assert expected["audit"].endswith("clean")
    step = 0
    while True:
        with copied(started) as home:
            steps = Steps(step)
            try:
                sync(home, started / "documents", steps)
            except Crash:
                report = sync(home, started / "documents")
            else:
                break
            assert state(home) == expected, f"after a stop {steps.names[-1]!r}, step {step}"
            assert report.embedded <= 3
            if step % 5 == 0:
                third = sync(home, started / "documents")
                assert (third.embedded, third.reused, third.points_deleted, third.unchanged) == (0, 0, 0, 4)
        step += 1
    assert step >= 15


def test_a_first_sync_that_stops_is_finished_by_the_next(started: Path, tmp_path: Path) -> None:
    """I9"""
    sync(tmp_path / "undisturbed", started / "documents")
    for step in (0, 1, 3, 5, 8):
        home = tmp_path / str(step)
        with pytest.raises(Crash):
            sync(home, started / "documents", Steps(step))
        sync(home, started / "documents")
        assert state(home) == state(tmp_path / "undisturbed")


@pytest.mark.parametrize("stopped", ["in upsert", "after upsert", "after delete", "after flush"])
def test_a_killed_sync_is_finished_by_the_next(started: Path, expected: dict[str, Any], stopped: str) -> None:
    """I9: no handler runs, nothing is closed."""
    with copied(started) as home:
        steps = Steps()
        sync(home, started / "documents", steps)
    with copied(started) as home:
        step = steps.names.index(stopped)
        arguments = [str(home), str(started / "documents"), str(step)]
        program = [sys.executable, "-m", "tests.pipelines.corpus.crashing", *arguments]
        assert subprocess.run(program, cwd=REPOSITORY).returncode == -signal.SIGKILL
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
