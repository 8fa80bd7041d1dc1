from __future__ import annotations

import subprocess
import sys
from datetime import date, datetime
from typing import Any

import pytest

from pipelines.corpus.parsing import SUFFIXES, Parsed, isolated, parse
from tests.pipelines.corpus.document_files import (
    CORE,
    LONG,
    docx,
    mail,
    package,
    paragraph,
    pdf,
    pptx,
    scan,
    word_table,
    xlsx,
)


def outline(parsed: Parsed) -> list[tuple[str, list[str]]]:
    return [
        (" > ".join(section.headings), [block.text for block in section.blocks])
        for section in parsed.sections
        if section.blocks
    ]


def squeezed(parsed: Parsed) -> list[tuple[str, list[str]]]:
    return [(path, [" ".join(text.split()) for text in texts]) for path, texts in outline(parsed)]


# --- PDF


def test_larger_letters_of_a_pdf_are_headings_and_running_headers_stay_once() -> None:
    parsed = parse(pdf(), ".pdf")
    text = (LONG * 4).strip()
    assert squeezed(parsed) == [
        ("Pump sheet", ["Acme Pumps - page 1"]),
        ("Pump sheet > Chapter 1", [text, text]),
        ("Pump sheet > Chapter 2", [text, text]),
        ("Pump sheet > Chapter 3", [text, text]),
    ]
    assert parsed.title == "Pump sheet"
    assert parsed.metadata == {"author": "Dee Doe", "created": "2024-01-02T03:04:05+00:00", "pages": "3"}


def test_bookmarks_of_a_pdf_are_headings_whatever_their_letters() -> None:
    parsed = parse(pdf(bookmarks=True), ".pdf")
    assert [section.headings[1:] for section in parsed.sections[1:]] == [("Chapter 1",), ("Chapter 2",), ("Chapter 3",)]


@pytest.mark.parametrize("title", ["", "Untitled", "Microsoft Word - offer.docx", "scan0001.pdf"])
def test_a_pdf_whose_title_says_nothing_is_titled_by_its_largest_letters(title: str) -> None:
    assert parse(pdf(title=title), ".pdf").title == "Chapter 1"


def test_a_pdf_says_how_many_of_its_pages_are_pictures_only() -> None:
    parsed = parse(scan(pictures=1, texts=2), ".pdf")
    assert parsed.metadata["pages_without_text"] == "1"
    assert "The pump lifts water" in outline(parsed)[0][1][0]


# --- DOCX


def test_a_word_document_keeps_headings_lists_notes_and_what_was_inserted() -> None:
    numbered = (
        '<w:p><w:pPr><w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr></w:pPr><w:r><w:t>{}</w:t></w:r></w:p>'
    )
    body = (
        paragraph("Pump manual", "Title")
        + paragraph("Before.")
        + paragraph("Setup", "heading1")
        + '<w:p><w:r><w:t xml:space="preserve">Turn </w:t></w:r><w:ins><w:r><w:t>left</w:t></w:r></w:ins>'
        + "<w:del><w:r><w:delText>right</w:delText></w:r></w:del>"
        + '<w:r><w:footnoteReference w:id="2"/></w:r></w:p>'
        + paragraph("Parts", "heading2")
        + numbered.format("wheel")
        + numbered.format("axle")
        + f"<w:sdt><w:sdtContent>{paragraph('In a form field.')}</w:sdtContent></w:sdt>"
    )
    parsed = parse(
        docx(
            body,
            core="<dc:title>Template 7</dc:title><dc:creator>Ann Lee</dc:creator><cp:keywords>pump; water</cp:keywords>"
            "<dcterms:created>2024-01-02T03:04:05Z</dcterms:created>",
            footnotes=f'<w:footnote w:id="2">{paragraph("Never right.")}</w:footnote>',
            numbering='<w:abstractNum w:abstractNumId="0"><w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/></w:lvl>'
            '</w:abstractNum><w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>',
        ),
        ".docx",
    )
    assert outline(parsed) == [
        ("Pump manual", ["Before."]),
        ("Pump manual > Setup", ["Turn left[1]"]),
        ("Pump manual > Setup > Parts", ["wheel", "axle", "In a form field.", "Never right."]),
    ]
    assert parsed.metadata == {"author": "Ann Lee", "keywords": ["pump", "water"], "created": "2024-01-02T03:04:05Z"}


def test_rows_of_a_word_table_repeat_column_names_and_merged_cells() -> None:
    table = word_table(
        [('<w:gridSpan w:val="3"/>', "Prices of 2024")],
        [("", "Region"), ("", "Part"), ("", "Price")],
        [('<w:vMerge w:val="restart"/>', "North"), ("", "wheel"), ("", "20")],
        [("<w:vMerge/>", ""), ("", "axle"), ("", "30")],
        [("", "South"), ('<w:gridSpan w:val="2"/>', "none")],
    )
    assert outline(parse(docx(table), ".docx")) == [
        (
            "",
            [
                "Prices of 2024",
                "Region: North; Part: wheel; Price: 20",
                "Region: North; Part: axle; Price: 30",
                "Region: South; Part: none; Price: none",
            ],
        )
    ]


# --- PPTX


def test_each_slide_is_a_section_with_its_notes_tables_and_charts() -> None:
    parsed = parse(pptx(), ".pptx")
    assert outline(parsed) == [
        ("Road map > Next year", ["- Ship the valve", "  - in spring", "In a group"]),
        ("Road map > Next year > Notes", ["Thank the team."]),
        (
            "Road map > Sales",
            [
                "City: Rome; 2023: 3; 2024: 4",
                "City: Oslo; 2023: 5; 2024: 6",
                "spring; Valves: 7.5",
                "autumn; Valves: 8",
            ],
        ),
        ("Road map > Slide 4", ["No title here"]),
    ]
    assert (parsed.title, parsed.metadata["author"]) == ("Road map", "Bo Ek")


# --- XLSX


def test_each_sheet_is_a_section_and_each_row_repeats_its_column_names() -> None:
    prices = [
        ["Prices of wheels"],
        ["Part", "Price", "Since", "Sold"],
        ["A1", 20.5, date(2024, 1, 2), True],
        ["A2", None, datetime(2024, 1, 2, 3, 4), False],  # noqa: DTZ001 a spreadsheet knows no zones,
    ]
    parsed = parse(xlsx({"Prices": prices, "Empty": []}, title="Stock"), ".xlsx")
    assert outline(parsed) == [
        (
            "Stock > Prices",
            [
                "Prices of wheels",
                "Part: A1; Price: 20.5; Since: 2024-01-02; Sold: TRUE",
                "Part: A2; Since: 2024-01-02 03:04:00; Sold: FALSE",
            ],
        )
    ]
    assert (parsed.title, parsed.metadata["author"]) == ("Stock", "Cy Lee")


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        ([["a", "b"], ["x", 1], [], ["c", "d"], ["y", 2]], ["a: x; b: 1", "c: y; d: 2"]),
        ([["a", "b"], ["x", "y"], [], ["z", "w"]], ["a: x; b: y", "a: z; b: w"]),
        ([[None, 2023, 2024], ["North", 5, 6]], ["North; 2023: 5; 2024: 6"]),
        ([["Region", 2023, 2024], ["North", 5, 6]], ["Region: North; 2023: 5; 2024: 6"]),
        ([["x", 1], ["y", 2]], ["x; 1", "y; 2"]),
        ([["a", "b"]], ["a | b"]),
    ],
    ids=["two tables", "an empty row within a table", "a corner", "years", "no header", "a header only"],
)  # fmt: skip
def test_a_sheet_is_parted_into_tables_by_its_empty_rows(rows: list[list[Any]], texts: list[str]) -> None:
    assert outline(parse(xlsx({"S": rows}), ".xlsx")) == [("S", texts)]


def test_a_formula_that_was_never_calculated_is_shown_itself() -> None:
    assert outline(parse(xlsx({"S": [["n", "twice"], [2, "=A2*2"]]}), ".xlsx")) == [("S", ["n: 2; twice: =A2*2"])]


# --- EML


def test_a_mail_is_its_headers_its_text_and_its_attachments() -> None:
    message = mail(html="<p>not this")
    message.add_attachment("# Note\n\nRound ones.\n", subtype="markdown", filename="note.md")
    message.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename="wheel.png")
    message.add_attachment(scan(), maintype="application", subtype="pdf", filename="scan.pdf")
    inner = mail("Inner text.\n")
    inner.replace_header("Subject", "Older mail")
    message.add_attachment(inner)
    parsed = parse(bytes(message), ".eml")
    subject = "Räder für den Käfer"
    about = [
        "From: Ann Lee <ann@acme.example>",
        "To: bob@acme.example, Cy <cy@acme.example>",
        "Date: 2024-01-02T10:11:12+00:00",
    ]
    unread = "no text layer on 1 of 1 pages: OCR it first"
    assert outline(parsed) == [
        (subject, [*about, "Hello,", "please send 3 wheels."]),
        (f"{subject} > note.md > Note", ["Round ones."]),
        (f"{subject} > scan.pdf", [f"This attachment could not be read: {unread}."]),
        (f"{subject} > Older mail.eml > Older mail", [*about, "Inner text."]),
    ]
    assert parsed.title == subject
    assert parsed.metadata == {
        "from": "Ann Lee <ann@acme.example>",
        "to": "bob@acme.example, Cy <cy@acme.example>",
        "date": "2024-01-02T10:11:12+00:00",
        "subject": subject,
        "attachments": ["note.md", "wheel.png", "scan.pdf", "Older mail.eml"],
        "unreadable": [f"scan.pdf: {unread}"],
    }


@pytest.mark.parametrize("text", [None, "  \n"], ids=["no plain text", "empty plain text"])
def test_the_html_of_a_mail_is_read_where_it_has_no_plain_text(text: str | None) -> None:
    parsed = parse(bytes(mail(text, "<h1>Offer</h1><p>Ten wheels.</p>")), ".eml")
    assert outline(parsed)[-1] == ("Räder für den Käfer > Offer", ["Ten wheels."])


def test_mails_within_mails_are_read_to_a_depth() -> None:
    message = mail("level 0\n")
    for level in range(1, 6):
        outer = mail(f"level {level}\n")
        outer.add_attachment(message)
        message = outer
    texts = [text for _, found in outline(parse(bytes(message), ".eml")) for text in found]
    assert [text for text in texts if text.startswith("level")] == ["level 5", "level 4", "level 3", "level 2"]
    assert "This attachment could not be read: it is a mail within more than 3 mails." in texts


def test_text_of_a_mail_in_another_character_set_is_read() -> None:
    message = mail(None)
    message.set_content("Käse für 5 €\n", charset="cp1252")
    assert outline(parse(bytes(message), ".eml"))[-1][1][-1] == "Käse für 5 €"


def test_headers_of_a_mail_that_are_malformed_or_not_encoded_are_kept_as_they_are() -> None:
    raw = "From: =?bogus?q?x?= <\nSubject: Räder\nDate: soon\n\nText.\n"
    parsed = parse(raw.encode(), ".eml")
    assert parsed.metadata == {"from": "=?bogus?q?x?= <", "subject": "Räder", "date": "soon"}
    assert outline(parsed) == [("Räder", ["From: =?bogus?q?x?= <", "Date: soon", "Text."])]


# --- all


def test_html_states_facts_in_meta_elements() -> None:
    page = (
        b"<head><meta name=Author content='Ann Lee'><meta name=keywords content='pump, water'>"
        b"<meta property='article:modified_time' content='2024-01-02T03:04:05Z'></head><p>x"
    )
    assert parse(page, ".html").metadata == {
        "author": "Ann Lee",
        "keywords": ["pump", "water"],
        "modified": "2024-01-02T03:04:05Z",
    }


def files() -> dict[str, bytes]:
    message = mail()
    message.add_attachment(pdf(), maintype="application", subtype="pdf", filename="a.pdf")
    message.set_boundary("b")
    return {
        ".pdf": pdf(),
        ".docx": docx(paragraph("Text.")),
        ".pptx": pptx(),
        ".xlsx": xlsx({"S": [["a", "b"], [1, 2]]}),
        ".eml": bytes(message),
    }


def test_equal_bytes_are_equal_text_in_any_process() -> None:
    for suffix, data in files().items():
        first = parse(data, suffix)
        isolated.close()
        assert parse(data, suffix) == first, suffix
        assert first.sections


def test_every_known_ending_is_read_in_capitals_too() -> None:
    assert set(files()) < set(SUFFIXES)
    assert parse(pdf(), ".PDF").title == "Pump sheet"


def test_importing_the_parsers_loads_none_of_their_libraries() -> None:
    heavy = ["bs4", "lxml", "mammoth", "markdown_it", "openpyxl", "pptx", "pypdfium2"]
    code = f"import sys, pipelines.corpus.parsing; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_title_in_the_properties_of_a_file_is_on_one_line() -> None:
    data = package({"word/x.xml": "<x/>", "docProps/core.xml": CORE.format("<dc:title> Two\n lines </dc:title>")})
    from pipelines.corpus.parsing.office import _properties

    assert _properties(data, ".docx")[0] == "Two lines"
