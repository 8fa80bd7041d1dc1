"""Of the rows about one item only the newest counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipelines.labels.settings import LabelSettings

Letters = Callable[..., list[dict[str, Any]]]


def keyed(letters: Letters, count: int = 1) -> list[dict[str, Any]]:
    return [{"id": f"letter-{number}", **row} for number, row in enumerate(letters(count))]


def test_a_correction_in_another_file_supersedes_what_it_corrects(inbox: Any, letters: Letters) -> None:
    """T2: an edit is one example, not two."""
    rows = keyed(letters, 4)
    inbox.write("a.jsonl", *rows)
    inbox.take_in()
    inbox.write("b.jsonl", {**rows[0], "label": "billing"})
    report = inbox.take_in()
    assert (report.new_accepted, report.accepted, report.superseded, report.quarantined) == (1, 4, 1, 0)
    assert inbox.verdicts()["a.jsonl:1"] == (
        "superseded",
        ["superseded: a newer row is about the same item, b.jsonl:1"],
    )
    assert report.categories == {"billing": 3, "shipping": 1}
    assert inbox.take_in().rejudged == 0


def test_a_superseded_row_comes_back_when_the_newer_one_is_withdrawn(inbox: Any, letters: Letters) -> None:
    (row,) = keyed(letters)
    inbox.write("a.jsonl", row)
    inbox.write("b.jsonl", {**row, "label": "billing"})
    report = inbox.take_in()
    assert (report.accepted, report.superseded) == (1, 1)
    inbox.write("b.jsonl")
    report = inbox.take_in()
    assert (report.withdrawn, report.rejudged, report.accepted, report.superseded) == (1, 1, 1, 0)
    assert inbox.verdicts()["a.jsonl:1"] == ("accepted", [])


def test_the_time_of_labelling_says_what_is_newest_and_else_the_order_of_arrival(inbox: Any, letters: Letters) -> None:
    first, second = keyed(letters, 2)
    inbox.write(
        "a.jsonl",
        {**first, "label": "newest", "time": "2026-03-01T10:00:00+02:00"},
        {**first, "label": "older", "time": "2026-03-01T09:00:00+02:00"},
        {**second, "label": "first"},
        {**second, "label": "then"},
    )
    inbox.take_in()
    accepted = [label for state, (label,) in inbox.stored("state", "labels") if state == "accepted"]
    assert accepted == ["newest", "then"]


def test_what_was_said_first_and_is_said_again_last_counts(inbox: Any, letters: Letters) -> None:
    """The third row says what the first said: its hash is known, and yet it is the newest."""
    (row,) = keyed(letters)
    other = {**row, "label": "billing"}
    inbox.write("a.jsonl", row, other)
    inbox.take_in()
    assert dict(inbox.stored("location", "state")) == {"a.jsonl:1": "superseded", "a.jsonl:2": "accepted"}
    inbox.write("a.jsonl", row, other, row)
    report = inbox.take_in()
    assert (report.new, report.rejudged) == (0, 2)
    assert dict(inbox.stored("location", "state")) == {"a.jsonl:3": "accepted", "a.jsonl:2": "superseded"}
    inbox.write("b.jsonl", {**other, "time": "2300-01-01"})
    inbox.take_in()
    assert dict(inbox.stored("location", "state")) == {"a.jsonl:3": "superseded", "b.jsonl:1": "accepted"}


def test_an_item_keeps_its_split_and_is_refused_where_its_new_group_is_in_another(inbox: Any, letters: Letters) -> None:
    """T1: a correction that names another group moves nothing from test to train."""
    inbox.write("a.jsonl", *keyed(letters, 40))
    inbox.take_in()
    held_out = next(row for row in inbox.stored("item", "group", "text", "split") if row[3] == "test")
    trained = next(row for row in inbox.stored("item", "group", "text", "split") if row[3] == "train")
    corrected = {"id": held_out[0], "text": held_out[2], "label": "other", "group": "somebody new"}
    inbox.write("b.jsonl", corrected)
    inbox.take_in()
    assert [row[1] for row in inbox.stored("group", "split") if row[0] == "somebody new"] == ["test"]
    inbox.write("b.jsonl", {**corrected, "group": trained[1]})
    inbox.take_in()
    ((state, split, reasons),) = [
        row[1:]
        for row in inbox.stored("location", "state", "split", "reasons")
        if row[0] == "b.jsonl:1" and row[1] != "withdrawn"
    ]
    assert (state, split) == ("quarantined", "test")
    assert reasons[0].startswith("its group is in another split: test here, train at")


def test_a_superseded_row_is_no_contradiction_and_no_copy(inbox: Any, letters: Letters) -> None:
    (row,) = keyed(letters)
    inbox.write("a.jsonl", row, {**row, "label": "billing"}, {**row, "label": "returns"})
    report = inbox.take_in()
    assert (report.accepted, report.quarantined, report.superseded) == (1, 0, 2)
    assert report.categories == {"returns": 1}


def test_rows_without_a_key_never_supersede_each_other(inbox: Any, letters: Letters) -> None:
    (row,) = letters(1)
    inbox.write("a.jsonl", row, {**row, "label": "billing"})
    report = inbox.take_in()
    assert (report.superseded, report.quarantined) == (0, 2)


def test_who_labelled_is_counted_among_the_accepted(inbox: Any, letters: Letters) -> None:
    """T20."""
    rows = letters(6)
    origins = ("human", "model", "model", "rule", "human", "nobody")
    inbox.write("a.jsonl", *({**row, "origin": origin} for row, origin in zip(rows, origins, strict=True)))
    report = inbox.take_in()
    assert report.by_origin == {"human": 2, "model": 2, "rule": 1}
    assert report.quarantined == 1


def test_files_that_each_count_their_rows_supersede_nothing_of_each_other(inbox: Any, letters: Letters) -> None:
    """A correction in another file still does: it has words of what it corrects."""
    first, second = letters(2)
    inbox.write("a.jsonl", {**first, "id": 1}, {**second, "id": 2})
    other = {"id": 1, "text": "Do you sell bicycles?", "label": "sales"}
    inbox.write("b.jsonl", other, {**second, "id": 2, "label": "returns"})
    report = inbox.take_in()
    assert (report.accepted, report.superseded) == (3, 1)
    assert report.warnings == {"counts beside quite another text with the same key, in another file": 1}
    inbox.write("c.jsonl", {**other, "label": "billing"})
    report = inbox.take_in()
    assert (report.accepted, report.superseded) == (3, 2), "of its own item, not of the first with that key"
    inbox.write("b.jsonl", {**other, "text": "May I come and see you?"})
    assert inbox.take_in().superseded == 0, "what is no longer in its file is withdrawn"
    states = dict(inbox.stored("location", "state"))
    assert (states["a.jsonl:1"], states["c.jsonl:1"]) == ("accepted", "accepted")


def test_a_named_key_that_names_different_things_is_warned_of(inbox: Any, letters: Letters) -> None:
    """Two files that each count their rows from 1, where the settings say that a key is one item everywhere."""
    inbox.settings = LabelSettings.model_validate({**inbox.settings.model_dump(exclude_unset=True), "key_column": "id"})
    first, second = letters(2)
    inbox.write("a.jsonl", {**first, "id": 1}, {**second, "id": 2})
    inbox.write(
        "b.jsonl", {"id": 1, "text": "Do you sell bicycles?", "label": "sales"}, {**second, "id": 2, "group": "x"}
    )
    report = inbox.take_in()
    assert (report.accepted, report.superseded) == (2, 2)
    assert report.warnings == {"about the same item as quite another text": 1}
    inbox.write("c.jsonl", *letters(1, start=2))
    assert inbox.take_in().warnings == {"about the same item as quite another text": 1}
    inbox.write("a.jsonl", {**second, "id": 2})
    assert inbox.take_in().warnings == {}
