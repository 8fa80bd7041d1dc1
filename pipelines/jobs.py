"""Jobs: what runs together. A job selects a use case's assets; it holds no logic.

Concept: https://docs.dagster.io/guides/build/jobs
"""

from pathlib import Path
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from assets.corpus import sync_checks, sync_declared, sync_metadata
from assets.failures import permanent_failures
from pipelines.corpus.audit import audit_collection
from pipelines.corpus.ledger import mark_writing
from pipelines.corpus.pipeline import wanted_pipeline
from pipelines.corpus.serving import switch_index
from pipelines.corpus.settings import SourceSettings
from pipelines.corpus.sync import SyncReport
from pipelines.declaration import TRAINING_ASSETS, Declaration
from pipelines.erasure import forget
from pipelines.errors import ArtifactError, ConfigError
from pipelines.labels.review import Decision
from pipelines.labels.review import decide as decide_on_example
from pipelines.labels.settings import LabelSettings
from pipelines.release.overview import difference, difference_lines, overview, overview_lines
from pipelines.release.registry import promote, rollback
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


def approve_candidate_job(declaration: Declaration) -> AssetJob:
    """Say yes (or, by its configuration, no) to a candidate that passed the gate; then it is exported and published."""
    use_case = declaration.name
    return dg.define_asset_job(
        f"{use_case}_approve_candidate",
        selection=dg.AssetSelection.assets(
            *(dg.AssetKey([use_case, name]) for name in ("gguf_model", "published_model"))
        ),
        description=f"Approves the candidate of {use_case} that passed the gate, then exports and publishes it; with "
        "approved: false, refuses it.",
        tags={USE_CASE_TAG: use_case},
        config={"ops": {f"{use_case}__gguf_model": {"config": {"approved": True}}}},
        executor_def=dg.in_process_executor,
    )


class ReviewConfig(dg.Config):
    """What a person decides about single examples."""

    release: list[str] = Field(default=[], description="Ids (or their beginnings) of quarantined examples to accept.")
    reject: list[str] = Field(default=[], description="Ids of examples to keep out for good.")
    replace: dict[str, str] = Field(
        default={}, description="Edited rows by the id of the example that each replaces: JSON in any known shape."
    )
    author: str | None = None
    """Who decides."""
    note: str | None = None
    """Why."""


def review_examples_job(declaration: Declaration, labels: LabelSettings) -> dg.JobDefinition:
    """Release, reject or edit single examples; the next intake acts on it."""
    use_case = declaration.name

    @dg.op(name=f"{use_case}_decide_on_examples", out=dg.Out(dg.Nothing))
    def decide_on_examples(
        context: dg.OpExecutionContext, config: ReviewConfig, stores: dg.ResourceParam[Stores]
    ) -> None:
        wanted: list[tuple[str, Decision, str | None]] = [
            *((example, "release", None) for example in config.release),
            *((example, "reject", None) for example in config.reject),
            *((example, "replace", row) for example, row in config.replace.items()),
        ]
        with permanent_failures():
            if not wanted:
                raise ConfigError("nothing to decide: name examples to release, reject or replace")
            for example, decision, row in wanted:
                decided = decide_on_example(
                    stores.catalog,
                    use_case,
                    example,
                    decision,
                    settings=labels,
                    task=declaration.task,
                    author=config.author,
                    note=config.note,
                    replacement=row,
                )
                context.log.info(f"{decision}: {decided}")

    return _job(
        declaration,
        "review_examples",
        "Releases, rejects or replaces single examples, whatever the expectations say; the job "
        f"{use_case}_labels then acts on it.",
        decide_on_examples,
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
        with permanent_failures():
            version = rollback(stores.environment.registry_url, use_case, config.version)
        context.log.info(f"{use_case} serves {version.version} again")
        metadata: dict[str, Any] = {"version": version.version, "rolled_back": True, "dagster/uri": version.uri}
        context.log_event(dg.AssetMaterialization([use_case, "published_model"], metadata=metadata))

    return _job(
        declaration,
        "rollback",
        f"Serves an earlier published version of {use_case} again; deletes nothing.",
        move_champion_back,
    )


class PromotionConfig(dg.Config):
    """Which version to serve."""

    version: str
    """Any published one."""


def promote_job(declaration: Declaration) -> dg.JobDefinition:
    """Move the champion pointer to any published version."""
    use_case = declaration.name

    @dg.op(name=f"{use_case}_move_champion", out=dg.Out(dg.Nothing))
    def move_champion(
        context: dg.OpExecutionContext, config: PromotionConfig, stores: dg.ResourceParam[Stores]
    ) -> None:
        with permanent_failures():
            version = promote(stores.environment.registry_url, use_case, config.version)
        context.log.info(f"{use_case} serves {version.version}")
        metadata: dict[str, Any] = {"version": version.version, "promoted": True, "dagster/uri": version.uri}
        context.log_event(dg.AssetMaterialization([use_case, "published_model"], metadata=metadata))

    return _job(
        declaration, "promote", f"Serves any published version of {use_case}, the newest or an old one.", move_champion
    )


class VersionsConfig(dg.Config):
    """Two versions to compare."""

    compare: list[str] = Field(default=[], description="Two versions, such as [v1, v2]; left out, all are listed.")


def versions_job(declaration: Declaration) -> dg.JobDefinition:
    """List what is published, or say how two versions differ."""
    use_case = declaration.name

    @dg.op(name=f"{use_case}_look_at_versions", out=dg.Out(dg.Nothing))
    def look_at_versions(
        context: dg.OpExecutionContext, config: VersionsConfig, stores: dg.ResourceParam[Stores]
    ) -> None:
        url = stores.environment.registry_url
        with permanent_failures():
            if len(config.compare) not in (0, 2):
                raise ConfigError(f"compare {config.compare} names {len(config.compare)} versions: give two, or none")
            lines = (
                difference_lines(difference(url, use_case, *config.compare))
                if config.compare
                else overview_lines(overview(url, use_case))
            )
        context.log.info("\n".join(lines))

    return _job(
        declaration,
        "versions",
        f"Lists the published versions of {use_case}, or says how two differ.",
        look_at_versions,
    )


class ApprovalConfig(dg.Config):
    """Which withheld deletions may go ahead."""

    source: str
    """Name of the source."""
    at_most: int
    """Ceiling: where more documents are gone by now, nothing is deleted."""


def approve_deletions_job(declaration: Declaration, folder: Path) -> dg.JobDefinition:
    """Delete what a source no longer has, although it is a lot."""
    use_case = declaration.name
    sources = {source.name: source for source in declaration.sources}

    @dg.op(name=f"{use_case}_delete_approved", out=dg.Out(dg.Nothing))
    def delete_approved(
        context: dg.OpExecutionContext, config: ApprovalConfig, stores: dg.ResourceParam[Stores]
    ) -> None:
        with permanent_failures():
            source = sources.get(config.source)
            if source is None or config.at_most < 1:
                raise ConfigError(
                    f"source {config.source!r}, at_most {config.at_most}: give one of {', '.join(sources)}, and how "
                    "many documents may be deleted"
                )
        report = sync_declared(declaration, source, folder, stores, context.log, approve_deletions=config.at_most)
        context.log.info(f"{report.deleted} documents deleted, {len(report.withheld)} still withheld")
        _report_sync(context, declaration, source, report)
        if report.withheld:
            raise dg.Failure(f"{report.withheld_reason}: nothing was deleted", allow_retries=False)

    return _job(
        declaration,
        "approve_deletions",
        "Deletes from the index what a source no longer has, where the deletion guard withheld it, up to a ceiling.",
        delete_approved,
    )


class SwitchConfig(dg.Config):
    """Which index answers from now on."""

    collection: str | None = None
    """Name of a collection; left out, the one that answered before."""


def switch_index_job(declaration: Declaration) -> dg.JobDefinition:
    """Let an earlier index answer again, or go on to the one that the settings ask for."""
    use_case = declaration.name

    @dg.op(name=f"{use_case}_move_index_pointer", out=dg.Out(dg.Nothing))
    def move_index_pointer(
        context: dg.OpExecutionContext, config: SwitchConfig, stores: dg.ResourceParam[Stores]
    ) -> None:
        with permanent_failures():
            collection = switch_index(
                use_case=use_case,
                retrieval=declaration.retrieval,
                catalog=stores.catalog,
                index=stores.index,
                collection=config.collection,
            )
        context.log.info(f"{use_case} serves {collection}")
        metadata: dict[str, Any] = {"collection": collection, "switched_by_hand": True}
        context.log_event(dg.AssetMaterialization([use_case, "document_index"], metadata=metadata))

    return _job(
        declaration,
        "switch_index",
        "Serves the index that answered before, or a named one; it stays until this is run for another.",
        move_index_pointer,
    )


class AuditConfig(dg.Config):
    """How thorough, and whether to mend."""

    mode: Literal["full", "sampled"] = "full"
    """full compares every point with its text; sampled the counts, 50 documents and what is new."""
    repair: bool = False
    """Whether to write the documents anew in which index and catalog differ."""


def audit_index_job(declaration: Declaration, folder: Path) -> dg.JobDefinition:
    """Compare index and catalog, and mend the index where that is asked for."""
    use_case = declaration.name
    names = [source.name for source in declaration.sources]

    @dg.op(name=f"{use_case}_compare_index", out=dg.Out(dg.Nothing))
    def compare_index(context: dg.OpExecutionContext, config: AuditConfig, stores: dg.ResourceParam[Stores]) -> None:
        with permanent_failures():
            collection = wanted_pipeline(use_case, declaration.retrieval).collection
            audit, documents = audit_collection(
                collection, declared=names, catalog=stores.catalog, index=stores.index, mode=config.mode
            )
        context.log.info(str(audit))
        if documents and config.repair:
            mark_writing(collection, documents, stores.catalog)
            for source in declaration.sources:
                report = sync_declared(declaration, source, folder, stores, context.log)
                _report_sync(context, declaration, source, report)
            audit, _ = audit_collection(collection, declared=names, catalog=stores.catalog, index=stores.index)
            context.log.info(f"after the repair: {audit}")
        with permanent_failures():
            if not audit.clean:
                raise ArtifactError(f"{audit}. Run this job with repair: true")

    return _job(
        declaration,
        "audit_index",
        "Compares every point of the index with the catalog; with repair, writes anew what differs.",
        compare_index,
    )


class ForgetConfig(dg.Config):
    """What to erase for good."""

    documents: list[str] = Field(default=[], description="Each as source/document_id.")
    key: str | None = None
    """Of a person: documents with that id or metadata value, and labelled examples of that group or author."""
    dry_run: bool = True
    """Only say what would be erased; set it to false to erase."""


def forget_job(declaration: Declaration) -> dg.JobDefinition:
    """Erase documents, or everything about a person, for good."""
    use_case = declaration.name

    @dg.op(name=f"{use_case}_erase", out=dg.Out(dg.Nothing))
    def erase(context: dg.OpExecutionContext, config: ForgetConfig, stores: dg.ResourceParam[Stores]) -> None:
        with permanent_failures():
            erasure = forget(declaration, stores, documents=config.documents, key=config.key, dry_run=config.dry_run)
        context.log.info("\n".join(erasure.lines()))

    return _job(
        declaration,
        "forget",
        "Erases documents, or everything about a person, and lists the training sets and models that used it.",
        erase,
    )


def _report_sync(
    context: dg.OpExecutionContext, declaration: Declaration, source: SourceSettings, report: SyncReport
) -> None:
    context.log_event(dg.AssetMaterialization([declaration.name, source.name], metadata=sync_metadata(report)))
    for check in sync_checks(declaration, source, report):
        context.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey([declaration.name, source.name]),
                check_name=str(check.check_name),
                passed=check.passed,
                severity=check.severity,
                description=check.description,
                metadata=check.metadata,
            )
        )


def _job(declaration: Declaration, name: str, description: str, op: dg.OpDefinition) -> dg.JobDefinition:
    """A job of one step that people start by hand."""

    @dg.job(
        name=f"{declaration.name}_{name}",
        description=description,
        tags={USE_CASE_TAG: declaration.name},
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        op()

    return job
