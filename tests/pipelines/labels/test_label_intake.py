from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import SourceError
from pipelines.labels.intake import quarantined
from pipelines.labels.settings import Expectation

ROOT = Path(__file__).resolve().parents[3]
BUNDLED = ROOT / "pipelines" / "usecases" / "compliance" / "data"
Letters = Callable[..., list[dict[str, Any]]]


def test_every_row_is_stored_accepted_or_quarantined_with_its_reasons(inbox: Any, letters: Letters) -> None:
    """T2: bad rows are kept and not counted."""
    inbox.write("a.jsonl", *letters(3), "{broken", {"text": "?", "label": "billing"}, {"text": "No label at all"})
    report = inbox.take_in()
    assert (report.files, report.rows, report.new, report.new_accepted, report.new_quarantined) == (1, 6, 6, 3, 3)
    assert (report.accepted, report.quarantined, report.quarantined_share) == (3, 3, 0.5)
    assert report.categories == {"billing": 1, "shipping": 2}
    assert report.reasons == {"cannot be read": 2, "shorter than 8 characters": 1}
    verdicts = inbox.verdicts()
    assert verdicts["a.jsonl:1"] == ("accepted", [])
    state, reasons = verdicts["a.jsonl:4"]
    assert (state, reasons[0][:24]) == ("quarantined", "cannot be read: not JSON")
    assert verdicts["a.jsonl:6"][1] == ["cannot be read: no column 'label' (the row has 'text')"]
    assert ("{broken",) in inbox.stored("raw")


def test_an_unchanged_second_run_changes_nothing(inbox: Any, letters: Letters) -> None:
    """T2."""
    inbox.write("a.jsonl", *letters(20), "{broken")
    first = inbox.take_in()
    before = inbox.stored("example_id", "state", "reasons", "split", "location", "received_at")
    second = inbox.take_in()
    assert (second.new, second.rejudged, second.withdrawn) == (0, 0, 0)
    assert (second.accepted, second.quarantined) == (first.accepted, first.quarantined) == (20, 1)
    assert inbox.stored("example_id", "state", "reasons", "split", "location", "received_at") == before


def test_an_unchanged_run_does_not_load_great_expectations(inbox: Any, letters: Letters) -> None:
    inbox.write("a.jsonl", *letters(20))
    inbox.take_in()
    script = f"""
import sys
from pathlib import Path
from pipelines.catalog import open_catalog
from pipelines.labels.intake import take_in
from pipelines.labels.settings import LabelSettings
report = take_in(LabelSettings(url="labels"), use_case="mail", base=Path({str(inbox.base)!r}), held_out_share=0.2,
                 catalog=open_catalog({str(inbox.catalog.url)!r}))
assert (report.new, report.accepted) == (0, 20), report
assert not {{"great_expectations", "pandas", "numpy", "torch"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_the_same_row_in_two_places_counts_once(inbox: Any, letters: Letters) -> None:
    """T2."""
    rows = letters(5)
    inbox.write("a.jsonl", *rows, *rows)
    inbox.write("b.csv", "text,label,group", *(f"{row['text']},{row['label']},{row['group']}" for row in rows))
    report = inbox.take_in()
    assert (report.rows, report.new, report.accepted, report.quarantined) == (15, 5, 5, 0)


def test_a_copy_that_arrives_later_is_quarantined_as_one(inbox: Any, letters: Letters) -> None:
    """T2."""
    (row,) = letters(1)
    inbox.write("z.jsonl", row)
    inbox.take_in()
    inbox.write("a.jsonl", {**row, "group": "somebody else"})
    report = inbox.take_in()
    assert (report.new_accepted, report.new_quarantined, report.accepted) == (0, 1, 1)
    assert inbox.verdicts()["a.jsonl:1"][1] == ["same text and labels as an earlier row: z.jsonl:1"]


def test_a_contradiction_takes_the_earlier_row_along_and_resolving_it_brings_it_back(
    inbox: Any, letters: Letters
) -> None:
    (row,) = letters(1)
    inbox.write("a.jsonl", row)
    assert inbox.take_in().accepted == 1
    inbox.write("b.jsonl", {**row, "label": "billing"})
    report = inbox.take_in()
    assert (report.accepted, report.quarantined, report.rejudged) == (0, 2, 1)
    inbox.write("b.jsonl")
    report = inbox.take_in()
    assert (report.accepted, report.quarantined, report.withdrawn) == (1, 0, 1)


def test_a_corrected_row_replaces_the_wrong_one_and_keeps_its_split(inbox: Any, letters: Letters) -> None:
    """T1, T2: an edit is one example, not two."""
    rows = letters(10)
    inbox.write("a.jsonl", *rows, "{broken")
    assert inbox.take_in().quarantined == 1
    splits = dict(inbox.stored("group", "split"))
    inbox.write("a.jsonl", {**rows[0], "label": "billing"}, *rows[1:])
    report = inbox.take_in(held_out_share=0.7)
    assert (report.new, report.withdrawn, report.accepted, report.quarantined) == (1, 2, 10, 0)
    assert all(splits[group] == split for group, split in inbox.stored("group", "split") if group in splits)
    inbox.write("a.jsonl", *rows)
    report = inbox.take_in()
    assert (report.new, report.withdrawn, report.rejudged, report.accepted) == (0, 1, 1, 10)


def test_taking_a_whole_file_away_withdraws_nothing(inbox: Any, letters: Letters) -> None:
    inbox.write("a.jsonl", *letters(5))
    inbox.write("b.jsonl", *letters(5, start=5))
    inbox.take_in()
    (inbox.folder / "b.jsonl").unlink()
    report = inbox.take_in()
    assert (report.rows, report.withdrawn, report.accepted) == (5, 0, 10)


def test_a_missing_folder_is_an_error_and_touches_nothing(inbox: Any, letters: Letters) -> None:
    """T13."""
    inbox.write("a.jsonl", *letters(5))
    inbox.take_in()
    (inbox.folder / "a.jsonl").unlink()
    with pytest.raises(SourceError, match="no file in"):
        inbox.take_in()
    inbox.folder.rmdir()
    with pytest.raises(SourceError, match="no such folder"):
        inbox.take_in()
    assert {state for (state,) in inbox.stored("state")} == {"accepted"}


def test_other_expectations_judge_known_rows_again_in_both_directions(inbox: Any, letters: Letters) -> None:
    inbox.write("a.jsonl", *letters(4), {"text": "Refund", "label": "billing"}, {"text": 7, "label": "billing"})
    assert inbox.take_in().accepted == 4
    (inbox.folder / "a.jsonl").rename(inbox.folder / "gone")  # known rows are judged even when their file has gone
    inbox.write("b.jsonl", *letters(1, start=4))
    report = inbox.take_in(minimum_characters=4)
    assert (report.accepted, report.quarantined, report.rejudged) == (6, 1, 1)
    report = inbox.take_in(categories=("billing", "other"))
    assert (report.new, report.accepted, report.rejudged) == (0, 2, 4)
    assert report.reasons == {"label outside the categories": 3, "cannot be read": 1, "shorter than 8 characters": 1}
    assert inbox.take_in().accepted == 5


def test_a_row_that_only_moved_is_known_at_its_new_place(inbox: Any, letters: Letters) -> None:
    rows = letters(2)
    inbox.write("a.jsonl", *rows)
    inbox.take_in()
    inbox.write("a.jsonl", *reversed(rows))
    report = inbox.take_in()
    assert (report.new, report.withdrawn) == (0, 0)
    assert inbox.stored("location") == [("a.jsonl:2",), ("a.jsonl:1",)]


def test_the_blocking_conditions_are_named_with_their_numbers(inbox: Any, letters: Letters) -> None:
    inbox.write("a.jsonl", *letters(6), "{broken", {"text": "?", "label": "billing"})
    report = inbox.take_in()
    few, many = report.problems(inbox.settings)
    assert few == "6 accepted examples of at least 50 (minimum_accepted)"
    assert many.startswith("2 of 8 examples are quarantined, 25.0% where 20.0% is allowed (maximum_quarantined_share)")
    assert "cannot be read (1)" in many
    relaxed = inbox.settings.model_copy(update={"minimum_accepted": 6, "maximum_quarantined_share": 0.25})
    assert report.problems(relaxed) == []


def test_quarantined_rows_can_be_looked_at_newest_first(inbox: Any) -> None:
    inbox.write("a.jsonl", *(f"{{broken {n}" for n in range(5)))
    inbox.take_in()
    found = quarantined(inbox.catalog, "mail", limit=2)
    assert [row.raw for row in found] == ["{broken 4", "{broken 3"]
    assert found[0].location == "a.jsonl:5"
    assert found[0].reasons[0].startswith("cannot be read: not JSON")
    assert quarantined(inbox.catalog, "other use case") == []


def test_ten_thousand_rows_are_taken_in(inbox: Any, letters: Letters) -> None:
    inbox.write("a.jsonl", *letters(10_000))
    assert inbox.take_in().new_accepted == 10_000
    assert inbox.take_in().new == 0


def test_every_bundled_reject_is_refused_and_the_bundled_segments_are_not(inbox: Any) -> None:
    for path in (BUNDLED / "labels").glob("*.jsonl"):
        (inbox.folder / path.name).write_bytes(path.read_bytes())
    segments = [json.loads(line) for line in (BUNDLED / "labels" / "segments.jsonl").read_text().splitlines()]
    categories = (*{row["label"] for row in segments}, "vendor_audit")
    strict = (
        Expectation(expectation="expect_column_values_to_not_be_null", arguments={"column": "group"}),
        Expectation(
            expectation="expect_column_values_to_match_regex", arguments={"column": "text", "regex": r"\S\s+\S"}
        ),
    )
    report = inbox.take_in(categories=categories, expectations=strict)
    accepted = {text for text, state in inbox.stored("text", "state") if state == "accepted"}
    contradicted = {place for place, (_, reasons) in inbox.verdicts().items() if "another label" in "".join(reasons)}
    assert len(contradicted) == 4  # two rejects, and the two segments that they contradict
    assert accepted < {row["text"] for row in segments}
    assert report.accepted == len(segments) - 2
    assert report.problems(inbox.settings) == []
