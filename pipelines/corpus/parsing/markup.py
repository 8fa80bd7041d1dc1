"""Markdown, HTML and plain text to sections under their headings.

A document that cannot be read right is a ``DocumentError``: text is never guessed. Markdown keeps its mark-up, which
readers and models both understand; table rows repeat their column names, so that a row still means something alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.corpus.parsing.outline import Outline, Parsed, collapse, facts, keywords, paragraphs, row
from pipelines.errors import DocumentError

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

TITLE_KEYS = ("title", "name")

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_MOST_VALUES = 50_000  # a YAML alias bomb says more
CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_BLOCK = re.compile(
    r"address|article|aside|blockquote|body|caption|center|d[dlt]|details|dialog|div|fieldset|figcaption|figure|footer|"
    r"form|h[1-6]|header|hgroup|hr|html|li|main|menu|ol|option|p|pre|search|section|select|summary|table|title|ul"
)
_DROPPED = ("script", "style", "template", "noscript", "svg", "nav")


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
    outline = Outline(None)
    for paragraph in paragraphs(text):
        outline.add(paragraph)
    return outline.parsed()


def parse_markdown(text: str) -> Parsed:
    """CommonMark with tables and YAML front matter, whose facts become the first section.

    Raises:
        DocumentError: the front matter is no valid YAML, or is not closed.
    """
    stated, body = _front_matter(text)
    title = next((str(stated[key]) for key in TITLE_KEYS if isinstance(stated.get(key), str) and stated[key]), None)
    outline = Outline(title)
    for line in _readable(stated):
        outline.add(line, tight=True)
    _walk_markdown(body, outline)
    return outline.parsed(stated)


def parse_html(text: str) -> Parsed:
    """HTML: headings, paragraphs, list items, table rows; scripts, styles and navigation are left out.

    Raises:
        DocumentError: elements are nested too deep to be walked.
    """
    from bs4 import BeautifulSoup

    return parse_soup(BeautifulSoup(text, "html.parser"))


def parse_soup(soup: BeautifulSoup) -> Parsed:
    """HTML that is parsed already."""
    for tag in soup(_DROPPED):
        tag.decompose()
    title = collapse(soup.title.get_text()) if soup.title else None
    outline = Outline(title or None)
    try:
        _walk_html(soup.body or soup, outline)
    except RecursionError as error:
        raise DocumentError("its elements are nested hundreds deep, which is no page that people read") from error
    outline.flush()
    return outline.parsed(_html_facts(soup))


def _html_facts(soup: BeautifulSoup) -> dict[str, str | list[str]]:
    stated: dict[str, str] = {}
    for meta in soup("meta"):
        name = str(meta.get("name") or meta.get("property") or "").lower()
        stated.setdefault(name, str(meta.get("content") or ""))
    return facts(
        author=stated.get("author"),
        description=stated.get("description"),
        keywords=keywords(stated.get("keywords", "")),
        created=stated.get("article:published_time"),
        modified=stated.get("article:modified_time"),
    )


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
        raise DocumentError(f"the front matter is not valid YAML: {collapse(str(error))}") from error
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
    return collapse(str(value))


# --- Markdown


@cache
def _commonmark() -> MarkdownIt:
    from markdown_it import MarkdownIt

    # Mark-up within lines is read where it is taken out, in headings: that alone is a third of the time.
    return MarkdownIt("commonmark").enable("table").disable(["inline", "text_join"])


def _walk_markdown(text: str, outline: Outline) -> None:
    lines = text.split("\n")
    definitions: dict[str, Any] = {}
    tokens = _commonmark().parse(text, definitions)
    header: list[str] = []
    for position, token in enumerate(tokens):
        raw = "\n".join(lines[slice(*token.map)]) if token.map else ""
        match token.level, token.type:
            case 0, "heading_open":
                outline.heading(int(token.tag[1]), _plain(tokens[position + 1].content, definitions))
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
                    outline.add(row(header, cells), tight=tokens[position - 1].type == "tr_close")


def _plain(heading: str, definitions: dict[str, Any]) -> str:
    """A heading without its mark-up."""
    children: list[Token] = []
    _commonmark().inline.parse(heading, _commonmark(), definitions, children)
    text = "".join(child.content or " " * (child.type == "softbreak") for child in children)
    return collapse(text) or collapse(heading)


def _cells(tokens: list[Token], position: int) -> list[str]:
    cells = []
    for token in _after(tokens, position):
        if token.type == "tr_close":
            break
        if token.type == "inline":
            cells.append(collapse(token.content))
    return cells


def _has_rows(tokens: list[Token], position: int) -> bool:
    ends = next(token.type for token in _after(tokens, position) if token.type in ("tbody_open", "table_close"))
    return ends == "tbody_open"


def _after(tokens: list[Token], position: int) -> Iterator[Token]:
    """The tokens that follow; a slice for each row would copy them all."""
    return map(tokens.__getitem__, range(position + 1, len(tokens)))


def _without_tags(html: str) -> str:
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    for tag in soup(_DROPPED):
        tag.decompose()
    return "\n".join(filter(None, map(collapse, soup.get_text("\n").split("\n"))))


# --- HTML


def _walk_html(node: Tag, outline: Outline, *, tight: bool = False) -> None:
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


def _html_block(tag: Tag, outline: Outline) -> None:
    match tag.name:
        case "h1" | "h2" | "h3" | "h4" | "h5" | "h6":
            if text := collapse(tag.get_text(" ")):
                outline.heading(int(tag.name[1]), text)
        case "title":
            pass
        case "pre":
            outline.add(tag.get_text())
        case "table":
            header: list[str] = []
            rows = [line for line in tag.find_all("tr") if line.find_parent("table") is tag]
            for line in rows:
                cells = [collapse(cell.get_text(" ")) for cell in line.find_all(["th", "td"], recursive=False)]
                if line is rows[0] and len(rows) > 1 and not line.find("td", recursive=False):
                    header = cells
                else:
                    outline.add(row(header, cells), tight=True)
        case name:
            _walk_html(tag, outline, tight=name in ("li", "dt", "dd"))
