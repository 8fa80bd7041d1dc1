"""What a file or a database says in one row, before anybody asks what it means."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any

_JSON_TYPES = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Record:
    """One row."""

    number: int
    """Line or ordinal, counted from 1."""
    raw: str
    """The row as it was."""
    values: Mapping[str, Any]
    """JSON values by column."""
    problem: str | None = None
    """Why it has no values."""
    cells: bool = False
    """Whether lists and objects may stand as JSON in text, as in CSV files and databases."""


def plain_record(number: int, values: Mapping[str, Any], *, cells: bool = False) -> Record:
    """A row of typed values; its raw form is its JSON."""
    record = {column: _plain_or_too_deep(value) for column, value in values.items()}
    return Record(number, json.dumps(record, ensure_ascii=False), record, cells=cells)


def _plain_or_too_deep(value: Any) -> Any:
    try:
        return plain(value)
    except RecursionError:
        return "(nested too deeply)"


def plain(value: Any) -> Any:
    """A typed value as JSON has it: dates and times in ISO 8601, exact numbers as text, not-a-number as null."""
    match value:
        case None | str() | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case datetime() | date() | time():
            return value.isoformat()
        case dict():
            return {str(key): plain(inner) for key, inner in value.items()}
        case list() | tuple() | set():
            return [plain(inner) for inner in value]
        case bytes() | memoryview():
            try:
                return bytes(value).decode("utf-8")
            except UnicodeDecodeError:
                return f"({len(bytes(value))} bytes that are no text)"
        case _:
            return str(value)


def json_type(value: Any) -> str:
    """What people call a JSON value."""
    return _JSON_TYPES[type(value)]
