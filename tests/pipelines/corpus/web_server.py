"""A real web server on loopback, whose pages a test sets."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.corpus.sources import http


@dataclass(frozen=True)
class Answer:
    body: bytes | str = b""
    status: int = 200
    type: str = "text/html; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    etag: str | None = None
    gzipped: bool = False
    drip: float = 0.0
    """Seconds between one byte of the body and the next."""


Page = Answer | Callable[["Asked"], Answer]


@dataclass(frozen=True)
class Asked:
    path: str
    """With query."""
    headers: Mapping[str, str]
    """Names in lower case."""
    at: float

    @property
    def conditional(self) -> bool:
        return "if-none-match" in self.headers or "if-modified-since" in self.headers


class Site:
    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[Asked] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """A client that hangs up is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        headers = {key.lower(): value for key, value in request.headers.items()}
        asked = Asked(request.path, headers, time.monotonic())
        with self._lock:
            self.asked.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            page = self.pages.get(request.path) or self.pages.get(request.path.partition("?")[0])
            answer = page(asked) if callable(page) else page or Answer("not here", 404)
            self._send(request, answer, headers)
        finally:
            with self._lock:
                self.at_once -= 1

    def _send(self, request: BaseHTTPRequestHandler, answer: Answer, headers: Mapping[str, str]) -> None:
        body = answer.body.encode() if isinstance(answer.body, str) else answer.body
        if answer.etag is not None and headers.get("if-none-match") == answer.etag:
            request.send_response(304)
            request.send_header("ETag", answer.etag)
            request.end_headers()
            return
        body = gzip.compress(body) if answer.gzipped else body
        request.send_response(answer.status)
        sent = {"Content-Type": answer.type, "Content-Length": str(len(body)), **answer.headers}
        sent |= {"ETag": answer.etag} if answer.etag else {}
        sent |= {"Content-Encoding": "gzip"} if answer.gzipped else {}
        for key, value in sent.items():
            request.send_header(key, value)
        request.end_headers()
        if not answer.drip:
            request.wfile.write(body)
        for byte in body if answer.drip else b"":
            request.wfile.write(bytes([byte]))
            time.sleep(answer.drip)

    def paths(self) -> list[str]:
        """What was asked for since the last call, without robots.txt."""
        found = [asked.path for asked in self.asked if asked.path != "/robots.txt"]
        self.asked.clear()
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def open_site(monkeypatch: pytest.MonkeyPatch, context: ssl.SSLContext | None = None) -> Iterator[Site]:
    """A site, and clients that do not wait long before they try again, closed with it."""
    clients: list[http.Client] = []
    real = http.Client.__init__

    def remembered(self: http.Client, *arguments: Any, **more: Any) -> None:
        real(self, *arguments, **more)
        clients.append(self)

    monkeypatch.setattr(http.Client, "__init__", remembered)
    monkeypatch.setattr(http, "_BACKOFF_SECONDS", 0.01)
    site = Site(context)
    yield site
    for client in clients:
        client.close()
    site.close()


def resolve(monkeypatch: pytest.MonkeyPatch, **names: str) -> None:
    """Let names (dots written as underscores) lead to addresses."""
    real = socket.getaddrinfo
    known = {name.replace("_", "."): address for name, address in names.items()}

    def answer(host: Any, *args: Any, **more: Any) -> Any:
        return real(known.get(host, host), *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate and its key, in one PEM file."""
    from datetime import UTC, datetime, timedelta

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path
