"""Whether users like the served version less than at first, by the feedback in the catalog."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from pipelines.catalog import feedback
from pipelines.labels.trigger import Score, approval_score
from tests.pipelines.labels.query_plans import plans

START = datetime(2026, 3, 1, tzinfo=UTC)
UP, DOWN = {"thumb": 1}, {"thumb": -1}


class Users:
    """Who say what they think, one after the other."""

    def __init__(self, catalog: sa.Engine) -> None:
        self.catalog = catalog
        self.said = 0

    def say(self, version: str | None, opinions: Iterable[dict[str, Any]], use_case: str = "mail") -> None:
        rows = []
        for opinion in opinions:
            row = {"thumb": None, "correction": None, "labels": None, **opinion}
            at = START + timedelta(minutes=self.said)
            rows.append(row | {"use_case": use_case, "feedback_id": str(self.said), "received_at": at})
            rows[-1] |= {"version": version, "messages": [{"role": "user", "content": "?"}], "answer": "!"}
            self.said += 1
        with self.catalog.begin() as connection:
            connection.execute(sa.insert(feedback), rows)

    def score(self, window: int = 10) -> Score | None:
        return approval_score(self.catalog, "mail", window=window)


@pytest.fixture
def users(catalog: sa.Engine) -> Users:
    return Users(catalog)


def test_without_feedback_that_names_a_version_there_is_no_score(users: Users) -> None:
    assert users.score() is None
    users.say(None, [UP] * 3)
    users.say("v1", [UP] * 3, use_case="another")
    assert users.score() is None


def test_the_share_of_approvals_is_taken_at_first_and_of_late(users: Users) -> None:
    users.say("v1", [UP] * 9 + [DOWN] + [UP] * 30 + [DOWN] * 4 + [UP] * 6)
    score = users.score()
    assert score is not None
    assert (score.version, score.first, score.last, score.feedbacks) == ("v1", 0.9, 0.6, 50)
    assert score.drop == pytest.approx(0.3)


def test_windows_that_overlap_are_not_compared(users: Users) -> None:
    users.say("v1", [UP] * 10 + [DOWN] * 9)
    score = users.score()
    assert score is not None
    assert score.drop is None
    users.say("v1", [DOWN])
    score = users.score()
    assert score is not None
    assert score.drop == 1


def test_a_correction_without_a_thumb_is_a_no_and_silence_is_nothing(users: Users) -> None:
    silence: dict[str, Any] = {}
    users.say("v1", [UP, silence] * 10)
    users.say("v1", [{"correction": "Better so."}, {"labels": ["other"]}, {"thumb": 1, "correction": "Nearly."}] * 4)
    score = users.score(window=12)
    assert score is not None
    assert (score.first, score.last) == (pytest.approx(10 / 12), pytest.approx(4 / 12))
    assert score.drop is None, "22 opinions fill no two windows of twelve"


def test_the_served_version_is_the_one_that_most_of_the_newest_name(users: Users) -> None:
    users.say("v1", [UP] * 40)
    users.say("v2", [DOWN] * 9)
    users.say("v1", [UP])
    score = users.score()
    assert score is not None
    assert (score.version, score.feedbacks, score.drop) == ("v2", 9, None)


def test_a_batch_lasts_a_window_and_belongs_to_its_version(users: Users) -> None:
    """T3: a drop fires once."""
    ids = []
    for version, opinions in (("v1", 20), ("v1", 9), ("v1", 1), ("v2", 30)):
        users.say(version, [UP] * opinions)
        score = users.score()
        assert score is not None
        ids.append(score.batch_id)
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_each_question_is_answered_by_an_index(users: Users) -> None:
    """T4."""
    users.say("v1", [UP] * 40)
    steps = [step for plan in plans(users.catalog, users.score) for step in plan if " feedback" in step]
    assert len(steps) == 4
    assert all("USING" in step and "feedback_by_" in step for step in steps)
    assert not any("B-TREE" in step and "subquery" not in step for step in steps)
