"""Assets of the retrieval loop: one per source, and the index that is served.

What belongs here: reading resources, one domain call, metadata. How documents are synced is in ``pipelines.corpus``.
Concept: https://docs.dagster.io/guides/build/assets
"""

from datetime import timedelta
from pathlib import Path

import dagster as dg

from assets.failures import RETRY, permanent_failures
from assets.metadata import table
from assets.naming import named
from pipelines.corpus.settings import Source
from pipelines.corpus.sync import SyncReport, audit_index, serve_index, sync_source
from pipelines.declaration import Declaration
from pipelines.stores import Stores

INDEX_POOL = "index"
"""Writers of the embedded index take turns."""


def source_asset(declaration: Declaration, source: Source, folder: Path) -> dg.AssetsDefinition:
    """The documents of one source, held in sync in the index."""
    use_case = declaration.name

    @dg.asset(
        **named(declaration, source.name),
        kinds={"qdrant", source.type},
        description=f"The documents of {source.origin} ({source.type}), held in sync in the index, deletions included.",
        freshness_policy=_freshness(source),
        retry_policy=RETRY,
        pool=INDEX_POOL,
        check_specs=[
            dg.AssetCheckSpec(
                "every_document_readable",
                asset=[use_case, source.name],
                description="No document was left out because it could not be read.",
            )
        ],
    )
    def source_documents(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
        with permanent_failures():
            report = sync_source(
                source,
                use_case=use_case,
                base=declaration.base(stores.environment, folder),
                retrieval=declaration.retrieval,
                catalog=stores.catalog,
                index=stores.index,
                progress=context.log.info,
            )
        return dg.MaterializeResult(metadata=_metadata(report), check_results=[_readable(report)])

    return source_documents


def document_index_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """The whole index, audited against the catalog, then served."""
    use_case = declaration.name
    names = [source.name for source in declaration.sources]

    @dg.asset(
        **named(declaration, "document_index"),
        deps=[dg.AssetKey([use_case, name]) for name in names],
        kinds={"qdrant"},
        description="The whole index: audited against the catalog, then served.",
        retry_policy=RETRY,
        pool=INDEX_POOL,
    )
    def document_index(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
        with permanent_failures():
            served = serve_index(
                use_case=use_case,
                retrieval=declaration.retrieval,
                sources=names,
                catalog=stores.catalog,
                index=stores.index,
            )
        context.log.info(f"{use_case} serves {served.collection}")
        return dg.MaterializeResult(
            metadata={
                "collection": served.collection,
                "dagster/row_count": served.audit.points,
                "documents": served.audit.documents,
            }
        )

    return document_index


def index_check(declaration: Declaration) -> dg.AssetChecksDefinition:
    """Index against catalog, whenever somebody wants to know."""
    use_case = declaration.name

    @dg.asset_check(
        asset=[use_case, "document_index"],
        name="index_equals_catalog",
        blocking=True,
        description="No chunk is missing, left over, or out of date.",
        pool=INDEX_POOL,
    )
    def index_equals_catalog(stores: dg.ResourceParam[Stores]) -> dg.AssetCheckResult:
        with permanent_failures():
            audit = audit_index(
                use_case=use_case,
                retrieval=declaration.retrieval,
                sources=[source.name for source in declaration.sources],
                catalog=stores.catalog,
                index=stores.index,
            )
        return dg.AssetCheckResult(passed=audit.clean, description=str(audit))

    return index_equals_catalog


def _freshness(source: Source) -> dg.FreshnessPolicy | None:
    if source.max_age_hours is None:
        return None
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=source.max_age_hours))


def _metadata(report: SyncReport) -> dict[str, dg.MetadataValue | int | float]:
    numbers = {
        "dagster/row_count": report.documents,
        "added": report.added,
        "changed": report.changed,
        "moved": report.moved,
        "deleted": report.deleted,
        "unchanged": report.unchanged,
        "failed": len(report.failures),
        "chunks": report.chunks,
        "embedded": report.embedded,
        "reused": report.reused,
        "points_deleted": report.points_deleted,
        "seconds": report.seconds,
    }
    failed = {"failed_documents": table(("document", "error"), report.failures[:100])} if report.failures else {}
    return {**numbers, **failed}


def _readable(report: SyncReport) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name="every_document_readable",
        passed=not report.failures,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{len(report.failures)} of {report.documents} documents could not be read",
    )
