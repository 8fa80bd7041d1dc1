"""The no-code surface: a use case's YAML becomes assets, checks, jobs, schedules and a sensor.

This module only assembles. Fields are declared in ``pipelines.declaration``, which the query surface reads too.
Concept: https://docs.dagster.io/guides/build/components
"""

from typing import Any

import dagster as dg
from pydantic import BaseModel

from assets.adapter import lora_adapter_asset
from assets.corpus import document_index_asset, index_check, source_asset
from assets.labels import labelled_examples_asset, training_set_asset
from assets.release import evaluation_report_asset, gguf_model_asset, parity_check, published_model_asset
from pipelines.declaration import Declaration
from pipelines.environment import Environment
from pipelines.jobs import (
    approve_candidate_job,
    approve_deletions_job,
    audit_index_job,
    forget_job,
    labels_job,
    promote_job,
    refresh_job,
    retrain_job,
    review_examples_job,
    rollback_job,
    switch_index_job,
    versions_job,
)
from pipelines.schedules import labels_schedule, source_schedules
from sensors.retraining import retraining_sensor


class UseCase(Declaration, dg.Component, dg.Resolvable):
    """One use case: documents kept in sync for retrieval, labelled examples kept in sync with a fine-tuned model."""

    @classmethod
    def model(cls) -> type[BaseModel]:
        """The schema of the YAML; nested settings are plain pydantic models, declared once."""
        return Declaration

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: BaseModel) -> "UseCase":
        """Fill in ``{{ env.NAME }}`` at every depth, then validate again."""
        return cls.model_validate(context.resolve_value(model.model_dump(exclude_unset=True)))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Everything that Dagster shows of this use case."""
        if context.path.name != self.name:
            raise dg.DagsterInvalidDefinitionError(
                f"use case {self.name!r} lives in the folder {context.path.name!r}; give both the same name, "
                "so that one is found from the other"
            )
        running = Environment().automation
        assets: list[Any] = []
        jobs: list[Any] = []
        schedules: list[dg.ScheduleDefinition] = []
        sensors: list[dg.SensorDefinition] = []
        checks: list[Any] = []
        jobs.append(forget_job(self))
        if self.sources:
            refresh = refresh_job(self)
            assets += [source_asset(self, source, context.path) for source in self.sources]
            assets.append(document_index_asset(self, context.path))
            checks.append(index_check(self))
            jobs += [refresh, approve_deletions_job(self, context.path), switch_index_job(self)]
            jobs.append(audit_index_job(self, context.path))
            schedules += source_schedules(self, refresh, running=running)
        settings = self.label_settings
        if settings is not None:
            labels = labels_job(self)
            assets.append(labelled_examples_asset(self, settings, context.path))
            jobs += [labels, review_examples_job(self, settings)]
            schedules += labels_schedule(self, labels, running=running)
        if settings is not None and self.fine_tune is not None:
            retrain = retrain_job(self)
            assets += [
                training_set_asset(self, settings),
                lora_adapter_asset(self, self.fine_tune),
                evaluation_report_asset(self),
                gguf_model_asset(self),
                published_model_asset(self),
            ]
            checks.append(parity_check(self))
            jobs += [retrain, versions_job(self), promote_job(self), rollback_job(self)]
            if self.evaluation.gate.approval:
                jobs.append(approve_candidate_job(self))
            sensors.append(retraining_sensor(self, settings, retrain, running=running))
        return dg.Definitions(assets=assets, asset_checks=checks, jobs=jobs, schedules=schedules, sensors=sensors)
