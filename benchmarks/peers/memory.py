"""Resident memory of our initial ingest, in a process of its own: ``python -m benchmarks.peers.memory DOCUMENTS``.

The documents are small, one chunk each, and their vectors are drawn from hashes: a model would add the same to every
size, and hide what grows. What the process takes before it starts (imports, tokenizer, a first small ingest) is
reported beside the peak, and so is the peak without the pages of mapped files (the index's own), which the system
takes back when it needs them. That one is sampled ten times a second.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.hash_embedder import HashEmbedder
from pipelines.catalog import open_catalog
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.serving import serve_index
from pipelines.corpus.settings import FolderSource, RetrievalSettings
from pipelines.corpus.sync import sync_source

WORDS = ("order", "parcel", "refund", "stock", "invoice", "shelf", "carrier", "label", "pallet", "ticket", "price")
A_FOLDER = 1000


def measure(documents: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        ingest(Path(scratch) / "first", 50)
        before, done, anonymous = resident()["VmRSS"], threading.Event(), [0.0]

        def sample() -> None:
            while not done.wait(0.1):
                anonymous[0] = max(anonymous[0], resident()["RssAnon"])

        sampler = threading.Thread(target=sample)
        sampler.start()
        started = time.perf_counter()
        chunks = ingest(Path(scratch) / "whole", documents)
        seconds = time.perf_counter() - started
        done.set()
        sampler.join()
    return {
        "documents": documents,
        "chunks": chunks,
        "seconds": seconds,
        "before_mib": before,
        "peak_mib": resident()["VmHWM"],
        "peak_anonymous_mib": anonymous[0],
    }


def ingest(folder: Path, documents: int) -> int:
    draw, texts = random.Random(documents), folder / "documents"
    for number in range(documents):
        place = texts / f"{number // A_FOLDER:03}"
        place.mkdir(parents=True, exist_ok=True)
        body = " ".join(draw.choice(WORDS) for _ in range(60))
        (place / f"{number:06}.md").write_text(f"# Note {number}\n\n{body} {number}.\n", encoding="utf-8")
    retrieval, embedder = RetrievalSettings(), HashEmbedder()
    source = FolderSource(name="notes", type="folder", url=str(texts), glob=("**/*.md",), schedule=None)
    catalog, index = open_catalog(f"sqlite:///{folder / 'catalog.db'}"), EdgeIndex(folder / "index")
    report = sync_source(
        source,
        use_case="memory",
        base=texts,
        retrieval=retrieval,
        catalog=catalog,
        index=index,
        embedder=embedder,
    )
    serve_index(
        use_case="memory",
        retrieval=retrieval,
        sources=[source.name],
        catalog=catalog,
        index=index,
        embedder=embedder,
    )
    catalog.dispose()
    return report.chunks


def resident() -> dict[str, float]:
    """Resident memory now and at its peak, mapped files included, in MiB; Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {
        name: int(value.split()[0]) / 1024
        for name, _, value in (line.partition(":") for line in lines)
        if name in _KEPT
    }


_KEPT = ("VmRSS", "VmHWM", "RssAnon")

if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
