"""The one prompt builder: training, evaluation and serving all put a question to a chat model through it.

What somebody else wrote (a retrieved document, a question) cannot speak for the system or end a turn: ``render`` takes
control tokens out of every turn's content, so that only the template's own are left, whatever then encodes the text
(transformers, llama.cpp, Ollama). Encoding contents with ``split_special_tokens`` would protect transformers alone. A
template that marks turns with ordinary words ("### Instruction:") has no tokens to protect: nothing can.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

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
        if self.json_schema is not None:
            from jsonschema import SchemaError

            try:
                _validator(json.dumps(self.json_schema))
            except SchemaError as error:
                raise ValueError(f"json_schema {self.json_schema!r}: {error.message}") from error
        return self

    def problem(self, answer: str) -> str | None:
        """What is wrong with ``answer``, space around it aside; None where it fits.

        Raises:
            ConfigError: the JSON schema refers to something outside of itself.
        """
        answer = answer.strip()
        if self.regex is not None:
            fits = re.fullmatch(self.regex, answer) is not None
            return None if fits else f"does not match {self.regex!r}"
        try:
            value = json.loads(answer, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            return f"is not JSON: {error}"
        from referencing.exceptions import Unresolvable

        try:
            wrong = next(_validator(json.dumps(self.json_schema)).iter_errors(value), None)
        except Unresolvable as error:
            raise ConfigError(f"json_schema refers to {error.ref!r}, which it does not define itself") from error
        return None if wrong is None else f"does not fit its JSON schema at {wrong.json_path}: {wrong.message[:200]}"


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
        default="I do not know.",
        min_length=1,
        description="What a right answer says where nothing relevant was retrieved, at its beginning or later.",
    )
    ask_without_context: bool = Field(
        default=False,
        description="Where nothing relevant was retrieved: true: the model is asked all the same (it greets, it hands "
        "over); false: the answer is the refusal. It is asked, too, where the refusal does not fit answer_format, and "
        "in a chat that goes on.",
    )
    answer_format: AnswerFormat | None = Field(default=None, description="What every answer has to look like.")
    context_tokens: int = Field(
        default=1024,
        ge=0,
        description="Most tokens of retrieved text in a prompt: the last chunks are left out first, and the first one "
        "is cut where it alone is longer.",
    )

    @property
    def unasked_answer(self) -> str | None:
        """What is answered where nothing relevant was retrieved; None where the model is asked."""
        fits = self.answer_format is None or self.answer_format.problem(self.refusal) is None
        return self.refusal if fits and not self.ask_without_context else None

    @field_validator("with_context")
    @classmethod
    def _both(cls, value: str) -> str:
        for name in ("{context}", "{question}"):
            if name not in value:
                raise ValueError(f"with_context {value!r} has no {name}: the model would never see it")
        return value

    @field_validator("without_context")
    @classmethod
    def _question_only(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError(f"without_context {value!r} has no {{question}}: the model would never see it")
        if "{context}" in value:
            raise ValueError(f"without_context {value!r} has {{context}}, but there is none where nothing was found")
        return value


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
    if context is not None:
        kept = kept_context(settings, context, count_tokens=count_tokens)
        template = settings.with_context if kept else settings.without_context
        filled = {"{context}": "\n\n".join(kept), "{question}": turns[-1].content}
        # In one pass: what is filled in may itself contain a placeholder.
        turns[-1] = Message("user", re.sub(r"\{context\}|\{question\}", lambda found: filled[found[0]], template))
    return turns


def kept_context(
    settings: PromptSettings, context: Sequence[str], *, count_tokens: Callable[[str], int]
) -> tuple[str, ...]:
    """The first retrieved texts, numbered, that fit ``context_tokens`` together.

    Of the first that does not fit, nothing is kept, unless it is the very first: its beginning is.
    """
    kept: list[str] = []
    left = settings.context_tokens
    for number, text in enumerate(context, start=1):
        numbered = f"[{number}] {text}"
        left -= count_tokens(numbered)
        if left < 0:
            break
        kept.append(numbered)
    if not kept and context and settings.context_tokens:
        cut = _beginning(f"[1] {context[0]}", settings.context_tokens, count_tokens)
        kept = [cut] if cut else []
    return tuple(kept)


def fullest_prompt(
    settings: PromptSettings, prompt: str, context: Sequence[str] | None, *, count_tokens: Callable[[str], int]
) -> int:
    """Tokens of a rendered ``prompt``, were as much retrieved for it as ever is: ``context`` may leave some room."""
    if context is None:
        return count_tokens(prompt)
    shown = sum(map(count_tokens, kept_context(settings, context, count_tokens=count_tokens)))
    return count_tokens(prompt) + max(0, settings.context_tokens - shown)


def render(tokenizer: Any, messages: Sequence[Message], *, answer: bool = False) -> str:
    """``messages`` through the tokenizer's own chat template; without ``answer``, ready for the model to go on.

    Control tokens in a turn's content become plain text by a space after their first character. Encode the result with
    ``add_special_tokens=False``: the template brings them all.

    Raises:
        ConfigError: the tokenizer has no chat template, or it refuses these turns.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"{tokenizer.name_or_path!r} has no chat template, so nobody knows how it was taught to talk: name an "
            "instruction-tuned base, or add chat_template.jinja to its folder"
        )
    turns = [{"role": message.role, "content": harmless(tokenizer, message)} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=not answer))
    except Exception as error:  # templates raise what they like
        roles = ", ".join(message.role for message in messages)
        raise ConfigError(
            f"the chat template of {tokenizer.name_or_path!r} refuses the turns {roles}: {error}"
        ) from error


def harmless(tokenizer: Any, message: Message) -> str:
    """The content of ``message`` without control tokens of ``tokenizer``.

    In what is not the assistant's, tokens that the template uses count although the tokenizer does not call them
    special (``<think>``, ``<tool_call>``); an assistant that reasons or calls tools writes these itself.
    """
    special, others = _control_tokens(tokenizer, str(tokenizer.chat_template))
    pattern = special if message.role == "assistant" else others
    text = message.content
    while pattern is not None and pattern.search(text):
        text = pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
    return text


def template_hash(tokenizer: Any) -> str:
    """Hash (64 hex digits) of the chat template; equal in training, evaluation and every exported file."""
    return text_hash(str(tokenizer.chat_template))


@lru_cache(maxsize=4)
def _control_tokens(tokenizer: Any, template: str) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
    """What matches its special tokens, and what matches these and other added tokens that the template writes."""
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    others = {token.content for token in added if token.content in template}
    return _any_of(special), _any_of(special | others)


def _any_of(tokens: set[str]) -> re.Pattern[str] | None:
    longest_first = sorted(
        (token for token in tokens if len(token.strip()) > 1), key=lambda token: (-len(token), token)
    )
    return re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE) if longest_first else None


def _beginning(text: str, limit: int, count_tokens: Callable[[str], int]) -> str:
    """The most words of ``text``, from its start, that fit ``limit`` tokens."""
    ends = [found.end() for found in re.finditer(r"\S+", text)]
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens(text[: ends[middle - 1]]) <= limit:
            low = middle
        else:
            high = middle - 1
    return text[: ends[low - 1]] if low > 1 else ""  # the number alone says nothing


@lru_cache(maxsize=16)
def _validator(schema: str) -> Any:
    """Validator of a JSON schema in JSON, which fetches nothing from elsewhere."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from referencing import Registry

    wanted = json.loads(schema)
    kind = validator_for(wanted, default=Draft202012Validator)
    kind.check_schema(wanted)
    return kind(wanted, registry=Registry())


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
