"""What a point says beside its vector."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pipelines.corpus.documents import Chunk, Document
from pipelines.corpus.settings import FieldType, RetrievalSettings, SourceSettings
from pipelines.corpus.sources.base import moment
from pipelines.errors import DocumentError

_TRUE, _FALSE = ("true", "yes", "1", "on"), ("false", "no", "0", "off")


def _boolean(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in (*_TRUE, *_FALSE):
        raise ValueError(text)
    return text in _TRUE


_TYPES: Mapping[FieldType, tuple[Callable[[Any], Any], str]] = {
    "keyword": (str, "text"),
    "integer": (lambda value: int(str(value).strip()), "a whole number"),
    "float": (lambda value: float(str(value).strip()), "a number"),
    "boolean": (_boolean, "true or false"),
    "datetime": (lambda value: moment(value).isoformat(), "a date or date-time (ISO 8601)"),
}


def document_facts(document: Document, source: SourceSettings, retrieval: RetrievalSettings) -> dict[str, Any]:
    """What every point of ``document`` says of it, and what changes without a change of its text.

    Raises:
        DocumentError: a declared metadata field has a value of another type.
    """
    stated = {_key(name): value for name, value in document.metadata.items()}
    metadata = {}
    for name, kind in retrieval.metadata.items():
        value = stated.get(_key(name))
        if value not in (None, "", [], {}):
            metadata[name] = _typed(document, name, value, kind)
    return {
        "title": document.title,
        "uri": document.uri,
        "version": document.version,
        "updated_at": None if document.updated_at is None else document.updated_at.isoformat(),
        "metadata": metadata,
        "access": _principals(stated.get(_key(retrieval.access.field)), source),
    }


def point_payload(
    document: Document, facts: Mapping[str, Any], content_hash: str, chunk: Chunk, indexed_at: datetime
) -> dict[str, Any]:
    """The payload of one chunk."""
    return {
        **facts,
        "text": chunk.text,
        "headings": list(chunk.headings),
        "source": document.source,
        "document_id": document.document_id,
        "content_hash": content_hash,
        "indexed_at": indexed_at.isoformat(),
        "ordinal": chunk.ordinal,
    }


def _key(name: str) -> str:
    """'Release date' in a table is release_date in the settings."""
    return re.sub(r"\W+", "_", name.strip()).lower()


def _typed(document: Document, name: str, value: Any, kind: FieldType) -> Any:
    make, meant = _TYPES[kind]
    try:
        return [make(each) for each in value] if isinstance(value, list) else make(value)
    except (ValueError, OverflowError) as error:
        raise DocumentError(
            f"{document.document_id}: {name} is {value!r:.80}, which is not {meant}; correct it, or declare another "
            "type in retrieval.metadata"
        ) from error


def _principals(stated: Any, source: SourceSettings) -> list[str]:
    """Those that the document names, or else those of its source; none means that nobody may read it."""
    if stated is None:
        return sorted(set(source.access or ()))
    names = stated if isinstance(stated, list) else str(stated).split(",")
    return sorted({str(name).strip() for name in names} - {""})
