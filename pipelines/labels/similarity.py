"""Texts that nearly repeat each other: MinHash finds candidates, their exact Jaccard similarity decides.

Broder, 1997, "On the resemblance and containment of documents": sets of neighbouring words, compared by the minima of
hashes; locality-sensitive hashing looks up what shares some of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

from pipelines.labels.examples import normalised

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Shingles = npt.NDArray[np.uint64]

SIMILAR = 0.8
"""Jaccard similarity of word-pair sets from which two texts count as near-copies."""

_CANDIDATE = 0.6  # MinHash only estimates: look up from here, then compare exactly
_PERMUTATIONS = 64


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


def sign(texts: Sequence[str]) -> Iterator[Signed]:
    """What ``texts`` are compared by; case, whitespace and punctuation do not count."""
    import numpy as np
    from datasketch import MinHash

    hashes: dict[str, int] = {}
    blank = MinHash(num_perm=_PERMUTATIONS, hashfunc=int)  # the words are hashed here, each of them once
    for text in texts:
        words = normalised(text).split()
        for word in words:
            if word not in hashes:
                hashes[word] = crc32(word.encode("utf-8", "replace"))
        numbers = np.fromiter((hashes[word] for word in words), dtype=np.uint64, count=len(words))
        following = numbers[1:] if len(numbers) > 1 else numbers
        shingles = np.unique(numbers[: max(1, len(numbers) - 1)] << np.uint64(32) | following)
        minhash = blank.copy()
        folded = (shingles >> np.uint64(32)) * np.uint64(0x9E3779B1) + shingles  # both words reach the low half
        minhash.update_batch((folded & np.uint64(0xFFFFFFFF)).tolist())
        yield Signed(shingles, minhash)


def _jaccard(one: Shingles, other: Shingles) -> float:
    import numpy as np

    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / max(1, len(one) + len(other) - common)
