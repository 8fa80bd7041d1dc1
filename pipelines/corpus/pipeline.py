"""What a collection is made with: another pipeline, another collection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from pipelines import catalog as schema
from pipelines.corpus.chunking import CHUNKER_VERSION
from pipelines.corpus.embedding import Embedder, comparable, open_embedder
from pipelines.corpus.index import PAYLOAD_VERSION
from pipelines.corpus.parsing import PARSER_VERSION
from pipelines.corpus.settings import RetrievalSettings
from pipelines.errors import ConfigError
from pipelines.fingerprint import fingerprint


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A collection, and what turns documents into its points."""

    collection: str
    embedder: Embedder
    retrieval: RetrievalSettings
    facts: Mapping[str, Any]
    """What decides the points of given documents; the collection is named by its fingerprint."""


def pipeline_of(embedder: Embedder, retrieval: RetrievalSettings) -> dict[str, Any]:
    """Everything that decides what a collection holds for given documents."""
    return {
        "embedder": dict(embedder.identity),
        "chunker": {"version": CHUNKER_VERSION, "chunk_tokens": retrieval.chunk_tokens},
        "parser": PARSER_VERSION,
        "payload": {
            "version": PAYLOAD_VERSION,
            "metadata": dict(retrieval.metadata),
            "language": retrieval.language,
            "access": retrieval.access.field,
        },
    }


def collection_name(use_case: str, pipeline: Mapping[str, Any]) -> str:
    """Name of the physical collection."""
    return f"{use_case}__{fingerprint(pipeline)[:12]}"


def embedder_of(retrieval: RetrievalSettings, built: Mapping[str, Any] | None = None) -> Embedder:
    """The embedder that ``retrieval`` configures, computing as the one that ``built`` vectors where that is given.

    Raises:
        ConfigError: it is not there, cannot compute like that here, or takes fewer tokens than a chunk may have.
    """
    how = {} if built is None else {name: built.get(name) for name in ("precision", "backend")}
    embedder = open_embedder(retrieval.embedder, retrieval.embedder_revision, **how)
    if retrieval.chunk_tokens > embedder.max_tokens:
        raise ConfigError(
            f"chunk_tokens {retrieval.chunk_tokens} exceeds the {embedder.max_tokens} tokens that {retrieval.embedder} "
            "takes: what is longer would be cut off unseen"
        )
    return embedder


def wanted_pipeline(use_case: str, retrieval: RetrievalSettings, embedder: Embedder | None = None) -> Pipeline:
    """The pipeline that the settings ask for; ``embedder`` instead of the one that they name.

    Raises:
        ConfigError: the embedder is not there, or takes fewer tokens than a chunk may have.
    """
    embedder = embedder or embedder_of(retrieval)
    facts = pipeline_of(embedder, retrieval)
    return Pipeline(collection_name(use_case, facts), embedder, retrieval, facts)


def held_pipeline(catalog: sa.Engine, collection: str, *, to_write: bool) -> Pipeline:
    """The pipeline of an existing collection, as far as this code can still run it.

    To write into it takes the very same embedder, backend and precision included; to ask it, the same weights.

    Raises:
        ConfigError: its embedder is not there any more, or has other weights.
    """
    table = schema.collections.c
    query = sa.select(table.pipeline, table.retrieval).where(table.collection == collection)
    with catalog.connect() as connection:
        row = connection.execute(query).one()
    if row.retrieval is None:
        raise ConfigError(f"collection {collection} is of an earlier version, which kept no settings")
    retrieval = RetrievalSettings.model_validate(row.retrieval)
    built = row.pipeline["embedder"]
    embedder = embedder_of(retrieval, built if to_write else None)
    if not (dict(embedder.identity) == built if to_write else comparable(built, embedder.identity)):
        raise ConfigError(
            f"collection {collection} was built by other weights or another backend of {retrieval.embedder}"
        )
    return Pipeline(collection, embedder, retrieval, row.pipeline)


def served_collection(use_case: str, catalog: sa.Engine) -> str | None:
    """The collection that answers questions, if one does."""
    table = schema.served_collections.c
    with catalog.connect() as connection:
        return connection.scalar(sa.select(table.collection).where(table.use_case == use_case))
