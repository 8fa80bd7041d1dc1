"""The HTTP client of the sources that read APIs, web pages and feeds.

It decides itself what it connects to: names are resolved here, every address is checked, and the connection goes to the
checked address, so that no later answer of a name server and no redirect leads into a private network. ``Host`` and TLS
keep the name. Every redirect is a request of its own, checked as the first.
"""

from __future__ import annotations

import email.utils
import os
import random
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import httpcore

from pipelines.corpus.settings import HttpSettings
from pipelines.corpus.sources.base import moment
from pipelines.corpus.sources.location import cause, scrub
from pipelines.errors import ConfigError, FreshetError, SourceError, SourceUnavailableError
from pipelines.fingerprint import text_hash
from pipelines.settings import without_credentials

_TRIES = 3
_BACKOFF_SECONDS = 0.5  # doubled each time, and up to half as much again at random
_LONGEST_WAIT_SECONDS = 60.0  # what a server may ask for
_CONNECT_SECONDS = 10.0
_READ_SECONDS = 30.0
_REDIRECTS = 5
_DEAF = 5  # requests in a row that a host does not answer: the others need not try
_MOST_OF_AN_ERROR = 65_536  # bytes that are read, so that the connection can be used again
_PIECE = 1 << 16

_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_BUSY = (429, 503)
_REDIRECT = (301, 302, 303, 307, 308)
_FOR_GOOD = (301, 308)

_METADATA = tuple(  # what clouds tell their machines, credentials included
    ip_network(each)
    for each in (
        "169.254.0.0/16",
        "fe80::/10",
        "fd00:ec2::/32",
        "fd20:ce::254/128",
        "100.100.100.200/32",
        "168.63.129.16/32",
        "192.0.0.192/32",
    )
)
_NAT64 = ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, and where it came from in the end."""

    url: str
    """Of the last request, after redirects."""
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    """Decompressed; of an answer that is no success, only the beginning."""
    moved: bool = False
    """Whether every redirect on the way was a permanent one, if there was any."""

    @property
    def validators(self) -> dict[str, str]:
        """JSON for the next conditional request for the same url; empty where the server gives none that holds."""
        found = {}
        if etag := self.headers.get("etag"):
            found["If-None-Match"] = etag
        modified = self.headers.get("last-modified", "")
        # A page changed in this second may change again in it, and would say the same time.
        if modified and (etag or _settled(modified, self.headers.get("date", ""))):
            found["If-Modified-Since"] = modified
        return {"of": _mark(self.url), **found} if found else {}

    @property
    def updated_at(self) -> datetime | None:
        """When the server says that it was last modified."""
        return http_date(self.headers.get("last-modified", ""))

    @property
    def content_type(self) -> str:
        """Media type in lower case, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


def http_date(text: str) -> datetime | None:
    """The moment that a header states, if it does."""
    try:
        return moment(email.utils.parsedate_to_datetime(text))
    except ValueError:
        return None


def _settled(modified: str, date: str) -> bool:
    then, now = http_date(modified), http_date(date)
    return then is not None and now is not None and (now - then).total_seconds() >= 2


def normalised(url: str) -> str:
    """A web address as it is requested: ASCII, no fragment, no default port.

    Raises:
        ValueError: it is none, or it holds a user or password.
    """
    parts = urlsplit(url.strip())
    scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
    if scheme not in ("http", "https") or not host:
        raise ValueError("only http:// and https:// are allowed")
    if "@" in parts.netloc:
        raise ValueError("it holds a user or password: state them with 'auth'")
    if ":" in host:
        host = f"[{host}]"
    elif not host.isascii():
        import idna

        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except idna.IDNAError as error:
            raise ValueError(f"its host is no name: {error}") from error
    if port is not None and port != {"http": 80, "https": 443}[scheme]:
        host = f"{host}:{port}"
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return urlunsplit((scheme, host, path, quote(parts.query, safe="/%:@!$&'()*+,;=~-._?"), ""))


def origin(url: str) -> tuple[str, str]:
    """Scheme, host and port of a normalised address."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _mark(url: str) -> str:
    """What a state says instead of an address, whose query may hold a secret."""
    return text_hash(url)[:16]


def charset(content_type: str) -> re.Match[bytes] | None:
    """The character set that a Content-Type header states, as ``parsing.decode`` takes it."""
    return re.search(rb"charset\s*=\s*[\"']?([\w.:-]+)", content_type.encode("utf-8"), re.IGNORECASE)


def gunzip(data: Iterable[bytes], most: int) -> bytes:
    """Decompress gzip or zlib data.

    Raises:
        SourceError: it is more than ``most`` bytes, or no gzip.
    """
    found = bytearray()
    engine = zlib.decompressobj(47)
    for part in data:
        rest = part
        while rest:
            if engine.eof:  # a file may be several, one after the other
                engine = zlib.decompressobj(47)
            try:
                found += engine.decompress(rest, most + 1 - len(found))
            except zlib.error as error:
                raise SourceError(f"it cannot be decompressed: {error}") from error
            if len(found) > most:
                raise SourceError(f"it has more than max_bytes={most} bytes when decompressed")
            rest = engine.unused_data if engine.eof else engine.unconsumed_tail
    if not engine.eof:
        raise SourceError("it ends in the middle of its compressed data")
    return bytes(found)


class Client:
    """Requests of one source; it may be used by several threads.

    Args:
        name: of the source, for messages.
        settings: limits, headers and the secret.
        urls: addresses that the settings name; headers and the secret are sent to these hosts only.

    Raises:
        ConfigError: an address cannot be right, or the secret is not in the environment.
    """

    def __init__(self, name: str, settings: HttpSettings, urls: Sequence[str]) -> None:
        self._name = f"source {name!r}"
        self._settings = settings
        self._own: dict[str, str] = {}
        self._secrets: tuple[str, ...] = ()
        self._add_headers()
        self._trusted = {origin(self._configured(url)) for url in urls}
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()
        self._network = _Network(allow_private=settings.allow_private)
        self._pool = httpcore.ConnectionPool(
            max_connections=None, max_keepalive_connections=16, keepalive_expiry=15.0, network_backend=self._network
        )

    def _add_headers(self) -> None:
        settings = self._settings
        self._own = {key.title(): value.strip() for key, value in settings.headers.items()}  # one spelling each
        hidden = [value for key, value in self._own.items() if not re.match(r"(?i)(accept|content)", key)]
        if settings.auth is not None:
            secret = os.environ.get(settings.auth.env, "").strip()
            if not secret:
                raise ConfigError(
                    f"{self._name}: the environment variable {settings.auth.env} is not set; 'auth' needs its value"
                )
            self._own[settings.auth.header.title()] = settings.auth.prefix + secret
            hidden += [secret, settings.auth.prefix + secret]
        self._secrets = tuple(each for each in hidden if len(each) > 2)
        for key, value in self._own.items():
            if not re.fullmatch(r"[!#$%&'*+.^_`|~\w-]+", key, re.ASCII) or not re.fullmatch(r"[\t\x20-\x7e]*", value):
                raise ConfigError(f"{self._name}: header {key!r} or its value holds characters that no header may have")

    def _configured(self, url: str) -> str:
        try:
            return normalised(url)
        except ValueError as error:
            raise ConfigError(f"{self._name}: url {without_credentials(url)!r} cannot be used: {error}") from None

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def slow_down(self, url: str, seconds: float) -> None:
        """Leave at least so much time between two requests to the host of ``url``."""
        host = self._host(url)
        host.delay = max(host.delay, seconds)

    def get(
        self,
        url: str,
        *,
        validators: Mapping[str, str] | None = None,
        accept: str = "*/*",
        allowed: Callable[[str], None] = lambda _url: None,
    ) -> Response:
        """What is at ``url``; a status of 400 and more is returned where asking again cannot change it.

        Args:
            url: where to start.
            validators: of an earlier response: where nothing changed since, the status is 304.
            accept: media types.
            allowed: called with the address of each request, before it; raises where it must not be made.

        Raises:
            SourceError: an address on the way is not allowed, its certificate is not valid, it redirects too often, or
                the answer is too large or damaged.
            SourceUnavailableError: no answer, or none but "later", in several tries.
        """
        try:
            return self._follow(normalised(url), dict(validators or {}), accept, allowed)
        except ValueError as error:
            raise self._wrong(url, str(error)) from None

    def body_of(self, url: str, response: Response) -> bytes:
        """The body of a success.

        Raises:
            SourceError: it is none.
        """
        if 200 <= response.status < 300:
            return response.body
        raise self._wrong(url, status_in_words(response.status))

    def _follow(self, url: str, validators: dict[str, str], accept: str, allowed: Callable[[str], None]) -> Response:
        known, at, moved = validators.pop("of", None), url, True
        for _ in range(_REDIRECTS + 1):
            allowed(at)
            headers = {"User-Agent": self._settings.user_agent, "Accept": accept, "Accept-Encoding": "gzip"}
            # Validators of one page say nothing of another that a redirect may lead to by now.
            headers |= validators if _mark(at) == known else {}
            headers |= self._own if origin(at) in self._trusted else {}
            response = self._try(at, headers)
            if response.status not in _REDIRECT or "location" not in response.headers:
                return replace(response, moved=moved and at != url)
            moved = moved and response.status in _FOR_GOOD
            before, at = at, normalised(urljoin(at, response.headers["location"]))
            if before.startswith("https:") and not at.startswith("https:"):
                raise self._wrong(url, f"it redirects from https to {without_credentials(at)}, which anybody may alter")
        raise self._wrong(url, f"it redirects more than {_REDIRECTS} times, at last to {without_credentials(at)}")

    def _try(self, url: str, headers: Mapping[str, str]) -> Response:
        host = self._host(url)
        why = ""
        for attempt in range(_TRIES):
            if host.silent >= _DEAF:
                raise self._later(url, f"{urlsplit(url).netloc} failed to answer {_DEAF} times in a row")
            wait = _BACKOFF_SECONDS * 2**attempt * (1 + random.random() / 2)  # noqa: S311 no secret
            try:
                with host.turn():
                    response = self._once(url, headers)
            except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
                if isinstance(error.__context__, ssl.SSLCertVerificationError):
                    raise self._wrong(url, f"its certificate is not valid: {error}") from cause(error, self._secrets)
                why = f"{type(error).__name__} {error}".strip()
                host.silent += attempt + 1 == _TRIES
            else:
                if response.status not in _AGAIN:
                    host.silent = 0
                    return response
                why = status_in_words(response.status)
                if response.status in _BUSY:
                    wait = max(wait, asked := _retry_after(response.headers))
                    if asked > _LONGEST_WAIT_SECONDS:
                        raise self._later(url, f"{why}, and asks to wait {asked:.0f} s")
                    host.pause(wait)
            if attempt + 1 < _TRIES:
                time.sleep(wait)
        raise self._later(url, f"{why}, {_TRIES} times")

    def _once(self, url: str, headers: Mapping[str, str]) -> Response:
        settings = self._settings
        self._network.allow_until(time.monotonic() + settings.timeout_seconds)
        seconds = {
            "connect": min(_CONNECT_SECONDS, settings.timeout_seconds),
            "read": min(_READ_SECONDS, settings.timeout_seconds),
            "write": min(_READ_SECONDS, settings.timeout_seconds),
        }
        try:
            with self._pool.stream("GET", url, headers=[*headers.items()], extensions={"timeout": seconds}) as answer:
                named = _headers(answer.headers)
                success = 200 <= answer.status < 300
                body = self._body(answer.iter_stream(), named, settings.max_bytes if success else None)
                return Response(url, answer.status, named, body)
        except FreshetError as error:  # what the network or the body was refused for
            raise self._wrong(url, str(error)) from None

    def _body(self, parts: Iterator[bytes], headers: Mapping[str, str], most: int | None) -> bytes:
        """The body; at most so many bytes of a success, and only the beginning of anything else."""
        if most is None:
            found = bytearray()
            for part in parts:
                found += part
                if len(found) > _MOST_OF_AN_ERROR:
                    break
            return bytes(found)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise SourceError(f"it has {length} bytes, more than max_bytes={most}")
        match headers.get("content-encoding", "identity").strip().lower():
            case "gzip" | "x-gzip" | "deflate":
                return gunzip(_at_most(parts, most), most)
            case "identity" | "":
                return b"".join(_at_most(parts, most))
            case other:
                raise SourceError(f"it is encoded as {other!r}, which was not asked for")

    def _host(self, url: str) -> _Host:
        with self._lock:
            key = urlsplit(url).netloc
            if key not in self._hosts:
                self._hosts[key] = _Host(self._settings.connections, self._settings.delay_seconds)
            return self._hosts[key]

    def _wrong(self, url: str, why: str) -> SourceError:
        return SourceError(scrub(f"{self._name}: {without_credentials(url)} cannot be read: {why}", self._secrets))

    def _later(self, url: str, why: str) -> SourceUnavailableError:
        said = f"{self._name}: {without_credentials(url)} cannot be read now: {why}"
        return SourceUnavailableError(scrub(said, self._secrets))


def status_in_words(status: int) -> str:
    """A status of 400 and more, and what it means for the source."""
    match status:
        case 401 | 403:
            return f"status {status}: it may not be read; check 'auth' and what its owner is allowed"
        case 404 | 410:
            return f"status {status}: it does not exist; correct its url, or bring it back"
        case 429:
            return f"status {status}: too many requests; raise delay_seconds, or refresh less often"
        case _:
            return f"status {status}"


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in raw:
        name, text = key.decode("latin-1").lower(), value.decode("latin-1").strip()
        found[name] = f"{found[name]}, {text}" if name in found else text
    return found


def _at_most(parts: Iterator[bytes], most: int) -> Iterator[bytes]:
    size = 0
    for part in parts:
        size += len(part)
        if size > most:
            raise SourceError(f"it has more than max_bytes={most} bytes")
        yield part


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait, which it says as seconds or as a date."""
    said = headers.get("retry-after", "").strip()
    if said.isdecimal():
        return float(said)
    then = http_date(said)
    return 0.0 if then is None else max(0.0, then.timestamp() - time.time())


class _Host:
    """How much of one host may be asked for at once, and when."""

    def __init__(self, most: int, delay: float) -> None:
        self.delay = delay
        self.silent = 0
        self._slots = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()
        self._next = 0.0

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._slots:
            with self._lock:
                at = max(time.monotonic(), self._next)
                self._next = at + self.delay
            if (wait := at - time.monotonic()) > 0:
                time.sleep(wait)
            yield

    def pause(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


# --- what is connected to


class _Network(httpcore.NetworkBackend):
    """Connects to addresses that were checked, and to nothing else."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._sockets = httpcore.SyncBackend()
        self._until = threading.local()

    def allow_until(self, deadline: float) -> None:
        """When the current request of this thread must be done (seconds of the monotonic clock)."""
        self._until.deadline = deadline

    def left(self, timeout: float | None) -> float:
        """Seconds that an operation may take: ``timeout``, or less where the request has less left."""
        left = float(self._until.deadline) - time.monotonic()
        return left if timeout is None else min(timeout, left)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host}: {error}") from error
        addresses = [*dict.fromkeys(str(each[4][0]) for each in found)]
        for address in addresses:
            if why := _refused(address, allow_private=self._allow_private):
                raise SourceError(f"{host} is {address}, {why}")
        failed: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            if (left := self.left(timeout)) <= 0:
                break
            try:
                stream = self._sockets.connect_tcp(address, port, left, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
            else:
                return _Stream(stream, self)
        raise failed


class _Stream(httpcore.NetworkStream):
    """A connection on which no operation lasts longer than its request may."""

    def __init__(self, stream: httpcore.NetworkStream, network: _Network) -> None:
        self._stream = stream
        self._network = network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if (left := self._network.left(timeout)) <= 0:
            raise httpcore.ReadTimeout("it takes longer than timeout_seconds")
        return self._stream.read(max_bytes, left)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if (left := self._network.left(timeout)) <= 0:
            raise httpcore.WriteTimeout("it takes longer than timeout_seconds")
        self._stream.write(buffer, left)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = max(self._network.left(timeout), 0.001)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left), self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _refused(address: str, *, allow_private: bool) -> str | None:
    """Why an address must not be connected to, if so."""
    for meant in _meant(ip_address(address.partition("%")[0])):
        if any(meant in network for network in _METADATA):
            return "where clouds keep what only their machines may know: it is never connected to"
        if meant.is_multicast or (not allow_private and not meant.is_global):
            return "which is no public address; say allow_private: true where an intranet is meant"
    return None


def _meant(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address | IPv6Address]:
    """An address, and the IPv4 address that it stands for."""
    yield address
    if isinstance(address, IPv6Address):
        inside = [address.ipv4_mapped, address.sixtofour, address.teredo and address.teredo[1]]
        if address in _NAT64:
            inside.append(IPv4Address(int(address) & 0xFFFFFFFF))
        yield from filter(None, inside)
