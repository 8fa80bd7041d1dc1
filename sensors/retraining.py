"""The retraining sensor: starts the retrain job for new examples, for their age, or for what users think.

What belongs here: reading the numbers and acting on the decision, which is ``pipelines.labels.trigger``. A sensor, not
declarative automation, because it accumulates events up to a number.
Concept: https://docs.dagster.io/guides/automate/sensors
"""

import json
from datetime import UTC, datetime, timedelta

import dagster as dg

from pipelines.catalog import now
from pipelines.declaration import Declaration
from pipelines.jobs import AssetJob
from pipelines.labels.settings import LabelSettings
from pipelines.labels.trigger import (
    Exhausted,
    LastRun,
    Score,
    Start,
    TriggerState,
    Untrained,
    approval_score,
    decide,
    oldest_untrained,
    untrained,
)
from pipelines.stores import Stores

BATCH_TAG = "freshet/batch"
ATTEMPT_TAG = "freshet/attempt"
CAUSE_TAG = "freshet/cause"
REASON_TAG = "freshet/reason"

ENDED: dict[dg.DagsterRunStatus, LastRun] = {
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "cancelled",
}
"""Every other status is a run in flight."""

IN_FLIGHT = [status for status in dg.DagsterRunStatus if status not in ENDED]
RETRIED_SOON = timedelta(minutes=10)
"""For so long a crashed run that Dagster itself will start again (run_retries) counts as in flight."""


def retraining_sensor(
    declaration: Declaration, labels: LabelSettings, job: AssetJob, *, running: bool
) -> dg.SensorDefinition:
    """Start ``job`` once ``minimum_new`` accepted examples exist that no successful training has used.

    Fewer do where the oldest has waited ``maximum_age_days``, and none where the share of approved answers fell by more
    than ``maximum_score_drop``. When a batch has used up its attempts, every tick logs an error and the asset
    lora_adapter gets one observation.
    """
    use_case = declaration.name

    @dg.sensor(
        name=f"{use_case}_retraining_sensor",
        job=job,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
        description=_description(use_case, labels),
    )
    def sensor(context: dg.SensorEvaluationContext, stores: dg.ResourceParam[Stores]) -> dg.SensorResult:
        state = trigger_state(context.instance, stores, use_case, labels)
        decision = decide(state)
        told = json.loads(context.cursor or "{}").get("exhausted")
        exhausted = decision.batch_id if isinstance(decision, Exhausted) else None
        cursor = json.dumps(
            {
                "decision": type(decision).__name__,
                "new": state.untrained.count,
                "minimum": state.minimum,
                "batch": state.untrained.batch_id,
                "attempts": state.attempts,
                "in_flight": state.runs_in_flight,
                "exhausted": exhausted,
            }
        )
        if isinstance(decision, Start):
            tags = {
                BATCH_TAG: decision.batch_id,
                ATTEMPT_TAG: str(decision.attempt),
                CAUSE_TAG: decision.cause,
                REASON_TAG: decision.reason,
            }
            return dg.SensorResult(run_requests=[dg.RunRequest(run_key=decision.run_key, tags=tags)], cursor=cursor)
        news = []
        if exhausted is not None:
            context.log.error(decision.reason)
            if exhausted != told:  # once on the asset's timeline, where people look
                key = dg.AssetKey([use_case, "lora_adapter"])
                news.append(
                    dg.AssetObservation(key, description=decision.reason, metadata={"retraining": decision.reason})
                )
        return dg.SensorResult(skip_reason=decision.reason, cursor=cursor, asset_events=news)

    return sensor


def _description(use_case: str, labels: LabelSettings) -> str:
    said = f"Retrains {use_case} once {labels.minimum_new} accepted examples are new to it"
    if labels.maximum_age_days is not None:
        said += f", once one has waited for {labels.maximum_age_days:g} days"
    if labels.maximum_score_drop is not None:
        said += f", or once approval of the served version falls by more than {labels.maximum_score_drop:.0%}"
    return f"{said}."


def trigger_state(instance: dg.DagsterInstance, stores: Stores, use_case: str, labels: LabelSettings) -> TriggerState:
    """The numbers that the decision is made of: from the catalog, and from the instance's runs of the retrain job."""
    job = f"{use_case}_retrain"
    # First of all, so that whatever a run that has ended did to the catalog is seen below.
    in_flight = instance.get_runs_count(dg.RunsFilter(job_name=job, statuses=IN_FLIGHT))
    last = next(iter(instance.get_run_records(dg.RunsFilter(job_name=job), limit=1)), None)
    new = untrained(stores.catalog, use_case, minimum=labels.minimum_new)
    oldest = oldest_untrained(stores.catalog, use_case) if new.count else None
    score: Score | None = None
    if labels.maximum_score_drop is not None and (new.count < labels.minimum_new or oldest is None):
        score = approval_score(stores.catalog, use_case, window=labels.score_window)
    attempts, last_run = _attempts(instance, job, new)
    score_attempts, score_last_run = (0, None) if score is None else _attempts(instance, job, score)
    return TriggerState(
        untrained=new,
        minimum=labels.minimum_new,
        maximum_attempts=labels.maximum_attempts,
        runs_in_flight=in_flight + (0 if last is None else _is_to_be_retried(last)),
        attempts=attempts,
        last_run=last_run,
        trainable=oldest is not None,
        oldest_waits=None if oldest is None else now() - oldest,
        maximum_age=None if labels.maximum_age_days is None else timedelta(days=labels.maximum_age_days),
        since_last_start=None if last is None else now() - _started(last),
        cooldown=timedelta(hours=labels.cooldown_hours),
        score=score,
        maximum_drop=labels.maximum_score_drop,
        score_attempts=score_attempts,
        score_last_run=score_last_run,
    )


def _attempts(instance: dg.DagsterInstance, job: str, batch: Untrained | Score) -> tuple[int, LastRun | None]:
    """The highest attempt number among the runs of ``batch``, and how the newest ended."""
    runs = instance.get_runs(dg.RunsFilter(job_name=job, tags={BATCH_TAG: batch.batch_id}), limit=100)
    attempts = max((int(run.tags.get(ATTEMPT_TAG, "1")) for run in runs), default=0)
    return attempts, next((ENDED.get(run.status) for run in runs), None)


def _started(record: dg.RunRecord) -> datetime:
    return record.create_timestamp if record.start_time is None else datetime.fromtimestamp(record.start_time, UTC)


def _is_to_be_retried(record: dg.RunRecord) -> bool:
    """Whether the run crashed and Dagster's own retry of it is still to come: no reason for one of ours beside it."""
    tags = record.dagster_run.tags
    if tags.get("dagster/will_retry") != "true" or "dagster/auto_retry_run_id" in tags:
        return False
    return now() - record.update_timestamp < RETRIED_SOON
