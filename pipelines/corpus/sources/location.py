"""Paths and URLs on any file system that fsspec knows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, FreshetError, SourceError, SourceUnavailableError


@dataclass(frozen=True, slots=True)
class Location:
    """A path on a file system, and how people see it."""

    files: Any
    path: str
    shown: str


def locate(url: str, base: Path) -> Location:
    """Where ``url`` is; relative ones start at ``base``.

    Raises:
        ConfigError: it is no path, or its protocol is not known.
    """
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
    return Location(files, path, url if local else shown)


@contextmanager
def unavailable(name: str, shown: str) -> Iterator[None]:
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
