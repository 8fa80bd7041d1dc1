"""Questions to the served collection: by meaning and by words, among what the filters and the access rules leave."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from pipelines.catalog import collections, served_collections
from pipelines.corpus.embedding import Embedder, comparable, open_embedder
from pipelines.corpus.filters import Filters, conditions_of, may_read, readable_by
from pipelines.corpus.fusion import above_average, fused, lifted
from pipelines.corpus.index import Collection, Condition, Query, Scored, VectorIndex
from pipelines.corpus.settings import RetrievalSettings
from pipelines.errors import ConfigError, NotBuiltError
from pipelines.models import BUNDLED

if TYPE_CHECKING:
    from pipelines.corpus.rerank import Reranker

MOST_HITS = 100
MOST_NEIGHBOURS = 20

DEPTH = 100
"""Candidates of each ranking that are fused, at least."""

RERANKED = 32
"""Candidates that a reranker reads, at least."""

SIMILARITY = {BUNDLED: 0.3}
"""Cosine of question and chunk below which they have nothing to do with each other, by embedder; measured by
``benchmarks.retrieval``."""

_EXACT = re.compile(r"\w*\d[\w.-]*\w|\w+[-_.]\w*\d\w*")
"""A word with a digit, of two characters at least: a part number, a version."""


@dataclass(frozen=True, slots=True)
class Place:
    """What one ranking says of a chunk."""

    rank: int
    """1 is the best."""
    score: float
    """Cosine (-1 to 1) by meaning, BM25 (0 upwards) by words, the model's own by a reranker."""


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk of a collection that answers a question."""

    point_id: str
    score: float
    payload: Mapping[str, Any]
    places: Mapping[str, Place]
    """In each ranking that has it: dense, words, fused where there is a reranker."""

    @property
    def text(self) -> str:
        """The chunk under its heading path."""
        return str(self.payload["text"])


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that answers a question."""

    text: str
    """The chunk under its heading path."""
    title: str
    uri: str
    score: float
    """Higher is better, and comparable within one answer: fused, or cosine, BM25 or the reranker's where only that
    decides."""
    source: str
    document_id: str
    version: str
    """The source's change token for the text that is quoted."""
    updated_at: datetime | None
    """When the source says that it changed, if it says so."""
    indexed_at: datetime
    age_seconds: float | None = None
    """How old the text is, since ``updated_at``, when it is found."""
    ordinal: int | None = None
    """Place of the chunk in its document, from 0."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Declared facts of the document."""
    places: Mapping[str, Place] = field(default_factory=dict)
    """Rank and score in each ranking that has it."""
    would_be_hidden: bool = False
    """Whether access rules, which only warn, would keep it from the one who asks."""
    before: tuple[str, ...] = ()
    """Chunks before it in the same document, in order, as far as asked for."""
    after: tuple[str, ...] = ()
    """Chunks after it."""


_Chunk = TypeVar("_Chunk", Found, Hit)


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
    filters: Filters | None = None,
    principals: Sequence[str] | None = None,
    neighbours: int = 0,
    embedder: Embedder | None = None,
) -> list[Hit]:
    """The chunks of the served collection that answer ``question`` best, best first.

    Args:
        question: in words.
        use_case: whose index.
        retrieval: how to search, and the embedder, which must be the one that built the collection.
        catalog: knows which collection is served.
        index: holds it.
        top_k: most hits, 1 to 100.
        filters: what the documents' metadata, ``source`` or ``document_id`` must be; see ``filters.conditions_of``.
        principals: groups and names of the one who asks. Where access rules are enforced, nobody finds nothing.
        neighbours: so many chunks before and after each hit, of the same document, come with it.
        embedder: instead of the one that ``retrieval`` names.

    Raises:
        ConfigError: the question is empty, ``top_k`` or ``neighbours`` out of range, a filter that cannot be, or a
            collection that another embedder built.
        NotBuiltError: nothing is served yet.
    """
    limit = checked_limit(question, retrieval.top_k if top_k is None else top_k)
    if not 0 <= neighbours <= MOST_NEIGHBOURS:
        raise ConfigError(f"neighbours {neighbours} is out of range: 0 to {MOST_NEIGHBOURS}")
    conditions = conditions_of(filters or {}, retrieval.metadata)
    who = _named_principals(principals)
    served = _served(use_case, catalog)
    if retrieval.access.mode == "enforce":
        if not who:
            return []
        conditions += (readable_by(who),)
    vector = None
    if retrieval.mode != "words" or not _has_words(served.pipeline):
        vector = _embedder_of(served, retrieval, use_case, embedder).encode_question(question)
    reranker = _reranker(retrieval)
    if reranker is not None:
        reranker.load()  # before the index is held
    with index.open(served.collection) as points:
        _check_fields(points, conditions, use_case)
        found = _ranked(points, [Query(vector, question)], retrieval, reranker, limit, conditions)[0]
        around = [_around(points, each.payload, neighbours) for each in found]
    now, warn = datetime.now(UTC), retrieval.access.mode == "warn"
    return [
        _hit(each, now, before, after, hidden=warn and not may_read(each.payload.get("access", ()), who))
        for each, (before, after) in zip(found, around, strict=True)
    ]


def retrieved_texts(
    questions: Sequence[str], *, use_case: str, retrieval: RetrievalSettings, catalog: sa.Engine, index: VectorIndex
) -> list[tuple[str, ...]]:
    """For each question the texts that the served collection gives a prompt, best first; none where none is relevant.

    Access rules do not apply.

    Raises:
        ConfigError: another embedder built the collection.
        NotBuiltError: nothing is served yet.
    """
    served = _served(use_case, catalog)
    embedder = _embedder_of(served, retrieval, use_case, None)
    with index.open(served.collection) as points:
        found = search_collection(points, embedder, questions, retrieval=retrieval, top_k=retrieval.top_k)
    return [
        tuple(each.text for each in relevant(question, some, retrieval))
        for question, some in zip(questions, found, strict=True)
    ]


def relevant(question: str, found: Sequence[_Chunk], retrieval: RetrievalSettings) -> Sequence[_Chunk]:
    """``found``, or nothing where none of it has to do with the question.

    It has where the closest chunk is as similar in meaning as ``minimum_similarity`` asks for, or says a word with a
    digit that the question says too (meaning knows little of part numbers). A search by words alone finds nothing that
    shares no word, and is believed.
    """
    least = retrieval.minimum_similarity
    if least is None:
        least = SIMILARITY.get(retrieval.embedder, 0.0)
    if not least or retrieval.mode == "words":
        return found
    if any("dense" in each.places and each.places["dense"].score >= least for each in found):
        return found
    exact = {word.lower() for word in _EXACT.findall(question)}
    said = {word.lower() for each in found for word in _EXACT.findall(each.text)} if exact else set()
    return found if exact & said else ()


def _served(use_case: str, catalog: sa.Engine) -> Any:
    """Row (collection, pipeline, retrieval) of the collection that answers."""
    query = (
        sa.select(served_collections.c.collection, collections.c.pipeline, collections.c.retrieval)
        .join(collections, collections.c.collection == served_collections.c.collection)
        .where(served_collections.c.use_case == use_case)
    )
    with catalog.connect() as connection:
        served = connection.execute(query).one_or_none()
    if served is None:
        raise NotBuiltError(f"{use_case} serves no index yet: run the job {use_case}_refresh first")
    return served


def _embedder_of(served: Any, retrieval: RetrievalSettings, use_case: str, embedder: Embedder | None) -> Embedder:
    """The embedder that built the served collection, whose settings may be about to be replaced."""
    if embedder is None:
        made_by = retrieval if served.retrieval is None else RetrievalSettings.model_validate(served.retrieval)
        embedder = open_embedder(made_by.embedder, made_by.embedder_revision)
    _check_embedder(served.collection, served.pipeline["embedder"], embedder, use_case)
    return embedder


def search_collection(
    points: Collection,
    embedder: Embedder,
    questions: Sequence[str],
    *,
    retrieval: RetrievalSettings,
    top_k: int,
    conditions: Sequence[Condition] = (),
) -> list[list[Found]]:
    """For each question the best chunks of an open collection, as ``search`` ranks them, best first.

    Access rules are the caller's: none apply but those among ``conditions``. ``embedder`` must be the one that built
    the collection.
    """
    wants_vectors = retrieval.mode != "words" or points.schema is None
    vectors = embedder.encode_questions(questions) if wants_vectors and questions else [None] * len(questions)
    queries = [Query(vector, question) for vector, question in zip(vectors, questions, strict=True)]
    return _ranked(points, queries, retrieval, _reranker(retrieval), top_k, conditions)


def _ranked(
    points: Collection,
    queries: Sequence[Query],
    retrieval: RetrievalSettings,
    reranker: Reranker | None,
    limit: int,
    conditions: Sequence[Condition],
) -> list[list[Found]]:
    mode = retrieval.mode if points.schema is not None else "dense"
    asked = [
        Query(None if mode == "words" else query.vector, None if mode == "dense" else query.text) for query in queries
    ]
    wanted = limit if reranker is None else max(limit, RERANKED)
    found = points.candidates(asked, max(wanted, DEPTH) if mode == "hybrid" else wanted, conditions)
    rankings = [fused(each, retrieval.fusion) if mode == "hybrid" else each.dense or each.words for each in found]
    lifting = mode == "hybrid" and retrieval.fusion == "dbsf"
    above = [above_average(*each) if lifting else [] for each in zip(rankings, found, strict=True)]
    needed = ((*ranking[:wanted], *more) for ranking, more in zip(rankings, above, strict=True))
    payloads = points.payloads(list({each.point_id for some in needed for each in some}))
    if lifting:
        documents = {name: (payload["source"], payload["document_id"]) for name, payload in payloads.items()}
        rankings = [lifted(*each, documents) for each in zip(rankings, above, strict=True)]
    answers = []
    for query, candidates, ranking in zip(queries, found, rankings, strict=True):
        best = [each for each in ranking[:wanted] if each.point_id in payloads]
        places = [("dense", candidates.dense), ("words", candidates.words)]
        if reranker is not None and query.text is not None:
            places += [("fused", best)] if mode == "hybrid" else []
            scores = reranker.scores(query.text, [payloads[each.point_id]["text"] for each in best])
            best = [replace(each, score=score) for each, score in zip(best, scores, strict=True)]
            best.sort(key=lambda each: (-each.score, each.point_id))
        answers.append(
            [
                Found(each.point_id, each.score, payloads[each.point_id], _places(each.point_id, places))
                for each in best[:limit]
            ]
        )
    return answers


def _places(point_id: str, rankings: Sequence[tuple[str, Sequence[Scored]]]) -> dict[str, Place]:
    return {
        name: Place(rank, each.score)
        for name, ranking in rankings
        for rank, each in enumerate(ranking, 1)
        if each.point_id == point_id
    }


def _around(points: Collection, payload: Mapping[str, Any], neighbours: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    at = payload.get("ordinal")
    if not neighbours or at is None:
        return (), ()
    texts = points.passages(payload["source"], payload["document_id"], at - neighbours, at + neighbours)
    return (
        tuple(texts[place] for place in sorted(texts) if place < at),
        tuple(texts[place] for place in sorted(texts) if place > at),
    )


def _hit(found: Found, now: datetime, before: tuple[str, ...], after: tuple[str, ...], *, hidden: bool) -> Hit:
    payload = found.payload
    updated_at = None if payload["updated_at"] is None else datetime.fromisoformat(payload["updated_at"])
    return Hit(
        text=payload["text"],
        title=payload["title"],
        uri=payload["uri"],
        score=found.score,
        source=payload["source"],
        document_id=payload["document_id"],
        version=payload["version"],
        updated_at=updated_at,
        indexed_at=datetime.fromisoformat(payload["indexed_at"]),
        age_seconds=None if updated_at is None else (now - updated_at).total_seconds(),
        ordinal=payload.get("ordinal"),
        metadata=payload.get("metadata", {}),
        places=found.places,
        would_be_hidden=hidden,
        before=before,
        after=after,
    )


def _named_principals(principals: Sequence[str] | None) -> tuple[str, ...]:
    given = [principals] if isinstance(principals, str) else principals or ()
    return tuple(dict.fromkeys(name.strip() for name in given if name.strip()))


def _has_words(pipeline: Mapping[str, Any]) -> bool:
    """Whether its points have sparse vectors: since version 2."""
    payload = pipeline["payload"]
    return isinstance(payload, Mapping) and int(payload["version"]) >= 2


def _check_fields(points: Collection, conditions: Sequence[Condition], use_case: str) -> None:
    """A declaration may be newer than the collection that still serves."""
    held = {} if points.schema is None else points.schema.indexed
    missing = [each.field for each in conditions if each.field.startswith("metadata.") and each.field not in held]
    if missing:
        raise ConfigError(
            f"the served index of {use_case} was built before {', '.join(missing)} was declared: run the job "
            f"{use_case}_refresh first"
        )


def _reranker(retrieval: RetrievalSettings) -> Reranker | None:
    if retrieval.reranker is None:
        return None
    from pipelines.corpus.rerank import open_reranker

    return open_reranker(retrieval.reranker, retrieval.reranker_revision)


def _check_embedder(collection: str, built: Mapping[str, Any], embedder: Embedder, use_case: str) -> None:
    if not comparable(built, embedder.identity):
        raise ConfigError(
            f"{collection} was built with {_named(built)}, and {_named(dict(embedder.identity))} is configured: their "
            f"vectors do not compare. Run the job {use_case}_refresh, which builds an index with the new embedder"
        )


def _named(identity: Mapping[str, object]) -> str:
    files = str(identity.get("files", ""))[:12]
    return " ".join(str(identity[key]) for key in ("model", "revision", "precision") if identity.get(key)) + (
        f" (files {files})" if files else ""
    )
