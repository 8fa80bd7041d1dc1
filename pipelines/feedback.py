"""Feedback over HTTP: ``python -m pipelines.feedback [--host 127.0.0.1] [--port 8765]``.

``POST /feedback`` takes one report about one answer as JSON, ``GET /health`` says whether the catalog can be reached.
With ``FRESHET_FEEDBACK_TOKEN`` set every report needs it as ``Authorization: Bearer``; without it only this machine is
listened to, and pages of other sites, which a browser on this machine may show, are refused by Host and Origin.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pipelines.admission import SHOWN, RefusedError, admit, check_address, check_json, read_json, refusal_headers
from pipelines.catalog import open_catalog
from pipelines.declaration import USE_CASES, Declaration, declared, load_declaration
from pipelines.environment import Environment
from pipelines.errors import ConfigError, FreshetError
from pipelines.labels.answers import wrong_turns
from pipelines.labels.feedback import Feedback, labels_in, record_feedback
from pipelines.prompt import Message, Role
from pipelines.serving.records import stored_answer

LARGEST_BODY = 1_000_000
"""Bytes of a report."""
TOKEN = "FRESHET_FEEDBACK_TOKEN"  # noqa: S105 the variable's name

_log = logging.getLogger("uvicorn.error")


class Turn(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Role
    content: str


class Report(BaseModel):
    """The body of ``POST /feedback``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    use_case: str
    question: str | None = Field(default=None, min_length=1)
    """The text that was asked or classified; or else ``messages``."""
    messages: list[Turn] | None = None
    """The turns up to the question."""
    answer: str | None = None
    correction: str | None = Field(default=None, min_length=1)
    labels: list[str] | None = None
    thumb: Literal["up", "down", 1, -1] | None = None
    context: list[str] | None = None
    version: str | None = Field(default=None, max_length=128)
    conversation: str | None = Field(default=None, min_length=1, max_length=256)
    author: str | None = Field(default=None, max_length=256)
    origin: Literal["human", "rule", "model"] = "human"
    id: str | None = Field(default=None, pattern=r"^[!-~]{1,64}$")
    """The application's own; without one, a report that is sent twice counts twice."""
    answer_id: str | None = Field(default=None, min_length=1, max_length=64)
    """Of an answer that ``pipelines.serve`` gave: what was asked, retrieved and answered, and by which version, is
    known then."""

    @model_validator(mode="after")
    def _whole(self) -> Report:
        known = [self.question, self.messages, self.answer, self.context, self.version]
        if self.answer_id is not None and any(each is not None for each in known):
            raise ValueError("answer_id stands for question, messages, answer, context and version: leave these out")
        if self.answer_id is None and (self.question is None) == (self.messages is None):
            raise ValueError("give either question or messages, or answer_id")
        if self.thumb is None and self.correction is None and self.labels is None:
            raise ValueError("give a correction, labels, or a thumb: up or down")
        if self.correction is not None and self.labels is not None:
            raise ValueError("give either correction or labels")
        if self.answer_id is not None:
            return self
        if self.thumb in ("up", 1) and self.correction is None and self.labels is None and not self.answer:
            raise ValueError("a thumb up needs the answer that it approves")
        wrong = wrong_turns([*self.turns, Message("assistant", "…")])
        if wrong is not None:
            raise ValueError(f"messages: {wrong}; the last turn is the user's, which was answered")
        return self

    @property
    def turns(self) -> tuple[Message, ...]:
        """The chat up to the question."""
        if self.messages is not None:
            return tuple(Message(turn.role, turn.content) for turn in self.messages)
        return (Message("user", self.question or ""),)

    def feedback(self, given: Mapping[str, Any] | None = None) -> Feedback:
        """What is stored; ``given`` is the row of the answer that ``answer_id`` names."""
        found = Feedback(
            feedback_id=self.id or uuid.uuid4().hex,
            messages=self.turns,
            answer=self.answer,
            correction=self.correction,
            labels=None if self.labels is None else tuple(sorted(set(self.labels))),
            thumb=None if self.thumb is None else 1 if self.thumb in ("up", 1) else -1,
            context=None if self.context is None else tuple(self.context),
            version=self.version,
            conversation=self.conversation,
            author=self.author,
            origin=self.origin,
        )
        if given is None:
            return found
        return replace(
            found,
            messages=tuple(Message(turn["role"], turn["content"]) for turn in given["messages"]),
            answer=given["answer"],
            context=None if given["hits"] is None else tuple(hit["text"] for hit in given["hits"]),
            version=given["version"],
            conversation=self.conversation or given["conversation"],
        )


def application(
    catalog: sa.Engine, token: SecretStr | None, *, use_cases: Path = USE_CASES, variable: str = TOKEN
) -> Starlette:
    """The ASGI application.

    Args:
        catalog: where reports are stored.
        token: what each report has to bring; None: nothing, from this machine only.
        variable: where the token comes from.
        use_cases: folder of the use cases that reports can be about; a new one is known at once.
    """

    async def report(request: Request) -> JSONResponse:
        check_json(request)
        admit(request, token, variable=variable)
        given = await read_json(request, LARGEST_BODY)
        name = given.get("use_case") if isinstance(given, dict) else None
        if isinstance(name, str):
            declaration = await run_in_threadpool(_declaration, name, use_cases)
        try:
            checked = Report.model_validate(given)
        except ValidationError as error:
            raise RefusedError(422, _said(error)) from error
        _check_labels(checked, declaration)
        try:
            given = await run_in_threadpool(_answered, catalog, checked)
            feedback = checked.feedback(given)
            new = await run_in_threadpool(
                record_feedback, catalog, checked.use_case, feedback, labels=declaration.labels
            )
        except ConfigError as error:
            raise RefusedError(409, str(error)) from error
        except sa.exc.SQLAlchemyError as error:
            _log.error("feedback of %s not stored: %s", checked.use_case, type(error).__name__)
            raise RefusedError(503, "the catalog cannot be reached: send it again later") from error
        _log.info("feedback %s of %s %s", feedback.feedback_id, checked.use_case, "stored" if new else "known")
        return JSONResponse({"id": feedback.feedback_id, "new": new}, status_code=201 if new else 200)

    async def health(_: Request) -> JSONResponse:
        try:
            await run_in_threadpool(_reach, catalog)
        except sa.exc.SQLAlchemyError as error:
            raise RefusedError(503, "the catalog cannot be reached") from error
        return JSONResponse({"status": "ok"})

    async def refused(_: Request, error: Exception) -> JSONResponse:
        status = error.status if isinstance(error, RefusedError) else 500
        return JSONResponse({"error": str(error)}, status_code=status, headers=refusal_headers(status))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        catalog.dispose()

    return Starlette(
        routes=[
            Route("/feedback", report, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
        ],
        exception_handlers={RefusedError: refused},
        lifespan=lifespan,
    )


def _answered(catalog: sa.Engine, report: Report) -> dict[str, Any] | None:
    """The answer that a report names."""
    if report.answer_id is None:
        return None
    found = stored_answer(catalog, report.use_case, report.answer_id)
    if found is None:
        raise RefusedError(
            404, f"answer_id: {report.use_case} has no answer {report.answer_id!r}: it was never given, or is forgotten"
        )
    return found


def _said(error: ValidationError) -> str:
    """Each field that is not right, with what was given and what is allowed."""
    said = []
    for each in error.errors(include_url=False)[:5]:
        place = ".".join(map(str, each["loc"]))
        message = each["msg"].removeprefix("Value error, ")
        given = "" if each["type"] in ("missing", "value_error") else f", not {each['input']!r:.{SHOWN}}"
        if each["type"] == "extra_forbidden":
            message, given = f"unknown; fields are {', '.join(Report.model_fields)}", ""
        said.append(f"{place}: {message}{given}" if place else f"{message}{given}")
    return "; ".join(said)


def _declaration(name: str, use_cases: Path) -> Declaration:
    known = declared(use_cases)
    if name not in known:
        raise RefusedError(404, f"no use case {name!r:.{SHOWN}}; there are: {', '.join(known) or 'none'}")
    try:
        return _loaded(name, use_cases, (use_cases / name / "defs.yaml").stat().st_mtime_ns)
    except (FreshetError, OSError) as error:
        _log.error("use case %s is not valid, `dg check yaml` shows where", name)  # values of it may be secret
        raise RefusedError(503, f"the use case {name!r} is not valid: whoever keeps it has to correct it") from error


@lru_cache(maxsize=64)
def _loaded(name: str, use_cases: Path, _changed: int) -> Declaration:
    return load_declaration(name, use_cases)


def _check_labels(report: Report, declaration: Declaration) -> None:
    """Labels that no example could have are refused while the application is still there to hear it."""
    labels, settings = report.labels, declaration.labels
    if declaration.task == "generate":
        if labels is not None:
            raise RefusedError(
                422, f"labels: {declaration.name} trains a model that generates: send correction instead"
            )
        return
    if settings is None:
        return
    if labels is None and report.correction is not None:
        labels = labels_in(report.correction, multi_label=settings.multi_label)
    if labels is None:
        return
    if settings.categories is not None and (unknown := sorted(set(labels) - set(settings.categories))):
        raise RefusedError(422, f"label {unknown[0]!r:.{SHOWN}} is not one of {', '.join(settings.categories)}")
    if not settings.multi_label and len(set(labels)) != 1:
        raise RefusedError(422, f"labels: one label is wanted, not {labels!r:.{SHOWN}}")


def _reach(catalog: sa.Engine) -> None:
    with catalog.connect() as connection:
        connection.execute(sa.select(sa.literal(1)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to end; 2 when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.feedback", description="Take feedback over HTTP.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--use-cases", type=Path, default=USE_CASES, help="folder of use cases (default: the bundled)")
    given = parser.parse_args(arguments)
    environment = Environment()
    try:
        check_address(given.host, environment.feedback_token, variable=TOKEN)
        serve = _server(open_catalog(environment.catalog_url), environment.feedback_token, given)
    except (FreshetError, sa.exc.SQLAlchemyError) as error:
        said = str(error) if isinstance(error, FreshetError) else "the catalog cannot be reached (DATABASE_URL)"
        print(f"{type(error).__name__}: {said}", file=sys.stderr)
        return 2
    serve()
    return 0


def _server(catalog: sa.Engine, token: SecretStr | None, given: argparse.Namespace) -> Callable[[], None]:
    import uvicorn

    config = uvicorn.Config(
        application(catalog, token, use_cases=given.use_cases),
        host=given.host,
        port=given.port,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=128,
        timeout_graceful_shutdown=10,
    )
    return uvicorn.Server(config).run


if __name__ == "__main__":
    sys.exit(main())
