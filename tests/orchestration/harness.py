"""What the tests of orchestration share: a real instance with the real definitions, and readers of results."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from pipelines.definitions import build_definitions


class Dagster:
    """A real instance and the real definitions; runs jobs and reads what they reported."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.definitions = build_definitions()

    def run(self, job: str, *, config: Mapping[str, Any] | None = None, **more: Any) -> dg.ExecuteInProcessResult:
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, raise_on_error=False, run_config=config, **more
        )

    def metadata(self, *key: str) -> dict[str, Any]:
        event = self.instance.get_latest_materialization_event(dg.AssetKey(key))
        assert event is not None
        assert event.asset_materialization is not None
        return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def failures(result: dg.ExecuteInProcessResult) -> str:
    """Messages of every failed step, with what caused them."""
    found: list[str] = []
    for event in result.all_events:
        if event.is_step_failure:
            said, error = event.step_failure_data.user_failure_data, event.step_failure_data.error
            found.append(str(said.description) if said else "")
            while error is not None:
                found.append(str(error.message))
                error = error.cause
    return "\n".join(found)


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    """Name and outcome of every check that was evaluated."""
    return {evaluation.check_name: evaluation.passed for evaluation in result.get_asset_check_evaluations()}
