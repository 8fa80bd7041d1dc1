"""Stable hashing of text, settings and files, and atomic writing: the one place for both."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def fingerprint(*parts: Any) -> str:
    """SHA-256 (64 hex digits) over the canonical JSON of ``parts``; equal values, equal fingerprint, on any machine.

    Raises:
        TypeError: a part is not made of JSON types.
    """
    canonical = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def text_hash(text: str) -> str:
    """SHA-256 (64 hex digits) of one text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256s(folder: Path, *, leave_out: frozenset[str] = frozenset()) -> dict[str, str]:
    """``{relative posix path: sha256}`` of every file below ``folder``, sorted, without the paths in ``leave_out``."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: file_sha256(path) for name, path in names.items() if name not in leave_out}


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that a reader, or a crash, sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json_atomically(path: Path, value: Any) -> None:
    """``write_text_atomically`` of indented, key-sorted JSON."""
    write_text_atomically(path, json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n")
