"""Published chat models behind an OpenAI-compatible API.

One thread a request retrieves, builds the prompt and hands on what llama.cpp writes. It holds the version that it began
with; which version begins is looked up between requests (``live``), and the index is asked anew for each question, so
nothing that is published or refreshed interrupts an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import sqlalchemy as sa
from pydantic import SecretStr, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from pipelines.admission import SHOWN, RefusedError, admit, check_json, read_json, refusal_headers
from pipelines.catalog import now
from pipelines.declaration import USE_CASES, Declaration, load_declaration
from pipelines.environment import Environment
from pipelines.errors import (
    ArtifactError,
    ConfigError,
    FreshetError,
    NotBuiltError,
    ServerUnavailableError,
    TransientError,
)
from pipelines.feedback import application as feedback_application
from pipelines.prompt import Message
from pipelines.serving.answering import Answer, ServedModel, published, retrieved
from pipelines.serving.engine import Piece
from pipelines.serving.live import Live
from pipelines.serving.records import forget_older, record_answer, stored_answer
from pipelines.serving.requests import ChatRequest, chunk, completion, failure, problem, usage_chunk
from pipelines.stores import Stores

VARIABLE = "FRESHET_SERVE_TOKEN"
LARGEST_BODY = 2_000_000
"""Bytes of a request."""
MOST_REQUESTS = 64
"""Running and waiting; more are told to come back (429)."""
LOOK_SECONDS = 1.0
"""Between two looks at what is published."""
PURGE_SECONDS = 3600.0

_log = logging.getLogger("uvicorn.error")


@dataclass(frozen=True, slots=True)
class Serving:
    """How models are served."""

    use_cases: Sequence[str]
    folder: Path = USE_CASES
    slots: int = 4
    """Answers of one model that are written at once."""
    threads: int | None = None
    """Of one model; None: the cores that this process may use."""
    most_requests: int = MOST_REQUESTS
    keep_days: float = 90.0
    """How long answers are kept for feedback."""


@dataclass(frozen=True, slots=True)
class _Begun:
    version: str


@dataclass(slots=True)
class _Running:
    """One request: what its thread says to the event loop."""

    use_case: str
    asked: ChatRequest
    loop: asyncio.AbstractEventLoop
    answer_id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    events: asyncio.Queue[_Begun | Piece | Answer | Exception] = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def tell(self, event: _Begun | Piece | Answer | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Server:
    """Models, stores and requests of one process."""

    def __init__(self, serving: Serving, environment: Environment) -> None:
        self.serving, self.environment = serving, environment
        self.stores = Stores(environment)
        self.requests = 0
        self._limiter: anyio.CapacityLimiter | None = None
        self._searching = threading.Lock()  # an embedded index is open to one at a time: waiting here is fair
        self._end = threading.Event()
        self.lives = {name: self._live(name) for name in serving.use_cases}

    def declaration(self, use_case: str) -> Declaration:
        """As the use case's file says now.

        Raises:
            ConfigError: it is not valid.
        """
        path = self.serving.folder / use_case / "defs.yaml"
        return _declaration(use_case, self.serving.folder, path.stat().st_mtime_ns if path.is_file() else 0)

    def _live(self, use_case: str) -> Live:
        def load(version: Any) -> ServedModel:
            quantisation = self.declaration(use_case).release.serve
            return ServedModel(version, quantisation, slots=self.serving.slots, threads=self.serving.threads)

        return Live(
            use_case,
            self.environment.registry_url,
            lambda: published(self.declaration(use_case), self.environment),
            load,
        )

    def start(self) -> threading.Thread:
        """Load what is published, and keep looking in a thread of its own."""
        self.stores.catalog, self.stores.index  # noqa: B018 opened here, not by several requests at once
        for live in self.lives.values():
            live.look()
            self._warm(live.use_case)
        watcher = threading.Thread(target=self._watch, name="watch the registry", daemon=True)
        watcher.start()
        return watcher

    def stop(self) -> None:
        """Free what is held; requests that run end first."""
        self._end.set()
        for live in self.lives.values():
            live.close()
        self.stores.close()

    def _watch(self) -> None:
        purged = 0.0
        while not self._end.wait(LOOK_SECONDS):
            for live in self.lives.values():
                try:
                    live.look()
                    if time.monotonic() - purged > PURGE_SECONDS:
                        before = now() - timedelta(days=self.serving.keep_days)
                        forget_older(self.stores.catalog, live.use_case, before)
                except Exception:  # noqa: BLE001 whatever it is, what is served goes on being served
                    _log.exception("looking at what is published of %s", live.use_case)
            if time.monotonic() - purged > PURGE_SECONDS:
                purged = time.monotonic()

    def _warm(self, use_case: str) -> None:
        """Load the embedder before the first question."""
        try:
            retrieved(self.declaration(use_case), self.stores, [Message("user", "warm up")], top_k=1)
        except FreshetError as error:
            _log.warning("%s: %s", use_case, error)

    # --- one request, in its thread

    def begin(self, use_case: str, asked: ChatRequest) -> _Running:
        """Start to answer, in a thread.

        Raises:
            RefusedError: too many requests run and wait.
        """
        if self.requests >= self.serving.most_requests:
            raise RefusedError(429, f"{self.requests} requests are running and waiting: ask again in a moment")
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self.serving.most_requests)
        running = _Running(use_case, asked, asyncio.get_running_loop())
        self.requests += 1

        async def run() -> None:
            try:
                await anyio.to_thread.run_sync(self._work, running, limiter=self._limiter)
            finally:
                self.requests -= 1

        task = asyncio.create_task(run())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
        return running

    def _work(self, running: _Running) -> None:
        try:
            self._answer(running)
        except Exception as error:  # noqa: BLE001 it is told to who asked
            running.tell(error)

    def _answer(self, running: _Running) -> None:
        asked, use_case, began = running.asked, running.use_case, time.monotonic()
        turns, declaration = asked.turns, self.declaration(use_case)
        with self.lives[use_case].model() as model:
            with self._searching:
                hits = retrieved(
                    declaration,
                    self.stores,
                    turns,
                    principals=asked.principals,
                    filters=asked.filters,
                    top_k=asked.top_k,
                )
            if running.cancelled.is_set():
                return
            prepared = model.prepared(turns, hits, **asked.sampling)
            running.tell(_Begun(model.version))
            text, finish = "", None
            try:
                with contextlib.closing(model.said(prepared)) as pieces:
                    for piece in pieces:
                        text, finish = text + piece.text, piece.finish
                        running.tell(piece)
                        if running.cancelled.is_set():
                            break
            except (ArtifactError, ServerUnavailableError):  # llama.cpp failed, and answers no more
                self.lives[use_case].doubt(model)
                raise
            said = model.answered(prepared, text, finish or "length")
        try:
            record_answer(
                self.stores.catalog,
                use_case,
                running.answer_id,
                turns,
                said,
                seconds=time.monotonic() - began,
                whole=finish is not None,
                conversation=asked.conversation,
                author=asked.user,
                labels=declaration.labels,
            )
        except sa.exc.SQLAlchemyError as error:
            _log.error("answer %s of %s is not stored: %s", running.answer_id, use_case, type(error).__name__)
        running.tell(said)


_tasks: set[asyncio.Task[None]] = set()
"""The event loop itself holds no task."""


def application(server: Server, token: SecretStr | None) -> Starlette:
    """The ASGI application.

    Args:
        server: what answers; started and stopped with the application.
        token: what each request has to bring; None: nothing, from this machine only.
    """

    def known(use_case: str) -> Live:
        live = server.lives.get(use_case)
        if live is None:
            raise _ModelError(f"no model {use_case!r:.{SHOWN}}; there are: {', '.join(sorted(server.lives))}")
        return live

    async def models(request: Request) -> JSONResponse:
        admit(request, token, variable=VARIABLE)
        listed = [_model(name, live) for name, live in sorted(server.lives.items()) if live.version is not None]
        return JSONResponse({"object": "list", "data": listed})

    async def one_model(request: Request) -> JSONResponse:
        admit(request, token, variable=VARIABLE)
        name = request.path_params["model"]
        return JSONResponse(_model(name, known(name)))

    async def chat(request: Request) -> Response:
        admit(request, token, variable=VARIABLE)
        check_json(request)
        asked = ChatRequest.model_validate(await read_json(request, LARGEST_BODY))
        known(asked.model)
        running = server.begin(asked.model, asked)
        gone = asyncio.create_task(_gone(request))
        try:
            first = await _first(running, gone, until=_Begun if asked.stream else Answer)
        finally:
            gone.cancel()
        if isinstance(first, Exception):
            raise first
        if first is None:
            return Response(status_code=499)  # nobody is there to read it
        headers = {"X-Freshet-Version": first.version, "X-Request-Id": running.answer_id}
        if isinstance(first, Answer):
            return JSONResponse(completion(running.answer_id, asked.model, first), headers=headers)
        return StreamingResponse(
            _stream(running, first.version),
            media_type="text/event-stream",
            headers={**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    async def stored(request: Request) -> JSONResponse:
        admit(request, token, variable=VARIABLE)
        answer_id = request.path_params["answer"]
        for name in server.lives:
            found = await anyio.to_thread.run_sync(stored_answer, server.stores.catalog, name, answer_id)
            if found is not None:
                return JSONResponse({**found, "answered_at": found["answered_at"].isoformat()})
        raise RefusedError(404, f"no answer {answer_id!r:.{SHOWN}}: it was never given, or its time is over")

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "models": {name: live.version for name, live in server.lives.items()}})

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(server.start)
        yield
        await anyio.to_thread.run_sync(server.stop)

    feedback = feedback_application(server.stores.catalog, token, use_cases=server.serving.folder, variable=VARIABLE)
    return Starlette(
        routes=[
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{model}", one_model, methods=["GET"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/answers/{answer}", stored, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
            Mount("/", app=feedback),
        ],
        exception_handlers=_HANDLERS,
        lifespan=lifespan,
    )


class _ModelError(Exception):
    """A model that is not served."""


def _model(name: str, live: Live) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "freshet", "version": live.version}


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _first(running: _Running, gone: asyncio.Task[None], *, until: type) -> _Begun | Answer | Exception | None:
    """The first event of a kind, or an error; None where the client has left."""
    while True:
        event = asyncio.ensure_future(running.events.get())
        done, _ = await asyncio.wait({event, gone}, return_when=asyncio.FIRST_COMPLETED)
        if event not in done:
            event.cancel()
            running.cancelled.set()
            return None
        found = event.result()
        if isinstance(found, (until, Exception)):
            return found  # type: ignore[return-value]


async def _stream(running: _Running, version: str) -> AsyncIterator[str]:
    """Server-sent events; the citations come with the last piece, for they depend on what was said."""
    make = partial(chunk, running.answer_id, running.asked.model, version)
    try:
        yield _event(make({"role": "assistant", "content": ""}))
        while True:
            match await running.events.get():
                case Piece(text=text) if text:
                    yield _event(make({"content": text}))
                case Answer() as said:
                    whole = completion(running.answer_id, running.asked.model, said)
                    extra = {"citations": whole["choices"][0]["message"]["citations"]}
                    yield _event(make(extra, said.finish))
                    options = running.asked.stream_options
                    if options is not None and options.include_usage:
                        yield _event(usage_chunk(running.answer_id, running.asked.model, said))
                    break
                case Exception() as error:
                    _log.error("an answer of %s broke off: %s", running.use_case, error)
                    yield _event(failure(*_told(error)))
                    return
        yield "data: [DONE]\n\n"
    finally:
        running.cancelled.set()


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _told(error: Exception) -> tuple[int, str]:
    """Status and words of an error."""
    if isinstance(error, RefusedError):
        return error.status, str(error)
    if isinstance(error, (NotBuiltError, TransientError)):
        return 503, str(error)
    if isinstance(error, ConfigError):
        return 400, str(error)
    return 500, "it could not be answered: the server's log says why"


async def _refused(_: Request, error: Exception) -> JSONResponse:
    status, message = _told(error)
    if status == 500:
        _log.error("not answered", exc_info=error)
    code = {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(status)
    return JSONResponse(failure(status, message, code=code), status_code=status, headers=refusal_headers(status))


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    message, param = problem(error) if isinstance(error, ValidationError) else (str(error), None)
    return JSONResponse(failure(400, message, param=param), status_code=400)


async def _no_model(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(failure(404, str(error), param="model", code="model_not_found"), status_code=404)


async def _http(_: Request, error: Exception) -> JSONResponse:
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
    return JSONResponse(failure(status, detail), status_code=status)


_HANDLERS: dict[Any, Callable[[Request, Exception], Any]] = {
    RefusedError: _refused,
    FreshetError: _refused,
    ValidationError: _invalid,
    _ModelError: _no_model,
    HTTPException: _http,
    Exception: _refused,
}


@lru_cache(maxsize=64)
def _declaration(name: str, folder: Path, _changed: int) -> Declaration:
    return load_declaration(name, folder)
