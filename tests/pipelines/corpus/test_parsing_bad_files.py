from __future__ import annotations

import io
import random
import signal
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from pipelines.corpus.parsing import MOST_BYTES, isolated, office, parse, pdf
from pipelines.errors import DocumentError
from tests.pipelines.corpus.document_files import (
    docx,
    mail,
    package,
    paragraph,
    pptx,
    scan,
    xlsx,
)
from tests.pipelines.corpus.document_files import pdf as make_pdf

OLE = bytes.fromhex("d0cf11e0a1b11ae1")
ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;"><!ENTITY c SYSTEM "file:///etc/hostname">]>'


def whole(suffix: str) -> bytes:
    match suffix:
        case ".pdf":
            return make_pdf()
        case ".docx":
            return docx(paragraph("Text. " * 100))
        case ".pptx":
            return pptx()
        case ".xlsx":
            return xlsx({"S": [["a", "b"], [1, 2]]})
    message = mail()
    message.add_attachment(bytes(range(256)) * 20, maintype="application", subtype="x", filename="a.bin")
    return bytes(message)


def encrypted_mail() -> bytes:
    return b"From: a@b.example\nContent-Type: application/pkcs7-mime; smime-type=enveloped-data\n\nMIIB\n"


BAD = {
    "an encrypted PDF": (lambda: make_pdf(password="secret"), ".pdf", "encrypted: save it without a password"),
    "a scan": (scan, ".pdf", "no text layer on 1 of 1 pages: OCR it first"),
    "mostly a scan": (lambda: scan(pictures=3, texts=1), ".pdf", "no text layer on 3 of 4 pages"),
    "a blank PDF": (lambda: scan(pictures=0, texts=0), ".pdf", "no text"),
    "text named PDF": (lambda: b"Dear reader,", ".pdf", "not a PDF"),
    "a damaged PDF": (lambda: b"%PDF-1.7\nrubbish\n%%EOF\n", ".pdf", "damaged"),
    "an encrypted document": (lambda: OLE + "EncryptedPackage".encode("utf-16-le"), ".docx", "encrypted: save it"),
    "an encrypted sheet": (lambda: OLE + "EncryptedPackage".encode("utf-16-le"), ".xlsx", "encrypted: save it"),
    "an old document": (lambda: OLE + bytes(600), ".docx", r"before 2007, not \.docx: save it as \.docx"),
    "an old sheet": (lambda: OLE + bytes(600), ".xls", r"before 2007: save it as \.xlsx"),
    "a sheet named DOCX": (lambda: whole(".xlsx"), ".docx", r"not a \.docx file: it is \.xlsx"),
    "a ZIP named PPTX": (lambda: package({"a.txt": "x"}), ".pptx", "some other ZIP archive"),
    "text named XLSX": (lambda: b"a,b\n1,2\n", ".xlsx", "does not start as a ZIP archive"),
    "entities": (lambda: docx(paragraph("&b;"), prolog=ENTITIES), ".docx", "declares a DOCTYPE"),
    "UTF-16 entities": (
        lambda: package({"word/document.xml": f"<?xml version='1.0'?>{ENTITIES}<x/>".encode("utf-16")}),
        ".docx",
        "declares a DOCTYPE",
    ),
    "a document without words": (lambda: docx(paragraph("")), ".docx", "holds no text"),
    "an empty workbook": (lambda: xlsx({"Sheet1": []}), ".xlsx", "holds no text"),
    "text named EML": (lambda: b"Just some words.\n", ".eml", "no mail"),
    "a page of scripts": (lambda: b"<script>draw()</script>", ".html", "holds no text"),
    "an encrypted mail": (encrypted_mail, ".eml", "encrypted: store it decrypted"),
    "a deep page": (lambda: b"<div>" * 4000 + b"text", ".html", "nested hundreds deep"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_says_what_is_wrong_and_never_looks_empty(case: str) -> None:
    make, suffix, said = BAD[case]
    with pytest.raises(DocumentError, match=said):
        parse(make(), suffix)


@pytest.mark.parametrize("suffix", [".md", ".txt", ".html", ".pdf", ".docx", ".pptx", ".xlsx", ".eml"])
def test_an_empty_or_oversized_file_is_an_error_in_every_format(suffix: str) -> None:
    for empty in (b"", b" \n"):
        with pytest.raises(DocumentError, match=rf"the file is empty \({len(empty)} bytes\)"):
            parse(empty, suffix)
    with pytest.raises(DocumentError, match="has 11 bytes, more than the 10 allowed"):
        parse(b"x" * 11, suffix, most_bytes=10)
    with pytest.raises(DocumentError, match=f"more than the {MOST_BYTES} allowed"):
        parse(bytes(MOST_BYTES + 1), suffix)


@pytest.mark.parametrize("suffix", [".pdf", ".docx", ".pptx", ".xlsx", ".eml"])
def test_a_file_cut_off_anywhere_is_an_error(suffix: str) -> None:
    data = whole(suffix)
    start = data.index(b"\n\n") + 2 if suffix == ".eml" else 1
    for end in random.Random(7).sample(range(start, len(data) - 40), 15):
        with pytest.raises(DocumentError):
            parse(data[:end], suffix)


@pytest.mark.parametrize("suffix", [".pdf", ".docx", ".pptx", ".xlsx", ".eml"])
def test_damage_anywhere_is_text_or_an_error_and_never_a_crash(suffix: str) -> None:
    data, chance = whole(suffix), random.Random(7)
    for _ in range(15):
        damaged = bytearray(data)
        for _ in range(20):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
        with suppress(DocumentError):
            assert parse(bytes(damaged), suffix).sections


def test_a_damaged_part_of_an_office_file_is_an_error() -> None:
    data = bytearray(whole(".docx"))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = archive.getinfo("word/document.xml")
    data[entry.header_offset + 30 + len(entry.filename) + 40] ^= 0xFF
    with pytest.raises(DocumentError, match="truncated or damaged"):
        parse(bytes(data), ".docx")


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as part:
        for _ in range(office.MOST_UNPACKED // 10_000_000 + 1):
            part.write(bytes(10_000_000))
    assert len(buffer.getvalue()) < 1_000_000
    with pytest.raises(
        DocumentError, match=f"unpacks to 1 parts of 510000000 bytes.*{office.MOST_UNPACKED} bytes allowed"
    ):
        parse(buffer.getvalue(), ".docx")


def test_an_archive_of_too_many_parts_is_not_unpacked() -> None:
    many = package({f"ppt/{number}": "" for number in range(office.MOST_ENTRIES + 1)})
    with pytest.raises(DocumentError, match="unpacks to 10001 parts"):
        parse(many, ".pptx")


def test_a_pdf_of_too_many_pages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "MOST_PAGES", 2)
    with pytest.raises(DocumentError, match="3 pages, more than the 2 allowed"):
        pdf.parse_pdf(make_pdf(pages=3))


def test_a_parser_that_does_not_end_is_ended() -> None:
    large = xlsx({"S": [["a", "b"], *([number, number] for number in range(20_000))]})
    with pytest.raises(DocumentError, match=r"did not finish within 0\.2 s of processor time"):
        isolated.parse(large, ".xlsx", seconds=0.2)
    assert len(parse(large, ".xlsx").sections[0].blocks) == 20_000


def test_a_parser_that_takes_too_much_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    isolated.close()
    monkeypatch.setattr(isolated, "MEMORY", 150_000_000)
    with pytest.raises(DocumentError, match=r"more memory|crashed"):
        parse(b"Subject: much\n\n" + b"All of it is text.\n" * 2_000_000, ".eml")
    isolated.close()


def test_a_child_that_was_killed_while_it_waited_is_replaced() -> None:
    parse(make_pdf(), ".pdf")
    for child in isolated._idle:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert parse(make_pdf(), ".pdf").title == "Pump sheet"


def test_a_child_that_dies_over_a_file_is_an_error_of_that_file() -> None:
    parse(make_pdf(), ".pdf")
    large = xlsx({"S": [["a", "b"], *([number, number] for number in range(30_000))]})
    child = isolated._idle[-1]
    killer = threading.Timer(0.2, child.kill)
    killer.start()
    with pytest.raises(DocumentError, match="its parser crashed"):
        parse(large, ".xlsx")
    killer.join()
    assert parse(make_pdf(), ".pdf").title == "Pump sheet"


def test_threads_that_parse_at_once_get_their_own_answers() -> None:
    files = [xlsx({f"Sheet {number}": [["a", "b"], [number, number]]}) for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        parsed = list(pool.map(lambda data: parse(data, ".xlsx"), files))
    assert [each.sections[0].headings for each in parsed] == [(f"Sheet {number}",) for number in range(12)]
    assert len(isolated._idle) <= 4
