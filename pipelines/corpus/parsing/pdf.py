"""PDF by PDFium, the parser of Chrome: text in reading order, headings from bookmarks or else from letter sizes."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from pipelines.corpus.parsing.outline import Outline, Parsed, collapse, facts, keywords, readable, sane_title
from pipelines.errors import DocumentError

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

MOST_PAGES = 5_000

_PASSWORD = 4  # FPDF_ERR_PASSWORD
_TAIL = 2048  # bytes within which the end is marked
_LARGER = 1.12  # letters this much larger than the text's are a heading's
_LONGEST_HEADING = 200
_RUNNING = 3  # pages that have a line at the same place, for it to be a header or footer
_MARGIN = 0.08  # of a page's height: where these stand
_GAP = 1.25  # lines this much farther apart than usual are of two paragraphs


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    size: float
    """Height of its letters, in points."""
    y: float
    """Distance of its base from the bottom of the page, in points."""
    marginal: bool
    """It stands where headers and footers do."""


_Bookmarks = dict[int, list[tuple[int, set[str]]]]


def parse_pdf(data: bytes) -> Parsed:
    """Text of a PDF, page by page.

    Raises:
        DocumentError: it is encrypted, damaged or cut off, has too many pages, or is a scan without text.
    """
    import pypdfium2

    if b"%PDF-" not in data[:1024]:
        raise DocumentError("it is not a PDF: it does not start with %PDF-")
    if b"%%EOF" not in data[-_TAIL:]:
        raise DocumentError("it is truncated: the end of the PDF (%%EOF) is missing")
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code == _PASSWORD:
            raise DocumentError("it is encrypted: save it without a password") from error
        raise DocumentError(f"it is damaged: {error}") from error
    with document:
        if len(document) > MOST_PAGES:
            raise DocumentError(f"it has {len(document)} pages, more than the {MOST_PAGES} allowed: split it")
        pages, scanned = _pages(document)
        bookmarks = _bookmarks(document)
        stated = document.get_metadata_dict()
    body = _body(pages)
    pages = _without_running_lines(pages, body, bookmarks)
    outline = Outline(sane_title(stated["Title"]) or next((_largest(lines, body) for lines in pages if lines), None))
    _walk(pages, bookmarks, {} if bookmarks else _levels(pages, body), outline)
    metadata = facts(
        author=stated["Author"],
        subject=stated["Subject"],
        keywords=keywords(stated["Keywords"]),
        created=_date(stated["CreationDate"]),
        modified=_date(stated["ModDate"]),
        pages=str(len(pages)),
        pages_without_text=str(scanned or ""),
    )
    return outline.parsed(metadata)


def _pages(document: PdfDocument) -> tuple[list[list[_Line]], int]:
    """The lines of each page, and how many pages are pictures only."""
    from pypdfium2 import raw

    pages, scanned = [], 0
    for number in range(len(document)):
        page = document[number]
        lines = list(_lines(page))
        if not lines and any(True for _ in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE])):
            scanned += 1
        pages.append(lines)
        page.close()
    if scanned * 2 > len(pages):
        raise DocumentError(f"no text layer on {scanned} of {len(pages)} pages: OCR it first")
    text = "".join(line.text for lines in pages for line in lines)
    if len(readable(text)) * 2 < len(text):
        raise DocumentError("its fonts do not say which characters they show: OCR it first")
    return [[line for line in lines if readable(line.text).strip()] for lines in pages], scanned


def _lines(page: PdfPage) -> Iterator[_Line]:
    from pypdfium2 import raw

    textpage = page.get_textpage()
    text = textpage.get_text_range()
    matrix, x, y = raw.FS_MATRIX(), ctypes.c_double(), ctypes.c_double()
    height, position = page.get_height(), 0
    for line in text.split("\r\n"):
        visible = position + len(line) - len(line.lstrip())
        if line.strip():
            at = raw.FPDFText_GetCharIndexFromTextIndex(textpage, visible)
            raw.FPDFText_GetCharOrigin(textpage, at, x, y)
            scale = (matrix.b**2 + matrix.d**2) ** 0.5 if raw.FPDFText_GetMatrix(textpage, at, matrix) else 1.0
            size = raw.FPDFText_GetFontSize(textpage, at) * scale
            marginal = not _MARGIN * height < y.value < (1 - _MARGIN) * height
            yield _Line(line.strip(), round(size, 1), y.value, marginal)
        position += len(line) + 2
    textpage.close()


def _bookmarks(document: PdfDocument) -> _Bookmarks:
    """(level, keys) of the bookmarks to each page."""
    found: _Bookmarks = {}
    for bookmark in document.get_toc():
        target = bookmark.get_dest()
        page, keys = target and target.get_index(), _keys(bookmark.get_title())
        if page is not None and keys:
            found.setdefault(page, []).append((min(6, bookmark.level + 1), keys))
    return found


def _keys(text: str) -> set[str]:
    """What a heading and its bookmark have in common: letters and digits, with or without the number in front."""
    bare = re.sub(r"^\s*(?:(?:[Cc]hapter|[Pp]art|[Aa]ppendix)\s+)?(?:\d+|[A-Z])(?:\.\d+)*[.:)]?\s+", "", text)
    return {key for key in (re.sub(r"[\W_]", "", each).casefold() for each in (text, bare)) if key}


def _without_running_lines(pages: Sequence[Sequence[_Line]], body: float, bookmarks: _Bookmarks) -> list[list[_Line]]:
    """Without headers and footers, but for their first: equal but for the page's number, three times at one place."""
    places = [
        {
            at: _place(line, number)
            for at, line in enumerate(lines)
            if line.marginal
            and line.size < body * _LARGER
            and not any(keys & _keys(line.text) for _, keys in bookmarks.get(number, ()))
        }
        for number, lines in enumerate(pages)
    ]
    often = Counter(place for found in places for place in set(found.values()))
    seen: set[str] = {"#"}  # a bare page number says nothing on the first page either
    kept: list[list[_Line]] = []
    for lines, found in zip(pages, places, strict=True):
        kept.append([])
        for at, line in enumerate(lines):
            place = found.get(at)
            if place is None or often[place] < _RUNNING or place[0] not in seen:
                kept[-1].append(line)
            if place is not None and often[place] >= _RUNNING:
                seen.add(place[0])
    return kept


def _place(line: _Line, page: int) -> tuple[str, int, int]:
    """What a running line has in common from page to page: text, distance of its number to the page's, and place."""
    text = collapse(line.text)
    numbers = list(re.finditer(r"(?<![\d.,-])\d{1,5}(?![\d.,-])", text))
    if not numbers:
        return text, 0, round(line.y)
    last = numbers[-1]
    return f"{text[: last.start()]}#{text[last.end() :]}", int(last[0]) - page, round(line.y)


def _largest(lines: Sequence[_Line], body: float) -> str | None:
    """The text in the largest letters, if they are larger than the ``body``'s: the title on a first page."""
    size = max((line.size for line in lines), default=0)
    start = next((at for at, line in enumerate(lines) if line.size == size), 0)
    level, used = _sized(lines, start, {size: 1} if size >= body * _LARGER else {})
    return collapse(_text(lines[start : start + used])) if level else None


def _walk(
    pages: Sequence[Sequence[_Line]],
    bookmarks: _Bookmarks,
    levels: dict[float, int],
    outline: Outline,
) -> None:
    for number, lines in enumerate(pages):
        marked = _marked(lines, bookmarks.get(number, []))
        distances = [above.y - below.y for above, below in pairwise(lines) if above.y > below.y]
        usual = median(distances) if distances else 0.0
        block: list[_Line] = []
        position = 0
        while position < len(lines):
            line = lines[position]
            level, used = marked.get(position) or _sized(lines, position, levels)
            if level:
                _add(block, outline)
                outline.heading(level, collapse(_text(lines[position : position + used])))
            else:
                apart = block and not 0 <= block[-1].y - line.y <= _GAP * usual
                if apart or (block and abs(block[-1].size - line.size) > 1):
                    _add(block, outline)
                block.append(line)
            position += used
        _add(block, outline)


def _add(block: list[_Line], outline: Outline) -> None:
    outline.add(_text(block))
    block.clear()


def _text(lines: Sequence[_Line]) -> str:
    # PDFium joins a word that is hyphenated at a line's end by U+FFFE.
    return readable("\n".join(line.text for line in lines))


def _body(pages: Sequence[Sequence[_Line]]) -> float:
    """The letter size that most of the text has."""
    letters: Counter[float] = Counter()
    for lines in pages:
        for line in lines:
            letters[line.size] += len(line.text)
    return max(letters, key=lambda size: (letters[size], -size), default=0.0)


def _levels(pages: Sequence[Sequence[_Line]], body: float) -> dict[float, int]:
    """The heading level of each letter size that is larger than the text's."""
    larger = {line.size for lines in pages for line in lines if line.size >= body * _LARGER}
    return {size: min(6, level) for level, size in enumerate(sorted(larger, reverse=True), start=1)}


def _sized(lines: Sequence[_Line], position: int, levels: dict[float, int]) -> tuple[int, int]:
    """(level, lines) of the heading that starts here by its size; level 0 if none does."""
    first = lines[position]
    level = levels.get(first.size, 0)
    used = 1
    while position + used < len(lines) and lines[position + used].size == first.size:
        if not 0 < lines[position + used - 1].y - lines[position + used].y < 1.6 * first.size:
            break
        used += 1
    text = "".join(line.text for line in lines[position : position + used])
    if not level or len(text) > _LONGEST_HEADING or not re.search(r"[^\W\d_]", text):
        return 0, 1
    return level, used


def _marked(lines: Sequence[_Line], bookmarks: Sequence[tuple[int, set[str]]]) -> dict[int, tuple[int, int]]:
    """(level, lines) of the headings that bookmarks point to, by the position of their first line."""
    found: dict[int, tuple[int, int]] = {}
    start = 0
    for level, keys in bookmarks:
        spans = ((at, used) for at in range(start, len(lines)) for used in (1, 2, 3))
        for at, used in spans:
            text = "\n".join(line.text for line in lines[at : at + used])
            if _keys(text) & keys:
                found[at] = (level, min(used, len(lines) - at))
                start = at + used
                break
    return found


def _date(stated: str) -> str | None:
    """A date of PDF (D:20240102101112+01'00') in ISO's spelling."""
    match = re.match(r"(?:D:)?(\d{4})(\d\d)?(\d\d)?(?:(\d\d)(\d\d)(\d\d)?)?(Z|[+-]\d\d)?'?(\d\d)?", stated)
    if match is None:
        return None
    year, month, day, hour, minute, second, zone, minutes = match.groups()
    date = f"{year}-{month or '01'}-{day or '01'}"
    if hour is None:
        return date
    offset = "" if zone is None else "+00:00" if zone == "Z" else f"{zone}:{minutes or '00'}"
    return f"{date}T{hour}:{minute}:{second or '00'}{offset}"
