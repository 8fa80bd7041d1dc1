"""What a client of the OpenAI API sends, and what it gets back."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipelines.admission import SHOWN
from pipelines.corpus.filters import Filters
from pipelines.corpus.search import MOST_HITS
from pipelines.prompt import Message, Role
from pipelines.serving.answering import Answer, Citation

ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
"""Fields that would change an answer and that nothing here obeys, each with the values that ask for nothing."""


_SURROGATES = re.compile("[\ud800-\udfff]")  # JSON can say them, and no encoder takes them


class Part(BaseModel):
    """A piece of a turn."""

    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def message(self) -> Message:
        """As the prompt builder takes it."""
        content = self.content
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        return Message(ROLES[self.role], _SURROGATES.sub("\ufffd", text))


class StreamOptions(BaseModel):
    """What a stream brings beside the answer."""

    include_usage: bool = False


Stop = Annotated[str, Field(min_length=1, max_length=256)]


class ChatRequest(BaseModel):
    """The body of ``POST /v1/chat/completions``; fields that change nothing about an answer are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[Turn] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stop: Stop | list[Stop] | None = None
    user: str | None = Field(default=None, max_length=256)
    # What the API does not have.
    conversation: str | None = Field(default=None, min_length=1, max_length=256)
    principals: list[str] | None = None
    filters: Filters | None = None
    top_k: int | None = Field(default=None, ge=1, le=MOST_HITS)

    @model_validator(mode="before")
    @classmethod
    def _obeyed(cls, value: Any) -> Any:
        for name, nothing in UNSUPPORTED.items() if isinstance(value, dict) else ():
            given = value.get(name)
            if given is not None and given not in nothing:
                raise ValueError(f"{name} is not supported, only {nothing[0]!r}" if nothing else f"no {name} here")
        return value

    @field_validator("stop")
    @classmethod
    def _few(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > 4:
            raise ValueError(f"{len(value)} stop texts; 4 at most")
        return value

    @property
    def turns(self) -> list[Message]:
        """The chat up to the question."""
        return [turn.message for turn in self.messages]

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of ``ServedModel.prepared``."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {
            "maximum_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": self.temperature or 0.0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": self.seed,
            "stops": tuple(stops),
        }


def problem(error: ValidationError) -> tuple[str, str | None]:
    """What is wrong with a request, and in which field."""
    each = error.errors(include_url=False)[0]
    place = ".".join(map(str, each["loc"]))
    message = each["msg"].removeprefix("Value error, ")
    given = "" if each["type"] in ("missing", "value_error") else f", not {each['input']!r:.{SHOWN}}"
    return (f"{place}: {message}{given}" if place else f"{message}{given}"), place or None


def failure(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def completion(answer_id: str, use_case: str, said: Answer) -> dict[str, Any]:
    """A whole answer."""
    message = {
        "role": "assistant",
        "content": said.text,
        "refusal": None,
        "citations": [cited(each) for each in said.citations],
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": said.finish}
    return {
        **_envelope(answer_id, "chat.completion", use_case, said.version),
        "choices": [choice],
        "usage": usage(said),
    }


def chunk(
    answer_id: str, use_case: str, version: str, delta: Mapping[str, Any], finish: str | None = None
) -> dict[str, Any]:
    """A piece of an answer."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**_envelope(answer_id, "chat.completion.chunk", use_case, version), "choices": [choice]}


def usage_chunk(answer_id: str, use_case: str, said: Answer) -> dict[str, Any]:
    """The last piece of a stream that was asked for it."""
    return {
        **_envelope(answer_id, "chat.completion.chunk", use_case, said.version),
        "choices": [],
        "usage": usage(said),
    }


def usage(said: Answer) -> dict[str, int]:
    """Tokens."""
    return {
        "prompt_tokens": said.prompt_tokens,
        "completion_tokens": said.answer_tokens,
        "total_tokens": said.prompt_tokens + said.answer_tokens,
    }


def cited(citation: Citation) -> dict[str, Any]:
    """A citation as JSON."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(citation).items()
    }


def _envelope(answer_id: str, kind: str, use_case: str, version: str) -> dict[str, Any]:
    return {
        "id": answer_id,
        "object": kind,
        "created": int(time.time()),
        "model": use_case,
        "system_fingerprint": version,
    }
