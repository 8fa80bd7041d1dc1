"""Chats are taken in whole, and masked rows leave nothing of what was masked."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipelines.catalog import example_reviews, examples, feedback, purge
from pipelines.labels.feedback import Feedback, record_feedback
from pipelines.labels.review import decide
from pipelines.prompt import AnswerFormat, Message, PromptSettings

CHATS = {"task": "generate"}
MAIL, CARD = "zelda.harkness@brightmail.com", "4111 1111 1111 1111"


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_a_chat_keeps_its_turns_context_preference_item_and_slices(inbox: Any) -> None:
    inbox.write(
        "a.jsonl",
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is the pump loud?"}],
            "chosen": "No, it hums.",
            "rejected": "It is the loudest pump that there is.",
            "context": ["The pump hums."],
            "id": "q-1",
            "group": "caller-1",
            "region": "EU",
            "author": "ann",
            "time": "2026-05-01T09:30:00+02:00",
        },
    )
    report = inbox.take_in(more=CHATS, slice_columns=("region",))
    assert (report.accepted, report.categories, report.warnings) == (1, {}, {})
    columns = ("text", "messages", "rejected", "context", "item", "slices", "author", "origin", "labelled_at")
    assert inbox.stored(*columns) == [
        (
            "Is the pump loud?",
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Is the pump loud?"},
                {"role": "assistant", "content": "No, it hums."},
            ],
            "It is the loudest pump that there is.",
            ["The pump hums."],
            "q-1",
            ["region=EU"],
            "ann",
            "human",
            datetime(2026, 5, 1, 7, 30, tzinfo=UTC),
        )
    ]
    again = inbox.take_in(more=CHATS, slice_columns=("region",))
    assert (again.new, again.rejudged) == (0, 0)


def test_the_answer_format_and_limits_in_tokens_are_enforced(inbox: Any) -> None:
    inbox.write("a.jsonl", *({"messages": turns(f"How many {n} are there?", str(n))} for n in ("7", "seven")))
    prompt = PromptSettings(answer_format=AnswerFormat(regex=r"\d+"))
    report = inbox.take_in(more={**CHATS, "prompt": prompt})
    assert (report.accepted, report.reasons) == (1, {"answer misses its format": 1})
    report = inbox.take_in(more=CHATS)
    assert report.accepted == 2, "the suite changed: judged again"
    counted = {**CHATS, "count_tokens": lambda texts: [len(text.split()) for text in texts]}
    report = inbox.take_in(more=counted, maximum_tokens=3)
    assert report.reasons == {"more than 3 tokens": 2}


def test_only_what_changed_is_judged_and_relations_are_found_anew(
    inbox: Any, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.labels import intake

    judged: list[int] = []
    real = intake.judge

    def counting(settings: Any, rows: Any, **more: Any) -> Any:
        judged.extend([sum(row.judged is None for row in rows)] if rows else [])
        return real(settings, rows, **more)

    rows = letters(30)
    inbox.write("a.jsonl", *rows, {"text": "?", "label": "billing"})
    inbox.take_in()
    monkeypatch.setattr(intake, "judge", counting)
    inbox.write("b.jsonl", {**rows[3], "label": "other"}, *letters(2, start=30))
    report = inbox.take_in()
    assert judged == [3]
    assert report.reasons == {"same text with another label": 2, "shorter than 8 characters": 1}
    inbox.write("b.jsonl", *letters(2, start=30))
    report = inbox.take_in()
    assert judged == [3, 0]
    assert (report.accepted, report.reasons) == (32, {"shorter than 8 characters": 1})


def everything(catalog: sa.Engine, inbox: Any) -> str:
    """All that the catalog's file holds."""
    purge(catalog)
    return Path(catalog.url.database).read_bytes().decode("utf-8", "replace")


def test_nothing_that_was_masked_remains_in_the_catalog(inbox: Any) -> None:
    inbox.write(
        "a.jsonl",
        {"messages": turns(f"I am {MAIL}, is it paid?", "Yes, it is paid."), "note": f"from {MAIL}", "group": "c-1"},
        {"prompt": "Which card?", "chosen": "Yours.", "rejected": f"Card {CARD}.", "context": [f"Card {CARD}"]},
        f'{{"messages": 7, "from": "{MAIL}"}}',
        {"messages": turns(f"Who is {MAIL}?", "Nobody."), "id": "1"},  # superseded as it comes
        {"messages": turns("Who is Zelda?", "A customer."), "id": "1"},
    )
    report = inbox.take_in(more=CHATS, personal_data="mask")
    assert (report.accepted, report.quarantined, report.superseded) == (3, 1, 1)
    assert report.warnings["personal data masked"] == 2
    held = everything(inbox.catalog, inbox)
    assert MAIL not in held
    assert CARD not in held
    (raw,) = [raw for (raw,) in inbox.stored("raw") if "is it paid" in raw]
    assert json.loads(raw)["messages"][1]["content"] == "Yes, it is paid."
    assert "note" not in json.loads(raw)
    again = inbox.take_in(more=CHATS, personal_data="mask")
    assert (again.new, again.rejudged, again.withdrawn) == (0, 0, 0)


def test_masking_switched_on_later_reaches_what_is_there_and_switched_off_brings_it_back(inbox: Any) -> None:
    inbox.write("a.jsonl", {"messages": turns(f"I am {MAIL}, is it paid?", "Yes, it is paid.")})
    inbox.write("b.jsonl", {"messages": turns(f"Is {MAIL} known to you?", "No, nobody of that name.")})
    asked = (Message("user", f"Did {MAIL} call?"),)
    record_feedback(inbox.catalog, "mail", Feedback("f-1", asked, "No.", correction="Yes, today.", conversation="c"))
    inbox.take_in(more=CHATS, feedback=True)
    edited = json.dumps({"messages": turns(f"Is {MAIL} known to us?", "No, nobody.")})
    (example,) = [key for key, where in inbox.stored("example_id", "location") if where == "b.jsonl:1"]
    kept = {"settings": inbox.settings, "task": "generate"}
    decide(inbox.catalog, "mail", example, "replace", replacement=edited, **kept)
    inbox.take_in(more=CHATS, feedback=True)
    (inbox.folder / "b.jsonl").unlink()
    assert MAIL in everything(inbox.catalog, inbox)
    report = inbox.take_in(more=CHATS, feedback=True, personal_data="mask")
    assert MAIL not in everything(inbox.catalog, inbox)
    assert report.accepted == 3
    again = inbox.take_in(more=CHATS, feedback=True, personal_data="mask")
    assert (again.new, again.rejudged, again.withdrawn, again.accepted) == (0, 0, 0, 3)
    inbox.take_in(more=CHATS, feedback=True)
    assert any(MAIL in text for (text,) in inbox.stored("text")), "its file still has it"
    with inbox.catalog.connect() as connection:
        stored = connection.execute(sa.select(feedback.c.messages)).scalar_one()
        review = connection.execute(sa.select(example_reviews.c.replacement)).scalar_one()
        assert connection.scalar(sa.select(sa.func.count()).select_from(examples))
    assert MAIL not in json.dumps([stored, review])
