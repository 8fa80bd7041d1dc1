"""What a use case's YAML says about its sources and its retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from pipelines.settings import ByType, Settings

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
"""Lower-case letters, digits and underscores: it becomes part of asset keys, job names and folder names."""


class SourceSettings(Settings):
    """What every kind of source has."""

    name: Name = Field(description="Name of the source: its asset is <use_case>/<name>.")
    schedule: str | None = Field(
        default="0 * * * *", description="Cron expression of the refresh; null for none. Default: every hour."
    )
    max_age_hours: float | None = Field(
        default=24.0, gt=0, description="The asset is reported as stale when its last refresh is older than this."
    )
    max_deletions: int = Field(
        default=20, ge=0, description="So many deletions at once never need approval, whatever share they are."
    )
    max_deleted_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="More deletions than max_deletions that are also more than this share of the documents held are "
        "withheld until the job <use_case>_approve_deletions allows them; renames do not count. 1: never withheld.",
    )
    allow_empty: bool = Field(
        default=False,
        description="Whether an empty listing may delete every document without approval.",
    )
    max_failed_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="The check every_document_readable fails above this share, and warns below.",
    )
    access: tuple[str, ...] | None = Field(
        default=None,
        description="Principals (groups or users) that may read documents which state none of their own; '*' is "
        "everybody. Default: none, so that in enforce mode such documents are unreadable.",
    )

    @property
    def origin(self) -> str:
        """Where the documents come from, for people, without credentials."""
        return str(getattr(self, "url", ""))


class FileLocation(Settings):
    """A place on any file system that fsspec knows."""

    url: str = Field(
        min_length=1,
        description="Where the documents are: a path relative to the use case's folder, an absolute path or any "
        "fsspec URL (file://, s3://, gs://, https://, memory://).",
    )


class FolderSource(FileLocation, SourceSettings):
    """A folder of files, one document each."""

    type: Literal["folder"] = Field(description="folder: every matching file is a document.")
    glob: tuple[str, ...] = Field(
        default=("**/*.md", "**/*.markdown", "**/*.txt", "**/*.html", "**/*.htm"),
        min_length=1,
        description="Which files below the folder are documents.",
    )


class RowSource(SourceSettings):
    """What every source of rows has: templates that make a document of each."""

    key: str = Field(min_length=1, description="Column that identifies a row for life.")
    text: str = Field(
        min_length=1, description="Template of a row's text, with columns in single braces: '{name}: {notes}'."
    )
    title: str | None = Field(default=None, description="Template of a row's title, like text; default: the key.")
    updated_at: str | None = Field(default=None, description="Column with the row's ISO update time, if there is one.")


class TableSource(FileLocation, RowSource):
    """A CSV, JSON or JSONL table, one document a row."""

    type: Literal["table"] = Field(description="table: every row of a CSV, JSON or JSONL file is a document.")


Source = Annotated[FolderSource | TableSource, Field(discriminator="type"), ByType()]

FieldType = Literal["keyword", "integer", "float", "boolean", "datetime"]
FieldName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,62}$")]


class AccessSettings(Settings):
    """Who may read which document."""

    mode: Literal["off", "warn", "enforce"] = Field(
        default="off",
        description="off: everybody reads everything; warn: so too, but hits say what enforcing would hide; enforce: a "
        "query only finds documents that name one of its principals, and none without principals.",
    )
    field: FieldName = Field(
        default="access",
        description="Metadata field (front matter, column) with the principals that may read a document: a list, or "
        "text separated by commas; '*' is everybody.",
    )


class GoldenSettings(Settings):
    """Questions with known answers, asked before an index is served."""

    url: str | None = Field(
        default=None,
        description="JSONL or CSV file of questions: question, and relevant (document ids, separated by ';' in CSV). "
        "Default: made from document titles, and then marked as generated.",
    )
    generated: int = Field(default=50, ge=0, le=1000, description="How many questions to make where there is no file.")
    k: int = Field(default=10, ge=1, le=100, description="Depth of recall@k and nDCG@k.")
    max_drop: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="A new index whose nDCG@k is lower than the served one's by more than this, beyond chance (paired "
        "bootstrap, 95 %), is not served.",
    )


class RetrievalSettings(Settings):
    """How documents are cut, embedded and searched."""

    embedder: str = Field(
        default="all-MiniLM-L6-v2",
        min_length=1,
        description="sentence-transformers model: all-MiniLM-L6-v2 (bundled, no download), a Hub id, or a folder.",
    )
    embedder_revision: str | None = Field(
        default=None, description="Pinned revision (commit) of a Hub model; not used for bundled or local ones."
    )
    chunk_tokens: int = Field(
        default=220,
        ge=32,
        le=8192,
        description="Most tokens of a chunk, heading path included, as the embedder counts.",
    )
    metadata: Mapping[FieldName, FieldType] = Field(
        default={},
        description="Facts of documents (front matter, columns) that queries may filter by, each with its type: "
        "keyword, integer, float, boolean or datetime.",
    )
    mode: Literal["hybrid", "dense", "words"] = Field(
        default="hybrid", description="hybrid: meaning and words, fused; dense: meaning only; words: BM25 only."
    )
    fusion: Literal["dbsf", "rrf"] = Field(
        default="dbsf", description="How hybrid search merges: by distribution of scores (dbsf), or by rank (rrf)."
    )
    language: str = Field(
        default="english", description="Language of the documents, for word stems: english, german, … or none."
    )
    reranker: str | None = Field(
        default=None,
        description="Cross-encoder (Hub id or folder) that reorders the best candidates; default: none.",
    )
    access: AccessSettings = Field(default=AccessSettings(), description="Who may read which document.")
    golden: GoldenSettings = Field(
        default=GoldenSettings(), description="Questions that an index must answer before it is served."
    )
    top_k: int = Field(default=5, ge=1, le=100, description="How many chunks a question retrieves unless it says.")
    keep_days: float = Field(
        default=7.0, ge=0, description="How long a replaced index is kept, so that it can be switched back."
    )
