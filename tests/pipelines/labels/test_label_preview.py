"""What people are shown of rows before anything is stored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.labels import __main__ as command
from pipelines.labels.reading import read_examples
from pipelines.labels.reading.preview import ExamplePreview, preview
from pipelines.labels.settings import LabelSettings

CHAT = [{"role": "user", "content": "Is it dear?"}, {"role": "assistant", "content": "No."}]
PAIR = {"prompt": "Is it blue?", "chosen": "Yes.", "rejected": "It is.", "context": ["It is blue.", "It floats."]}


def write(path: Path, *rows: Any) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def test_a_preview_shows_what_was_taken_for_what(tmp_path: Path) -> None:
    write(
        tmp_path / "a.jsonl",
        {"messages": CHAT, "customer": "c-1", "colour": "red"},
        {"messages": CHAT, "customer": "c-2", "region": "EU"},
        {"messages": [*CHAT, CHAT[1]]},
        {"messages": [CHAT[0], CHAT[0]]},
        {"messages": [CHAT[0], CHAT[0], CHAT[0]]},
        PAIR,
        "{not JSON}",
        "[not JSON",
    )
    write(tmp_path / "b.jsonl")
    settings = LabelSettings(url=str(tmp_path), group_column="customer", slice_columns=("region",))
    found = preview(read_examples(settings, base=tmp_path, task="generate"), limit=2)
    first, second = found.files
    assert (first.file, first.rows, second.file, second.rows) == ("a.jsonl", 8, "b.jsonl", 0)
    assert first.shapes == {"messages": 5, "not recognised": 2, "preference": 1}
    assert first.columns == {
        "messages": "turns", "customer": "group", "region": "slice", "prompt": "question", "chosen": "answer",
        "rejected": "rejected answer", "context": "context",
    }  # fmt: skip
    assert first.ignored == ("colour",)
    assert first.problems == {
        "two turns of the user in a row": 2,
        "not JSON": 2,
        "two turns of the assistant in a row": 1,
    }
    assert found.examples == (
        ExamplePreview("a.jsonl:1", "messages", (("user", "Is it dear?"), ("assistant", "No."))),
        ExamplePreview(
            "a.jsonl:6",
            "preference",
            (
                ("user", "Is it blue?"),
                ("assistant", "Yes."),
                ("rejected", "It is."),
                ("context", "It is blue.\n\nIt floats."),
            ),
        ),
    )


def test_a_column_that_means_several_things_is_shown_with_all_of_them(tmp_path: Path) -> None:
    write(
        tmp_path / "a.jsonl",
        {"text": "x", "label": "a"},
        {"instruction": "Sort this.", "input": "x", "output": "a"},
        {"input": "x", "output": "b"},
        {"prompt": "x", "chosen": "a", "rejected": "b"},
    )
    found = preview(read_examples(LabelSettings(url="a.jsonl"), base=tmp_path))
    assert found.files[0].columns == {
        "text": "text", "label": "label", "instruction": "question", "input": "question", "output": "label",
        "prompt": "question", "chosen": "label",
    }  # fmt: skip
    assert found.files[0].ignored == ("rejected",)
    assert [example.turns[1] for example in found.examples] == [("label", label) for label in ("a", "a", "b", "a")]


@pytest.fixture
def use_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "usecases"
    (folder / "chat").mkdir(parents=True)
    (folder / "chat" / "defs.yaml").write_text(
        "type: pipelines.use_case.UseCase\nattributes:\n  name: chat\n  labels: {url: labels}\n"
        "  fine_tune: {task: generate, base_model: some/base}\n"
    )
    (folder / "chat" / "labels").mkdir()
    write(
        folder / "chat" / "labels" / "a.jsonl",
        PAIR,
        {"text": "x", "label": "y"},
        {"prompt": "x" * 400, "completion": "y\nz"},
    )
    monkeypatch.setattr(command, "USE_CASES", folder)
    return folder


def test_the_command_prints_a_preview_for_people(use_cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["preview", "chat"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a.jsonl: 3 rows (1 preference, 1 labelled, 1 prompt_completion)"
    assert "  chosen = answer" in lines
    assert any(line.startswith("  1 cannot be read: a text with a label, where") for line in lines)
    assert lines[-4:] == ["a.jsonl:3 (prompt_completion)", f"  user: {'x' * 300}…", "  assistant: y", "    z"]
    assert [path.name for path in use_cases.rglob("*") if path.is_file()] == ["defs.yaml", "a.jsonl"]


def test_the_command_prints_json_or_what_is_wrong(use_cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["preview", "chat", "--json", "--limit", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"][0]["shapes"] == {"preference": 1, "labelled": 1, "prompt_completion": 1}
    assert [example["location"] for example in found["examples"]] == ["a.jsonl:1"]
    assert command.main(["preview", "other"]) == 2
    assert "ConfigError: no use case 'other'; there are: chat" in capsys.readouterr().err


def test_the_bundled_labels_can_be_looked_at_without_a_heavy_library() -> None:
    script = (
        "import sys; from pipelines.labels.__main__ import main; main(['preview', 'compliance']); "
        "print({'torch', 'pandas', 'pyarrow', 'transformers', 'great_expectations', 'fsspec'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "segments.jsonl: " in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
