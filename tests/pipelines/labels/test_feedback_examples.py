"""What applications report of answers becomes examples."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from pipelines.catalog import feedback
from pipelines.errors import ConfigError
from pipelines.labels.feedback import Feedback, feedback_examples, record_feedback
from pipelines.labels.reading import read_examples
from pipelines.labels.settings import LabelSettings
from pipelines.prompt import Message

MORNING = datetime(2026, 5, 1, 8, tzinfo=UTC)
QUESTION = (Message("user", "Is the pump loud?"),)
BASE = Feedback("f-0", QUESTION, "It is very loud.", conversation="c-1", author="ann", version="v3")


def report(catalog: sa.Engine, *reports: Feedback) -> None:
    """One an hour."""
    for number, each in enumerate(reports):
        at = each.received_at or MORNING + timedelta(hours=number)
        assert record_feedback(catalog, "mail", replace(each, feedback_id=f"f-{number}", received_at=at))


def test_a_correction_becomes_a_chat_with_what_should_have_been(catalog: sa.Engine) -> None:
    """T20: it is a human's, the rejected answer is the model's."""
    report(catalog, replace(BASE, correction="No, it hums.", thumb=-1, context=("The pump hums.",)))
    (found,) = feedback_examples(catalog, "mail", "generate")
    assert found.messages == (*QUESTION, Message("assistant", "No, it hums."))
    assert (found.rejected, found.context, found.text) == ("It is very loud.", ("The pump hums.",), "Is the pump loud?")
    assert (found.origin, found.author, found.group, found.location) == ("human", "ann", "c-1", "feedback:1")
    assert (found.labelled_at, found.problem) == (MORNING, None)


def test_an_approved_answer_is_the_models_own(catalog: sa.Engine) -> None:
    """T20."""
    report(catalog, replace(BASE, thumb=1))
    (found,) = feedback_examples(catalog, "mail", "generate")
    assert (found.origin, found.messages[-1].content, found.rejected) == ("model", "It is very loud.", None)


def test_a_thumb_down_alone_makes_no_example_and_takes_an_approval_back(catalog: sa.Engine) -> None:
    report(catalog, replace(BASE, thumb=1), replace(BASE, thumb=-1))
    assert feedback_examples(catalog, "mail", "generate") == []
    report_again = replace(BASE, feedback_id="f-9", thumb=1, received_at=MORNING + timedelta(days=1))
    record_feedback(catalog, "mail", report_again)
    assert len(feedback_examples(catalog, "mail", "generate")) == 1


def test_a_thumb_down_leaves_the_correction_of_the_answer_standing(catalog: sa.Engine) -> None:
    report(catalog, replace(BASE, correction="No, it hums."), replace(BASE, thumb=-1))
    assert [row.messages[-1].content for row in feedback_examples(catalog, "mail", "generate")] == ["No, it hums."]


def test_a_corrected_label_becomes_a_text_with_it(catalog: sa.Engine) -> None:
    given = replace(BASE, answer="billing", conversation=None)
    report(
        catalog,
        replace(given, labels=("shipping",)),
        replace(given, correction="returns; shipping"),
        replace(given, answer="billing; returns", thumb=1),
        replace(given, labels=()),
    )
    several = LabelSettings(feedback=True, multi_label=True, text_column="body", label_column="topics")
    found = feedback_examples(catalog, "mail", "classify", several)
    assert [row.labels for row in found] == [("shipping",), ("returns", "shipping"), ("billing", "returns"), ()]
    assert [row.origin for row in found] == ["human", "human", "model", "human"]
    assert {row.text for row in found} == {"Is the pump loud?"}
    assert {row.problem for row in found} == {None}
    single = feedback_examples(catalog, "mail", "classify", LabelSettings(feedback=True))
    assert [row.labels for row in single][:2] == [("shipping",), ("returns; shipping",)]


def test_feedback_is_taken_in_and_the_later_one_on_the_same_answer_counts(inbox: Any) -> None:
    report(
        inbox.catalog,
        replace(BASE, thumb=1),
        replace(BASE, correction="No, it hums."),
        replace(BASE, correction="It whispers.", messages=(Message("user", "And at night?"),)),
    )
    more = {"task": "generate"}
    taken = inbox.take_in(more=more, url=None, feedback=True)
    assert (taken.files, taken.rows, taken.accepted, taken.superseded) == (1, 3, 2, 1)
    assert taken.by_origin == {"human": 2}
    again = inbox.take_in(more=more, url=None, feedback=True)
    assert (again.new, again.rejudged, again.withdrawn) == (0, 0, 0)
    later = replace(BASE, feedback_id="late", correction="It purrs.", received_at=MORNING + timedelta(days=9))
    record_feedback(inbox.catalog, "mail", later)
    taken = inbox.take_in(more=more, url=None, feedback=True)
    assert (taken.new, taken.accepted, taken.superseded) == (1, 2, 2)
    said = {messages[-1]["content"] for state, messages in inbox.stored("state", "messages") if state == "accepted"}
    assert said == {"It purrs.", "It whispers."}
    record_feedback(
        inbox.catalog,
        "mail",
        replace(later, feedback_id="same", correction="No, it hums.", received_at=MORNING + timedelta(days=10)),
    )
    taken = inbox.take_in(more=more, url=None, feedback=True)
    assert (taken.new, taken.accepted, taken.superseded) == (0, 2, 2), "what was said first is said again"
    said = {messages[-1]["content"] for state, messages in inbox.stored("state", "messages") if state == "accepted"}
    assert said == {"No, it hums.", "It whispers."}


def test_feedback_is_read_only_where_the_use_case_wants_it(inbox: Any, letters: Any) -> None:
    inbox.write("a.jsonl", *letters(2))
    report(inbox.catalog, replace(BASE, labels=("noise",)))
    assert inbox.take_in().accepted == 2
    assert inbox.take_in(feedback=True).categories == {"billing": 1, "noise": 1, "shipping": 1}
    assert inbox.take_in().accepted == 3, "what came in stays"


def test_reporting_the_same_again_is_harmless_and_another_under_its_id_refused(catalog: sa.Engine) -> None:
    given = replace(BASE, thumb=1)
    assert record_feedback(catalog, "mail", given)
    assert not record_feedback(catalog, "mail", given)
    assert record_feedback(catalog, "other use case", given)
    with pytest.raises(ConfigError, match="'f-0' is known with another thumb"):
        record_feedback(catalog, "mail", replace(given, thumb=-1))
    with catalog.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(feedback)) == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"thumb": None}, "neither"),
        ({"messages": ()}, "end with the user's"),
        ({"messages": (*QUESTION, Message("assistant", "Yes."))}, "end with the user's"),
        ({"origin": "robot"}, "'robot' is not one of human, rule, model"),
        ({"feedback_id": ""}, "between 1 and 64"),
    ],
)
def test_what_says_nothing_of_an_answer_is_refused(catalog: sa.Engine, wrong: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        record_feedback(catalog, "mail", replace(BASE, **{"thumb": 1, **wrong}))


def test_what_no_database_stores_is_replaced_and_what_is_masked_never_stored(catalog: sa.Engine) -> None:
    mail = "zelda.harkness@brightmail.com"
    given = replace(
        BASE, messages=(Message("user", f"Is {mail}\x00 right?\ud800"),), answer=mail, correction=f"No: {mail}.",
        context=(f"Write to {mail}",),
    )  # fmt: skip
    assert record_feedback(catalog, "mail", given, labels=LabelSettings(feedback=True, personal_data="mask"))
    with catalog.connect() as connection:
        row = connection.execute(sa.select(feedback)).mappings().one()
    assert mail not in str(dict(row))
    assert row["messages"][0]["content"].endswith("\x1a right?\x1a")
    assert not record_feedback(catalog, "mail", given, labels=LabelSettings(feedback=True, personal_data="mask"))


SELECT = """
SELECT 'answer-' || id AS id, question AS prompt, COALESCE(correction, answer) AS completion,
       CASE WHEN correction IS NULL THEN 'model' ELSE 'human' END AS origin,
       conversation AS "group", editor AS author, rated_at AS time
FROM answers
WHERE correction IS NOT NULL OR thumb = 1
"""


def test_a_table_of_the_applications_own_is_read_by_a_select(inbox: Any) -> None:
    database = sqlite3.connect(inbox.base / "app.db")
    database.execute(
        "CREATE TABLE answers "
        "(id INTEGER PRIMARY KEY, conversation, question, answer, correction, thumb, editor, rated_at)"
    )
    rows = [
        ("c-1", "Is the pump loud?", "Very loud.", "No, it hums.", -1, "ann", "2026-05-01T08:00:00"),
        ("c-2", "Is the pump blue?", "Yes, it is blue.", None, 1, None, "2026-05-01T09:00:00"),
        ("c-3", "Is the pump dear?", "Yes.", None, -1, None, "2026-05-01T09:30:00"),
        ("c-4", "Is the pump heavy?", "Yes.", None, None, None, None),
    ]
    with database:
        database.executemany(
            "INSERT INTO answers (conversation, question, answer, correction, thumb, editor, rated_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
    sql = LabelSettings.model_validate({"sql": {"url": "sqlite:///app.db", "query": SELECT}})
    found = read_examples(sql, base=inbox.base, task="generate").rows
    assert [(row.messages[-1].content, row.origin, row.group, row.author) for row in found] == [
        ("No, it hums.", "human", "c-1", "ann"),
        ("Yes, it is blue.", "model", "c-2", None),
    ]
    taken = inbox.take_in(more={"task": "generate"}, url=None, sql=sql.sql)
    assert (taken.accepted, taken.by_origin) == (2, {"human": 1, "model": 1})
    with database:
        database.execute(
            "UPDATE answers SET correction = 'No, it is green.', editor = 'bob' WHERE conversation = 'c-2'"
        )
    database.close()
    taken = inbox.take_in(more={"task": "generate"}, url=None, sql=sql.sql)
    assert (taken.new, taken.withdrawn, taken.accepted, taken.by_origin) == (1, 1, 2, {"human": 2})
