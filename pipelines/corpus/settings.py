"""What a use case's YAML says about its sources and its retrieval."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from pipelines.corpus.parsing import SUFFIXES
from pipelines.settings import ByField, Settings, without_credentials

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
"""Lower-case letters, digits and underscores: it becomes part of asset keys, job names and folder names."""


class SourceSettings(Settings):
    """What every kind of source has."""

    name: Name = Field(description="Name of the source: its asset is <use_case>/<name>.")
    schedule: str | None = Field(
        default="0 * * * *", description="Cron expression (UTC) of the refresh; null for none. Default: every hour."
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
    options: Mapping[str, Any] = Field(
        default={},
        repr=False,
        description="Arguments of the fsspec file system, such as endpoint_url or headers; take secrets from the "
        "environment with {{ env.NAME }}. Default: what the file system finds itself (AWS_*, GOOGLE_*, FSSPEC_*).",
    )

    @property
    def origin(self) -> str:
        """The url, without user, password and query."""
        return without_credentials(self.url)


class FolderSource(FileLocation, SourceSettings):
    """A folder of files, one document each."""

    type: Literal["folder"] = Field(description="folder: every matching file is a document.")
    glob: tuple[str, ...] = Field(
        default=tuple(f"**/*{suffix}" for suffix in SUFFIXES),
        min_length=1,
        description="Which files below the folder are documents; endings match in capitals too. Default: every format "
        "that can be read.",
    )
    max_bytes: int = Field(
        default=50_000_000, ge=1, description="Larger files are not read, but reported as failed. Default: 50 MB."
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
    """A CSV, JSON, JSONL, Parquet or XLSX table, one document a row."""

    type: Literal["table"] = Field(
        description="table: every row of a CSV, JSON, JSONL, Parquet or XLSX file is a document."
    )
    format: Literal["csv", "json", "jsonl", "parquet", "xlsx"] | None = Field(
        default=None, description="What the file is. Default: as its ending says."
    )
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="Character between the cells of a CSV file. Default: the one of , ; tab | that makes the columns.",
    )
    sheet: str | None = Field(default=None, description="Sheet of an XLSX file. Default: the first.")


class SqlSource(RowSource):
    """A table or query of any database that SQLAlchemy knows, one document a row."""

    type: Literal["sql"] = Field(description="sql: every row of a database table or query is a document.")
    url: str = Field(
        min_length=1,
        repr=False,
        description="SQLAlchemy URL, such as postgresql://user@host/database, best as '{{ env.NAME }}'; a "
        "relative SQLite path starts at the use case's folder.",
    )
    table: str | None = Field(default=None, min_length=1, description="Table or view, if need be as schema.table.")
    query: str | None = Field(
        default=None, min_length=1, description="SELECT statement instead of a table; it is run as a subquery."
    )
    updated_at: str | None = Field(
        default=None,
        description="Column with the row's update time, which every edit must move: date-time (without a zone: UTC), "
        "ISO text, or seconds or milliseconds since 1970. Without one, every listing reads every row.",
    )
    overlap_minutes: float = Field(
        default=10.0,
        ge=0,
        description="How late a change may become visible: longest transaction plus differences of clocks. Rows "
        "updated so recently are compared by content.",
    )
    deleted: str | None = Field(
        default=None, description="Column that marks deleted rows: true, a number other than 0, or any time."
    )
    incremental: bool = Field(
        default=False,
        description="Whether a listing asks only for rows updated since the last one, less the overlap, instead of for "
        "every key; rows that vanish without a mark in 'deleted' then wait for the next full listing.",
    )
    full_listing_hours: float = Field(
        default=24.0, ge=0, description="How often an incremental source lists every key all the same."
    )
    timeout_seconds: float = Field(
        default=60.0, gt=0, description="How long to wait for a connection, a lock or one statement."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> SqlSource:
        if (self.table is None) == (self.query is None):
            raise ValueError(f"source {self.name!r} needs either 'table' or 'query'")
        if self.incremental and self.updated_at is None:
            raise ValueError(f"source {self.name!r}: 'incremental' needs 'updated_at', which says what is new")
        return self

    @property
    def origin(self) -> str:
        """The database, without user, password and options, and the table."""
        return f"{without_credentials(self.url)} ({self.table or 'query'})"


class HeaderAuth(Settings):
    """A header with a secret, which is read from the environment and said nowhere."""

    header: str = Field(default="Authorization", min_length=1, description="Name of the header.")
    env: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Environment variable that holds the secret, such as MY_TOKEN."
    )
    prefix: str = Field(default="Bearer ", description="What the header says before the secret.")


def _web_address(url: str) -> str:
    if not re.match(r"https?://[^\s/]", url.strip(), re.IGNORECASE):
        raise ValueError("a web address starts with https:// or http://")
    return url.strip()


WebAddress = Annotated[str, Field(min_length=1), AfterValidator(_web_address)]
"""No pattern: a YAML file may say {{ env.NAME }}, and is checked as it is written."""


class HttpSettings(Settings):
    """How a server is asked."""

    headers: Mapping[str, str] = Field(
        default={},
        repr=False,
        description="Headers of every request to the hosts that the settings name, never to one that a redirect or a "
        "link leads to.",
    )
    auth: HeaderAuth | None = Field(default=None, description="A header with a secret, sent to the same hosts only.")
    user_agent: str = Field(
        default="Freshet",
        pattern=r"^[A-Za-z_-]+([/ (][ -~]*)?$",
        description="How requests name themselves, best with an address of yours: 'Freshet (docs@example.com)'. What "
        "robots.txt says to its first word is honoured.",
    )
    allow_private: bool = Field(
        default=False,
        description="Whether addresses that are not public may be asked, as on an intranet. The metadata services of "
        "clouds never are.",
    )
    timeout_seconds: float = Field(default=60.0, gt=0, description="How long one request may take in all.")
    max_bytes: int = Field(
        default=20_000_000, ge=1, description="Larger answers, decompressed, are refused. Default: 20 MB."
    )
    connections: int = Field(default=4, ge=1, le=64, description="Requests to one host at the same time.")
    delay_seconds: float = Field(
        default=0.0, ge=0, description="Least time from one request to the next to the same host."
    )


class LinkPages(Settings):
    """Each response has a ``Link`` header with the address of the next (RFC 8288)."""

    type: Literal["link"] = Field(description="link: the Link header says where the next page is.")


class CursorPages(Settings):
    """Each response says where the next begins."""

    type: Literal["cursor"] = Field(description="cursor: the response says where the next page begins.")
    path: str = Field(
        min_length=1,
        description="Dotted path of the next page's cursor, or of its whole address, in the response; missing, null or "
        "empty on the last page.",
    )
    param: str = Field(default="cursor", min_length=1, description="Query parameter that takes the cursor.")


class NumberedPages(Settings):
    """Pages are counted, until one is empty (or, after the first, does not exist)."""

    type: Literal["page"] = Field(description="page: pages are numbered; the first empty one is the end.")
    param: str = Field(default="page", min_length=1, description="Query parameter that takes the number.")
    start: int = Field(default=1, ge=0, description="Number of the first page.")


class OffsetPages(Settings):
    """Records are counted, until a page has none."""

    type: Literal["offset"] = Field(description="offset: records are numbered; the first empty page is the end.")
    param: str = Field(default="offset", min_length=1, description="Query parameter that takes the records to skip.")


class OnePage(Settings):
    """Everything is in one response."""

    type: Literal["none"] = Field(default="none", description="none: everything is in one response.")


Pagination = Annotated[
    LinkPages | CursorPages | NumberedPages | OffsetPages | OnePage, Field(discriminator="type"), ByField("type")
]


class SinceSettings(Settings):
    """Listings ask only for records that were updated since the last one."""

    param: str = Field(min_length=1, description="Query parameter that takes the time, such as updated_after.")
    format: Literal["iso", "seconds", "milliseconds"] = Field(
        default="iso", description="How the time is written: ISO 8601 in UTC, or seconds or milliseconds since 1970."
    )
    overlap_minutes: float = Field(
        default=10.0,
        ge=0,
        description="How late a change may become visible: asked for again, and compared by content.",
    )
    full_listing_hours: float = Field(
        default=24.0,
        ge=0,
        description="How often everything is listed all the same: that finds records which vanished without a mark.",
    )


class ApiSource(HttpSettings, RowSource):
    """A JSON API over HTTP, one document a record."""

    type: Literal["api"] = Field(description="api: every record that an HTTP JSON API lists is a document.")
    url: WebAddress = Field(description="Address that lists the records.")
    key: str = Field(min_length=1, description="Field that identifies a record for life; dotted where nested: meta.id.")
    text: str = Field(
        min_length=1, description="Template of a record's text, with fields in single braces: '{name}: {author.name}'."
    )
    title: str | None = Field(default=None, description="Template of a record's title, like text; default: the key.")
    updated_at: str | None = Field(
        default=None, description="Field with the update time: ISO 8601, or seconds or milliseconds since 1970."
    )
    records: str | None = Field(
        default=None,
        description="Dotted path of the list in the response, such as data.items. Default: it is the list.",
    )
    link: str | None = Field(
        default=None, description="Template of the address where people read a record: '{html_url}'. Default: url#key."
    )
    deleted: str | None = Field(
        default=None, description="Field that marks deleted records: true, a number other than 0, or any time."
    )
    params: Mapping[str, str | int | float | bool] = Field(
        default={}, repr=False, description="Query parameters of every request, such as per_page: 100."
    )
    pagination: Pagination = Field(default=OnePage(), description="How the next page is found.")
    since: SinceSettings | None = Field(
        default=None, description="How to ask only for what is new. Default: every listing reads everything."
    )
    max_pages: int = Field(default=1000, ge=1, description="A listing of more pages fails: it is never cut off unsaid.")

    @model_validator(mode="after")
    def _since_when(self) -> ApiSource:
        if self.since is not None and self.updated_at is None:
            raise ValueError(f"source {self.name!r}: 'since' needs 'updated_at', which says what is new")
        return self

    @property
    def origin(self) -> str:
        """The address, without query."""
        return without_credentials(self.url)


class WebSource(HttpSettings, SourceSettings):
    """Web pages, one document each."""

    type: Literal["web"] = Field(description="web: every page is a document.")
    urls: tuple[WebAddress, ...] = Field(default=(), description="Addresses of pages.")
    sitemap: WebAddress | None = Field(
        default=None, description="Address of a sitemap (or of an index of sitemaps; gzip too) that lists pages."
    )
    include: tuple[str, ...] = Field(
        default=("*",),
        min_length=1,
        description="Which addresses of the sitemap to take: 'https://example.com/docs/*'.",
    )
    exclude: tuple[str, ...] = Field(default=(), description="Which of these to leave out.")
    max_pages: int = Field(default=10_000, ge=1, description="More pages fail: the listing is never cut off unsaid.")
    robots: bool = Field(
        default=True, description="Whether robots.txt is honoured; false only for a site that is yours."
    )
    trust_lastmod: bool = Field(
        default=False,
        description="Whether a page whose lastmod in the sitemap is unchanged is not asked for. Default: each costs a "
        "conditional request.",
    )
    delay_seconds: float = Field(
        default=0.1, ge=0, description="Least time from one request to the next to the same host."
    )

    @model_validator(mode="after")
    def _some_pages(self) -> WebSource:
        if not self.urls and self.sitemap is None:
            raise ValueError(f"source {self.name!r} needs 'urls' or 'sitemap'")
        addresses = [*self.urls, *([self.sitemap] if self.sitemap else [])]
        hosts = {tuple(urlsplit(url.strip().lower())[:2]) for url in addresses}
        if (self.auth or self.headers) and len(hosts) > 1:
            raise ValueError(
                f"source {self.name!r}: 'auth' and 'headers' would go to {len(hosts)} hosts; make a source of each"
            )
        return self

    @property
    def origin(self) -> str:
        """The sitemap or the first page."""
        return without_credentials(self.sitemap or self.urls[0])


class FeedSource(HttpSettings, SourceSettings):
    """An RSS or Atom feed, one document an entry."""

    type: Literal["feed"] = Field(description="feed: every entry of an RSS or Atom feed is a document.")
    url: WebAddress = Field(description="Address of the feed.")
    keep_old: bool = Field(
        default=True,
        description="Whether entries stay when the feed no longer lists them, as feeds only list the newest.",
    )

    @property
    def origin(self) -> str:
        """The address, without query."""
        return without_credentials(self.url)


Source = Annotated[
    FolderSource | TableSource | SqlSource | ApiSource | WebSource | FeedSource,
    Field(discriminator="type"),
    ByField("type"),
]

FieldType = Literal["keyword", "integer", "float", "boolean", "datetime"]
Mode = Literal["hybrid", "dense", "words"]
Fusion = Literal["dbsf", "rrf"]
FieldName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]


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
        description="JSONL or CSV file of questions, a path relative to the use case's folder or any fsspec URL: "
        "question, and relevant (ids, source/id or uris of documents; a list in JSONL, separated by ';' in CSV). "
        "Default: made from document titles, and then marked as generated. 50 or more make a gate that notices.",
    )
    generated: int = Field(
        default=50,
        ge=0,
        le=1000,
        description="How many questions to make where there is no file; 0: none, and no gate.",
    )
    k: int = Field(default=10, ge=1, le=100, description="Depth of recall@k, MRR@k and nDCG@k, in documents.")
    max_drop: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="A new index whose nDCG@k is lower than the served one's by more than this, beyond chance (paired "
        "bootstrap, 95 %), is not served. With fewer than 10 questions only one that lost more than half is refused.",
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
    mode: Mode = Field(
        default="hybrid", description="hybrid: meaning and words, fused; dense: meaning only; words: BM25 only."
    )
    fusion: Fusion = Field(
        default="dbsf", description="How hybrid search merges: by distribution of scores (dbsf), or by rank (rrf)."
    )
    language: str = Field(
        default="english", description="Language of the documents, for word stems: english, german, … or none."
    )
    reranker: str | None = Field(
        default=None,
        description="Cross-encoder (Hub id or folder) that reorders the best candidates; default: none.",
    )
    reranker_revision: str | None = Field(
        default=None, description="Pinned revision (commit) of a reranker from the Hub; not used for local ones."
    )
    access: AccessSettings = Field(default=AccessSettings(), description="Who may read which document.")
    golden: GoldenSettings = Field(
        default=GoldenSettings(), description="Questions that compare a new index with the served one."
    )
    top_k: int = Field(default=5, ge=1, le=100, description="How many chunks a question retrieves unless it says.")
    minimum_similarity: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Cosine to a question that the closest of its chunks needs, or else nothing relevant was found "
        "and a model is told so; default: 0.3 with the bundled embedder, 0 (none) with others, whose cosines differ.",
    )
    keep_days: float = Field(
        default=7.0, ge=0, description="How long a replaced index is kept, so that it can be switched back."
    )
