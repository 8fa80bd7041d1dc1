"""Schedules: when sources and labels are read. STOPPED unless FRESHET_AUTOMATION is on.

Concept: https://docs.dagster.io/guides/automate/schedules
"""

import dagster as dg

from pipelines.declaration import Declaration
from pipelines.jobs import AssetJob


def source_schedules(declaration: Declaration, job: AssetJob, *, running: bool) -> list[dg.ScheduleDefinition]:
    """One per source: that source, and the index after it."""
    index = dg.AssetKey([declaration.name, "document_index"])
    return [
        _schedule(
            name=f"{declaration.name}_{source.name}_schedule",
            cron=source.schedule,
            job=job,
            selection=[dg.AssetKey([declaration.name, source.name]), index],
            description=f"Refreshes {source.name} of {declaration.name}.",
            running=running,
        )
        for source in declaration.sources
        if source.schedule is not None
    ]


def labels_schedule(declaration: Declaration, job: AssetJob, *, running: bool) -> list[dg.ScheduleDefinition]:
    """Reads and checks newly labelled examples, which the retraining sensor counts."""
    if declaration.labels is None or declaration.labels.schedule is None:
        return []
    return [
        _schedule(
            name=f"{declaration.name}_labels_schedule",
            cron=declaration.labels.schedule,
            job=job,
            selection=[dg.AssetKey([declaration.name, "labelled_examples"])],
            description=f"Takes in the labelled examples of {declaration.name}.",
            running=running,
        )
    ]


def _schedule(
    *, name: str, cron: str, job: AssetJob, selection: list[dg.AssetKey], description: str, running: bool
) -> dg.ScheduleDefinition:
    def request(_context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        return dg.RunRequest(asset_selection=selection)

    return dg.ScheduleDefinition(
        name=name,
        job=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        execution_fn=request,
        description=description,
        default_status=dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED,
    )
