from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipelines.artifacts import Artifact
from pipelines.labels.examples import read_split
from pipelines.labels.leakage import find_leakage
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
