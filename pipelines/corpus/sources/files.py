"""Folders of files, one document each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.catalog import now
from pipelines.corpus.documents import Document
from pipelines.corpus.parsing import parse
from pipelines.corpus.settings import FolderSource
from pipelines.corpus.sources.base import LONGEST_ID, NOTHING_KNOWN, Known, Listed, Listing, Source, document, moment
from pipelines.corpus.sources.location import Location, unavailable
from pipelines.errors import ConfigError, DocumentError, SourceError, SourceUnavailableError

_SETTLED_SECONDS = 0.02  # a file younger than this may be written again within the same tick of the clock


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

    def __init__(self, settings: FolderSource, location: Location) -> None:
        self._settings = settings
        self._location = location
        self._patterns = [_pattern(glob) for glob in settings.glob]

    def list(self, known: Known = NOTHING_KNOWN) -> Listing:
        """Files in the order of their ids."""
        del known
        name, files, root = self._settings.name, self._location.files, self._location.path
        with unavailable(name, self._location.shown):
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
        return Listing(listed)

    def _is_folder(self, path: str, info: Mapping[str, Any]) -> bool:
        return bool(info.get("islink")) and bool(self._location.files.isdir(path))

    def _listed(self, relative: str, path: str, info: dict[str, Any]) -> Listed:
        document_id = relative.encode("utf-8", "backslashreplace").decode("utf-8")
        make = partial(Listed, document_id, uri=f"{self._root_uri()}/{document_id}")
        if document_id != relative:
            return make("?", error=f"the file name {document_id!r} is not UTF-8: rename it")
        if len(document_id) > LONGEST_ID:
            raise SourceError(f"source {self._settings.name!r}: path of more than {LONGEST_ID} characters: {relative}")
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
            (moment(info[key]) for key in ("mtime", "LastModified", "last_modified", "updated") if info.get(key)), None
        )
        tag = next((str(info[key]) for key in ("ETag", "etag", "md5Hash", "content_md5") if info.get(key)), None)
        if tag is not None:
            return tag.strip('"')[:200], updated_at
        if updated_at is not None and "ino" in info:
            # The inode's change time too: a copy that keeps the old modification time still counts as touched.
            changed = moment(info["created"])
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
        return document(self._settings.name, listed, parsed, parsed.title or path.stem, parsed.metadata)


def _pattern(glob: str) -> re.Pattern[str]:
    from fsspec.utils import glob_translate

    if glob.startswith("/") or ".." in PurePosixPath(glob).parts:
        raise ConfigError(f"glob {glob!r} leaves its folder: globs start there, as in '**/*.md'")
    try:
        return re.compile(glob_translate(glob))
    except ValueError as error:
        raise ConfigError(f"glob {glob!r} cannot be used: {error}") from error
