"""Texts to the embedder's tokens: counted for the chunker, numbered for the model."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_WORD = re.compile(r"[^ \n!-/:-@\[-`{-~]+|[!-/:-@\[-`{-~]")
"""Between blanks and newlines; a sign of ASCII is a word. White space of other kinds may be part of one."""
_AT_ONCE = 256
"""Words that are tokenized as one text: alone, each costs as much as a dozen tokens."""
_REMEMBERED = 1 << 18
"""Characters of words whose tokens are kept: some 40,000 words, 8 MB with their tokens."""


class TokenCounter:
    """Counts as the embedder's own tokenizer does, without its truncation and padding.

    Where the tokenizer takes each word by itself, its words are remembered: an ingest sees each text twice, and most
    words many times. Threads may share it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._words: dict[str, list[int]] = {}
        self._characters = 0
        tokenizer.no_truncation()
        tokenizer.no_padding()

    @classmethod
    def of_model(cls, folder: Path) -> TokenCounter:
        """The tokenizer of the model in ``folder``.

        Raises:
            ConfigError: the model has no ``tokenizer.json``.
        """
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"{folder} has no tokenizer.json: choose an embedder with a fast tokenizer")
        return cls(Tokenizer.from_file(str(path)))

    def counts(self, texts: Sequence[str], *, special: bool = True) -> list[int]:
        """Tokens of each text, special tokens included unless told otherwise."""
        added = sum(map(len, self._around)) if special else 0
        return [sum(map(len, words)) + added for words in self._tokens(texts)]

    def ids(self, texts: Sequence[str], *, limit: int) -> list[list[int]]:
        """Token ids of each text with the special tokens around them; what is beyond ``limit`` is cut off."""
        first, last = self._around
        room = limit - len(first) - len(last)
        return [[*first, *islice(chain.from_iterable(words), room), *last] for words in self._tokens(texts)]

    @cached_property
    def separators(self) -> tuple[int, int]:
        """Tokens of a newline and of a blank line between words (none for BERT, some for byte-level tokenizers)."""
        word, one, two = self.counts(["a", "a\na", "a\n\na"], special=False)
        return max(0, one - 2 * word), max(0, two - 2 * word)

    @cached_property
    def adds_up(self) -> bool:
        """Whether texts joined by white space have as many tokens as they have alone: BERT's never reach across it."""
        parts = (self._tokenizer.normalizer, self._tokenizer.pre_tokenizer, self._tokenizer.model)
        added = self._tokenizer.get_added_tokens_decoder().values()
        return [type(each).__name__ for each in parts] == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and not (
            any(each.lstrip or each.rstrip or each.single_word or each.normalized for each in added)
        )

    def cuts(self, text: str, every: int) -> list[str]:
        """``text`` in pieces of about ``every`` tokens, cut between tokens."""
        offsets = [start for start, _ in self._tokenizer.encode(text, add_special_tokens=False).offsets]
        starts = sorted({0, *offsets[every::every]})
        return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens before a text and after it."""
        bare, whole = (self._tokenizer.encode("a", add_special_tokens=each).ids for each in (False, True))
        start = next(each for each in range(len(whole)) if whole[each : each + len(bare)] == bare)
        return whole[:start], whole[start + len(bare) :]

    @cached_property
    def _added(self) -> list[str]:
        return [each.content for each in self._tokenizer.get_added_tokens_decoder().values()]

    def _tokens(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """Of each text the tokens of its words, special ones aside."""
        if not self.adds_up:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)  # without offsets
            return [[each.ids] for each in encodings]
        split = [[text] if any(each in text for each in self._added) else _WORD.findall(text) for text in texts]
        if self._characters > _REMEMBERED:  # begun anew; another thread keeps what it is looking up in
            self._words, self._characters = {}, 0
        known = self._words
        new = list({word for words in split for word in words if word not in known})
        known |= self._of_words(new)
        self._characters += sum(map(len, new))
        return [[known[word] for word in words] for words in split]

    def _of_words(self, words: list[str]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        groups = [words[start : start + _AT_ONCE] for start in range(0, len(words), _AT_ONCE)]
        texts = [" ".join(group) for group in groups]
        for group, encoding in zip(groups, self._tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            ids, starts = encoding.ids, [start for start, _ in encoding.offsets]
            position = first = 0
            for word in group:
                position += len(word) + 1
                end = bisect_left(starts, position, lo=first)
                found[word] = ids[first:end]
                first = end
        return found
