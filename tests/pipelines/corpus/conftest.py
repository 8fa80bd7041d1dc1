"""A corpus to sync, on both indexes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipelines.corpus.audit import AuditReport, audit_collection
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.embedding import Embedder, open_embedder
from pipelines.corpus.index import VectorIndex
from pipelines.corpus.pipeline import wanted_pipeline
from pipelines.corpus.search import Hit, search
from pipelines.corpus.server import ServerIndex
from pipelines.corpus.serving import ServedIndex, serve_index
from pipelines.corpus.settings import FolderSource, RetrievalSettings, SourceSettings
from pipelines.corpus.sync import SyncReport, sync_source
from pipelines.models import BUNDLED
from tests.pipelines.corpus.hash_embedder import HashEmbedder
from tests.pipelines.corpus.web_server import Site, open_site

LIVE_SERVER = os.environ.get("QDRANT_URL_FOR_TESTS")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from open_site(monkeypatch)


@pytest.fixture
def edge(freshet_home: Path) -> EdgeIndex:
    return EdgeIndex(freshet_home / "index", lock_seconds=0.5)


@pytest.fixture(params=["edge", "memory", *(["live"] if LIVE_SERVER else [])])
def index(request: pytest.FixtureRequest, edge: EdgeIndex) -> Iterator[VectorIndex]:
    if request.param == "edge":
        yield edge
        return
    from qdrant_client import QdrantClient

    client = QdrantClient(":memory:") if request.param == "memory" else QdrantClient(url=LIVE_SERVER)
    try:
        yield ServerIndex(client)
    finally:
        for collection in client.get_collections().collections:
            if collection.name.startswith("test"):
                client.delete_collection(collection.name)
        client.close()


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder()


@pytest.fixture(scope="session")
def minilm() -> Embedder:
    return open_embedder(BUNDLED, None)


SMALL_CHUNKS = RetrievalSettings(chunk_tokens=64)


@dataclass
class Corpus:
    """One use case with its stores and a folder of documents."""

    folder: Path
    catalog: sa.Engine
    index: VectorIndex
    embedder: Embedder
    retrieval: RetrievalSettings = SMALL_CHUNKS

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def source(self, name: str = "docs", **settings: Any) -> FolderSource:
        return FolderSource(name=name, type="folder", **{"url": str(self.folder), **settings})

    def sync(self, source: SourceSettings | None = None, **options: Any) -> SyncReport:
        return sync_source(
            source or self.source(),
            base=self.folder,
            **{"retrieval": self.retrieval, "embedder": self.embedder, **options, **self._stores},
        )

    def audit(self, *sources: str) -> AuditReport:
        return audit_collection(
            wanted_pipeline("test", self.retrieval, self.embedder).collection,
            declared=sources or ("docs",),
            catalog=self.catalog,
            index=self.index,
        )[0]

    def serve(self, *sources: str, **options: Any) -> ServedIndex:
        options = {"retrieval": self.retrieval, "embedder": self.embedder, **options}
        return serve_index(sources=sources or ("docs",), **options, **self._stores)

    def search(self, question: str, top_k: int = 5, **options: Any) -> list[Hit]:
        options = {"retrieval": self.retrieval, "embedder": self.embedder, **options}
        return search(question, top_k=top_k, **options, **self._stores)

    def points(self, collection: str) -> dict[str, str]:
        """Document id by point id."""
        with self.index.open(collection) as points:
            return {point.point_id: point.document_id for point in points.scan()}

    @property
    def _stores(self) -> dict[str, Any]:
        return {"use_case": "test", "catalog": self.catalog, "index": self.index}


@pytest.fixture
def make_corpus(tmp_path: Path, catalog: sa.Engine) -> Callable[[VectorIndex, Embedder], Corpus]:
    folder = tmp_path / "documents"
    folder.mkdir()
    return lambda index, embedder: Corpus(folder, catalog, index, embedder)


@pytest.fixture
def corpus(make_corpus: Callable[..., Corpus], index: VectorIndex, embedder: HashEmbedder) -> Corpus:
    """On each index, with an embedder of hashes."""
    return make_corpus(index, embedder)


@pytest.fixture
def edge_corpus(make_corpus: Callable[..., Corpus], edge: EdgeIndex, embedder: HashEmbedder) -> Corpus:
    """On Qdrant Edge, with an embedder of hashes."""
    return make_corpus(edge, embedder)
