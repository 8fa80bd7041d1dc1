"""Questions to the served collection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pipelines.catalog import collections, served_collections
from pipelines.corpus.embedding import Embedder, open_embedder
from pipelines.corpus.index import Query, VectorIndex
from pipelines.corpus.settings import RetrievalSettings
from pipelines.errors import ConfigError, NotBuiltError

MOST_HITS = 100


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that answers a question."""

    text: str
    """The chunk under its heading path."""
    title: str
    uri: str
    score: float
    """Cosine of question and chunk, -1 to 1."""
    source: str
    document_id: str
    version: str
    """The source's change token for the text that is quoted."""
    updated_at: datetime | None
    """When the source says that it changed, if it says so."""
    indexed_at: datetime


def checked_limit(question: str, top_k: int) -> int:
    """``top_k``, once both can be searched for.

    Raises:
        ConfigError: the question is empty, or ``top_k`` out of range.
    """
    if not question.strip():
        raise ConfigError(f"question {question!r} is empty: ask something")
    if not 1 <= top_k <= MOST_HITS:
        raise ConfigError(f"top_k {top_k} is out of range: 1 to {MOST_HITS}")
    return top_k


def search(
    question: str,
    *,
    use_case: str,
    retrieval: RetrievalSettings,
    catalog: sa.Engine,
    index: VectorIndex,
    top_k: int | None = None,
    embedder: Embedder | None = None,
) -> list[Hit]:
    """The chunks of the served collection that are nearest to ``question``, best first.

    Args:
        question: in words.
        use_case: whose index.
        retrieval: the embedder, which must be the one that built the collection, and the default of ``top_k``.
        catalog: knows which collection is served.
        index: holds it.
        top_k: most hits, 1 to 100.
        embedder: instead of the one that ``retrieval`` names.

    Raises:
        ConfigError: the question is empty, ``top_k`` out of range, or the collection was built by another embedder.
        NotBuiltError: nothing is served yet.
    """
    limit = checked_limit(question, retrieval.top_k if top_k is None else top_k)
    query = (
        sa.select(served_collections.c.collection, collections.c.pipeline)
        .join(collections, collections.c.collection == served_collections.c.collection)
        .where(served_collections.c.use_case == use_case)
    )
    with catalog.connect() as connection:
        served = connection.execute(query).one_or_none()
    if served is None:
        raise NotBuiltError(f"{use_case} serves no index yet: run the job {use_case}_refresh first")
    built = served.pipeline["embedder"]
    if embedder is None:  # in the precision of the index, which may have been built on other hardware
        embedder = open_embedder(retrieval.embedder, retrieval.embedder_revision, built.get("precision"))
    if built != dict(embedder.identity):
        raise ConfigError(
            f"{served.collection} was built with {_named(built)}, and {_named(dict(embedder.identity))} is configured: "
            f"their vectors do not compare. Run the job {use_case}_refresh, which builds an index with the new embedder"
        )
    vector = embedder.encode_question(question)
    with index.open(served.collection) as points:
        found = points.candidates([Query(vector)], limit)[0].dense
        payloads = points.payloads([each.point_id for each in found])
    return [_hit(payloads[each.point_id], each.score) for each in found if each.point_id in payloads]


def _hit(payload: Mapping[str, Any], score: float) -> Hit:
    updated_at = payload["updated_at"]
    return Hit(
        text=payload["text"],
        title=payload["title"],
        uri=payload["uri"],
        score=score,
        source=payload["source"],
        document_id=payload["document_id"],
        version=payload["version"],
        updated_at=None if updated_at is None else datetime.fromisoformat(updated_at),
        indexed_at=datetime.fromisoformat(payload["indexed_at"]),
    )


def _named(identity: dict[str, object]) -> str:
    files = str(identity.get("files", ""))[:12]
    return " ".join(str(identity[key]) for key in ("model", "revision", "precision") if identity.get(key)) + (
        f" (files {files})" if files else ""
    )
