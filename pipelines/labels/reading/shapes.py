"""What a row means: recognised by its columns, each row by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from fnmatch import fnmatch
from typing import Any

from pipelines.labels.examples import Split, Submitted
from pipelines.labels.reading.records import Record, json_type
from pipelines.labels.settings import LabelSettings, Shape
from pipelines.prompt import Message, Role
from pipelines.training.settings import Task

_GIVEN_SPLITS: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_TOOLS = ("tool", "function", "function_call", "tool_call", "function_response", "tool_response", "observation")
_COLUMNS: Mapping[Shape, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "instruction": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "input_output": ("input", "output"),
}
"""What a row of each shape of a chat has, the more telling shapes first; its answer last."""
_PAIRS: tuple[Shape, ...] = ("instruction", "prompt_completion", "input_output")
"""Shapes whose question and answer have columns of their own."""
_ALSO: Mapping[Shape, Mapping[str, str]] = {
    "preference": {"prompt": "question"},
    "sharegpt": {"system": "system text"},
    "instruction": {"input": "question", "system": "system text"},
}
"""What a row of a shape can have besides."""
_CONTEXTS = ("context", "contexts", "retrieved_contexts")
_LONGEST_KEY = 256
_EPOCH = re.compile(r"\d{9,}(\.\d+)?")  # fewer digits may be a date such as 20260501
_MILLISECONDS = 1e11  # larger numbers are milliseconds since 1970: as seconds they were the year 5138
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class _UnreadableError(Exception):
    """Why a row is no example; never leaves this module."""


IGNORED = ""
"""What a column was taken for that means nothing here."""


class Recogniser:
    """Makes examples of the records of one file, and remembers which column was taken for what."""

    def __init__(self, settings: LabelSettings, task: Task, file: str) -> None:
        self._settings = settings
        self._task = task
        self._file = file
        self._seen: dict[tuple[Shape | None, tuple[str, ...]], None] = {}
        by_name = (split for pattern, split in settings.file_splits.items() if fnmatch(file, pattern))
        self._file_split: Split | None = next(by_name, None)

    def recognise(self, record: Record) -> tuple[Submitted, Shape | None]:
        """The row as an example, or as it was with what is wrong with it; and its shape, where it has one."""
        shape: Shape | None = None
        problem = record.problem
        if problem is None:
            try:
                shape = self._shape(record.values)
                self._seen[shape, tuple(record.values)] = None
                return self._submitted(shape, record), shape
            except _UnreadableError as error:
                problem = str(error)
        raw = _storable(record.raw.strip("\r\n"))
        row = Submitted("", (), None, None, "human", None, self._file, record.number, raw, _storable(problem))
        return row, shape

    @property
    def columns(self) -> dict[str, str]:
        """Each column of the rows so far, and what it was taken for: ``IGNORED`` where no row's shape has it."""
        found: dict[str, str] = {}
        for shape, columns in self._seen:
            for column, meaning in self._meanings(shape, columns).items():
                known = found.setdefault(column, meaning)
                if meaning not in known.split(", "):
                    found[column] = f"{known}, {meaning}" if known else meaning
        return found

    def _meanings(self, shape: Shape | None, columns: Iterable[str]) -> dict[str, str]:
        settings = self._settings
        meanings = dict.fromkeys(settings.slice_columns, "slice")
        if self._task == "generate":
            meanings |= dict.fromkeys(_CONTEXTS, "context")
        meanings |= {
            settings.group_column: "group",
            settings.split_column: "split",
            settings.key_column: "item",
            settings.time_column: "time",
            "origin": "origin",
            "author": "author",
        }
        answer = "label" if self._task == "classify" else "answer"
        if shape == "labelled":
            meanings |= {settings.text_column: "text", self._label_column(columns): answer}
        elif shape is not None:
            *asked, answered = _COLUMNS[shape]
            meanings |= {**dict.fromkeys(asked, "question"), **_ALSO.get(shape, {}), answered: answer}
            if shape in ("messages", "sharegpt"):
                meanings[answered] = "turns"
            elif shape == "preference":
                meanings |= {"chosen": answer, "rejected": "rejected answer" if answer == "answer" else IGNORED}
        return {column: meanings.get(column, IGNORED) for column in columns}

    def _label_column(self, columns: Iterable[str]) -> str:
        column = self._settings.label_column
        return "labels" if column == "label" and column not in columns and "labels" in columns else column

    def _shape(self, values: Mapping[str, Any]) -> Shape | None:
        """The shape whose columns are all there, most of them with values; of several the most telling."""
        settings = self._settings
        if settings.shape != "auto":
            return settings.shape
        labelled = (settings.text_column, self._label_column(values))
        shapes: dict[Shape, tuple[str, ...]]
        shapes = {"labelled": labelled, **_COLUMNS} if self._task == "classify" else {**_COLUMNS, "labelled": labelled}
        best: Shape | None = None
        filled = -1.0
        for shape, columns in shapes.items():
            if all(column in values for column in columns):
                share = sum(values[column] not in (None, "") for column in columns) / len(columns)
                if share > filled:
                    best, filled = shape, share
        if best is not None:
            return best
        if self._task == "classify" and any(column in values for column in labelled):
            return "labelled"  # which says what is missing
        return None

    def _submitted(self, shape: Shape | None, record: Record) -> Submitted:
        settings, values = self._settings, record.values
        labels: tuple[str, ...] = ()
        turns: list[Message] = []
        rejected: str | None = None
        context: tuple[str, ...] | None = None
        if shape is None:
            raise _UnreadableError(
                f"no shape that is known: the row has {_named(values)}; wanted are messages, conversations, prompt and "
                "completion, instruction and output, input and output, chosen and rejected"
                + (f", or {settings.text_column} and {settings.label_column}" if self._task == "classify" else "")
            )
        if shape != "labelled":
            for column in _COLUMNS[shape]:
                _value(values, column)
        if self._task == "classify":
            text, labels = self._labelled(record) if shape == "labelled" else self._classified(shape, record)
        elif shape == "labelled":
            raise _UnreadableError(
                "a text with a label, where a question with an answer is wanted: this use case trains a model that "
                "generates"
            )
        else:
            turns, rejected = self._chat(shape, record)
            _check(turns)
            if not turns[-1].content.strip():
                raise _UnreadableError("the last answer is empty")
            text = _asked(turns[:-1])
            context = _context(record)
        return Submitted(
            text=text,
            labels=labels,
            group=_optional(values, settings.group_column),
            split=self._split(values),
            origin=_optional(values, "origin") or "human",
            author=_optional(values, "author"),
            file=self._file,
            row=record.number,
            raw=_storable(record.raw),
            messages=tuple(turns),
            rejected=rejected,
            context=context,
            key=_key(values, settings.key_column),
            labelled_at=_time(values, settings.time_column),
            slices=tuple(sorted({each for column in settings.slice_columns for each in _slices(values, column)})),
        )

    def _labelled(self, record: Record) -> tuple[str, tuple[str, ...]]:
        text = _string(record.values, self._settings.text_column)
        column = self._label_column(record.values)
        return text, self._labels(column, _value(record.values, column), split=record.cells)

    def _classified(self, shape: Shape, record: Record) -> tuple[str, tuple[str, ...]]:
        """The only question of a chat, and its answer as labels."""
        answered = _COLUMNS[shape][-1]
        given = record.values[answered]
        if shape in _PAIRS and isinstance(given, list) and all(isinstance(each, str) for each in given):
            turns, labels = self._question(shape, record), self._labels(answered, given)
        else:
            turns, _ = self._chat(shape, record)
            _check(turns)
            labels = self._labels("the answer", turns.pop().content, split=True)
        if sum(turn.role == "user" for turn in turns) != 1:
            raise _UnreadableError("a chat of several questions, where one text with its label is wanted")
        return _asked(turns), labels

    def _labels(self, column: str, value: Any, *, split: bool = False) -> tuple[str, ...]:
        """Without surrounding blanks, distinct, sorted: how a label is written in a cell makes no other one of it."""
        several = self._settings.multi_label
        if isinstance(value, str) and split and several:
            try:
                value = json.loads(value) if value.lstrip().startswith("[") else value.split(";")
            except (ValueError, RecursionError) as error:
                raise _UnreadableError(f"{column} is not a JSON list ({error})") from error
        if value is None and several:
            raise _UnreadableError(f"{column} is null; an example without labels has an empty list")
        labels = value if isinstance(value, list) else [] if value is None else [value]
        for label in labels:
            if not isinstance(label, str):
                raise _UnreadableError(f"{column} holds {json_type(label)}, not a string or a list of strings")
        return tuple(sorted({_storable(label.strip()) for label in labels} - {""}))

    def _split(self, values: Mapping[str, Any]) -> Split | None:
        column = self._settings.split_column
        given = _optional(values, column)
        if given is None:
            return self._file_split
        if given.lower() not in _GIVEN_SPLITS:
            raise _UnreadableError(f"{column} {given!r} is unknown; allowed: {', '.join(_GIVEN_SPLITS)}")
        return _GIVEN_SPLITS[given.lower()]

    def _chat(self, shape: Shape, record: Record) -> tuple[list[Message], str | None]:
        """Every turn, and the answer that was preferred less."""
        values, cells = record.values, record.cells
        if values.get("images"):
            raise _UnreadableError("images come with it, and only text can be learned")
        if shape == "preference":
            return _preferred(record)
        if shape in _PAIRS:
            if shape == "prompt_completion" and str(values.get("label")).lower() == "false":
                raise _UnreadableError("label is false: an answer that was disliked is none to learn from")
            answered = _COLUMNS[shape][-1]
            turns = self._question(shape, record) + _side(values[answered], answered, "assistant", cells=cells)
        else:
            turns = _turns(values[_COLUMNS[shape][0]], _COLUMNS[shape][0])
        if "system" in _ALSO.get(shape, ()) and turns[0].role != "system" and (system := _string(values, "system", "")):
            turns.insert(0, Message("system", system))
        return turns, None

    def _question(self, shape: Shape, record: Record) -> list[Message]:
        """What an instruction, a prompt or an input asks."""
        values = record.values
        if shape == "instruction":
            parts = (_string(values, "instruction"), _string(values, "input", ""))
            return [Message("user", "\n\n".join(part for part in parts if part.strip()))]
        column = _COLUMNS[shape][0]
        return _side(values[column], column, "user", cells=record.cells)


def _preferred(record: Record) -> tuple[list[Message], str | None]:
    """The chosen side, and the rejected answer where both answer the same turns.

    Turns that both sides begin with are the question; what a prompt says need not stand in them again.
    """
    values, cells = record.values, record.cells
    prompt = [] if values.get("prompt") in (None, "") else _side(values["prompt"], "prompt", "user", cells=cells)
    chosen = _side(values["chosen"], "chosen", "assistant", cells=cells)
    rejected = _side(values["rejected"], "rejected", "assistant", cells=cells)
    if not prompt and len(chosen) == 1:
        raise _UnreadableError("chosen and rejected are answers without a question: give prompt as well, or all turns")
    chosen, rejected = _after(prompt, chosen), _after(prompt, rejected)
    same = rejected[-1].role == "assistant" and rejected[:-1] == chosen[:-1]
    return chosen, rejected[-1].content or None if same else None


def _after(prompt: list[Message], turns: list[Message]) -> list[Message]:
    """``prompt`` and then ``turns``, unless they begin with it themselves."""
    asked, said = ([turn for turn in side if turn.role != "system"] for side in (prompt, turns))
    if not asked or said[: len(asked)] != asked:
        return prompt + turns
    system = [turn for turn in prompt if turn.role == "system" and turns[0].role != "system"]
    return system + turns


def _side(value: Any, column: str, role: Role, *, cells: bool) -> list[Message]:
    """A prompt or a completion: one text, or turns."""
    if cells and isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, list) and parsed and all(isinstance(turn, dict) for turn in parsed):
            value = parsed
    if isinstance(value, list):
        return _turns(value, column)
    if value is None or isinstance(value, str):
        return [Message(role, _storable(value or ""))]
    raise _UnreadableError(f"{column} is {json_type(value)}, not a string or a list of turns")


def _turns(value: Any, column: str) -> list[Message]:
    """OpenAI's role and content, or ShareGPT's from and value; JSON text of them where no JSON column was at hand."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _UnreadableError(f"{column} is no JSON list of turns ({error})") from error
    if not isinstance(value, list):
        raise _UnreadableError(f"{column} is {json_type(value)}, not a list of turns")
    if not value:
        raise _UnreadableError(f"{column} has no turns")
    return [_turn(turn, number) for number, turn in enumerate(value, start=1)]


def _turn(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict):
        raise _UnreadableError(f"a turn is {json_type(turn)}, not an object with role and content (turn {number})")
    said = turn.get("role") if turn.get("role") is not None else turn.get("from")
    role = _ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        if isinstance(said, str) and said.strip().lower() in _TOOLS:
            raise _UnreadableError(
                f"a turn of a tool ({said}, turn {number}): only system, user and assistant can be learned"
            )
        if said is None:
            raise _UnreadableError(f"a turn has neither 'role' nor 'from' (turn {number} has {_named(turn)})")
        allowed = ", ".join(_ROLES)
        raise _UnreadableError(f"a role is unknown: {said!r:.60} (turn {number}); allowed: {allowed}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise _UnreadableError(f"the assistant calls a tool (turn {number}): only answers in words can be learned")
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if isinstance(content, list):
        content = "".join(_part(part, number) for part in content)
    if content is not None and not isinstance(content, str):
        raise _UnreadableError(f"a turn's content is {json_type(content)}, not a string (turn {number})")
    return Message(role, _storable(content or ""))


def _part(part: Any, number: int) -> str:
    """The text of one part of a turn's content."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else json_type(part)
    text = part.get("text") if isinstance(part, dict) else None
    if kind not in (None, "text") or not isinstance(text, str):
        raise _UnreadableError(f"a turn holds more than text ({kind or 'a part without text'}, turn {number})")
    return text


def _check(turns: list[Message]) -> None:
    """Whether a chat is one: a system turn or none, then user and assistant by turns.

    Raises:
        _UnreadableError: it is not.
    """
    start = int(turns[0].role == "system")
    for number, turn in enumerate(turns[start:]):
        place = f"turn {start + number + 1}"
        if turn.role == "system":
            raise _UnreadableError(f"a system text that does not come first ({place})")
        if turn.role != ("assistant" if number % 2 else "user"):
            if number == 0:
                raise _UnreadableError("it starts with the assistant's turn, not the user's")
            raise _UnreadableError(f"two turns of the {turn.role} in a row ({place})")
    if turns[-1].role != "assistant":
        raise _UnreadableError(
            f"it ends with a turn of the {turns[-1].role}: the last one has to be the assistant's answer"
        )


def _asked(turns: list[Message]) -> str:
    return "\n\n".join(turn.content for turn in turns if turn.role != "system")


def _storable(text: str) -> str:
    return _UNSTORABLE.sub("\x1a", text)


def _named(columns: Iterable[str]) -> str:
    return ", ".join(map(repr, columns)) or "none"


def _value(values: Mapping[str, Any], column: str) -> Any:
    if column not in values:
        raise _UnreadableError(f"no column {column!r} (the row has {_named(values)})")
    return values[column]


def _string(values: Mapping[str, Any], column: str, default: str | None = None) -> str:
    value = _value(values, column) if default is None else values.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _UnreadableError(f"{column} is {json_type(value)}, not a string")
    return _storable(value)


def _optional(values: Mapping[str, Any], column: str) -> str | None:
    value = values.get(column)
    if isinstance(value, (list, dict, bool, float)):
        raise _UnreadableError(f"{column} is {json_type(value)}, not a string")
    return None if value is None else _storable(str(value).strip()) or None


def _key(values: Mapping[str, Any], column: str) -> str | None:
    value = values.get(column)
    if isinstance(value, float):
        value = int(value) if value.is_integer() else repr(value)
    key = _optional({column: value}, column)
    if key is not None and len(key) > _LONGEST_KEY:
        raise _UnreadableError(f"{column} is longer than {_LONGEST_KEY} characters")
    return key


def _time(values: Mapping[str, Any], column: str) -> datetime | None:
    """In UTC; without a zone it was UTC. A number of nine digits and more is seconds or milliseconds since 1970."""
    value = values.get(column)
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    try:
        if _EPOCH.fullmatch(text):
            seconds = float(text)
            return datetime.fromtimestamp(seconds / 1000 if seconds >= _MILLISECONDS else seconds, UTC)
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise _UnreadableError(
            f"{column} {text!r:.60} is no time: neither ISO 8601, such as 2026-05-01T09:30:00+02:00, nor seconds or "
            "milliseconds since 1970"
        ) from error


def _slices(values: Mapping[str, Any], column: str) -> Iterable[str]:
    value = values.get(column)
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, (list, dict)):
            raise _UnreadableError(f"{column} holds {json_type(each)}, which names no slice")
        said = str(each).lower() if isinstance(each, bool) else "" if each is None else str(each).strip()
        if said:
            yield f"{column}={_storable(said)}"


def _context(record: Record) -> tuple[str, ...] | None:
    """What had been retrieved; an empty list says nothing had, an empty text says nothing."""
    given = {column: record.values[column] for column in _CONTEXTS if record.values.get(column) not in (None, "")}
    if not given:
        return None
    if len(given) > 1:
        raise _UnreadableError(f"{' and '.join(given)} both say what had been retrieved: keep one of them")
    [(column, value)] = given.items()
    if record.cells and isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):  # a text in brackets
            value = json.loads(value)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise _UnreadableError(f"{column} is neither a text nor a list of texts")
    return tuple(_storable(text) for text in texts if text.strip())
