"""Reading JSONL and CSV files of labelled examples: every row comes out, readable or not; a file that cannot be
read is an error, never "nothing new".
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, SourceError, SourceUnavailableError
from pipelines.labels.examples import Split, Submitted
from pipelines.labels.settings import LabelSettings

JSONL = (".jsonl", ".ndjson")
CSV = (".csv",)

_GIVEN_SPLITS: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_JSON_TYPES = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that the files hold now."""

    files: tuple[str, ...]
    rows: tuple[Submitted, ...]


def read_examples(settings: LabelSettings, *, base: Path) -> Reading:
    """Read the folder or file at ``settings.url``; a relative one starts at ``base``.

    Raises:
        SourceError: nothing is there, no file matches, or a file is of an unknown format.
        SourceUnavailableError: it cannot be read now.
        ConfigError: the URL's protocol is not known.
    """
    if settings.url is None:
        return Reading((), ())
    files = _remote_files(settings) if "://" in settings.url else _local_files(settings, base)
    rows = [row for name, content in files.items() for row in _rows(name, content, settings)]
    return Reading(tuple(files), tuple(rows))


def _local_files(settings: LabelSettings, base: Path) -> dict[str, bytes]:
    place = base / str(settings.url)
    try:
        if place.is_file():
            return {place.name: place.read_bytes()}
        if not place.is_dir():
            raise SourceError(f"there are no labelled examples at {place}: no such folder or file (labels.url)")
        found = {path for pattern in settings.glob for path in place.glob(pattern) if path.is_file()}
        files = {path.relative_to(place).as_posix(): path.read_bytes() for path in sorted(found)}
    except OSError as error:
        raise SourceUnavailableError(f"labelled examples at {place} cannot be read: {error}") from error
    return _some(files, settings, str(place))


def _remote_files(settings: LabelSettings) -> dict[str, bytes]:
    import fsspec

    shown = re.sub(r"://[^/@]*@", "://…@", str(settings.url).split("?")[0])  # credentials stay out of logs
    try:
        filesystem, place = fsspec.core.url_to_fs(settings.url)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"labels.url {shown!r}: {error}") from error
    try:
        filesystem.invalidate_cache()
        if filesystem.isfile(place):
            return {place.rpartition("/")[2]: filesystem.cat_file(place)}
        exists = filesystem.isdir(place)
        root = place.rstrip("/") + "/"
        found = {path for pattern in settings.glob for path in filesystem.glob(root + pattern)}
        files = {path.removeprefix(root): filesystem.cat_file(path) for path in sorted(found)}
    except Exception as error:  # every fsspec backend raises errors of its own library
        raise SourceUnavailableError(
            f"labelled examples at {shown} cannot be read: {type(error).__name__}: {error}"
        ) from error
    if not exists:
        raise SourceError(f"there are no labelled examples at {shown}: no such folder or file (labels.url)")
    return _some(files, settings, shown)


def _some(files: dict[str, bytes], settings: LabelSettings, place: str) -> dict[str, bytes]:
    if not files:
        raise SourceError(f"no file in {place} matches {', '.join(settings.glob)} (labels.glob)")
    return files


def _rows(name: str, content: bytes, settings: LabelSettings) -> Iterator[Submitted]:
    suffix = Path(name).suffix.lower()
    if suffix in JSONL:
        return _jsonl(name, content, settings)
    if suffix in CSV:
        return _csv(name, content, settings)
    raise SourceError(f"{name}: format {suffix!r} is unknown; allowed: {', '.join(JSONL + CSV)} (labels.glob)")


def _text(content: bytes) -> str:
    """Bytes that are not UTF-8 become lone surrogates, so that they spoil their own row only."""
    return content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _jsonl(name: str, content: bytes, settings: LabelSettings) -> Iterator[Submitted]:
    for number, line in enumerate(_text(content).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield _unreadable(name, number, line, f"not JSON ({error})")
            continue
        if not isinstance(record, dict):
            yield _unreadable(name, number, line, f"{_JSON_TYPES.get(type(record), 'null')}, not a JSON object")
            continue
        yield _submitted(record, name, number, line, settings)


def _csv(name: str, content: bytes, settings: LabelSettings) -> Iterator[Submitted]:
    lines = io.StringIO(_text(content), newline="").readlines()
    header: list[str] | None = None
    start = 0  # lines before it are done with
    while start < len(lines):
        reader = csv.reader(lines[start:], strict=True)
        read = 0
        try:
            for cells in reader:
                number, read = start + read + 1, reader.line_num
                if not cells:
                    continue
                if header is None:
                    header = [cell.strip() for cell in cells]
                    if len(set(header)) < len(header):
                        raise SourceError(f"{name}: its header names a column twice: {', '.join(header)}")
                    continue
                record = dict(zip(header, cells, strict=False))
                if len(cells) == len(header):
                    raw = json.dumps(record, ensure_ascii=False)
                    yield _submitted(record, name, number, raw, settings, split_labels=settings.multi_label)
                else:
                    raw = "".join(lines[number - 1 : start + read])
                    yield _unreadable(name, number, raw, f"{len(cells)} cells where the header names {len(header)}")
            start = len(lines)
        except csv.Error as error:  # an unclosed quote takes everything after it along: give up its line only
            start += read
            if header is None:
                raise SourceError(f"{name}: its header is not CSV ({error})") from error
            yield _unreadable(name, start + 1, lines[start], f"not CSV ({error})")
            start += 1


def _submitted(
    record: Mapping[str, Any], name: str, number: int, raw: str, settings: LabelSettings, *, split_labels: bool = False
) -> Submitted:
    try:
        return Submitted(
            text=_string(record, settings.text_column),
            labels=_labels(record, settings, split_labels=split_labels),
            group=_optional(record, settings.group_column),
            split=_split(record, name, settings),
            origin=_optional(record, "origin") or "human",
            author=_optional(record, "author"),
            file=name,
            row=number,
            raw=_storable(raw),
        )
    except ValueError as error:
        return _unreadable(name, number, raw, str(error))


def _unreadable(name: str, number: int, raw: str, problem: str) -> Submitted:
    return Submitted("", (), None, None, "human", None, name, number, _storable(raw.strip("\r\n")), _storable(problem))


def _storable(text: str) -> str:
    return _UNSTORABLE.sub("\x1a", text)


def _value(record: Mapping[str, Any], column: str) -> Any:
    if column not in record:
        raise ValueError(f"no column {column!r} (the row has {', '.join(map(repr, record)) or 'none'})")
    return record[column]


def _string(record: Mapping[str, Any], column: str) -> str:
    value = _value(record, column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{column} is {_JSON_TYPES[type(value)]}, not a string")  # noqa: TRY004 - caught as one kind
    return _storable(value)


def _optional(record: Mapping[str, Any], column: str) -> str | None:
    value = record.get(column)
    if isinstance(value, (list, dict, bool, float)):
        raise ValueError(f"{column} is {_JSON_TYPES[type(value)]}, not a string")  # noqa: TRY004 - caught as one kind
    return None if value is None else _storable(str(value).strip()) or None


def _labels(record: Mapping[str, Any], settings: LabelSettings, *, split_labels: bool) -> tuple[str, ...]:
    """Without surrounding blanks, distinct, sorted: how a label is written in a cell does not make it another one."""
    column = settings.label_column
    value = _value(record, column)
    if isinstance(value, str) and split_labels:
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else value.split(";")
        except ValueError as error:
            raise ValueError(f"{column} is not a JSON list ({error})") from error
    if value is None and settings.multi_label:
        raise ValueError(f"{column} is null; an example without labels has an empty list")
    labels = value if isinstance(value, list) else [] if value is None else [value]
    for label in labels:
        if not isinstance(label, str):
            kind = _JSON_TYPES.get(type(label), "null")
            raise ValueError(f"{column} holds {kind}, not a string or a list of strings")  # noqa: TRY004 - caught as one kind
    return tuple(sorted({_storable(label.strip()) for label in labels} - {""}))


def _split(record: Mapping[str, Any], name: str, settings: LabelSettings) -> Split | None:
    given = _optional(record, settings.split_column)
    if given is None:
        return next((split for pattern, split in settings.file_splits.items() if fnmatch(name, pattern)), None)
    if given.lower() not in _GIVEN_SPLITS:
        raise ValueError(f"{settings.split_column} {given!r} is unknown; allowed: {', '.join(_GIVEN_SPLITS)}")
    return _GIVEN_SPLITS[given.lower()]
