"""JSONL, JSON, CSV and Parquet files, on this machine or behind an fsspec URL, as records."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.errors import ConfigError, SourceError, SourceUnavailableError
from pipelines.labels.reading.records import Record, json_type, plain_record

_BATCH = 1024  # Parquet rows that are Python objects at once


def open_files(url: str, patterns: Sequence[str], base: Path) -> Iterator[tuple[str, Iterator[Record]]]:
    """Each file's name below ``url`` and its records, which are read when they are asked for.

    Raises:
        SourceError: nothing is there, no file matches, or a file is broken as a whole or of an unknown format.
        SourceUnavailableError: it cannot be read now.
        ConfigError: the URL's protocol is not known.
    """
    remote = "://" in url
    shown = re.sub(r"://[^/@]*@", "://…@", url.partition("?")[0]) if remote else str(base / url)  # no credentials
    found = _remote(url, patterns, shown) if remote else _local(base / url, patterns)
    if found is None:
        raise SourceError(f"there are no labelled examples at {shown}: no such folder or file (labels.url)")
    if not found:
        raise SourceError(f"no file in {shown} matches {', '.join(patterns)} (labels.glob)")
    for name, content in found.items():
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in FORMATS:
            raise SourceError(f"{name}: format {suffix!r} is unknown; allowed: {', '.join(FORMATS)} (labels.glob)")
        yield name, _records(FORMATS[suffix], name, content, url, shown)


def _records(
    read: Callable[[str, bytes], Iterator[Record]], name: str, content: Callable[[], bytes], url: str, shown: str
) -> Iterator[Record]:
    with _available(url, shown):
        held = content()
    yield from read(name, held)


def _local(place: Path, patterns: Sequence[str]) -> dict[str, Callable[[], bytes]] | None:
    with _available("", str(place)):
        if place.is_file():
            return {place.name: place.read_bytes}
        if not place.is_dir():
            return None
        found = {path for pattern in patterns for path in place.glob(pattern) if path.is_file()}
    return {path.relative_to(place).as_posix(): path.read_bytes for path in sorted(found)}


def _remote(url: str, patterns: Sequence[str], shown: str) -> dict[str, Callable[[], bytes]] | None:
    import fsspec

    try:
        filesystem, place = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"labels.url {shown!r}: {error}") from error
    with _available(url, shown):
        filesystem.invalidate_cache()
        if filesystem.isfile(place):
            return {place.rpartition("/")[2]: partial(filesystem.cat_file, place)}
        if not filesystem.isdir(place):
            return None
        root = place.rstrip("/") + "/"
        found = {path for pattern in patterns for path in filesystem.glob(root + pattern)}
    return {path.removeprefix(root): partial(filesystem.cat_file, path) for path in sorted(found)}


@contextmanager
def _available(url: str, shown: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 every fsspec backend raises errors of its own; all are raised on
        from pipelines.corpus.sources.location import cause, said, secrets_of

        secrets = secrets_of(url)
        raise SourceUnavailableError(f"labelled examples at {shown} cannot be read: {said(error, secrets)}") from cause(
            error, secrets
        )


def _text(content: bytes) -> str:
    """Bytes that are not UTF-8 become lone surrogates, so that they spoil their own row only."""
    return content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _jsonl(_: str, content: bytes) -> Iterator[Record]:
    return _lines(_text(content))


def _lines(text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Record(number, line, {}, f"not JSON ({error})")
            continue
        yield _record(number, line, values)


def _record(number: int, raw: str, values: Any) -> Record:
    if isinstance(values, dict):
        return Record(number, raw, values)
    return Record(number, raw, {}, f"{json_type(values)}, not a JSON object")


def _json(name: str, content: bytes) -> Iterator[Record]:
    """A list of rows; otherwise one row a line, as many call their JSONL."""
    text = _text(content)
    if not text.lstrip().startswith("["):
        yield from _lines(text)
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{name} is not JSON ({error}); correct it, or write one row a line (.jsonl)") from error
    for number, row in enumerate(rows, start=1):
        yield _record(number, json.dumps(row, ensure_ascii=False), row)


def _csv(name: str, content: bytes) -> Iterator[Record]:
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
                    _once(name, header)
                    continue
                values = dict(zip(header, cells, strict=False))
                if len(cells) == len(header):
                    yield Record(number, json.dumps(values, ensure_ascii=False), values, cells=True)
                else:
                    raw = "".join(lines[number - 1 : start + read])
                    yield Record(number, raw, {}, f"{len(cells)} cells where the header names {len(header)}")
            start = len(lines)
        except csv.Error as error:  # an unclosed quote takes everything after it along: give up its line only
            start += read
            if header is None:
                raise SourceError(f"{name}: its header is not CSV ({error})") from error
            yield Record(start + 1, lines[start], {}, f"not CSV ({error})")
            start += 1


def _parquet(name: str, content: bytes) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            _once(name, file.schema_arrow.names)
            named = _class_labels(file.schema_arrow)
            rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(batch_size=_BATCH))
            for number, values in enumerate(rows, start=1):
                values.update({column: _named(values[column], names) for column, names in named.items()})
                yield plain_record(number, values)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise SourceError(f"{name} is not a Parquet file that can be read: {error}") from error


def _class_labels(schema: Any) -> dict[str, Sequence[str]]:
    """Names of labels by column, where Hugging Face's datasets wrote the file: it stores their numbers only."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):  # written by something else
        return {}
    found = {}
    for column in schema.names:
        feature = features.get(column)
        if isinstance(feature, dict) and isinstance(feature.get("feature"), dict):  # a list of them
            feature = feature["feature"]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            found[column] = feature["names"]
    return found


def _named(value: Any, names: Sequence[str]) -> Any:
    """A label's number as its name; -1 stands for none."""
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _once(name: str, columns: Sequence[str]) -> None:
    if len(set(columns)) < len(columns):
        raise SourceError(f"{name}: its header names a column twice: {', '.join(columns)}")


FORMATS: Mapping[str, Callable[[str, bytes], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
    ".json": _json,
}
"""How a file is read, by the ending of its name."""
