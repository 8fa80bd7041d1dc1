"""Markdown, HTML and plain text to sections under their headings.

A document that cannot be read right is a ``DocumentError``: text is never guessed. Markdown keeps its mark-up, which
readers and models both understand; table rows repeat their column names, so that a row still means something alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.corpus.documents import Block, Section
from pipelines.errors import DocumentError

if TYPE_CHECKING:
    from bs4 import Tag
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

PARSER_VERSION = 1
"""Raised when the same bytes come out as other text: part of the pipeline fingerprint."""

TITLE_KEYS = ("title", "name")

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_MOST_VALUES = 50_000  # a YAML alias bomb says more
_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_BLOCK = re.compile(
    r"address|article|aside|blockquote|body|caption|center|d[dlt]|details|dialog|div|fieldset|figcaption|figure|footer|"
    r"form|h[1-6]|header|hgroup|hr|html|li|main|menu|ol|option|p|pre|search|section|select|summary|table|title|ul"
)
_DROPPED = ("script", "style", "template", "noscript", "svg", "nav")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A document's text."""

    title: str | None
    """The title that the text itself states, if it does."""
    sections: tuple[Section, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Facts that the file states about itself, such as front matter; scalars are text as written."""


def parse(data: bytes, suffix: str) -> Parsed:
    """Read one file; ``suffix`` (``.md``, ``.html``, …) says how, everything else is plain text.

    Raises:
        DocumentError: the bytes are no text, or the front matter is broken.
    """
    match suffix.lower():
        case ".md" | ".markdown":
            return parse_markdown(decode(data))
        case ".html" | ".htm":
            return parse_html(decode(data, declared=_CHARSET.search(data[:4096])))
        case _:
            return parse_text(decode(data))


def decode(data: bytes, declared: re.Match[bytes] | None = None) -> str:
    r"""Text of a file: UTF-8, UTF-16 with a byte order mark, or the ``declared`` character set; lines end in ``\n``.

    Raises:
        DocumentError: the bytes are not text in that encoding.
    """
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if declared is None:
            around = data[max(0, error.start - 10) : error.start + 10]
            raise DocumentError(
                f"byte {error.start} is not {error.encoding}: …{around!r}…; save the file as UTF-8"
            ) from error
        name = declared[1].decode("ascii", "replace")
        try:
            text = data.decode(name)
        except (LookupError, UnicodeDecodeError) as wrong:
            raise DocumentError(f"the file declares charset {name!r}, which it is not: save it as UTF-8") from wrong
    if "\x00" in text:
        raise DocumentError(f"character {text.index(chr(0))} is NUL: this is a binary file, not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_text(text: str) -> Parsed:
    """Paragraphs, separated by blank lines."""
    return Parsed(None, _sections([((), _paragraphs(text))]))


def parse_markdown(text: str) -> Parsed:
    """CommonMark with tables and YAML front matter, whose facts become the first section.

    Raises:
        DocumentError: the front matter is no valid YAML, or is not closed.
    """
    facts, body = _front_matter(text)
    title = next((str(facts[key]) for key in TITLE_KEYS if isinstance(facts.get(key), str) and facts[key]), None)
    outline = _Outline(title)
    for line in _readable(facts):
        outline.add(line, tight=True)
    _walk_markdown(body, outline)
    parsed = outline.parsed()
    return Parsed(parsed.title, parsed.sections, facts)


def parse_html(text: str) -> Parsed:
    """HTML: headings, paragraphs, list items, table rows; scripts, styles and navigation are left out."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(text, "html.parser")
    for tag in soup(_DROPPED):
        tag.decompose()
    title = _collapse(soup.title.get_text()) if soup.title else None
    outline = _Outline(title or None)
    _walk_html(soup.body or soup, outline)
    outline.flush()
    return outline.parsed()


@dataclass(slots=True)
class _Outline:
    """Sections as they are found, under the headings that are open."""

    title: str | None
    sections: list[tuple[tuple[str, ...], list[Block]]] = field(default_factory=list)
    open: list[tuple[int, str]] = field(default_factory=list)
    inline: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sections.append((self._path(), []))

    def _path(self) -> tuple[str, ...]:
        headings = [text for _, text in self.open]
        if self.title is not None and headings[:1] != [self.title]:
            headings.insert(0, self.title)
        return tuple(headings)

    def heading(self, level: int, text: str) -> None:
        self.open = [(above, other) for above, other in self.open if above < level]
        self.open.append((level, text))
        self.sections.append((self._path(), []))

    def add(self, text: str, *, tight: bool = False) -> None:
        if text.strip():
            blocks = self.sections[-1][1]
            blocks.append(Block(text.strip("\n").rstrip(), tight and bool(blocks)))

    def flush(self, *, tight: bool = False) -> None:
        """End a run of inline HTML."""
        text = "\n".join(filter(None, map(_collapse, "".join(self.inline).split("\x00"))))
        self.inline.clear()
        self.add(text, tight=tight)

    def parsed(self) -> Parsed:
        title = self.title or next((path[0] for path, _ in self.sections if path), None)
        return Parsed(title, _sections(self.sections))


def _sections(found: list[tuple[tuple[str, ...], list[Block]]]) -> tuple[Section, ...]:
    return tuple(Section(path, tuple(blocks)) for path, blocks in found if path or blocks)


def _paragraphs(text: str) -> list[Block]:
    return [Block(part.strip("\n").rstrip()) for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def _collapse(text: str) -> str:
    return " ".join(text.split())


def _row(header: list[str], cells: list[str]) -> str:
    named = zip(header + [""] * (len(cells) - len(header)), cells, strict=False)
    return "; ".join(f"{name}: {cell}" if name else cell for name, cell in named if cell)


# --- front matter


def _front_matter(text: str) -> tuple[dict[str, Any], str]:
    match = _FRONT_MATTER.match(text)
    if match is None:
        if re.match(r"---[ \t]*\n[\w-]+:(?:\s|$)", text):
            raise DocumentError("the front matter opens with '---' and is never closed: add a line '---' after it")
        return {}, text
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        # Scalars as they are written: 7.10 stays 7.10, and nothing but strings, lists and mappings is ever built.
        facts = yaml.load(match[1], Loader=loader)  # noqa: S506 BaseLoader builds no objects
    except (yaml.YAMLError, RecursionError) as error:
        raise DocumentError(f"the front matter is not valid YAML: {_collapse(str(error))}") from error
    if facts in (None, ""):
        return {}, text[match.end() :]
    if not isinstance(facts, dict):  # a thematic break, not front matter
        return {}, text
    return {str(key): value for key, value in facts.items()}, text[match.end() :]


def _readable(facts: dict[str, Any]) -> Iterator[str]:
    """One line per fact; an item of a list of mappings keeps its fields together on one line."""
    budget = iter(range(_MOST_VALUES))
    try:
        for key, value in facts.items():
            yield from _fact(key, value, budget)
    except (StopIteration, RuntimeError) as error:  # PEP 479 turns the spent budget into a RuntimeError
        raise DocumentError(f"the front matter holds more than {_MOST_VALUES} values, or refers to itself") from error


def _fact(key: str, value: Any, budget: Iterator[int]) -> Iterator[str]:
    if isinstance(value, dict):
        for inner, nested in value.items():
            yield from _fact(f"{key}.{inner}", nested, budget)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield f"{key}: {_inline(item, budget)}"
    elif value not in ("", [], {}):
        yield f"{key}: {_inline(value, budget)}"


def _inline(value: Any, budget: Iterator[int]) -> str:
    next(budget)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_inline(nested, budget)}" for key, nested in value.items())
    if isinstance(value, list):
        return ", ".join([_inline(item, budget) for item in value])
    return _collapse(str(value))


# --- Markdown


@cache
def _commonmark() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table")


def _walk_markdown(text: str, outline: _Outline) -> None:
    lines = text.split("\n")
    tokens = _commonmark().parse(text)
    header: list[str] = []
    for position, token in enumerate(tokens):
        raw = "\n".join(lines[slice(*token.map)]) if token.map else ""
        match token.level, token.type:
            case 0, "heading_open":
                outline.heading(int(token.tag[1]), _plain(tokens[position + 1]))
            case 0, "paragraph_open" | "blockquote_open" | "fence" | "code_block":
                outline.add(raw)
            case 0, "html_block":
                outline.add(_without_tags(raw))
            case 1, "list_item_open":
                outline.add(raw, tight=tokens[position - 1].type == "list_item_close")
            case 2, "tr_open":
                cells = _cells(tokens, position)
                if tokens[position - 1].type == "thead_open":
                    header = cells
                    if not _has_rows(tokens, position):
                        outline.add(" | ".join(cells))
                else:
                    outline.add(_row(header, cells), tight=tokens[position - 1].type == "tr_close")


def _plain(inline: Token) -> str:
    """A heading without its mark-up."""
    text = "".join(child.content or " " * (child.type == "softbreak") for child in inline.children or ())
    return _collapse(text) or _collapse(inline.content)


def _cells(tokens: list[Token], position: int) -> list[str]:
    cells = []
    for token in tokens[position + 1 :]:
        if token.type == "tr_close":
            break
        if token.type == "inline":
            cells.append(_collapse(token.content))
    return cells


def _has_rows(tokens: list[Token], position: int) -> bool:
    ends = next(token.type for token in tokens[position:] if token.type in ("tbody_open", "table_close"))
    return ends == "tbody_open"


def _without_tags(html: str) -> str:
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    for tag in soup(_DROPPED):
        tag.decompose()
    return "\n".join(filter(None, map(_collapse, soup.get_text("\n").split("\n"))))


# --- HTML


def _walk_html(node: Tag, outline: _Outline, *, tight: bool = False) -> None:
    from bs4.element import NavigableString, PreformattedString, Tag

    for child in node.children:
        if isinstance(child, NavigableString):
            if not isinstance(child, PreformattedString):  # comments, doctype
                outline.inline.append(str(child))
        elif not isinstance(child, Tag):
            continue
        elif child.name == "br":
            outline.inline.append("\x00")
        elif not _BLOCK.fullmatch(child.name):
            _walk_html(child, outline, tight=tight)
        else:
            outline.flush(tight=tight)
            _html_block(child, outline)
    if _BLOCK.fullmatch(node.name) or node.name == "[document]":
        outline.flush(tight=tight)


def _html_block(tag: Tag, outline: _Outline) -> None:
    match tag.name:
        case "h1" | "h2" | "h3" | "h4" | "h5" | "h6":
            if text := _collapse(tag.get_text(" ")):
                outline.heading(int(tag.name[1]), text)
        case "title":
            pass
        case "pre":
            outline.add(tag.get_text())
        case "table":
            header: list[str] = []
            rows = [row for row in tag.find_all("tr") if row.find_parent("table") is tag]
            for row in rows:
                cells = [_collapse(cell.get_text(" ")) for cell in row.find_all(["th", "td"], recursive=False)]
                if row is rows[0] and len(rows) > 1 and not row.find("td", recursive=False):
                    header = cells
                else:
                    outline.add(_row(header, cells), tight=True)
        case name:
            _walk_html(tag, outline, tight=name in ("li", "dt", "dd"))
