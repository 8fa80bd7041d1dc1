"""Real files of each format, made by other programs than those that read them."""

from __future__ import annotations

import io
import zipfile
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

LONG = "The pump lifts water from the well to the tank on the roof, day and night. "
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
CORE = (
    '<cp:coreProperties xmlns:cp="http://schemas.openxmlformats.org/package/2006/metadata/core-properties" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:dcterms="http://purl.org/dc/terms/">{}</cp:coreProperties>'
)


def pdf(*, bookmarks: bool = False, pages: int = 3, title: str = "Pump sheet", password: str | None = None) -> bytes:
    """A heading, two paragraphs and a running header on each page."""
    from fpdf import FPDF

    class Paper(FPDF):
        def header(self) -> None:
            self.set_font("helvetica", "", 9)
            self.cell(0, 8, f"Acme Pumps - page {self.page_no()}", new_x="LMARGIN", new_y="NEXT")

    paper = Paper()
    paper.set_creation_date(datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC))
    paper.set_title(title)
    paper.set_author("Dee Doe")
    if password:
        paper.set_encryption(owner_password="owner", user_password=password)
    for number in range(1, pages + 1):
        paper.add_page()
        if bookmarks:
            paper.start_section(f"Chapter {number}", level=0)
        paper.set_font("helvetica", "B", 11 if bookmarks else 18)
        paper.cell(0, 12, f"Chapter {number}", new_x="LMARGIN", new_y="NEXT")
        for _ in range(2):
            paper.set_font("helvetica", "", 11)
            paper.multi_cell(0, 6, LONG * 4, new_x="LMARGIN", new_y="NEXT")
            paper.ln(6)
    return bytes(paper.output())


def scan(*, pictures: int = 1, texts: int = 0) -> bytes:
    """Pages that are pictures, then pages of text."""
    from fpdf import FPDF
    from PIL import Image

    paper = FPDF()
    for _ in range(pictures):
        paper.add_page()
        paper.image(Image.new("L", (60, 80), 128), x=10, y=10, w=150)
    paper.set_font("helvetica", "", 11)
    for _ in range(texts):
        paper.add_page()
        paper.multi_cell(0, 6, LONG)
    return bytes(paper.output())


def package(parts: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name, (2024, 1, 2, 3, 4, 6)), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def docx(body: str, *, core: str = "", prolog: str = "", **parts: str) -> bytes:
    """A document around ``body``, in WordprocessingML; named ``parts`` are notes, styles, …"""
    kinds = "application/vnd.openxmlformats-officedocument.wordprocessingml"
    relations = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    styles = "".join(
        f'<w:style w:type="paragraph" w:styleId="{name.replace(" ", "")}"><w:name w:val="{name}"/></w:style>'
        for name in ("Title", "heading 1", "heading 2", "List Paragraph")
    )
    parts = {"styles": styles, **parts}
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    overrides = "".join(f'<Override PartName="/word/{name}.xml" ContentType="{kinds}.{name}+xml"/>' for name in parts)
    links = "".join(
        f'<Relationship Id="r{number}" Type="{relations}/{name}" Target="{name}.xml"/>'
        for number, name in enumerate(parts)
    )
    package_relations = "http://schemas.openxmlformats.org/package/2006/relationships"
    return package(
        {
            "[Content_Types].xml": f'{head}<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
            '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Override PartName="/word/document.xml" ContentType="{kinds}.document.main+xml"/>{overrides}</Types>',
            "_rels/.rels": f'{head}<Relationships xmlns="{package_relations}"><Relationship Id="d" '
            f'Type="{relations}/officeDocument" Target="word/document.xml"/></Relationships>',
            "word/_rels/document.xml.rels": f'{head}<Relationships xmlns="{package_relations}">{links}</Relationships>',
            "word/document.xml": f'{head}{prolog}<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>',
            "docProps/core.xml": head + CORE.format(core),
            **{f"word/{name}.xml": f'{head}<w:{name} xmlns:w="{WORD}">{xml}</w:{name}>' for name, xml in parts.items()},
        }
    )


def paragraph(text: str, style: str = "") -> str:
    named = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{named}<w:r><w:t>{text}</w:t></w:r></w:p>"


def word_table(*rows: list[tuple[str, str]]) -> str:
    """Rows of (properties, text)."""
    cells = (
        "".join(f"<w:tc><w:tcPr>{properties}</w:tcPr>{paragraph(text)}</w:tc>" for properties, text in row)
        for row in rows
    )
    return f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in cells)}</w:tbl>"


def pptx() -> bytes:
    from pptx import Presentation
    from pptx.chart.data import CategoryChartData
    from pptx.enum.chart import XL_CHART_TYPE
    from pptx.util import Inches

    deck = Presentation()
    deck.core_properties.title = "Road map"
    deck.core_properties.author = "Bo Ek"
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "Next year"
    frame = slide.placeholders[1].text_frame
    frame.text = "Ship the valve"
    frame.add_paragraph().text = "in spring"
    frame.paragraphs[1].level = 1
    slide.notes_slide.notes_text_frame.text = "Thank the team."
    box = slide.shapes.add_group_shape().shapes.add_textbox(Inches(1), Inches(1), Inches(2), Inches(1))
    box.text_frame.text = "In a group"
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "Sales"
    table = slide.shapes.add_table(3, 3, Inches(1), Inches(2), Inches(4), Inches(1)).table
    for i, line in enumerate([("City", "2023", "2024"), ("Rome", "3", "4"), ("Oslo", "5", "6")]):
        for j, text in enumerate(line):
            table.cell(i, j).text = text
    figures = CategoryChartData()
    figures.categories = ["spring", "autumn"]
    figures.add_series("Valves", (7.5, 8))
    slide.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, Inches(1), Inches(4), Inches(4), Inches(2), figures)
    deck.slides.add_slide(deck.slide_layouts[6])
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    slide.shapes.add_textbox(Inches(1), Inches(1), Inches(2), Inches(1)).text_frame.text = "No title here"
    return _saved(deck)


def xlsx(sheets: dict[str, list[list[Any]]], title: str | None = None) -> bytes:
    from openpyxl import Workbook

    book = Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.properties.title = title
    book.properties.creator = "Cy Lee"
    return _saved(book)


def mail(text: str | None = "Hello,\n\nplease send 3 wheels.\n", html: str | None = None) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Ann Lee <ann@acme.example>"
    message["To"] = "bob@acme.example, Cy <cy@acme.example>"
    message["Subject"] = "Räder für den Käfer"
    message["Date"] = datetime(2024, 1, 2, 10, 11, 12, tzinfo=UTC)
    if text is not None:
        message.set_content(text)
    if html is not None:
        (message.add_alternative if text is not None else message.set_content)(html, subtype="html")
    return message


def _saved(made: Any) -> bytes:
    buffer = io.BytesIO()
    made.save(buffer)
    return buffer.getvalue()
