"""The sensor on a real instance with real run records; the decision itself is tested as a table with its module."""

from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from pipelines.catalog import examples, now
from pipelines.definitions import build_definitions
from pipelines.environment import Environment
from pipelines.labels.settings import LabelSettings
from pipelines.stores import Stores
from resources.stores import StoresResource
from sensors.retraining import ATTEMPT_TAG, BATCH_TAG

SENSOR = "compliance_retraining_sensor"
JOB = "compliance_retrain"
MINIMUM = 100


class Harness:
    """One instance, one catalog: submit examples, tick, and let runs end as they may."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.definitions = build_definitions()
        self.stores = Stores(Environment())

    def submit(self, count: int, *, state: str = "accepted", start: int = 0) -> None:
        row = {
            "use_case": "compliance", "labels": ["none"], "group": "g", "split": "train", "origin": "human",
            "location": "l:1", "raw": "", "state": state, "reasons": [], "suite": "s", "received_at": now(),
        }  # fmt: skip
        rows = [{**row, "example_id": f"{state}-{n}", "text": f"text {n}"} for n in range(start, start + count)]
        with self.stores.catalog.begin() as connection:
            connection.execute(sa.insert(examples), rows)

    def train_on_everything(self) -> None:
        with self.stores.catalog.begin() as connection:
            connection.execute(sa.update(examples).values(trained_at=now()))

    def tick(self) -> dg.RunRequest | str:
        sensor = self.definitions.resolve_sensor_def(SENSOR)
        with dg.build_sensor_context(
            instance=self.instance, definitions=self.definitions, resources={"stores": StoresResource()}
        ) as context:
            result = sensor.evaluate_tick(context)
        return result.run_requests[0] if result.run_requests else str(result.skip_message)

    def run(self, request: dg.RunRequest, status: dg.DagsterRunStatus) -> None:
        job = self.definitions.resolve_job_def(JOB)
        self.instance.create_run_for_job(job, tags=dict(request.tags), status=status)


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
    assert "3 of 3 attempts are used up" in str(harness.tick())


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
