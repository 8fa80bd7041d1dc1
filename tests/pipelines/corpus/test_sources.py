from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.corpus.documents import Document
from pipelines.corpus.settings import FolderSource, TableSource
from pipelines.corpus.sources import open_source
from pipelines.corpus.sources.base import Source
from pipelines.corpus.sources.rows import Template
from pipelines.errors import ConfigError, DocumentError, SourceError


def folder(base: Path, **settings: Any) -> Source:
    return open_source(FolderSource(name="docs", type="folder", **{"url": ".", **settings}), base=base)


def table(base: Path, name: str, content: str, **settings: Any) -> Source:
    (base / name).write_text(content, encoding="utf-8")
    given = {"key": "id", "text": "{name}: {notes}", **settings}
    return open_source(TableSource(name="parts", type="table", url=name, **given), base=base)


def documents(source: Source) -> dict[str, Document]:
    return {listed.document_id: source.read(listed) for listed in source.list().documents}


def text(document: Document) -> str:
    return "\n".join(block.text for section in document.sections for block in section.blocks)


def settle() -> None:
    time.sleep(0.03)


def test_every_matching_file_is_a_document_with_its_path_as_id(tmp_path: Path) -> None:
    for name in ("a.md", "deep/er/b.txt", "c.pdf", "deep/d.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    found = documents(folder(tmp_path))
    assert list(found) == ["a.md", "deep/d.html", "deep/er/b.txt"]
    assert found["deep/er/b.txt"].uri == (tmp_path / "deep/er/b.txt").as_uri()
    assert found["a.md"].title == "a"
    assert found["a.md"].updated_at is not None
    assert list(documents(folder(tmp_path, glob=("*.md",)))) == ["a.md"]


def test_the_version_of_a_file_changes_with_an_edit_even_at_equal_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("one")
    before = path.stat()
    settle()
    source = folder(tmp_path)
    [listed], [again] = source.list().documents, source.list().documents
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    settle()
    assert listed == again
    assert source.list().documents[0].version != listed.version


def test_a_linked_file_changes_when_its_target_does(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("one")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").symlink_to(target)
    source = folder(tmp_path / "docs")
    before = source.list().documents[0].version
    target.write_text("another")
    assert source.list().documents[0].version != before


def test_a_broken_link_is_listed_as_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.md").symlink_to(tmp_path / "nowhere")
    source = folder(tmp_path)
    with pytest.raises(DocumentError, match="cannot be read"):
        source.read(source.list().documents[0])


def test_a_file_name_that_is_no_text_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "good.md").write_text("x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xffd.md")).write_text("x")
    source = folder(tmp_path)
    bad, good = source.list().documents
    assert source.read(good).document_id == "good.md"
    with pytest.raises(DocumentError, match="not UTF-8"):
        source.read(bad)


def test_any_fsspec_url_works_and_without_times_the_content_is_the_version() -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe("/freshet-test/a.md", b"# A\n\ntext")
    source = folder(Path("/"), url="memory://freshet-test")
    [listed] = source.list().documents
    assert listed.uri == "memory://freshet-test/a.md"
    assert text(source.read(listed)) == "text"
    files.pipe("/freshet-test/a.md", b"# A\n\ntext")
    assert source.list().documents[0].version == listed.version
    files.pipe("/freshet-test/a.md", b"# A\n\nnew")
    assert source.list().documents[0].version != listed.version
    files.rm("/freshet-test", recursive=True)


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("nowhere", SourceError, "does not exist"),
        ("file.md", SourceError, "is a file"),
        ("a\x00b", ConfigError, "no path"),
        ("nonsense://x", ConfigError, "Protocol not known"),
    ],
)
def test_a_folder_that_cannot_be_right_is_refused(tmp_path: Path, url: str, error: type[Exception], said: str) -> None:
    (tmp_path / "file.md").write_text("x")
    with pytest.raises(error, match=said):
        folder(tmp_path, url=url).list()


@pytest.mark.parametrize("glob", ["/etc/*", "../*.md"])
def test_a_glob_that_leaves_the_folder_is_refused(tmp_path: Path, glob: str) -> None:
    with pytest.raises(ConfigError, match="leaves its folder"):
        folder(tmp_path, glob=(glob,))


def test_passwords_in_urls_are_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        folder(tmp_path, url="nonsense://user:secret@host/x")
    assert "secret" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_subfolder_never_looks_empty(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(SourceError, match="may not be read"):
        folder(tmp_path).list()


def test_a_failing_listing_never_looks_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so the operating system's refusal is put in its place."""
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match="may not be read"):
        folder(tmp_path).list()


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
        ("t.csv", 'id,name,notes\n1,"open,x\n', "no valid .csv table"),
        ("t.json", '{"id": 1}', "it holds a dict"),
        ("t.json", "[1]", "row 1 is no object: '?1"),
        ("t.jsonl", '{"id": 1', "no valid .jsonl table"),
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


@pytest.mark.parametrize("name", ["t.xlsx", "t"])
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
