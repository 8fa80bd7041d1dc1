"""Holds the index in sync with its sources: plan the difference, apply it, commit; then audit and serve.

Applying is safe to interrupt anywhere. A batch of documents is marked ``writing`` in the catalog, its points are
upserted, its old points deleted, the index flushed, and only then the catalog says ``indexed``. What a crash leaves in
``writing`` is written again by the next sync, or removed when its source no longer has it.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from pipelines import catalog as schema
from pipelines.corpus.chunking import CHUNKER_VERSION, chunk_document
from pipelines.corpus.documents import Chunk, Document
from pipelines.corpus.embedding import Embedder, open_embedder
from pipelines.corpus.index import PAYLOAD_VERSION, Point, VectorIndex
from pipelines.corpus.parsing import PARSER_VERSION
from pipelines.corpus.settings import RetrievalSettings, SourceSettings
from pipelines.corpus.sources import open_source
from pipelines.corpus.sources.base import Listed, Source
from pipelines.errors import ArtifactError, ConfigError, DocumentError, NotBuiltError, SourceError
from pipelines.fingerprint import fingerprint

if TYPE_CHECKING:
    from pipelines.corpus.embedding import Vectors

State = Literal["writing", "indexed", "failed"]

_SQL_VALUES = 500  # bound parameters per statement, below every database's limit
_SHOWN = 5


# --- the pipeline: what a collection was made with


def pipeline_of(embedder: Embedder, retrieval: RetrievalSettings) -> dict[str, Any]:
    """Everything that decides what a collection holds for given documents."""
    return {
        "embedder": dict(embedder.identity),
        "chunker": {"version": CHUNKER_VERSION, "chunk_tokens": retrieval.chunk_tokens},
        "parser": PARSER_VERSION,
        "payload": PAYLOAD_VERSION,
    }


def collection_name(use_case: str, pipeline: Mapping[str, Any]) -> str:
    """Name of the physical collection: another pipeline, another collection."""
    return f"{use_case}__{fingerprint(pipeline)[:12]}"


def embedder_of(retrieval: RetrievalSettings) -> Embedder:
    """The embedder that ``retrieval`` configures.

    Raises:
        ConfigError: it is not there, or takes fewer tokens than a chunk may have.
    """
    embedder = open_embedder(retrieval.embedder, retrieval.embedder_revision)
    if retrieval.chunk_tokens > embedder.max_tokens:
        raise ConfigError(
            f"chunk_tokens {retrieval.chunk_tokens} exceeds the {embedder.max_tokens} tokens that {retrieval.embedder} "
            "takes: what is longer would be cut off unseen"
        )
    return embedder


# --- plan


@dataclass(frozen=True, slots=True)
class Held:
    """A document as the catalog has it."""

    state: State
    version: str
    uri: str
    content_hash: str
    """Of the text that is indexed; empty where none is."""
    title: str = ""
    chunks: int = 0
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What a sync has to look at."""

    read: tuple[Listed, ...]
    """New, possibly changed, half written by a crash, or unreadable last time."""
    delete: tuple[str, ...]
    """Ids of documents that the source no longer has."""
    unchanged: tuple[str, ...]
    """Ids whose change token says that nothing happened."""


def plan_sync(wanted: Sequence[Listed], held: Mapping[str, Held]) -> SyncPlan:
    """The difference between what a source lists and what the catalog holds; pure."""
    ids = {listed.document_id for listed in wanted}
    read = tuple(listed for listed in wanted if not _is_current(listed, held.get(listed.document_id)))
    skipped = ids - {listed.document_id for listed in read}
    return SyncPlan(read, tuple(sorted(held.keys() - ids)), tuple(sorted(skipped)))


def _is_current(listed: Listed, held: Held | None) -> bool:
    return (
        held is not None
        and listed.error is None
        and held.state == "indexed"
        and (held.version, held.uri) == (listed.version, listed.uri)
    )


# --- apply


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one sync found and did."""

    collection: str
    documents: int
    """Listed by the source, unreadable ones included."""
    added: int
    changed: int
    moved: int
    """Renamed: a new id with the content of a document that went away; in neither ``added`` nor ``deleted``."""
    deleted: int
    unchanged: int
    """Including those that were touched but say the same."""
    failures: tuple[tuple[str, str], ...]
    """(document id, error) of each that could not be read; retried by the next sync."""
    chunks: int
    """Of this source, in the index, after the sync."""
    embedded: int
    """Texts that went through the model."""
    reused: int
    """Chunks written with a vector that was there already."""
    points_deleted: int
    seconds: float
    seconds_by_phase: Mapping[str, float]
    """list, parse (reading and chunking), embed, write (index and catalog)."""


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
    batch_chunks: int = 1024,
) -> SyncReport:
    """Bring the index up to what the source has now.

    A document that cannot be read keeps the text that is indexed, which was right once, is marked ``failed``, reported
    and read again next time. Only one that a crash left half written is taken out until it can be read.

    Args:
        source_settings: the source.
        use_case: prefix of the collection's name.
        base: where relative urls start.
        retrieval: embedder and chunk size, which with the code's versions name the collection.
        catalog: what is indexed.
        index: where it is indexed.
        progress: takes lines for people.
        embedder: instead of the one that ``retrieval`` names.
        batch_chunks: chunks that are embedded, written and committed together.

    Raises:
        ConfigError: the settings ask for something impossible.
        SourceError: the source cannot be right; listing nothing while documents are held is such a case.
        SourceUnavailableError: the source cannot be read now.
        LockedError: another process holds the embedded index.
    """
    embedder = embedder or embedder_of(retrieval)
    pipeline = pipeline_of(embedder, retrieval)
    collection = collection_name(use_case, pipeline)
    clock = _Clock()
    with clock.phase("list"):
        source = open_source(source_settings, base=base)
        listed = source.list().documents
        _prepare(use_case, collection, pipeline, embedder.dimension, catalog, index)
        _mark_differences(collection, source_settings.name, catalog, index)
        held = _held(collection, source_settings.name, catalog)
    if held and not listed and not source_settings.allow_empty:
        raise SourceError(
            f"source {source_settings.name!r} lists no document, while {len(held)} are held: nothing is deleted. If "
            "that is right, set allow_empty: true"
        )
    plan = plan_sync(listed, held)
    progress(
        f"{source_settings.name}: {len(listed)} documents listed, {len(plan.read)} to read, {len(plan.delete)} gone, "
        f"{len(plan.unchanged)} unchanged"
    )
    run = _Run(
        source, source_settings.name, collection, held, plan, embedder, retrieval.chunk_tokens, catalog, index, clock
    )
    run.apply(batch_chunks, progress)
    with clock.phase("write"):
        key = {"collection": collection, "source": source_settings.name}
        with catalog.begin() as connection:
            connection.execute(sa.delete(schema.source_syncs).filter_by(**key))
            connection.execute(sa.insert(schema.source_syncs).values(**key, synced_at=schema.now()))
        chunks = _chunks_held(collection, source_settings.name, catalog)
    return run.report(len(listed), chunks)


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
    """A document that was read, with its chunks."""

    document: Document
    content_hash: str
    chunks: list[Chunk]


@dataclass(slots=True)
class _Run:
    """One application of a plan."""

    source: Source
    name: str
    collection: str
    held: Mapping[str, Held]
    plan: SyncPlan
    embedder: Embedder
    chunk_tokens: int
    catalog: sa.Engine
    index: VectorIndex
    clock: _Clock
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)
    spare: dict[str, Vectors] = field(default_factory=dict)
    """Vectors of texts that this run took out, by text hash: a later batch may have them elsewhere."""

    def apply(self, batch_chunks: int, progress: Callable[[str], None]) -> None:
        gone = Counter(self.held[each].content_hash for each in self.plan.delete if self.held[each].content_hash)
        batch: list[_Wanted] = []
        touched: list[_Wanted] = []
        done = 0
        for listed in self.plan.read:
            done += 1
            wanted = self._read(listed)
            if wanted is None:
                continue
            held = self.held.get(listed.document_id)
            if held is not None and held.state != "writing" and held.content_hash == wanted.content_hash:
                self.counts["unchanged"] += 1
                touched.append(wanted)
                if len(touched) >= _SQL_VALUES:
                    self._refresh(touched)
                    touched = []
            else:
                if held is not None and held.content_hash:
                    self.counts["changed"] += 1
                elif gone[wanted.content_hash] > 0:
                    gone[wanted.content_hash] -= 1
                    self.counts["moved"] += 1
                else:
                    self.counts["added"] += 1
                batch.append(wanted)
            if sum(len(each.chunks) or 1 for each in batch) >= batch_chunks:
                self._write(batch)
                progress(f"{self.name}: {done} of {len(self.plan.read)} read, {self.counts['written']} chunks written")
                batch = []
        if batch:
            self._write(batch)
        self._refresh(touched)
        self._delete()
        if self.counts["written"] or self.counts["points_deleted"]:
            with self.clock.phase("write"), self.index.open(self.collection) as points:
                points.optimise()

    def report(self, documents: int, chunks: int) -> SyncReport:
        return SyncReport(
            collection=self.collection,
            documents=documents,
            added=self.counts["added"],
            changed=self.counts["changed"],
            moved=self.counts["moved"],
            deleted=len(self.plan.delete) - self.counts["moved"],
            unchanged=len(self.plan.unchanged) + self.counts["unchanged"],
            failures=tuple(self.failures),
            chunks=chunks,
            embedded=self.counts["embedded"],
            reused=self.counts["written"] - self.counts["embedded"],
            points_deleted=self.counts["points_deleted"],
            seconds=time.perf_counter() - self.clock.started,
            seconds_by_phase=dict(self.clock.phases),
        )

    def _read(self, listed: Listed) -> _Wanted | None:
        try:
            with self.clock.phase("parse"):
                document = self.source.read(listed)
                content_hash = document.content_hash
                held = self.held.get(listed.document_id)
                if held is not None and held.state != "writing" and held.content_hash == content_hash:
                    return _Wanted(document, content_hash, [])
                chunks = chunk_document(document, self.embedder.counter, chunk_tokens=self.chunk_tokens)
                return _Wanted(document, content_hash, chunks)
        except DocumentError as error:
            with self.clock.phase("write"):
                self._fail(listed, str(error))
            self.failures.append((listed.document_id, str(error)))
            return None

    def _fail(self, listed: Listed, error: str) -> None:
        held = self.held.get(listed.document_id)
        if held is not None and held.state == "writing":  # half of it is there, and the other half cannot be had
            self._take_out([listed.document_id])
            held = None
        row = {
            "state": "failed",
            "uri": listed.uri if held is None else held.uri,
            "title": "" if held is None else held.title,
            "version": listed.version if held is None else held.version,
            "content_hash": "" if held is None else held.content_hash,
            "chunks": 0 if held is None else held.chunks,
            "error": error,
            "attempts": 1 if held is None else held.attempts + 1,
        }
        kept = sa.update(schema.documents).where(*self._which([listed.document_id])).values(**row)
        with self.catalog.begin() as connection:
            if not connection.execute(kept).rowcount:
                key = {"collection": self.collection, "source": self.name, "document_id": listed.document_id}
                connection.execute(sa.insert(schema.documents).values(**key, **row))

    def _write(self, batch: Sequence[_Wanted]) -> None:
        """Mark, upsert, delete what is old, flush, commit: in this order."""
        chunks = [chunk for wanted in batch for chunk in wanted.chunks]
        ids = [wanted.document.document_id for wanted in batch]
        with self.clock.phase("write"):
            self._mark(batch)
            vectors = self._known_vectors(chunks)
        unknown = {chunk.text_hash: chunk.text for chunk in chunks if chunk.text_hash not in vectors}
        with self.clock.phase("embed"):
            fresh = self.embedder.encode(list(unknown.values()))
            vectors |= dict(zip(unknown, fresh, strict=True))
        indexed_at = schema.now()
        points = [
            Point(chunk.chunk_id, vectors[chunk.text_hash], _payload(wanted, chunk, indexed_at))
            for wanted in batch
            for chunk in wanted.chunks
        ]
        with self.clock.phase("write"):
            old = self._chunk_rows(ids)
            keep = {chunk.chunk_id for chunk in chunks}
            stale = {chunk_id: digest for chunk_id, digest in old.items() if chunk_id not in keep}
            with self.index.open(self.collection) as collection:
                collection.upsert(points)
                for chunk_id, vector in collection.vectors(list(stale)).items():
                    self.spare[stale[chunk_id]] = vector
                self.counts["points_deleted"] += collection.delete(self.name, ids, keep=keep)
                collection.flush()
            self._commit(batch, indexed_at)
        self.counts["embedded"] += len(unknown)
        self.counts["written"] += len(points)

    def _mark(self, batch: Sequence[_Wanted]) -> None:
        unknown = [wanted for wanted in batch if wanted.document.document_id not in self.held]
        new = [self._row(wanted, "writing", None) | {"content_hash": ""} for wanted in unknown]
        with self.catalog.begin() as connection:
            for which in self._pages([wanted.document.document_id for wanted in batch]):
                connection.execute(sa.update(schema.documents).where(*which).values(state="writing"))
            if new:
                connection.execute(sa.insert(schema.documents), new)

    def _commit(self, batch: Sequence[_Wanted], indexed_at: datetime) -> None:
        ids = [wanted.document.document_id for wanted in batch]
        rows = [
            {
                "collection": self.collection,
                "chunk_id": chunk.chunk_id,
                "source": self.name,
                "document_id": wanted.document.document_id,
                "text_hash": chunk.text_hash,
            }
            for wanted in batch
            for chunk in wanted.chunks
        ]
        with self.catalog.begin() as connection:
            _forget(connection, self.collection, self.name, ids)
            connection.execute(sa.insert(schema.documents), [self._row(each, "indexed", indexed_at) for each in batch])
            if rows:
                connection.execute(sa.insert(schema.chunks), rows)

    def _row(self, wanted: _Wanted, state: State, indexed_at: datetime | None) -> dict[str, Any]:
        document = wanted.document
        return {
            "collection": self.collection,
            "source": self.name,
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
        """Same text, other version, place or time: hits tell the new one, and next time it is not read again."""
        if not touched:
            return
        with self.clock.phase("write"):
            with self.index.open(self.collection) as collection:
                for each in touched:
                    document = each.document
                    facts = {
                        "version": document.version,
                        "uri": document.uri,
                        "title": document.title,
                        "updated_at": None if document.updated_at is None else document.updated_at.isoformat(),
                    }
                    collection.set_payload(self.name, document.document_id, facts)
                collection.flush()
            with self.catalog.begin() as connection:
                for each in touched:
                    row = self._row(each, "indexed", None)
                    changed = {
                        name: row[name]
                        for name in ("state", "uri", "title", "version", "updated_at", "error", "attempts")
                    }
                    which = self._which([each.document.document_id])
                    connection.execute(sa.update(schema.documents).where(*which).values(**changed))

    def _delete(self) -> None:
        """Documents that the source no longer has."""
        if not self.plan.delete:
            return
        with self.clock.phase("write"):
            with self.catalog.begin() as connection:
                for which in self._pages(self.plan.delete):
                    connection.execute(sa.update(schema.documents).where(*which).values(state="writing"))
            self._take_out(self.plan.delete)

    def _take_out(self, document_ids: Sequence[str]) -> None:
        with self.index.open(self.collection) as collection:
            for page in _pages(document_ids):
                self.counts["points_deleted"] += collection.delete(self.name, page)
            collection.flush()
        with self.catalog.begin() as connection:
            _forget(connection, self.collection, self.name, document_ids)

    def _known_vectors(self, chunks: Sequence[Chunk]) -> dict[str, Vectors]:
        """Vectors by text hash: of the same chunk, of the same text elsewhere, or of one just taken out."""
        hashes = {chunk.text_hash for chunk in chunks}
        of_ids = {chunk.chunk_id: chunk.text_hash for chunk in chunks}  # an id is made of its text
        table = schema.chunks.c
        with self.catalog.connect() as connection:
            for page in _pages(sorted(hashes)):
                query = sa.select(table.chunk_id, table.text_hash).where(
                    table.collection == self.collection, table.text_hash.in_(page)
                )
                of_ids |= {row.chunk_id: row.text_hash for row in connection.execute(query)}
        with self.index.open(self.collection) as collection:
            stored = collection.vectors(list(of_ids))
        known = {digest: self.spare[digest] for digest in hashes & self.spare.keys()}
        return known | {of_ids[chunk_id]: vector for chunk_id, vector in stored.items()}

    def _chunk_rows(self, document_ids: Sequence[str]) -> dict[str, str]:
        table, found = schema.chunks.c, {}
        with self.catalog.connect() as connection:
            for page in _pages(document_ids):
                query = sa.select(table.chunk_id, table.text_hash).where(
                    table.collection == self.collection, table.source == self.name, table.document_id.in_(page)
                )
                found.update({row.chunk_id: row.text_hash for row in connection.execute(query)})
        return found

    def _pages(self, document_ids: Sequence[str]) -> Iterator[tuple[sa.ColumnElement[bool], ...]]:
        return (self._which(page) for page in _pages(document_ids))

    def _which(self, document_ids: Sequence[str]) -> tuple[sa.ColumnElement[bool], ...]:
        return _which(schema.documents, self.collection, self.name, document_ids)


def _payload(wanted: _Wanted, chunk: Chunk, indexed_at: datetime) -> dict[str, Any]:
    document = wanted.document
    return {
        "text": chunk.text,
        "title": document.title,
        "headings": list(chunk.headings),
        "uri": document.uri,
        "source": document.source,
        "document_id": document.document_id,
        "version": document.version,
        "content_hash": wanted.content_hash,
        "updated_at": None if document.updated_at is None else document.updated_at.isoformat(),
        "indexed_at": indexed_at.isoformat(),
        "ordinal": chunk.ordinal,
    }


def _prepare(
    use_case: str,
    collection: str,
    pipeline: Mapping[str, Any],
    dimension: int,
    catalog: sa.Engine,
    index: VectorIndex,
) -> None:
    """Catalog and index both have the collection; what the catalog says of a lost one is forgotten."""
    if not index.exists(collection):
        with catalog.begin() as connection:
            for table in (schema.chunks, schema.documents, schema.source_syncs):
                connection.execute(sa.delete(table).where(table.c.collection == collection))
        index.create(collection, dimension)
    row = {"collection": collection, "use_case": use_case, "pipeline": dict(pipeline), "created_at": schema.now()}
    with catalog.begin() as connection:
        connection.execute(schema.insert_or_ignore(catalog, schema.collections).values(**row))


def _mark_differences(collection: str, source: str, catalog: sa.Engine, index: VectorIndex) -> None:
    """Where index and catalog do not even agree on a number, find the documents, so that they are written again."""
    with index.open(collection) as points:
        counted = points.count(source)
    if counted != _chunks_held(collection, source, catalog):
        _, documents = _compare(collection, catalog, index, source=source)
        _mark_writing(collection, documents, catalog)


def _held(collection: str, source: str, catalog: sa.Engine) -> dict[str, Held]:
    table = schema.documents.c
    query = sa.select(
        table.document_id,
        table.state,
        table.version,
        table.uri,
        table.content_hash,
        table.title,
        table.chunks,
        table.attempts,
    ).where(table.collection == collection, table.source == source)
    with catalog.connect() as connection:
        return {row[0]: Held(*row[1:]) for row in connection.execute(query)}


def _chunks_held(collection: str, source: str, catalog: sa.Engine) -> int:
    table = schema.chunks.c
    query = sa.select(sa.func.count()).where(table.collection == collection, table.source == source)
    with catalog.connect() as connection:
        return int(connection.execute(query).scalar_one())


def _which(
    table: sa.Table, collection: str, source: str, document_ids: Sequence[str]
) -> tuple[sa.ColumnElement[bool], ...]:
    return (table.c.collection == collection, table.c.source == source, table.c.document_id.in_(document_ids))


def _forget(connection: sa.Connection, collection: str, source: str, document_ids: Sequence[str]) -> None:
    for table in (schema.chunks, schema.documents):
        for page in _pages(document_ids):
            connection.execute(sa.delete(table).where(*_which(table, collection, source, page)))


def _pages(values: Sequence[str]) -> Iterator[Sequence[str]]:
    return (values[start : start + _SQL_VALUES] for start in range(0, len(values), _SQL_VALUES))


# --- audit and serve


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Index against catalog: how many there are, and the documents, as ``source/id``, where the two differ."""

    documents: int
    points: int
    missing: tuple[str, ...] = ()
    """With chunks of which the index has no point."""
    orphaned: tuple[str, ...] = ()
    """With points that the catalog does not know, or of a source that is not declared."""
    stale: tuple[str, ...] = ()
    """With points of another version of their text."""
    duplicates: tuple[str, ...] = ()
    """With a point that the index returned twice."""
    unfinished: tuple[str, ...] = ()
    """Left half written by a crash."""

    @property
    def clean(self) -> bool:
        """Whether index and catalog agree."""
        return not (self.missing or self.orphaned or self.stale or self.duplicates or self.unfinished)

    def __str__(self) -> str:
        found = [
            f"{len(ids)} {name} ({', '.join(ids[:_SHOWN])}{', …' if len(ids) > _SHOWN else ''})"
            for name, ids in (
                ("missing", self.missing),
                ("orphaned", self.orphaned),
                ("stale", self.stale),
                ("duplicate", self.duplicates),
                ("unfinished", self.unfinished),
            )
            if ids
        ]
        return f"{self.documents} documents, {self.points} points: {'; '.join(found) or 'clean'}"


@dataclass(frozen=True, slots=True)
class ServedIndex:
    """The collection that answers questions from now on."""

    collection: str
    previous: str | None
    """What answered before; it stays where it is."""
    served_at: datetime
    audit: AuditReport
    removed: int
    """Documents of sources that are no longer declared."""


def audit_index(
    *,
    use_case: str,
    retrieval: RetrievalSettings,
    sources: Sequence[str],
    catalog: sa.Engine,
    index: VectorIndex,
    embedder: Embedder | None = None,
) -> AuditReport:
    """Compare every point with the catalog; points of none of ``sources`` are orphaned.

    Raises:
        NotBuiltError: there is no collection for this pipeline.
    """
    collection = collection_name(use_case, pipeline_of(embedder or embedder_of(retrieval), retrieval))
    return _audit(collection, sources, catalog, index)[0]


def serve_index(
    *,
    use_case: str,
    retrieval: RetrievalSettings,
    sources: Sequence[str],
    catalog: sa.Engine,
    index: VectorIndex,
    embedder: Embedder | None = None,
) -> ServedIndex:
    """Let this pipeline's collection answer questions, once it is whole.

    Documents of sources that are no longer declared are removed first. Where the audit finds a difference, the
    documents concerned are marked, so that the next sync of their sources writes them again.

    Raises:
        NotBuiltError: a declared source has no completed sync in this collection.
        ArtifactError: the audit found a difference between index and catalog.
    """
    collection = collection_name(use_case, pipeline_of(embedder or embedder_of(retrieval), retrieval))
    synced = schema.source_syncs.c
    with catalog.connect() as connection:
        done = set(connection.scalars(sa.select(synced.source).where(synced.collection == collection)))
    if unsynced := [name for name in sources if name not in done]:
        raise NotBuiltError(
            f"{use_case}: no completed sync of {', '.join(unsynced)} in collection {collection}: materialise "
            f"{', '.join(f'{use_case}/{name}' for name in unsynced)} first"
        )
    removed = _remove_undeclared(collection, sources, catalog, index)
    audit, documents = _audit(collection, sources, catalog, index)
    if not audit.clean:
        _mark_writing(collection, documents, catalog)
        raise ArtifactError(
            f"collection {collection} differs from the catalog and is not served: {audit}. The documents concerned are "
            "marked: refresh the sources again, and they are written anew"
        )
    table, served_at = schema.served_collections, schema.now()
    with catalog.begin() as connection:
        previous = connection.scalar(sa.select(table.c.collection).where(table.c.use_case == use_case))
        if previous != collection:
            connection.execute(sa.delete(table).where(table.c.use_case == use_case))
            row = {"use_case": use_case, "collection": collection, "served_at": served_at}
            connection.execute(sa.insert(table).values(**row))
        else:
            connection.execute(sa.update(table).where(table.c.use_case == use_case).values(served_at=served_at))
    return ServedIndex(collection, previous, served_at, audit, removed)


def _remove_undeclared(collection: str, sources: Collection[str], catalog: sa.Engine, index: VectorIndex) -> int:
    table, removed = schema.documents.c, 0
    known = sa.select(table.source).where(table.collection == collection).distinct()
    with catalog.connect() as connection:
        undeclared = [name for name in connection.scalars(known) if name not in sources]
    for name in undeclared:
        ids = sorted(_held(collection, name, catalog))
        with catalog.begin() as connection:
            synced = schema.source_syncs
            connection.execute(sa.delete(synced).where(synced.c.collection == collection, synced.c.source == name))
            for page in _pages(ids):
                which = _which(schema.documents, collection, name, page)
                connection.execute(sa.update(schema.documents).where(*which).values(state="writing"))
        with index.open(collection) as points:
            for page in _pages(ids):
                points.delete(name, page)
            points.flush()
        with catalog.begin() as connection:
            _forget(connection, collection, name, ids)
        removed += len(ids)
    return removed


_DocumentKey = tuple[str, str]


def _audit(
    collection: str, sources: Collection[str], catalog: sa.Engine, index: VectorIndex
) -> tuple[AuditReport, set[_DocumentKey]]:
    if not index.exists(collection):
        raise NotBuiltError(f"there is no collection {collection} yet: materialise the sources first")
    return _compare(collection, catalog, index, declared=sources)


def _compare(
    collection: str,
    catalog: sa.Engine,
    index: VectorIndex,
    *,
    source: str | None = None,
    declared: Collection[str] | None = None,
) -> tuple[AuditReport, set[_DocumentKey]]:
    """The report, and (source, document id) of every document that it concerns."""
    documents, chunks = schema.documents.c, schema.chunks.c
    of_documents = sa.select(documents.source, documents.document_id, documents.content_hash, documents.state)
    of_documents = of_documents.where(documents.collection == collection)
    of_chunks = sa.select(chunks.chunk_id, chunks.source, chunks.document_id).where(chunks.collection == collection)
    if source is not None:
        of_documents = of_documents.where(documents.source == source)
        of_chunks = of_chunks.where(chunks.source == source)
    with catalog.connect() as connection:
        rows = {(row.source, row.document_id): row for row in connection.execute(of_documents)}
        wanted = {row.chunk_id: (row.source, row.document_id) for row in connection.execute(of_chunks)}
    wrong: dict[str, set[_DocumentKey]] = defaultdict(set)
    seen: set[str] = set()
    with index.open(collection) as points:
        for point in points.scan(source):
            key = (point.source, point.document_id)
            if point.point_id in seen:
                wrong["duplicates"].add(key)
            elif point.point_id not in wanted or (declared is not None and point.source not in declared):
                wrong["orphaned"].add(key)
            elif rows[key].content_hash != point.content_hash:
                wrong["stale"].add(key)
            seen.add(point.point_id)
    wrong["missing"] = {key for chunk_id, key in wanted.items() if chunk_id not in seen}
    wrong["unfinished"] = {key for key, row in rows.items() if row.state == "writing"}
    kinds = {kind: tuple(sorted("/".join(key) for key in keys)) for kind, keys in wrong.items()}
    return AuditReport(len(rows), len(seen), **kinds), set().union(*wrong.values())


def _mark_writing(collection: str, documents: Iterable[_DocumentKey], catalog: sa.Engine) -> None:
    """The next sync writes these again, or removes them: also those of which the catalog did not know."""
    with catalog.begin() as connection:
        for source, document_id in sorted(documents):
            which = _which(schema.documents, collection, source, [document_id])
            if not connection.execute(sa.update(schema.documents).where(*which).values(state="writing")).rowcount:
                key = {"collection": collection, "source": source, "document_id": document_id}
                unknown = {"state": "writing", "uri": "", "title": "", "version": "", "content_hash": "", "chunks": 0}
                connection.execute(sa.insert(schema.documents).values(**key, **unknown, attempts=0))
