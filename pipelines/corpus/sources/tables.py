"""CSV, JSON, JSONL, Parquet and XLSX tables, one document a row.

A listing passes over the file once and keeps no row; reading passes over it again and makes documents of the rows
that are asked for.
"""

from __future__ import annotations

import csv
import json
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipelines.corpus.documents import Document
from pipelines.corpus.parsing import decode
from pipelines.corpus.settings import TableSource
from pipelines.corpus.sources.base import NOTHING_KNOWN, Known, Listed, Listing, Source
from pipelines.corpus.sources.location import Location, local_stamp, remote_stamp, unavailable
from pipelines.corpus.sources.rows import Row, RowDocuments, cell
from pipelines.errors import ConfigError, DocumentError, FreshetError, SourceError
from pipelines.fingerprint import fingerprint

_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
}
_LONGEST_CELL = 50_000_000
_BATCH = 1024

Rows = tuple[Sequence[str] | None, Iterator[tuple[int, Row]]]
"""Columns, where they are known before the rows, and the rows with their numbers."""


class TableDocuments(Source):
    """Every row of a table file; its id is its key."""

    def __init__(self, settings: TableSource, location: Location) -> None:
        self._settings = settings
        self._location = location
        suffix = PurePosixPath(location.path).suffix.lower()
        self._format = settings.format or _FORMATS.get(suffix, "")
        if not self._format:
            raise ConfigError(
                f"source {settings.name!r}: {location.shown} is no table; allowed endings: {', '.join(_FORMATS)}; or "
                "say its 'format'"
            )
        self._documents = RowDocuments(settings, location.shown, location.uri)
        self._copy: IO[bytes] | None = None

    def list(self, known: Known = NOTHING_KNOWN) -> Listing:
        """Rows in the order of the table; where the file is as it was when all of it was indexed, none is read."""
        token = self._token()
        state = known.state
        if token and state.get("file") == token and state.get("rows") == len(known.versions) and not known.retry:
            return Listing((), removed=(), state=state)
        self._download()
        with self._open(None) as (columns, rows):
            seen = set(columns or ())
            if columns is not None:
                self._documents.check(columns)

            def noted() -> Iterator[tuple[int, Row]]:
                for number, row in rows:
                    seen.update(row)
                    yield number, row

            try:
                listed = self._documents.index(noted() if columns is None else rows)
            except SourceError:
                if seen:  # no row has a key where there is no such column
                    self._documents.check(sorted(seen))
                raise
        if columns is None and seen:  # an empty JSON list has none, and is a table all the same
            self._documents.check(sorted(seen))
        return Listing(listed, state={"file": token, "rows": len(listed)} if token else {})

    def _token(self) -> str | None:
        """What the file and the settings that read it are known by, if the file says so itself."""
        location, name = self._location, self._settings.name
        with unavailable(name, location.shown, location.secrets):
            location.files.invalidate_cache()
            if "http" not in location.files.protocol and location.files.isdir(location.path):
                raise SourceError(f"source {name!r}: {location.shown} is a folder; a table source needs a file")
            if location.local:
                version: str | None = local_stamp(Path(location.path).stat(), time.time())[0]
            else:
                version = remote_stamp(location.files.info(location.path))[0]
        if version is None or version.endswith("~"):
            return None
        read_by = (self._documents.look, self._format, *sorted(self._documents.columns))
        return fingerprint(version, *read_by, self._settings.delimiter, self._settings.sheet)[:32]

    def _download(self) -> None:
        """A remote file, once for both passes."""
        if self._location.local:
            return
        self.close()
        location = self._location
        with unavailable(self._settings.name, location.shown, location.secrets):
            self._copy = tempfile.NamedTemporaryFile(suffix=f".{self._format}")  # noqa: SIM115 closed by close()
            location.files.get_file(location.path, self._copy.name)

    def close(self) -> None:
        """Remove the copy of a remote file."""
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    @contextmanager
    def _open(self, keys: Collection[str] | None) -> Iterator[Rows]:
        """The rows, of which only those with ``keys`` are needed."""
        location, settings = self._location, self._settings
        path = Path(self._copy.name if self._copy is not None else location.path)
        with unavailable(settings.name, location.shown, location.secrets), ExitStack() as files:
            opened = partial(_opened, files, path)
            try:
                match self._format:
                    case "csv":
                        delimiter = settings.delimiter or _delimiter(path, self._documents.columns)
                        yield _csv(opened(newline=""), delimiter)
                    case "json":
                        yield None, _json(decode(path.read_bytes()))
                    case "jsonl":
                        yield None, _jsonl(opened(newline="\n"))
                    case "parquet":
                        yield _parquet(files.enter_context(path.open("rb")), settings.key, keys)
                    case _:
                        yield _xlsx(files.enter_context(path.open("rb")), settings.sheet)
            except UnicodeDecodeError as error:
                raise self._invalid("it is not UTF-8: save it as UTF-8") from error
            except DocumentError as error:
                raise self._invalid(str(error)) from error
            except (FreshetError, OSError):
                raise
            except Exception as error:  # each format has errors of its own
                raise self._invalid(str(error) or repr(error)) from error

    def _invalid(self, why: str) -> SourceError:
        return SourceError(
            f"source {self._settings.name!r}: {self._location.shown} is no valid {self._format.upper()} table: {why}"
        )

    def read(self, listed: Listed) -> Document:
        """Fill in the templates; each costs a pass over the table."""
        [(_, found)] = self.read_all([listed])
        if isinstance(found, DocumentError):
            raise found
        return found

    def read_all(self, listed: Iterable[Listed]) -> Iterator[tuple[Listed, Document | DocumentError]]:
        """Fill in the templates, in one pass over the table where the order is the table's."""
        wanted = [*listed]
        keys = {each.document_id for each in wanted}
        with self._open(keys) as (_, rows):
            found = ((key, row) for _, row in rows if (key := self._documents.key(row)) in keys)
            yield from self._documents.read_all(wanted, found)


def _opened(files: ExitStack, path: Path, newline: str) -> IO[str]:
    with path.open("rb") as file:
        marked = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    return files.enter_context(path.open(encoding="utf-16" if marked else "utf-8-sig", newline=newline))


def _csv(file: IO[str], delimiter: str) -> Rows:
    if csv.field_size_limit() < _LONGEST_CELL:
        csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(file, strict=True, delimiter=delimiter)
    header = [column.strip() for column in next(reader, [])]
    _check_header(header)

    def rows() -> Iterator[tuple[int, Row]]:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise DocumentError(f"line {reader.line_num} has {len(row)} cells, the header has {len(header)}")
            lines = (text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text for text in row)
            yield reader.line_num, dict(zip(header, lines, strict=True))

    return header, rows()


def _delimiter(path: Path, named: Collection[str]) -> str:
    """The first that makes all the columns of the header that the settings name; none does: a comma."""
    for delimiter in ",;\t|":
        with ExitStack() as files:
            header = next(csv.reader(_opened(files, path, newline=""), delimiter=delimiter), [])
        if {column.strip() for column in header} >= set(named):
            return delimiter
    return ","


def _check_header(header: Sequence[str]) -> None:
    if not any(header):
        raise DocumentError("there is no header")
    if twice := sorted({column for column in header if header.count(column) > 1}):
        raise DocumentError(f"columns named twice: {', '.join(twice)}")


_load = partial(json.loads, parse_float=str, parse_int=str, parse_constant=str)  # numbers as they are written


def _row(number: int, value: Any) -> tuple[int, Row]:
    if not isinstance(value, dict):
        raise DocumentError(f"row {number} is no object: {value!r:.80}")
    return number, {key: cell(inner) for key, inner in value.items()}


def _jsonl(file: IO[str]) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield _row(number, _load(line))


def _json(text: str) -> Iterator[tuple[int, Row]]:
    """A list of objects, decoded one by one: the text is held, its objects are not."""
    decoder = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)

    def after_space(at: int) -> int:
        while text[at : at + 1].isspace():
            at += 1
        return at

    at = after_space(0)
    if text[at : at + 1] != "[":
        raise DocumentError(f"it holds a {type(_load(text)).__name__}; a JSON table is a list of objects")
    number, at = 0, after_space(at + 1)
    while text[at : at + 1] != "]" or number:
        number += 1
        value, at = decoder.raw_decode(text, at)
        yield _row(number, value)
        at = after_space(at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = after_space(at + 1)
    if (end := after_space(at + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _parquet(file: IO[bytes], key: str, keys: Collection[str] | None) -> Rows:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    header = table.schema_arrow.names
    _check_header(header)

    def rows() -> Iterator[tuple[int, Row]]:
        number = 1
        for batch in table.iter_batches(batch_size=_BATCH):
            columns, places = batch.columns, [*range(number, number + len(batch))]
            number += len(batch)
            if keys is not None and key in header:
                taken = [at for at, value in enumerate(batch[key].to_pylist()) if cell(value).strip() in keys]
                columns = batch.take(pa.array(taken, pa.int64())).columns
                places = [places[at] for at in taken]
            values = [
                # Half and single precision as they are written, not as the double nearest to them.
                pc.cast(pc.cast(column, pa.float32()), pa.string())
                if pa.types.is_float16(column.type) or pa.types.is_float32(column.type)
                else column
                for column in columns
            ]
            for place, row in zip(places, zip(*(column.to_pylist() for column in values), strict=True), strict=True):
                yield place, dict(zip(header, map(cell, row), strict=True))

    return header, rows()


def _xlsx(file: IO[bytes], sheet: str | None) -> Rows:
    from openpyxl import load_workbook

    book = load_workbook(file, read_only=True, data_only=True)
    names = [each.title for each in book.worksheets]
    if sheet is not None and sheet not in names:
        raise DocumentError(f"there is no sheet {sheet!r}; sheets: {', '.join(map(repr, names))}")
    if not names:
        raise DocumentError("there is no sheet")
    page: Any = book[sheet or names[0]]
    page.reset_dimensions()  # what a file says of its own size may be wrong, and rows would be missing
    lines = page.iter_rows(values_only=True)
    header = [_xlsx_cell(value).strip() for value in next(lines, ())]
    while header and not header[-1]:
        header.pop()
    _check_header(header)

    def rows() -> Iterator[tuple[int, Row]]:
        for number, line in enumerate(lines, 2):
            row = [_xlsx_cell(value) for value in line]
            if not any(text.strip() for text in row):
                continue
            if any(row[len(header) :]):
                raise DocumentError(f"row {number} has {len(row)} cells, the header has {len(header)}")
            yield number, dict(zip(header, [*row, *[""] * len(header)], strict=False))

    return header, rows()


def _xlsx_cell(value: Any) -> str:
    """Days are date-times at midnight in a workbook."""
    midnight = isinstance(value, datetime) and value.time() == datetime.min.time()
    return cell(value.date() if midnight else value)
