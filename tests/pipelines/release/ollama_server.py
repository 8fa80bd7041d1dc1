"""A small Ollama server on loopback that checks what the real one checks before it makes a model."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*){0,2}(:[A-Za-z0-9_][\w.-]*)?", re.ASCII)
KINDS = {"num_ctx": int, "num_predict": int, "temperature": (int, float), "repeat_penalty": (int, float), "stop": list}
FIELDS = {"model", "files", "template", "system", "license", "parameters", "stream"}


class Ollama(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.version = "0.12.3"
        self.blobs: dict[str, bytes] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.fails: dict[str, int] = {}
        """Status to answer with, by a part of "METHOD /path"."""
        self.cut_upload_after: int | None = None
        """Hang up after so many bytes of a file."""
        self.error_while_making: str | None = None
        self.cut_making = False
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Ollama

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        asked = f"{self.command} {self.path}"
        self.server.asked.append(asked)
        if status := next((status for part, status in self.server.fails.items() if part in asked), None):
            self.close_connection = True
            return self._send(status, {"error": "told to fail"})
        match (self.command, self.path.split("/")[1:]):
            case ("GET", ["api", "version"]):
                return self._send(200, {"version": self.server.version})
            case ("HEAD" | "POST", ["api", "blobs", digest]):
                if not re.fullmatch(r"sha256[:-][0-9a-f]{64}", digest):
                    return self._send(400, {"error": "invalid digest format"})
                return self._head(digest) if self.command == "HEAD" else self._upload(digest)
            case ("POST", ["api", "create"]):
                return self._create(json.loads(self._body()))
            case ("POST", ["api", "copy"]):
                return self._copy(json.loads(self._body()))
        return self._send(404, {"error": "404 page not found"})

    do_POST = do_HEAD = do_GET  # noqa: N815 names of http.server

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _head(self, digest: str) -> None:
        self.send_response(200 if digest in self.server.blobs else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _upload(self, digest: str) -> None:
        if self.server.cut_upload_after is not None:
            self.rfile.read(self.server.cut_upload_after)
            self.close_connection = True
            self.connection.close()
            return None
        body = self._body()
        found = hashlib.sha256(body).hexdigest()
        if digest.removeprefix("sha256:") != found:
            return self._send(400, {"error": f'digest mismatch, expected "{digest}", got "sha256:{found}"'})
        status = 200 if digest in self.server.blobs else 201
        self.server.blobs[digest] = body
        return self._send(status, None)

    def _create(self, wanted: dict[str, Any]) -> None:
        server = self.server
        files: dict[str, str] = wanted.get("files") or {}
        wrong = None
        if unknown := wanted.keys() - FIELDS:
            wrong = f"unknown fields {sorted(unknown)}"
        elif not NAME.fullmatch(wanted["model"]):
            wrong = "invalid model name"
        elif not files:
            wrong = "neither 'from' or 'files' was specified"
        elif any("/" in name or not name.endswith(".gguf") for name in files):
            wrong = "file path must be relative"
        elif missing := [digest for digest in files.values() if digest not in server.blobs]:
            wrong = f"blob not found (digest {missing[0]})"
        elif odd := [
            name
            for name, value in wanted["parameters"].items()
            if name not in KINDS or isinstance(value, bool) or not isinstance(value, KINDS[name])
        ]:
            wrong = f"option {odd[0]!r} has the wrong type"
        if wrong is not None:
            return self._send(400, {"error": wrong})
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk({"status": "parsing GGUF"})
        if not all(server.blobs[digest].startswith(b"GGUF") for digest in files.values()):
            return self._end({"error": "invalid file magic"})
        if server.error_while_making is not None:
            return self._end({"error": server.error_while_making})
        for _ in range(3):
            self._chunk({"status": "using existing layer"})
        if server.cut_making:
            return self._end(None)
        server.models[wanted["model"]] = {key: value for key, value in wanted.items() if key not in ("model", "stream")}
        self._chunk({"status": "writing manifest"})
        return self._end({"status": "success"})

    def _copy(self, wanted: dict[str, str]) -> None:
        found = self.server.models.get(wanted["source"])
        if found is None:
            return self._send(404, {"error": f'model "{wanted["source"]}" not found'})
        self.server.models[wanted["destination"]] = found
        return self._send(200, None)

    def _chunk(self, line: object) -> None:
        data = json.dumps(line).encode() + b"\n"
        for part in (data[:7], data[7:]):  # a line need not come in one piece
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.flush()

    def _end(self, line: object) -> None:
        if line is not None:
            self._chunk(line)
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, status: int, answer: object) -> None:
        body = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
