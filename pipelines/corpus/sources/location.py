"""Paths and URLs on any file system that fsspec knows."""

from __future__ import annotations

import os
import stat
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipelines.corpus.sources.base import moment
from pipelines.errors import ConfigError, FreshetError, SourceError, SourceUnavailableError
from pipelines.settings import without_credentials

_PUBLIC_OPTIONS = ("endpoint_url", "endpoint", "region_name", "region", "project", "account_name", "protocol")
_SETTLED_SECONDS = 0.02  # a local file younger than this may be written again within the same tick of the clock
_SETTLED_SECONDS_REMOTE = 60.0  # times of a server without checksums: whole seconds of another clock


@dataclass(frozen=True, slots=True)
class Location:
    """A path on a file system, and how people see it."""

    files: Any
    path: str
    shown: str
    local: bool
    secrets: tuple[str, ...] = ()
    """What no message may say."""

    @property
    def uri(self) -> str:
        """The location as a URI."""
        return Path(self.path).as_uri() if self.local else self.shown


def locate(url: str, base: Path, options: Mapping[str, Any] | None = None) -> Location:
    """Where ``url`` is; relative ones start at ``base``, ``options`` are the file system's arguments.

    Raises:
        ConfigError: it is no path, its protocol is not known, or the file system does not take its options.
        SourceUnavailableError: it lies inside of a file that cannot be opened.
    """
    import fsspec

    shown = without_credentials(url)
    if not url.strip() or any(ord(character) < 32 for character in url):
        raise ConfigError(f"url {shown!r} is no path: give a path or an fsspec URL")
    secrets = (*secrets_of(url), *_leaves(options or {}))
    if path := "://" not in url and "::" not in url:
        url = shown = str(base / Path(url).expanduser())
    try:
        files, at = fsspec.core.url_to_fs(url, **(options or {}))
    except ImportError as error:
        raise ConfigError(f"url {shown!r} needs a package that is not installed: {error}") from error
    except ValueError as error:
        known = ", ".join(sorted(fsspec.available_protocols()))
        why = scrub(str(error), secrets)
        raise ConfigError(f"url {shown!r} cannot be used: {why}; protocols: {known}") from cause(error, secrets)
    except TypeError as error:
        why = scrub(str(error), secrets)
        raise ConfigError(f"url {shown!r} does not take its options: {why}") from cause(error, secrets)
    except OSError as error:  # an archive is opened at once
        why = scrub(str(error), secrets)
        raise SourceUnavailableError(f"url {shown!r} cannot be opened: {why}") from cause(error, secrets)
    local = path or isinstance(files, fsspec.get_filesystem_class("file"))
    return Location(files, at, shown, local, secrets)


def secrets_of(url: str) -> tuple[str, ...]:
    """Password and query values of a URL, as written and decoded."""
    if "://" not in url:
        return ()
    try:
        parts = urlsplit(url)
        found = [parts.password or "", *(pair.partition("=")[2] for pair in parts.query.split("&"))]
    except ValueError:
        found = []
    hidden = url.removeprefix(url.partition("://")[0] + "://").removesuffix(
        without_credentials(url).partition("://")[2]
    )
    found.append(hidden.rstrip("@").partition(":")[2])
    return tuple({text for each in found for text in (each, unquote(each)) if len(text) > 2})


def _leaves(options: Mapping[str, Any]) -> Iterator[str]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        elif isinstance(value, str) and len(value) > 2 and key not in _PUBLIC_OPTIONS:
            yield value


def scrub(text: str, secrets: tuple[str, ...]) -> str:
    """``text`` without the ``secrets``."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "…")
    return text


def said(error: BaseException, secrets: tuple[str, ...]) -> str:
    """What an error says; never its ``repr``, which may hold a request's headers."""
    return scrub(f"{type(error).__name__}: {error}", secrets)


def cause(error: BaseException, secrets: tuple[str, ...]) -> BaseException | None:
    """The ``error`` to raise from, unless its own traceback says a secret."""
    said = "".join(traceback.format_exception(error)) if secrets else ""
    return None if any(secret in said for secret in secrets) else error


@contextmanager
def unavailable(name: str, shown: str, secrets: tuple[str, ...] = ()) -> Iterator[None]:
    """A failure to read the source, as what it means."""
    try:
        yield
    except FreshetError:
        raise
    except Exception as error:  # noqa: BLE001 object stores raise errors of their own; all are raised on
        # fsspec calls every failure to describe a page "not found"; what caused it tells more.
        reason = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        status, why = getattr(reason, "status", None), said(reason, secrets)
        wrong: FreshetError
        if isinstance(reason, PermissionError) or status in (401, 403):
            wrong = SourceError(f"source {name!r}: {shown} may not be read: {why}; allow it")
        elif status in (404, 410) or (
            isinstance(error, FileNotFoundError) and status is None and not _is_disturbance(reason)
        ):
            wrong = SourceError(f"source {name!r}: {shown} does not exist; correct its url, or bring it back")
        else:
            wrong = SourceUnavailableError(f"source {name!r}: {shown} cannot be read now: {why}")
        raise wrong from cause(error, secrets)


def _is_disturbance(reason: BaseException) -> bool:
    return isinstance(reason, OSError | TimeoutError) and not isinstance(reason, FileNotFoundError)


def local_stamp(found: os.stat_result, now: float) -> tuple[str, datetime | None]:
    """Change token and time of a local file, as of ``now`` (seconds since 1970).

    The inode's change time counts too: a copy that keeps the old modification time is still another file. A token that
    ends in ``~`` is not settled: the file may have been written again since, within the same tick of the clock.

    Raises:
        OSError: it is no regular file.
    """
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no regular file")
    try:
        updated_at = datetime.fromtimestamp(found.st_mtime, UTC)
    except (ValueError, OverflowError, OSError):  # a time that no calendar has
        updated_at = None
    token = f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ctime_ns:x}"
    return token if now - found.st_ctime > _SETTLED_SECONDS else f"{token}~", updated_at


def remote_stamp(info: Mapping[str, Any]) -> tuple[str | None, datetime | None]:
    """Change token and time of a file that fsspec describes; no token where it says neither checksum nor time."""
    times = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated")
    updated_at = next((_moment(info[key]) for key in times if info.get(key)), None)
    tags = ("md5Hash", "content_md5", "Content-MD5", "ETag", "etag")
    tag = next((str(info[key]) for key in tags if info.get(key)), None)
    if tag is not None:
        return tag.strip('"')[:200], updated_at
    if updated_at is None:
        return None, None
    token = f"{updated_at.isoformat()}-{info.get('size')}"
    return token if time.time() - updated_at.timestamp() > _SETTLED_SECONDS_REMOTE else f"{token}~", updated_at


def _moment(value: Any) -> datetime | None:
    try:
        return moment(value)
    except (ValueError, OverflowError):
        pass
    try:
        return moment(parsedate_to_datetime(str(value)))
    except ValueError:
        return None
