"""The vector index: one interface, Qdrant behind it, embedded (``edge``) or a server (``server``).

Nothing here deletes a collection: a new pipeline fingerprint makes a new collection beside the old one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection as Ids
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.environment import Environment

if TYPE_CHECKING:
    from pipelines.corpus.embedding import Vectors

PAYLOAD_VERSION = 1
"""Raised when points store other fields or vectors: part of the pipeline fingerprint."""

DENSE = "dense"
"""Name of the embedder's vector; named, so that sparse ones can stand beside it."""

KEYWORD_FIELDS = ("source", "document_id")
"""Payload fields with an index of their own: every deletion filters by them."""


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
    text: str | None = None
    """Only where it was asked for."""


def stored_fields(*, with_text: bool) -> list[str]:
    """Payload fields that a ``StoredPoint`` is made of."""
    return ["source", "document_id", "content_hash", *(["text"] if with_text else [])]


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched for: the question in words and as a vector."""

    text: str
    vector: Vectors


@dataclass(frozen=True, slots=True)
class Found:
    """A point that answers a query."""

    point_id: str
    score: float
    payload: Mapping[str, Any]


class Collection(ABC):
    """An open collection."""

    @abstractmethod
    def upsert(self, points: Sequence[Point]) -> None:
        """Add points, or replace those with the same ids."""

    @abstractmethod
    def vectors(self, point_ids: Sequence[str]) -> dict[str, Vectors]:
        """Vectors by id; ids that are not there are left out."""

    @abstractmethod
    def set_payload(self, source: str, document_id: str, payload: Mapping[str, Any]) -> None:
        """Change the named fields on every point of one document."""

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
    def search(self, query: Query, top_k: int) -> list[Found]:
        """The best points for a query, best first."""

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
    def create(self, collection: str, dimension: int) -> None:
        """Make an empty collection for vectors of ``dimension`` components, compared by cosine.

        Raises:
            ConfigError: it is there already; nothing is ever created over it.
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
