"""Files to sections under their headings.

A file that cannot be read right is a ``DocumentError``: text is never guessed, and nothing unread looks empty.
Markdown, HTML and text are parsed here; binary formats, whose parsers are not ours, in a process of their own.
"""

from __future__ import annotations

from collections.abc import Callable

from pipelines.corpus.parsing.markup import CHARSET, decode, parse_html, parse_markdown, parse_text
from pipelines.corpus.parsing.outline import Parsed
from pipelines.errors import DocumentError

__all__ = [
    "MOST_BYTES",
    "PARSER_VERSION",
    "SUFFIXES",
    "Parsed",
    "decode",
    "parse",
    "parse_html",
    "parse_markdown",
    "parse_text",
]

PARSER_VERSION = 1
"""Raised when the same bytes come out as other text: part of the pipeline fingerprint."""

MOST_BYTES = 50_000_000
"""Larger files are refused, unless told otherwise."""

_TEXT: dict[str, Callable[[bytes], Parsed]] = {
    ".md": lambda data: parse_markdown(decode(data)),
    ".markdown": lambda data: parse_markdown(decode(data)),
    ".txt": lambda data: parse_text(decode(data)),
    ".html": lambda data: parse_html(decode(data, declared=CHARSET.search(data[:4096]))),
    ".htm": lambda data: parse_html(decode(data, declared=CHARSET.search(data[:4096]))),
}
_OLD_OFFICE = {".doc": ".docx", ".dot": ".docx", ".ppt": ".pptx", ".pps": ".pptx", ".xls": ".xlsx"}
_BINARY = (".pdf", ".docx", ".pptx", ".xlsx", ".eml")

SUFFIXES = (*_TEXT, *_BINARY)
"""File name endings of the formats that are known."""


def parse(data: bytes, suffix: str, *, most_bytes: int = MOST_BYTES) -> Parsed:
    """Read one file; ``suffix`` (``.md``, ``.pdf``, …) says how, whatever is not in ``SUFFIXES`` is plain text.

    Raises:
        DocumentError: the file is empty, larger than ``most_bytes``, encrypted, damaged, not what its suffix says,
            without text (a scan), or takes its parser too much time or memory.
    """
    if len(data) > most_bytes:
        raise DocumentError(f"the file has {len(data)} bytes, more than the {most_bytes} allowed: split it")
    _refuse_empty(data)
    suffix = suffix.lower()
    if suffix in _BINARY:
        from pipelines.corpus.parsing import isolated

        return isolated.parse(data, suffix)
    return _parse_text(data, suffix)


def parse_here(data: bytes, suffix: str, depth: int = 0) -> Parsed:
    """``parse`` in this process; ``depth`` counts the mails around an attachment.

    Raises:
        DocumentError: as ``parse``, and whatever the libraries raise on damaged files.
    """
    from pipelines.corpus.parsing.mail import parse_mail
    from pipelines.corpus.parsing.office import parse_docx, parse_pptx, parse_xlsx
    from pipelines.corpus.parsing.pdf import parse_pdf

    _refuse_empty(data)
    match suffix.lower():
        case ".pdf":
            return parse_pdf(data)
        case ".docx":
            return parse_docx(data)
        case ".pptx":
            return parse_pptx(data)
        case ".xlsx":
            return parse_xlsx(data)
        case ".eml":
            return parse_mail(data, depth, parse_here)
        case other:
            return _parse_text(data, other)


def _refuse_empty(data: bytes) -> None:
    if not data.strip():
        raise DocumentError(f"the file is empty ({len(data)} bytes)")


def _parse_text(data: bytes, suffix: str) -> Parsed:
    if suffix in _OLD_OFFICE:
        raise DocumentError(f"{suffix} is the binary format of before 2007: save it as {_OLD_OFFICE[suffix]}")
    parsed = _TEXT.get(suffix, _TEXT[".txt"])(data)
    if not parsed.sections:
        raise DocumentError("it holds no text")
    return parsed
