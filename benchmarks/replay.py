"""Real commits, one by one, with a refresh after each: is the index then exactly what a build from scratch would be?

    python -m benchmarks.replay [--data FOLDER] [--only NAME] [--embedder hash] [--every N] [--commits N]
                                [--json FILE] [--quick]

``FOLDER`` holds ``specs-endoflife/commit_stream`` and ``handbook-18f/commit_stream``: the files before the first
commit (``base.jsonl``) and what each commit added, changed or deleted (``stream.jsonl``). A commit counts as clean when

- the audit compares every point with the catalog and finds no difference, and
- ids, documents and texts of all points are those of the whole folder, read and cut anew apart from the sync, and
- after every ``--every`` commits and the last, also those of an index that a sync built from nothing beside it.

``embedded_per_changed_chunk`` is the number of texts that went through the model over the number of chunk texts that a
commit brought, summed over the commits; below 1 where a vector of the same text was there already.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.hash_embedder import HashEmbedder
from benchmarks.report import report
from pipelines.catalog import open_catalog
from pipelines.corpus.audit import audit_collection
from pipelines.corpus.chunking import chunk_document
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.embedding import Embedder, open_embedder
from pipelines.corpus.serving import serve_index
from pipelines.corpus.settings import FolderSource, RetrievalSettings
from pipelines.corpus.sources import open_source
from pipelines.corpus.sync import SyncReport, sync_source
from pipelines.environment import REPOSITORY
from pipelines.errors import ArtifactError, DocumentError

STREAMS = {"endoflife": "specs-endoflife", "handbook": "handbook-18f"}
QUICK_COMMITS = 20

Points = dict[str, tuple[str, str]]
"""Document id and text, by chunk id."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--only", choices=STREAMS, help="only this stream")
    parser.add_argument("--embedder", choices=("default", "hash"), help="default: a use case's; hash with --quick")
    parser.add_argument("--every", type=int, default=25, help="commits between builds from scratch")
    parser.add_argument("--commits", type=int, help="only so many")
    parser.add_argument("--json", type=Path, help="write rows and figures to this file")
    parser.add_argument("--quick", action="store_true", help=f"the first {QUICK_COMMITS} commits: does it run?")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    retrieval = RetrievalSettings()
    hashed = given.embedder == "hash" or (given.quick and given.embedder is None)
    embedder = HashEmbedder() if hashed else open_embedder(retrieval.embedder, retrieval.embedder_revision)
    rows: list[dict[str, Any]] = []
    commits: dict[str, list[dict[str, Any]]] = {}
    for name, folder in STREAMS.items():
        stream = given.data / folder / "commit_stream"
        if given.only not in {None, name}:
            continue
        if not stream.is_dir():
            print(f"{name}: missing, {stream} is not there", flush=True)
            rows.append({"stream": name, "note": "missing"})
            continue
        with tempfile.TemporaryDirectory() as scratch:
            replay = Replay(name, stream, Path(scratch), retrieval, embedder)
            commits[name] = replay.run(
                most=given.commits or (QUICK_COMMITS if given.quick else None), every=given.every
            )
        rows.append(replay.row(commits[name]))
    report(
        "replay",
        rows,
        figures(rows),
        packages=["qdrant-edge-py", "sentence-transformers", "openvino", "torch"],
        json_file=given.json,
        quick=given.quick,
        embedder={name: value for name, value in embedder.identity.items() if name != "files"},
        commits=commits,
    )


@dataclass(slots=True)
class Stores:
    """An index with its catalog, held in sync with a folder by the code that the assets call."""

    state: Path
    documents: Path
    retrieval: RetrievalSettings
    embedder: Embedder
    source: FolderSource = field(init=False)
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.source = FolderSource(
            name="docs",
            type="folder",
            url=str(self.documents),
            glob=("**/*.md",),
            schedule=None,
            max_deleted_share=1.0,  # what the commits delete is meant
            allow_empty=True,
        )
        self.state.mkdir(parents=True)
        self.options = {
            "use_case": "replay",
            "retrieval": self.retrieval,
            "catalog": open_catalog(f"sqlite:///{self.state / 'catalog.db'}"),
            "index": EdgeIndex(self.state / "index"),
            "embedder": self.embedder,
        }

    def refresh(self) -> SyncReport:
        synced = sync_source(self.source, base=self.documents, **self.options)
        serve_index(sources=[self.source.name], **self.options)
        return synced

    def difference(self, collection: str) -> str | None:
        """What a full audit finds, if anything."""
        stores = {name: self.options[name] for name in ("catalog", "index")}
        found, _ = audit_collection(collection, declared=[self.source.name], mode="full", **stores)
        return None if found.clean else str(found)

    def points(self, collection: str) -> Points:
        with self.options["index"].open(collection) as points:
            return {each.point_id: (each.document_id, each.text or "") for each in points.scan(with_text=True)}

    def close(self) -> None:
        self.options["catalog"].dispose()


@dataclass(slots=True)
class Replay:
    """One stream."""

    name: str
    stream: Path
    scratch: Path
    retrieval: RetrievalSettings
    embedder: Embedder
    cut: dict[tuple[str, str], Points] = field(default_factory=dict)
    """Chunks of a document, by its id and its file's hash."""

    def run(self, most: int | None, every: int) -> list[dict[str, Any]]:
        """A row for each commit."""
        documents = self.scratch / "documents"
        for file in _lines(self.stream / "base.jsonl"):
            _write(documents / file["path"], file["content"])
        stores = Stores(self.scratch / "state", documents, self.retrieval, self.embedder)
        first = stores.refresh()
        print(f"{self.name}: {first.documents} documents, {first.chunks} chunks in {first.seconds:.1f} s", flush=True)
        before, rows = self.anew(stores), list[dict[str, Any]]()
        commits = list(_lines(self.stream / "stream.jsonl"))[:most]
        for number, commit in enumerate(commits, start=1):
            for change in commit["changes"]:
                path = documents / change["path"]
                path.unlink() if change["status"] == "D" else _write(path, change["content"])
            started = time.perf_counter()
            try:
                synced = stores.refresh()
            except ArtifactError as error:  # the audit before serving
                rows.append({"commit": commit["commit"], "clean": False, "why": str(error)})
                continue
            seconds = time.perf_counter() - started
            now, held = self.anew(stores), stores.points(synced.collection)
            why = stores.difference(synced.collection) or _unequal(held, now, "the folder cut anew")
            if why is None and (number % every == 0 or number == len(commits)):
                why = _unequal(held, self.from_scratch(documents, number), "an index built from nothing")
            new = {text for _, text in now.values()} - {text for _, text in before.values()}
            rows.append(
                {
                    "commit": commit["commit"],
                    "clean": why is None,
                    "why": why,
                    "seconds": seconds,
                    "files": len(commit["changes"]),
                    "embedded": synced.embedded,
                    "changed_chunks": len(new),
                    "points": len(held),
                    "failed": len(synced.failures),
                }
            )
            before = now
            if why is not None or number % every == 0:
                print(f"{self.name} {number} of {len(commits)}: {why or 'clean so far'}", flush=True)
        stores.close()
        return rows

    def anew(self, stores: Stores) -> Points:
        """The folder as it is, cut apart from the sync; what was cut before from equal bytes is not cut again."""
        source, points = open_source(stores.source, base=stores.documents), Points()
        for listed in source.list().documents:
            digest = hashlib.sha256((stores.documents / listed.document_id).read_bytes()).hexdigest()
            key = (listed.document_id, digest)
            if key not in self.cut:
                try:
                    document = source.read(listed)
                except DocumentError as error:
                    raise SystemExit(f"{self.name}: {listed.document_id} cannot be read: {error}") from error
                chunks = chunk_document(document, self.embedder.counter, chunk_tokens=self.retrieval.chunk_tokens)
                self.cut[key] = {chunk.chunk_id: (listed.document_id, chunk.text) for chunk in chunks}
            points |= self.cut[key]
        source.close()
        return points

    def from_scratch(self, documents: Path, number: int) -> Points:
        """What a sync into new stores makes of the folder; its vectors do not matter, so they are hashes."""
        stores = Stores(self.scratch / f"scratch-{number}", documents, self.retrieval, HashEmbedder())
        points = stores.points(stores.refresh().collection)
        stores.close()
        return points

    def row(self, commits: list[dict[str, Any]]) -> dict[str, Any]:
        refreshed = [commit for commit in commits if "seconds" in commit]
        seconds = sorted(commit["seconds"] for commit in refreshed)
        embedded, changed = (sum(commit[what] for commit in refreshed) for what in ("embedded", "changed_chunks"))
        return {
            "stream": self.name,
            "commits": len(commits),
            "clean": sum(commit["clean"] for commit in commits),
            "points": refreshed[-1]["points"] if refreshed else None,
            "files": sum(commit["files"] for commit in refreshed),
            "changed_chunks": changed,
            "embedded": embedded,
            "refresh_median_s": statistics.median(seconds) if seconds else None,
            "refresh_p95_s": seconds[int(len(seconds) * 0.95)] if seconds else None,
        }


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    replayed = [row for row in rows if "clean" in row]
    found: dict[str, float] = {f"{row['stream']}_commits_clean": row["clean"] for row in replayed}
    if replayed:
        changed = sum(row["changed_chunks"] for row in replayed)
        found["embedded_per_changed_chunk"] = sum(row["embedded"] for row in replayed) / max(1, changed)
    return found


def _unequal(held: Points, wanted: Points, what: str) -> str | None:
    if held == wanted:
        return None
    other = sum(held[each] != point for each, point in wanted.items() if each in held)
    return (
        f"against {what}: {len(held.keys() - wanted.keys())} points too many, {len(wanted.keys() - held.keys())} "
        f"missing, {other} different"
    )


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))


if __name__ == "__main__":
    main()
