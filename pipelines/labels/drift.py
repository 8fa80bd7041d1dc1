"""What the accepted examples look like as a set: how they spread over categories, and whether new ones differ.

Nothing here refuses anything: these are numbers, words and a picture for checks that warn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.figures import canvas, png
from pipelines.prompt import Message

_DRAWS = 200
_SHOWN = 30


class Labelled(Protocol):
    """An ``Example``, a ``Candidate``, or anything else that says the same."""

    @property
    def text(self) -> str:
        """What is labelled, or a chat's prompt."""

    @property
    def labels(self) -> tuple[str, ...]:
        """None for a chat."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """Of a chat, the answer last."""


@dataclass(frozen=True, slots=True)
class Balance:
    """How examples spread over the categories."""

    counts: Mapping[str, int]
    """Examples of each category, most first; every category is there."""
    minimum: int

    @property
    def rare(self) -> dict[str, int]:
        """Categories with fewer than the minimum."""
        return {category: count for category, count in self.counts.items() if count < self.minimum}

    @property
    def imbalance(self) -> float:
        """The largest category by the smallest; infinite where one is empty, 1 for none."""
        if not self.counts:
            return 1.0
        smallest = min(self.counts.values())
        return max(self.counts.values()) / smallest if smallest else math.inf

    def summary(self) -> str:
        """For people."""
        if not self.counts:
            return "no categories"
        largest, smallest = next(iter(self.counts.items())), list(self.counts.items())[-1]
        spread = f"{len(self.counts)} categories, from {largest[1]} ({largest[0]}) to {smallest[1]} ({smallest[0]})"
        if not self.rare:
            return spread
        named = ", ".join(f"{category} {count}" for category, count in list(self.rare.items())[-10:])
        return (
            f"{spread}; {len(self.rare)} have fewer than {self.minimum} (minimum_per_category): {named}; "
            "label more of them, merge them, or set fine_tune.class_weights: balanced"
        )


def balance(counts: Mapping[str, int], *, categories: Iterable[str] = (), minimum: int) -> Balance:
    """``counts`` of accepted training examples by category; those of ``categories`` that do not occur count as 0."""
    every = {**dict.fromkeys(categories, 0), **counts}
    return Balance(dict(sorted(every.items(), key=lambda item: (-item[1], item[0]))), minimum)


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a set of examples is compared by."""

    labels: Mapping[str, int]
    """Examples of each label; empty for chats."""
    lengths: Mapping[int, int]
    """Examples of each length bin of the text or prompt: see ``length_bin``."""
    answers: Mapping[int, int]
    """Examples of each length bin of the answer; empty for texts with labels."""

    @property
    def size(self) -> int:
        """Examples."""
        return sum(self.lengths.values())


def length_bin(characters: int) -> int:
    """Bins half an octave wide: 2 log2 of the number of characters, rounded down."""
    return int(2 * math.log2(max(1, characters)))


def distribution(examples: Iterable[Labelled]) -> Distribution:
    """Count ``examples``."""
    labels: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    answers: Counter[int] = Counter()
    for example in examples:
        labels.update(example.labels)
        lengths[length_bin(len(example.text))] += 1
        if example.messages:
            answers[length_bin(len(example.messages[-1].content))] += 1
    return Distribution(labels, lengths, answers)


@dataclass(frozen=True, slots=True)
class Drift:
    """How far new examples are from the last training set."""

    distances: Mapping[str, float]
    """Jensen-Shannon distance, 0 to 1, of labels, lengths and answer lengths."""
    chance: Mapping[str, float]
    """What as many examples, drawn from the last training set, reach in one of twenty draws."""
    new: int
    old: int
    maximum: float
    moved: tuple[str, ...]
    """Labels whose share changed most, such as ``billing 12% to 40%``."""

    @property
    def beyond(self) -> tuple[str, ...]:
        """What drifted further than allowed, and further than chance explains."""
        return tuple(name for name, far in self.distances.items() if far > max(self.maximum, self.chance[name]))

    def summary(self) -> str:
        """For people."""
        if not self.distances:
            return f"nothing to compare: {self.new} new examples, {self.old} in the last training set"
        numbers = ", ".join(
            f"{name} {far:.2f} (chance {self.chance[name]:.2f})" for name, far in self.distances.items()
        )
        moved = f"; most moved: {', '.join(self.moved)}" if self.moved and "labels" in self.beyond else ""
        return (
            f"Jensen-Shannon distance of {self.new} new examples to {self.old} in the last training set: {numbers}; "
            f"{self.maximum:g} is allowed (maximum_drift){moved}"
        )


def drift(old: Distribution, new: Distribution, *, maximum: float) -> Drift:
    """Compare ``new`` examples with the ``old`` ones that were trained on.

    The distance is the square root of the Jensen-Shannon divergence in bits (Lin, 1991, "Divergence measures based on
    the Shannon entropy"). Few examples over many categories are far from anything, so that the distance of as many
    random draws from ``old`` stands beside it.
    """
    distances: dict[str, float] = {}
    chance: dict[str, float] = {}
    aspects: dict[str, tuple[Mapping[Any, int], Mapping[Any, int]]] = {
        "labels": (old.labels, new.labels),
        "lengths": (old.lengths, new.lengths),
        "answer lengths": (old.answers, new.answers),
    }
    for name, (before, after) in aspects.items():
        if any(before.values()) and any(after.values()):
            distances[name], chance[name] = _distance(before, after)
    return Drift(distances, chance, new.size, old.size, maximum, _moved(old.labels, new.labels))


def _distance(before: Mapping[Any, int], after: Mapping[Any, int]) -> tuple[float, float]:
    import numpy as np
    from scipy.spatial.distance import jensenshannon

    keys = sorted({*before, *after})
    p = np.array([before.get(key, 0) for key in keys], dtype=float)
    q = np.array([after.get(key, 0) for key in keys], dtype=float)
    drawn = np.random.default_rng(0).multinomial(int(q.sum()), p / p.sum(), size=_DRAWS)
    by_chance = jensenshannon(drawn, np.broadcast_to(p, drawn.shape), base=2, axis=1)
    return float(np.nan_to_num(jensenshannon(p, q, base=2))), float(np.quantile(np.nan_to_num(by_chance), 0.95))


def _shares(counts: Mapping[Any, int]) -> dict[Any, float]:
    total = sum(counts.values())
    return {key: count / total for key, count in counts.items()} if total else {}


def _moved(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[str, ...]:
    was, now = _shares(before), _shares(after)
    by_change = sorted({*was, *now}, key=lambda label: (-abs(now.get(label, 0) - was.get(label, 0)), label))
    return tuple(f"{label} {was.get(label, 0):.0%} to {now.get(label, 0):.0%}" for label in by_change[:5])


def drift_plot(old: Distribution, new: Distribution) -> bytes:
    """PNG: shares of labels (the most frequent) and of lengths, of the last training set and of new examples."""
    figure, whole = canvas(10, 4.2)
    whole.remove()
    panels: list[tuple[str, Sequence[Any], Mapping[Any, int], Mapping[Any, int]]] = []
    lengths = sorted({*old.lengths, *new.lengths})
    if old.labels or new.labels:
        often = Counter(old.labels) + Counter(new.labels)
        panels.append(("label", [label for label, _ in often.most_common(_SHOWN)], old.labels, new.labels))
    panels.append(("characters" if not old.answers else "characters of the prompt", lengths, old.lengths, new.lengths))
    if old.answers or new.answers:
        both = sorted({*old.answers, *new.answers})
        panels.append(("characters of the answer", both, old.answers, new.answers))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, keys, before, after) in zip(axes, panels, strict=True):
        for offset, (name, counts) in ((-0.2, ("last training set", before)), (0.2, ("new", after))):
            shares = _shares(counts)
            places = [place + offset for place in range(len(keys))]
            ax.bar(places, [shares.get(key, 0) for key in keys], width=0.4, label=name)
        words = [key if isinstance(key, str) else f"{2 ** (key / 2):.0f}+" for key in keys]
        ax.set_xticks(range(len(keys)), words, rotation=90, fontsize=7)
        ax.set_title(title)
        ax.set_ylabel("share")
    axes[0].legend()
    return png(figure)
