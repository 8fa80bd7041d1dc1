"""LangChain's ``index()`` with langchain-qdrant and a SQL record manager, as in its indexing guide.

``incremental`` cleans up as it goes, and never sees files that are gone; ``full`` cleans up at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from langchain_classic.indexes import SQLRecordManager
from langchain_core.documents import Document
from langchain_core.indexing import index
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_qdrant import QdrantVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, VectorParams
from sentence_transformers import SentenceTransformer

from benchmarks.peers.contender import CHUNK_CHARACTERS, WARM_UP, Contender, Rows, markdown_files

COLLECTION = "docs"


class LangChain(Contender):
    """One clean-up mode."""

    packages = ("langchain-core", "langchain-classic", "langchain-qdrant", "qdrant-client")
    cleanup: Literal["incremental", "full"]

    def load(self, model: Path) -> None:
        self.embeddings = HuggingFaceEmbeddings(model_name=str(model))
        self.embeddings.embed_documents(WARM_UP)
        self.encoding.watch(SentenceTransformer, "encode")
        self.splitter = RecursiveCharacterTextSplitter(chunk_size=CHUNK_CHARACTERS, chunk_overlap=0)
        self.note = f"cleanup={self.cleanup!r}; QdrantClient(path=…); RecursiveCharacterTextSplitter; fp32"

    def open(self, state: Path, documents: Path) -> None:
        self.documents = documents
        self.client = QdrantClient(path=str(state / "qdrant"))
        if not self.client.collection_exists(COLLECTION):
            size = len(self.embeddings.embed_query("size"))
            self.client.create_collection(COLLECTION, VectorParams(size=size, distance=Distance.COSINE))
        self.store = QdrantVectorStore(self.client, COLLECTION, self.embeddings)
        self.records = SQLRecordManager(f"qdrant/{COLLECTION}", db_url=f"sqlite:///{state / 'records.db'}")
        self.records.create_schema()

    def sync(self) -> None:
        index(
            self._chunks(),
            self.records,
            self.store,
            cleanup=self.cleanup,
            source_id_key="source",
            key_encoder="sha1",  # the default, and the only one whose keys Qdrant takes as ids
        )

    def close(self) -> None:
        self.client.close()
        self.records.engine.dispose()

    def stored(self) -> Rows:
        offset = None
        while True:
            records, offset = self.client.scroll(COLLECTION, limit=1000, offset=offset)
            for record in records:
                payload = record.payload or {}
                yield payload["metadata"]["source"], payload["page_content"]
            if offset is None:
                return

    def expected(self) -> Rows:
        return ((chunk.metadata["source"], chunk.page_content) for chunk in self._chunks())

    def _chunks(self) -> Iterator[Document]:
        for name, text in markdown_files(self.documents):
            yield from self.splitter.split_documents([Document(page_content=text, metadata={"source": name})])


class Incremental(LangChain):
    """Cleans up the files that it sees, batch by batch."""

    cleanup = "incremental"


class Full(LangChain):
    """Cleans up everything that it did not see, at the end."""

    cleanup = "full"


CONTENDERS = {"langchain incremental": Incremental, "langchain full": Full}
