from __future__ import annotations

import json
import re
import time
import tracemalloc
import zipfile
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipelines.corpus.documents import Document
from pipelines.corpus.settings import TableSource
from pipelines.corpus.sources import open_source
from pipelines.corpus.sources.base import Known, Source
from pipelines.corpus.sources.rows import Template, cell
from pipelines.corpus.sources.tables import TableDocuments
from pipelines.errors import ConfigError, DocumentError, SourceError


def table(base: Path, name: str, content: str, **settings: Any) -> Source:
    (base / name).write_text(content, encoding="utf-8")
    given = {"key": "id", "text": "{name}: {notes}", **settings}
    return open_source(TableSource(name="parts", type="table", url=name, **given), base=base)


def documents(source: Source) -> dict[str, Document]:
    return {listed.document_id: source.read(listed) for listed in source.list().documents}


def text(document: Document) -> str:
    return "\n".join(block.text for section in document.sections for block in section.blocks)


CSV = 'id,name,notes\nP1,Pump,"wet, cold"\n\nP2,Valve,\n'
JSON = json.dumps([{"id": "P1", "name": "Pump", "notes": "wet, cold"}, {"id": "P2", "name": "Valve", "notes": None}])
JSONL = "\n".join(json.dumps(row) for row in json.loads(JSON))


@pytest.mark.parametrize(("name", "content"), [("t.csv", CSV), ("t.json", JSON), ("t.jsonl", JSONL)])
def test_every_row_of_a_table_is_a_document(tmp_path: Path, name: str, content: str) -> None:
    found = documents(table(tmp_path, name, content))
    assert {key: text(document) for key, document in found.items()} == {"P1": "Pump: wet, cold", "P2": "Valve:"}
    assert found["P1"].uri == (tmp_path / name).as_uri() + "#P1"
    assert found["P1"].title == "P1"


def test_a_row_has_a_title_and_an_update_time(tmp_path: Path) -> None:
    content = "id,name,notes,at\n1,Pump,x,2026-05-01T09:30:00+02:00\n2,Valve,y,2026-05-01\n3,Tank,z,\n4,Bolt,z,soon\n"
    source = table(tmp_path, "t.csv", content, title="{name} ({id})", updated_at="at")
    pump, valve, tank, bolt = source.list().documents
    assert source.read(pump).title == "Pump (1)"
    assert source.read(pump).sections[0].headings == ("Pump (1)",)
    assert str(pump.updated_at) == "2026-05-01 09:30:00+02:00"
    assert str(valve.updated_at) == "2026-05-01 00:00:00+00:00"
    assert tank.updated_at is None
    with pytest.raises(DocumentError, match="'soon' is not ISO 8601"):
        source.read(bolt)


def test_numbers_in_json_keep_their_spelling(tmp_path: Path) -> None:
    source = table(tmp_path, "t.jsonl", '{"id": 7, "name": 0.10, "notes": [true, {"a": 1.50}]}')
    assert text(documents(source)["7"]) == '0.10: [true, {"a": "1.50"}]'


def test_only_the_rows_that_changed_have_another_version(tmp_path: Path) -> None:
    before = {each.document_id: each.version for each in table(tmp_path, "t.csv", CSV).list().documents}
    after = {
        each.document_id: each.version for each in table(tmp_path, "t.csv", CSV.replace("wet", "dry")).list().documents
    }
    assert [key for key in before if before[key] != after[key]] == ["P1"]


def test_a_key_that_occurs_twice_fails_alone_and_is_quoted(tmp_path: Path) -> None:
    source = table(tmp_path, "t.csv", CSV + "P1,Other,x\n")
    twice, good = source.list().documents
    assert text(source.read(good)) == "Valve:"
    with pytest.raises(DocumentError, match=r"key 'P1' occurs in rows 2, 5"):
        source.read(twice)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "id,name,notes\n,Pump,x\n", "no id in row 2"),
        ("t.csv", "id,name,notes\n1,Pump\n", "line 2 has 2 cells, the header has 3"),
        ("t.csv", "id,name,name\n", "columns named twice: name"),
        ("t.csv", "", "there is no header"),
        ("t.csv", 'id,name,notes\n1,"open,x\n', "no valid CSV table"),
        ("t.json", '{"id": 1}', "it holds a dict"),
        ("t.json", "[1]", "row 1 is no object: '?1"),
        ("t.jsonl", '{"id": 1', "no valid JSONL table"),
        ("t.json", '[{"id": "\\ud800", "name": "a", "notes": ""}]', "is no text"),
    ],
)
def test_a_broken_table_is_an_error_of_the_source_and_never_empty(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    with pytest.raises(SourceError, match=said):
        table(tmp_path, name, content).list()


def test_a_row_with_half_a_character_fails_alone(tmp_path: Path) -> None:
    source = table(tmp_path, "t.json", '[{"id": "1", "name": "\\ud83d", "notes": ""}]')
    with pytest.raises(DocumentError, match="no text"):
        source.read(source.list().documents[0])


@pytest.mark.parametrize(
    "settings", [{"text": "{nmae}"}, {"key": "nr"}, {"title": "{name.upper}"}, {"updated_at": "when"}]
)
def test_an_unknown_column_is_refused_with_the_columns_that_there_are(tmp_path: Path, settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"has no column .*; columns: id, name, notes"):
        table(tmp_path, "t.csv", CSV, **settings).list()


@pytest.mark.parametrize("name", ["t.xls", "t"])
def test_a_table_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed endings: .csv"):
        table(tmp_path, name, "")


def test_a_template_evaluates_nothing() -> None:
    template = Template("{{literal}} {a.__class__} {0[x]!r:>9}")
    assert template.columns == {"a.__class__", "0[x]!r:>9"}
    assert template.fill({"a.__class__": "{b}"}) == "{literal} {b} "


@pytest.mark.parametrize("template", ["{", "a } b", "{}"])
def test_a_template_with_a_stray_brace_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="is alone"):
        Template(template)


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, **options)


def write_xlsx(path: Path, rows: list[list[Any]], *, sheet: str = "Parts") -> None:
    from openpyxl import Workbook

    book = Workbook()
    book.active.title = "Notes"
    page = book.create_sheet(sheet)
    for row in rows:
        page.append(row)
    book.save(path)


def opened(base: Path, name: str, **settings: Any) -> Source:
    given = {"key": "id", "text": "{name}", **settings}
    return open_source(TableSource(name="parts", type="table", url=name, **given), base=base)


def test_values_of_parquet_become_text_as_people_write_them(tmp_path: Path) -> None:
    import pyarrow as pa

    columns = {
        "id": [7, 8],
        "name": ["Pump", None],
        "price": pa.array([Decimal("10.50"), None], pa.decimal128(8, 2)),
        "half": pa.array([0.1, None], pa.float32()),
        "whole": [3.0, None],
        "day": [date(2026, 5, 1), None],
        "at": [datetime(2026, 5, 1, 9, 30, tzinfo=UTC), None],
        "ok": [True, None],
        "tags": [["a", "b"], None],
        "more": [{"a": 1}, None],
        "bytes": [b"\xff", b"text"],
    }
    write_parquet(tmp_path / "t.parquet", columns)
    found = documents(opened(tmp_path, "t.parquet", updated_at="at"))
    assert found["7"].metadata == {
        "id": "7", "name": "Pump", "price": "10.50", "half": "0.1", "whole": "3", "day": "2026-05-01",
        "at": "2026-05-01T09:30:00+00:00", "ok": "true", "tags": "a, b", "more": '{"a": 1}',
        "bytes": "sha256:a8100ae6aa1940d0b663bb31cd466142ebbdbd5187131b92d93818987832eb89",
    }  # fmt: skip
    assert found["7"].updated_at == datetime(2026, 5, 1, 9, 30, tzinfo=UTC)
    assert set(found["8"].metadata.values()) == {"8", "", "text"}


def test_of_a_large_parquet_file_only_the_rows_asked_for_are_made(tmp_path: Path) -> None:
    count = 5000
    columns = {"id": [f"K{number}" for number in range(count)], "name": [f"Part {number}" for number in range(count)]}
    write_parquet(tmp_path / "t.parquet", columns, row_group_size=500)
    source = opened(tmp_path, "t.parquet")
    listed = source.list().documents
    assert len(listed) == count
    some = [listed[4999], listed[3], listed[1024]]
    found = [(each.document_id, text(document)) for each, document in source.read_all(some)]
    assert found == [("K4999", "Part 4999"), ("K3", "Part 3"), ("K1024", "Part 1024")]


def test_a_sheet_of_a_workbook_is_a_table(tmp_path: Path) -> None:
    rows = [["id", "name", "at", "price", None], [1, "Pump", datetime(2026, 5, 1), 2.5], [None], [2.0, None, "x", 3.0]]  # noqa: DTZ001 workbooks have no zones
    write_xlsx(tmp_path / "t.xlsx", rows)
    found = documents(opened(tmp_path, "t.xlsx", sheet="Parts"))
    assert found["1"].metadata == {"id": "1", "name": "Pump", "at": "2026-05-01", "price": "2.5"}
    assert found["2"].metadata == {"id": "2", "name": "", "at": "x", "price": "3"}
    with pytest.raises(SourceError, match=r"no sheet 'Part'; sheets: 'Notes', 'Parts'"):
        opened(tmp_path, "t.xlsx", sheet="Part").list()
    with pytest.raises(SourceError, match="there is no header"):
        opened(tmp_path, "t.xlsx").list()


def test_a_workbook_that_lies_about_its_size_is_read_whole(tmp_path: Path) -> None:
    """I7: some writers say A1 for a sheet of any size."""
    write_xlsx(tmp_path / "t.xlsx", [["id", "name"], [1, "Pump"], [2, "Valve"]])
    with zipfile.ZipFile(tmp_path / "t.xlsx") as book:
        parts = {name: book.read(name) for name in book.namelist()}
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as book:
        for name, data in parts.items():
            book.writestr(name, re.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1"', data))
    assert list(documents(opened(tmp_path, "t.xlsx", sheet="Parts"))) == ["1", "2"]


@pytest.mark.parametrize("name", ["t.parquet", "t.xlsx"])
@pytest.mark.parametrize("damage", ["nothing", "text", "half"])
def test_a_damaged_file_is_an_error_and_never_empty(tmp_path: Path, name: str, damage: str) -> None:
    """I7"""
    path = tmp_path / name
    if name == "t.xlsx":
        write_xlsx(path, [["id", "name"], [1, "Pump"]])
    else:
        write_parquet(path, {"id": [1], "name": ["Pump"]})
    data = path.read_bytes()
    path.write_bytes({"nothing": b"", "text": b"id,name\n1,Pump\n", "half": data[: len(data) // 2]}[damage])
    with pytest.raises(SourceError, match="no valid"):
        opened(tmp_path, name).list()


@pytest.mark.parametrize("delimiter", [";", "\t", "|", "^"])
def test_cells_may_be_separated_by_other_characters(tmp_path: Path, delimiter: str) -> None:
    content = (
        delimiter.join(["id", "name", "notes, long"]) + "\n" + delimiter.join(["1", '"Pump' + delimiter + '"', "a,b"])
    )
    declared = {"delimiter": "^"} if delimiter == "^" else {}
    source = table(tmp_path, "t.csv", content, text="{name} {notes, long}", **declared)
    assert text(documents(source)["1"]) == f"Pump{delimiter} a,b"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_that_spreadsheets_write(tmp_path: Path, encoding: str, ends: str) -> None:
    content = f'id,name{ends}1,"Grüße{ends}{ends}zwei"{ends}'
    (tmp_path / "t.csv").write_bytes(content.encode(encoding))
    assert text(documents(opened(tmp_path, "t.csv"))["1"]) == "Grüße\nzwei"
    (tmp_path / "t.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(SourceError, match="not UTF-8"):
        opened(tmp_path, "t.csv").list()


def test_a_long_cell_is_read_whole_and_a_binary_one_fails_alone(tmp_path: Path) -> None:
    """I10, I19"""
    (tmp_path / "t.csv").write_text(f"id,name,notes\n1,{'x' * 200_000},\n2,Valve,\x00\n3,Bolt,\n", encoding="utf-8")
    source = opened(tmp_path, "t.csv")
    long, binary, plain = (found for _, found in source.read_all(source.list().documents))
    assert isinstance(long, Document)
    assert len(text(long)) == 200_000
    assert isinstance(binary, DocumentError)
    assert isinstance(plain, Document)


def test_the_ending_may_be_declared(tmp_path: Path) -> None:
    (tmp_path / "export").write_text('{"id": 1, "name": "Pump"}\n')
    assert list(documents(opened(tmp_path, "export", format="jsonl"))) == ["1"]


def known(source: Source, retry: tuple[str, ...] = ()) -> Known:
    listing = source.list()
    return Known({each.document_id: each.version for each in listing.documents}, retry, listing.state)


def test_a_file_that_did_not_change_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path, "t.csv", CSV)
    time.sleep(0.03)
    source = opened(tmp_path, "t.csv")
    held = known(source)
    with monkeypatch.context() as patch:
        patch.setattr(TableDocuments, "_open", None)
        listing = source.list(held)
    assert (listing.documents, listing.removed, listing.state) == ((), (), held.state)


def test_what_may_have_been_missed_is_listed_again(tmp_path: Path) -> None:
    """I10: failed rows, withheld deletions, other settings and a file within the clock's tick."""
    table(tmp_path, "t.csv", CSV)
    assert opened(tmp_path, "t.csv").list().state == {}
    time.sleep(0.03)
    source = opened(tmp_path, "t.csv")
    held = known(source)
    assert source.list(replace(held, retry=("P1",))).removed is None
    assert source.list(replace(held, versions={**held.versions, "withheld": "1"})).removed is None
    changed = opened(tmp_path, "t.csv", text="{name} {notes}").list(held)
    assert changed.removed is None
    assert not set(held.versions.values()) & {each.version for each in changed.documents}
    (tmp_path / "t.csv").write_text(CSV.replace("Pump", "Gate"))
    time.sleep(0.03)
    assert source.list(held).removed is None


def test_a_row_that_goes_away_while_it_is_read_fails_alone(tmp_path: Path) -> None:
    """I10, I19"""
    source = table(tmp_path, "t.csv", CSV)
    listed = source.list().documents
    (tmp_path / "t.csv").write_text("id,name,notes\nP2,Valve,\n")
    gone, kept = (found for _, found in source.read_all(listed))
    assert isinstance(gone, DocumentError)
    assert "went away" in str(gone)
    assert isinstance(kept, Document)


def test_memory_does_not_grow_with_the_rows_of_a_table(tmp_path: Path) -> None:
    """Neither listing nor reading holds the rows: what they say is a hundred times what a listing keeps."""
    count, words = 1000, "word " * 4000
    with (tmp_path / "t.jsonl").open("w") as file:
        for number in range(count):
            file.write(json.dumps({"id": number, "name": f"{number} {words}"}) + "\n")
    source = opened(tmp_path, "t.jsonl")
    source.list()
    tracemalloc.start()
    listed = source.list().documents
    assert sum(1 for _ in source.read_all(listed)) == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (tmp_path / "t.jsonl").stat().st_size / 10


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.0, "1"),
        (1e300, "1e+300"),
        (float("nan"), ""),
        (Decimal("1E+2"), "100"),
        (timedelta(hours=1), "1:00:00"),
        (["a", 1], '["a", 1]'),
        ({"day": date(2026, 5, 1)}, '{"day": "2026-05-01"}'),
    ],
)
def test_values_are_written_as_people_do(value: Any, said: str) -> None:
    assert cell(value) == said
