"""The retraining sensor: starts the retrain job when enough new accepted examples are there.

What belongs here: reading the numbers and acting on the decision, which is ``pipelines.labels.trigger``. A sensor, not
declarative automation, because it accumulates events up to a number.
Concept: https://docs.dagster.io/guides/automate/sensors
"""

import dagster as dg

from pipelines.declaration import Declaration
from pipelines.jobs import AssetJob
from pipelines.labels.settings import LabelSettings
from pipelines.labels.trigger import Exhausted, LastRun, Start, TriggerState, Untrained, decide, untrained
from pipelines.stores import Stores

BATCH_TAG = "freshet/batch"
ATTEMPT_TAG = "freshet/attempt"
REASON_TAG = "freshet/reason"

ENDED: dict[dg.DagsterRunStatus, LastRun] = {
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "cancelled",
}
"""Every other status is a run in flight."""


def retraining_sensor(
    declaration: Declaration, labels: LabelSettings, job: AssetJob, *, running: bool
) -> dg.SensorDefinition:
    """Start ``job`` once ``minimum_new`` accepted examples exist that no successful training has used."""
    use_case = declaration.name

    @dg.sensor(
        name=f"{use_case}_retraining_sensor",
        job=job,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
        description=f"Retrains {use_case} once {labels.minimum_new} accepted examples are new to it.",
    )
    def sensor(context: dg.SensorEvaluationContext, stores: dg.ResourceParam[Stores]) -> dg.RunRequest | dg.SkipReason:
        new = untrained(stores.catalog, use_case, minimum=labels.minimum_new)
        state = trigger_state(context.instance, f"{use_case}_retrain", new, labels)
        decision = decide(state)
        if isinstance(decision, Start):
            tags = {BATCH_TAG: decision.batch_id, ATTEMPT_TAG: str(decision.attempt), REASON_TAG: decision.reason}
            return dg.RunRequest(run_key=decision.run_key, tags=tags)
        if isinstance(decision, Exhausted):
            context.log.error(decision.reason)
        return dg.SkipReason(decision.reason)

    return sensor


def trigger_state(instance: dg.DagsterInstance, job: str, new: Untrained, labels: LabelSettings) -> TriggerState:
    """The numbers that the decision is made of, from the instance's runs of ``job``."""
    in_flight = [status for status in dg.DagsterRunStatus if status not in ENDED]
    of_batch = instance.get_runs(dg.RunsFilter(job_name=job, tags={BATCH_TAG: new.batch_id}), limit=100)
    return TriggerState(
        untrained=new,
        minimum=labels.minimum_new,
        maximum_attempts=labels.maximum_attempts,
        runs_in_flight=instance.get_runs_count(dg.RunsFilter(job_name=job, statuses=in_flight)),
        attempts=max((int(run.tags.get(ATTEMPT_TAG, "1")) for run in of_batch), default=0),
        last_run=next((ENDED.get(run.status) for run in of_batch), None),
    )
