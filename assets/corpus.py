"""Assets of the retrieval loop: one per source, and the index that is served.

What belongs here: reading resources, one domain call, metadata. How documents are synced is in ``pipelines.corpus``.
Concept: https://docs.dagster.io/guides/build/assets
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from assets.failures import RETRY, permanent_failures
from assets.metadata import picture, table
from assets.naming import named
from pipelines.corpus.ledger import stale_documents
from pipelines.corpus.pipeline import wanted_pipeline
from pipelines.corpus.plots import freshness_over_time, quality_over_time, question_changes
from pipelines.corpus.serving import ServedIndex, audited, freshness_history, quality_history, serve_index
from pipelines.corpus.settings import Source, SourceSettings
from pipelines.corpus.sync import SyncReport, sync_source
from pipelines.declaration import Declaration
from pipelines.errors import ArtifactError, NotBuiltError
from pipelines.stores import Stores

READABLE, APPROVED = "every_document_readable", "no_deletion_withheld"
GATE, FRESH = "retrieval_gate", "documents_fresh"
_SHOWN = 100

Metadata = Mapping[str, Any]


def source_asset(declaration: Declaration, source: Source, folder: Path) -> dg.AssetsDefinition:
    """The documents of one source, held in sync in the index."""

    @dg.asset(
        **named(declaration, source.name),
        kinds={"qdrant", source.type},
        description=f"The documents of {source.origin} ({source.type}), held in sync in the index, deletions included.",
        freshness_policy=_freshness(source),
        retry_policy=RETRY,
        check_specs=[
            dg.AssetCheckSpec(
                READABLE,
                asset=[declaration.name, source.name],
                description="No document was left out because it could not be read.",
            ),
            dg.AssetCheckSpec(
                APPROVED,
                asset=[declaration.name, source.name],
                description="No deletion waits for the job that approves it.",
            ),
        ],
    )
    def source_documents(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
        report = sync_declared(declaration, source, folder, stores, context.log)
        return dg.MaterializeResult(
            metadata=sync_metadata(report), check_results=sync_checks(declaration, source, report)
        )

    return source_documents


def document_index_asset(declaration: Declaration, folder: Path) -> dg.AssetsDefinition:
    """The whole index, audited against the catalog, asked golden questions, then served."""
    use_case = declaration.name
    names = [source.name for source in declaration.sources]

    @dg.asset(
        **named(declaration, "document_index"),
        deps=[dg.AssetKey([use_case, name]) for name in names],
        kinds={"qdrant"},
        description="The whole index: audited against the catalog, asked golden questions, then served.",
        retry_policy=RETRY,
        check_specs=[
            dg.AssetCheckSpec(
                GATE,
                asset=[use_case, "document_index"],
                description="What the settings ask for is served: it is not surely worse than what answered before.",
            ),
            dg.AssetCheckSpec(
                FRESH,
                asset=[use_case, "document_index"],
                description="No document is known to say something else at its source.",
            ),
        ],
    )
    def document_index(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
        with permanent_failures():
            served = serve_index(
                use_case=use_case,
                retrieval=declaration.retrieval,
                sources=names,
                catalog=stores.catalog,
                index=stores.index,
                base=declaration.base(stores.environment, folder),
                progress=context.log.info,
            )
        context.log.info(f"{use_case} serves {served.collection}")
        stale = stale_documents(served.collection, stores.catalog)
        return dg.MaterializeResult(
            metadata=_index_metadata(declaration, served, stale, stores), check_results=_index_checks(served, stale)
        )

    return document_index


def index_check(declaration: Declaration) -> dg.AssetChecksDefinition:
    """Index against catalog, whenever somebody wants to know; point by point where the numbers differ."""

    @dg.asset_check(
        asset=[declaration.name, "document_index"],
        name="index_equals_catalog",
        blocking=True,
        description="No chunk is missing, left over, or out of date.",
    )
    def index_equals_catalog(stores: dg.ResourceParam[Stores]) -> dg.AssetCheckResult:
        names = [source.name for source in declaration.sources]
        try:
            collection = wanted_pipeline(declaration.name, declaration.retrieval).collection
            audit = audited(collection, names, stores.catalog, stores.index, "sampled")
        except (ArtifactError, NotBuiltError) as error:
            return dg.AssetCheckResult(passed=False, description=str(error))
        return dg.AssetCheckResult(passed=True, description=str(audit))

    return index_equals_catalog


def sync_declared(
    declaration: Declaration,
    source: SourceSettings,
    folder: Path,
    stores: Stores,
    log: dg.DagsterLogManager,
    *,
    approve_deletions: int = 0,
) -> SyncReport:
    """One sync of one source, as the asset and the jobs started by hand do it."""
    with permanent_failures():
        return sync_source(
            source,
            use_case=declaration.name,
            base=declaration.base(stores.environment, folder),
            retrieval=declaration.retrieval,
            catalog=stores.catalog,
            index=stores.index,
            progress=log.info,
            approve_deletions=approve_deletions,
        )


def sync_metadata(report: SyncReport) -> Metadata:
    """What the UI shows of a sync; numbers become plots over time."""
    numbers: dict[str, Any] = {
        "dagster/row_count": report.documents,
        "added": report.added,
        "changed": report.changed,
        "moved": report.moved,
        "deleted": report.deleted,
        "withheld": len(report.withheld),
        "unchanged": report.unchanged,
        "failed": len(report.failures),
        "chunks": report.chunks,
        "embedded": report.embedded,
        "reused": report.reused,
        "points_deleted": report.points_deleted,
        "seconds": report.seconds,
    }
    if report.lag is not None:
        numbers |= {
            "lag_p50_seconds": report.lag.p50,
            "lag_p95_seconds": report.lag.p95,
            "lag_max_seconds": report.lag.max,
        }
    if report.failures:
        numbers["failed_documents"] = table(("document", "error"), report.failures[:_SHOWN])
    if report.withheld:
        numbers["withheld_deletions"] = table(("document",), [(each,) for each in report.withheld[:_SHOWN]])
    if report.kept_fresh is not None:
        numbers["answers_meanwhile"] = report.kept_fresh.collection
    return numbers


def sync_checks(declaration: Declaration, source: SourceSettings, report: SyncReport) -> list[dg.AssetCheckResult]:
    """The two things that somebody has to look at."""
    key = dg.AssetKey([declaration.name, source.name])
    failed = len(report.failures)
    too_many = failed > source.max_failed_share * report.documents
    approve = (
        f"{report.withheld_reason}. If that is right, run the job {declaration.name}_approve_deletions with "
        f"source {source.name} and at_most {len(report.withheld)}"
    )
    return [
        dg.AssetCheckResult(
            asset_key=key,
            check_name=READABLE,
            passed=not failed,
            severity=dg.AssetCheckSeverity.ERROR if too_many else dg.AssetCheckSeverity.WARN,
            description=f"{failed} of {report.documents} documents could not be read",
        ),
        dg.AssetCheckResult(
            asset_key=key,
            check_name=APPROVED,
            passed=not report.withheld,
            description=approve if report.withheld else "every deletion at the source has arrived",
            metadata={"documents": table(("document",), [(each,) for each in report.withheld[:_SHOWN]])}
            if report.withheld
            else {},
        ),
    ]


def _freshness(source: SourceSettings) -> dg.FreshnessPolicy | None:
    if source.max_age_hours is None:
        return None
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=source.max_age_hours))


def _index_metadata(
    declaration: Declaration, served: ServedIndex, stale: Sequence[Mapping[str, Any]], stores: Stores
) -> Metadata:
    metadata: dict[str, Any] = {
        "collection": served.collection,
        "dagster/row_count": served.audit.points,
        "documents": served.audit.documents,
        "stale_documents": len(stale),
        "audit": str(served.audit),
    }
    if served.waiting:
        metadata["waiting"] = served.waiting
    if served.quality is not None and served.quality.questions:
        quality = served.quality
        metadata |= {
            f"recall_at_{quality.k}": quality.recall,
            "mrr": quality.mrr,
            f"ndcg_at_{quality.k}": quality.ndcg,
            "questions": quality.questions,
            "questions_generated": served.generated,
        }
        if quality.missed:
            metadata["missed_questions"] = table(("question",), [(each,) for each in quality.missed[:_SHOWN]])
        if served.questions is not None and served.questions.unanswerable:
            metadata["unanswerable_questions"] = table(
                ("question",), [(each,) for each in served.questions.unanswerable[:_SHOWN]]
            )
        if history := quality_history(declaration.name, stores.catalog):
            metadata["quality_over_time"] = picture(quality_over_time(history), "retrieval quality over time")
    if served.comparison is not None and served.comparison.changes:
        metadata["against_served"] = picture(question_changes(served.comparison), "each question, new against served")
    # Where nothing was written the picture is that of last time, and drawing takes half a second.
    if served.audit.mode != "unchanged" and (lags := freshness_history(declaration.name, stores.catalog)):
        metadata["freshness_over_time"] = picture(freshness_over_time(lags), "lag from source to index")
    if stale:
        rows = [(f"{each['source']}/{each['document_id']}", each["since"], each["why"]) for each in stale[:_SHOWN]]
        metadata["stale"] = table(("document", "since", "why"), rows)
    return metadata


def _index_checks(served: ServedIndex, stale: Sequence[Mapping[str, Any]]) -> list[dg.AssetCheckResult]:
    compared = "" if served.comparison is None else served.comparison.reason
    return [
        dg.AssetCheckResult(
            check_name=GATE,
            passed=served.waiting is None,
            severity=dg.AssetCheckSeverity.ERROR if served.refused else dg.AssetCheckSeverity.WARN,
            description=served.waiting or compared or f"{served.collection} is what the settings ask for",
        ),
        dg.AssetCheckResult(
            check_name=FRESH,
            passed=not stale,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{len(stale)} documents are known to say something else at their source",
        ),
    ]
