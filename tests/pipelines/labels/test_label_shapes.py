"""Every shape that rows have, whole and broken, for chats and for labels."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.labels.examples import Submitted
from pipelines.labels.reading import Reading, read_examples
from pipelines.labels.reading.records import Record
from pipelines.labels.reading.shapes import Recogniser
from pipelines.labels.settings import LabelSettings, Shape
from pipelines.prompt import Message
from pipelines.training.settings import Task

USER, ANSWER = Message("user", "How long is the warranty?"), Message("assistant", "Two years.")
SYSTEM = Message("system", "Be brief.")
ASKED = {"role": "user", "content": "How long is the warranty?"}
ANSWERED = {"role": "assistant", "content": "Two years."}
WRONG = {"role": "assistant", "content": "Ten years."}


def read(tmp_path: Path, *rows: Any, task: Task = "generate", **given: Any) -> Reading:
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return read_examples(LabelSettings(url="a.jsonl", **given), base=tmp_path, task=task)


def one(tmp_path: Path, row: Any, *, task: Task = "generate", **given: Any) -> Submitted:
    (found,) = read(tmp_path, row, task=task, **given).rows
    return found


CHATS: dict[str, tuple[Shape, dict[str, Any]]] = {
    "messages": ("messages", {"messages": [ASKED, ANSWERED]}),
    "messages with parts of text": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "How long is "}, "the warranty?"]},
                {"role": "assistant", "content": [{"type": "text", "text": "Two years."}], "tool_calls": None},
            ]
        },
    ),
    "messages as text": ("messages", {"messages": json.dumps([ASKED, ANSWERED])}),
    "sharegpt": (
        "sharegpt",
        {"conversations": [{"from": "human", "value": USER.content}, {"from": "gpt", "value": ANSWER.content}]},
    ),
    "sharegpt with roles of chats": ("sharegpt", {"conversations": [ASKED, ANSWERED]}),
    "sharegpt mixed": (
        "sharegpt",
        {
            "conversations": [
                {"from": "User", "content": USER.content, "role": None},
                {"from": "assistant", "value": ANSWER.content, "content": None},
            ]
        },
    ),
    "prompt, completion": ("prompt_completion", {"prompt": USER.content, "completion": ANSWER.content}),
    "prompt, completion as turns": ("prompt_completion", {"prompt": [ASKED], "completion": [ANSWERED]}),
    "prompt as turns, completion as text": ("prompt_completion", {"prompt": [ASKED], "completion": ANSWER.content}),
    "input, output": ("input_output", {"input": USER.content, "output": ANSWER.content}),
    "instruction, output": ("instruction", {"instruction": USER.content, "output": ANSWER.content}),
    "instruction, empty input, output": (
        "instruction",
        {"instruction": USER.content, "input": "", "output": ANSWER.content},
    ),
    "preference": (
        "preference",
        {"prompt": USER.content, "chosen": ANSWER.content, "rejected": WRONG["content"]},
    ),
    "preference as turns": ("preference", {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [WRONG]}),
    "preference with the prompt in both": ("preference", {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, WRONG]}),
    "preference with the prompt everywhere": (
        "preference",
        {"prompt": USER.content, "chosen": [ASKED, ANSWERED], "rejected": [ASKED, WRONG]},
    ),
}


@pytest.mark.parametrize(("shape", "row"), CHATS.values(), ids=CHATS)
def test_a_chat_is_the_same_example_in_every_shape(tmp_path: Path, shape: Shape, row: dict[str, Any]) -> None:
    reading = read(tmp_path, row)
    (found,) = reading.rows
    assert found.problem is None
    assert reading.shapes == (shape,)
    assert found.messages == (USER, ANSWER)
    assert (found.text, found.labels) == (USER.content, ())
    assert found.rejected == ("Ten years." if shape == "preference" else None)
    (again,) = read(tmp_path, row, shape=shape).rows
    assert again.example_id == found.example_id


@pytest.mark.parametrize(("shape", "row"), CHATS.values(), ids=CHATS)
def test_a_question_with_a_label_for_an_answer_is_a_labelled_text_in_every_shape(
    tmp_path: Path, shape: Shape, row: dict[str, Any]
) -> None:
    found = one(tmp_path, row, task="classify")
    plain = one(tmp_path, {"text": USER.content, "label": ANSWER.content}, task="classify")
    assert (found.text, found.labels, found.messages, found.rejected) == (USER.content, ("Two years.",), (), None)
    assert found.example_id == plain.example_id


def test_system_texts_stay_with_the_chat_and_out_of_its_text(tmp_path: Path) -> None:
    turns = [{"role": "developer", "content": "Be brief."}, ASKED, ANSWERED, ASKED, ANSWERED]
    reading = read(
        tmp_path,
        {"messages": turns},
        {"system": "Be brief.", "conversations": [ASKED, ANSWERED]},
        {"system": "Be brief.", "instruction": "How long is", "input": "the warranty?", "output": "Two years."},
        {"prompt": [{"role": "system", "content": "Be brief."}, ASKED], "chosen": [ASKED, ANSWERED], "rejected": "No."},
        {"system": "", "conversations": [ASKED, ANSWERED]},
    )
    assert [row.problem for row in reading.rows] == [None] * 5
    long, sharegpt, instruction, preference, without = reading.rows
    assert long.messages == (SYSTEM, USER, ANSWER, USER, ANSWER)
    assert long.text == "How long is the warranty?\n\nTwo years.\n\nHow long is the warranty?"
    assert sharegpt.messages == preference.messages == (SYSTEM, USER, ANSWER)
    assert preference.rejected == "No."
    assert instruction.messages == (SYSTEM, Message("user", "How long is\n\nthe warranty?"), ANSWER)
    assert without.messages == (USER, ANSWER)


def test_a_rejected_answer_is_kept_only_where_it_answers_the_same_turns(tmp_path: Path) -> None:
    other = {"role": "user", "content": "Is it waterproof?"}
    reading = read(
        tmp_path,
        {"chosen": [ASKED, ANSWERED, ASKED, ANSWERED], "rejected": [ASKED, WRONG, ASKED, ANSWERED]},
        {"chosen": [ASKED, ANSWERED], "rejected": [other, WRONG]},
        {"prompt": USER.content, "chosen": ANSWER.content, "rejected": None},
    )
    assert [(row.problem, row.rejected) for row in reading.rows] == [(None, None)] * 3


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": []}, "messages has no turns"),
        ({"messages": "[{"}, "messages is no JSON list of turns (Expecting property name enclosed in double quotes"),
        ({"messages": {"role": "user"}}, "messages is an object, not a list of turns"),
        ({"messages": ["Hello"]}, "a turn is a string, not an object with role and content (turn 1)"),
        ({"messages": [{"content": "x"}]}, "a turn has neither 'role' nor 'from' (turn 1 has 'content')"),
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            "a role is unknown: 'narrator' (turn 1); allowed: system",
        ),
        ({"messages": [{"role": 7, "content": "x"}]}, "a role is unknown: 7 (turn 1)"),
        ({"messages": [ASKED, {"role": "assistant", "content": 7}]}, "a turn's content is a number, not a string"),
        (
            {"messages": [ASKED, ANSWERED, {"role": "tool", "content": "42"}, ANSWERED]},
            "a turn of a tool (tool, turn 3): only system, user and assistant can be learned",
        ),
        ({"conversations": [{"from": "observation", "value": "42"}]}, "a turn of a tool (observation, turn 1)"),
        (
            {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            "the assistant calls a tool (turn 2): only answers in words can be learned",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWERED]},
            "a turn holds more than text (image_url, turn 1)",
        ),
        ({"messages": [{"role": "user", "content": [7]}, ANSWERED]}, "a turn holds more than text (a number, turn 1)"),
        ({"messages": [ASKED, ANSWERED], "images": ["x.png"]}, "images come with it, and only text can be learned"),
        ({"messages": [ASKED]}, "it ends with a turn of the user: the last one has to be the assistant's answer"),
        ({"messages": [{"role": "system", "content": "x"}]}, "it ends with a turn of the system"),
        ({"messages": [ANSWERED]}, "it starts with the assistant's turn, not the user's"),
        ({"messages": [ASKED, ASKED, ANSWERED]}, "two turns of the user in a row (turn 2)"),
        ({"messages": [ASKED, ANSWERED, ANSWERED]}, "two turns of the assistant in a row (turn 3)"),
        ({"messages": [ASKED, {"role": "system", "content": "x"}, ANSWERED]}, "a system text that does not come first"),
        ({"messages": [ASKED, {"role": "assistant", "content": " \n"}]}, "the last answer is empty"),
        ({"conversations": None}, "conversations is null, not a list of turns"),
        ({"prompt": "x", "completion": None}, "the last answer is empty"),
        ({"prompt": "x", "completion": 7}, "completion is a number, not a string or a list of turns"),
        ({"prompt": "x", "completion": "y", "label": False}, "label is false: an answer that was disliked is none"),
        ({"instruction": ["x"], "output": "y"}, "instruction is a list, not a string"),
        ({"input": "x", "output": ""}, "the last answer is empty"),
        ({"chosen": "x", "rejected": "y"}, "chosen and rejected are answers without a question"),
        ({"chosen": [ANSWERED], "rejected": [WRONG]}, "chosen and rejected are answers without a question"),
        ({"prompt": "x", "chosen": {}, "rejected": "y"}, "chosen is an object, not a string or a list of turns"),
        ({"text": "x", "label": "a"}, "a text with a label, where a question with an answer is wanted"),
        ({"prompt": "x", "answer": "y"}, "no shape that is known: the row has 'prompt', 'answer'; wanted are messages"),
        ({}, "no shape that is known: the row has none"),
    ],
)
def test_a_chat_that_is_none_comes_out_with_the_reason(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    found = one(tmp_path, row)
    assert str(found.problem).startswith(problem)
    assert (found.text, found.messages, found.raw) == ("", (), json.dumps(row))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"messages": [ASKED, ANSWERED, ASKED, ANSWERED]},
            "a chat of several questions, where one text with its label",
        ),
        ({"prompt": [ASKED, ANSWERED, ASKED], "completion": ["a"]}, "a chat of several questions, where one text"),
        ({"messages": [ASKED]}, "it ends with a turn of the user"),
        ({"prompt": "x", "completion": 7}, "completion is a number, not a string or a list of turns"),
        ({"body": "x"}, "no shape that is known: the row has 'body'; wanted are messages, conversations, prompt and"),
    ],
)
def test_a_chat_that_is_no_labelled_text_comes_out_with_the_reason(
    tmp_path: Path, row: dict[str, Any], problem: str
) -> None:
    assert str(one(tmp_path, row, task="classify").problem).startswith(problem)


def test_columns_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    """A table of several shapes has all their columns in each row."""
    columns = ("text", "label", "prompt", "completion", "messages", "chosen", "rejected")
    full: dict[str, Any] = dict.fromkeys(columns)
    reading = read(
        tmp_path,
        {**full, "prompt": "x", "completion": "y"},
        {**full, "messages": [ASKED, ANSWERED]},
        {**full, "prompt": "x", "chosen": "y", "rejected": "z"},
        {**full, "messages": [ASKED, ANSWERED], "prompt": "x", "chosen": [ANSWERED], "rejected": [WRONG]},
        {**full, "prompt": "x"},
        {**full, "text": "x", "label": "y"},
    )
    assert reading.shapes == (
        "prompt_completion", "messages", "preference", "preference", "prompt_completion", "labelled"
    )  # fmt: skip
    assert read(tmp_path, {**full, "text": "x", "label": "y"}, task="classify").shapes == ("labelled",)
    wanted = one(tmp_path, {"messages": [ASKED, ANSWERED]}, shape="prompt_completion")
    assert wanted.problem == "no column 'prompt' (the row has 'messages')"


def test_labels_have_columns_of_several_names(tmp_path: Path) -> None:
    reading = read(
        tmp_path,
        {"text": "x", "labels": ["b", "a"]},
        {"text": "x", "label": "c", "labels": ["b"]},
        {"prompt": "x", "completion": "b; a"},
        {"prompt": "x", "completion": '["a", "b;c"]'},
        {"prompt": "x", "completion": ["a", "b;c"]},
        {"prompt": "x", "completion": []},
        {"messages": [ASKED, {"role": "assistant", "content": "b;a"}]},
        task="classify",
        multi_label=True,
    )
    wanted = [("a", "b"), ("c",), ("a", "b"), ("a", "b;c"), ("a", "b;c"), (), ("a", "b")]
    assert [row.labels for row in reading.rows] == wanted
    named = one(tmp_path, {"body": "x", "kind": "a", "labels": "b"}, task="classify", text_column="body",
                label_column="kind")  # fmt: skip
    assert (named.text, named.labels) == ("x", ("a",))
    single = one(tmp_path, {"prompt": "x", "completion": "[a]; b"}, task="classify")
    assert single.labels == ("[a]; b",)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("2026-05-01T09:30:00+02:00", datetime(2026, 5, 1, 7, 30, tzinfo=UTC)),
        ("2026-05-01 09:30:00", datetime(2026, 5, 1, 9, 30, tzinfo=UTC)),
        ("2026-05-01T09:30:00Z", datetime(2026, 5, 1, 9, 30, tzinfo=UTC)),
        ("20260501", datetime(2026, 5, 1, tzinfo=UTC)),
        (20260501, datetime(2026, 5, 1, tzinfo=UTC)),
        (1_777_636_800, datetime(2026, 5, 1, 12, tzinfo=UTC)),
        ("1777636800.5", datetime(2026, 5, 1, 12, 0, 0, 500_000, tzinfo=UTC)),
        (1_777_636_800_000, datetime(2026, 5, 1, 12, tzinfo=UTC)),
        (" ", None),
        (None, None),
    ],
)
def test_the_time_of_labelling_is_read_as_utc(tmp_path: Path, given: Any, wanted: datetime | None) -> None:
    found = one(tmp_path, {"prompt": "x", "completion": "y", "at": given}, time_column="at")
    assert (found.problem, found.labelled_at) == (None, wanted)


@pytest.mark.parametrize("given", ["yesterday", "2026-13-01", 12, -5e9, 1e300, True, [1], "0001-01-01T00:00:00+02:00"])
def test_a_time_that_cannot_be_read_is_a_problem(tmp_path: Path, given: Any) -> None:
    found = one(tmp_path, {"prompt": "x", "completion": "y", "time": given})
    assert "is no time: neither ISO 8601" in str(found.problem)


def test_keys_slices_and_context_come_along(tmp_path: Path) -> None:
    found = one(
        tmp_path,
        {
            "prompt": "x", "completion": "y", "id": 12.0, "region": "EU ", "tags": ["b", None, "a"], "paid": True,
            "week": 7, "empty": "", "context": ["one", " ", "two\u0000"], "author": 7, "group": "g", "split": "val",
            "origin": "model",
        },
        slice_columns=("region", "tags", "paid", "week", "empty", "missing"),
    )  # fmt: skip
    assert found.problem is None
    assert (found.key, found.author, found.group, found.split) == ("12", "7", "g", "validation")
    assert found.slices == ("paid=true", "region=EU", "tags=a", "tags=b", "week=7")
    assert (found.context, found.origin) == (("one", "two\x1a"), "model")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"context": "One text."}, ("One text.",)),
        ({"context": []}, ()),
        ({"contexts": ["a", "b"]}, ("a", "b")),
        ({"retrieved_contexts": ["a"], "context": None}, ("a",)),
        ({"context": ""}, None),
        ({}, None),
    ],
)
def test_nothing_retrieved_differs_from_nothing_said(
    tmp_path: Path, given: dict[str, Any], wanted: tuple[str, ...] | None
) -> None:
    found = one(tmp_path, {"prompt": "x", "completion": "y", **given})
    assert (found.problem, found.context) == (None, wanted)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"context": 7}, "context is neither a text nor a list of texts"),
        ({"context": [{"text": "x"}]}, "context is neither a text nor a list of texts"),
        ({"context": ["a"], "contexts": ["b"]}, "context and contexts both say what had been retrieved"),
        ({"id": ["x"]}, "id is a list, not a string"),
        ({"id": "x" * 257}, "id is longer than 256 characters"),
        ({"region": {"a": 1}}, "region holds an object, which names no slice"),
        ({"group": 1.5}, "group is a number, not a string"),
        ({"split": "holdout"}, "split 'holdout' is unknown; allowed: train, validation"),
    ],
)
def test_what_comes_along_and_cannot_be_read_is_a_problem(tmp_path: Path, given: dict[str, Any], problem: str) -> None:
    found = one(tmp_path, {"prompt": "x", "completion": "y", **given}, slice_columns=("region",))
    assert str(found.problem).startswith(problem)


def test_a_labelled_text_may_have_columns_that_only_chats_know(tmp_path: Path) -> None:
    found = one(tmp_path, {"text": "x", "label": "a", "context": {"page": 7}, "messages": 3}, task="classify")
    assert (found.problem, found.labels, found.context) == (None, ("a",), None)


def test_ids_of_plain_labelled_texts_are_those_of_earlier_versions(tmp_path: Path) -> None:
    """Otherwise every stored example would come again as a new one."""
    long = {"text": "café \0", "label": ["b", " a "], "group": "c-1", "split": "dev", "origin": "rule", "author": "ann"}
    reading = read(tmp_path, {"text": "Where is it?", "label": "shipping"}, long, {"text": 7}, task="classify")
    assert [row.example_id for row in reading.rows] == [
        "d68927c393a868b637d5ed746f901ad3b871735afb8f37275c877937aa142918",
        "f94cc1683af775bd17583a346e6ad5a08753ded360e187103b2f8de58e440864",
        "d429dacc2499524a2e50c76d30e2487e57aecb22e7d0fe88a46713bd6c787701",
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "x"]) | JSON,
        "from": st.sampled_from(["human", "gpt"]) | JSON,
        "content": JSON,
        "value": JSON,
        "tool_calls": JSON,
    },
)
NAMES = (
    "text", "label", "labels", "prompt", "completion", "input", "output", "instruction", "messages", "conversations",
    "chosen", "rejected", "system", "context", "contexts", "images", "id", "time", "group", "split", "origin", "author",
    "region",
)  # fmt: skip
ROW = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON | st.lists(TURN | JSON, max_size=4))


@settings(max_examples=250, deadline=None)
@given(row=ROW, task=st.sampled_from(["classify", "generate"]), cells=st.booleans(), multi=st.booleans())
def test_any_object_comes_out_as_a_row_that_can_be_stored(
    row: dict[str, Any], task: Task, cells: bool, multi: bool
) -> None:
    labels = LabelSettings(url="x", multi_label=multi, slice_columns=("region",))
    raw = json.dumps(row, ensure_ascii=False)
    recogniser = Recogniser(labels, task, "a.jsonl")
    found, _ = recogniser.recognise(Record(1, raw, json.loads(raw), cells=cells))
    said = [found.text, found.raw, *found.labels, *(turn.content for turn in found.messages), *(found.context or ())]
    said += [str(each) for each in (found.problem, found.group, found.author, found.rejected, found.key)]
    for text in (*said, *found.slices):
        text.encode()
        assert "\0" not in text
    assert len(found.example_id) == 64
    assert set(recogniser.columns) == set(row)
    if found.problem is None and task == "generate":
        assert found.messages[-1].role == "assistant"
        assert found.messages[-1].content.strip()


@settings(max_examples=100, deadline=None)
@given(line=st.text(st.characters(codec="utf-8", exclude_characters="\n")) | ROW.map(json.dumps))
def test_any_line_comes_out_as_a_row(line: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("lines")
    (folder / "a.jsonl").write_text(f"{line}\n", encoding="utf-8", newline="")
    rows = read_examples(LabelSettings(url="a.jsonl"), base=folder, task="generate").rows
    assert len(rows) == (1 if line.strip() else 0)
