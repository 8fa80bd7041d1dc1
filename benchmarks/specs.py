"""Product specs that change: what a refresh costs, and whether the index then tells the new facts and no old ones.

    python -m benchmarks.specs [--data FOLDER] [--json FILE] [--quick]

``FOLDER`` holds three versions of the same documents (``v1``, ``v2``, ``v3``) and, per step, the facts that changed
(``facts_changed_v1_v2.jsonl``: file, release, field, new value). Version 1 is indexed as a folder source; then the
others take its place, one after the other, every file written anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.report import machine
from pipelines.catalog import open_catalog
from pipelines.corpus.chunking import chunk_document
from pipelines.corpus.documents import Chunk
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.pipeline import embedder_of
from pipelines.corpus.search import search
from pipelines.corpus.serving import serve_index
from pipelines.corpus.settings import FolderSource, RetrievalSettings
from pipelines.corpus.sources import open_source
from pipelines.corpus.sync import SyncReport, sync_source
from pipelines.environment import REPOSITORY
from pipelines.fingerprint import write_json_atomically

VERSIONS = ("v1", "v2", "v3")
COLUMNS = ("documents", "added", "changed", "deleted", "chunks", "embedded", "reused", "points_deleted", "seconds")
QUICK_FILES = 40


@dataclass(frozen=True, slots=True)
class State:
    """The folder as it should be indexed: chunked anew, apart from the index."""

    titles: dict[str, str]
    chunks: dict[str, Chunk]
    documents: dict[str, str]
    """Document id by chunk id."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data" / "specs-endoflife")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help=f"only the first {QUICK_FILES} files of each version")
    given = parser.parse_args()
    if not all((given.data / name).is_dir() for name in VERSIONS):
        parser.error(f"--data {given.data} does not hold {', '.join(VERSIONS)}")
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(given.data, Path(scratch), most=QUICK_FILES if given.quick else None)
    result = {
        "name": "specs",
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "sentence-transformers", "qdrant-edge-py")},
        "rows": rows,
        "figures": figures(rows),
    }
    show(result)
    if given.json:
        write_json_atomically(given.json, result)


def measure(data: Path, scratch: Path, most: int | None) -> list[dict[str, Any]]:
    folder = scratch / "documents"
    source = FolderSource(name="specs", type="folder", url=str(folder), glob=("**/*.md",), schedule=None)
    retrieval = RetrievalSettings()
    catalog = open_catalog(f"sqlite:///{scratch / 'catalog.db'}")
    index = EdgeIndex(scratch / "index")
    stores: dict[str, Any] = {"use_case": "specs", "retrieval": retrieval, "catalog": catalog, "index": index}
    rows: list[dict[str, Any]] = []
    before = State({}, {}, {})
    steps = [*VERSIONS, VERSIONS[-1]]  # the last once more: nothing has changed
    for step, name in enumerate(steps):
        again = step > 0 and steps[step - 1] == name
        if not again:
            put(data / name, folder, most)
        report = sync_source(source, base=folder, **stores, progress=lambda line: print(f"  {line}", flush=True))
        serve_index(sources=[source.name], **stores)
        after = expected(source, folder, retrieval)
        row = {"step": f"{name} again" if again else name, **{column: getattr(report, column) for column in COLUMNS}}
        row |= {"failed": len(report.failures), "seconds_by_phase": dict(report.seconds_by_phase)}
        row |= verify(index, report, before, after)
        if step > 0 and not again:
            facts = data / f"facts_changed_{steps[step - 1]}_{name}.jsonl"
            row |= told(facts, after, index, report)
            row |= found(before, after, stores)
        rows.append(row)
        before = after
    return rows


def put(version_folder: Path, folder: Path, most: int | None) -> None:
    """Every file written anew, changed or not, as a deployment does it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in sorted(version_folder.glob("*.md"))[:most]:
        shutil.copyfile(path, folder / path.name)
    time.sleep(0.1)  # a file that was written just now would be read once more, to be sure


def expected(source: FolderSource, folder: Path, retrieval: RetrievalSettings) -> State:
    counter = embedder_of(retrieval).counter
    opened = open_source(source, base=folder)
    state = State({}, {}, {})
    for listed in opened.list().documents:
        document = opened.read(listed)
        state.titles[document.document_id] = document.title
        for chunk in chunk_document(document, counter, chunk_tokens=retrieval.chunk_tokens):
            state.chunks[chunk.chunk_id] = chunk
            state.documents[chunk.chunk_id] = document.document_id
    return state


def verify(index: EdgeIndex, report: SyncReport, before: State, after: State) -> dict[str, Any]:
    """Index against a fresh chunking, and the embeddings against the least that would do."""
    with index.open(report.collection) as points:
        texts = {point.point_id: point.text for point in points.scan(with_text=True)}
    new = {chunk.text for chunk in after.chunks.values()} - {chunk.text for chunk in before.chunks.values()}
    return {
        "stale": len(texts.keys() - after.chunks.keys()),
        "missing": len(after.chunks.keys() - texts.keys()),
        "wrong_text": sum(texts[each] != chunk.text for each, chunk in after.chunks.items() if each in texts),
        "new_chunks": len(after.chunks.keys() - before.chunks.keys()),
        "embedded_beyond_new_texts": report.embedded - len(new),
    }


def told(facts_file: Path, after: State, index: EdgeIndex, report: SyncReport) -> dict[str, Any]:
    """How many changed facts stand in the index, in a line of their product beside the release they belong to."""
    lines: dict[str, list[str]] = {}
    with index.open(report.collection) as points:
        for point in points.scan(with_text=True):
            lines.setdefault(point.document_id, []).extend((point.text or "").lower().split("\n"))
    facts = [json.loads(line) for line in facts_file.read_text(encoding="utf-8").splitlines()]
    facts = [fact for fact in facts if fact["new"] is not None and fact["file"] in after.titles]
    whole = sum(
        any(
            f"releasecycle: {fact['release']}".lower() in line and f"{fact['field']}: {fact['new']}".lower() in line
            for line in lines[fact["file"]]
        )
        for fact in facts
    )
    held = sum(any(str(fact["new"]).lower() in line for line in lines[fact["file"]]) for fact in facts)
    return {"facts": len(facts), "facts_in_index": held, "facts_beside_their_release": whole}


def found(before: State, after: State, stores: dict[str, Any]) -> dict[str, Any]:
    """How many added or changed products their own title finds, among the first five hits, in their new text."""
    old: dict[str, set[str]] = {}
    new: dict[str, set[str]] = {}
    for state, ids in ((before, old), (after, new)):
        for chunk_id, document_id in state.documents.items():
            ids.setdefault(document_id, set()).add(chunk_id)
    changed = [document_id for document_id in new if new[document_id] != old.get(document_id)]
    texts = {document_id: {after.chunks[each].text for each in ids} for document_id, ids in new.items()}
    hit = 0
    for document_id in changed:
        hits = search(after.titles[document_id], top_k=5, **stores)
        hit += any(each.document_id == document_id and each.text in texts[document_id] for each in hits)
    return {"questions": len(changed), "found_in_top_5": hit}


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    updates = [row for row in rows if "facts" in row]
    return {
        "stale": sum(row["stale"] for row in rows),
        "missing": sum(row["missing"] for row in rows),
        "wrong_text": sum(row["wrong_text"] for row in rows),
        "embedded_beyond_new_texts": sum(row["embedded_beyond_new_texts"] for row in rows),
        "embedded_per_changed_chunk": sum(row["embedded"] for row in updates)
        / max(1, sum(row["new_chunks"] for row in updates)),
        "facts_in_index": sum(row["facts_in_index"] for row in updates) / max(1, sum(row["facts"] for row in updates)),
        "facts_beside_their_release": sum(row["facts_beside_their_release"] for row in updates)
        / max(1, sum(row["facts"] for row in updates)),
        "title_found_in_top_5": sum(row["found_in_top_5"] for row in updates)
        / max(1, sum(row["questions"] for row in updates)),
        "unchanged_seconds": rows[-1]["seconds"],
    }


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['machine']['cpu']}, {result['machine']['cores']} cores; {result['versions']}\n")
    head = ("step", *COLUMNS)
    print("  ".join(f"{name:>14}" for name in head))
    for row in result["rows"]:
        print("  ".join(f"{row[name]:>14.2f}" if name == "seconds" else f"{row[name]:>14}" for name in head))
    print()
    for row in result["rows"]:
        phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["seconds_by_phase"].items())
        checks = ("failed", "stale", "missing", "wrong_text", "new_chunks", "embedded_beyond_new_texts")
        print(f"{row['step']}: {phases} s; " + ", ".join(f"{name} {row[name]}" for name in checks))
        if "facts" in row:
            print(
                f"    facts in the index {row['facts_in_index']}/{row['facts']}, on one line with their release "
                f"{row['facts_beside_their_release']}; products found by their title, top 5: "
                f"{row['found_in_top_5']}/{row['questions']}"
            )
    print()
    for name, value in result["figures"].items():
        print(f"{name:>28}  {value:.4f}")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
