from __future__ import annotations

import math
import random

import pytest

from pipelines.labels.candidate import Candidate
from pipelines.labels.drift import Distribution, balance, distribution, drift, drift_plot, length_bin
from pipelines.prompt import Message

LABELS = [f"category {number}" for number in range(40)]


def example(text: str, *labels: str, answer: str | None = None) -> Candidate:
    turns = () if answer is None else (Message("user", text), Message("assistant", answer))
    return Candidate(text, labels, text, False, "train", "human", None, "a:1", None, turns)


def drawn(number: int, labels: list[str], length: int, seed: int = 0) -> Distribution:
    chance = random.Random(seed)
    return distribution(example("x" * chance.randint(length, 3 * length), chance.choice(labels)) for _ in range(number))


def test_balance_names_the_categories_that_are_rare_or_missing() -> None:
    found = balance({"billing": 90, "shipping": 3}, categories=("shipping", "returns", "billing"), minimum=8)
    assert found.rare == {"shipping": 3, "returns": 0}
    assert found.imbalance == math.inf
    assert found.summary().startswith("3 categories, from 90 (billing) to 0 (returns); 2 have fewer than 8")
    assert balance({"a": 20, "b": 10}, minimum=8).imbalance == 2
    assert not balance({"a": 20, "b": 10}, minimum=8).rare
    assert balance({}, minimum=8).summary() == "no categories"


def test_few_examples_of_many_categories_are_no_drift_by_chance_alone() -> None:
    old = drawn(5000, LABELS, 40)
    found = drift(old, drawn(50, LABELS, 40, seed=1), maximum=0.2)
    assert found.distances["labels"] > 0.2, "the bare distance would cry wolf"
    assert found.beyond == ()
    assert "50 new examples to 5000" in found.summary()


def test_new_labels_or_longer_texts_are_drift_and_said_in_words() -> None:
    old = drawn(5000, LABELS, 40)
    narrow = drift(old, drawn(50, LABELS[:3], 40), maximum=0.2)
    assert narrow.beyond == ("labels",)
    assert "most moved: category " in narrow.summary()
    longer = drift(old, drawn(50, LABELS, 400), maximum=0.2)
    assert longer.beyond == ("lengths",)
    assert longer.distances["lengths"] == pytest.approx(1.0)
    assert drift(old, old, maximum=0.2).distances == {"labels": 0.0, "lengths": 0.0}


def test_chats_are_compared_by_the_lengths_of_prompts_and_answers() -> None:
    old = distribution(example("x" * 50, answer="y" * 100) for _ in range(50))
    new = distribution(example("x" * 50, answer="y" * 900) for _ in range(50))
    found = drift(old, new, maximum=0.2)
    assert found.beyond == ("answer lengths",)
    assert found.distances["lengths"] == 0


def test_nothing_to_compare_is_said_and_no_drift() -> None:
    found = drift(distribution([]), drawn(5, LABELS, 40), maximum=0.2)
    assert found.beyond == ()
    assert found.summary() == "nothing to compare: 5 new examples, 0 in the last training set"


def test_length_bins_are_half_an_octave_wide() -> None:
    assert [length_bin(number) for number in (0, 1, 2, 3, 4, 1000)] == [0, 0, 2, 3, 4, 19]


def test_the_picture_is_a_png_of_labels_and_chats() -> None:
    chats = distribution(example("x" * 50, answer="y" * 100) for _ in range(5))
    for picture in (drift_plot(drawn(50, LABELS, 40), drawn(9, LABELS, 80)), drift_plot(chats, chats)):
        assert picture.startswith(b"\x89PNG")
