"""A real index and catalog that stop at the n-th step, by an exception or by SIGKILL.

Run as a program, it makes syncs that kill themselves: ``python -m tests.pipelines.corpus.crashing``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pipelines.catalog import open_catalog
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.index import Collection, Schema, VectorIndex
from pipelines.corpus.settings import FolderSource, RetrievalSettings
from pipelines.corpus.sync import SyncReport, sync_source
from tests.pipelines.corpus.hash_embedder import HashEmbedder

RETRIEVAL = RetrievalSettings(chunk_tokens=64)


class Crash(BaseException):
    """Nobody catches it."""


class Steps:
    """Counts steps; at number ``last`` it stops."""

    def __init__(self, last: int | None = None, stop: Callable[[], None] | None = None) -> None:
        self.names: list[str] = []
        self.last = last
        self.stop = stop or self._raise

    def at(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) - 1 == self.last:
            self.stop()

    @staticmethod
    def _raise() -> None:
        raise Crash


WRITES = ("delete", "set_payload", "flush", "optimise")


class CrashingCollection:
    def __init__(self, collection: Collection, steps: Steps) -> None:
        self._collection = collection
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._collection, name)
        if name not in WRITES:  # after a read, all is as it was before
            return operation

        def stepped(*arguments: Any, **options: Any) -> Any:
            result = operation(*arguments, **options)
            self._steps.at(f"after {name}")
            return result

        return stepped

    def upsert(self, points: Sequence[Any]) -> None:
        half = len(points) // 2
        self._collection.upsert(points[:half])
        self._steps.at("in upsert")
        self._collection.upsert(points[half:])
        self._steps.at("after upsert")


class CrashingIndex(VectorIndex):
    def __init__(self, index: VectorIndex, steps: Steps) -> None:
        self._index = index
        self._steps = steps

    def exists(self, collection: str) -> bool:
        return self._index.exists(collection)

    def names(self) -> list[str]:
        return self._index.names()

    def create(self, collection: str, schema: Schema) -> None:
        self._index.create(collection, schema)
        self._steps.at("after create")

    def drop(self, collection: str) -> None:
        self._index.drop(collection)
        self._steps.at("after drop")

    def publish(self, alias: str, collection: str) -> None:
        self._index.publish(alias, collection)

    def purge(self, collection: str) -> None:
        self._index.purge(collection)

    @contextmanager
    def open(self, collection: str) -> Iterator[Any]:
        with self._index.open(collection) as points:
            yield CrashingCollection(points, self._steps)


def sync(home: Path, documents: Path, steps: Steps | None = None, *, batch_chunks: int = 4) -> SyncReport:
    catalog = open_catalog(f"sqlite:///{home / 'catalog.db'}")
    steps = steps or Steps()
    sa.event.listen(catalog, "commit", lambda _connection: steps.at("before commit"))
    try:
        return sync_source(
            FolderSource(name="docs", type="folder", url=str(documents), allow_empty=True),
            use_case="test",
            base=documents,
            retrieval=RETRIEVAL,
            catalog=catalog,
            index=CrashingIndex(EdgeIndex(home / "index"), steps),
            embedder=HashEmbedder(),
            batch_chunks=batch_chunks,
        )
    finally:
        catalog.dispose()


def _die_on_request() -> None:
    """For each line of JSON [home, documents, step, batch_chunks] a process that kills itself at the step.

    Prints how each one ended.
    """
    for line in sys.stdin:
        home, documents, step, batch_chunks = json.loads(line)
        child = os.fork()  # nothing of the engines is loaded yet, and no thread runs: forking is safe
        if child == 0:
            steps = Steps(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
            sync(Path(home), Path(documents), steps, batch_chunks=batch_chunks)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _die_on_request()
