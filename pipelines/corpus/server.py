"""A Qdrant server, or the client's own in-memory store."""

from __future__ import annotations

import warnings
from collections.abc import Collection as Ids
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
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
from pipelines.errors import ConfigError, NotBuiltError, TransientError

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

    from pipelines.corpus.embedding import Vectors

_PAGE = 256
_QUERIES = 64
_TIMEOUT_SECONDS = 60
_KEPT = "freshet"
"""Key of the schema in a collection's metadata."""


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

    def names(self) -> list[str]:
        """Asks the server; others may keep collections there too."""
        with _transient():
            return sorted(each.name for each in self._client.get_collections().collections)

    def create(self, collection: str, schema: Schema) -> None:
        """The schema is kept in the collection's metadata."""
        from qdrant_client import models

        if self.exists(collection):
            raise ConfigError(f"collection {collection!r} is there already, and is never created over")
        bm25(schema.language)  # refuses a language that it does not know
        kinds = {
            "keyword": models.PayloadSchemaType.KEYWORD,
            "integer": models.PayloadSchemaType.INTEGER,
            "float": models.PayloadSchemaType.FLOAT,
            "boolean": models.PayloadSchemaType.BOOL,
            "datetime": models.PayloadSchemaType.DATETIME,
        }
        with _transient(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Payload indexes have no effect")  # the in-memory store says so
            self._client.create_collection(
                collection,
                vectors_config={DENSE: models.VectorParams(size=schema.dimension, distance=models.Distance.COSINE)},
                sparse_vectors_config={WORDS: models.SparseVectorParams(modifier=models.Modifier.IDF)},
                metadata={_KEPT: asdict(schema)},
            )
            for field, kind in schema.indexed.items():
                self._client.create_payload_index(collection, field, kinds[kind], wait=True)

    def drop(self, collection: str) -> None:
        """Asks the server."""
        with _transient():
            self._client.delete_collection(collection)

    def publish(self, alias: str, collection: str) -> None:
        """An alias, moved in one operation of the server."""
        from qdrant_client import models

        with _transient():
            held = {each.alias_name: each.collection_name for each in self._client.get_aliases().aliases}
            if held.get(alias) == collection:
                return
            operations: list[models.AliasOperations] = []
            if alias in held:
                operations.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
            made = models.CreateAlias(collection_name=collection, alias_name=alias)
            operations.append(models.CreateAliasOperation(create_alias=made))
            self._client.update_collection_aliases(operations)

    def purge(self, collection: str) -> None:
        """Nothing to do: the server vacuums its segments and cuts its log in its own time."""

    @contextmanager
    def open(self, collection: str) -> Iterator[Collection]:
        """Nothing is locked."""
        if not self.exists(collection):
            raise NotBuiltError(f"the Qdrant server has no collection {collection!r}: materialise its sources first")
        with _transient():
            yield ServerCollection(self._client, collection, self._schema(collection))

    def _schema(self, collection: str) -> Schema | None:
        config = self._client.get_collection(collection).config
        kept = (config.metadata or {}).get(_KEPT)
        if kept is None and config.params.sparse_vectors:
            raise ConfigError(
                f"the Qdrant server does not keep the metadata of collection {collection!r}: use version 1.16 or later"
            )
        return None if kept is None else Schema(**kept)


class ServerCollection(Collection):
    """Operations on one collection; each returns when the server has applied it."""

    def __init__(self, client: QdrantClient, name: str, schema: Schema | None) -> None:
        self._client = client
        self._name = name
        self._schema = schema

    @property
    def schema(self) -> Schema | None:
        """Of the collection's metadata."""
        return self._schema

    def upsert(self, points: Sequence[Point]) -> None:
        """In pages, well below the server's limit on the size of a request."""
        from qdrant_client import models

        words = None if self._schema is None else bm25(self._schema.language)
        for start in range(0, len(points), _PAGE):
            batch = []
            for each in points[start : start + _PAGE]:
                vector: dict[str, Any] = {DENSE: each.vector.tolist()}
                if words is not None:
                    vector[WORDS] = _sparse(words.embed_document(weighted_text(each.payload)))
                batch.append(models.PointStruct(id=each.point_id, vector=vector, payload=dict(each.payload)))
            self._client.upsert(self._name, batch, wait=True)

    def vectors(self, point_ids: Sequence[str]) -> dict[str, Vectors]:
        """As stored: float32, of length 1."""
        import numpy as np

        found: dict[str, Vectors] = {}
        for record in self._records(point_ids, payload=False, vector=[DENSE]):
            stored: Any = record.vector
            found[str(record.id)] = np.asarray(stored[DENSE], dtype=np.float32)
        return found

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
    ) -> Iterator[models.Record]:
        for start in range(0, len(point_ids), _PAGE):
            page = list(point_ids[start : start + _PAGE])
            yield from self._client.retrieve(self._name, page, with_payload=payload, with_vectors=vector)

    def passages(self, source: str, document_id: str, first: int, last: int) -> dict[int, str]:
        """By the indexes on document and ordinal."""
        where = (*of_documents(source, [document_id]), Condition("ordinal", ranges=(Range(gte=first, lte=last),)))
        records, _ = self._client.scroll(
            self._name, _filter(where), limit=last - first + 1, with_payload=["ordinal", "text"], with_vectors=False
        )
        return {payload["ordinal"]: payload["text"] for payload in (record.payload or {} for record in records)}

    def set_payload(self, source: str, document_id: str, payload: Mapping[str, Any]) -> None:
        """By filter."""
        where = _filter(of_documents(source, [document_id]))
        self._client.set_payload(self._name, dict(payload), points=where, wait=True)

    def delete(self, source: str, document_ids: Ids[str], *, keep: Ids[str] = ()) -> int:
        """By filter, so that points of which the catalog never heard go too."""
        where = _filter(of_documents(source, document_ids), keep)
        count = self._client.count(self._name, where, exact=True).count
        if count:
            self._client.delete(self._name, where, wait=True)
        return count

    def count(self, source: str | None = None) -> int:
        """Exact."""
        where = None if source is None else _filter(of_documents(source))
        return self._client.count(self._name, where, exact=True).count

    def scan(self, source: str | None = None, *, with_text: bool = False) -> Iterator[StoredPoint]:
        """Page by page."""
        where, offset = None if source is None else _filter(of_documents(source)), None
        while True:
            records, offset = self._client.scroll(
                self._name,
                where,
                limit=_PAGE,
                offset=offset,
                with_payload=stored_fields(with_text=with_text),
                with_vectors=False,
            )
            for record in records:
                yield StoredPoint(str(record.id), **(record.payload or {}))
            if offset is None:
                return

    def candidates(
        self, queries: Sequence[Query], limit: int, conditions: Sequence[Condition] = ()
    ) -> list[Candidates]:
        """In batches."""
        from qdrant_client import models

        words = None if self._schema is None else bm25(self._schema.language)
        where = _filter(conditions) if conditions else None
        requests, asked = [], []
        for number, query in enumerate(queries):
            if query.vector is not None:
                asked.append((number, DENSE))
                dense = query.vector.tolist()
                requests.append(
                    models.QueryRequest(query=dense, using=DENSE, filter=where, limit=limit, with_payload=False)
                )
            if query.text is not None and words is not None:
                asked.append((number, WORDS))
                sparse = _sparse(words.embed_query(query.text))
                requests.append(
                    models.QueryRequest(query=sparse, using=WORDS, filter=where, limit=limit, with_payload=False)
                )
        found = [Candidates([], []) for _ in queries]
        for start in range(0, len(requests), _QUERIES):
            answers = self._client.query_batch_points(self._name, requests[start : start + _QUERIES])
            for (number, using), answer in zip(asked[start : start + _QUERIES], answers, strict=True):
                (found[number].dense if using == DENSE else found[number].words).extend(ranking(answer.points))
        return found

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


def _sparse(vector: Any) -> models.SparseVector:
    from qdrant_client import models

    return models.SparseVector(indices=vector.indices, values=vector.values)


def _filter(conditions: Sequence[Condition], keep: Ids[str] = ()) -> models.Filter:
    from qdrant_client import models

    kept: list[Any] | None = [models.HasIdCondition(has_id=list(keep))] if keep else None
    return models.Filter(must=[_condition(each) for each in conditions], must_not=kept)


def _condition(condition: Condition) -> Any:
    from qdrant_client import models

    values: list[Any] = list(condition.any_of)
    if values and isinstance(values[0], bool):
        matches: list[Any] = [models.MatchValue(value=value) for value in values]
    else:
        matches = [models.MatchAny(any=values)] if values else []
    any_of: list[Any] = [models.FieldCondition(key=condition.field, match=match) for match in matches]
    any_of += [models.FieldCondition(key=condition.field, range=_range(each)) for each in condition.ranges]
    return any_of[0] if len(any_of) == 1 else models.Filter(should=any_of)


def _range(bounds: Range) -> models.Range | models.DatetimeRange:
    from qdrant_client import models

    given: dict[str, Any] = {name: value for name, value in asdict(bounds).items() if value is not None}
    if any(isinstance(value, datetime) for value in given.values()):
        return models.DatetimeRange(**given)
    return models.Range(**given)
