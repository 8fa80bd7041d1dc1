"""Folders of files, one document each: local ones, and object stores and web servers through fsspec."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from operator import attrgetter
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from pipelines.corpus.documents import Document
from pipelines.corpus.parsing import parse
from pipelines.corpus.settings import FolderSource
from pipelines.corpus.sources.base import LONGEST_ID, NOTHING_KNOWN, Known, Listed, Listing, Source, document
from pipelines.corpus.sources.location import Location, cause, local_stamp, remote_stamp, said, unavailable
from pipelines.errors import ConfigError, DocumentError, SourceError, SourceUnavailableError

_CONNECTIONS = 8
_PLAIN = re.compile(r"[A-Za-z0-9_.~/-]*").fullmatch  # nothing in it has to be quoted
_DEEPEST = 64  # a web server may answer any path with the same page of relative links


class FolderDocuments(Source):
    """Every matching file below a folder; its id is its path from there. Linked folders are not followed."""

    def __init__(self, settings: FolderSource, location: Location) -> None:
        self._settings = settings
        self._location = location
        self._matches = _matcher(settings.glob)
        self._most = settings.max_bytes
        self._prefix = location.path.rstrip("/") + "/" if location.path else ""  # an archive's top has no name
        self._uri = location.uri if location.uri.endswith("/") else location.uri + "/"
        self._web = "http" in location.files.protocol

    def list(self, known: Known = NOTHING_KNOWN) -> Listing:
        """Files in the order of their ids."""
        del known
        with unavailable(self._settings.name, self._location.shown, self._location.secrets):
            listed = [*(self._local() if self._location.local else self._remote())]
        listed.sort(key=attrgetter("document_id"))
        return Listing(listed)

    def _local(self) -> Iterator[Listed]:
        """By ``scandir``, which costs a system call a file."""
        root = self._location.path
        if os.path.isfile(root):  # noqa: PTH113 a string all the way: a Path object each would double the cost
            raise self._no_folder()
        started = time.time()
        matches, folders = self._matches, [("", root)]
        while folders:
            inside, folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append((f"{inside}{entry.name}/", entry.path))
                        elif matches(relative := inside + entry.name):
                            listed = self._entry(relative, entry, started)
                            if listed is not None:
                                yield listed
            except FileNotFoundError as error:
                if not inside:
                    raise
                raise SourceUnavailableError(f"{folder} went away while it was listed: try again") from error

    def _entry(self, relative: str, entry: os.DirEntry[str], started: float) -> Listed | None:
        document_id, error = self._document_id(relative)
        uri = self._uri + (document_id if _PLAIN(document_id) else quote(document_id))
        if error is not None:
            return Listed(document_id, "?", uri, None, error)
        try:
            if entry.is_symlink() and entry.is_dir():
                return None
            found = entry.stat()
            version, updated_at = local_stamp(found, started)
        except FileNotFoundError as gone:
            if not entry.is_symlink():  # deleted since
                return None
            return Listed(document_id, "?", uri, None, f"cannot be read: {gone}")
        except OSError as refused:
            return Listed(document_id, "?", uri, None, f"cannot be read: {refused}")
        size = found.st_size
        return Listed(document_id, version, uri, updated_at, self._too_large(size) if size > self._most else None)

    def _remote(self) -> Iterator[Listed]:
        files = self._location.files
        files.invalidate_cache()
        found = [
            (relative, path, info)
            for path, info in self._found()
            if path.startswith(self._prefix)
            and not path.endswith("/")  # what consoles make for an empty folder
            and self._matches(relative := path.removeprefix(self._prefix) if self._prefix else path.lstrip("/"))
        ]
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            described = pool.map(lambda each: self._described(each[1], each[2]), found)
            for (relative, path, _), info in zip(found, described, strict=True):
                document_id, error = self._document_id(relative)
                uri = self._uri + document_id
                if error is not None or isinstance(info, str):
                    yield Listed(document_id, "?", uri, error=error or str(info))
                    continue
                version, updated_at = remote_stamp(info)
                error = self._too_large(info.get("size") or 0)
                if version is None:
                    version, error = self._content_hash(path) if error is None else ("?", error)
                yield Listed(document_id, version, uri, updated_at, error)

    def _found(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Every file below the folder; fsspec's own walk leaves out what it may not read, unsaid."""
        from fsspec.asyn import AsyncFileSystem

        files, root = self._location.files, self._location.path
        if isinstance(files, AsyncFileSystem) and type(files)._find is not AsyncFileSystem._find:  # noqa: SLF001 the only sign of a listing by prefix
            found = files.find(root, detail=True)
            files.invalidate_cache()
            if root in found:
                raise self._no_folder()
            if not found and not self._settings.allow_empty:
                raise FileNotFoundError(f"nothing at {root}")  # an object store's folders are its files' names
            yield from ((path, info) for path, info in found.items() if info["type"] == "file")
            return
        if not self._web and files.isfile(root):
            raise self._no_folder()
        if not self._web and not files.isdir(root):
            raise FileNotFoundError(root)
        folders, seen = [(0, root)], {root}
        while folders:
            depth, folder = folders.pop()
            if depth > _DEEPEST:
                raise SourceError(f"source {self._settings.name!r}: folders within folders without end at {folder}")
            try:
                entries = files.ls(folder, detail=True)
            except FileNotFoundError as error:
                if depth == 0:
                    raise
                raise SourceUnavailableError(f"{folder} went away while it was listed: try again") from error
            if self._web and depth == 0 and not entries and not self._settings.allow_empty:
                raise SourceError(
                    f"source {self._settings.name!r}: {self._location.shown} links to nothing below it; a web folder "
                    "needs a page with links to its files"
                )
            for info in entries:
                if info["name"] in seen:
                    continue
                seen.add(info["name"])
                if info["type"] == "directory":
                    folders.append((depth + 1, info["name"]))
                else:
                    yield info["name"], info

    def _described(self, path: str, info: Mapping[str, Any]) -> Mapping[str, Any] | str:
        """What is known of a file, asked for where the listing did not say, or why it cannot be read."""
        if info.get("size") is not None:
            return info
        try:
            asked: Mapping[str, Any] = self._location.files.info(path)
        except (FileNotFoundError, PermissionError) as error:
            if _refused(error, web=self._web):
                return f"cannot be read: {said(error.__cause__ or error, self._location.secrets)}"
            raise SourceUnavailableError(
                f"{self._shown(path)} cannot be read now: {said(error.__cause__ or error, self._location.secrets)}"
            ) from cause(error, self._location.secrets)
        return asked

    def _content_hash(self, path: str) -> tuple[str, str | None]:
        try:
            return f"sha256:{hashlib.sha256(self._fetch(path)).hexdigest()}", None
        except DocumentError as error:
            return "?", str(error)

    def read(self, listed: Listed) -> Document:
        """Parse the file."""
        return self._parsed(listed, self._data(listed))

    def read_all(self, listed: Iterable[Listed]) -> Iterator[tuple[Listed, Document | DocumentError]]:
        """In order; from a server, several are fetched at once."""
        if not getattr(self._location.files, "async_impl", False):
            yield from super().read_all(listed)
            return
        waiting: deque[tuple[Listed, Future[bytes]]] = deque()
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for each in listed:
                waiting.append((each, pool.submit(self._data, each)))
                if len(waiting) >= _CONNECTIONS:
                    yield self._done(*waiting.popleft())
            while waiting:
                yield self._done(*waiting.popleft())

    def _done(self, listed: Listed, data: Future[bytes]) -> tuple[Listed, Document | DocumentError]:
        try:
            return listed, self._parsed(listed, data.result())
        except DocumentError as error:
            return listed, error

    def _data(self, listed: Listed) -> bytes:
        if listed.error is not None:
            raise DocumentError(f"{listed.document_id}: {listed.error}")
        try:
            return self._fetch(self._prefix + listed.document_id)
        except DocumentError as error:
            raise DocumentError(f"{listed.document_id}: {error}") from error

    def _fetch(self, path: str) -> bytes:
        """All of a file, never more than may be read."""
        try:
            with open(path, "rb") if self._location.local else self._location.files.open(path, "rb") as file:  # noqa: PTH123 a string all the way
                data: bytes = file.read(self._most + 1)
        except Exception as error:  # noqa: BLE001 object stores raise errors of their own; all are raised on
            why = said(error.__cause__ or error, self._location.secrets)
            if _refused(error, web=self._web):
                raise DocumentError(f"cannot be read: {why}") from cause(error, self._location.secrets)
            raise SourceUnavailableError(f"{self._shown(path)} cannot be read now: {why}") from cause(
                error, self._location.secrets
            )
        if (too_large := self._too_large(len(data))) is not None:
            raise DocumentError(too_large)
        return data

    def _parsed(self, listed: Listed, data: bytes) -> Document:
        path = PurePosixPath(listed.document_id)
        try:
            parsed = parse(data, path.suffix, most_bytes=self._most)
        except DocumentError as error:
            raise DocumentError(f"{listed.document_id}: {error}") from error
        return document(self._settings.name, listed, parsed, parsed.title or path.stem, parsed.metadata)

    def _document_id(self, relative: str) -> tuple[str, str | None]:
        if not relative.isascii():
            document_id = relative.encode("utf-8", "backslashreplace").decode("utf-8")
            if document_id != relative:
                return document_id, f"the file name {document_id!r} is not UTF-8: rename it"
        if len(relative) > LONGEST_ID:
            raise SourceError(f"source {self._settings.name!r}: path of more than {LONGEST_ID} characters: {relative}")
        return relative, None

    def _too_large(self, size: int) -> str | None:
        more = f"it has more than max_bytes={self._most} bytes: split it, or raise the limit"
        return more if size > self._most else None

    def _no_folder(self) -> SourceError:
        return SourceError(
            f"source {self._settings.name!r}: {self._location.shown} is a file; a folder source needs a folder"
        )

    def _shown(self, path: str) -> str:
        return self._uri + path.removeprefix(self._prefix)


def _refused(error: BaseException, *, web: bool) -> bool:
    """Whether this one file cannot be read, rather than none."""
    if web:  # fsspec calls every failure to describe a page "not found"
        status = getattr(error.__cause__ or error, "status", None)
        return status is not None and 400 <= status < 500 and status not in (408, 429)
    expired = type(error).__name__ == "FileExpired"  # written again while it was read
    return expired or isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)


def _matcher(globs: Sequence[str]) -> Callable[[str], bool]:
    """Whether a relative path matches one of ``globs``."""
    endings = tuple(glob[4:].lower() for glob in globs if re.fullmatch(r"\*\*/\*(\.\w+)+", glob))
    patterns = [_pattern(glob) for glob in globs if not re.fullmatch(r"\*\*/\*(\.\w+)+", glob)]
    if not patterns:  # endings alone are ten times as fast as their patterns
        return lambda relative: relative.lower().endswith(endings)
    return lambda relative: relative.lower().endswith(endings) or any(each.match(relative) for each in patterns)


def _pattern(glob: str) -> re.Pattern[str]:
    from fsspec.utils import glob_translate

    if glob.startswith("/") or ".." in PurePosixPath(glob).parts:
        raise ConfigError(f"glob {glob!r} leaves its folder: globs start there, as in '**/*.md'")
    try:
        translated = glob_translate(glob)
    except ValueError as error:
        raise ConfigError(f"glob {glob!r} cannot be used: {error}") from error
    # The ending matches in capitals too, the rest as it is written.
    if ending := re.search(r"\.\w+\Z", glob):
        escaped = re.escape(ending[0])
        translated = re.sub(re.escape(escaped) + r"(?=\)\\Z\Z)", lambda _: f"(?i:{escaped})", translated)
    return re.compile(translated)
