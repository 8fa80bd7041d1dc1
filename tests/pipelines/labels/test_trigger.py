from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given as drawn
from hypothesis import strategies as st

from pipelines.labels.snapshot import freeze_training_set
from pipelines.labels.trigger import (
    CoolingDown,
    Decision,
    Exhausted,
    InFlight,
    LastRun,
    Score,
    Start,
    TriggerState,
    Untrained,
    Wait,
    decide,
    mark_trained,
    oldest_untrained,
    untrained,
)
from tests.pipelines.labels.query_plans import plans

Letters = Callable[..., list[dict[str, Any]]]

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
FELL = Score("v3", first=0.9, last=0.7, window=100, feedbacks=230, comparable=True, batch_id="s1")
SCORED = {"score": FELL, "maximum_drop": 0.1}
DROP = "v3 approved 90% at first, 70% in the last 100 feedbacks (a drop of more than 10% counts)"
DONE = "retrained for it already, whatever the gate said of the candidate; 70 more feedbacks would be another reason"


def state(count: int, in_flight: int = 0, attempts: int = 0, last: LastRun | None = None, **more: Any) -> TriggerState:
    return TriggerState(Untrained(count, "b1"), 50, 3, in_flight, attempts, last, **more)


@pytest.mark.parametrize(
    ("given", "decision"),
    [
        (state(0), Wait("0 of 50 new accepted examples")),
        (state(37), Wait("37 of 50 new accepted examples")),
        (state(49, attempts=1, last="failed"), Wait("49 of 50 new accepted examples")),
        (
            state(50),
            Start("retrain-b1-1", "b1", 1, "50 of 50 new accepted examples; attempt 1 of 3 (no attempt yet)"),
        ),
        (
            state(63, in_flight=1),
            InFlight("1 retraining in flight; 63 of 50 new accepted examples wait for it to end"),
        ),
        (
            state(12, in_flight=1, attempts=1),
            InFlight("1 retraining in flight; 12 of 50 new accepted examples wait for it to end"),
        ),
        (
            state(50, attempts=1, last="failed"),
            Start("retrain-b1-2", "b1", 2, "50 of 50 new accepted examples; attempt 2 of 3 (the last attempt failed)"),
        ),
        (
            state(50, attempts=2, last="cancelled"),
            Start(
                "retrain-b1-3", "b1", 3, "50 of 50 new accepted examples; attempt 3 of 3 (the last attempt cancelled)"
            ),
        ),
        (
            state(63, attempts=3, last="failed"),
            Exhausted(
                "63 of 50 new accepted examples, but 3 of 3 attempts are used up (the last attempt failed): look at "
                "the failed runs, then launch the retraining by hand; 37 more examples would start a new batch",
                "b1",
            ),
        ),
        (
            state(50, in_flight=1, attempts=3, last="failed"),
            InFlight("1 retraining in flight; 50 of 50 new accepted examples wait for it to end"),
        ),
    ],
)
def test_the_decision_by_the_number_of_examples(given: TriggerState, decision: Decision) -> None:
    """T3."""
    assert decide(given) == decision


@pytest.mark.parametrize(
    ("given", "decision"),
    [
        (
            state(60, trainable=False),
            Wait(
                "60 of 50 new accepted examples; all of them are held out, so there is nothing new to train on",
            ),
        ),
        (state(12, oldest_waits=40 * DAY), Wait("12 of 50 new accepted examples")),
        (
            state(12, oldest_waits=3 * DAY, maximum_age=14 * DAY),
            Wait("12 of 50 new accepted examples; the oldest waits 3.0 of 14.0 days"),
        ),
        (
            state(12, oldest_waits=15 * DAY, maximum_age=14 * DAY),
            Start(
                "retrain-b1-1",
                "b1",
                1,
                "12 of 50 new accepted examples, the oldest waiting 15.0 of 14.0 days; attempt 1 of 3 (no attempt yet)",
                "age",
            ),
        ),
        (
            state(12, trainable=False, maximum_age=14 * DAY),
            Wait("12 of 50 new accepted examples; all of them are held out, so there is nothing new to train on"),
        ),
        (
            state(12, attempts=3, last="failed", oldest_waits=15 * DAY, maximum_age=14 * DAY),
            Exhausted(
                "12 of 50 new accepted examples, the oldest waiting 15.0 of 14.0 days, but 3 of 3 attempts are used "
                "up (the last attempt failed): look at the failed runs, then launch the retraining by hand; 38 more "
                "examples would start a new batch",
                "b1",
            ),
        ),
        (
            state(50, since_last_start=HOUR, cooldown=6 * HOUR),
            CoolingDown(
                "50 of 50 new accepted examples; the last retraining started 1.0 hours ago, 5.0 of 6.0 hours of "
                "cool-down are left"
            ),
        ),
        (state(12, since_last_start=HOUR, cooldown=6 * HOUR), Wait("12 of 50 new accepted examples")),
        (
            state(50, since_last_start=6 * HOUR, cooldown=6 * HOUR),
            Start("retrain-b1-1", "b1", 1, "50 of 50 new accepted examples; attempt 1 of 3 (no attempt yet)"),
        ),
        (
            state(0, **SCORED),
            Start(
                "retrain-s1-1",
                "s1",
                1,
                f"0 of 50 new accepted examples; {DROP}; attempt 1 of 3 (no attempt yet)",
                "score",
            ),
        ),
        (
            state(0, score_attempts=1, score_last_run="succeeded", **SCORED),
            Wait(f"0 of 50 new accepted examples; {DROP}; {DONE}"),
        ),
        (  # whatever the gate said of the candidate, after the last attempt as well as after the first
            state(0, score_attempts=3, score_last_run="succeeded", **SCORED),
            Wait(f"0 of 50 new accepted examples; {DROP}; {DONE}"),
        ),
        (  # and another window of the same drop has attempts of its own
            state(0, score=replace(FELL, feedbacks=300, batch_id="s2"), maximum_drop=0.1),
            Start(
                "retrain-s2-1",
                "s2",
                1,
                f"0 of 50 new accepted examples; {DROP}; attempt 1 of 3 (no attempt yet)",
                "score",
            ),
        ),
        (
            state(0, score_attempts=3, score_last_run="failed", **SCORED),
            Exhausted(
                f"0 of 50 new accepted examples; {DROP}, but 3 of 3 attempts are used up (the last attempt failed): "
                "look at the failed runs, then launch the retraining by hand; 70 more feedbacks would start a new "
                "batch",
                "s1",
            ),
        ),
        (
            state(0, score=replace(FELL, last=0.85), maximum_drop=0.1),
            Wait(f"0 of 50 new accepted examples; {DROP.replace('70%', '85%')}"),
        ),
        (
            state(0, score=replace(FELL, feedbacks=130, comparable=False), maximum_drop=0.1),
            Wait("0 of 50 new accepted examples; 130 of 200 feedbacks on v3"),
        ),
        (
            state(50, **SCORED),
            Start("retrain-b1-1", "b1", 1, "50 of 50 new accepted examples; attempt 1 of 3 (no attempt yet)"),
        ),
        (
            state(50, attempts=3, last="failed", **SCORED),
            Exhausted(
                "50 of 50 new accepted examples, but 3 of 3 attempts are used up (the last attempt failed): look at "
                "the failed runs, then launch the retraining by hand; 50 more examples would start a new batch",
                "b1",
            ),
        ),
    ],
)
def test_the_decision_by_age_cool_down_and_score(given: TriggerState, decision: Decision) -> None:
    """T3."""
    assert decide(given) == decision


spans = st.one_of(st.none(), st.timedeltas(timedelta(), 40 * DAY))
last_runs = st.sampled_from([None, "succeeded", "failed", "cancelled"])
states = st.builds(
    TriggerState,
    untrained=st.builds(Untrained, st.integers(0, 200), st.just("b1")),
    minimum=st.integers(1, 100),
    maximum_attempts=st.integers(1, 4),
    runs_in_flight=st.integers(0, 2),
    attempts=st.integers(0, 5),
    last_run=last_runs,
    trainable=st.booleans(),
    oldest_waits=spans,
    maximum_age=spans,
    since_last_start=spans,
    cooldown=st.timedeltas(timedelta(), 10 * DAY),
    score=st.one_of(
        st.none(),
        st.builds(
            Score,
            version=st.just("v1"),
            first=st.floats(0, 1),
            last=st.floats(0, 1),
            window=st.integers(10, 100),
            feedbacks=st.integers(0, 500),
            comparable=st.booleans(),
            batch_id=st.just("s1"),
        ),
    ),
    maximum_drop=st.one_of(st.none(), st.floats(0.01, 0.99)),
    score_attempts=st.integers(0, 5),
    score_last_run=last_runs,
)


@drawn(states)
def test_a_start_is_never_beside_a_run_beyond_the_cap_in_the_cool_down_or_without_cause(given: TriggerState) -> None:
    """T3."""
    decision = decide(given)
    assert decision.reason.startswith(f"{given.untrained.count} of {given.minimum}") or given.runs_in_flight
    if isinstance(decision, Exhausted):
        assert (given.attempts if decision.batch_id == "b1" else given.score_attempts) >= given.maximum_attempts
    if not isinstance(decision, Start):
        return
    assert not given.runs_in_flight
    assert decision.attempt <= given.maximum_attempts
    assert decision.attempt == 1 + (given.score_attempts if decision.cause == "score" else given.attempts)
    assert given.since_last_start is None or given.since_last_start >= given.cooldown
    if decision.cause == "examples":
        assert given.trainable
        assert given.untrained.count >= given.minimum
    elif decision.cause == "age":
        assert given.trainable
        assert 0 < given.untrained.count < given.minimum
        assert given.oldest_waits >= given.maximum_age
    else:
        assert given.score.first - given.score.last > given.maximum_drop
        assert given.score.comparable


@drawn(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["succeeded", "failed", "cancelled"])), max_size=30),
    st.integers(1, 4),
)
def test_a_batch_gets_at_most_its_attempts_and_after_success_the_count_starts_anew(
    steps: list[tuple[int, LastRun]], maximum_attempts: int
) -> None:
    """T3: however examples trickle in, and however runs end."""
    waiting, successes = 0, 0
    ended: dict[str, list[LastRun]] = {}
    keys: set[str] = set()
    for arrived, outcome in steps:
        waiting += arrived
        batch = f"{successes}-{waiting // 20}"
        runs = ended.setdefault(batch, [])
        decision = decide(
            TriggerState(Untrained(waiting, batch), 20, maximum_attempts, 0, len(runs), runs[-1] if runs else None)
        )
        assert (waiting < 20) == isinstance(decision, Wait)
        if isinstance(decision, Start):
            assert decision.run_key not in keys
            keys.add(decision.run_key)
            runs.append(outcome)
            if outcome == "succeeded":
                waiting, successes = 0, successes + 1
    assert all(len(runs) <= maximum_attempts for runs in ended.values())


def test_a_run_that_ended_well_and_trained_nothing_uses_up_its_attempt() -> None:
    """T3: it must not fire for ever."""
    assert isinstance(decide(state(50, attempts=1, last="succeeded")), Start)
    assert isinstance(decide(state(50, attempts=3, last="succeeded")), Exhausted)


class Runs:
    """What Dagster does with decisions: one run for a key, whatever becomes of it."""

    def __init__(self, inbox: Any, minimum: int = 50, maximum_attempts: int = 3) -> None:
        self.inbox, self.minimum, self.maximum_attempts = inbox, minimum, maximum_attempts
        self.keys: set[str] = set()
        self.attempts: dict[str, list[int]] = {}

    def tick(self) -> Decision:
        new = untrained(self.inbox.catalog, "mail", minimum=self.minimum)
        attempts = self.attempts.setdefault(new.batch_id, [])
        last: LastRun | None = "failed" if attempts else None
        decision = decide(TriggerState(new, self.minimum, self.maximum_attempts, 0, max(attempts, default=0), last))
        if isinstance(decision, Start):
            assert decision.run_key not in self.keys, "Dagster would skip it without a word"
            self.keys.add(decision.run_key)
            attempts.append(decision.attempt)
        return decision

    def train(self) -> None:
        inbox = self.inbox
        folder = inbox.base / "training_set"
        frozen = freeze_training_set(inbox.settings, use_case="mail", catalog=inbox.catalog, folder=folder)
        mark_trained(inbox.catalog, "mail", frozen)


def test_a_failed_batch_is_retried_up_to_the_cap_however_examples_trickle_in(inbox: Any, letters: Letters) -> None:
    """T3."""
    runs = Runs(inbox)
    decisions = []
    for count in range(48, 58):
        inbox.write("a.jsonl", *letters(count))
        inbox.take_in()
        decisions.append(runs.tick())
    assert [type(decision) for decision in decisions] == [Wait] * 2 + [Start] * 3 + [Exhausted] * 5
    assert [decision.attempt for decision in decisions if isinstance(decision, Start)] == [1, 2, 3]


def test_as_much_again_of_new_data_starts_afresh_and_success_begins_a_new_count(inbox: Any, letters: Letters) -> None:
    """T3."""
    runs = Runs(inbox, maximum_attempts=1)
    inbox.write("a.jsonl", *letters(60))
    inbox.take_in()
    assert isinstance(runs.tick(), Start)
    assert isinstance(runs.tick(), Exhausted)
    inbox.write("b.jsonl", *letters(40, start=60))
    inbox.take_in()
    assert isinstance(runs.tick(), Start)
    runs.train()
    assert runs.tick() == Wait("0 of 50 new accepted examples")
    inbox.write("c.jsonl", *letters(50, start=100))
    inbox.take_in()
    assert isinstance(runs.tick(), Start)
    assert len(runs.keys) == 3


def test_only_distinct_accepted_untrained_examples_count(inbox: Any, letters: Letters) -> None:
    """T2."""

    def count() -> int:
        return untrained(inbox.catalog, "mail", minimum=10).count

    rows = letters(30)
    inbox.write("a.jsonl", *rows, *rows, "{broken", {"text": "?", "label": "billing"})
    inbox.take_in()
    assert count() == 30
    inbox.write("b.jsonl", *({**row, "group": "a copy of it"} for row in rows))
    inbox.take_in()
    assert count() == 30
    inbox.write("a.jsonl", *rows[1:], {**rows[0], "group": "corrected"})
    inbox.write("b.jsonl")
    inbox.take_in()
    assert count() == 30
    assert untrained(inbox.catalog, "another use case", minimum=10).count == 0


def test_counting_stops_where_more_changes_nothing(
    inbox: Any, monkeypatch: pytest.MonkeyPatch, letters: Letters
) -> None:
    """T4."""
    monkeypatch.setattr("pipelines.labels.trigger._COUNTED", 40)
    inbox.write("a.jsonl", *letters(60))
    inbox.take_in()
    assert (untrained(inbox.catalog, "mail", minimum=10).count, untrained(inbox.catalog, "mail", minimum=20).count) == (
        40,
        60,
    )
    new = untrained(inbox.catalog, "mail", minimum=5)
    assert decide(TriggerState(new, 5, 3, 0, 0)).reason.startswith("40+ of 5 new accepted examples")


def test_examples_count_again_only_when_they_are_new_to_training(inbox: Any, letters: Letters) -> None:
    """T2."""
    inbox.write("a.jsonl", *letters(60))
    inbox.take_in()
    folder = inbox.base / "training_set"
    frozen = freeze_training_set(inbox.settings, use_case="mail", catalog=inbox.catalog, folder=folder)
    inbox.write("b.jsonl", *letters(5, start=60))
    inbox.take_in()
    assert mark_trained(inbox.catalog, "mail", frozen) == 60
    first = inbox.stored("example_id", "trained_at")
    assert mark_trained(inbox.catalog, "mail", frozen) == 0
    assert inbox.stored("example_id", "trained_at") == first
    assert untrained(inbox.catalog, "mail", minimum=10).count == 5


def test_the_batch_stays_the_same_until_training_succeeds_or_as_much_again_has_come(
    inbox: Any, letters: Letters
) -> None:
    """T3."""
    inbox.write("a.jsonl", *letters(12))
    inbox.take_in()
    batch = untrained(inbox.catalog, "mail", minimum=10).batch_id
    inbox.write("a.jsonl", *letters(19))
    inbox.take_in()
    assert untrained(inbox.catalog, "mail", minimum=10).batch_id == batch
    inbox.write("a.jsonl", *letters(20))
    inbox.take_in()
    assert untrained(inbox.catalog, "mail", minimum=10).batch_id != batch


def test_the_count_is_one_query_that_reads_the_index_alone(inbox: Any, letters: Letters) -> None:
    """T4."""
    inbox.write("a.jsonl", *letters(60))
    inbox.take_in()
    assert untrained(inbox.catalog, "mail", minimum=50).count == 60
    (plan,) = plans(inbox.catalog, lambda: untrained(inbox.catalog, "mail", minimum=50))
    reads = [step for step in plan if " examples" in step]
    assert len(reads) == 2
    assert all("USING COVERING INDEX examples_untrained" in step for step in reads)


def test_the_oldest_that_waits_is_the_first_entry_of_an_index(inbox: Any, letters: Letters) -> None:
    """T4."""
    (plan,) = plans(inbox.catalog, lambda: oldest_untrained(inbox.catalog, "mail"))
    assert ["examples_waiting (use_case=? AND state=? AND split=?)" in step for step in plan] == [True]


def test_the_oldest_that_waits_is_accepted_untrained_and_for_training(inbox: Any, letters: Letters) -> None:
    inbox.write("a.jsonl", {"text": "short", "label": "billing"}, *({**row, "split": "test"} for row in letters(5)))
    inbox.take_in()
    assert untrained(inbox.catalog, "mail", minimum=5).count == 5
    assert oldest_untrained(inbox.catalog, "mail") is None
    inbox.write("b.jsonl", *({**row, "split": "train"} for row in letters(10, start=5)))
    inbox.take_in()
    came = [at for at, split in inbox.stored("received_at", "split") if split == "train"]
    assert oldest_untrained(inbox.catalog, "mail") == came[0]
    frozen = freeze_training_set(
        inbox.settings, use_case="mail", catalog=inbox.catalog, folder=inbox.base / "training_set"
    )
    mark_trained(inbox.catalog, "mail", frozen)
    assert oldest_untrained(inbox.catalog, "mail") is None


def test_a_catalog_of_an_earlier_version_gains_the_new_index(catalog: sa.Engine) -> None:
    """T4."""
    from pipelines.catalog import open_catalog

    with catalog.begin() as connection:
        connection.exec_driver_sql("DROP INDEX examples_waiting")
    again = open_catalog(catalog.url.render_as_string())
    assert "examples_waiting" in {index["name"] for index in sa.inspect(again).get_indexes("examples")}
    again.dispose()
