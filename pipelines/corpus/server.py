"""A Qdrant server, or the client's own in-memory store."""

from __future__ import annotations

import warnings
from collections.abc import Collection as Ids
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from pipelines.errors import ConfigError, NotBuiltError, TransientError

if TYPE_CHECKING:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Filter

    from pipelines.corpus.embedding import Vectors

_PAGE = 256
_TIMEOUT_SECONDS = 60


class ServerIndex(VectorIndex):
    """Collections of one Qdrant server."""

    def __init__(self, client: QdrantClient) -> None:
        self._client = client

    @classmethod
    def at(cls, url: str, api_key: str | None = None) -> ServerIndex:
        """Connect to ``url`` at the first use."""
        from qdrant_client import QdrantClient

        return cls(QdrantClient(url=url, api_key=api_key, timeout=_TIMEOUT_SECONDS, check_compatibility=False))

    def exists(self, collection: str) -> bool:
        """Asks the server."""
        with _transient():
            return self._client.collection_exists(collection)

    def create(self, collection: str, dimension: int) -> None:
        """With keyword indexes on what deletions filter by."""
        from qdrant_client import models

        if self.exists(collection):
            raise ConfigError(f"collection {collection!r} is there already, and is never created over")
        with _transient(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Payload indexes have no effect")  # the in-memory store says so
            parameters = models.VectorParams(size=dimension, distance=models.Distance.COSINE)
            self._client.create_collection(collection, vectors_config={DENSE: parameters})
            for field in KEYWORD_FIELDS:
                self._client.create_payload_index(collection, field, models.PayloadSchemaType.KEYWORD, wait=True)

    @contextmanager
    def open(self, collection: str) -> Iterator[Collection]:
        """Nothing is locked."""
        if not self.exists(collection):
            raise NotBuiltError(f"the Qdrant server has no collection {collection!r}: materialise its sources first")
        with _transient():
            yield ServerCollection(self._client, collection)


class ServerCollection(Collection):
    """Operations on one collection; each returns when the server has applied it."""

    def __init__(self, client: QdrantClient, name: str) -> None:
        self._client = client
        self._name = name

    def upsert(self, points: Sequence[Point]) -> None:
        """In pages, well below the server's limit on the size of a request."""
        from qdrant_client import models

        for start in range(0, len(points), _PAGE):
            batch = [
                models.PointStruct(id=each.point_id, vector={DENSE: each.vector.tolist()}, payload=dict(each.payload))
                for each in points[start : start + _PAGE]
            ]
            self._client.upsert(self._name, batch, wait=True)

    def vectors(self, point_ids: Sequence[str]) -> dict[str, Vectors]:
        """As stored: float32, of length 1."""
        import numpy as np

        found: dict[str, Vectors] = {}
        for start in range(0, len(point_ids), _PAGE):
            page = list(point_ids[start : start + _PAGE])
            for record in self._client.retrieve(self._name, page, with_payload=False, with_vectors=[DENSE]):
                stored: Any = record.vector
                found[str(record.id)] = np.asarray(stored[DENSE], dtype=np.float32)
        return found

    def set_payload(self, source: str, document_id: str, payload: Mapping[str, Any]) -> None:
        """By filter."""
        self._client.set_payload(self._name, dict(payload), points=_filter(source, [document_id]), wait=True)

    def delete(self, source: str, document_ids: Ids[str], *, keep: Ids[str] = ()) -> int:
        """By filter, so that points of which the catalog never heard go too."""
        condition = _filter(source, document_ids, keep)
        count = self._client.count(self._name, condition, exact=True).count
        if count:
            self._client.delete(self._name, condition, wait=True)
        return count

    def count(self, source: str | None = None) -> int:
        """Exact."""
        return self._client.count(self._name, None if source is None else _filter(source), exact=True).count

    def scan(self, source: str | None = None, *, with_text: bool = False) -> Iterator[StoredPoint]:
        """Page by page."""
        condition, offset = None if source is None else _filter(source), None
        while True:
            records, offset = self._client.scroll(
                self._name,
                condition,
                limit=_PAGE,
                offset=offset,
                with_payload=stored_fields(with_text=with_text),
                with_vectors=False,
            )
            for record in records:
                yield StoredPoint(str(record.id), **(record.payload or {}))
            if offset is None:
                return

    def search(self, query: Query, top_k: int) -> list[Found]:
        """By the dense vector."""
        answer = self._client.query_points(
            self._name, query=query.vector.tolist(), using=DENSE, limit=top_k, with_payload=True
        )
        return [Found(str(point.id), float(point.score), point.payload or {}) for point in answer.points]

    def flush(self) -> None:
        """Nothing to do: every write waited for the server."""

    def optimise(self) -> None:
        """Nothing to do: the server does it in the background."""


@contextmanager
def _transient() -> Iterator[None]:
    """What a later call may not meet again, as such."""
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    try:
        yield
    except ResponseHandlingException as error:
        raise TransientError(f"the Qdrant server cannot be reached: {error}; check QDRANT_URL") from error
    except UnexpectedResponse as error:
        if error.status_code in (401, 403):
            raise ConfigError("the Qdrant server refuses the key: check QDRANT_API_KEY") from error
        if error.status_code is not None and error.status_code >= 500:
            raise TransientError(f"the Qdrant server failed: {error}") from error
        raise


def _filter(source: str, document_ids: Ids[str] | None = None, keep: Ids[str] = ()) -> Filter:
    from qdrant_client import models

    must: list[Any] = [models.FieldCondition(key="source", match=models.MatchValue(value=source))]
    if document_ids is not None:
        must.append(models.FieldCondition(key="document_id", match=models.MatchAny(any=list(document_ids))))
    return models.Filter(must=must, must_not=[models.HasIdCondition(has_id=list(keep))] if keep else None)
