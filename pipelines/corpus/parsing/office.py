"""Office Open XML: DOCX by mammoth, PPTX by python-pptx, XLSX by openpyxl."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time
from itertools import chain, pairwise, product, zip_longest
from typing import TYPE_CHECKING, Any

from pipelines.corpus.parsing.markup import parse_soup
from pipelines.corpus.parsing.outline import Outline, Parsed, collapse, facts, keywords, row, sane_title
from pipelines.errors import DocumentError

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag
    from pptx.slide import Slide
    from pptx.table import Table

MOST_ENTRIES = 10_000
MOST_UNPACKED = 500_000_000
"""Bytes of a whole file, unpacked."""

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
_FOLDERS = {".docx": "word/", ".pptx": "ppt/", ".xlsx": "xl/"}
_DOCTYPES = tuple("<!DOCTYPE".encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be"))
_UNCALCULATED = re.compile(rb"</f>\s*(?:<v\s*/>|<v></v>)?\s*</c>|<f[^>]*/>\s*</c>")
_STYLES = "p[style-name='Title'] => h1.title:fresh\n" + "\n".join(
    f"p[style-name='{name} {level}'] => h6:fresh" for name in ("heading", "Heading") for level in (7, 8, 9)
)


def _properties(data: bytes, suffix: str) -> tuple[str | None, dict[str, str | list[str]]]:
    """Title and metadata of a package that is safe to open.

    Raises:
        DocumentError: it is encrypted, damaged, of another format, or would unpack to too much; or its XML declares
            entities, which the standard forbids (ECMA-376, part 2) and attacks are made of.
    """
    if data.startswith(_OLE):
        if _ENCRYPTED in data:
            raise DocumentError("it is encrypted: save it without a password")
        raise DocumentError(f"it is a binary Office file of before 2007, not {suffix}: save it as {suffix}")
    if not data.startswith(b"PK"):
        raise DocumentError(f"it is not a {suffix} file: it does not start as a ZIP archive does")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as package:
            _check(package.infolist(), suffix)
            for entry in package.infolist():
                if entry.filename.lower().endswith((".xml", ".rels", ".vml")):
                    part = package.read(entry)
                    if any(doctype in part for doctype in _DOCTYPES):
                        raise DocumentError(f"its part {entry.filename} declares a DOCTYPE, which no Office file may")
            core = package.read("docProps/core.xml") if "docProps/core.xml" in package.namelist() else b""
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DocumentError(f"it is truncated or damaged: {error}") from error
    return _core_properties(core)


def _check(entries: Sequence[zipfile.ZipInfo], suffix: str) -> None:
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > MOST_ENTRIES or unpacked > MOST_UNPACKED:
        raise DocumentError(
            f"it unpacks to {len(entries)} parts of {unpacked} bytes, more than the {MOST_ENTRIES} parts or "
            f"{MOST_UNPACKED} bytes allowed: split it"
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise DocumentError("it is encrypted: save it without a password")
    if not any(entry.filename.startswith(_FOLDERS[suffix]) for entry in entries):
        names = (other for other, folder in _FOLDERS.items() for entry in entries if entry.filename.startswith(folder))
        raise DocumentError(f"it is not a {suffix} file: it is {next(names, 'some other ZIP archive')}")


def _core_properties(core: bytes) -> tuple[str | None, dict[str, str | list[str]]]:
    from lxml import etree

    stated: dict[str, str] = {}
    if core:
        parser = etree.XMLParser(resolve_entities=False, no_network=True)
        for element in etree.fromstring(core, parser):
            if isinstance(element.tag, str) and element.text:
                stated[etree.QName(element).localname] = element.text
    return sane_title(stated.get("title", "")), facts(
        author=stated.get("creator"),
        subject=stated.get("subject"),
        description=stated.get("description"),
        keywords=keywords(stated.get("keywords", "")),
        category=stated.get("category"),
        created=stated.get("created"),
        modified=stated.get("modified"),
    )


# --- DOCX


def parse_docx(data: bytes) -> Parsed:
    """Headings, paragraphs, lists, tables and footnotes of a document.

    Raises:
        DocumentError: it is encrypted, damaged or too large.
    """
    import mammoth
    from bs4 import BeautifulSoup

    title, metadata = _properties(data, ".docx")
    html = mammoth.convert_to_html(
        io.BytesIO(data),
        style_map=_STYLES,
        include_embedded_style_map=False,  # a file may not say which of its paragraphs are left out
        convert_image=mammoth.images.img_element(lambda image: {"alt": image.alt_text or ""}),
    ).value
    soup = BeautifulSoup(html, "html.parser")
    for link in soup.select("a[href^='#footnote-ref'], a[href^='#endnote-ref']"):
        link.decompose()
    for table in reversed(soup("table")):  # inner ones first
        _name_columns(soup, table)
    heading = soup.select_one("h1.title")
    stated = collapse(heading.get_text(" ")) if heading else title
    if stated:
        tag = soup.new_tag("title")
        tag.string = stated
        soup.append(tag)
    parsed = parse_soup(soup)
    return Parsed(parsed.title, parsed.sections, metadata)


def _name_columns(soup: BeautifulSoup, table: Tag) -> None:
    """Repeat merged cells, put lines across the whole table before it, and make its first row its header."""
    rows = [line for line in table.find_all("tr") if line.find_parent("table") is table]
    cells = [line.find_all(["td", "th"], recursive=False) for line in rows]
    while len(rows) > 1 and len(cells[0]) == 1 and any(len(each) > 1 for each in cells):
        caption = soup.new_tag("p")
        caption.string = collapse(cells[0][0].get_text(" "))
        table.insert_before(caption)
        rows[0].decompose()
        del rows[0], cells[0]
    grid = _grid(cells)
    for line, texts in zip(rows, grid, strict=True):
        line.clear()
        for text in texts:
            cell = soup.new_tag("th" if line is rows[0] else "td")
            cell.string = text
            line.append(cell)


def _grid(rows: Sequence[Sequence[Tag]]) -> list[list[str]]:
    """The texts of a table's cells; one that spans columns or rows stands in each."""
    grid: list[list[str]] = []
    hanging: dict[int, tuple[str, int]] = {}
    for cells in rows:
        line: list[str] = []
        waiting = iter(cells)
        while True:
            if (below := hanging.get(len(line))) is not None:
                text, left = below
                if left > 1:
                    hanging[len(line)] = text, left - 1
                else:
                    del hanging[len(line)]
                line.append(text)
                continue
            cell = next(waiting, None)
            if cell is None:
                break
            text, down = collapse(cell.get_text(" ")), _span(cell, "rowspan")
            for _ in range(_span(cell, "colspan")):
                if down > 1:
                    hanging[len(line)] = text, down - 1
                line.append(text)
        grid.append(line)
    return grid


def _span(cell: Tag, name: str) -> int:
    return min(1000, max(1, int(str(cell.get(name) or 1))))


# --- PPTX


def parse_pptx(data: bytes) -> Parsed:
    """A section for each slide, under its title; tables, charts, diagrams and speaker's notes too.

    Raises:
        DocumentError: it is encrypted, damaged or too large.
    """
    from pptx import Presentation

    title, metadata = _properties(data, ".pptx")
    outline = Outline(title)
    for number, slide in enumerate(Presentation(io.BytesIO(data)).slides, start=1):
        heading = slide.shapes.title
        named = collapse(heading.text_frame.text) if heading is not None else ""
        outline.heading(1, named or f"Slide {number}")
        for shape in slide.shapes:
            if heading is None or shape.shape_id != heading.shape_id:
                _add_shape(shape, outline)
        for text in _diagrams(slide):
            outline.add(text)
        if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) and notes.text.strip():
            outline.heading(2, "Notes")
            for paragraph in notes.paragraphs:
                outline.add(_paragraph(paragraph.text))
        if not named and not outline.sections[-1][1]:
            outline.sections.pop()  # a picture
    return outline.parsed(metadata)


def _add_shape(shape: Any, outline: Outline) -> None:
    from pptx.enum.shapes import PP_PLACEHOLDER
    from pptx.shapes.group import GroupShape

    kind = shape.placeholder_format.type if shape.is_placeholder else None
    if kind in (PP_PLACEHOLDER.SLIDE_NUMBER, PP_PLACEHOLDER.DATE, PP_PLACEHOLDER.FOOTER, PP_PLACEHOLDER.HEADER):
        return
    if isinstance(shape, GroupShape):
        for inner in shape.shapes:
            _add_shape(inner, outline)
    elif getattr(shape, "has_table", False):
        _add_table(shape.table, outline)
    elif getattr(shape, "has_chart", False):
        _add_chart(shape.chart, outline)
    elif shape.has_text_frame:
        listed = kind in (PP_PLACEHOLDER.BODY, PP_PLACEHOLDER.OBJECT)
        for position, paragraph in enumerate(p for p in shape.text_frame.paragraphs if p.text.strip()):
            text = _paragraph(paragraph.text)
            outline.add(f"{'  ' * paragraph.level}- {text}" if listed else text, tight=listed and position > 0)


def _paragraph(text: str) -> str:
    return text.replace("\v", "\n").strip()


def _add_table(table: Table, outline: Outline) -> None:
    lines = [[collapse(cell.text_frame.text) for cell in line.cells] for line in table.rows]
    for i, line in enumerate(table.rows):
        for j, cell in enumerate(line.cells):
            if cell.is_merge_origin:
                for down, right in product(range(cell.span_height), range(cell.span_width)):
                    lines[i + down][j + right] = lines[i][j]
    header = lines.pop(0) if table.first_row and len(lines) > 1 else []
    for position, texts in enumerate(lines):
        outline.add(row(header, texts), tight=position > 0)


def _add_chart(chart: Any, outline: Outline) -> None:
    if chart.has_title and chart.chart_title.has_text_frame:
        outline.add(collapse(chart.chart_title.text_frame.text))
    for plot in chart.plots:
        header = ["", *(series.name for series in plot.series)]
        columns = [list(map(str, plot.categories)), *(list(map(_cell, series.values)) for series in plot.series)]
        for position, texts in enumerate(zip(*columns, strict=False)):
            outline.add(row(header, list(texts)), tight=position > 0)


def _diagrams(slide: Slide) -> Iterator[str]:
    """The texts of SmartArt, which is kept in parts of its own."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    for relation in slide.part.rels.values():
        if not relation.is_external and relation.reltype.endswith("/diagramData"):
            for paragraph in etree.fromstring(relation.target_part.blob, parser).iter("{*}p"):
                yield collapse(" ".join(text.text or "" for text in paragraph.iter("{*}t")))


# --- XLSX


def parse_xlsx(data: bytes) -> Parsed:
    """A section for each sheet and a block for each row, which repeats its column names.

    Raises:
        DocumentError: it is encrypted, damaged or too large.
    """
    title, metadata = _properties(data, ".xlsx")
    outline = Outline(title)
    for name, rows in _sheets(data):
        for position, (tight, text) in enumerate(_tables(rows)):
            if position == 0:
                outline.heading(1, name)
            outline.add(text, tight=tight)
    return Parsed(title, outline.parsed().sections, metadata)


def _sheets(data: bytes) -> Iterator[tuple[str, Iterable[Sequence[Any]]]]:
    from openpyxl import load_workbook

    with zipfile.ZipFile(io.BytesIO(data)) as package:
        sheets = (name for name in package.namelist() if name.startswith("xl/worksheets/"))
        uncalculated = any(_UNCALCULATED.search(package.read(name)) for name in sheets)
    values = load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    # A formula that no program has calculated yet has no value: it is shown itself.
    formulas = load_workbook(io.BytesIO(data), read_only=True) if uncalculated else values
    for sheet, other in zip(values.worksheets, formulas.worksheets, strict=True):
        for each in (sheet, other):
            each.reset_dimensions()  # files state them wrong
        rows = sheet.iter_rows(values_only=True)
        if not uncalculated:
            yield sheet.title, rows
        else:
            pairs = zip(rows, other.iter_rows(values_only=True), strict=True)
            yield (
                sheet.title,
                (
                    [shown if value is None else value for value, shown in zip(line, written, strict=True)]
                    for line, written in pairs
                ),
            )


def _tables(rows: Iterable[Sequence[Any]]) -> Iterator[tuple[bool, str]]:
    """(follows a row of its table, text) of each row; empty rows part tables, each may have a title and a header."""
    header: list[str] = []
    tight = begun = False
    for line, below in pairwise(chain(rows, [()])):
        texts = [_cell(value) for value in line]
        filled = [text for text in texts if text]
        if not filled:
            tight = begun = False
            continue
        if not begun and len(filled) > 1 and _is_header(line, below, first=not header):
            header, begun = texts, True
            if any(map(_cell, below)):
                continue
            yield tight, " | ".join(filled)
        elif not begun and len(filled) == 1:
            yield tight, filled[0]
        else:
            begun = True
            yield tight, row(header, texts)
        tight = True


def _is_header(line: Sequence[Any], below: Sequence[Any], *, first: bool) -> bool:
    """Texts and years only; for a later table also with something else than text below one of its texts."""
    pairs = list(zip_longest(line, below[: len(line)]))
    if line[0] is not None and not any(isinstance(value, str) for value in line):
        return False
    for value, under in pairs:
        if not (value is None or isinstance(value, str) or (_is_period(value) and not _is_period(under))):
            return False
    return first or any(isinstance(value, str) and not isinstance(under, str | None) for value, under in pairs)


def _is_period(value: Any) -> bool:
    return isinstance(value, date) or (isinstance(value, int) and not isinstance(value, bool) and 1900 <= value <= 2100)


def _cell(value: Any) -> str:
    """A cell's value as a spreadsheet shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, datetime):
        return str(value.date() if value.time() == time() else value.replace(tzinfo=None))
    return collapse(str(value))
