"""Does evaluation see what training saw? Groups in two splits, and copies or near-copies across them.

Texts are compared by their sets of neighbouring words. Every pair of a Jaccard similarity of ``SIMILAR`` and more is
found, not only probably: two sets so similar share one of the few rarest members of each (prefix filtering: Chaudhuri,
Ganti, Kaushik, 2006, "A primitive operator for similarity joins in data cleaning"; Bayardo, Ma, Srikant, 2007,
"Scaling up all pairs similarity search"), so only texts that share a rare pair of words are compared at all.

Of chats the prompts count. Answers do not: support answers repeat, and a model that gives the right answer to another
question has learnt something. Word pairs that many prompts have are an instruction around what is asked, and no sign of
a copy.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pipelines.artifacts import Artifact
from pipelines.labels.examples import SPLITS, Example, Split, each_of_split, normalised
from pipelines.labels.similarity import SIMILAR

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.int64]

HELD_OUT: tuple[Split, ...] = ("validation", "test")

_BOILERPLATE_SHARE = 0.05  # of all prompts have a pair of words: it is an instruction's
_BOILERPLATE_ROWS = 20  # and no fewer than so many
_TOGETHER = 2_000_000  # pairs of texts that are compared at a time


@dataclass(frozen=True, slots=True)
class LeakedPair:
    """A training row and a held-out row that it gives away."""

    held_out_split: Split
    held_out: Example
    train: Example
    similarity: float
    """1.0 for texts equal but for case, whitespace and punctuation."""


@dataclass(frozen=True, slots=True)
class LeakageReport:
    """What leaks from training into validation or test."""

    groups: dict[str, tuple[Split, ...]]
    """Groups that are in more than one split."""
    pairs: tuple[LeakedPair, ...]
    """Every training row that repeats a held-out one, with one of each split that it repeats; most similar first."""

    @property
    def clean(self) -> bool:
        """Whether training may go on."""
        return not self.groups and not self.pairs

    def summary(self, limit: int = 5) -> str:
        """For people: the numbers, the first pairs, and what to do."""
        if self.clean:
            return "no group in two splits, no copy or near-copy of a held-out text in training"
        pairs = "".join(
            f"\n- {pair.similarity:.2f} {pair.held_out_split} {pair.held_out.text[:80]!r} ({pair.held_out.group}), "
            f"train {pair.train.text[:80]!r} ({pair.train.group})"
            for pair in self.pairs[:limit]
        )
        return (
            f"{len(self.groups)} groups in two splits, {len(self.pairs)} near-copies of held-out texts in training; "
            f"take one row of each pair out of its file, give both the same group, or set "
            f"labels.near_copies: leave_out:{pairs}"
        )


def find_leakage(artifact: Artifact) -> LeakageReport:
    """Compare test and validation rows of a training set with its training rows: what is found blocks training.

    Rows are read twice, and only those that leak are held.
    """
    places: dict[str, set[Split]] = defaultdict(set)

    def texts(split: Split) -> Iterator[str]:
        for example in each_of_split(artifact, split):
            places[example.group].add(split)
            yield example.text

    chats = artifact.manifest.get("task") == "generate"
    found = _near({split: texts(split) for split in SPLITS}, chats=chats)
    wanted: dict[Split, set[int]] = {split: set() for split in SPLITS}
    for split, _, held_out, train in found:
        wanted[split].add(held_out)
        wanted["train"].add(train)
    rows = {
        split: {n: row for n, row in enumerate(each_of_split(artifact, split)) if n in numbers} if numbers else {}
        for split, numbers in wanted.items()
    }
    groups = {
        group: tuple(split for split in SPLITS if split in seen)
        for group, seen in sorted(places.items())
        if len(seen) > 1
    }
    return LeakageReport(groups, tuple(_pairs(found, rows)))


def leaked_pairs(by_split: Mapping[Split, Sequence[Example]], *, chats: bool = False) -> list[LeakedPair]:
    """Training rows whose text nearly repeats a held-out one, once for each split, most similar first."""
    found = _near({split: (row.text for row in by_split[split]) for split in SPLITS}, chats=chats)
    return _pairs(found, {split: dict(enumerate(rows)) for split, rows in by_split.items()})


_Found = list[tuple[Split, float, int, int]]
"""Held-out split, similarity, and the places of the held-out and the training row in their splits."""


def _pairs(found: _Found, rows: Mapping[Split, Mapping[int, Example]]) -> list[LeakedPair]:
    pairs = [
        LeakedPair(split, rows[split][held_out], rows["train"][train], similarity)
        for split, similarity, held_out, train in found
    ]
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.held_out.id, pair.train.id))


def _near(texts: Mapping[Split, Iterable[str]], *, chats: bool) -> _Found:
    numbers: dict[bytes, int] = {}
    shingles = _Shingles()
    rows: dict[Split, array[int]] = {}
    for split, said in texts.items():
        rows[split] = array("q")
        for text in map(normalised, said):
            if not text:  # a chat of which the system's text asks everything
                rows[split].append(-1)
                continue
            key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if key not in numbers:
                numbers[key] = len(numbers)
                shingles.add(text)
            rows[split].append(numbers[key])
    del numbers
    shingles.close(without_boilerplate=chats)
    in_train = sorted(set(rows["train"]) - {-1})
    found: _Found = []
    for split in HELD_OUT:
        first: dict[int, int] = {}
        for place, number in enumerate(rows[split]):
            first.setdefault(number, place)
        first.pop(-1, None)
        near = {copy: (similarity, first[known]) for similarity, known, copy in shingles.near(list(first), in_train)}
        if near:
            found += [(split, *near[number], place) for place, number in enumerate(rows["train"]) if number in near]
    return found


class _Shingles:
    """The sets of neighbouring words of texts, each as a run of numbers in one array, the rarest first.

    A number is a pair's place when pairs are sorted by how many texts have them, so that sorting a set by numbers puts
    the rarest first.
    """

    def __init__(self) -> None:
        self._words: dict[str, int] = {}
        self._pairs = array("q")
        self._sizes = array("q")

    def add(self, text: str) -> None:
        """One more normalised text; the first has the number 0."""
        words = self._words
        said = [words.setdefault(word, len(words)) for word in text.split()]
        pairs = {one << 32 | other for one, other in pairwise(said)} or {said[0] << 32 | said[0]}
        self._pairs.extend(pairs)
        self._sizes.append(len(pairs))

    def close(self, *, without_boilerplate: bool) -> None:
        """After the last text: what is needed to compare."""
        import numpy as np

        lengths = np.array(self._sizes, dtype=np.int64)
        _, places, counts = np.unique(
            np.frombuffer(self._pairs or b"", dtype=np.int64), return_inverse=True, return_counts=True
        )
        self._words, self._pairs, self._sizes = {}, array("q"), array("q")
        rank = np.empty(len(counts), dtype=np.int64)
        rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
        self._members_known = max(1, len(counts))
        of_text = np.repeat(np.arange(len(lengths)), lengths)
        if without_boilerplate:
            usual = counts[places] > max(_BOILERPLATE_ROWS, _BOILERPLATE_SHARE * len(lengths))
            left = np.bincount(of_text[~usual], minlength=len(lengths))
            keep = ~usual | (left[of_text] == 0)  # a prompt that says nothing else is compared by all of it
            of_text, places = of_text[keep], places[keep]
            lengths = np.bincount(of_text, minlength=len(lengths))
        # Sorted by text, then by rank: both in one number.
        numbered = of_text * self._members_known + rank[places]
        del of_text, places
        numbered.sort()
        self._members = numbered % self._members_known
        self._lengths = lengths
        self._starts = np.concatenate([[0], np.cumsum(lengths)])

    def near(self, held_out: Sequence[int], train: Sequence[int]) -> Iterator[tuple[float, int, int]]:
        """Similarity, held-out text and training text, for each training text that is near a held-out one."""
        import numpy as np

        copies = set(held_out) & set(train)
        yield from ((1.0, number, number) for number in sorted(copies))
        left = np.array([number for number in train if number not in copies], dtype=np.int64)
        members, owners = self._prefixes(left)
        order = np.argsort(members, kind="stable")
        members, owners = members[order], owners[order]
        open_ = np.zeros(len(self._lengths), dtype=bool)
        open_[left] = True
        asked, askers = self._prefixes(np.array(held_out, dtype=np.int64))
        first, last = np.searchsorted(members, asked), np.searchsorted(members, asked, side="right")
        ends = np.cumsum(last - first)
        done = 0
        while done < len(asked):  # as many members at once as make no more pairs than fit
            base = ends[done - 1] if done else 0
            until = max(done + 1, int(np.searchsorted(ends, base + _TOGETHER)))
            counts = (last - first)[done:until]
            one = np.repeat(askers[done:until], counts)
            places = np.arange(len(one)) + np.repeat(first[done:until] - (ends[done:until] - counts - base), counts)
            other = owners[places]
            done = until
            fits = open_[other]
            one, other = one[fits], other[fits]
            short = np.minimum(self._lengths[one], self._lengths[other])
            fits = short >= SIMILAR * np.maximum(self._lengths[one], self._lengths[other]) - 1e-9
            pairs = np.unique(np.stack([one[fits], other[fits]]), axis=1)
            for similarity, known, copy in self._similar(pairs[0], pairs[1]):
                if open_[copy]:
                    open_[copy] = False
                    yield similarity, known, copy

    def _prefixes(self, texts: Numbers) -> tuple[Numbers, Numbers]:
        """The rarest members of each text, so many that a near-copy shares one of them, and the text of each."""
        import numpy as np

        lengths = self._lengths[texts]
        sizes = lengths - np.ceil(SIMILAR * lengths - 1e-9).astype(np.int64) + 1
        sizes = np.minimum(sizes, lengths)
        owners = np.repeat(texts, sizes)
        offsets = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self._members[self._starts[owners] + offsets], owners

    def _similar(self, one: Numbers, other: Numbers) -> Iterator[tuple[float, int, int]]:
        """Of pairs of texts those that are near each other."""
        import numpy as np

        both = self._lengths[one] + self._lengths[other]
        ends = np.cumsum(both)
        done = 0
        while done < len(one):
            base = ends[done - 1] if done else 0
            until = max(done + 1, int(np.searchsorted(ends, base + _TOGETHER)))
            some = slice(done, until)
            done = until
            # What a pair has in common stands there twice.
            found = np.sort(np.concatenate([self._numbered(one[some]), self._numbered(other[some])]))
            common = np.bincount(
                found[1:][found[1:] == found[:-1]] // self._members_known, minlength=until - some.start
            )
            similarity = common / (both[some] - common)
            near = np.flatnonzero(similarity >= SIMILAR)
            near = near[np.argsort(-similarity[near], kind="stable")]
            yield from zip(similarity[near].tolist(), one[some][near].tolist(), other[some][near].tolist(), strict=True)

    def _numbered(self, texts: Numbers) -> Numbers:
        """The members of each of ``texts``, told apart by its place among them."""
        import numpy as np

        lengths = self._lengths[texts]
        places = np.repeat(np.arange(len(texts)), lengths)
        offsets = np.arange(len(places)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return places * self._members_known + self._members[self._starts[texts][places] + offsets]
