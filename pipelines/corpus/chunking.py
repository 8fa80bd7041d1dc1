"""Documents to chunks: token-exact, under their headings, and local: an edit moves only the boundaries near it.

Where a section does not fit into one chunk, its boundaries depend on content, not on position (content-defined
chunking: Muthitacharoen et al., "A Low-bandwidth Network File System", SOSP 2001): of the places where the chunk may
end, the one whose next piece has the smallest hash is taken. After an insertion the boundaries fall into step again
within a few chunks, so the rest keeps its text, its ids and its vectors.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from pipelines.corpus.documents import Block, Chunk, Document, Section, chunk_ids
from pipelines.corpus.tokens import TokenCounter

CHUNKER_VERSION = 1
"""Raised when the same document is cut differently: part of the pipeline fingerprint."""

_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])")
_CHARACTERS = 20  # per token at most: a blob that the tokenizer takes for one unknown word still fills its chunk
_ANCHOR = 40  # a piece is recognised by its first characters, so that a value edited at its end moves no boundary


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    separator: str
    """What joins it to its predecessor in the same chunk."""
    tokens: int
    starts_block: bool


def chunk_document(document: Document, counter: TokenCounter, *, chunk_tokens: int) -> list[Chunk]:
    """Cut ``document`` into chunks of at most ``chunk_tokens`` tokens, special tokens and heading path included.

    Nothing but white space is lost. Each chunk starts with its heading path; a new one starts at each heading, then at
    paragraphs, list items and rows, then at lines, sentences, words and, last, between tokens.
    """
    texts: list[str] = []
    headings: list[tuple[str, ...]] = []
    for section, after in zip_longest(document.sections, document.sections[1:]):
        if not section.blocks and after is not None and after.headings[: len(section.headings)] == section.headings:
            continue  # a heading that only holds other headings stands at the head of their chunks
        found = _chunk_section(section, counter, chunk_tokens)
        texts += found
        headings += [section.headings] * len(found)
    ids = chunk_ids(document.source, document.document_id, texts)
    return [Chunk(*each, ordinal) for ordinal, each in enumerate(zip(ids, texts, headings, strict=True))]


def _chunk_section(section: Section, counter: TokenCounter, chunk_tokens: int) -> list[str]:
    path, path_tokens, whole = _heading_path(section.headings, counter, chunk_tokens // 2)
    blocks = section.blocks if whole else (Block(" > ".join(section.headings)), *section.blocks)
    if not blocks:
        return [path] if path else []
    prefix = f"{path}\n\n" if path else ""
    limit = chunk_tokens - path_tokens - counter.separators[1]
    pieces = _pieces(blocks, counter, limit)
    groups = [pieces[start:end] for start, end in _boundaries(pieces, limit)]
    return _exact(prefix, groups, counter, chunk_tokens, path_tokens)


def _heading_path(headings: tuple[str, ...], counter: TokenCounter, most: int) -> tuple[str, int, bool]:
    """The path in at most ``most`` tokens, innermost headings first to stay; its tokens; and whether it is whole."""
    paths = [" > ".join(headings[start:]) for start in range(len(headings))] or [""]
    for start, path in enumerate(paths):
        if (tokens := _sizes([path], counter, special=True)[0]) <= most:
            return path, tokens, start == 0
    text = paths[-1]
    while (tokens := _sizes([text], counter, special=True)[0]) > most:
        text = text[: len(text) * 3 // 4]
    return text.rstrip(), tokens, False


def _pieces(blocks: Sequence[Block], counter: TokenCounter, limit: int) -> list[_Piece]:
    single, double = counter.separators
    pieces: list[_Piece] = []
    for block, tokens in zip(blocks, _sizes([block.text for block in blocks], counter), strict=True):
        separator, cost = ("\n", single) if block.tight else ("\n\n", double)
        if tokens + cost <= limit:
            pieces.append(_Piece(block.text, separator, tokens + cost, starts_block=True))
            continue
        parts = _split(block.text, counter, limit - max(single, double))
        costs = {"\n": single, "\n\n": double, " ": 0, "": 0}
        for position, (text, between, count) in enumerate(parts):
            joint = between if position else separator
            pieces.append(_Piece(text, joint, count + costs[joint], starts_block=position == 0))
    return pieces


def _sizes(texts: Sequence[str], counter: TokenCounter, *, special: bool = False) -> list[int]:
    counts = counter.counts(texts, special=special)
    return [max(count, len(text) // _CHARACTERS) for count, text in zip(counts, texts, strict=True)]


_SPLITTERS: tuple[tuple[str, Callable[[str], list[str]]], ...] = (
    ("\n", lambda text: text.split("\n")),
    (" ", _SENTENCE_END.split),
    (" ", lambda text: text.split()),
)


def _split(text: str, counter: TokenCounter, limit: int, level: int = 0) -> list[tuple[str, str, int]]:
    """``text`` in parts of at most ``limit`` tokens: (part, what joins it to the one before, tokens)."""
    if level == len(_SPLITTERS):
        return [(part, "", count) for part, count in _cut(text, counter, limit)]
    separator, splitter = _SPLITTERS[level]
    parts = [part.rstrip() for part in splitter(text) if part.strip()]
    found: list[tuple[str, str, int]] = []
    for part, count in zip(parts, _sizes(parts, counter), strict=True):
        if count <= limit:
            found.append((part, separator, count))
        else:
            (first, _, tokens), *rest = _split(part, counter, limit, level + 1)
            found += [(first, separator, tokens), *rest]
    return found


def _cut(text: str, counter: TokenCounter, limit: int) -> list[tuple[str, int]]:
    """One word of more than ``limit`` tokens, cut between tokens."""
    found: list[tuple[str, int]] = []
    for part in counter.cuts(text, limit):
        count = _sizes([part], counter)[0]
        if count <= limit or len(part) == 1:
            found.append((part, count))
        else:  # the cut itself made tokens of their own
            half = len(part) // 2
            found += _cut(part[:half], counter, limit) + _cut(part[half:], counter, limit)
    return found


def _boundaries(pieces: Sequence[_Piece], limit: int) -> list[tuple[int, int]]:
    """Where chunks start and end: between half full and full, before the piece with the smallest hash."""
    spans: list[tuple[int, int]] = []
    start = 0
    while start < len(pieces):
        total, end, candidates = 0, start, []
        while end < len(pieces) and (end == start or total + pieces[end].tokens <= limit):
            total += pieces[end].tokens
            end += 1
            if total * 2 >= limit:
                candidates.append(end)
        if end < len(pieces) and candidates:
            end = min(candidates, key=lambda each: (not pieces[each].starts_block, _anchor(pieces[each]), -each))
        spans.append((start, end))
        start = end
    return spans


def _anchor(piece: _Piece) -> bytes:
    return hashlib.blake2b(piece.text[:_ANCHOR].encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _exact(
    prefix: str,
    groups: Sequence[Sequence[_Piece]],
    counter: TokenCounter,
    chunk_tokens: int,
    path_tokens: int | None = None,
) -> list[str]:
    """The groups' texts, checked as a whole: where joining made more tokens than the pieces have, a group is halved.

    Nothing is counted again where ``path_tokens`` and the pieces' own add up.
    """
    texts = [prefix + group[0].text + "".join(piece.separator + piece.text for piece in group[1:]) for group in groups]
    sizes = [_sum(group, text, path_tokens, counter) for group, text in zip(groups, texts, strict=True)]
    unsure = [number for number, size in enumerate(sizes) if size is None or size > chunk_tokens]
    exact = dict(zip(unsure, _sizes([texts[each] for each in unsure], counter, special=True), strict=True))
    found: list[str] = []
    for number, (group, whole) in enumerate(zip(groups, texts, strict=True)):
        if exact.get(number, 0) <= chunk_tokens or (len(group) == 1 and len(group[0].text) == 1):
            found.append(whole)
        elif len(group) > 1:
            half = len(group) // 2
            found += _exact(prefix, (group[:half], group[half:]), counter, chunk_tokens)
        else:
            text, half = group[0].text, len(group[0].text) // 2
            halves = [[_Piece(each, "", 0, starts_block=False)] for each in (text[:half], text[half:])]
            found += _exact(prefix, halves, counter, chunk_tokens)
    return found


def _sum(group: Sequence[_Piece], text: str, path_tokens: int | None, counter: TokenCounter) -> int | None:
    """At least the size of a group's text, or None where that cannot be told from the pieces."""
    if path_tokens is None or not counter.adds_up or any(not piece.separator for piece in group[1:]):
        return None
    return max(path_tokens + sum(piece.tokens for piece in group), len(text) // _CHARACTERS)
