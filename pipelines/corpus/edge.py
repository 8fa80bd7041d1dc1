"""Qdrant Edge: the Qdrant engine inside this process, one folder a collection."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Collection as Ids
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.corpus.index import (
    DENSE,
    KEYWORD_FIELDS,
    Collection,
    Found,
    Point,
    Query,
    StoredPoint,
    VectorIndex,
    stored_fields,
)
from pipelines.errors import ArtifactError, ConfigError, LockedError, NotBuiltError

if TYPE_CHECKING:
    from pipelines.corpus.embedding import Vectors

_PAGE = 1000
_POLL_SECONDS = 0.05


class EdgeIndex(VectorIndex):
    """Collections below one folder; one process at a time, the others wait for ``lock_seconds``."""

    def __init__(self, folder: Path, lock_seconds: float = 60.0) -> None:
        self._folder = folder
        self._lock_seconds = lock_seconds

    def exists(self, collection: str) -> bool:
        """Whether its folder is there: it only appears once it is whole."""
        return (self._folder / collection).is_dir()

    def create(self, collection: str, dimension: int) -> None:
        """Made aside and renamed, so that a crash leaves none, never half a one."""
        import qdrant_edge as qe

        if self.exists(collection):
            raise ConfigError(f"collection {collection!r} is there already, and is never created over")
        scratch = self._folder / f".{collection}.{uuid.uuid4().hex[:8]}"
        scratch.mkdir(parents=True)
        try:
            vectors = {DENSE: qe.EdgeVectorParams(size=dimension, distance=qe.Distance.Cosine)}
            shard = qe.EdgeShard.create(str(scratch), qe.EdgeConfig(vectors=vectors))
            for field in KEYWORD_FIELDS:
                shard.update(qe.UpdateOperation.create_field_index(field, qe.PayloadSchemaType.Keyword))
            shard.flush()
            shard.close()
            scratch.rename(self._folder / collection)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @contextmanager
    def open(self, collection: str) -> Iterator[Collection]:
        """Hold the lock, load the shard, and close it again, flushed."""
        from filelock import FileLock, Timeout

        if not self.exists(collection):
            raise NotBuiltError(f"collection {collection!r} is not in {self._folder}: materialise its sources first")
        deadline = time.monotonic() + self._lock_seconds
        lock = FileLock(self._folder / f".{collection}.lock")
        try:
            lock.acquire(timeout=self._lock_seconds)
        except Timeout as error:
            raise self._locked(collection) from error
        try:
            shard = self._load(collection, deadline)
            try:
                yield EdgeCollection(shard)
            finally:
                shard.close()
        finally:
            lock.release()

    def _load(self, collection: str, deadline: float) -> Any:
        import qdrant_edge as qe

        path = self._folder / collection
        while True:
            try:
                return qe.EdgeShard.load(str(path))
            except Exception as error:  # Edge raises nothing more precise
                if "WouldBlock" not in str(error):
                    raise ArtifactError(
                        f"{path} cannot be opened: {error}. Move it away and refresh: it is then built anew"
                    ) from error
                if time.monotonic() > deadline:
                    raise self._locked(collection) from error
            time.sleep(_POLL_SECONDS)

    def _locked(self, collection: str) -> LockedError:
        return LockedError(
            f"collection {collection!r} in {self._folder} was held by another process for {self._lock_seconds:g} s: "
            "try again, or use a Qdrant server (QDRANT_URL) for concurrent writers"
        )


class EdgeCollection(Collection):
    """A loaded shard."""

    def __init__(self, shard: Any) -> None:
        self._shard = shard

    def upsert(self, points: Sequence[Point]) -> None:
        """Through the write-ahead log."""
        import qdrant_edge as qe

        for start in range(0, len(points), _PAGE):
            batch = [
                qe.Point(each.point_id, {DENSE: each.vector.tolist()}, dict(each.payload))
                for each in points[start : start + _PAGE]
            ]
            self._shard.update(qe.UpdateOperation.upsert_points(batch))

    def vectors(self, point_ids: Sequence[str]) -> dict[str, Vectors]:
        """As stored: float32, of length 1."""
        import numpy as np

        found: dict[str, Vectors] = {}
        for start in range(0, len(point_ids), _PAGE):
            page = list(point_ids[start : start + _PAGE])
            for record in self._shard.retrieve(page, with_payload=False, with_vector=True):
                found[str(record.id)] = np.asarray(record.vector[DENSE], dtype=np.float32)
        return found

    def set_payload(self, source: str, document_id: str, payload: Mapping[str, Any]) -> None:
        """By filter."""
        import qdrant_edge as qe

        self._shard.update(qe.UpdateOperation.set_payload_by_filter(_filter(source, [document_id]), dict(payload)))

    def delete(self, source: str, document_ids: Ids[str], *, keep: Ids[str] = ()) -> int:
        """By filter, so that points of which the catalog never heard go too."""
        import qdrant_edge as qe

        condition = _filter(source, document_ids, keep)
        count = int(self._shard.count(qe.CountRequest(filter=condition)))
        if count:
            self._shard.update(qe.UpdateOperation.delete_points_by_filter(condition))
        return count

    def count(self, source: str | None = None) -> int:
        """Exact."""
        import qdrant_edge as qe

        return int(self._shard.count(qe.CountRequest(filter=None if source is None else _filter(source))))

    def scan(self, source: str | None = None, *, with_text: bool = False) -> Iterator[StoredPoint]:
        """Page by page."""
        import qdrant_edge as qe

        condition, offset = None if source is None else _filter(source), None
        while True:
            request = qe.ScrollRequest(
                offset=offset,
                limit=_PAGE,
                filter=condition,
                with_payload=stored_fields(with_text=with_text),
                with_vector=False,
            )
            records, offset = self._shard.scroll(request)
            for record in records:
                yield StoredPoint(str(record.id), **record.payload)
            if offset is None:
                return

    def search(self, query: Query, top_k: int) -> list[Found]:
        """By the dense vector."""
        import qdrant_edge as qe

        nearest = qe.Query.Nearest(query.vector.tolist(), using=DENSE)
        found = self._shard.query(qe.QueryRequest(limit=top_k, query=nearest, with_payload=True))
        return [Found(str(point.id), float(point.score), point.payload or {}) for point in found]

    def flush(self) -> None:
        """To disk."""
        self._shard.flush()

    def optimise(self) -> None:
        """Edge has no background thread for it."""
        self._shard.optimize()


def _filter(source: str, document_ids: Ids[str] | None = None, keep: Ids[str] = ()) -> Any:
    import qdrant_edge as qe

    must: list[Any] = [qe.FieldCondition("source", match=qe.MatchValue(source))]
    if document_ids is not None:
        must.append(qe.FieldCondition("document_id", match=qe.MatchAny(list(document_ids))))
    return qe.Filter(must=must, must_not=[qe.HasIdCondition(set(keep))] if keep else None)
