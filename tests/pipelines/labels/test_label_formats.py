from __future__ import annotations

import csv
import io
import json
import traceback
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import ConfigError, SourceError, SourceUnavailableError
from pipelines.labels.examples import Submitted
from pipelines.labels.reading import read_examples
from pipelines.labels.settings import LabelSettings


def read(path: Path, content: str | bytes, **settings: Any) -> tuple[Submitted, ...]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_examples(LabelSettings(url=path.name, **settings), base=path.parent).rows


def test_a_jsonl_row_is_read_with_its_place(tmp_path: Path) -> None:
    row = {
        "text": "Where is it?", "label": " shipping ", "group": "c-1", "split": "dev", "origin": "rule", "author": "ann"
    }  # fmt: skip
    (found,) = read(tmp_path / "a.jsonl", "\n" + json.dumps(row) + "\r\n")
    assert (found.text, found.labels, found.group, found.split) == ("Where is it?", ("shipping",), "c-1", "validation")
    assert (found.origin, found.author, found.location, found.problem) == ("rule", "ann", "a.jsonl:2", None)


def test_a_csv_row_is_read_with_its_place_even_after_a_text_of_several_lines(tmp_path: Path) -> None:
    content = '\ufefftext, category\r\n"one\r\ntwo, ""three""",billing\r\n\r\nfour,shipping\r\n'
    first, second = read(tmp_path / "a.csv", content, label_column="category")
    assert (first.text, first.labels, first.location) == ('one\r\ntwo, "three"', ("billing",), "a.csv:2")
    assert (second.text, second.labels, second.location) == ("four", ("shipping",), "a.csv:5")
    assert second.origin == "human"


@pytest.mark.parametrize("cell", ["b;a; b", '"[""b"", ""a""]"'])
def test_several_labels_in_a_csv_cell(tmp_path: Path, cell: str) -> None:
    (found,) = read(tmp_path / "a.csv", f"text,label\nsome text,{cell}\n", multi_label=True)
    assert found.labels == ("a", "b")


def test_a_multi_label_row_may_have_no_label_but_has_to_say_so(tmp_path: Path) -> None:
    nothing, null, missing = read(
        tmp_path / "a.jsonl",
        '{"text": "x", "label": []}\n{"text": "x", "label": null}\n{"text": "x"}\n',
        multi_label=True,
    )
    assert (nothing.labels, nothing.problem) == ((), None)
    assert null.problem == "label is null; an example without labels has an empty list"
    assert missing.problem == "no column 'label' (the row has 'text')"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "cut off', "not JSON (Unterminated string starting at: line 1 column 10 (char 9))"),
        ('["a list"]', "a list, not a JSON object"),
        ("null", "null, not a JSON object"),
        (
            "[" * 100_000,
            "not JSON (maximum recursion depth exceeded while decoding a JSON array from a unicode string)",
        ),
        ('{"body": "x", "label": "a"}', "no column 'text' (the row has 'body', 'label')"),
        ('{"text": 7, "label": "a"}', "text is a number, not a string"),
        ('{"text": "x", "label": 7}', "label holds a number, not a string or a list of strings"),
        ('{"text": "x", "label": ["a", null]}', "label holds null, not a string or a list of strings"),
        ('{"text": "x", "label": "a", "group": ["g"]}', "group is a list, not a string"),
        (
            '{"text": "x", "label": "a", "split": "holdout"}',
            "split 'holdout' is unknown; allowed: train, validation, valid, val, dev, test",
        ),
    ],
)
def test_a_row_that_cannot_be_read_comes_out_as_it_was_with_the_reason(tmp_path: Path, line: str, problem: str) -> None:
    good = '{"text": "fine", "label": "a"}'
    before, bad, after = read(tmp_path / "a.jsonl", f"{good}\n{line}\n{good}\n")
    assert bad.problem == problem or (line.startswith("[[") and str(bad.problem).startswith("not JSON"))
    assert (bad.raw, bad.location) == (line, "a.jsonl:2")
    assert before.problem is None
    assert after.problem is None


def test_a_csv_row_with_cells_missing_or_a_quote_left_open_costs_only_itself(tmp_path: Path) -> None:
    content = 'text,label\ngood one,a\nonly a cell\n"never closed,a\ngood two,b\nx,y,z\ngood three,a\n'
    rows = read(tmp_path / "a.csv", content)
    assert [(row.row, row.text or row.problem) for row in rows] == [
        (2, "good one"),
        (3, "1 cells where the header names 2"),
        (4, "not CSV (unexpected end of data)"),
        (5, "good two"),
        (6, "3 cells where the header names 2"),
        (7, "good three"),
    ]
    assert rows[2].raw == '"never closed,a'


def test_bytes_that_no_database_stores_spoil_their_own_row_only(tmp_path: Path) -> None:
    content = (
        b'{"text": "caf\xe9", "label": "a"}\n'
        b'{"text": "nul \\u0000, half \\ud83d", "label": "a"}\n'
        b'{"text": "ok", "label": "a"}\n'
    )
    rows = read(tmp_path / "a.jsonl", content)
    assert [row.text for row in rows] == ["caf\x1a", "nul \x1a, half \x1a", "ok"]
    for row in rows:
        row.raw.encode()


def test_the_same_row_has_the_same_id_wherever_it_stands(tmp_path: Path) -> None:
    (a,) = read(tmp_path / "a.jsonl", '{"text": "x y", "label": "l", "author": "ann"}\n')
    (b,) = read(tmp_path / "b.csv", "label,text\nl,x y\n")
    (c,) = read(tmp_path / "c.csv", "label,text,group\nl,x y,g\n")
    assert a.example_id == b.example_id != c.example_id


def test_given_splits_can_come_from_file_names_and_a_rows_own_split_wins(tmp_path: Path) -> None:
    (tmp_path / "valid.csv").write_text("text,label,split\none,a,\ntwo,a,test\n")
    (tmp_path / "train-1.csv").write_text("text,label\nthree,a\n")
    (tmp_path / "more.csv").write_text("text,label\nfour,a\n")
    settings = LabelSettings(url=str(tmp_path), file_splits={"train-*": "train", "valid.*": "validation"})
    rows = read_examples(settings, base=Path("/nowhere")).rows
    assert {row.text: row.split for row in rows} == {"one": "validation", "two": "test", "three": "train", "four": None}


CHAT = [{"role": "user", "content": "Is it dear?"}, {"role": "assistant", "content": "No."}]


def write_parquet(path: Path, columns: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": metadata}})})
    pq.write_table(table, path, row_group_size=2)


def test_parquet_rows_are_read_with_their_nested_turns_dates_and_nulls(tmp_path: Path) -> None:
    columns = {
        "messages": [CHAT, None, CHAT[:1]],
        "prompt": [None, "Is it blue?", None],
        "completion": [None, "Yes.", None],
        "time": pa.array([1_777_636_800_000_000] * 2 + [None], pa.timestamp("us", "UTC")),
        "price": [Decimal("1.50"), None, None],
        "score": [float("nan"), 0.5, None],
        "id": [7, 8, None],
    }
    write_parquet(tmp_path / "a.parquet", columns)
    settings = LabelSettings(url="a.parquet", slice_columns=("price",))
    nested, pair, broken = read_examples(settings, base=tmp_path, task="generate").rows
    assert [turn.content for turn in nested.messages] == ["Is it dear?", "No."]
    assert (nested.location, nested.key, nested.slices) == ("a.parquet:1", "7", ("price=1.50",))
    assert nested.labelled_at == pair.labelled_at == datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert [turn.content for turn in pair.messages] == ["Is it blue?", "Yes."]
    assert json.loads(nested.raw)["score"] is None
    assert str(broken.problem).startswith("it ends with a turn of the user")


def test_numbers_of_labels_in_parquet_become_the_names_that_the_file_gives_them(tmp_path: Path) -> None:
    label = {"names": ["billing", "shipping"], "_type": "ClassLabel"}
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": label, "turns": [{"x": label}]}
    write_parquet(tmp_path / "a.parquet", {"text": ["x", "y", "z"], "label": [1, 0, -1], "n": [1, 2, 3]}, features)
    rows = read_examples(LabelSettings(url="a.parquet"), base=tmp_path).rows
    assert [row.labels for row in rows] == [("shipping",), ("billing",), ()]
    several = {"text": features["text"], "label": {"feature": label, "_type": "List"}}
    write_parquet(tmp_path / "b.parquet", {"text": ["x"], "label": [[1, 0]]}, several)
    (row,) = read_examples(LabelSettings(url="b.parquet", multi_label=True), base=tmp_path).rows
    assert row.labels == ("billing", "shipping")
    write_parquet(tmp_path / "c.parquet", {"text": ["x"], "label": [1]})
    (row,) = read_examples(LabelSettings(url="c.parquet"), base=tmp_path).rows
    assert row.problem == "label holds a number, not a string or a list of strings"


def test_a_parquet_file_that_is_broken_is_an_error(tmp_path: Path) -> None:
    """T13."""
    with pytest.raises(SourceError, match=r"a.parquet is not a Parquet file that can be read"):
        read(tmp_path / "a.parquet", b"PAR1 and then nothing")
    write_parquet(tmp_path / "b.parquet", {"text": ["some text"] * 100, "label": ["a"] * 100})
    whole = (tmp_path / "b.parquet").read_bytes()
    with pytest.raises(SourceError, match=r"b.parquet is not a Parquet file that can be read"):
        read(tmp_path / "b.parquet", whole[:4] + bytes(100) + whole[104:])


def test_json_in_csv_cells_is_read(tmp_path: Path) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["messages", "prompt", "completion", "context"])
    writer.writerow([json.dumps(CHAT), "", "", "[]"])
    writer.writerow(["", json.dumps(CHAT[:1]), json.dumps(CHAT[1:]), '["one", "two"]'])
    writer.writerow(["", "[1] is this a footnote?", "Yes.", "[see below]"])
    writer.writerow(["[{", "", "", ""])
    (tmp_path / "a.csv").write_text(buffer.getvalue())
    rows = read_examples(LabelSettings(url="a.csv"), base=tmp_path, task="generate").rows
    assert [row.context for row in rows] == [(), ("one", "two"), ("[see below]",), None]
    assert [[turn.content for turn in row.messages] for row in rows] == [
        ["Is it dear?", "No."],
        ["Is it dear?", "No."],
        ["[1] is this a footnote?", "Yes."],
        [],
    ]
    assert str(rows[3].problem).startswith("messages is no JSON list of turns")


def test_a_json_file_is_a_list_of_rows_or_one_row_a_line(tmp_path: Path) -> None:
    row = {"text": "x", "label": "a"}
    first, second = read(tmp_path / "a.json", json.dumps([row, 7], indent=1))
    assert (first.labels, first.location, second.problem) == (("a",), "a.json:1", "a number, not a JSON object")
    lines = read(tmp_path / "b.json", f"{json.dumps(row)}\n{json.dumps(row)}\n")
    assert [line.location for line in lines] == ["b.json:1", "b.json:2"]
    with pytest.raises(SourceError, match=r"c.json is not JSON \(.*; correct it, or write one row a line \(.jsonl\)"):
        read(tmp_path / "c.json", json.dumps([row, row])[:-5])


def test_what_is_not_there_is_an_error_and_never_no_examples(tmp_path: Path) -> None:
    """T13."""
    with pytest.raises(SourceError, match=r"no such folder or file \(labels.url\)"):
        read_examples(LabelSettings(url="missing"), base=tmp_path)
    (tmp_path / "labels").mkdir()
    with pytest.raises(SourceError, match=r"no file in .*labels matches \*\.jsonl, \*\.csv"):
        read_examples(LabelSettings(url="labels"), base=tmp_path)
    (tmp_path / "labels" / "a.xlsx").write_bytes(b"x")
    with pytest.raises(
        SourceError, match=r"format '.xlsx' is unknown; allowed: .jsonl, .ndjson, .csv, .parquet, .json"
    ):
        read_examples(LabelSettings(url="labels", glob=("*",)), base=tmp_path)
    with pytest.raises(ConfigError, match="Protocol not known: nosuch"):
        read_examples(LabelSettings(url="nosuch://bucket/x"), base=tmp_path)


class Offline(fsspec.AbstractFileSystem):
    """Storage that lists its files and then cannot be reached."""

    protocol = "offline"

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        name = f"{path.partition('/')[0]}/a.jsonl"
        return [{"name": name, "size": 1, "type": "file"}] if detail else [name]

    def isfile(self, path: str) -> bool:
        return path.endswith(".jsonl")

    def cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        raise TimeoutError(f"no answer for {path}")


def test_a_file_that_cannot_be_read_is_an_error_and_never_no_examples(tmp_path: Path) -> None:
    """T13."""
    fsspec.register_implementation("offline", Offline, clobber=True)
    for url in ("offline://inbox", "offline://inbox/a.jsonl"):
        with pytest.raises(
            SourceUnavailableError, match=f"{url} cannot be read: TimeoutError: no answer for inbox/a.jsonl"
        ):
            read_examples(LabelSettings(url=url), base=tmp_path)
    secret = LabelSettings(url="offline://ann:hunter2@inbox/a.jsonl")
    with pytest.raises(SourceUnavailableError, match=r"offline://…@inbox/a.jsonl cannot be read: TimeoutE") as caught:
        read_examples(secret, base=tmp_path)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_csv_without_a_usable_header_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="names a column twice: text, text"):
        read(tmp_path / "a.csv", "text,text\nx,y\n")
    with pytest.raises(SourceError, match="its header is not CSV"):
        read(tmp_path / "b.csv", 'text,"label\nx,y\n')


def test_files_behind_an_fsspec_url_are_read_and_a_missing_folder_there_is_an_error() -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/inbox/a.jsonl", b'{"text": "from afar", "label": "a"}\n')
    files.pipe("/inbox/deep/b.jsonl", b'{"text": "further", "label": "a"}\n')
    with files.open("/inbox/deep/c.parquet", "wb") as file:
        pq.write_table(pa.table({"text": ["columns"], "label": ["a"]}), file)
    reading = read_examples(LabelSettings(url="memory://inbox"), base=Path("/nowhere"))
    assert [(row.location, row.text) for row in reading.rows] == [("a.jsonl:1", "from afar")]
    reading = read_examples(LabelSettings(url="memory://inbox", glob=("**/*.jsonl",)), base=Path("/nowhere"))
    assert reading.files == ("a.jsonl", "deep/b.jsonl")
    (row,) = read_examples(LabelSettings(url="memory://inbox/deep", glob=("*.parquet",)), base=Path("/nowhere")).rows
    assert (row.location, row.text) == ("c.parquet:1", "columns")
    (row,) = read_examples(LabelSettings(url="memory://inbox/a.jsonl"), base=Path("/nowhere")).rows
    assert row.location == "a.jsonl:1"
    with pytest.raises(SourceError, match="memory://…@outbox: no such folder"):
        read_examples(LabelSettings(url="memory://user:secret@outbox"), base=Path("/nowhere"))
