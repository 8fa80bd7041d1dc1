"""Documents and the chunks that they are cut into."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipelines.fingerprint import fingerprint, text_hash


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, list item, table row or line of facts: the unit that is kept whole where it fits."""

    text: str
    tight: bool = False
    """Joined to its predecessor by one newline (items, rows) instead of a blank line."""


@dataclass(frozen=True, slots=True)
class Section:
    """What stands under one heading."""

    headings: tuple[str, ...]
    """Headings above it, outermost first; the document's own title, where the text states one, is the first."""
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """One document as its source has it now."""

    source: str
    document_id: str
    title: str
    uri: str
    version: str
    """The source's cheap change token."""
    updated_at: datetime | None
    sections: tuple[Section, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Facts as the source states them (front matter, columns): what ``retrieval.metadata`` declares is searchable."""

    @property
    def content_hash(self) -> str:
        """Hash (64 hex digits) of everything that is embedded; equal text, equal hash, wherever it lies."""
        return fingerprint(
            [(section.headings, [(block.text, block.tight) for block in section.blocks]) for section in self.sections]
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document, as it is embedded."""

    chunk_id: str
    text: str
    """The embedded text: heading path, blank line, body."""
    headings: tuple[str, ...]
    ordinal: int

    @property
    def text_hash(self) -> str:
        """Hash of the embedded text: equal hash, equal vector."""
        return text_hash(self.text)


def chunk_ids(source: str, document_id: str, texts: Sequence[str]) -> list[str]:
    """An id (UUID) for each chunk text of one document, in order.

    It is made of source, document, text and the how-manieth occurrence of that text, not of its position: an edit only
    changes the ids of the chunks that it touches, and equal text in two documents has two ids.
    """
    seen: Counter[str] = Counter()
    ids = []
    for text in texts:
        seen[text] += 1
        digest = fingerprint(source, document_id, text, seen[text])
        ids.append(str(uuid.UUID(digest[:32], version=5)))
    return ids
