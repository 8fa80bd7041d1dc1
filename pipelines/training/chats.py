"""Chats as token ids, and which of these a model is trained to say: its answers, with the token that ends each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipelines.errors import ConfigError
from pipelines.prompt import Message, harmless, render


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """A chat up to the end of its last answer."""

    ids: list[int]
    answers: tuple[tuple[int, int], ...]
    """Where the answers are in ``ids``: first token, and behind the one that ends it."""

    @property
    def answer_tokens(self) -> int:
        """Tokens whose loss counts."""
        return sum(end - start for start, end in self.answers)


def encode_chats(tokenizer: Any, chats: Sequence[Sequence[Message]]) -> list[EncodedChat]:
    """Each chat through the tokenizer's own chat template; its last turn is the assistant's.

    The last answer follows exactly the tokens that the model is served. An earlier one counts where the template shows
    it, and all before it, as when it was the last one; some templates do not: they drop what an assistant has thought.
    What follows the end token (a line break, as a rule) is never said by a model that stops there, and is no answer.

    Raises:
        ConfigError: there is no template, it refuses the turns, or it does not say where answers end.
    """
    rendered = [_rendered(tokenizer, chat) for chat in chats]
    texts = [text[:place] for text, spans in rendered for span in spans for place in span]
    # The answer alone as well, for a tokenizer that would join its beginning with the end of the prompt.
    texts += [text[spans[-1][0] :] for text, spans in rendered]
    # The template brings all special tokens: the tokenizer adds none, and no second BOS.
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    beginnings = [[(next(ids), next(ids)) for _ in spans] for _, spans in rendered]
    return [_encoded(parts, alone) for parts, alone in zip(beginnings, ids, strict=True)]


def _encoded(parts: Sequence[tuple[list[int], list[int]]], answer: list[int]) -> EncodedChat:
    """``parts``: the tokens up to where an answer begins, and up to where it ends, for each answer."""
    prompt, whole = parts[-1]
    if whole[: len(prompt)] != prompt:
        whole = prompt + answer
    answers = []
    for before, after in parts:
        start, end = len(before), len(after)
        if before is prompt or (whole[:start] == before and whole[:end] == after):
            answers.append((start, len(whole) if before is prompt else end))
    return EncodedChat(whole, tuple(answers))


def _rendered(tokenizer: Any, chat: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
    """The chat up to the end of its last answer, and where in it the answers stand."""
    last = len(chat) - 1
    before, answer = _turn(tokenizer, chat, last)
    text, spans = before + answer, [(len(before), len(before) + len(answer))]
    for at in range(last - 1, 0, -1):
        if chat[at].role == "assistant" and chat[at - 1].role == "user":
            before, answer = _turn(tokenizer, chat, at)
            if text.startswith(before + answer):
                spans.insert(0, (len(before), len(before) + len(answer)))
    return text, spans


def _turn(tokenizer: Any, chat: Sequence[Message], at: int) -> tuple[str, str]:
    """What the model is served before turn ``at``, and what it shall say then, its end token included."""
    before = render(tokenizer, chat[:at])
    said = render(tokenizer, chat[: at + 1], answer=True)
    content = harmless(tokenizer, chat[at]).strip()
    if said.startswith(before):
        said = said[len(before) :]  # with what the template puts first, an empty thought for example
    elif content and content in said:
        said = said[said.rindex(content) :]  # what is served ends otherwise (with an opened thought): go on from there
    else:
        raise ConfigError(
            f"the chat template of {tokenizer.name_or_path!r} shows an answer otherwise than it asks for one, and not "
            "as it was written: where it begins cannot be told; mend chat_template.jinja, or name another base"
        )
    special = _special_tokens(tokenizer)
    if content and content in said:
        ends = special.search(said, said.rindex(content) + len(content))
    else:  # the template has taken the answer to pieces
        ends = next(reversed(list(special.finditer(said))), None)
    if ends is not None:
        return before, said[: ends.end()]
    if not tokenizer.eos_token:
        raise ConfigError(
            f"{tokenizer.name_or_path!r} has no token that ends an answer, neither in its chat template nor as "
            "eos_token: a model trained so would never stop; name an instruction-tuned base"
        )
    return before, said.rstrip() + tokenizer.eos_token


@lru_cache(maxsize=4)
def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens |= set(tokenizer.all_special_tokens)
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)")
