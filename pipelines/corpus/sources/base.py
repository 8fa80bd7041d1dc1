"""What every source is: it lists what it has, each document with a cheap change token, and reads what changed.

A source that cannot be listed raises; it never looks empty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines.corpus.documents import Document
from pipelines.corpus.parsing import Parsed
from pipelines.errors import DocumentError

LONGEST_ID = 1024


@dataclass(frozen=True, slots=True)
class Listed:
    """A document that a source has, not read yet."""

    document_id: str
    version: str
    """Equal version, equal content: nothing is read."""
    uri: str
    updated_at: datetime | None = None
    error: str | None = None
    """Why it cannot be read, where listing already shows it."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the last syncs left: a source may use it to ask only for what is new."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Version of each document that is indexed and was readable."""
    retry: Collection[str] = ()
    """Ids of documents that could not be read, or were half written by a crash: always list these again."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """What the last completed sync was handed (``Listing.state``)."""


NOTHING_KNOWN = Known()


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source has now."""

    documents: Sequence[Listed]
    removed: Collection[str] | None = None
    """None: whatever is not listed is gone. Otherwise only these are, and what is not listed is unchanged."""
    partial: str | None = None
    """Why some of it may be missing, if so: no deletion is concluded from it."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """JSON that the next listing is given, once everything listed here was applied or reported."""


class Source(ABC):
    """Documents of one origin."""

    @abstractmethod
    def list(self, known: Known = NOTHING_KNOWN) -> Listing:
        """Everything that the source has now, or all that changed since ``known``.

        Raises:
            SourceError: it cannot be right.
            SourceUnavailableError: it cannot be read now.
        """

    @abstractmethod
    def read(self, listed: Listed) -> Document:
        """One document of the last listing.

        Raises:
            DocumentError: this one cannot be read.
            SourceUnavailableError: none can be read now.
        """

    def read_all(self, listed: Iterable[Listed]) -> Iterator[tuple[Listed, Document | DocumentError]]:
        """Each in order, or why it cannot be read; a source that reads faster in bulk overrides it."""
        for each in listed:
            try:
                yield each, self.read(each)
            except DocumentError as error:
                yield each, error

    def close(self) -> None:  # noqa: B027 most have nothing to give back
        """Give back connections and files."""


def document(source: str, listed: Listed, parsed: Parsed, title: str, metadata: Mapping[str, Any]) -> Document:
    """What was listed, read and parsed, put together."""
    return Document(
        source=source,
        document_id=listed.document_id,
        title=title,
        uri=listed.uri,
        version=listed.version,
        updated_at=listed.updated_at,
        sections=parsed.sections,
        metadata=metadata,
    )


def moment(value: Any) -> datetime:
    """Seconds since 1970, a date-time or ISO 8601 text as an aware date-time; without a zone it is UTC."""
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def stated_moment(text: str) -> tuple[datetime | None, str | None]:
    """The moment that ``text`` states, if it does, and what is wrong with it."""
    if not text.strip():
        return None, None
    try:
        return moment(text.strip()), None
    except ValueError:
        return None, f"update time {text!r} is not ISO 8601, such as 2026-05-01T09:30:00+02:00"


def storable(text: str) -> bool:
    """Whether every database takes it: no NUL, no half surrogate pairs."""
    try:
        return "\x00" not in text and bool(text.encode("utf-8") or True)
    except UnicodeEncodeError:
        return False


def numbers(places: Sequence[int]) -> str:
    """The first ten, for messages."""
    return ", ".join(map(str, places[:10])) + (", …" if len(places) > 10 else "")
