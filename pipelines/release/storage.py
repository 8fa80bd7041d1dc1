"""Where published versions lie: a local folder, or an object store that fsspec writes to.

Both keep the same promises: a version exists once its ``manifest.json`` does, which is written last and only after
every hash was read again; a number is given once; one publisher works at a time; the pointer changes at once or not at
all. A local folder has rename and a file lock for that. An object store has conditional writes (If-None-Match and
If-Match of S3, generations of Google Cloud Storage):

- ``lock.json`` is made only where there is none; its owner renews it every third of ``LEASE_SECONDS``. Who waits takes
  it over once it has not changed for a whole lease, by the clock of who waits: no two clocks are compared.
- ``claims/v3`` is made only where there is none, so a number is never given twice, whatever happens to the lock.
- ``champion.json`` is replaced only where it is still what was read, so a publisher that lost the lock moves nothing.

Files are verified by reading them back: a checksum that the store computes covers only one part of a large upload.
Where a store ignores or refuses conditional writes (tried on its own lock), they are imitated: look, write, wait
``SETTLE_SECONDS``, look again. That suffices for publishers that rarely meet, and is weaker.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

from pipelines.artifacts import MANIFEST, alone, load
from pipelines.environment import Environment
from pipelines.errors import (
    ArtifactError,
    ConfigError,
    FreshetError,
    LockedError,
    NotBuiltError,
    ServerUnavailableError,
)
from pipelines.fingerprint import file_sha256, write_text_atomically
from pipelines.settings import without_credentials

POINTER = "champion.json"
LOCK = "lock.json"
LOCK_SECONDS = 60.0
"""How long a publisher waits for another."""
LEASE_SECONDS = 30.0
SETTLE_SECONDS = 1.0
LEFTOVER_SECONDS = 86_400.0
"""After which what a killed publisher left in an object store, or on its way there, is removed."""
CACHE_DAYS = 30
"""After which what was fetched, and not asked for since, is removed."""

Fill = Callable[[Path, str], None]
"""Writes a whole sealed version, named by the second argument, into a folder."""


class Storage(ABC):
    """Where the versions of one use case lie."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @abstractmethod
    def names(self) -> list[str]:
        """Of the versions, the oldest first."""

    @abstractmethod
    def read(self, name: str) -> tuple[bytes, str] | None:
        """A small file, and a token that is another once it has changed; None where there is none."""

    @abstractmethod
    def token(self) -> str | None:
        """Of the pointer, cheaply; None where there is none."""

    @abstractmethod
    def alone(self) -> AbstractContextManager[None]:
        """Be the only publisher; raises LockedError where another stays for ``LOCK_SECONDS``."""

    @abstractmethod
    def add(self, fill: Fill) -> str:
        """Make the next version, and say its name. Only inside of ``alone``."""

    @abstractmethod
    def point(self, data: bytes, expected: str | None) -> None:
        """Replace the pointer, of token ``expected``; raises LockedError where it is another now."""

    @abstractmethod
    def check(self, version: str, files: Mapping[str, str]) -> None:
        """Hash every file again; raises ArtifactError where one is missing or altered."""

    @abstractmethod
    def fetch(self, version: str, name: str, files: Mapping[str, str], manifest: bytes) -> Path:
        """A local path of a file or folder whose hashes were just read; raises ArtifactError where they differ."""

    @abstractmethod
    def remove(self, version: str) -> None:
        """Delete a version, its manifest first, so that half of one is none."""

    def say(self, name: str) -> str:
        """How ``name`` is called in messages."""
        return f"{self.uri}/{name}"


class LocalStorage(Storage):
    """A folder: versions get their name by one rename, and are read-only."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder

    def names(self) -> list[str]:
        """Of the versions, the oldest first."""
        return [name for name in self._taken() if (self.folder / name / MANIFEST).is_file()]

    def read(self, name: str) -> tuple[bytes, str] | None:
        """A small file and what ``stat`` says of it."""
        try:
            with (self.folder / name).open("rb") as file:
                return file.read(), _stamp(os.fstat(file.fileno()))
        except FileNotFoundError:
            return None

    def token(self) -> str | None:
        """What ``stat`` says of the pointer."""
        try:
            return _stamp((self.folder / POINTER).stat())
        except FileNotFoundError:
            return None

    def alone(self) -> AbstractContextManager[None]:
        """Hold the file lock."""
        return alone(self.folder / ".lock", "publisher", seconds=LOCK_SECONDS)

    def add(self, fill: Fill) -> str:
        """Write a version aside, and give it its name."""
        for left in self.folder.glob(".v*.????????"):  # of publishers that were killed
            shutil.rmtree(left, ignore_errors=True)
        version = f"v{max(map(_number, self._taken()), default=0) + 1}"
        scratch = self.folder / f".{version}.{uuid.uuid4().hex[:8]}"
        scratch.mkdir()
        try:
            fill(scratch, version)
            scratch.rename(self.folder / version)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return version

    def point(self, data: bytes, expected: str | None) -> None:  # noqa: ARG002 the file lock stands for the token
        """Replace the pointer by one rename."""
        write_text_atomically(self.folder / POINTER, data.decode("utf-8"))

    def check(self, version: str, files: Mapping[str, str]) -> None:  # noqa: ARG002 its own manifest says the same
        """Hash every file again."""
        load(self.folder / version)

    def fetch(self, version: str, name: str, files: Mapping[str, str], manifest: bytes) -> Path:  # noqa: ARG002
        """The path itself."""
        for each, digest in _below(name, files, self.say(version)).items():
            path = self.folder / version / each
            if not path.is_file() or file_sha256(path) != digest:
                raise ArtifactError(f"{path} is missing or altered; restore it, or serve another version")
        return self.folder / version / name

    def remove(self, version: str) -> None:
        """Take a version's name from it, then delete it."""
        left = self.folder / f".{version}.{uuid.uuid4().hex[:8]}"
        (self.folder / version).rename(left)
        shutil.rmtree(left)

    def _taken(self) -> list[str]:
        names = [path.name for path in self.folder.glob("v*") if _is_version(path.name)]
        return sorted(names, key=_number)


class ObjectStorage(Storage):
    """A prefix of an object store; see the module for how it keeps its promises."""

    def __init__(self, uri: str, files: Any, root: str) -> None:
        super().__init__(uri)
        self._files = files
        self._root = root.rstrip("/")
        protocols = (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)
        self._kind = "s3" if "s3" in protocols else "gs" if "gs" in protocols else "other"
        self._conditional = self._kind != "other"
        self._lost = threading.Event()

    def names(self) -> list[str]:
        """Of the versions that have a manifest, the oldest first."""
        return sorted(
            (name.parts[0] for name in self._listed() if len(name.parts) == 2 and name.parts[1] == MANIFEST),
            key=_number,
        )

    def read(self, name: str) -> tuple[bytes, str] | None:
        """A small object and its token."""
        with reached(self.say(name)):
            while True:
                before = self._token(name)
                if before is None:
                    return None
                try:
                    data = self._files.cat_file(self._at(name))
                except FileNotFoundError:
                    return None
                if self._token(name) == before:
                    return bytes(data), before

    def token(self) -> str | None:
        """The pointer's ETag or generation: one request without a body."""
        with reached(self.say(POINTER)):
            return self._token(POINTER)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold ``lock.json``, renewing it."""
        holder = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "process": os.getpid(), "renewed": 0}
        with reached(self.say(LOCK)):
            self._acquire(holder)
            if self._conditional and not self._keeps_conditions(holder):
                self._conditional = False
                time.sleep(SETTLE_SECONDS)
                if self._held(holder) is None:
                    self._acquire(holder)
        self._lost.clear()
        stop = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(holder, stop), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            stop.set()
            renewing.join()
            with suppress(Exception):  # it runs out by itself
                if (
                    not self._lost.is_set() and self._held(holder) is not None
                ):  # another may have taken it over just now
                    self._files.rm_file(self._at(LOCK))

    def add(self, fill: Fill) -> str:
        """Write a version below its claimed number, read every file back, and write its manifest last."""
        self._sweep()
        version = self._claim()
        cache = _cache()
        with TemporaryDirectory(dir=cache, prefix=".publishing-") as scratch:
            folder = Path(scratch)
            fill(folder, version)
            manifest = (folder / MANIFEST).read_bytes()
            wanted: dict[str, str] = json.loads(manifest)["files"]
            try:
                with reached(self.say(version)):
                    for name in wanted:
                        self._make_parents(f"{version}/{name}")
                        self._files.put_file(str(folder / name), self._at(f"{version}/{name}"))
                self.check(version, wanted)
                self._still_alone()
                with reached(self.say(version)):
                    finished = self._put(f"{version}/{MANIFEST}", manifest, None)
            except BaseException:
                with suppress(Exception):  # else the next publisher sweeps it away
                    self.remove(version)
                raise
        if not finished:
            raise LockedError(f"{self.say(version)} was finished by another publisher; publish again")
        return version

    def point(self, data: bytes, expected: str | None) -> None:
        """Replace the pointer where it is still the one that was read."""
        self._still_alone()
        with reached(self.say(POINTER)):
            if not self._put(POINTER, data, expected):
                raise LockedError(f"{self.say(POINTER)} was moved by another publisher meanwhile; try again")

    def check(self, version: str, files: Mapping[str, str]) -> None:
        """Read every file back and hash it."""
        for name, digest in files.items():
            found = None
            with reached(self.say(version)), suppress(FileNotFoundError):
                self._files.invalidate_cache()
                with self._files.open(self._at(f"{version}/{name}"), "rb", block_size=1 << 24) as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                raise self._damaged(version, name, digest, found)

    def fetch(self, version: str, name: str, files: Mapping[str, str], manifest: bytes) -> Path:
        """A path in the cache, below the hash of the version's manifest.

        That always comes along: a classifier's file says nothing without.
        """
        wanted = _below(name, files, self.say(version))
        cache = _cache()
        folder = cache / hashlib.sha256(manifest).hexdigest()
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        for each, digest in wanted.items():
            path = folder / each
            if path.is_file() and file_sha256(path) == digest:
                continue
            with TemporaryDirectory(dir=cache, prefix=".fetching-") as scratch:
                fetched = Path(scratch) / "file"
                with reached(f"{self.say(version)}/{each}"), suppress(FileNotFoundError):
                    self._files.get_file(self._at(f"{version}/{each}"), str(fetched))
                found = file_sha256(fetched) if fetched.is_file() else None
                if found != digest:
                    raise self._damaged(version, each, digest, found)
                path.parent.mkdir(parents=True, exist_ok=True)
                fetched.replace(path)
        if not (folder / MANIFEST).is_file() or (folder / MANIFEST).read_bytes() != manifest:
            write_text_atomically(folder / MANIFEST, manifest.decode("utf-8"))
        return folder / name

    def remove(self, version: str) -> None:
        """Delete a version, its manifest first. Its claim stays, so that the number is not given again."""
        with reached(self.say(version)):
            with suppress(FileNotFoundError):
                self._files.rm_file(self._at(f"{version}/{MANIFEST}"))
            for name in self._listed():
                if name.parts[0] == version:
                    with suppress(FileNotFoundError):
                        self._files.rm_file(self._at(str(name)))

    def _damaged(self, version: str, name: str, wanted: str, found: str | None) -> ArtifactError:
        return ArtifactError(
            f"{self.say(version)}/{name} is {'missing' if found is None else 'altered'}: its sha256 is not {wanted}; "
            "restore it, or serve another version"
        )

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _listed(self) -> list[PurePosixPath]:
        with reached(self.uri):
            self._files.invalidate_cache()
            try:
                found = self._files.find(self._root)
            except FileNotFoundError:
                if self._kind != "other":  # there, only the bucket can be missing
                    raise
                return []
        start = len(self._root.lstrip("/")) + 1
        return [PurePosixPath(path.lstrip("/")[start:]) for path in found]

    def _token(self, name: str) -> str | None:
        self._files.invalidate_cache()
        try:
            if self._kind == "other":  # what it says of a file need not change with it
                return hashlib.sha256(self._files.cat_file(self._at(name))).hexdigest()
            found = self._files.info(self._at(name))
        except FileNotFoundError:
            return None
        return str(found["ETag" if self._kind == "s3" else "generation"])

    def _put(self, name: str, data: bytes, expected: str | None) -> bool:
        """Write where the object is still of token ``expected`` (None: there is none), and say whether."""
        if self._conditional:
            put = _put_to_s3 if self._kind == "s3" else _put_to_gcs
            if put(self._files, self._at(name), data, expected):
                return True
            found = self.read(name)  # an answer that was lost on its way is asked for again, and refused then
            return found is not None and found[0] == data
        if self._token(name) != expected:
            return False
        self._make_parents(name)
        self._files.pipe_file(self._at(name), data)
        time.sleep(SETTLE_SECONDS)
        found = self.read(name)
        return found is not None and found[0] == data

    def _make_parents(self, name: str) -> None:
        if self._kind == "other":
            self._files.makedirs(self._at(str(PurePosixPath(name).parent)), exist_ok=True)

    def _acquire(self, holder: Mapping[str, Any]) -> None:
        data, give_up = json.dumps(holder).encode(), time.monotonic() + LOCK_SECONDS
        seen, since = None, time.monotonic()
        while True:
            token = self._token(LOCK)
            if token != seen:
                seen, since = token, time.monotonic()
            try:
                if (token is None or time.monotonic() - since > LEASE_SECONDS) and self._put(LOCK, data, token):
                    return
            except NotImplementedError:
                self._conditional = False
                continue
            if time.monotonic() > give_up:
                raise LockedError(f"another publisher holds {self.say(LOCK)}; try again when it has ended")
            time.sleep(0.1)

    def _keeps_conditions(self, holder: Mapping[str, Any]) -> bool:
        """Whether the store refuses to make our own lock again, and to replace another than it holds."""
        other = json.dumps({**holder, "renewed": -1}).encode()
        never = '"00000000000000000000000000000000"' if self._kind == "s3" else "1"
        try:
            return not (self._put(LOCK, other, None) or self._put(LOCK, other, never))
        except NotImplementedError:
            return False

    def _held(self, holder: Mapping[str, Any]) -> str | None:
        """The token of the lock while it is ours."""
        found = self.read(LOCK)
        return found[1] if found is not None and json.loads(found[0])["id"] == holder["id"] else None

    def _renew(self, holder: Mapping[str, Any], stop: threading.Event) -> None:
        last, times = time.monotonic(), 0
        while not stop.wait(LEASE_SECONDS / 3):
            times += 1
            try:
                token = self._held(holder)
                renewed = token is not None and self._put(
                    LOCK, json.dumps({**holder, "renewed": times}).encode(), token
                )
            except Exception:  # noqa: BLE001 whatever it was, it counts once the lease is over
                if time.monotonic() - last < LEASE_SECONDS:
                    continue
                renewed = False
            if not renewed:
                self._lost.set()
                return
            last = time.monotonic()

    def _still_alone(self) -> None:
        if self._lost.is_set():
            raise LockedError(f"{self.say(LOCK)} ran out while this publisher could not renew it; publish again")

    def _claim(self) -> str:
        """A number that nobody has had."""
        names = {part for name in self._listed() for part in name.parts[:2] if _is_version(part)}
        number = max(map(_number, names), default=0) + 1
        while True:
            with reached(self.say("claims")):
                if self._put(f"claims/v{number}", f"{uuid.uuid4().hex} {time.time():.0f}".encode(), None):
                    return f"v{number}"
            number += 1

    def _sweep(self) -> None:
        """Remove what publishers that were killed long ago have left."""
        names = self._listed()
        begun = {name.parts[0] for name in names if _is_version(name.parts[0])}
        for version in begun - {name.parts[0] for name in names if name.name == MANIFEST and len(name.parts) == 2}:
            claim = self.read(f"claims/{version}")
            if claim is None or time.time() - float(claim[0].split()[-1]) > LEFTOVER_SECONDS:
                self.remove(version)


def open_storage(registry_url: str, use_case: str) -> Storage:
    """Where the versions of ``use_case`` lie.

    Raises:
        ConfigError: the use case is no name, or the URL is nothing that can hold a registry.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", use_case):
        raise ConfigError(f"use case {use_case!r} is no name: letters, digits, _ and - are allowed")
    if "://" not in registry_url and "::" not in registry_url:
        return LocalStorage(Path(registry_url).expanduser().absolute() / use_case)
    parts = urlsplit(registry_url)
    shown = f"MODEL_REGISTRY_URL {without_credentials(registry_url)!r}"
    allowed = (
        "give a path, file:///absolute/path, s3://bucket/path, gs://bucket/path or another URL that fsspec can write to"
    )
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return LocalStorage(Path(unquote(parts.path)) / use_case)
    if "@" in registry_url or parts.query or parts.fragment:
        shown = re.split(r"[?#]", shown)[0]
        raise ConfigError(
            f"{shown} holds a user, a password or options: they do not belong into a URL. Give them by the variables "
            f"that the store's own tools read (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, …), and {allowed}"
        )
    if parts.scheme in ("file", "http", "https", "github", "git", "data") or "::" in registry_url or not parts.netloc:
        raise ConfigError(f"{shown} cannot hold a registry: {allowed}")
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(registry_url)
    except ImportError as error:
        raise ConfigError(f"{shown} needs a package that is not installed: {error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{shown} cannot be used ({error}): {allowed}") from error
    return ObjectStorage(f"{registry_url.rstrip('/')}/{use_case}", files, f"{root.rstrip('/')}/{use_case}")


@contextmanager
def reached(where: str) -> Iterator[None]:
    """A failure of the store, as what it means.

    Raises:
        ConfigError: it does not let us in, or there is no such bucket.
        ServerUnavailableError: it cannot be reached, or fails.
    """
    try:
        yield
    except (FreshetError, NotImplementedError):
        raise
    except FileNotFoundError as error:
        raise ConfigError(
            f"{where} does not exist ({error}): make the bucket, or correct MODEL_REGISTRY_URL"
        ) from error
    except Exception as error:  # object stores raise errors of their own
        said = f"{type(error).__name__}: {error}"
        if isinstance(error, PermissionError) or "Credentials" in said or "Forbidden" in said:
            raise ConfigError(
                f"{where} may not be used ({said}): allow it, or give other credentials by the store's own variables "
                "(AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, …)"
            ) from error
        raise ServerUnavailableError(f"{where} cannot be used now: {said}") from error


def _put_to_s3(files: Any, path: str, data: bytes, expected: str | None) -> bool:
    bucket, key, _ = files.split_path(path)
    condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
    try:
        files.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
    except OSError as error:
        response: Mapping[str, Any] = getattr(error.__cause__, "response", {})
        code = str(response.get("Error", {}).get("Code"))
        if code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409") or (
            expected and code == "NoSuchKey"
        ):
            return False
        if code in ("NotImplemented", "501"):
            raise NotImplementedError from error
        raise
    return True


def _put_to_gcs(files: Any, path: str, data: bytes, expected: str | None) -> bool:
    bucket, key, _ = files.split_path(path)
    try:
        files.call(
            "POST",
            files.base.replace("/storage/v1/", "/upload/storage/v1/") + f"b/{bucket}/o",
            uploadType="media",
            name=key,
            ifGenerationMatch=expected or "0",
            headers={"Content-Type": "application/octet-stream"},
            data=data,
        )
    except FileExistsError:  # what gcsfs makes of 412
        return False
    return True


def _cache() -> Path:
    """The folder of what was fetched, rid of what nobody has asked for in a while."""
    cache = Environment().cache_folder / "registry"
    cache.mkdir(parents=True, exist_ok=True)
    now = time.time()
    for path in cache.iterdir():
        with suppress(FileNotFoundError):
            if now - path.stat().st_mtime > (LEFTOVER_SECONDS if path.name[0] == "." else CACHE_DAYS * 86_400):
                shutil.rmtree(path, ignore_errors=True)
    return cache


def _below(name: str, files: Mapping[str, str], version: str) -> dict[str, str]:
    """The hashes of a file, or of all files of a folder; of everything, where ``name`` is empty."""
    found = {each: digest for each, digest in files.items() if name in ("", each) or each.startswith(f"{name}/")}
    if not found and name != MANIFEST:
        raise NotBuiltError(f"{version} has no {name!r}; it has {', '.join(sorted(files))}")
    return found


def _stamp(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"


def _is_version(name: str) -> bool:
    return re.fullmatch(r"v[1-9]\d*", name) is not None


def _number(name: str) -> int:
    return int(name[1:])
