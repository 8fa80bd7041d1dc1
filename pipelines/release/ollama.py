"""Published versions on an Ollama server, by its HTTP API.

The file goes there by its hash, once; then a model is made of it with the template, the system text and the parameters
of the version's Modelfile, as ``<name>:<version>``; ``<name>:latest`` is then pointed there, so that who asks it sees a
whole model, the old or the new one. An upload that was cut off starts again: Ollama takes a file in one piece.
Reference: https://github.com/ollama/ollama/blob/main/docs/api.md (from 0.5.5 on)
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpcore

from pipelines.errors import ConfigError, ExportError, ServerUnavailableError
from pipelines.release.modelfile import parsed
from pipelines.release.registry import PublishedVersion
from pipelines.release.settings import OLLAMA_NAME, OllamaSettings, Quantisation

OLDEST = (0, 5, 5)
"""Before it, models were made of a Modelfile's text."""
CONNECT_SECONDS = 10.0
SECONDS = 600.0
"""How long the server may say nothing: it reads the whole file while it makes a model."""

_CHUNK = 1 << 20


def push_to_ollama(
    version: PublishedVersion,
    settings: OllamaSettings,
    *,
    quantisation: Quantisation,
    progress: Callable[[str], None],
) -> str:
    """Make a model of one file of ``version`` on the server of ``settings``; returns its name, ``<name>:<version>``.

    Raises:
        ConfigError: the name cannot be one there, or what answers at the URL is no Ollama that can do this.
        NotBuiltError: the version has no such file.
        ArtifactError: it is missing or altered.
        ExportError: Ollama cannot run the version as it was trained, or refuses it; with the reason.
        ServerUnavailableError: the server, or the registry, cannot be reached now.
    """
    name = settings.model or version.use_case.lower()
    if not re.fullmatch(OLLAMA_NAME, name):
        raise ConfigError(f"Ollama knows no model of the name {name!r}: give another one in release.ollama.model")
    request = _request_for(version)
    file = version.gguf(quantisation)
    digest = f"sha256:{version.manifest['files'][file.name]}"
    target, latest = f"{name}:{version.version}", f"{name}:latest"
    with httpcore.ConnectionPool() as pool:
        server = _Server(pool, settings.url)
        server.check()
        if server.has(digest):
            progress(f"{settings.url} has {file.name} already")
        else:
            server.send(digest, file, progress)
        said = None
        for status in server.create({"model": target, "files": {file.name: digest}, **request, "stream": True}):
            if status != said:
                progress(f"{target}: {status}")
            said = status
        server.copy(target, latest)
    progress(f"{settings.url} has {target}, and {latest} is the same")
    return target


def _request_for(version: PublishedVersion) -> dict[str, Any]:
    """What the Modelfile says, as the API takes it."""
    if version.manifest["task"] != "generate":
        raise ExportError(
            f"{version.use_case} {version.version} assigns labels, and Ollama has no call for that: remove "
            "release.ollama (run.md says what runs it)"
        )
    if "Modelfile" not in version.manifest["files"]:
        known = re.search(r"^Ollama cannot run it as it was trained: (.*?)\.?$", _text(version, "run.md"), re.MULTILINE)
        raise ExportError(
            f"{version.use_case} {version.version} has no Modelfile, for Ollama cannot run it as it was trained"
            f"{f': {known[1]}' if known else ''}. Remove release.ollama, or train with another chat template"
        )
    request: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for command, value in parsed(_text(version, "Modelfile")):
        if command in ("template", "system", "license"):
            request[command] = value
        elif command == "stop":
            parameters.setdefault("stop", []).append(value)
        elif command != "model":  # the file is sent instead
            parameters[command] = _number(value)
    return {**request, "parameters": parameters}


def _text(version: PublishedVersion, name: str) -> str:
    return version.fetch(name).read_bytes().decode("utf-8")


def _number(value: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


class _Server:
    """The calls that are needed, and their failures as what they mean."""

    def __init__(self, pool: httpcore.ConnectionPool, url: str) -> None:
        self._pool, self._url = pool, url.rstrip("/")

    def check(self) -> None:
        """It is an Ollama, and not too old."""
        with self._asked("GET", "/api/version") as response:
            try:
                said = str(json.loads(response.read())["version"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"what answers at {self._url} is no Ollama server; correct release.ollama.url"
                ) from error
        found = re.match(r"(\d+)\.(\d+)\.(\d+)", said)
        number = tuple(map(int, found.groups())) if found else (0, 0, 0)
        if number != (0, 0, 0) and number < OLDEST:  # 0.0.0 is a build of somebody's own
            raise ConfigError(f"Ollama at {self._url} is {said}: versions can be sent to 0.5.5 and later; update it")

    def has(self, digest: str) -> bool:
        """Whether the file of this hash is there."""
        with self._asked("HEAD", f"/api/blobs/{digest}", allowed=(200, 404)) as response:
            return response.status == 200

    def send(self, digest: str, file: Path, progress: Callable[[str], None]) -> None:
        """Upload a file; the server hashes it again."""
        size = file.stat().st_size
        progress(f"{file.name} ({size / 1e6:.1f} MB) to {self._url}")

        def chunks() -> Iterator[bytes]:
            done, last = 0, time.monotonic()
            with file.open("rb") as opened:
                while chunk := opened.read(_CHUNK):
                    yield chunk
                    done += len(chunk)
                    if time.monotonic() - last > 10:
                        last = time.monotonic()
                        progress(f"{file.name}: {done / size:.0%}")

        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        with self._asked("POST", f"/api/blobs/{digest}", chunks(), headers, allowed=(200, 201)) as response:
            response.read()

    def create(self, request: Mapping[str, Any]) -> Iterator[str]:
        """Make a model; yields what the server says it does."""
        last = None
        with self._asked_json("/api/create", request) as response:
            for line in _lines(response.iter_stream()):
                try:
                    last = json.loads(line)
                except ValueError as error:
                    raise ServerUnavailableError(f"Ollama at {self._url} broke off while it answered") from error
                if "error" in last:
                    raise self._refused("/api/create", int(last.get("status", 400)), str(last["error"]))
                yield str(last.get("status"))
        if last is None or last.get("status") != "success":
            raise ServerUnavailableError(f"Ollama at {self._url} stopped before {request['model']} was made")

    def copy(self, source: str, destination: str) -> None:
        """Give a model another name too, whatever that named before."""
        with self._asked_json("/api/copy", {"source": source, "destination": destination}) as response:
            response.read()

    @contextmanager
    def _asked_json(self, path: str, request: Mapping[str, Any]) -> Iterator[httpcore.Response]:
        body = json.dumps(request, ensure_ascii=False).encode("utf-8")
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        with self._asked("POST", path, body, headers) as response:
            yield response

    @contextmanager
    def _asked(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        allowed: tuple[int, ...] = (200,),
    ) -> Iterator[httpcore.Response]:
        seconds = {"connect": CONNECT_SECONDS, "read": SECONDS, "write": SECONDS, "pool": CONNECT_SECONDS}
        named = {"Host": urlsplit(self._url).netloc, "User-Agent": "Freshet", **(headers or {})}
        sent: list[tuple[bytes | str, bytes | str]] = [*named.items()]
        try:
            with self._pool.stream(
                method, self._url + path, headers=sent, content=body, extensions={"timeout": seconds}
            ) as response:
                if response.status not in allowed:
                    raise self._refused(path, response.status, _said(response.read()))
                yield response
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise ServerUnavailableError(
                f"Ollama at {self._url} cannot be reached: {type(error).__name__} {error}".rstrip()
            ) from error

    def _refused(self, path: str, status: int, said: str) -> Exception:
        what = f"HTTP {status}" + (f", {said}" if said else "")
        if path == "/api/version" and status < 500:
            return ConfigError(f"what answers at {self._url} is no Ollama server ({what}); correct release.ollama.url")
        if status in (401, 403):
            return ConfigError(f"{self._url} lets nobody in without a password ({what}): give the server's own address")
        if status in (408, 429) or status >= 500:
            return ServerUnavailableError(f"Ollama at {self._url} fails at {path}: {what}")
        return ExportError(f"Ollama at {self._url} refuses {path}: {what}")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for chunk in chunks:
        *whole, held = (held + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())
    if held.strip():
        yield held


def _said(body: bytes) -> str:
    """The reason in an answer."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace").strip()
