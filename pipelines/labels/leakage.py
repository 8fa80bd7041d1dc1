"""Does evaluation see what training saw? Groups in two splits, and copies or near-copies across them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.artifacts import Artifact
from pipelines.labels.examples import SPLITS, Example, Split, normalised, read_split
from pipelines.labels.similarity import NearCopies, sign


@dataclass(frozen=True, slots=True)
class LeakedPair:
    """A training row and the held-out row that it gives away."""

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
    """Copies and near-copies, most similar first."""

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
    """Compare test and validation rows of a training set with its training rows: what is found blocks training."""
    by_split = {split: read_split(artifact, split) for split in SPLITS}
    return LeakageReport(_shared_groups(by_split), tuple(leaked_pairs(by_split)))


def _shared_groups(by_split: Mapping[Split, Sequence[Example]]) -> dict[str, tuple[Split, ...]]:
    places: dict[str, set[Split]] = defaultdict(set)
    for split, found in by_split.items():
        for example in found:
            places[example.group].add(split)
    return {
        group: tuple(split for split in SPLITS if split in seen)
        for group, seen in sorted(places.items())
        if len(seen) > 1
    }


def leaked_pairs(by_split: Mapping[Split, Sequence[Example]]) -> list[LeakedPair]:
    """Copies and near-copies of held-out texts in training, most similar first: see ``pipelines.labels.similarity``."""
    train: dict[str, list[Example]] = defaultdict(list)
    for example in by_split["train"]:
        train[normalised(example.text)].append(example)
    texts = list(train)
    index = NearCopies()
    for number, text in enumerate(sign(texts)):
        index.add(number, text)
    pairs: list[LeakedPair] = []
    held_out: tuple[Split, ...] = ("validation", "test")
    for split in held_out:
        signed = sign([example.text for example in by_split[split]])
        for example, text in zip(by_split[split], signed, strict=True):
            for similarity, number in index.find(text):
                pairs += [LeakedPair(split, example, other, similarity) for other in train[texts[number]]]
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.held_out.id, pair.train.id))
