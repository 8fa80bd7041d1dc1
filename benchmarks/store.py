"""What the index costs when it is large: a refresh that finds nothing new, and hybrid questions.

    python -m benchmarks.store [--json FILE] [--quick]

Made text: words of MiniLM's vocabulary in Zipf's proportions, about 200 tokens a chunk; made vectors, in clusters.
Files are synced into Qdrant Edge until 100,000 chunks are held; then the refresh (``sync_source`` and ``serve_index``)
is repeated with nothing changed. As many files again make 200,000 chunks, of which questions are asked, with the access
rule and without. ``hybrid_p95_ms`` is one question in an open collection, fused, payloads included, its vector given;
the time to embed it (MiniLM, this machine) and the two together stand beside it. For comparison: the dense half alone
by brute force in numpy, and the in-memory store of qdrant-client, at a tenth of the size and with few questions.

``--quick``: a twentieth of everything.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.hash_embedder import HashEmbedder
from benchmarks.report import report
from pipelines.catalog import open_catalog
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.embedding import open_embedder
from pipelines.corpus.filters import readable_by
from pipelines.corpus.index import Collection, Point, Query, Schema
from pipelines.corpus.search import DEPTH, search_collection
from pipelines.corpus.server import ServerIndex
from pipelines.corpus.serving import serve_index
from pipelines.corpus.settings import FolderSource, RetrievalSettings
from pipelines.corpus.sync import SyncReport, sync_source
from pipelines.models import BUNDLED, model_folder

if TYPE_CHECKING:
    from pipelines.corpus.embedding import Vectors

CHUNKS = 100_000
CHUNKS_PER_FILE = 20
WORDS_PER_CHUNK = 200
CLUSTERS = 500
QUESTIONS = 500
WARM_UP = 50
TICKS = 5
TOP_K = 5


class ClusteredEmbedder(HashEmbedder):
    """Texts that begin alike lie near each other."""

    def __init__(self) -> None:
        self._centres = np.random.default_rng(0).standard_normal((CLUSTERS, self.dimension), dtype=np.float32)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Never that of a real embedder."""
        return {"model": "clustered", "dimension": self.dimension}

    def encode(self, texts: Sequence[str]) -> Vectors:
        """The centre of the first word's cluster, and as much again that is the text's own."""
        centres = self._centres[[sum(text.partition(" ")[0].encode()) % CLUSTERS for text in texts]]
        vectors = centres + super().encode(texts) * np.sqrt(self.dimension)
        unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return unit


class Writer:
    """Files of made text."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._folder = folder
        vocabulary = Tokenizer.from_file(str(model_folder(BUNDLED, None) / "tokenizer.json")).get_vocab()
        self._words = np.array(
            sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2)
        )
        self._random = np.random.default_rng(1)
        self._random.shuffle(self._words)
        self._shares = np.cumsum(1 / (np.arange(len(self._words)) + 2.7))
        self._files = 0

    def text(self, words: int) -> str:
        """So many words, in Zipf's proportions (with Mandelbrot's offset)."""
        drawn = np.searchsorted(self._shares, self._random.random(words) * self._shares[-1])
        return " ".join(self._words[drawn])

    def write(self, chunks: int) -> None:
        """As many files as make so many chunks, a section each."""
        for number in range(self._files, self._files + chunks // CHUNKS_PER_FILE):
            facts = f"---\nproduct: p{number % 50}\naccess: [staff, team{number % 7}]\n---\n"
            sections = (f"# {self.text(3)}\n\n{self.text(WORDS_PER_CHUNK - 10)}\n" for _ in range(CHUNKS_PER_FILE))
            path = self._folder / f"{number % 100:02}" / f"{number}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(facts + "\n".join(sections), encoding="utf-8")
        self._files += chunks // CHUNKS_PER_FILE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="a twentieth of everything")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows, figures, recall = measure(Path(scratch), CHUNKS // 20 if given.quick else CHUNKS)
    packages = ("qdrant-edge-py", "qdrant-client", "numpy", "sqlalchemy", "openvino", "torch")
    report("store", rows, figures, packages=packages, json_file=given.json, dense_recall_at_100=recall)


def measure(scratch: Path, chunks: int) -> tuple[list[dict[str, Any]], dict[str, float], float]:
    folder = scratch / "documents"
    writer, embedder = Writer(folder), ClusteredEmbedder()
    retrieval = RetrievalSettings(metadata={"product": "keyword"})
    index = EdgeIndex(scratch / "index")
    catalog = open_catalog(f"sqlite:///{scratch / 'catalog.db'}")
    stores: dict[str, Any] = {"use_case": "store", "retrieval": retrieval, "catalog": catalog, "index": index}
    source = FolderSource(name="docs", type="folder", url=str(folder), glob=("**/*.md",))

    def refresh() -> tuple[SyncReport, str]:
        synced = sync_source(source, base=scratch, embedder=embedder, progress=said, **stores)
        return synced, serve_index(sources=["docs"], embedder=embedder, **stores).collection

    rows: list[dict[str, Any]] = []

    def row(what: str, chunks: int, seconds: Sequence[float]) -> float:
        p95 = float(np.percentile(seconds, 95))
        median = statistics.median(seconds)
        rows.append(
            {"what": what, "chunks": chunks, "median ms": 1000 * median, "p95 ms": 1000 * p95, "n": len(seconds)}
        )
        return 1000 * p95

    writer.write(chunks)
    time.sleep(2.1)  # files that were written just now would be read once more, to be sure
    seconds, (_, name) = timed(refresh)
    with index.open(name) as points:
        held = points.count()
    row("build, made vectors", held, [seconds])
    ticks = [timed(refresh) for _ in range(TICKS)]
    if any(synced.embedded or synced.added or synced.changed or synced.deleted for _, (synced, _) in ticks):
        raise SystemExit("a refresh found something new where nothing was")
    row("refresh, nothing changed", held, [seconds for seconds, _ in ticks])
    figures = {"unchanged_tick_s": statistics.median(seconds for seconds, _ in ticks)}

    writer.write(chunks)
    time.sleep(2.1)
    seconds, _ = timed(refresh)
    questions = [writer.text(8) for _ in range(QUESTIONS + WARM_UP)]
    with ExitStack() as opened:
        opening, points = timed(lambda: opened.enter_context(index.open(name)))
        held = points.count()
        row(f"build of the other {chunks}", held, [seconds])

        def ask(question: str, *principals: str) -> object:
            conditions = [readable_by(principals)] if principals else []
            return search_collection(
                points, embedder, [question], retrieval=retrieval, top_k=TOP_K, conditions=conditions
            )

        first, _ = timed(lambda: ask(questions[0]))
        row("open", held, [opening])
        row("hybrid, the first question after opening", held, [first])
        hybrid = each(ask, questions)
        figures["hybrid_p95_ms"] = row("hybrid, vector given", held, hybrid)
        row("hybrid, access enforced", held, each(lambda question: ask(question, "team3"), questions))
        minilm = open_embedder(BUNDLED, None)
        embedding = each(minilm.encode_question, questions)
        row("embedding of a question, MiniLM", held, embedding)
        row("hybrid with the embedding", held, [sum(both) for both in zip(hybrid, embedding, strict=True)])
        row("dense half, Edge", held, each(lambda question: dense(points, embedder, question), questions))
        vectors = points.vectors([point.point_id for point in points.scan()])
        ids, matrix = list(vectors), np.stack(list(vectors.values()))
        exact = [{ids[place] for place in brute(matrix, embedder, question)} for question in questions[:WARM_UP]]
        asked = [dense(points, embedder, question) for question in questions[:WARM_UP]]
        recall = statistics.fmean(len(one & other) / DEPTH for one, other in zip(exact, asked, strict=True))
        said(f"of the {DEPTH} nearest by brute force, Edge finds {recall:.4f}")
        row("dense half, numpy brute force", held, each(lambda question: brute(matrix, embedder, question), questions))
    catalog.dispose()
    small = chunks // 5
    with in_memory(writer, embedder, small) as points:

        def ask_memory(question: str) -> object:
            return search_collection(points, embedder, [question], retrieval=retrieval, top_k=TOP_K)

        row("hybrid, qdrant-client in memory", small, each(ask_memory, questions[:20], warm_up=2))
    return rows, figures, recall


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def each(ask: Callable[[str], object], questions: Sequence[str], warm_up: int = WARM_UP) -> list[float]:
    """Seconds for each question but the first few."""
    return [timed(partial(ask, question))[0] for question in questions][warm_up:]


def dense(points: Collection, embedder: ClusteredEmbedder, question: str) -> set[str]:
    """Ids of the nearest points."""
    [found] = points.candidates([Query(embedder.encode_question(question))], DEPTH)
    return {each.point_id for each in found.dense}


def brute(matrix: Vectors, embedder: ClusteredEmbedder, question: str) -> list[int]:
    """Rows of the nearest vectors."""
    scores = matrix @ embedder.encode_question(question)
    return [int(row) for row in np.argpartition(-scores, DEPTH)[:DEPTH]]


@contextmanager
def in_memory(writer: Writer, embedder: ClusteredEmbedder, chunks: int) -> Iterator[Collection]:
    """The same kind of points in qdrant-client's own store."""
    from qdrant_client import QdrantClient

    client = QdrantClient(":memory:")
    index = ServerIndex(client)
    index.create("store", Schema(embedder.dimension))
    with index.open("store") as points:
        for start in range(0, chunks, 1000):
            texts = [writer.text(WORDS_PER_CHUNK) for _ in range(min(1000, chunks - start))]
            payloads = [{"source": "docs", "document_id": f"{start}", "text": text} for text in texts]
            ids = [str(uuid.UUID(int=start + number)) for number in range(len(texts))]
            points.upsert([Point(*each) for each in zip(ids, embedder.encode(texts), payloads, strict=True)])
        yield points
    client.close()


def said(line: str) -> None:
    print(f"  {line}", flush=True)


if __name__ == "__main__":
    main()
