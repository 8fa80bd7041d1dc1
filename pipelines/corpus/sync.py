"""Holds a collection in sync with a source: list, plan the difference, apply it, commit.

Applying is safe to interrupt anywhere. A batch of documents is marked ``writing`` in the catalog, its points are
upserted, its old points deleted, the index flushed, and only then the catalog says ``indexed``. What a crash leaves in
``writing`` is written again by the next sync, or removed when its source no longer has it.

Three things overlap: one thread reads and cuts documents, this one embeds, and a third writes the batch before,
or opens the engine for the only one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pipelines import catalog as schema
from pipelines.corpus.audit import mark_differences
from pipelines.corpus.chunking import chunk_document
from pipelines.corpus.documents import Chunk, Document
from pipelines.corpus.embedding import Embedder
from pipelines.corpus.freshness import Lag, lag
from pipelines.corpus.index import Collection as IndexCollection
from pipelines.corpus.index import Point, Schema, VectorIndex
from pipelines.corpus.ledger import (
    SQL_VALUES,
    chunk_count,
    chunk_texts,
    chunks_by_text,
    forget_collection,
    forget_rows,
    forgotten_documents,
    held_documents,
    mark_rows,
    pages,
    touch,
    which,
)
from pipelines.corpus.payload import document_facts, point_payload
from pipelines.corpus.pipeline import Pipeline, held_pipeline, served_collection, wanted_pipeline
from pipelines.corpus.plan import Held, State, SyncPlan, plan_sync, renamed, why_withheld
from pipelines.corpus.settings import RetrievalSettings, SourceSettings
from pipelines.corpus.sources import open_source
from pipelines.corpus.sources.base import Known, Listed, Listing, Source
from pipelines.errors import ConfigError, DocumentError
from pipelines.fingerprint import text_hash

if TYPE_CHECKING:
    from pipelines.corpus.embedding import Vectors

_FIRST_BATCH = 64  # chunks: the encoder starts early
_SMALL_BATCH = 128  # chunks: embedded within half a second, for which readers may wait
_FEW = 32  # documents: read at once, so that there is nothing to gain by embedding the first of them early
_SPARE = 10_000  # vectors of texts that were just taken out
_FRESH_SECONDS = 600.0  # while a new collection is built, the served one is brought up to date this often


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one sync found and did."""

    collection: str
    documents: int
    """Listed by the source, unreadable ones included; of those that only list changes, the documents held."""
    added: int
    changed: int
    moved: int
    """Renamed: a new id with the content of a document that went away; in neither ``added`` nor ``deleted``."""
    deleted: int
    unchanged: int
    """Including those that were touched but say the same."""
    failures: tuple[tuple[str, str], ...]
    """(document id, error) of each that could not be read; retried by the next sync."""
    withheld: tuple[str, ...]
    """Ids of documents that the source no longer has and that stay until somebody approves."""
    withheld_reason: str | None
    chunks: int
    """Of this source, in the index, after the sync."""
    embedded: int
    """Texts that went through the model."""
    reused: int
    """Chunks written with a vector that was there already."""
    points_deleted: int
    lag: Lag | None
    """From the source's change to being searchable, of the documents that were new or changed after the first sync."""
    seconds: float
    seconds_by_phase: Mapping[str, float]
    """list, parse (reading and cutting), embed, write (index and catalog); the last three overlap."""
    kept_fresh: SyncReport | None = None
    """The same for the collection that still answers, while this one is being built beside it."""


def sync_source(
    source_settings: SourceSettings,
    *,
    use_case: str,
    base: Path,
    retrieval: RetrievalSettings,
    catalog: sa.Engine,
    index: VectorIndex,
    progress: Callable[[str], None] = lambda _line: None,
    embedder: Embedder | None = None,
    batch_chunks: int = 512,
    approve_deletions: int = 0,
    lock_seconds: float = 60.0,
) -> SyncReport:
    """Bring the index up to what the source has now.

    A document that cannot be read keeps the text that is indexed, which was right once, is marked ``failed``, reported
    and read again next time. Only one that a crash left half written is taken out until it can be read. More deletions
    than the source's settings allow are withheld, reported, and decided again by the next sync.

    Where another collection is served, as while embedder or chunk size change, that one is kept fresh first, and then
    every ten minutes, until the new one is served in its place.

    Args:
        source_settings: the source.
        use_case: prefix of the collection's name.
        base: where relative urls start.
        retrieval: embedder, chunk size and metadata, which with the code's versions name the collection.
        catalog: what is indexed.
        index: where it is indexed.
        progress: takes lines for people.
        embedder: instead of the one that ``retrieval`` names.
        batch_chunks: chunks that are embedded, written and committed together.
        approve_deletions: as many deletions are not withheld.
        lock_seconds: how long to wait for another sync of the same source.

    Raises:
        ConfigError: the settings ask for something impossible.
        SourceError: the source cannot be right.
        SourceUnavailableError: the source cannot be read now.
        LockedError: another sync of this source goes on, or another process holds the embedded index.
    """
    wanted = wanted_pipeline(use_case, retrieval, embedder)

    options = _Options(base, progress, batch_chunks, approve_deletions)
    with schema.exclusive(catalog, f"the sync of {use_case}/{source_settings.name}", seconds=lock_seconds):
        target = _Target(use_case, source_settings, wanted, catalog, index)
        served = _ServedTarget(target, options)
        served.refresh()
        report = _sync(target, options, between_batches=served.refresh)
    return replace(report, kept_fresh=served.report)


@dataclass(frozen=True, slots=True)
class _Options:
    base: Path
    progress: Callable[[str], None]
    batch_chunks: int
    approve_deletions: int


@dataclass(frozen=True, slots=True)
class _Target:
    """One source in one collection."""

    use_case: str
    settings: SourceSettings
    pipeline: Pipeline
    catalog: sa.Engine
    index: VectorIndex

    @property
    def collection(self) -> str:
        return self.pipeline.collection

    @property
    def source(self) -> str:
        return self.settings.name


class _ServedTarget:
    """The collection that answers while another one is built; without one, nothing."""

    def __init__(self, wanted: _Target, options: _Options) -> None:
        self.report: SyncReport | None = None
        self._options = options
        self._target: _Target | None = None
        self._refreshed = -_FRESH_SECONDS
        name = served_collection(wanted.use_case, wanted.catalog)
        if name is None or name == wanted.collection or not wanted.index.exists(name):
            return
        try:
            self._target = replace(wanted, pipeline=held_pipeline(wanted.catalog, name, to_write=True))
        except ConfigError as error:
            options.progress(f"{wanted.source}: {name} answers as it is until {wanted.collection} is served: {error}")

    def refresh(self) -> None:
        """Unless that was done a moment ago."""
        if self._target is not None and time.monotonic() - self._refreshed > _FRESH_SECONDS:
            self._options.progress(f"{self._target.source}: first {self._target.collection}, which still answers")
            self.report = _sync(self._target, self._options)
            self._refreshed = time.monotonic()


def _sync(target: _Target, options: _Options, between_batches: Callable[[], None] = lambda: None) -> SyncReport:
    clock = _Clock()
    source = open_source(target.settings, base=options.base)
    try:
        with clock.phase("list"):
            _prepare(target)
            mark_differences(target.collection, target.source, target.catalog, target.index)
            held = held_documents(target.collection, target.source, target.catalog)
            synced_at, state = _last_sync(target)
            listing = source.list(_known(held, state))
            listed = _remembered(target, listing.documents)
        plan = plan_sync(listed, held, listing.removed)
        options.progress(
            f"{target.source}: {len(listed)} documents listed, {len(plan.read)} to read, {len(plan.delete)} gone, "
            f"{plan.unchanged} unchanged"
        )
        with _Run(target, source, held, plan, clock, synced_at).opened_once() as run:
            run.apply(options.batch_chunks, options.progress, between_batches)
            # A listing of changes says nothing of the documents that it does not name.
            there = len(listed) if listing.removed is None else max(len(listed), len(held) - len(plan.delete))
            withheld, reason = run.end(there, listing.partial, options.approve_deletions)
    finally:
        source.close()
    report = run.report(len(listed) if listing.removed is None else len(held), withheld, reason)
    _record_sync(target, listing, report)
    return report


@dataclass(slots=True)
class _Clock:
    started: float = field(default_factory=time.perf_counter)
    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("list", "parse", "embed", "write"), 0.0))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] += time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A document that was read, with its chunks; none where its text is indexed already."""

    document: Document
    facts: Mapping[str, Any]
    content_hash: str
    chunks: Sequence[Chunk]
    unchanged: bool


_Read = _Wanted | tuple[Listed, str]
"""A document, or why it cannot be had."""


class _Run:
    """One application of a plan."""

    def __init__(
        self,
        target: _Target,
        source: Source,
        held: Mapping[str, Held],
        plan: SyncPlan,
        clock: _Clock,
        synced_at: datetime | None,
    ) -> None:
        self._target = target
        self._source = source
        self._held = held
        self._plan = plan
        self._clock = clock
        self._synced_at = synced_at
        self._counts: Counter[str] = Counter()
        self._failures: list[tuple[Listed, str]] = []
        self._changed: list[tuple[datetime | None, datetime]] = []
        self._moved: list[str] = []
        self._deleted = 0
        self._gone: dict[str, list[str]] = defaultdict(list)
        for document_id in plan.delete:
            if held[document_id].content_hash:
                self._gone[held[document_id].content_hash].append(document_id)
        self._recent: Mapping[str, Vectors] = {}  # of the batch that is being written
        self._spare: dict[str, Vectors] = {}  # of texts that were taken out: a later batch may have them elsewhere
        self._writing: Future[None] | None = None
        self._last: tuple[Sequence[_Wanted], Mapping[str, Vectors]] = ([], {})  # written with the deletions
        self._tidy = False
        self._kept_open = ExitStack()
        self._keep_open = False
        self._points: IndexCollection | None = None
        self._reusable = _same_embedder(target)

    @contextmanager
    def opened_once(self) -> Iterator[_Run]:
        """While this holds, a run of one small batch opens the collection once and keeps it until its end."""
        with ExitStack() as self._kept_open:
            yield self

    @contextmanager
    def _open(self) -> Iterator[IndexCollection]:
        """The collection; readers of the embedded engine wait meanwhile, so hold it briefly."""
        if not self._keep_open:
            with self._target.index.open(self._target.collection) as points:
                yield points
            return
        yield self._opened()

    def _opened(self) -> IndexCollection:
        if self._points is None:
            self._points = self._kept_open.enter_context(self._target.index.open(self._target.collection))
        return self._points

    def apply(self, batch_chunks: int, progress: Callable[[str], None], between_batches: Callable[[], None]) -> None:
        """Read, embed and write what changed; unreadable documents hold nothing up."""
        if not self._plan.read:
            return
        batch: list[_Wanted] = []
        touched: list[_Wanted] = []
        first = _SMALL_BATCH if len(self._plan.read) <= _FEW else _FIRST_BATCH
        size, full, done, started = 0, min(first, batch_chunks), 0, time.monotonic()

        with (
            ThreadPoolExecutor(1, "write") as writer,
            _ahead(self._read(), batch_chunks) as documents,
        ):

            def submit(write: Callable[[Sequence[_Wanted]], None], documents: Sequence[_Wanted]) -> None:
                self._wait()  # never more than one batch waiting
                self._writing = writer.submit(write, documents)

            for wanted in documents:
                done += 1
                if not isinstance(wanted, _Wanted):
                    self._failures.append(wanted)
                elif wanted.unchanged:
                    touched.append(replace(wanted, document=replace(wanted.document, sections=())))
                    if len(touched) >= SQL_VALUES:
                        submit(self._refresh, touched)
                        touched = []
                else:
                    self._count(wanted)
                    batch.append(wanted)
                    size += len(wanted.chunks) or 1
                if size >= full:
                    vectors = self._embed(batch)
                    submit(partial(self._write, vectors), batch)
                    rate = self._counts["written"] / max(time.monotonic() - started, 1e-6)
                    progress(
                        f"{self._target.source}: {done} of {len(self._plan.read)} documents read, "
                        f"{self._counts['written']} chunks, {self._counts['embedded']} embedded, {rate:.0f} a second"
                    )
                    batch, size, full = [], 0, min(full * 2, batch_chunks)
                    between_batches()
            # Every opening of the embedded engine takes its time, which is most of what a small sync takes.
            self._keep_open = self._writing is None and size <= _SMALL_BATCH
            self._last = batch, self._embed(batch) if batch else {}
            self._wait()
            if touched:
                self._refresh(touched)
        self._record_failures()

    def _wait(self) -> None:
        """Until the batch before is written; its error is raised here."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def end(self, there: int, partial_reason: str | None, approved: int) -> tuple[tuple[str, ...], str | None]:
        """Write the last batch, take out what the source no longer has, or may go unasked; what stays, and why."""
        with_text = [each for each in self._plan.delete if self._is_whole(each)]
        moved = (
            renamed({each: self._held[each].content_hash for each in with_text}, self._new()) if with_text else set()
        )
        held = sum(bool(document.content_hash) for document in self._held.values())
        reason = why_withheld(
            self._target.settings,
            listed=there,
            held=held,
            deletions=sum(each not in moved for each in with_text),
            partial=partial_reason,
            approved=approved,
        )
        withheld = () if reason is None else tuple(each for each in with_text if each not in moved)
        going = sorted(set(self._plan.delete) - set(withheld))
        batch, vectors = self._last
        if batch or going:
            self._write(vectors, batch, going, last=True)
        self._deleted = len(going) - len(self._moved)
        if self._tidy:  # the engine, after what was written
            with self._clock.phase("write"), self._open() as points:
                points.optimise()
        return withheld, reason

    def _new(self) -> dict[str, str]:
        """Content hash by id of the documents of this sync, and of one before it that was not completed."""
        if self._synced_at is None:
            return {}
        target, table = self._target, schema.documents.c
        query = sa.select(table.document_id, table.content_hash).where(
            table.collection == target.collection,
            table.source == target.source,
            table.state == "indexed",
            table.indexed_at >= self._synced_at,
        )
        gone = set(self._plan.delete)
        with target.catalog.connect() as connection:
            written = {row[0]: row[1] for row in connection.execute(query) if row[0] not in gone}
        return written | {each.document.document_id: each.content_hash for each in self._last[0]}

    def report(self, documents: int, withheld: tuple[str, ...], reason: str | None) -> SyncReport:
        target = self._target
        return SyncReport(
            collection=target.collection,
            documents=documents,
            added=self._counts["added"],
            changed=self._counts["changed"],
            moved=len(self._moved),
            deleted=self._deleted,
            unchanged=self._plan.unchanged + self._counts["unchanged"],
            failures=tuple((listed.document_id, error) for listed, error in self._failures),
            withheld=withheld,
            withheld_reason=reason,
            chunks=chunk_count(target.collection, target.catalog, target.source),
            embedded=self._counts["embedded"],
            reused=self._counts["written"] - self._counts["embedded"],
            points_deleted=self._counts["points_deleted"],
            lag=lag(self._changed),
            seconds=time.perf_counter() - self._clock.started,
            seconds_by_phase=dict(self._clock.phases),
        )

    # --- read

    def _read(self) -> Iterator[_Read]:
        """Each document of the plan, cut into chunks, or why it cannot be had; runs in a thread of its own."""
        documents = self._source.read_all(self._plan.read)
        while True:
            with self._clock.phase("parse"):
                found = next(documents, None)
                if found is None:
                    return
                listed, document = found
                wanted: _Read
                try:
                    wanted = (listed, str(document)) if isinstance(document, DocumentError) else self._wanted(document)
                except DocumentError as error:
                    wanted = (listed, str(error))
            yield wanted

    def _wanted(self, document: Document) -> _Wanted:
        pipeline = self._target.pipeline
        facts = document_facts(document, self._target.settings, pipeline.retrieval)
        content_hash = document.content_hash
        held = self._held.get(document.document_id)
        if held is not None and held.state != "writing" and held.content_hash == content_hash:
            return _Wanted(document, facts, content_hash, (), unchanged=True)
        chunks = chunk_document(document, pipeline.embedder.counter, chunk_tokens=pipeline.retrieval.chunk_tokens)
        return _Wanted(document, facts, content_hash, chunks, unchanged=False)

    def _is_whole(self, document_id: str) -> bool:
        held = self._held[document_id]
        return bool(held.content_hash) and held.state != "writing"

    def _count(self, wanted: _Wanted) -> None:
        held = self._held.get(wanted.document.document_id)
        gone = self._gone.get(wanted.content_hash)
        if held is not None and held.content_hash:
            self._counts["changed"] += 1
        elif gone:
            self._moved.append(gone.pop())
        else:
            self._counts["added"] += 1

    # --- embed

    def _embed(self, batch: Sequence[_Wanted]) -> dict[str, Vectors]:
        """The vector of every text in the batch, by its hash."""
        texts = {chunk.text_hash: chunk.text for wanted in batch for chunk in wanted.chunks}
        new: dict[str, Vectors] = {}
        if self._keep_open:
            with ThreadPoolExecutor(1, "open") as opener:  # which takes a while too, and is needed in any case
                opening = opener.submit(self._opened)
                new = self._encode({digest: texts[digest] for digest in self._nowhere(batch, texts)})
                opening.result()
        vectors = new | self._known_vectors(batch, texts.keys() - new.keys())
        vectors |= self._encode({digest: text for digest, text in texts.items() if digest not in vectors})
        self._recent = vectors
        self._counts["written"] += sum(len(wanted.chunks) for wanted in batch)
        return vectors

    def _encode(self, texts: Mapping[str, str]) -> dict[str, Vectors]:
        if not texts:
            return {}
        with self._clock.phase("embed"):
            vectors = self._target.pipeline.embedder.encode(list(texts.values()))
        self._counts["embedded"] += len(texts)
        return dict(zip(texts, vectors, strict=True))

    def _nowhere(self, batch: Sequence[_Wanted], hashes: Collection[str]) -> list[str]:
        """Texts that no collection can have: the catalog knows none, nor did a crash leave half of their document."""
        known: set[str] = set()
        for collection in self._reusable:
            known.update(chunks_by_text(collection, sorted(hashes), self._target.catalog).values())
        for wanted in batch:
            if self._is_half(wanted.document.document_id):
                known.update(chunk.text_hash for chunk in wanted.chunks)
        return [digest for digest in hashes if digest not in known]

    def _known_vectors(self, batch: Sequence[_Wanted], hashes: Collection[str]) -> dict[str, Vectors]:
        """Of the same text in this collection, in another one of the same embedder, or just taken out or embedded."""
        target = self._target
        recent, spare = self._recent, self._spare
        known = {digest: recent[digest] for digest in hashes if digest in recent}
        known |= {digest: vector for digest in hashes if (vector := spare.get(digest)) is not None}
        # An id is made of its text, so a point that a crash left is as good as one that the catalog knows.
        rewritten = [wanted for wanted in batch if wanted.document.document_id in self._held]
        of_ids = {chunk.chunk_id: chunk.text_hash for wanted in rewritten for chunk in wanted.chunks}
        for collection in self._reusable:
            missing = sorted(digest for digest in hashes if digest not in known)
            found = chunks_by_text(collection, missing, target.catalog) if missing else {}
            found |= of_ids if collection == target.collection else {}
            if not found:
                continue
            with self._open() if collection == target.collection else target.index.open(collection) as points:
                stored = points.vectors(list(found))
            known |= {found[chunk_id]: vector for chunk_id, vector in stored.items()}
        if self._held and len(known) < len(hashes):  # the batch that is being written may be taking it out
            self._wait()
            known |= {digest: spare[digest] for digest in hashes if digest in spare}
        return known

    # --- write: in the writer's thread, or when it has ended

    def _write(
        self,
        vectors: Mapping[str, Vectors],
        batch: Sequence[_Wanted],
        going: Sequence[str] = (),
        *,
        last: bool = False,
    ) -> None:
        """Mark, upsert, delete what is old or ``going``, flush, commit: in this order."""
        target = self._target
        with self._clock.phase("write"):
            self._mark(batch, going)
            indexed_at = schema.now()
            points = [
                Point(
                    chunk.chunk_id,
                    vectors[chunk.text_hash],
                    point_payload(wanted.document, wanted.facts, wanted.content_hash, chunk, indexed_at),
                )
                for wanted in batch
                for chunk in wanted.chunks
            ]
            keep = {point.point_id for point in points}
            rewritten = [each.document.document_id for each in batch if each.document.document_id in self._held]
            old = chunk_texts(target.collection, target.source, rewritten, target.catalog)
            stale = {chunk_id: digest for chunk_id, digest in old.items() if chunk_id not in keep}
            with self._open() as collection:
                if points:
                    collection.upsert(points)
                self._keep_vectors({stale[each]: vector for each, vector in collection.vectors(list(stale)).items()})
                if rewritten:
                    self._counts["points_deleted"] += collection.delete(target.source, rewritten, keep=keep)
                for page in pages(going):
                    self._counts["points_deleted"] += collection.delete(target.source, page)
                collection.flush()
                self._tidy = not last
                if last:
                    collection.optimise()
            self._commit(batch, indexed_at, going)

    def _keep_vectors(self, vectors: Mapping[str, Vectors]) -> None:
        self._spare |= vectors
        for digest in list(self._spare)[: max(0, len(self._spare) - _SPARE)]:
            del self._spare[digest]

    def _mark(self, batch: Sequence[_Wanted], going: Sequence[str]) -> None:
        unknown = [wanted for wanted in batch if wanted.document.document_id not in self._held]
        new = [self._row(wanted, "writing", None) | {"content_hash": ""} for wanted in unknown]
        known = [wanted.document.document_id for wanted in batch if wanted.document.document_id in self._held]
        with self._target.catalog.begin() as connection:
            mark_rows(connection, self._target.collection, self._target.source, [*known, *going])
            if new:
                connection.execute(sa.insert(schema.documents), new)

    def _commit(self, batch: Sequence[_Wanted], indexed_at: datetime, going: Sequence[str]) -> None:
        ids = [wanted.document.document_id for wanted in batch]
        rows = [
            {
                "collection": self._target.collection,
                "chunk_id": chunk.chunk_id,
                "source": self._target.source,
                "document_id": wanted.document.document_id,
                "text_hash": chunk.text_hash,
            }
            for wanted in batch
            for chunk in wanted.chunks
        ]
        with self._target.catalog.begin() as connection:
            forget_rows(connection, self._target.collection, self._target.source, [*ids, *going])
            if batch:
                rows_of_documents = [self._row(each, "indexed", indexed_at) for each in batch]
                connection.execute(sa.insert(schema.documents), rows_of_documents)
            if rows:
                connection.execute(sa.insert(schema.chunks), rows)
            touch(connection, self._target.collection)
        if self._synced_at is not None:
            self._changed += [(wanted.document.updated_at, indexed_at) for wanted in batch]

    def _row(self, wanted: _Wanted, state: State, indexed_at: datetime | None) -> dict[str, Any]:
        document = wanted.document
        return {
            "collection": self._target.collection,
            "source": self._target.source,
            "document_id": document.document_id,
            "state": state,
            "uri": document.uri,
            "title": document.title,
            "version": document.version,
            "content_hash": wanted.content_hash,
            "chunks": len(wanted.chunks),
            "updated_at": document.updated_at,
            "indexed_at": indexed_at,
            "error": None,
            "attempts": 0,
        }

    def _refresh(self, touched: Sequence[_Wanted]) -> None:
        """Same text, other version, place, time or metadata: hits tell the new ones; next time it is not read again."""
        target = self._target
        with self._clock.phase("write"):
            with self._open() as collection:
                for each in touched:
                    collection.set_payload(target.source, each.document.document_id, each.facts)
                collection.flush()
            kept = ("state", "uri", "title", "version", "updated_at", "error", "attempts")
            with target.catalog.begin() as connection:
                for each in touched:
                    row = self._row(each, "indexed", None)
                    rows = which(schema.documents, target.collection, target.source, [each.document.document_id])
                    update = sa.update(schema.documents).where(*rows)
                    connection.execute(update.values({name: row[name] for name in kept}))
                touch(connection, target.collection)
        self._counts["unchanged"] += len(touched)

    def _record_failures(self) -> None:
        """What cannot be read keeps its text, unless a crash left half of it."""
        if not self._failures:
            return
        target, table = self._target, schema.documents
        halves = [each.document_id for each, _ in self._failures if self._is_half(each.document_id)]
        with self._clock.phase("write"):
            if halves:
                self._take_out(halves)
            with target.catalog.begin() as connection:
                for listed, error in self._failures:
                    rows = which(table, target.collection, target.source, [listed.document_id])
                    failed = {"state": "failed", "error": error, "attempts": table.c.attempts + 1}
                    if not connection.execute(sa.update(table).where(*rows).values(failed)).rowcount:
                        connection.execute(
                            sa.insert(table).values(
                                collection=target.collection,
                                source=target.source,
                                document_id=listed.document_id,
                                state="failed",
                                uri=listed.uri,
                                title="",
                                version=listed.version,
                                content_hash="",
                                chunks=0,
                                error=error,
                                attempts=1,
                            )
                        )

    def _is_half(self, document_id: str) -> bool:
        return document_id in self._held and self._held[document_id].state == "writing"

    def _take_out(self, document_ids: Sequence[str]) -> None:
        target = self._target
        with self._open() as collection:
            for page in pages(document_ids):
                self._counts["points_deleted"] += collection.delete(target.source, page)
            collection.flush()
            collection.optimise()
            self._tidy = False
        with target.catalog.begin() as connection:
            forget_rows(connection, target.collection, target.source, document_ids)
            touch(connection, target.collection)


def _prepare(target: _Target) -> None:
    """Catalog and index both have the collection; what the catalog says of a lost one is forgotten."""
    collection, pipeline, catalog = target.collection, target.pipeline, target.catalog
    table = schema.collections
    known = sa.select(table.c.collection).where(table.c.collection == collection, table.c.retired_at.is_(None))
    with catalog.connect() as connection:
        if connection.scalar(known) is not None and target.index.exists(collection):
            return
    with schema.exclusive(catalog, f"the creation of {collection}", seconds=60.0):
        if not target.index.exists(collection):
            with catalog.begin() as connection:
                forget_collection(connection, collection)
            retrieval = pipeline.retrieval
            target.index.create(collection, Schema(pipeline.embedder.dimension, retrieval.metadata, retrieval.language))
        row = {
            "collection": collection,
            "use_case": target.use_case,
            "pipeline": dict(pipeline.facts),
            "retrieval": pipeline.retrieval.model_dump(mode="json"),
            "created_at": schema.now(),
        }
        with catalog.begin() as connection:
            connection.execute(schema.insert_or_ignore(catalog, table).values(**row))
            connection.execute(sa.update(table).where(table.c.collection == collection).values(retired_at=None))


def _same_embedder(target: _Target) -> list[str]:
    """Collections whose vectors fit, this one first: those of the use case that the same embedder made."""
    table = schema.collections.c
    query = sa.select(table.collection, table.pipeline).where(table.use_case == target.use_case)
    identity = dict(target.pipeline.embedder.identity)
    with target.catalog.connect() as connection:
        fitting = [row.collection for row in connection.execute(query) if row.pipeline["embedder"] == identity]
    others = [each for each in fitting if each != target.collection and target.index.exists(each)]
    return [target.collection, *others]


def _last_sync(target: _Target) -> tuple[datetime | None, Mapping[str, Any]]:
    table = schema.source_syncs.c
    query = sa.select(table.synced_at, table.state).where(
        table.collection == target.collection, table.source == target.source
    )
    with target.catalog.connect() as connection:
        row = connection.execute(query).one_or_none()
    return (None, {}) if row is None else (row.synced_at, row.state or {})


def _known(held: Mapping[str, Held], state: Mapping[str, Any]) -> Known:
    versions = {document_id: each.version for document_id, each in held.items() if each.state == "indexed"}
    return Known(versions, frozenset(held.keys() - versions.keys()), state)


def _remembered(target: _Target, listed: Sequence[Listed]) -> Sequence[Listed]:
    """Without those that were erased for good."""
    erased = forgotten_documents(target.use_case, target.source, target.catalog)
    return [each for each in listed if text_hash(each.document_id) not in erased] if erased else listed


def _record_sync(target: _Target, listing: Listing, report: SyncReport) -> None:
    key = {"collection": target.collection, "source": target.source}
    syncs, withheld, now = schema.source_syncs, schema.withheld_deletions, schema.now()
    with target.catalog.begin() as connection:
        connection.execute(sa.delete(syncs).filter_by(**key))
        connection.execute(sa.insert(syncs).values(**key, synced_at=now, state=dict(listing.state)))
        rows = connection.execute(sa.select(withheld.c.document_id, withheld.c.since).filter_by(**key))
        if since := {row.document_id: row.since for row in rows}:
            connection.execute(sa.delete(withheld).filter_by(**key))
        if report.withheld:
            new = [(each, since.get(each, now)) for each in report.withheld]
            reason = {"reason": report.withheld_reason}
            connection.execute(
                sa.insert(withheld), [{**key, **reason, "document_id": each, "since": when} for each, when in new]
            )
        if report.lag is not None:
            of = {"use_case": target.use_case, "source": target.source, "synced_at": now}
            connection.execute(sa.insert(schema.sync_lags).values(**of, **asdict(report.lag)))


def _weight(read: _Read) -> int:
    return len(read.chunks) or 1 if isinstance(read, _Wanted) else 1


@contextmanager
def _ahead(items: Iterator[_Read], most: int) -> Iterator[Iterator[_Read]]:
    """``items``, made in a thread of their own, at most so many chunks (and one document) before they are taken."""
    ready: deque[_Read] = deque()
    changed = threading.Condition()
    held, ended, stopped = 0, False, False
    failure: BaseException | None = None

    def has_room() -> bool:
        return stopped or held < most

    def make() -> None:
        nonlocal held, ended, failure
        try:
            for item in items:
                with changed:
                    changed.wait_for(has_room)
                    if stopped:
                        return
                    ready.append(item)
                    held += _weight(item)
                    changed.notify_all()
        except BaseException as error:  # noqa: BLE001 raised again in the thread that takes
            failure = error
        finally:
            with changed:
                ended = True
                changed.notify_all()

    def take() -> Iterator[_Read]:
        nonlocal held
        while True:
            with changed:
                changed.wait_for(lambda: ready or ended)
                if not ready:
                    break
                item = ready.popleft()
                held -= _weight(item)
                changed.notify_all()
            yield item
        if failure is not None:
            raise failure

    thread = threading.Thread(target=make, name="read", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        with changed:
            stopped = True
            changed.notify_all()
        thread.join()
