"""The one prompt builder: training, evaluation and serving all put a question to a chat model through it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.errors import ConfigError
from pipelines.fingerprint import text_hash
from pipelines.settings import Settings

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


class AnswerFormat(Settings):
    """What every answer has to look like; labels are checked, answers scored and exported grammars made by it."""

    json_schema: dict[str, Any] | None = Field(default=None, description="JSON Schema of an answer that is JSON.")
    regex: str | None = Field(default=None, description="Regular expression that a whole answer matches.")

    @model_validator(mode="after")
    def _one(self) -> AnswerFormat:
        if (self.json_schema is None) == (self.regex is None):
            raise ValueError("give either json_schema or regex")
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as error:
                raise ValueError(f"regex {self.regex!r}: {error}") from error
        return self


class PromptSettings(Settings):
    """What a chat model is told beside the question."""

    system: str = Field(
        default="", description="System text of every chat that brings none of its own; never cut for length."
    )
    with_context: str = Field(
        default="Use only this information:\n\n{context}\n\nQuestion: {question}",
        description="The last user turn where something was retrieved; {context} and {question} are filled in.",
    )
    without_context: str = Field(
        default="No information was found.\n\nQuestion: {question}",
        description="The last user turn where nothing relevant was retrieved; {question} is filled in.",
    )
    refusal: str = Field(
        default="I do not know.", description="What a right answer begins with where nothing relevant was retrieved."
    )
    answer_format: AnswerFormat | None = Field(default=None, description="What every answer has to look like.")
    context_tokens: int = Field(
        default=1024, ge=0, description="Most tokens of retrieved text in a prompt: the last chunks are left out first."
    )


def build_messages(
    settings: PromptSettings,
    messages: Sequence[Message],
    context: Sequence[str] | None,
    *,
    count_tokens: Callable[[str], int],
) -> list[Message]:
    """The chat that a model sees.

    Args:
        settings: of the use case.
        messages: the turns so far, the last one the user's; a system turn of its own replaces the settings'.
        context: retrieved texts, best first; empty where nothing relevant was found, None where the use case retrieves
            nothing at all, and the question stands alone.
        count_tokens: tokens of a text, by the model's tokenizer.

    Raises:
        ConfigError: the last turn is not the user's.
    """
    if not messages or messages[-1].role != "user":
        raise ConfigError(
            f"a prompt ends with the user's turn, not with {messages[-1].role if messages else 'nothing'!r}"
        )
    turns = list(messages)
    if settings.system and turns[0].role != "system":
        turns.insert(0, Message("system", settings.system))
    question = turns[-1].content
    if context is not None:
        kept = _within(context, settings.context_tokens, count_tokens)
        template = settings.with_context if kept else settings.without_context
        numbered = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(kept, start=1))
        filled = template.replace("{question}", "\0").replace("{context}", numbered).replace("\0", question)
        turns[-1] = Message("user", filled)
    return turns


def render(tokenizer: Any, messages: Sequence[Message], *, answer: bool = False) -> str:
    """``messages`` through the tokenizer's own chat template; without ``answer``, ready for the model to go on.

    Raises:
        ConfigError: the tokenizer has no chat template, or it refuses these turns.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"{tokenizer.name_or_path!r} has no chat template, so nobody knows how it was taught to talk: name an "
            "instruction-tuned base, or add chat_template.jinja to its folder"
        )
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=not answer))
    except Exception as error:  # templates raise what they like
        roles = ", ".join(message.role for message in messages)
        raise ConfigError(
            f"the chat template of {tokenizer.name_or_path!r} refuses the turns {roles}: {error}"
        ) from error


def template_hash(tokenizer: Any) -> str:
    """Hash (64 hex digits) of the chat template; equal in training, evaluation and every exported file."""
    return text_hash(str(tokenizer.chat_template))


def _within(context: Sequence[str], limit: int, count_tokens: Callable[[str], int]) -> list[str]:
    """The first texts that fit ``limit`` tokens together; of the first that does not fit, nothing."""
    kept: list[str] = []
    for text in context:
        limit -= count_tokens(text)
        if limit < 0:
            break
        kept.append(text)
    return kept
