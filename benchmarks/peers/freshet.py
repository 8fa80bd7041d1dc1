"""Ours: ``sync_source`` and ``serve_index``, as the assets call them, on Qdrant Edge and SQLite."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.peers.contender import WARM_UP, Contender, Rows
from pipelines.catalog import open_catalog
from pipelines.corpus.chunking import chunk_document
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.embedding import open_embedder
from pipelines.corpus.serving import serve_index
from pipelines.corpus.settings import FolderSource, RetrievalSettings
from pipelines.corpus.sources import open_source
from pipelines.corpus.sync import SyncReport, sync_source

USE_CASE = "ingest"


class Freshet(Contender):
    """With the default settings of a use case."""

    packages = ("qdrant-edge-py", "sentence-transformers", "openvino", "torch")
    report: SyncReport

    def load(self, model: Path) -> None:  # noqa: ARG002 the default embedder is these weights
        self.retrieval = RetrievalSettings()
        self.embedder = open_embedder(self.retrieval.embedder, self.retrieval.embedder_revision)
        self.embedder.encode(WARM_UP)
        self.encoding.watch(type(self.embedder), "encode")
        self.note = ", ".join(f"{name} {value}" for name, value in self.embedder.identity.items() if name != "files")

    def open(self, state: Path, documents: Path) -> None:
        self.documents = documents
        self.source = FolderSource(name="docs", type="folder", url=str(documents), glob=("**/*.md",), schedule=None)
        self.catalog = open_catalog(f"sqlite:///{state / 'catalog.db'}")
        self.index = EdgeIndex(state / "index")

    def sync(self) -> None:
        self.report = sync_source(
            self.source,
            use_case=USE_CASE,
            base=self.documents,
            retrieval=self.retrieval,
            catalog=self.catalog,
            index=self.index,
            embedder=self.embedder,
        )
        serve_index(
            use_case=USE_CASE,
            retrieval=self.retrieval,
            sources=[self.source.name],
            catalog=self.catalog,
            index=self.index,
            embedder=self.embedder,
        )

    def close(self) -> None:
        self.catalog.dispose()

    def stored(self) -> Rows:
        with self.index.open(self.report.collection) as points:
            return [(point.document_id, point.text or "") for point in points.scan(with_text=True)]

    def expected(self) -> Rows:
        opened = open_source(self.source, base=self.documents)
        for listed in opened.list().documents:
            document = opened.read(listed)
            for chunk in chunk_document(document, self.embedder.counter, chunk_tokens=self.retrieval.chunk_tokens):
                yield document.document_id, chunk.text

    def bare(self, texts: list[str]) -> float:
        """Seconds that the encoder alone takes for these texts, all in one call."""
        started = time.perf_counter()
        self.embedder.encode(texts)
        return time.perf_counter() - started


CONTENDERS = {"freshet": Freshet}
