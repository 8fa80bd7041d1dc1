"""LlamaIndex's ``IngestionPipeline`` with a document store, as in its guide to document management.

The cache of transformations is off: the document store already skips what has not changed, and the cache would only
add its own writing. File names are the ids; the file's dates are no metadata, because touching a file would change it.
"""

from __future__ import annotations

from pathlib import Path

from llama_index.core import SimpleDirectoryReader
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from benchmarks.peers.contender import CHUNK_TOKENS, WARM_UP, Contender, Rows

COLLECTION = "docs"


class LlamaIndex(Contender):
    """Upserts and deletes."""

    packages = ("llama-index-core", "llama-index-vector-stores-qdrant", "qdrant-client")
    note = "upserts_and_delete; QdrantClient(path=…); SentenceSplitter; fp32"

    def load(self, model: Path) -> None:
        self.embedding = HuggingFaceEmbedding(model_name=str(model))
        self.embedding.get_text_embedding_batch(WARM_UP)
        self.encoding.watch(SentenceTransformer, "encode")
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.splitter = SentenceSplitter(
            chunk_size=CHUNK_TOKENS,
            chunk_overlap=0,
            tokenizer=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        )

    def open(self, state: Path, documents: Path) -> None:
        self.documents, self.docstore_file = documents, str(state / "docstore.json")
        self.client = QdrantClient(path=str(state / "qdrant"))
        known = Path(self.docstore_file).exists()
        self.pipeline = IngestionPipeline(
            transformations=[self.splitter, self.embedding],
            vector_store=QdrantVectorStore(COLLECTION, client=self.client),
            docstore=SimpleDocumentStore.from_persist_path(self.docstore_file) if known else SimpleDocumentStore(),
            docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
            disable_cache=True,
        )

    def sync(self) -> None:
        self.pipeline.run(documents=self._documents())
        self.pipeline.docstore.persist(self.docstore_file)

    def close(self) -> None:
        self.client.close()

    def stored(self) -> Rows:
        from llama_index.core.vector_stores.utils import metadata_dict_to_node

        offset = None
        while True:
            records, offset = self.client.scroll(COLLECTION, limit=1000, offset=offset)
            for record in records:
                node = metadata_dict_to_node(record.payload)
                yield node.metadata["file_name"], node.get_content()
            if offset is None:
                return

    def expected(self) -> Rows:
        nodes = self.splitter.get_nodes_from_documents(self._documents())
        return ((node.metadata["file_name"], node.get_content()) for node in nodes)

    def _documents(self) -> list[object]:
        reader = SimpleDirectoryReader(
            str(self.documents),
            recursive=True,
            required_exts=[".md"],
            filename_as_id=True,
            file_metadata=lambda path: {"file_name": Path(path).relative_to(self.documents).as_posix()},
        )
        return list(reader.load_data())


CONTENDERS = {"llamaindex": LlamaIndex}
