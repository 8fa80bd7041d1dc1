"""Qdrant Edge: the Qdrant engine inside this process, one folder a collection."""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
import uuid
from collections.abc import Collection as Ids
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.corpus.bm25 import bm25, weighted_text
from pipelines.corpus.index import (
    DENSE,
    WORDS,
    Candidates,
    Collection,
    Condition,
    Point,
    Query,
    Range,
    Schema,
    StoredPoint,
    VectorIndex,
    of_documents,
    ranking,
    stored_fields,
)
from pipelines.corpus.settings import FieldType
from pipelines.errors import ArtifactError, ConfigError, LockedError, NotBuiltError
from pipelines.fingerprint import write_json_atomically

if TYPE_CHECKING:
    import qdrant_edge

    from pipelines.corpus.embedding import Vectors

_PAGE = 1000
_LOCK_POLL_SECONDS = 0.005
"""A reader gets in between two openings of a writer, which are this far apart at times."""
_SCHEMA_FILE = "schema.json"
_SEGMENT_POINTS = 20_000
"""Points after which a segment is made of them. Small segments, written as one goes, keep memory from growing with the
collection, and a later edit from costing a large one.
"""


class EdgeIndex(VectorIndex):
    """Collections below one folder; one process at a time, the others wait for ``lock_seconds``."""

    def __init__(self, folder: Path, lock_seconds: float = 60.0) -> None:
        self._folder = folder
        self._lock_seconds = lock_seconds

    def exists(self, collection: str) -> bool:
        """Whether its folder is there: it only appears once it is whole."""
        return (self._folder / collection).is_dir()

    def names(self) -> list[str]:
        """Folders; what begins with a dot is being made, being deleted, or a lock."""
        if not self._folder.is_dir():
            return []
        return sorted(each.name for each in self._folder.iterdir() if each.is_dir() and each.name[0] != ".")

    def create(self, collection: str, schema: Schema) -> None:
        """Made aside and renamed, so that a crash leaves none, never half a one."""
        if self.exists(collection):
            raise ConfigError(f"collection {collection!r} is there already, and is never created over")
        bm25(schema.language)  # refuses a language that it does not know
        scratch = self._folder / f".{collection}.{uuid.uuid4().hex[:8]}"
        try:
            _new_shard(scratch, schema).close()
            scratch.rename(self._folder / collection)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def publish(self, alias: str, collection: str) -> None:
        """Nothing to do: an embedded collection has no other clients; the catalog's pointer moves in one step."""

    def purge(self, collection: str) -> None:
        """Every live point moves into a new shard, which takes the old one's place: nothing else is in its files.

        A crash between the two renames leaves no collection, which the next sync builds anew.
        """
        schema = self._schema(collection)
        if schema is None:
            raise ConfigError(f"collection {collection!r} is of an earlier version: refresh, and drop it")
        scratch = self._folder / f".{collection}.{uuid.uuid4().hex[:8]}"
        old = self._folder / f".{collection}.{uuid.uuid4().hex[:8]}"
        try:
            with self._locked(collection):
                shard, made = _load(self._folder / collection, schema), _new_shard(scratch, schema)
                try:
                    _copy(shard, made)
                finally:
                    shard.close()
                    made.close()
                (self._folder / collection).rename(old)
                scratch.rename(self._folder / collection)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)

    def drop(self, collection: str) -> None:
        """Renamed first, so that a crash leaves it whole, or nothing that counts as a collection."""
        if not self.exists(collection):
            return
        with self._locked(collection):
            dropped = self._folder / f".{collection}.{uuid.uuid4().hex[:8]}"
            (self._folder / collection).rename(dropped)
        shutil.rmtree(dropped)

    @contextmanager
    def open(self, collection: str) -> Iterator[Collection]:
        """Hold the lock, load the shard, and close it again, flushed."""
        if not self.exists(collection):
            raise NotBuiltError(f"collection {collection!r} is not in {self._folder}: materialise its sources first")
        with self._locked(collection):
            opened = EdgeCollection(self._folder / collection, self._schema(collection))
            try:
                yield opened
            finally:
                opened.close()

    @contextmanager
    def _locked(self, collection: str) -> Iterator[None]:
        from filelock import FileLock, Timeout

        lock = FileLock(self._folder / f".{collection}.lock", poll_interval=_LOCK_POLL_SECONDS)
        try:
            lock.acquire(timeout=self._lock_seconds)
        except Timeout as error:
            raise self._held(collection) from error
        try:
            yield
        finally:
            lock.release()

    def _schema(self, collection: str) -> Schema | None:
        path = self._folder / collection / _SCHEMA_FILE
        try:
            return Schema(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
        except (ValueError, TypeError) as error:
            raise ArtifactError(
                f"{path} cannot be read: {error}. Move {path.parent} away and refresh: it is then built anew"
            ) from error

    def _held(self, collection: str) -> LockedError:
        return LockedError(
            f"collection {collection!r} in {self._folder} was held by another process for {self._lock_seconds:g} s: "
            "try again, or use a Qdrant server (QDRANT_URL) for concurrent writers"
        )


def _load(folder: Path, schema: Schema | None) -> qdrant_edge.EdgeShard:
    """With today's settings: what earlier ones made is made anew when the engine next tidies up."""
    import qdrant_edge as qe

    try:
        return qe.EdgeShard.load(str(folder), None if schema is None else _config(schema.dimension))
    except Exception as error:  # Edge raises nothing more precise
        raise ArtifactError(
            f"{folder} cannot be opened: {error}. Move it away and refresh: it is then built anew"
        ) from error


def _new_shard(folder: Path, schema: Schema) -> qdrant_edge.EdgeShard:
    import qdrant_edge as qe

    folder.mkdir(parents=True)
    shard = qe.EdgeShard.create(str(folder), _config(schema.dimension))
    for path, kind in schema.indexed.items():
        shard.update(qe.UpdateOperation.create_field_index(path, _payload_index(kind)))
    shard.flush()
    write_json_atomically(folder / _SCHEMA_FILE, asdict(schema))
    return shard


def _copy(shard: qdrant_edge.EdgeShard, target: qdrant_edge.EdgeShard) -> None:
    import qdrant_edge as qe

    offset = None
    while True:
        request = qe.ScrollRequest(offset=offset, limit=_PAGE, with_payload=True, with_vector=True)
        records, offset = shard.scroll(request)
        points = [qe.Point(record.id, record.vector, record.payload) for record in records]  # type: ignore[arg-type]
        if points:
            target.update(qe.UpdateOperation.upsert_points(points))
        if offset is None:
            break
    target.flush()
    target.optimize()


class EdgeCollection(Collection):
    """A loaded shard."""

    def __init__(self, folder: Path, schema: Schema | None) -> None:
        self._folder = folder
        self._shard = _load(folder, schema)
        self._schema = schema

    def close(self) -> None:
        """Flushed."""
        self._shard.close()

    @property
    def schema(self) -> Schema | None:
        """Of a file beside the segments."""
        return self._schema

    def upsert(self, points: Sequence[Point]) -> None:
        """Durable once flushed."""
        import qdrant_edge as qe

        words = None if self._schema is None else bm25(self._schema.language)
        for start in range(0, len(points), _PAGE):
            batch = []
            for each in points[start : start + _PAGE]:
                vector: dict[str, Any] = {DENSE: each.vector.tolist()}
                if words is not None:
                    vector[WORDS] = words.embed_document(weighted_text(each.payload))
                batch.append(qe.Point(each.point_id, vector, dict(each.payload)))
            self._shard.update(qe.UpdateOperation.upsert_points(batch))
            if self._unindexed >= _SEGMENT_POINTS:
                self.optimise()

    @cached_property
    def _few(self) -> bool:
        """Whether whole vectors are searched: asked of the engine once an opening, not for every question."""
        return int(self._shard.info().points_count) <= _SEGMENT_POINTS // 2

    @property
    def _unindexed(self) -> int:
        info = self._shard.info()
        return info.points_count * (1 if self._schema is None else 2) - info.indexed_vectors_count

    def vectors(self, point_ids: Sequence[str]) -> dict[str, Vectors]:
        """As stored: float32, of length 1."""
        import numpy as np

        return {
            str(record.id): np.asarray(record.vector[DENSE], dtype=np.float32)  # type: ignore[call-overload, index]
            for record in self._records(point_ids, payload=False, vector=[DENSE])
        }

    def fetch(self, point_ids: Sequence[str], *, with_text: bool = False) -> dict[str, StoredPoint]:
        """By id."""
        fields = stored_fields(with_text=with_text)
        return {
            str(record.id): StoredPoint(str(record.id), **(record.payload or {}))
            for record in self._records(point_ids, payload=fields)
        }

    def payloads(self, point_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """By id."""
        return {str(record.id): record.payload or {} for record in self._records(point_ids, payload=True)}

    def _records(
        self, point_ids: Sequence[str], *, payload: bool | list[str], vector: bool | list[str] = False
    ) -> Iterator[qdrant_edge.Record]:
        for start in range(0, len(point_ids), _PAGE):
            page: list[Any] = list(point_ids[start : start + _PAGE])
            yield from self._shard.retrieve(page, with_payload=payload, with_vector=vector)

    def passages(self, source: str, document_id: str, first: int, last: int) -> dict[int, str]:
        """By the indexes on document and ordinal."""
        import qdrant_edge as qe

        where = (*of_documents(source, [document_id]), Condition("ordinal", ranges=(Range(gte=first, lte=last),)))
        request = qe.ScrollRequest(
            limit=last - first + 1, filter=_filter(where), with_payload=["ordinal", "text"], with_vector=False
        )
        records, _ = self._shard.scroll(request)
        return {payload["ordinal"]: payload["text"] for payload in (record.payload or {} for record in records)}

    def set_payload(self, source: str, document_id: str, payload: Mapping[str, Any]) -> None:
        """By filter."""
        import qdrant_edge as qe

        where = _filter(of_documents(source, [document_id]))
        self._shard.update(qe.UpdateOperation.set_payload_by_filter(where, dict(payload)))

    def delete(self, source: str, document_ids: Ids[str], *, keep: Ids[str] = ()) -> int:
        """By filter, so that points of which the catalog never heard go too."""
        import qdrant_edge as qe

        where = _filter(of_documents(source, document_ids), keep)
        count = int(self._shard.count(qe.CountRequest(filter=where)))
        if count:
            self._shard.update(qe.UpdateOperation.delete_points_by_filter(where))
        return count

    def count(self, source: str | None = None) -> int:
        """Exact."""
        import qdrant_edge as qe

        return int(self._shard.count(qe.CountRequest(filter=None if source is None else _filter(of_documents(source)))))

    def scan(self, source: str | None = None, *, with_text: bool = False) -> Iterator[StoredPoint]:
        """Page by page."""
        import qdrant_edge as qe

        where, offset = None if source is None else _filter(of_documents(source)), None
        while True:
            request = qe.ScrollRequest(
                offset=offset,
                limit=_PAGE,
                filter=where,
                with_payload=stored_fields(with_text=with_text),
                with_vector=False,
            )
            records, offset = self._shard.scroll(request)
            for record in records:
                yield StoredPoint(str(record.id), **(record.payload or {}))
            if offset is None:
                return

    def candidates(
        self, queries: Sequence[Query], limit: int, conditions: Sequence[Condition] = ()
    ) -> list[Candidates]:
        """All in one batch."""
        import qdrant_edge as qe

        words = None if self._schema is None else bm25(self._schema.language)
        where = _filter(conditions) if conditions else None
        whole = qe.SearchParams(quantization=qe.QuantizationSearchParams(ignore=self._few, rescore=True))
        requests, asked = [], []
        for number, query in enumerate(queries):
            if query.vector is not None:
                asked.append((number, DENSE))
                nearest = qe.Query.Nearest(query.vector.tolist(), using=DENSE)
                requests.append(qe.QueryRequest(limit=limit, query=nearest, filter=where, params=whole))
            if query.text is not None and words is not None:
                asked.append((number, WORDS))
                nearest = qe.Query.Nearest(words.embed_query(query.text), using=WORDS)
                requests.append(qe.QueryRequest(limit=limit, query=nearest, filter=where))
        found = [Candidates([], []) for _ in queries]
        answers = self._shard.query_batch(qe.QueryBatchRequest(requests)) if requests else []
        for (number, using), answer in zip(asked, answers, strict=True):
            (found[number].dense if using == DENSE else found[number].words).extend(ranking(answer))
        return found

    def flush(self) -> None:
        """To disk."""
        self._shard.flush()

    def optimise(self) -> None:
        """Edge has no background thread for it, and holds Python's lock meanwhile: a second or two for a segment."""
        if self._shard.optimize():
            self._shard.flush()
            _return_memory()


def _config(dimension: int) -> qdrant_edge.EdgeConfig:
    """Everything on disk, through the page cache: what a process holds does not grow with the collection.

    Vectors are compressed to 4 bits a dimension and all of them compared, the best of each segment again by the whole
    ones, without a graph (HNSW): for segments as small as ours that takes as long as walking through a graph, misses
    less, and is written in a thirtieth of the time. In small collections whole vectors are compared from the start.
    """
    import qdrant_edge as qe

    cold = qe.Memory.Cold
    kilobytes = _SEGMENT_POINTS * dimension * 4 // 1024
    compressed = qe.TurboQuantQuantizationConfig(bits=qe.TurboQuantBitSize.Bits4, memory=cold)
    return qe.EdgeConfig(
        vectors={
            DENSE: qe.EdgeVectorParams(
                size=dimension, distance=qe.Distance.Cosine, quantization_config=compressed, memory=cold
            )
        },
        sparse_vectors={WORDS: qe.EdgeSparseVectorParams(modifier=qe.Modifier.Idf, memory=cold)},
        hnsw_config=qe.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000, memory=cold),  # no graph
        id_tracker_memory=cold,
        wal_enabled=False,  # what counts is flushed before the catalog says so, and anything else is written again
        optimizers=qe.EdgeOptimizersConfig(indexing_threshold=kilobytes // 2, max_segment_size=kilobytes),
    )


def _payload_index(kind: FieldType) -> Any:
    import qdrant_edge as qe

    kinds = {
        "keyword": qe.KeywordIndexParams,
        "integer": qe.IntegerIndexParams,
        "float": qe.FloatIndexParams,
        "boolean": qe.BoolIndexParams,
        "datetime": qe.DatetimeIndexParams,
    }
    return kinds[kind](memory=qe.Memory.Cold)


def _return_memory() -> None:
    """What was freed goes back to the system: glibc alone would keep several times what is in use."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _filter(conditions: Sequence[Condition], keep: Ids[str] = ()) -> qdrant_edge.Filter:
    import qdrant_edge as qe

    kept: list[Any] | None = [qe.HasIdCondition(set(keep))] if keep else None
    return qe.Filter(must=[_condition(each) for each in conditions], must_not=kept)


def _condition(condition: Condition) -> Any:
    import numpy as np
    import qdrant_edge as qe

    values: list[Any] = list(condition.any_of)
    if values and isinstance(values[0], bool):  # Edge takes Python's own for integers
        matches: list[Any] = [qe.MatchValue(np.bool_(value)) for value in values]  # type: ignore[arg-type]
    else:
        matches = [qe.MatchAny(values)] if values else []
    any_of: list[Any] = [qe.FieldCondition(condition.field, match=match) for match in matches]
    any_of += [qe.FieldCondition(condition.field, range=_range(each)) for each in condition.ranges]
    return any_of[0] if len(any_of) == 1 else qe.Filter(should=any_of)


def _range(bounds: Range) -> qdrant_edge.RangeFloat | qdrant_edge.RangeDateTime:
    import qdrant_edge as qe

    given: dict[str, Any] = {name: value for name, value in asdict(bounds).items() if value is not None}
    if any(isinstance(value, datetime) for value in given.values()):
        return qe.RangeDateTime(**{name: value.isoformat() for name, value in given.items()})
    return qe.RangeFloat(**given)
