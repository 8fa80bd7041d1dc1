from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from hypothesis import given as drawn
from hypothesis import strategies as st

from pipelines.artifacts import Artifact
from pipelines.labels.examples import Example, Split, read_split
from pipelines.labels.leakage import find_leakage, leaked_pairs
from pipelines.labels.snapshot import freeze_training_set
from pipelines.labels.trigger import mark_trained, untrained

Letters = Callable[..., list[dict[str, Any]]]
TEXT = (
    "The courier left my parcel with a neighbour who has been away since Monday, and nobody at the depot can tell me "
    "whether it is insured"
)


def freeze(inbox: Any, **settings: Any) -> Artifact:
    return freeze_training_set(
        inbox.settings.model_copy(update=settings),
        use_case="mail",
        catalog=inbox.catalog,
        folder=inbox.base / "training_set",
    )


def given(text: str, split: str, group: str) -> dict[str, str]:
    return {"text": text, "label": "shipping", "split": split, "group": group}


def test_examples_split_by_their_groups_do_not_leak(inbox: Any, letters: Letters) -> None:
    """T1."""
    inbox.write("a.jsonl", *letters(200))
    inbox.take_in()
    report = find_leakage(freeze(inbox))
    assert report.clean
    assert report.summary().startswith("no group in two splits")


def test_a_near_copy_of_a_held_out_text_is_found(inbox: Any, letters: Letters) -> None:
    """T1."""
    inbox.write(
        "a.jsonl",
        *letters(60),
        given(TEXT, "test", "g-1"),
        given(TEXT.replace("neighbour", "colleague"), "train", "g-2"),
        given(TEXT.upper() + " !", "train", "g-3"),
        given(TEXT.replace("insured", "lost"), "validation", "g-4"),
        given(" ".join(reversed(TEXT.split())), "train", "g-5"),
    )
    inbox.take_in()
    report = find_leakage(freeze(inbox))
    assert not report.clean
    found = {(pair.held_out_split, pair.held_out.group, pair.train.group) for pair in report.pairs}
    assert found == {
        ("test", "g-1", "g-2"),
        ("test", "g-1", "g-3"),
        ("validation", "g-4", "g-3"),
    }
    assert (report.pairs[0].similarity, report.pairs[0].train.group) == (1.0, "g-3")
    assert all(pair.similarity >= 0.8 for pair in report.pairs)
    assert "3 near-copies of held-out texts in training" in report.summary()
    assert TEXT[:80] in report.summary(limit=1)


def test_near_copies_can_be_left_out_of_training_and_do_not_wait_for_ever(inbox: Any, letters: Letters) -> None:
    inbox.write(
        "a.jsonl",
        *letters(60),
        given(TEXT, "test", "g-1"),
        given(TEXT.replace("neighbour", "colleague"), "train", "g-2"),
    )
    inbox.take_in()
    whole, clean = freeze(inbox), freeze(inbox, near_copies="leave_out")
    assert not find_leakage(whole).clean
    assert find_leakage(clean).clean
    (left_out,) = {example.id for example in read_split(whole, "train")} - {
        example.id for example in read_split(clean, "train")
    }
    assert clean.manifest["left_out"] == [left_out]
    assert read_split(whole, "test") == read_split(clean, "test")
    assert mark_trained(inbox.catalog, "mail", clean) == 62
    assert untrained(inbox.catalog, "mail", minimum=1).count == 0


def test_a_group_in_two_splits_is_found(inbox: Any, letters: Letters) -> None:
    """T1: even if something other than the intake put it there."""
    import sqlalchemy as sa

    from pipelines.catalog import examples

    inbox.write("a.jsonl", *letters(60), given(TEXT, "test", "g-1"), given("Another text altogether", "test", "g-1"))
    inbox.take_in()
    with inbox.catalog.begin() as connection:
        connection.execute(sa.update(examples).where(examples.c.text == TEXT).values(split="train"))
    report = find_leakage(freeze(inbox))
    assert report.groups == {"g-1": ("train", "test")}
    assert not report.clean


few_words = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=14).map(" ".join)


def pairs_of_words(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return set(pairwise(words)) or {(words[0], words[0])}


@drawn(st.lists(few_words, max_size=12), st.lists(few_words, max_size=12), st.lists(few_words, max_size=6))
def test_every_near_copy_is_found_and_nothing_else(train: list[str], test: list[str], validation: list[str]) -> None:
    """T1: against a comparison of everything with everything."""

    def rows(split: Split, texts: list[str]) -> list[Example]:
        return [Example(f"{split}{n}", text, ("a",), f"{split}{n}", "human") for n, text in enumerate(texts)]

    by_split: dict[Split, list[Example]] = {
        "train": rows("train", train),
        "validation": rows("validation", validation),
        "test": rows("test", test),
    }

    def similarity(one: str, other: str) -> float:
        a, b = pairs_of_words(one), pairs_of_words(other)
        return 1.0 if one == other else len(a & b) / len(a | b)

    expected = {
        (split, row.id)
        for split in ("validation", "test")
        for row in by_split["train"]
        if any(similarity(row.text, other.text) >= 0.8 for other in by_split[split])
    }
    found = leaked_pairs(by_split)
    assert {(pair.held_out_split, pair.train.id) for pair in found} == expected
    assert len(found) == len(expected)
    for pair in found:
        assert pair.similarity == similarity(pair.held_out.text, pair.train.text)
