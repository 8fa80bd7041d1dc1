"""Who may use an endpoint of ours: whoever brings its token; without one, programs on this machine alone."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import secrets
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.requests import ClientDisconnect, Request

from pipelines.errors import ConfigError

BODY_SECONDS = 20.0
SHOWN = 100
"""Characters of a value that is not right."""


class RefusedError(Exception):
    """An answer other than 2xx; no endpoint lets it out of its module."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status


def admit(request: Request, token: SecretStr | None, *, variable: str) -> None:
    """Refuse who may not ask; ``variable`` is where the token comes from.

    Raises:
        RefusedError: the token is missing or wrong, or without one: the name or the page that asks is not local.
    """
    if token is not None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = secrets.compare_digest(given.strip().encode(), token.get_secret_value().encode())
        if scheme.lower() != "bearer" or not right:
            raise RefusedError(401, f"the token is missing or wrong: Authorization: Bearer <{variable}>")
        return
    # A page of another site cannot set these: its name may point here (DNS rebinding), but it stays in the Host.
    if not _is_this_machine(_host(f"//{request.headers.get('host', '')}")):
        raise RefusedError(403, "without a token only localhost, 127.0.0.1 or [::1] can be asked for")
    origin = request.headers.get("origin")
    if origin is not None and not _is_this_machine(_host(origin)):
        raise RefusedError(403, f"without a token pages of {origin!r:.{SHOWN}} cannot ask")


def check_json(request: Request) -> None:
    """Refuse a body that a page of another site could send without being asked for leave.

    Raises:
        RefusedError: its type is not JSON.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError(415, "the body has to be JSON: Content-Type: application/json")


def check_address(host: str, token: SecretStr | None, *, variable: str) -> None:
    """Refuse to be open to others without a token.

    Raises:
        ConfigError: ``host`` is no address of this machine alone, and there is no token.
    """
    if token is None and not _is_this_machine(host):
        raise ConfigError(f"host {host!r} can be reached from other machines: set {variable}, or listen on 127.0.0.1")


async def read_json(request: Request, largest: int) -> Any:
    """The body, of at most ``largest`` bytes.

    Raises:
        RefusedError: it is larger, does not come in time or whole, or is not JSON.
    """
    too_long = RefusedError(413, f"the body is larger than {largest} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > largest:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > largest:
                    raise too_long
    except TimeoutError as error:
        raise RefusedError(408, f"the body did not come within {BODY_SECONDS:g} s") from error
    except ClientDisconnect as error:
        raise RefusedError(400, "the body broke off") from error
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RefusedError(422, f"the body is not JSON: {error!s:.{SHOWN}}") from error


def refusal_headers(status: int) -> dict[str, str] | None:
    """What goes with a refusal; a connection whose body was not read is closed."""
    return {
        401: {"WWW-Authenticate": "Bearer"},
        408: {"Connection": "close"},
        413: {"Connection": "close"},
        429: {"Retry-After": "1"},
        503: {"Retry-After": "1"},
    }.get(status)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_this_machine(host: str | None) -> bool:
    """Whether a name can only be this machine: other names may be made to point to it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
