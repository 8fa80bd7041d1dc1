"""The vector index: one interface, Qdrant behind it, embedded (``edge``) or a server (``server``).

A new pipeline fingerprint makes a new collection beside the old one; nothing is ever created over one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection as Ids
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipelines.corpus.settings import FieldType
from pipelines.environment import Environment

if TYPE_CHECKING:
    from pipelines.corpus.embedding import Vectors

PAYLOAD_VERSION = 2
"""Raised when points store other fields or vectors: part of the pipeline fingerprint."""

DENSE = "dense"
"""Name of the embedder's vector; named, so that sparse ones can stand beside it."""

WORDS = "words"
"""Name of the sparse vector of BM25 term weights, which adapters make from the payload (``bm25.weighted_text``)."""

OWN_FIELDS: Mapping[str, FieldType] = {
    "source": "keyword",
    "document_id": "keyword",
    "access": "keyword",
    "ordinal": "integer",
}
"""Payload fields with an index of their own: deletions, filters, access rules and neighbours go by them."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a collection is made for; kept with it."""

    dimension: int
    """Components of the dense vectors."""
    fields: Mapping[str, FieldType] = field(default_factory=dict)
    """Declared metadata, by name: the payload has them below ``metadata``."""
    language: str = "english"
    """Of the stop words and stems of the sparse vectors; none: neither."""

    @property
    def indexed(self) -> dict[str, FieldType]:
        """Type of every payload field with an index, by its path."""
        return {**OWN_FIELDS, **{f"metadata.{name}": kind for name, kind in self.fields.items()}}


@dataclass(frozen=True, slots=True)
class Point:
    """One chunk as it is stored."""

    point_id: str
    vector: Vectors
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """A point without its vector."""

    point_id: str
    source: str
    document_id: str
    content_hash: str
    version: str = ""
    text: str | None = None
    """Only where it was asked for."""


def stored_fields(*, with_text: bool) -> list[str]:
    """Payload fields that a ``StoredPoint`` is made of."""
    return ["source", "document_id", "content_hash", "version", *(["text"] if with_text else [])]


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a number or a time; None is no bound."""

    gte: float | datetime | None = None
    gt: float | datetime | None = None
    lte: float | datetime | None = None
    lt: float | datetime | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """A payload field has one of these values (of one type), or lies in one of these ranges."""

    field: str
    """Path in the payload: ``source``, ``metadata.product``."""
    any_of: tuple[str, ...] | tuple[int, ...] | tuple[bool, ...] = ()
    ranges: tuple[Range, ...] = ()


def of_documents(source: str, document_ids: Ids[str] | None = None) -> tuple[Condition, ...]:
    """The points of some documents of a source, or of all."""
    of_source = Condition("source", (source,))
    return (of_source,) if document_ids is None else (of_source, Condition("document_id", tuple(document_ids)))


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched for, by meaning, by words, or by both."""

    vector: Vectors | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A point that answers a query."""

    point_id: str
    score: float


def ranking(points: Iterable[Any]) -> list[Scored]:
    """An engine's answer, whose points have ``id`` and ``score``; best first.

    Engines round differently in the seventh digit: what is equal before that comes in the order of the ids.
    """
    scored = (Scored(str(point.id), round(float(point.score), 6)) for point in points)
    return sorted(scored, key=lambda each: (-each.score, each.point_id))


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best points for one query, best first."""

    dense: list[Scored]
    """By cosine; empty where no vector was given."""
    words: list[Scored]
    """By BM25; only those that share a word with the text, and none where no text was given."""


class Collection(ABC):
    """An open collection."""

    @property
    @abstractmethod
    def schema(self) -> Schema | None:
        """What it was made for; None where that was before collections kept it, and had sparse vectors."""

    @abstractmethod
    def upsert(self, points: Sequence[Point]) -> None:
        """Add points, or replace those with the same ids; their sparse vectors come from the payload."""

    @abstractmethod
    def vectors(self, point_ids: Sequence[str]) -> dict[str, Vectors]:
        """Dense vectors by id; ids that are not there are left out."""

    @abstractmethod
    def fetch(self, point_ids: Sequence[str], *, with_text: bool = False) -> dict[str, StoredPoint]:
        """Points by id; ids that are not there are left out."""

    @abstractmethod
    def payloads(self, point_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Whole payloads by id; ids that are not there are left out."""

    @abstractmethod
    def passages(self, source: str, document_id: str, first: int, last: int) -> dict[int, str]:
        """Texts of one document by their ordinal, from ``first`` to ``last``, both included."""

    @abstractmethod
    def set_payload(self, source: str, document_id: str, payload: Mapping[str, Any]) -> None:
        """Replace the named top-level fields, wholly, on every point of one document.

        Never ``text`` or ``headings``, of which vectors are made.
        """

    @abstractmethod
    def delete(self, source: str, document_ids: Ids[str], *, keep: Ids[str] = ()) -> int:
        """Delete every point of these documents but those with an id in ``keep``; how many there were."""

    @abstractmethod
    def count(self, source: str | None = None) -> int:
        """Points of one source, or all."""

    @abstractmethod
    def scan(self, source: str | None = None, *, with_text: bool = False) -> Iterator[StoredPoint]:
        """Every point of one source, or all."""

    @abstractmethod
    def candidates(
        self, queries: Sequence[Query], limit: int, conditions: Sequence[Condition] = ()
    ) -> list[Candidates]:
        """For each query the ``limit`` best points by meaning and by words, of those that meet all conditions.

        A collection without a schema has no sparse vectors: nothing is found by words. How rare a word is, an engine
        may reckon with deleted points too, until it has rewritten the segment that held them.
        """

    @abstractmethod
    def flush(self) -> None:
        """Return once everything written so far survives a crash."""

    @abstractmethod
    def optimise(self) -> None:
        """Let the engine build its search structures and drop what was deleted, where it does not by itself."""


class VectorIndex(ABC):
    """Collections by name."""

    @abstractmethod
    def exists(self, collection: str) -> bool:
        """Whether the collection is there."""

    @abstractmethod
    def names(self) -> list[str]:
        """Every collection, sorted."""

    @abstractmethod
    def create(self, collection: str, schema: Schema) -> None:
        """Make an empty collection: dense vectors compared by cosine, BM25 weights, and the payload's indexes.

        Raises:
            ConfigError: it is there already (nothing is ever created over it), or no words of the language are known.
        """

    @abstractmethod
    def drop(self, collection: str) -> None:
        """Delete a collection, if it is there; the caller knows that it is not served.

        Raises:
            LockedError: another process holds it.
            TransientError: the server cannot be reached.
        """

    @abstractmethod
    def publish(self, alias: str, collection: str) -> None:
        """Let other clients of the engine find ``collection`` under a name that stays; ours read the catalog.

        Raises:
            TransientError: the server cannot be reached.
        """

    @abstractmethod
    def purge(self, collection: str) -> None:
        """Leave nothing of what was deleted in the engine's own files, as far as that is in the client's power.

        Raises:
            LockedError: another process holds it.
            TransientError: the server cannot be reached.
        """

    @abstractmethod
    def open(self, collection: str) -> AbstractContextManager[Collection]:
        """Work on a collection; the embedded engine is locked meanwhile, so hold it briefly.

        Raises:
            NotBuiltError: there is no such collection.
            LockedError: another process holds it.
            TransientError: the server cannot be reached.
        """


def open_index(environment: Environment) -> VectorIndex:
    """The index that ``QDRANT_URL`` names, or the embedded one in ``FRESHET_HOME``."""
    if environment.qdrant_url is None:
        from pipelines.corpus.edge import EdgeIndex

        return EdgeIndex(environment.index_folder)
    from pipelines.corpus.server import ServerIndex

    key = environment.qdrant_api_key
    return ServerIndex.at(environment.qdrant_url, None if key is None else key.get_secret_value())
