"""Which collection answers: audited, asked golden questions, switched in one step, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pipelines import catalog as schema
from pipelines.corpus.audit import AuditReport, Mode, audit_collection, revision_of, unchanged
from pipelines.corpus.embedding import Embedder
from pipelines.corpus.freshness import Lag
from pipelines.corpus.golden import (
    GoldenSet,
    MatchedQuestions,
    document_key,
    generate_golden,
    load_golden,
    match_documents,
)
from pipelines.corpus.index import VectorIndex
from pipelines.corpus.ledger import (
    forget_collection,
    forget_rows,
    held_documents,
    mark_rows,
    mark_writing,
    pages,
    touch,
)
from pipelines.corpus.pipeline import Pipeline, held_pipeline, served_collection, wanted_pipeline
from pipelines.corpus.plots import FreshnessPoint, QualityPoint
from pipelines.corpus.quality import Comparison, Quality, compare, score_rankings
from pipelines.corpus.search import search_collection
from pipelines.corpus.settings import RetrievalSettings
from pipelines.errors import ArtifactError, ConfigError, NotBuiltError

FULL_AUDIT_HOURS = 24.0
"""A collection of which not every point was compared for so long is audited as a whole."""

AUDIT_HOURS = 1.0
"""One to which nothing was written is not even sampled for so long."""

SCORE_HOURS = 1.0
"""A collection that goes on changing is asked golden questions so often, and always before it is served first."""

_CHUNKS_PER_DOCUMENT = 5  # retrieved for each document that a score looks at: one document may have many


@dataclass(frozen=True, slots=True)
class ServedIndex:
    """The collection that answers questions, and why it is that one."""

    collection: str
    previous: str | None
    """What answered before; it stays where it is for a while."""
    served_at: datetime
    audit: AuditReport
    removed: int
    """Documents of sources that are no longer declared."""
    waiting: str | None = None
    """Why a collection that the settings ask for does not answer yet."""
    quality: Quality | None = None
    """Scores of what the settings ask for; None where nothing changed since they were taken last."""
    questions: MatchedQuestions | None = None
    generated: bool = False
    """Whether the questions were made from titles."""
    comparison: Comparison | None = None
    """With the served collection, where another one is to take its place."""
    dropped: tuple[str, ...] = ()
    """Replaced collections whose time was over."""

    @property
    def refused(self) -> bool:
        """Whether the retrieval gate keeps a new collection from being served."""
        return self.comparison is not None and self.comparison.refused


def serve_index(
    *,
    use_case: str,
    retrieval: RetrievalSettings,
    sources: Sequence[str],
    catalog: sa.Engine,
    index: VectorIndex,
    base: Path = Path(),
    embedder: Embedder | None = None,
    audit_mode: Mode | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> ServedIndex:
    """Let the collection that the settings ask for answer questions, once it is whole and not worse.

    Documents of sources that are no longer declared are removed first. Where the audit finds a difference, the
    documents concerned are marked, so that the next sync of their sources writes them again. Where another collection
    answers so far, both are asked the same golden questions, and a new one that is surely worse is not served.

    Args:
        use_case: whose index.
        retrieval: what the settings ask for.
        sources: names of those that are declared.
        catalog: what should be there.
        index: what is there.
        base: where a relative url of golden questions starts.
        embedder: instead of the one that ``retrieval`` names.
        audit_mode: full or sampled; None: as often as is sensible, see ``audited``.
        progress: takes lines for people.

    Raises:
        NotBuiltError: a declared source has no completed sync in this collection, and nothing answers so far.
        ArtifactError: the audit found a difference between index and catalog.
        ConfigError: the golden questions cannot be read, or the settings ask for something impossible.
    """
    wanted = wanted_pipeline(use_case, retrieval, embedder)
    previous = served_collection(use_case, catalog)
    removed = 0
    for collection in {wanted.collection, previous or wanted.collection}:
        if index.exists(collection):
            removed += _remove_undeclared(collection, sources, catalog, index)
    waiting = _why_not_yet(use_case, wanted.collection, previous, sources, catalog)
    if waiting is not None and previous is None:
        raise NotBuiltError(f"{use_case} serves no index yet: {waiting}")
    candidate = previous if waiting is not None and previous is not None else wanted.collection
    audit = audited(candidate, sources, catalog, index, audit_mode)
    progress(f"{candidate}: {audit}")

    scores = None if waiting is not None else _scores(use_case, wanted, previous, catalog, index, base, progress)
    comparison = None if scores is None else scores.comparison
    if comparison is not None:
        progress(f"{wanted.collection} against {previous}: {comparison.reason}")
    if comparison is not None and comparison.refused and previous is not None:
        candidate, waiting = previous, f"{wanted.collection} is refused: {comparison.reason}"
    served_at = _point_at(use_case, candidate, catalog)
    index.publish(use_case, candidate)
    dropped = _drop_retired(use_case, {candidate, wanted.collection}, retrieval.keep_days, catalog, index)
    return ServedIndex(
        collection=candidate,
        previous=previous,
        served_at=served_at,
        audit=audit,
        removed=removed,
        waiting=waiting,
        quality=None if scores is None else scores.quality,
        questions=None if scores is None else scores.questions,
        generated=scores is not None and scores.generated,
        comparison=comparison,
        dropped=dropped,
    )


def switch_index(
    *,
    use_case: str,
    retrieval: RetrievalSettings,
    catalog: sa.Engine,
    index: VectorIndex,
    collection: str | None = None,
    embedder: Embedder | None = None,
) -> str:
    """Let ``collection``, or the one that answered before, answer from now on; returns its name.

    One that is not what the settings ask for is pinned: it is kept fresh and served until this is called for the other.

    Raises:
        NotBuiltError: there is no such collection, or none to go back to.
        ConfigError: it was never completed.
    """
    table, served = schema.collections.c, served_collection(use_case, catalog)
    query = sa.select(table.collection, table.retired_at).where(table.use_case == use_case)
    with catalog.connect() as connection:
        rows = connection.execute(query.order_by(sa.nulls_last(table.retired_at.desc()))).all()
    there = [row.collection for row in rows if row.collection != served and index.exists(row.collection)]
    if collection is None:
        retired = [row.collection for row in rows if row.retired_at is not None and row.collection in there]
        if not retired:
            raise NotBuiltError(f"{use_case} has no earlier index to go back to; it serves {served}")
        collection = retired[0]
    elif collection not in there and collection != served:
        raise NotBuiltError(f"{use_case} has no collection {collection!r}; there are: {', '.join(there) or 'none'}")
    syncs = schema.source_syncs.c
    with catalog.connect() as connection:
        if connection.scalar(sa.select(sa.func.count()).where(syncs.collection == collection)) == 0:
            raise ConfigError(f"collection {collection} was never completed: run the job {use_case}_refresh first")
    wanted = wanted_pipeline(use_case, retrieval, embedder).collection
    _point_at(use_case, collection, catalog, pinned=collection != wanted)
    index.publish(use_case, collection)
    return collection


def audited(
    collection: str, sources: Collection[str], catalog: sa.Engine, index: VectorIndex, mode: Mode | None = None
) -> AuditReport:
    """Audit, note the result, and mark what differs.

    Without a ``mode``: every point once a day, a sample whenever something was written and once an hour, and otherwise
    nothing.

    Raises:
        ArtifactError: index and catalog differ.
        NotBuiltError: there is no such collection.
    """
    table, now = schema.collections, schema.now()
    here = table.c.collection == collection
    columns = (table.c.revision, table.c.audited_revision, table.c.audited_at, table.c.compared_at)
    with catalog.connect() as connection:
        row = connection.execute(sa.select(*columns).where(here)).one_or_none()
    if row is None:
        raise NotBuiltError(f"there is no collection {collection} yet: materialise the sources first")
    if mode is None:
        due = row.compared_at is None or now - row.compared_at > timedelta(hours=FULL_AUDIT_HOURS)
        mode = "full" if due else "sampled"
        fresh = row.audited_at is not None and now - row.audited_at < timedelta(hours=AUDIT_HOURS)
        if not due and fresh and row.revision == row.audited_revision and index.exists(collection):
            return unchanged(collection, catalog)
    report, documents = audit_collection(
        collection, catalog=catalog, index=index, declared=sources, mode=mode, since=row.audited_at
    )
    if not report.clean:
        mark_writing(collection, documents, catalog)
        raise ArtifactError(
            f"collection {collection} differs from the catalog and is not served: {report}. The documents concerned "
            "are marked: refresh the sources again, and they are written anew"
        )
    noted = {"audited_revision": row.revision, "audited_at": now}
    noted |= {"compared_at": now} if report.mode == "full" else {}
    with catalog.begin() as connection:
        connection.execute(sa.update(table).where(here).values(noted))
    return report


def quality_history(use_case: str, catalog: sa.Engine, most: int = 200) -> list[QualityPoint]:
    """Scores of what was served, oldest first."""
    table = schema.retrieval_scores.c
    columns = [getattr(table, name) for name in QualityPoint.__slots__]
    query = sa.select(*columns).where(table.use_case == use_case).order_by(table.scored_at.desc()).limit(most)
    with catalog.connect() as connection:
        return [QualityPoint(*row) for row in connection.execute(query)][::-1]


def freshness_history(use_case: str, catalog: sa.Engine, most: int = 200) -> list[FreshnessPoint]:
    """Lags of the syncs that found changes, oldest first."""
    table = schema.sync_lags.c
    columns = (table.synced_at, *(getattr(table, name) for name in Lag.__slots__))
    query = sa.select(*columns).where(table.use_case == use_case).order_by(table.synced_at.desc()).limit(most)
    with catalog.connect() as connection:
        return [FreshnessPoint(row[0], Lag(*row[1:])) for row in connection.execute(query)][::-1]


def _why_not_yet(
    use_case: str, wanted: str, served: str | None, sources: Sequence[str], catalog: sa.Engine
) -> str | None:
    synced, serving = schema.source_syncs.c, schema.served_collections.c
    with catalog.connect() as connection:
        done = set(connection.scalars(sa.select(synced.source).where(synced.collection == wanted)))
        pinned = connection.scalar(sa.select(serving.pinned).where(serving.use_case == use_case))
    if unsynced := [name for name in sources if name not in done]:
        return (
            f"no completed sync of {', '.join(unsynced)} in collection {wanted}: materialise "
            f"{', '.join(f'{use_case}/{name}' for name in unsynced)} first"
        )
    if pinned and served != wanted:
        return f"{served} was switched back to by hand: run the job {use_case}_switch_index for {wanted} to go on"
    return None


# --- golden questions


@dataclass(frozen=True, slots=True)
class _Scores:
    quality: Quality
    questions: MatchedQuestions
    generated: bool
    comparison: Comparison | None


def _scores(
    use_case: str,
    wanted: Pipeline,
    served: str | None,
    catalog: sa.Engine,
    index: VectorIndex,
    base: Path,
    progress: Callable[[str], None],
) -> _Scores | None:
    """Golden questions to the wanted collection, and to the served one where that is another; None: nothing is new."""
    golden_settings = wanted.retrieval.golden
    switching = served is not None and served != wanted.collection and index.exists(served)
    written = None if golden_settings.url is None else load_golden(golden_settings.url, base)
    revision, _ = revision_of(wanted.collection, catalog)
    fresh = _scored(use_case, wanted.collection, revision, written, golden_settings.k, catalog)
    if fresh and not switching:
        return None
    # Of both: a document that only the served one could read is a miss of the new one, not a question less.
    asked = [wanted.collection, *([served] if switching and served is not None else [])]
    golden = written or generate_golden(_titles(asked, catalog), golden_settings.generated)
    questions = match_documents(golden, _documents(asked, catalog))
    quality = _ask(wanted, questions, index)
    comparison = None
    if switching and served is not None:
        try:
            comparison = compare(
                quality,
                _ask(held_pipeline(catalog, served, to_write=False), questions, index, k=golden_settings.k),
                max_drop=golden_settings.max_drop,
            )
        except ConfigError as error:
            progress(f"{served} cannot be asked any more, and is replaced without a comparison: {error}")
    if quality.questions:
        _record(use_case, wanted.collection, revision, golden, quality, catalog)
    return _Scores(quality, questions, golden.generated, comparison)


def _ask(pipeline: Pipeline, questions: MatchedQuestions, index: VectorIndex, k: int | None = None) -> Quality:
    k = k or pipeline.retrieval.golden.k
    texts = [each.question for each in questions.questions]
    rankings: dict[str, list[str]] = {}
    if texts:
        with index.open(pipeline.collection) as points:
            found = search_collection(
                points, pipeline.embedder, texts, retrieval=pipeline.retrieval, top_k=k * _CHUNKS_PER_DOCUMENT
            )
        rankings = {
            text: [document_key(each.payload["source"], each.payload["document_id"]) for each in hits]
            for text, hits in zip(texts, found, strict=True)
        }
    return score_rankings(questions.questions, rankings, k)


def _titles(collections: Sequence[str], catalog: sa.Engine) -> Iterator[tuple[str, str, str]]:
    table = schema.documents.c
    return _rows(sa.select(table.source, table.document_id, table.title).where(table.chunks > 0), collections, catalog)


def _documents(collections: Sequence[str], catalog: sa.Engine) -> Iterator[tuple[str, str, str]]:
    table = schema.documents.c
    return _rows(sa.select(table.source, table.document_id, table.uri), collections, catalog)


def _rows(query: sa.Select[Any], collections: Sequence[str], catalog: sa.Engine) -> Iterator[tuple[str, str, str]]:
    """Of documents, a page at a time."""
    here = schema.documents.c.collection.in_(collections)
    query = query.distinct() if len(collections) > 1 else query
    with catalog.connect() as connection:
        for row in connection.execute(query.where(here).execution_options(yield_per=1_000)):
            yield row[0], row[1], row[2]


def _scored(
    use_case: str, collection: str, revision: int, written: GoldenSet | None, k: int, catalog: sa.Engine
) -> bool:
    """Whether these questions were asked since the collection changed last, or a moment ago."""
    table = schema.retrieval_scores.c
    query = sa.select(table.generated, table.golden).where(
        table.use_case == use_case,
        table.collection == collection,
        table.k == k,
        sa.or_(table.revision == revision, table.scored_at > schema.now() - timedelta(hours=SCORE_HOURS)),
    )
    with catalog.connect() as connection:
        rows = connection.execute(query).all()
    return any(row.generated if written is None else row.golden == written.fingerprint for row in rows)


def _record(
    use_case: str, collection: str, revision: int, golden: GoldenSet, quality: Quality, catalog: sa.Engine
) -> None:
    row = {
        "use_case": use_case,
        "scored_at": schema.now(),
        "collection": collection,
        "revision": revision,
        "golden": golden.fingerprint,
        "generated": golden.generated,
        "questions": quality.questions,
        "k": quality.k,
        "recall": quality.recall,
        "mrr": quality.mrr,
        "ndcg": quality.ndcg,
    }
    with catalog.begin() as connection:
        connection.execute(sa.insert(schema.retrieval_scores).values(**row))


# --- pointer and collections


def _point_at(use_case: str, collection: str, catalog: sa.Engine, *, pinned: bool | None = None) -> datetime:
    """One transaction: a reader sees the old collection or the new one. ``pinned`` None leaves that as it is."""
    serving, table, now = schema.served_collections, schema.collections, schema.now()
    with catalog.begin() as connection:
        here = serving.c.use_case == use_case
        row = connection.execute(sa.select(serving.c.collection, serving.c.pinned).where(here)).one_or_none()
        pin = (row is not None and bool(row.pinned)) if pinned is None else pinned
        values = {"collection": collection, "served_at": now, "pinned": pin}
        if row is None:
            connection.execute(sa.insert(serving).values(use_case=use_case, **values))
        else:
            connection.execute(sa.update(serving).where(here).values(values))
        if row is not None and row.collection != collection:
            replaced = sa.update(table).where(table.c.collection == row.collection)
            connection.execute(replaced.values(retired_at=now))
        connection.execute(sa.update(table).where(table.c.collection == collection).values(retired_at=None))
    return now


def _drop_retired(
    use_case: str, needed: Collection[str], keep_days: float, catalog: sa.Engine, index: VectorIndex
) -> tuple[str, ...]:
    """Collections that nobody has needed for ``keep_days``: replaced ones, and those that were never finished."""
    table, now = schema.collections, schema.now()
    with catalog.begin() as connection:
        unneeded = (table.c.use_case == use_case, table.c.collection.not_in(needed))
        connection.execute(sa.update(table).where(*unneeded, table.c.retired_at.is_(None)).values(retired_at=now))
        over = table.c.retired_at <= now - timedelta(days=keep_days)
        names = list(connection.scalars(sa.select(table.c.collection).where(*unneeded, over)))
    dropped = []
    for name in names:
        if name == served_collection(use_case, catalog):  # switched back to in this very moment
            continue
        if index.exists(name):
            index.drop(name)
        with catalog.begin() as connection:
            forget_collection(connection, name)
        dropped.append(name)
    return tuple(dropped)


def _remove_undeclared(collection: str, sources: Collection[str], catalog: sa.Engine, index: VectorIndex) -> int:
    table, removed = schema.documents.c, 0
    known = sa.select(table.source).where(table.collection == collection).distinct()
    with catalog.connect() as connection:
        undeclared = [name for name in connection.scalars(known) if name not in sources]
    for name in undeclared:
        ids = sorted(held_documents(collection, name, catalog))
        with catalog.begin() as connection:
            synced = schema.source_syncs
            connection.execute(sa.delete(synced).where(synced.c.collection == collection, synced.c.source == name))
            mark_rows(connection, collection, name, ids)
        with index.open(collection) as points:
            for page in pages(ids):
                points.delete(name, page)
            points.flush()
        with catalog.begin() as connection:
            forget_rows(connection, collection, name, ids)
            touch(connection, collection)
        removed += len(ids)
    return removed
