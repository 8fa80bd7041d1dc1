from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.errors import ConfigError
from pipelines.labels.examples import text_group
from pipelines.labels.splits import check_shares, split_of


def test_the_split_of_a_group_is_a_fixed_fact() -> None:
    """T1. Written down, so that no later version moves a group."""
    shares = {"held_out_share": 0.2, "validation_share": 0.1}
    groups = ["customer-1", "customer-12", "contract/9", "größe"]
    assert [split_of(group, **shares) for group in groups] == ["train", "test", "validation", "train"]


def test_shares_are_about_kept_and_a_larger_share_only_adds_groups() -> None:
    groups = [f"g{n}" for n in range(4000)]
    counts = Counter(split_of(group, held_out_share=0.2, validation_share=0.1) for group in groups)
    assert counts["test"] == pytest.approx(800, abs=80)
    assert counts["validation"] == pytest.approx(400, abs=60)
    small = {group for group in groups if split_of(group, held_out_share=0.1, validation_share=0) == "test"}
    large = {group for group in groups if split_of(group, held_out_share=0.3, validation_share=0) == "test"}
    assert small < large


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"held_out_share 0.6 and labels.validation_share 0.4 leave nothing"):
        check_shares(0.6, 0.4)


def test_copies_that_differ_in_case_blanks_and_punctuation_are_one_group() -> None:
    same = {text_group(text) for text in ("Where's my CARD?", "where s  my card", "“Where’s my card!”")}
    assert len(same) == 1
    assert text_group("?!") != text_group("!!")
    assert text_group("Where is my card") not in same


def test_copies_land_in_one_split_and_stay_there_when_the_shares_change(
    inbox: Any, letters: Callable[..., list[dict[str, Any]]]
) -> None:
    """T1."""
    rows = [{"text": row["text"], "label": row["label"]} for row in letters(60)]
    inbox.write("a.jsonl", *rows)
    inbox.take_in(held_out_share=0.1)
    before = dict(inbox.stored("example_id", "split"))
    inbox.write("b.jsonl", *({**row, "text": row["text"].upper() + "!"} for row in rows))
    inbox.take_in(held_out_share=0.6)
    after = dict(inbox.stored("example_id", "split"))
    assert len(after) == 120
    assert {key: after[key] for key in before} == before
    by_group: dict[str, set[str]] = {}
    for group, split in inbox.stored("group", "split"):
        by_group.setdefault(group, set()).add(split)
    assert len(by_group) == 60
    assert all(len(splits) == 1 for splits in by_group.values())


def test_given_splits_are_honoured(inbox: Any, letters: Callable[..., list[dict[str, Any]]]) -> None:
    rows = letters(30)
    splits = ["train", "validation", "test"] * 10
    inbox.write("a.jsonl", *({**row, "split": split} for row, split in zip(rows, splits, strict=True)))
    inbox.take_in()
    assert [split for (split,) in inbox.stored("split")] == splits


def test_later_rows_of_a_group_follow_its_given_split(inbox: Any, letters: Callable[..., list[dict[str, Any]]]) -> None:
    """T1."""
    rows = letters(30)
    inbox.write("a.jsonl", *({**row, "split": "test"} for row in rows))
    inbox.take_in()
    inbox.write("b.jsonl", *({**row, "text": f"And again: {row['text']}"} for row in rows))
    inbox.take_in()
    assert {split for (split,) in inbox.stored("split")} == {"test"}


def test_no_row_of_the_other_split_of_its_group_is_accepted(inbox: Any) -> None:
    """T1."""
    inbox.write("a.jsonl", {"text": "Where is my card?", "label": "a", "split": "test"})
    inbox.take_in()
    inbox.write("b.jsonl", {"text": "where is my card", "label": "a", "split": "train"})
    report = inbox.take_in()
    assert (report.new_accepted, report.reasons) == (0, {"its group is in another split": 1})
