"""CocoIndex, as in its own text embedding examples, into LanceDB.

Its Qdrant target wants a server; LanceDB is the embedded vector database among its targets, so the store differs from
the others'. Its own state is in its LMDB file.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cocoindex as coco
from cocoindex.connectors import lancedb, localfs
from cocoindex.ops.sentence_transformers import SentenceTransformerEmbedder
from cocoindex.ops.text import RecursiveSplitter
from cocoindex.resources.chunk import Chunk
from cocoindex.resources.file import FileLike, PatternFilePathMatcher
from cocoindex.resources.id import IdGenerator
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from benchmarks.peers.contender import CHUNK_CHARACTERS, WARM_UP, Contender, Rows, markdown_files

TABLE = "docs"
DATABASE = coco.ContextKey[Any]("database")
EMBEDDER = coco.ContextKey[SentenceTransformerEmbedder]("embedder")
SPLITTER = RecursiveSplitter()


@dataclass
class Row:
    """A chunk in the table."""

    id: int
    filename: str
    text: str
    embedding: Annotated[NDArray[Any], EMBEDDER]


def split(text: str) -> list[Chunk]:
    return list(SPLITTER.split(text, CHUNK_CHARACTERS, chunk_overlap=0, language="markdown"))


@coco.fn
async def store_chunk(chunk: Chunk, filename: str, ids: IdGenerator, table: lancedb.TableTarget[Row]) -> None:
    embedding = await coco.use_context(EMBEDDER).embed(chunk.text)
    table.declare_row(row=Row(await ids.next_id(chunk.text), filename, chunk.text, embedding))


@coco.fn(memo=True)
async def store_file(file: FileLike, table: lancedb.TableTarget[Row]) -> None:
    chunks = split(await file.read_text())
    await coco.map(store_chunk, chunks, file.file_path.path.as_posix(), IdGenerator(), table)


@coco.fn
async def store_folder(documents: Path) -> None:
    schema = await lancedb.TableSchema.from_class(Row, primary_key=["id"])
    table = await lancedb.mount_table_target(DATABASE, TABLE, schema)
    matcher = PatternFilePathMatcher(included_patterns=["**/*.md"])
    files = localfs.walk_dir(documents, recursive=True, path_matcher=matcher)
    await coco.mount_each(store_file, files.items(), table)


class CocoIndex(Contender):
    """One app of its own environment."""

    packages = ("cocoindex", "lancedb")
    note = "LanceDB, its Qdrant target wants a server; RecursiveSplitter; fp32"

    def load(self, model: Path) -> None:
        self.embedder = SentenceTransformerEmbedder(str(model))
        self.embedder._get_model().encode(WARM_UP)  # noqa: SLF001 loads lazily otherwise, inside the first update
        self.encoding.watch(SentenceTransformer, "encode")

    def open(self, state: Path, documents: Path) -> None:
        self.documents, self.uri = documents, str(state / "lancedb")
        provider = coco.ContextProvider()
        provider.provide(DATABASE, asyncio.run(lancedb.connect_async(self.uri)))
        provider.provide(EMBEDDER, self.embedder)
        self.environment = coco.Environment(coco.Settings(state / "cocoindex.lmdb"), context_provider=provider)
        config = coco.AppConfig(name="ingest", environment=self.environment)
        self.app = coco.App(config, store_folder, documents=documents)

    def sync(self) -> None:
        self.app.update_blocking()

    def close(self) -> None:
        self.environment.close()

    def stored(self) -> Rows:
        rows = lancedb.connect(self.uri).open_table(TABLE).to_arrow().select(["filename", "text"]).to_pylist()
        return ((Path(row["filename"]).relative_to(self.documents).as_posix(), row["text"]) for row in rows)

    def expected(self) -> Rows:
        return ((name, chunk.text) for name, text in markdown_files(self.documents) for chunk in split(text))


CONTENDERS = {"cocoindex": CocoIndex}
