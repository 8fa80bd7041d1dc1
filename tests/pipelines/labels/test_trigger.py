from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from pipelines.labels.snapshot import freeze_training_set
from pipelines.labels.trigger import (
    Decision,
    Exhausted,
    InFlight,
    LastRun,
    Start,
    TriggerState,
    Untrained,
    Wait,
    decide,
    mark_trained,
    untrained,
)

Letters = Callable[..., list[dict[str, Any]]]


def state(count: int, in_flight: int = 0, attempts: int = 0, last: LastRun | None = None) -> TriggerState:
    return TriggerState(Untrained(count, "b1"), 50, 3, in_flight, attempts, last)


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
                "the failed runs, then launch the retraining by hand; 37 more examples would start a new batch"
            ),
        ),
        (
            state(50, in_flight=1, attempts=3, last="failed"),
            InFlight("1 retraining in flight; 50 of 50 new accepted examples wait for it to end"),
        ),
    ],
)
def test_the_decision(given: TriggerState, decision: Decision) -> None:
    """T3."""
    assert decide(given) == decision


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
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    sa.event.listen(inbox.catalog, "before_cursor_execute", note)
    assert untrained(inbox.catalog, "mail", minimum=50).count == 60
    sa.event.remove(inbox.catalog, "before_cursor_execute", note)
    ((statement, parameters),) = asked
    with inbox.catalog.connect() as connection:
        plan = [str(step[3]) for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    reads = [step for step in plan if " examples" in step]
    assert len(reads) == 2
    assert all("USING COVERING INDEX examples_untrained" in step for step in reads)
