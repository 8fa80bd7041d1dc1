"""Where documents come from: folders of files and tables of rows, on any file system that fsspec knows.

A source first lists what it has, each with a cheap change token, and then reads only what changed. A source that cannot
be listed raises; it never looks empty.
"""

from __future__ import annotations

import csv
import io
import json
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from pipelines.catalog import now
from pipelines.corpus.documents import Document
from pipelines.corpus.parsing import Parsed, decode, parse, parse_text
from pipelines.corpus.settings import FolderSource, TableSource
from pipelines.errors import ConfigError, DocumentError, FreshetError, SourceError, SourceUnavailableError
from pipelines.fingerprint import fingerprint

_TABLES = (".csv", ".json", ".jsonl", ".ndjson")
_LONGEST_ID = 1024
_SETTLED_SECONDS = 0.02  # a file younger than this may be written again within the same tick of the clock


@dataclass(frozen=True, slots=True)
class Listed:
    """A document that a source has, not read yet."""

    document_id: str
    version: str
    """Equal version, equal content: nothing is read."""
    uri: str
    updated_at: datetime | None = None
    error: str | None = None
    """Why it cannot be read, where listing already shows it."""


class Source(ABC):
    """Documents of one origin."""

    @abstractmethod
    def list(self) -> Sequence[Listed]:
        """Everything that the source has now.

        Raises:
            SourceError: it cannot be right.
            SourceUnavailableError: it cannot be read now.
        """

    @abstractmethod
    def read(self, listed: Listed) -> Document:
        """One document.

        Raises:
            DocumentError: this one cannot be read.
            SourceUnavailableError: none can be read now.
        """


def open_source(settings: FolderSource | TableSource, *, base: Path) -> Source:
    """The source that ``settings`` declare; relative urls start at ``base``.

    Raises:
        ConfigError: the url, a glob or a template cannot be right.
    """
    location = _locate(settings.url, base)
    if isinstance(settings, FolderSource):
        return FolderDocuments(settings, location)
    return TableDocuments(settings, location)


@dataclass(frozen=True, slots=True)
class _Location:
    """A path on a file system, and how people see it."""

    files: Any
    path: str
    shown: str


def _locate(url: str, base: Path) -> _Location:
    import fsspec

    shown = re.sub(r"(?<=//)[^/@]+@", "", url)  # user and password are nobody's business
    if not url.strip() or any(ord(character) < 32 for character in url):
        raise ConfigError(f"url {shown!r} is no path: give a path or an fsspec URL")
    local = "://" not in url and "::" not in url
    if local:
        url = str(base / Path(url).expanduser())
    try:
        files, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"url {shown!r} needs a package that is not installed: {error}") from error
    except ValueError as error:
        known = ", ".join(sorted(fsspec.available_protocols()))
        raise ConfigError(f"url {shown!r} cannot be used: {error}; protocols: {known}") from error
    return _Location(files, path, url if local else shown)


@contextmanager
def _unavailable(name: str, shown: str) -> Iterator[None]:
    """A failure to read the source, as what it means."""
    try:
        yield
    except FreshetError:
        raise
    except FileNotFoundError as error:
        raise SourceError(f"source {name!r}: {shown} does not exist; correct its url, or bring it back") from error
    except PermissionError as error:
        raise SourceError(f"source {name!r}: {shown} may not be read: {error}; allow it") from error
    except Exception as error:  # object stores raise errors of their own
        raise SourceUnavailableError(f"source {name!r}: {shown} cannot be read now: {error!r}") from error


def _all_files(files: Any, root: str) -> dict[str, dict[str, Any]]:
    """Every file below ``root``; fsspec's own walk leaves out unreadable folders below the first, unsaid."""
    if getattr(files, "async_impl", False):  # object stores list by prefix, in one go
        listed: dict[str, dict[str, Any]] = files.find(root, detail=True)
        return listed
    found: dict[str, dict[str, Any]] = {}
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = files.ls(folder, detail=True)
        except FileNotFoundError as error:
            raise SourceUnavailableError(f"{folder} went away while it was listed: try again") from error
        for info in entries:
            if info["type"] == "directory":
                folders.append(info["name"])
            else:
                found[info["name"]] = info
    return found


class FolderDocuments(Source):
    """Every matching file below a folder; its id is its path from there. Linked folders are not followed."""

    def __init__(self, settings: FolderSource, location: _Location) -> None:
        self._settings = settings
        self._location = location
        self._patterns = [_pattern(glob) for glob in settings.glob]

    def list(self) -> Sequence[Listed]:
        """Files in the order of their ids."""
        name, files, root = self._settings.name, self._location.files, self._location.path
        with _unavailable(name, self._location.shown):
            files.invalidate_cache()
            if files.isfile(root):
                raise SourceError(f"source {name!r}: {self._location.shown} is a file; a folder source needs a folder")
            if not files.isdir(root):
                raise FileNotFoundError(root)
            found = _all_files(files, root)
        listed = []
        for path, info in sorted(found.items()):
            relative = path.removeprefix(root.rstrip("/")).lstrip("/")
            if any(pattern.match(relative) for pattern in self._patterns) and not self._is_folder(path, info):
                listed.append(self._listed(relative, path, info))
        return listed

    def _is_folder(self, path: str, info: Mapping[str, Any]) -> bool:
        return bool(info.get("islink")) and bool(self._location.files.isdir(path))

    def _listed(self, relative: str, path: str, info: dict[str, Any]) -> Listed:
        document_id = relative.encode("utf-8", "backslashreplace").decode("utf-8")
        make = partial(Listed, document_id, uri=f"{self._root_uri()}/{document_id}")
        if document_id != relative:
            return make("?", error=f"the file name {document_id!r} is not UTF-8: rename it")
        if len(document_id) > _LONGEST_ID:
            raise SourceError(f"source {self._settings.name!r}: path of more than {_LONGEST_ID} characters: {relative}")
        try:
            if info.get("islink"):
                info = self._location.files.info(path)  # of the file, not of the link
            version, updated_at = self._version(path, info)
        except OSError as error:
            return make("?", error=f"cannot be read: {error}")
        return make(version, updated_at=updated_at)

    def _root_uri(self) -> str:
        shown = self._location.shown
        return (Path(self._location.path).as_uri() if "://" not in shown else shown).rstrip("/")

    def _version(self, path: str, info: Mapping[str, Any]) -> tuple[str, datetime | None]:
        updated_at = next(
            (_moment(info[key]) for key in ("mtime", "LastModified", "last_modified", "updated") if info.get(key)), None
        )
        tag = next((str(info[key]) for key in ("ETag", "etag", "md5Hash", "content_md5") if info.get(key)), None)
        if tag is not None:
            return tag.strip('"')[:200], updated_at
        if updated_at is not None and "ino" in info:
            # The inode's change time too: a copy that keeps the old modification time still counts as touched.
            changed = _moment(info["created"])
            settled = (now() - max(changed, updated_at)).total_seconds() > _SETTLED_SECONDS
            token = f"{updated_at:%Y-%m-%dT%H:%M:%S.%fZ}-{info['size']}-{int(changed.timestamp() * 1e6):x}"
            return token if settled else f"{token}~", updated_at
        if updated_at is not None:
            return f"{updated_at:%Y-%m-%dT%H:%M:%S.%fZ}-{info['size']}", updated_at
        import hashlib

        return f"sha256:{hashlib.sha256(self._location.files.cat_file(path)).hexdigest()}", None

    def read(self, listed: Listed) -> Document:
        """Parse the file."""
        if listed.error is not None:
            raise DocumentError(f"{listed.document_id}: {listed.error}")
        path = PurePosixPath(listed.document_id)
        try:
            data: bytes = self._location.files.cat_file(f"{self._location.path.rstrip('/')}/{listed.document_id}")
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise DocumentError(f"{listed.document_id}: cannot be read: {error}") from error
        except Exception as error:
            raise SourceUnavailableError(f"{listed.uri} cannot be read now: {error!r}") from error
        try:
            parsed = parse(data, path.suffix)
        except DocumentError as error:
            raise DocumentError(f"{listed.document_id}: {error}") from error
        return _document(self._settings.name, listed, parsed, parsed.title or path.stem)


class TableDocuments(Source):
    """Every row of a CSV, JSON or JSONL file; its id is its key."""

    def __init__(self, settings: TableSource, location: _Location) -> None:
        self._settings = settings
        self._location = location
        self._suffix = PurePosixPath(location.path).suffix.lower()
        if self._suffix not in _TABLES:
            raise ConfigError(
                f"source {settings.name!r}: {location.shown} is no table; allowed endings: {', '.join(_TABLES)}"
            )
        self._text = Template(settings.text)
        self._title = Template(settings.title or "")
        self._rows: dict[str, Mapping[str, str]] = {}

    def list(self) -> Sequence[Listed]:
        """Rows in the order of the table."""
        name = self._settings.name
        with _unavailable(name, self._location.shown):
            self._location.files.invalidate_cache()
            if self._location.files.isdir(self._location.path):
                raise SourceError(f"source {name!r}: {self._location.shown} is a folder; a table source needs a file")
            data: bytes = self._location.files.cat_file(self._location.path)
        try:
            columns, rows = (
                _csv_rows(decode(data)) if self._suffix == ".csv" else _json_rows(decode(data), self._suffix)
            )
        except (DocumentError, csv.Error, json.JSONDecodeError) as error:
            raise SourceError(
                f"source {name!r}: {self._location.shown} is no valid {self._suffix} table: {error}"
            ) from error
        self._check(columns)
        return self._listed(rows)

    def _check(self, columns: Sequence[str]) -> None:
        if not columns:  # an empty JSON list has no columns, and is a table all the same
            return
        used = {self._settings.key, *self._text.columns, *self._title.columns}
        used |= {self._settings.updated_at} if self._settings.updated_at else set()
        if unknown := sorted(used - set(columns)):
            raise ConfigError(
                f"source {self._settings.name!r}: {self._location.shown} has no column "
                f"{', '.join(map(repr, unknown))}; columns: {', '.join(columns)}"
            )

    def _listed(self, rows: Sequence[tuple[int, Mapping[str, str]]]) -> Sequence[Listed]:
        places: dict[str, list[int]] = defaultdict(list)
        for line, row in rows:
            places[row.get(self._settings.key, "").strip()].append(line)
        if empty := places.get(""):
            raise SourceError(
                f"source {self._settings.name!r}: no {self._settings.key} in row {_numbers(empty)} of "
                f"{self._location.shown}; every row needs a key"
            )
        listed = []
        self._rows = {row[self._settings.key].strip(): row for _, row in rows}
        for key, row in self._rows.items():
            if len(key) > _LONGEST_ID or not _storable(key):
                raise SourceError(
                    f"source {self._settings.name!r}: key {key!r:.100} in row {places[key][0]} is no text of at most "
                    f"{_LONGEST_ID} characters"
                )
            updated_at, error = _stated_moment(row.get(self._settings.updated_at or "", ""))
            if len(places[key]) > 1:
                error = f"key {key!r} occurs in rows {_numbers(places[key])}: keep one"
            uri = f"{self._uri()}#{quote(key)}"
            listed.append(Listed(key, fingerprint(dict(row))[:32], uri, updated_at, error))
        return listed

    def _uri(self) -> str:
        shown = self._location.shown
        return Path(self._location.path).as_uri() if "://" not in shown else shown

    def read(self, listed: Listed) -> Document:
        """Fill in the templates."""
        if listed.error is not None:
            raise DocumentError(f"{listed.document_id}: {listed.error}")
        row = self._rows[listed.document_id]
        text, title = self._text.fill(row), " ".join(self._title.fill(row).split())
        if bad := next((value for value in (text, title) if not _storable(value)), None):
            raise DocumentError(
                f"{listed.document_id}: {bad!r} holds characters that are no text: NUL or half an emoji"
            )
        parsed = parse_text(text)
        if title:
            parsed = Parsed(title, tuple(type(each)((title,), each.blocks) for each in parsed.sections))
        return _document(self._settings.name, listed, parsed, title or listed.document_id)


class Template:
    """Text with columns in single braces; ``{{`` and ``}}`` are braces. Nothing is evaluated."""

    _PART = re.compile(r"(\{\{|\}\})|\{([^{}]+)\}|([{}])")

    def __init__(self, template: str) -> None:
        self._template = template
        found = list(self._PART.finditer(template))
        if stray := next((match for match in found if match[3]), None):
            raise ConfigError(
                f"template {template!r}: {stray[3]!r} at {stray.start()} is alone; write columns as '{{name}}', and "
                "braces doubled"
            )
        self.columns = frozenset(match[2] for match in found if match[2])

    def fill(self, row: Mapping[str, str]) -> str:
        """The text for one row; a column that the row lacks is empty."""
        return self._PART.sub(lambda match: row.get(match[2], "") if match[2] else match[1][0], self._template)


def _document(source: str, listed: Listed, parsed: Parsed, title: str) -> Document:
    return Document(source, listed.document_id, title, listed.uri, listed.version, listed.updated_at, parsed.sections)


def _csv_rows(text: str) -> tuple[Sequence[str], Sequence[tuple[int, Mapping[str, str]]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = [column.strip() for column in next(reader, [])]
    twice = sorted({column for column in header if header.count(column) > 1})
    if not header or twice:
        raise DocumentError(f"columns named twice: {', '.join(twice)}" if twice else "there is no header")
    rows = []
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise DocumentError(f"line {reader.line_num} has {len(row)} cells, the header has {len(header)}")
        rows.append((reader.line_num, dict(zip(header, row, strict=True))))
    return header, rows


def _json_rows(text: str, suffix: str) -> tuple[Sequence[str], Sequence[tuple[int, Mapping[str, str]]]]:
    load = partial(json.loads, parse_float=str, parse_int=str)  # numbers as they are written
    if suffix == ".json":
        values = load(text)
        if not isinstance(values, list):
            raise DocumentError(f"it holds a {type(values).__name__}; a JSON table is a list of objects")
        numbered = list(enumerate(values, 1))
    else:
        numbered = [(number, load(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows: list[tuple[int, Mapping[str, str]]] = []
    for number, value in numbered:
        if not isinstance(value, dict):
            raise DocumentError(f"row {number} is no object: {value!r:.80}")
        rows.append((number, {key: _cell(inner) for key, inner in value.items()}))
    return sorted({key for _, row in rows for key in row}), rows


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _moment(value: Any) -> datetime:
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _stated_moment(text: str) -> tuple[datetime | None, str | None]:
    if not text.strip():
        return None, None
    try:
        return _moment(text.strip()), None
    except ValueError:
        return None, f"update time {text!r} is not ISO 8601, such as 2026-05-01T09:30:00+02:00"


def _storable(text: str) -> bool:
    try:
        return "\x00" not in text and bool(text.encode("utf-8") or True)
    except UnicodeEncodeError:
        return False


def _numbers(places: Sequence[int]) -> str:
    return ", ".join(map(str, places[:10])) + (", …" if len(places) > 10 else "")


def _pattern(glob: str) -> re.Pattern[str]:
    from fsspec.utils import glob_translate

    if glob.startswith("/") or ".." in PurePosixPath(glob).parts:
        raise ConfigError(f"glob {glob!r} leaves its folder: globs start there, as in '**/*.md'")
    try:
        return re.compile(glob_translate(glob))
    except ValueError as error:
        raise ConfigError(f"glob {glob!r} cannot be used: {error}") from error
