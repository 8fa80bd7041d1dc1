"""Jobs: what runs together. A job selects a use case's assets; it holds no logic.

Concept: https://docs.dagster.io/guides/build/jobs
"""

from typing import Any

import dagster as dg

from pipelines.declaration import TRAINING_ASSETS, Declaration
from pipelines.release.registry import rollback
from pipelines.stores import Stores

USE_CASE_TAG = "freshet/use_case"
"""On every run of ours; dagster.yaml limits retrainings by it."""

AssetJob = Any
"""What ``define_asset_job`` returns; dagster exports no public name for it."""


def refresh_assets(declaration: Declaration) -> list[dg.AssetKey]:
    """Keys of what a refresh brings up to date: every source, then the index."""
    names = [source.name for source in declaration.sources]
    return [dg.AssetKey([declaration.name, name]) for name in [*names, *(["document_index"] if names else [])]]


def refresh_job(declaration: Declaration) -> AssetJob:
    """Bring the index to what the sources say.

    One process: a refresh with nothing to do must not pay for a process (and its imports) per source.
    """
    return dg.define_asset_job(
        f"{declaration.name}_refresh",
        selection=dg.AssetSelection.assets(*refresh_assets(declaration)),
        description=f"Brings the index of {declaration.name} to what its sources say.",
        tags={USE_CASE_TAG: declaration.name},
        executor_def=dg.in_process_executor,
    )


def labels_job(declaration: Declaration) -> AssetJob:
    """Take in newly labelled examples, which the retraining sensor then counts."""
    return dg.define_asset_job(
        f"{declaration.name}_labels",
        selection=dg.AssetSelection.assets(dg.AssetKey([declaration.name, "labelled_examples"])),
        description=f"Reads and checks the labelled examples of {declaration.name}.",
        tags={USE_CASE_TAG: declaration.name},
        executor_def=dg.in_process_executor,
    )


def retrain_job(declaration: Declaration) -> AssetJob:
    """From labelled examples to a published model, with every check and gate on the way.

    One process here; training itself is always a process of its own.
    """
    keys = [dg.AssetKey([declaration.name, name]) for name in TRAINING_ASSETS]
    return dg.define_asset_job(
        f"{declaration.name}_retrain",
        selection=dg.AssetSelection.assets(*keys),
        description=f"Trains, evaluates, exports and, if it is better, publishes the model of {declaration.name}.",
        tags={USE_CASE_TAG: declaration.name, "freshet/job": "retrain"},
        executor_def=dg.in_process_executor,
    )


class RollbackConfig(dg.Config):
    """Which version to go back to."""

    version: str | None = None
    """A published version; left out, the one that was served before."""


def rollback_job(declaration: Declaration) -> dg.JobDefinition:
    """Move the champion pointer back; nothing is deleted."""
    use_case = declaration.name

    @dg.op(name=f"{use_case}_move_champion_back", out=dg.Out(dg.Nothing))
    def move_champion_back(
        context: dg.OpExecutionContext, config: RollbackConfig, stores: dg.ResourceParam[Stores]
    ) -> None:
        version = rollback(stores.environment.registry_url, use_case, config.version)
        context.log.info(f"{use_case} serves {version.version} again")
        metadata: dict[str, Any] = {"version": version.version, "rolled_back": True, "dagster/uri": str(version.path)}
        context.log_event(dg.AssetMaterialization([use_case, "published_model"], metadata=metadata))

    @dg.job(
        name=f"{use_case}_rollback",
        description=f"Serves an earlier published version of {use_case} again; deletes nothing.",
        tags={USE_CASE_TAG: use_case},
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        move_champion_back()

    return job
