"""What a use case's YAML says about its sources and its retrieval."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.settings import ByType, Settings

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
"""Lower-case letters, digits and underscores: it becomes part of asset keys, job names and folder names."""


class SourceSettings(Settings):
    """What every kind of source has."""

    name: Name = Field(description="Name of the source: its asset is <use_case>/<name>.")
    url: str = Field(
        min_length=1,
        description="Where the documents are: a path relative to the use case's folder, an absolute path or any "
        "fsspec URL (file://, s3://, memory://).",
    )
    schedule: str | None = Field(
        default="0 * * * *", description="Cron expression of the refresh; null for none. Default: every hour."
    )
    max_age_hours: float | None = Field(
        default=24.0, gt=0, description="The asset is reported as stale when its last refresh is older than this."
    )
    allow_empty: bool = Field(
        default=False,
        description="Whether an empty listing may delete every document of this source. Off, it is an error.",
    )


class FolderSource(SourceSettings):
    """A folder of files, one document each."""

    type: Literal["folder"] = Field(description="folder: every matching file is a document.")
    glob: tuple[str, ...] = Field(
        default=("**/*.md", "**/*.markdown", "**/*.txt", "**/*.html", "**/*.htm"),
        min_length=1,
        description="Which files below the folder are documents.",
    )


class TableSource(SourceSettings):
    """A CSV, JSON or JSONL table, one document a row."""

    type: Literal["table"] = Field(description="table: every row of a CSV, JSON or JSONL file is a document.")
    key: str = Field(min_length=1, description="Column that identifies a row for life.")
    text: str = Field(
        min_length=1, description="Template of a row's text, with columns in single braces: '{name}: {notes}'."
    )
    title: str | None = Field(default=None, description="Template of a row's title, like text; default: the key.")
    updated_at: str | None = Field(default=None, description="Column with the row's ISO update time, if there is one.")


Source = Annotated[FolderSource | TableSource, Field(discriminator="type"), ByType()]


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
    top_k: int = Field(default=5, ge=1, le=100, description="How many chunks a question retrieves unless it says.")
