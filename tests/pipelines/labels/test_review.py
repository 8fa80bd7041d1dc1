"""What people decide about single examples outweighs the expectations, and lasts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError
from pipelines.labels import __main__ as command
from pipelines.labels import intake, review
from pipelines.labels.examples import QUARANTINED
from pipelines.labels.expectations import RELATION_KINDS, Candidate, judge
from pipelines.labels.review import UNRELEASABLE, import_edited, listed, undo
from pipelines.labels.settings import LabelSettings
from pipelines.prompt import Message

Letters = Callable[..., list[dict[str, Any]]]


class Desk:
    """An inbox, and somebody who decides about what is in it."""

    def __init__(self, inbox: Any) -> None:
        self.inbox, self.catalog, self.settings = inbox, inbox.catalog, inbox.settings

    def id_at(self, location: str) -> str:
        (example_id,) = [key for key, where in self.inbox.stored("example_id", "location") if where == location]
        return str(example_id)

    def decide(self, location: str, decision: Any, **more: Any) -> str:
        more = {"settings": self.settings, "author": "ann", **more}
        return review.decide(self.catalog, "mail", self.id_at(location)[:12], decision, **more)

    def replace(self, location: str, row: Any, **more: Any) -> str:
        return self.decide(location, "replace", replacement=json.dumps(row), **more)

    def state(self, location: str) -> tuple[str, list[str]]:
        return self.inbox.verdicts()[location]


@pytest.fixture
def desk(inbox: Any) -> Desk:
    return Desk(inbox)


def test_a_released_row_is_accepted_and_stays_so_through_every_judging(desk: Desk, letters: Letters) -> None:
    inbox = desk.inbox
    inbox.write("a.jsonl", *letters(3), {"text": "Ouch!", "label": "billing"})
    inbox.take_in()
    desk.decide("a.jsonl:4", "release", note="short, but to the point")
    report = inbox.take_in()
    assert (report.accepted, report.quarantined, report.released, report.rejudged) == (4, 0, 1, 1)
    assert report.warnings == {"shorter than 8 characters": 1}
    assert inbox.stored("warnings")[3] == (["shorter than 8 characters: 5 (released by ann)"],)
    inbox.write("b.jsonl", *letters(1, start=3))
    report = inbox.take_in()
    assert (report.accepted, report.released) == (5, 1), "something else came"
    report = inbox.take_in(minimum_characters=100)
    assert (report.accepted, report.released) == (1, 1), "the suite changed"
    (inbox.folder / "a.jsonl").unlink()
    assert inbox.take_in(minimum_characters=99).released == 1, "its file went"
    assert inbox.stored("warnings")[3] == (["shorter than 99 characters: 5 (released by ann)"],)
    undo(desk.catalog, "mail", desk.id_at("a.jsonl:4"))
    report = inbox.take_in()
    assert (report.accepted, report.quarantined, report.released) == (4, 1, 0)


def test_of_a_contradiction_the_released_side_is_accepted(desk: Desk, letters: Letters) -> None:
    (row,) = letters(1)
    desk.inbox.write("a.jsonl", row, {**row, "label": "billing"})
    assert desk.inbox.take_in().quarantined == 2
    desk.decide("a.jsonl:2", "release")
    for _ in range(2):
        report = desk.inbox.take_in()
        assert (report.accepted, report.quarantined, report.categories) == (1, 1, {"billing": 1})
    assert desk.state("a.jsonl:1")[0] == "quarantined"


def test_a_rejected_row_is_kept_out_at_once_and_for_good(desk: Desk, letters: Letters) -> None:
    inbox = desk.inbox
    inbox.write("a.jsonl", *letters(3))
    inbox.take_in()
    desk.decide("a.jsonl:1", "reject", note="it is about another shop")
    assert desk.state("a.jsonl:1")[0] == "quarantined"
    for settings in ({}, {}, {"minimum_characters": 5}):
        report = inbox.take_in(**settings)
        assert desk.state("a.jsonl:1") == ("quarantined", ["rejected by ann: it is about another shop"])
        assert (report.accepted, report.reasons) == (2, {"rejected by ann": 1})
    desk.decide("a.jsonl:1", "release", author=None)
    assert inbox.take_in().accepted == 3
    undo(desk.catalog, "mail", desk.id_at("a.jsonl:1"))
    assert (inbox.take_in().accepted, desk.state("a.jsonl:1")) == (3, ("accepted", []))


def test_a_decision_during_an_intake_is_not_lost(desk: Desk, letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = desk.inbox
    inbox.write("a.jsonl", *letters(3))
    inbox.take_in()
    real = intake.judge

    def slowly(*given: Any, **more: Any) -> Any:
        if desk.state("a.jsonl:1")[0] == "accepted":
            desk.decide("a.jsonl:1", "reject", note="wrong")
        return real(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(intake, "judge", slowly)
        inbox.take_in(minimum_characters=5)
    assert desk.state("a.jsonl:1")[0] == "quarantined"
    assert inbox.take_in(minimum_characters=5).accepted == 2
    assert desk.state("a.jsonl:1")[1] == ["rejected by ann: wrong"]


def test_a_rejected_correction_lets_what_it_corrected_count_again(desk: Desk, letters: Letters) -> None:
    (row,) = letters(1)
    desk.inbox.write("a.jsonl", {**row, "id": "1"}, {**row, "id": "1", "label": "billing"})
    desk.inbox.take_in()
    assert desk.state("a.jsonl:1")[0] == "superseded"
    desk.decide("a.jsonl:2", "reject")
    desk.inbox.take_in()
    assert desk.state("a.jsonl:1") == ("accepted", [])


def test_an_edited_row_stands_for_the_old_one_in_its_group_and_split(desk: Desk, letters: Letters) -> None:
    """T1: an edit moves nothing between splits."""
    inbox = desk.inbox
    inbox.write("a.jsonl", *letters(20), {"text": "Where", "label": "shipping", "group": "c-9", "origin": "model"})
    inbox.take_in()
    desk.replace("a.jsonl:21", {"input": "Where is it, please?", "output": "shipping", "group": "somebody"})
    report = inbox.take_in()
    assert (report.new_accepted, report.accepted, report.quarantined, report.superseded) == (1, 21, 0, 1)
    columns = ("text", "group", "split", "origin", "author", "location", "state")
    old, new = inbox.stored(*columns)[-2:]
    assert new == ("Where is it, please?", "c-9", old[2], "human", "ann", "review:1", "accepted")
    assert desk.state("a.jsonl:21") == ("superseded", ["superseded: edited by ann, review:1"])
    assert inbox.take_in(minimum_characters=5).accepted == 21
    inbox.write("a.jsonl", *letters(20))
    report = inbox.take_in()
    assert (report.accepted, report.superseded, report.withdrawn) == (20, 0, 2), "it goes with what it stands for"
    inbox.write("a.jsonl", *letters(20), {"text": "Where", "label": "shipping", "group": "c-9", "origin": "model"})
    assert inbox.take_in().accepted == 21


def test_an_edited_row_can_be_edited_again_and_all_of_it_taken_back(desk: Desk, letters: Letters) -> None:
    inbox = desk.inbox
    (row,) = letters(1)
    inbox.write("a.jsonl", row)
    inbox.take_in()
    desk.replace("a.jsonl:1", {**row, "label": "first"})
    inbox.take_in()
    desk.replace("review:1", {**row, "label": "second"}, author="bob")
    assert inbox.take_in().categories == {"second": 1}
    inbox.write("b.jsonl", *letters(1, start=1))
    report = inbox.take_in()
    assert (report.categories, report.superseded) == ({"billing": 1, "second": 1}, 2)
    undo(desk.catalog, "mail", desk.id_at("a.jsonl:1"))
    report = inbox.take_in()
    assert (report.categories, report.superseded) == ({"billing": 1, row["label"]: 1}, 0)


def test_an_edit_is_judged_like_any_other_row(desk: Desk, letters: Letters) -> None:
    (row,) = letters(1)
    desk.inbox.write("a.jsonl", row)
    desk.inbox.take_in()
    desk.replace("a.jsonl:1", {"text": "Ouch!", "label": "billing"})
    report = desk.inbox.take_in()
    assert (report.accepted, report.reasons) == (0, {"shorter than 8 characters": 1})


def test_the_quarantine_is_exported_edited_and_imported(desk: Desk, letters: Letters, tmp_path: Path) -> None:
    inbox = desk.inbox
    inbox.write("a.jsonl", *letters(2), "{broken", *({"text": text, "label": "billing"} for text in "?!.,"))
    inbox.take_in()
    lines = [json.loads(each.as_edited()) for each in listed(desk.catalog, "mail")]
    by_place = {line["where"]: line for line in lines}
    assert by_place["a.jsonl:3"]["row"] == "{broken"
    assert by_place["a.jsonl:4"] == {
        "example": desk.id_at("a.jsonl:4"),
        "where": "a.jsonl:4",
        "reasons": ["shorter than 8 characters: 1"],
        "row": {"text": "?", "label": "billing"},
    }
    by_place["a.jsonl:3"]["row"] = {"text": "It was broken, now it can be read", "label": "billing"}
    by_place["a.jsonl:4"]["row"]["text"] = "What does this letter cost me?"
    by_place["a.jsonl:5"]["decision"] = "release"
    by_place["a.jsonl:6"] |= {"decision": "reject", "note": "says nothing"}
    counts = import_edited(desk.catalog, "mail", map(json.dumps, lines), settings=desk.settings, author="ann")
    assert counts == {"replace": 2, "release": 1, "reject": 1, "unchanged": 1}
    report = inbox.take_in()
    assert (report.accepted, report.quarantined, report.superseded) == (5, 2, 2)


def test_an_import_with_a_mistake_changes_nothing_and_names_its_lines(desk: Desk, letters: Letters) -> None:
    desk.inbox.write("a.jsonl", *letters(2), {"text": "?", "label": "billing"}, "{broken")
    desk.inbox.take_in()
    good, broken = desk.id_at("a.jsonl:3"), desk.id_at("a.jsonl:4")
    lines = [
        json.dumps({"example": good, "decision": "release"}),
        "{no JSON",
        json.dumps({"example": "f" * 64}),
        json.dumps({"example": good, "desicion": "release"}),
        json.dumps({"example": broken, "decision": "release"}),
        json.dumps({"example": good, "row": {"text": "No label, and long enough"}}),
    ]
    with pytest.raises(ConfigError) as caught:
        import_edited(desk.catalog, "mail", lines, settings=desk.settings)
    said = str(caught.value)
    for part in (
        "line 2: not JSON",
        "line 3: mail has no example",
        "line 4: 'desicion' means nothing",
        "line 5: example ",
        "cannot be released, only edited or rejected: cannot be read",
        "line 6: what replaces",
        "no column 'label'",
    ):
        assert part in said
    assert review.reviews(desk.catalog, "mail") == {}


@pytest.mark.parametrize(
    ("decision", "more", "said"),
    [
        ("approve", {}, "'approve' is not one of release, reject, replace"),
        ("replace", {}, "needs a replacement"),
        ("reject", {"replacement": "{}"}, "takes no replacement"),
        ("replace", {"replacement": "[]"}, "not a JSON object"),
        ("replace", {"replacement": '{"label": "shipping", "text": "Where is my parcel?"}'}, "says the same"),
    ],
)
def test_what_cannot_be_decided_is_refused(desk: Desk, decision: Any, more: Any, said: str) -> None:
    desk.inbox.write("a.jsonl", {"text": "Where is my parcel?", "label": "shipping"})
    desk.inbox.take_in()
    with pytest.raises(ConfigError, match=said):
        desk.decide("a.jsonl:1", decision, **more)


def test_what_is_superseded_or_unknown_cannot_be_decided_about(desk: Desk, letters: Letters) -> None:
    (row,) = letters(1)
    desk.inbox.write("a.jsonl", {**row, "id": "1"}, {**row, "id": "1", "label": "billing"})
    desk.inbox.take_in()
    with pytest.raises(ConfigError, match="is superseded"):
        desk.decide("a.jsonl:1", "release")
    for prefix, said in (
        ("0", "6 characters"),
        ("x" * 12, "no example whose id begins with"),
        ("%%%%%%", "no example"),
    ):
        with pytest.raises(ConfigError, match=said):
            review.decide(desk.catalog, "mail", prefix, "release", settings=desk.settings)
    with pytest.raises(ConfigError, match="nobody has decided"):
        undo(desk.catalog, "mail", desk.id_at("a.jsonl:1"))


def test_a_release_that_would_leak_is_refused_and_one_that_came_to_leak_is_void(desk: Desk, letters: Letters) -> None:
    """T1."""
    inbox = desk.inbox
    train, test = letters(2)
    inbox.write("a.jsonl", {**train, "group": "g", "split": "train"}, {**test, "group": "g", "split": "test"})
    inbox.take_in()
    with pytest.raises(ConfigError, match="its group is in another split"):
        desk.decide("a.jsonl:2", "release")
    row = {"label": "billing", "group": "h"}
    inbox.write("b.jsonl", {**row, "text": "Refund!", "split": "train"}, {**row, "text": "Ouch!", "split": "test"})
    inbox.take_in()
    desk.decide("b.jsonl:2", "release")
    assert inbox.take_in().released == 1
    report = inbox.take_in(minimum_characters=7)
    assert (report.released, desk.state("b.jsonl:2")[0]) == (0, "quarantined"), "the first of its group is good now"
    assert inbox.take_in().released == 1


def test_a_release_is_void_while_the_row_cannot_be_trained_on(desk: Desk, letters: Letters) -> None:
    desk.inbox.write("a.jsonl", *letters(2), {"text": "Ouch!", "label": "pain"})
    desk.inbox.take_in()
    desk.decide("a.jsonl:3", "release")
    assert desk.inbox.take_in().released == 1
    report = desk.inbox.take_in(categories=("billing", "shipping"))
    assert (report.released, report.accepted) == (0, 2)
    assert "label outside the categories: 'pain'" in desk.state("a.jsonl:3")[1]
    assert desk.inbox.take_in().released == 1


def test_every_kind_that_cannot_be_released_is_one_that_the_expectations_say() -> None:
    def candidate(**more: Any) -> Candidate:
        given = {
            "text": "Where is my parcel?", "labels": ("shipping",), "group": "g", "names_group": True,
            "split": "train", "origin": "human", "author": None, "location": "a:1", "problem": None,
        }  # fmt: skip
        return Candidate(**{**given, **more})

    def chat(*turns: tuple[Any, str]) -> Candidate:
        messages = tuple(Message(*turn) for turn in turns)
        text = "\n\n".join(content for role, content in turns[:-1] if role != "system")
        return candidate(text=text, labels=(), messages=messages)

    settings = LabelSettings(url="x", categories=("shipping", "billing"))
    texts = [
        candidate(text=""), candidate(text="  \n  "), candidate(problem="no column 'label'"), candidate(labels=()),
        candidate(labels=("billing", "shipping")), candidate(labels=("other",)),
    ]  # fmt: skip
    chats = [
        chat(("user", ""), ("assistant", "An answer.")),
        chat(("user", " \n "), ("assistant", "An answer.")),
        chat(("user", "A question?"), ("assistant", "")),
        chat(("user", "A question?"), ("assistant", " \n ")),
        chat(("user", "A question?"), ("user", "Another question?"), ("assistant", "An answer.")),
    ]
    reasons = [reason for each in judge(settings, texts) for reason in each.reasons]
    reasons += [reason for each in judge(settings, chats, task="generate") for reason in each.reasons]
    assert UNRELEASABLE - {reason.partition(": ")[0] for reason in reasons} == UNRELEASABLE & RELATION_KINDS
    assert UNRELEASABLE & RELATION_KINDS


def test_the_list_is_narrowed_by_reason_place_and_state(desk: Desk, letters: Letters) -> None:
    desk.inbox.write("a.jsonl", *letters(2), *({"text": "?" * n, "label": "billing"} for n in range(1, 4)))
    desk.inbox.write("b_%.jsonl", "{broken")
    desk.inbox.take_in()
    assert len(listed(desk.catalog, "mail")) == 4
    assert [each.location for each in listed(desk.catalog, "mail", reason="CANNOT be read")] == ["b_%.jsonl:1"]
    assert [each.location for each in listed(desk.catalog, "mail", location="a.jsonl", limit=2)] == [
        "a.jsonl:5",
        "a.jsonl:4",
    ]
    assert listed(desk.catalog, "mail", location="b__") == []
    assert {each.state for each in listed(desk.catalog, "mail", state="accepted")} == {"accepted"}
    assert listed(desk.catalog, "other") == []


def test_the_commands_list_release_edit_export_and_import(
    desk: Desk, letters: Letters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "use_cases" / "mail"
    folder.mkdir(parents=True)
    (folder / "defs.yaml").write_text("attributes: {name: mail, labels: {url: labels}}")
    monkeypatch.setattr(command, "USE_CASES", folder.parent)
    desk.inbox.write("a.jsonl", *letters(2), {"text": "?", "label": "billing"}, {"text": "!", "label": "billing"})
    desk.inbox.take_in()

    def run(*arguments: str) -> Any:
        assert command.main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    newest, oldest = run("list", "mail")
    assert (newest["location"], newest["state"]) == ("a.jsonl:4", QUARANTINED)
    assert run("release", "mail", newest["example_id"][:8], "--author", "ann")["decision"] == "release"
    edited = json.dumps({"text": "What does it cost?", "label": "billing"})
    assert run("edit", "mail", oldest["example_id"], edited)["example"] == oldest["example_id"]
    assert run("undo", "mail", oldest["example_id"])["decision"] is None
    file = tmp_path / "quarantine.jsonl"
    assert run("export", "mail", str(file))["exported"] == 2
    file.write_text(file.read_text().replace('"?"', '"What does it cost?"'))
    assert run("import", "mail", str(file), "--author", "bob") == {"replace": 1, "unchanged": 1}
    report = desk.inbox.take_in()
    assert (report.accepted, report.released, report.superseded) == (4, 1, 1)
    assert command.main(["reject", "mail", newest["example_id"]]) == 0
    assert "takes effect" in capsys.readouterr().out
    assert command.main(["list", "mail"]) == 0
    assert "a.jsonl:4" in capsys.readouterr().out
    assert command.main(["release", "mail", "ffffffffff"]) == 2
    assert "ConfigError: mail has no example" in capsys.readouterr().err
    assert command.main(["import", "mail", str(tmp_path / "none")]) == 2
