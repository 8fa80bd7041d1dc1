"""The sensor on a real instance with real run records; the decision itself is tested as a table with its module."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from pipelines.catalog import examples, feedback, now
from pipelines.declaration import load_declaration
from pipelines.definitions import build_definitions
from pipelines.environment import Environment
from pipelines.jobs import retrain_job
from pipelines.labels.settings import LabelSettings
from pipelines.stores import Stores
from resources.stores import StoresResource
from sensors.retraining import ATTEMPT_TAG, BATCH_TAG, CAUSE_TAG, retraining_sensor

SENSOR = "compliance_retraining_sensor"
JOB = "compliance_retrain"
MINIMUM = 100


class Harness:
    """One instance, one catalog: submit examples, tick, and let runs end as they may."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.definitions = build_definitions()
        self.sensor = self.definitions.resolve_sensor_def(SENSOR)
        self.cursor: str | None = None
        self.observed: list[dg.AssetObservation] = []
        self.stores = Stores(Environment())

    def configure(self, **settings: Any) -> None:
        """Other settings of the labels than the use case declares."""
        declaration = load_declaration("compliance")
        assert declaration.labels is not None
        labels = declaration.labels.model_copy(update=settings)
        self.sensor = retraining_sensor(declaration, labels, retrain_job(declaration), running=False)

    def submit(self, count: int, *, state: str = "accepted", start: int = 0, **more: Any) -> None:
        row = {
            "use_case": "compliance", "labels": ["none"], "group": "g", "split": "train", "origin": "human",
            "location": "l:1", "raw": "", "state": state, "reasons": [], "suite": "s", "received_at": now(), **more,
        }  # fmt: skip
        rows = [{**row, "example_id": f"{state}-{n}", "text": f"text {n}"} for n in range(start, start + count)]
        with self.stores.catalog.begin() as connection:
            connection.execute(sa.insert(examples), rows)

    def train_on_everything(self) -> None:
        with self.stores.catalog.begin() as connection:
            connection.execute(sa.update(examples).values(trained_at=now()))

    def judge(self, version: str, *thumbs: int) -> None:
        row = {"use_case": "compliance", "messages": [], "version": version}
        rows = [row | {"feedback_id": f"{version}-{n}", "thumb": thumb} for n, thumb in enumerate(thumbs)]
        for n, each in enumerate(rows):
            each["received_at"] = now() - timedelta(minutes=len(thumbs) - n)
        with self.stores.catalog.begin() as connection:
            connection.execute(sa.insert(feedback), rows)

    def tick(self) -> dg.RunRequest | str:
        with dg.build_sensor_context(
            instance=self.instance,
            definitions=self.definitions,
            resources={"stores": StoresResource()},
            cursor=self.cursor,
        ) as context:
            result = self.sensor.evaluate_tick(context)
        self.cursor = result.cursor
        self.observed += [event for event in result.asset_events if isinstance(event, dg.AssetObservation)]
        return result.run_requests[0] if result.run_requests else str(result.skip_message)

    def run(self, request: dg.RunRequest, status: dg.DagsterRunStatus, **tags: str) -> dg.DagsterRun:
        job = self.definitions.resolve_job_def(JOB)
        return self.instance.create_run_for_job(job, tags={**request.tags, **tags}, status=status)


@pytest.fixture
def harness(freshet_home: Path) -> Harness:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Harness(instance)


def requested(tick: dg.RunRequest | str) -> dg.RunRequest:
    assert isinstance(tick, dg.RunRequest), tick
    return tick


def test_below_the_minimum_it_says_the_numbers(harness: Harness) -> None:
    harness.submit(37)
    assert "37 of 100 new accepted examples" in str(harness.tick())


def test_quarantined_examples_do_not_count(harness: Harness) -> None:
    """T2"""
    harness.submit(99)
    harness.submit(50, state="quarantined")
    assert "99 of 100" in str(harness.tick())


def test_at_the_minimum_it_asks_for_one_run_with_batch_and_attempt(harness: Harness) -> None:
    harness.submit(MINIMUM)
    request = requested(harness.tick())
    assert request.tags[ATTEMPT_TAG] == "1"
    assert request.tags[BATCH_TAG] in str(request.run_key)


def test_while_a_run_is_in_flight_it_asks_for_no_other(harness: Harness) -> None:
    """T3"""
    harness.submit(MINIMUM)
    harness.run(requested(harness.tick()), dg.DagsterRunStatus.STARTED)
    assert "in flight" in str(harness.tick())


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING])
def test_a_run_that_only_waits_is_in_flight_too(harness: Harness, status: dg.DagsterRunStatus) -> None:
    """T3"""
    harness.submit(MINIMUM)
    harness.run(requested(harness.tick()), status)
    assert "in flight" in str(harness.tick())


def test_a_run_launched_by_hand_is_in_flight_too(harness: Harness) -> None:
    harness.submit(MINIMUM)
    harness.run(dg.RunRequest(), dg.DagsterRunStatus.STARTED)
    assert "in flight" in str(harness.tick())


def test_a_failed_run_is_tried_again_under_another_key_up_to_the_cap_and_then_it_says_so(harness: Harness) -> None:
    """T3: Dagster remembers a run key even when its run failed."""
    harness.submit(MINIMUM)
    keys = []
    for attempt in range(1, LabelSettings.model_fields["maximum_attempts"].default + 1):
        request = requested(harness.tick())
        assert request.tags[ATTEMPT_TAG] == str(attempt)
        keys.append(request.run_key)
        harness.run(request, dg.DagsterRunStatus.FAILURE)
    assert len(set(keys)) == len(keys)
    assert harness.observed == []
    assert "3 of 3 attempts are used up" in str(harness.tick())
    assert "3 of 3 attempts are used up" in str(harness.tick())
    (observed,) = harness.observed
    assert observed.asset_key == dg.AssetKey(["compliance", "lora_adapter"])
    assert "3 of 3 attempts are used up" in str(observed.description)


def test_two_ticks_at_once_ask_for_one_run(harness: Harness) -> None:
    """T3: Dagster starts one run for a key."""
    harness.submit(MINIMUM)
    assert requested(harness.tick()).run_key == requested(harness.tick()).run_key


def test_a_crashed_run_that_dagster_starts_again_is_in_flight(harness: Harness) -> None:
    """T3: its own retry and another attempt would be two."""
    harness.submit(MINIMUM)
    crashed = harness.run(requested(harness.tick()), dg.DagsterRunStatus.FAILURE, **{"dagster/will_retry": "true"})
    assert "in flight" in str(harness.tick())
    harness.instance.add_run_tags(crashed.run_id, {"dagster/auto_retry_run_id": "the other"})
    assert requested(harness.tick()).tags[ATTEMPT_TAG] == "2"


def test_examples_that_are_all_held_out_start_nothing(harness: Harness) -> None:
    """T2"""
    harness.submit(MINIMUM, split="test")
    assert "all of them are held out" in str(harness.tick())


def test_few_examples_start_a_run_when_the_oldest_has_waited_long_enough(harness: Harness) -> None:
    harness.configure(maximum_age_days=14)
    harness.submit(3, received_at=now() - timedelta(days=13))
    assert "the oldest waits 13.0 of 14.0 days" in str(harness.tick())
    harness.submit(1, start=3, received_at=now() - timedelta(days=15))
    assert requested(harness.tick()).tags[CAUSE_TAG] == "age"


def test_in_the_cool_down_none_follows(harness: Harness) -> None:
    harness.configure(cooldown_hours=6)
    harness.submit(MINIMUM)
    harness.run(requested(harness.tick()), dg.DagsterRunStatus.FAILURE)
    assert "6.0 of 6.0 hours of cool-down are left" in str(harness.tick())
    harness.configure(cooldown_hours=0)
    assert requested(harness.tick()).tags[ATTEMPT_TAG] == "2"


def test_a_drop_in_approval_starts_one_run_without_new_examples(harness: Harness) -> None:
    """T3"""
    harness.configure(maximum_score_drop=0.2, score_window=10)
    harness.judge("v1", *[1] * 10, *[1] * 8)
    assert "18 of 20 feedbacks on v1" in str(harness.tick())
    harness.judge("v2", *[1] * 10, *[-1, 1] * 5)
    request = requested(harness.tick())
    assert request.tags[CAUSE_TAG] == "score"
    assert "v2 approved 100% at first, 50% in the last 10 feedbacks" in request.tags["freshet/reason"]
    harness.run(request, dg.DagsterRunStatus.SUCCESS)
    assert "retrained for it already" in str(harness.tick())


def test_the_cursor_says_where_it_stands(harness: Harness) -> None:
    harness.submit(37)
    harness.tick()
    assert harness.cursor is not None
    stands = json.loads(harness.cursor)
    assert (stands["decision"], stands["new"], stands["minimum"], stands["in_flight"]) == ("Wait", 37, MINIMUM, 0)


def test_another_full_minimum_of_examples_starts_a_new_batch(harness: Harness) -> None:
    harness.submit(MINIMUM)
    for _ in range(3):
        harness.run(requested(harness.tick()), dg.DagsterRunStatus.FAILURE)
    harness.submit(MINIMUM, start=MINIMUM)
    assert requested(harness.tick()).tags[ATTEMPT_TAG] == "1"


def test_after_a_successful_training_it_waits_for_new_examples(harness: Harness) -> None:
    harness.submit(MINIMUM)
    harness.run(requested(harness.tick()), dg.DagsterRunStatus.SUCCESS)
    harness.train_on_everything()
    assert "0 of 100" in str(harness.tick())


def test_it_is_stopped_unless_automation_is_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = build_definitions().resolve_sensor_def(SENSOR)
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
    monkeypatch.setenv("FRESHET_AUTOMATION", "true")
    definitions = build_definitions()
    assert definitions.resolve_sensor_def(SENSOR).default_status is dg.DefaultSensorStatus.RUNNING
    for schedule in ("support_policies_schedule", "compliance_labels_schedule"):
        assert definitions.resolve_schedule_def(schedule).default_status is dg.DefaultScheduleStatus.RUNNING
