"""Texts that nearly repeat each other: MinHash finds candidates, their exact Jaccard similarity decides.

Broder, 1997, "On the resemblance and containment of documents": sets of neighbouring words, compared by the minima of
hashes; locality-sensitive hashing looks up what shares some of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any
from zlib import crc32

from pipelines.labels.examples import normalised

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Shingles = npt.NDArray[np.uint64]
    Hashes = npt.NDArray[np.uint32]

SIMILAR = 0.8
"""Jaccard similarity of word-pair sets from which two texts count as near-copies."""

_CANDIDATE = 0.6  # MinHash only estimates: look up from here, then compare exactly
_PERMUTATIONS = 64
_TEXTS_AT_ONCE = 4096


class NearCopies:
    """Texts in the order in which they were added, looked up by similarity."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self._index = MinHashLSH(threshold=_CANDIDATE, num_perm=_PERMUTATIONS)
        self._shingles: dict[int, Shingles] = {}

    def add(self, number: int, text: Signed) -> None:
        """Hold ``text`` under ``number``."""
        self._index.insert(number, text.minhash, check_duplication=False)
        self._shingles[number] = text.shingles

    def find(self, text: Signed) -> list[tuple[float, int]]:
        """Similarity and number of the held texts that ``text`` nearly repeats, most similar first, then earliest."""
        found = []
        for number in self._index.query(text.minhash):
            similarity = _jaccard(text.shingles, self._shingles[number])
            if similarity >= SIMILAR:
                found.append((similarity, number))
        return sorted(found, key=lambda pair: (-pair[0], pair[1]))


class Signed:
    """A text as it is compared."""

    __slots__ = ("minhash", "shingles")

    def __init__(self, shingles: Shingles, minhash: Any) -> None:
        self.shingles = shingles
        """Distinct pairs of neighbouring words of the normalised text, hashed, sorted; of a single word, the word."""
        self.minhash = minhash


def sign(texts: Sequence[str]) -> Iterator[tuple[int, Signed]]:
    """What ``texts`` are compared by, with their places; case, whitespace and punctuation do not count.

    Only those that share a band with another one, in their order: no look-up would find the rest, nor by the rest.
    """
    import numpy as np
    from datasketch import MinHash

    blank = MinHash(num_perm=_PERMUTATIONS)
    minima = _minima(texts, blank.permutations)
    for place in np.flatnonzero(_shares_a_band(minima)).tolist():
        (pairs, _), minhash = _pairs([texts[place]]), blank.copy()
        minhash.hashvalues = minima[place]
        yield place, Signed(np.unique(pairs), minhash)


def _minima(texts: Sequence[str], permutations: Any) -> Hashes:
    """The smallest hash of each text's pairs of words by each of ``permutations``: (texts, permutations)."""
    import numpy as np

    minima = np.empty((len(texts), _PERMUTATIONS), dtype=np.uint32)
    multipliers, additions = (each.astype(np.uint32) for each in permutations)
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[first : first + _TEXTS_AT_ONCE]
        pairs, starts = _pairs(some)
        pairs = (pairs ^ (pairs >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's mixing
        pairs = (pairs ^ (pairs >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = (pairs >> np.uint64(32)).astype(np.uint32)
        for number in range(_PERMUTATIONS):
            hashed = mixed * multipliers[number] + additions[number]
            minima[first : first + len(some), number] = np.minimum.reduceat(hashed, starts)
    return minima


def _pairs(texts: Sequence[str]) -> tuple[Shingles, Any]:
    """Hashed pairs of neighbouring words of the normalised texts, one after the other, and where each text starts."""
    import numpy as np

    words = [normalised(text).split() or [""] for text in texts]
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    hashes = {word: crc32(word.encode("utf-8", "replace")) for word in set(chain.from_iterable(words))}
    numbers = np.fromiter(
        map(hashes.__getitem__, chain.from_iterable(words)), dtype=np.uint64, count=int(lengths.sum())
    )
    ends = np.cumsum(lengths)
    following = np.append(numbers[1:], numbers[-1:])
    alone = ends[lengths == 1] - 1
    following[alone] = numbers[alone]
    whole = np.ones(len(numbers), dtype=bool)
    whole[ends[lengths > 1] - 1] = False  # a text's last word begins no pair
    sizes = np.maximum(lengths - 1, 1)
    return (numbers << np.uint64(32) | following)[whole], np.cumsum(sizes) - sizes


def _shares_a_band(minima: Hashes) -> npt.NDArray[np.bool_]:
    """Of each text whether another one has the same minima in one of the ranges that the index looks up."""
    import numpy as np
    from datasketch import MinHashLSH

    shares = np.zeros(len(minima), dtype=bool)
    for start, end in MinHashLSH(threshold=_CANDIDATE, num_perm=_PERMUTATIONS).hashranges:
        key = np.zeros(len(minima), dtype=np.uint64)
        for number in range(start, end):
            key = (key ^ minima[:, number]) * np.uint64(0x9E3779B97F4A7C15)
            key ^= key >> np.uint64(29)
        order = np.argsort(key, kind="stable")
        equal = key[order[1:]] == key[order[:-1]]
        shares[order[1:][equal]] = shares[order[:-1][equal]] = True
    return shares


def _jaccard(one: Shingles, other: Shingles) -> float:
    import numpy as np

    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / max(1, len(one) + len(other) - common)
