"""Assets of the labels: everything submitted, and the frozen training set.

What belongs here: reading resources, one domain call, metadata. How rows are judged, split and frozen is in
``pipelines.labels``. Concept: https://docs.dagster.io/guides/build/assets
"""

from pathlib import Path

import dagster as dg

from assets.failures import RETRY, permanent_failures
from assets.metadata import counts, table
from assets.naming import named
from pipelines.declaration import Declaration
from pipelines.labels.intake import quarantined, take_in
from pipelines.labels.leakage import find_leakage
from pipelines.labels.settings import LabelSettings
from pipelines.labels.snapshot import freeze_training_set
from pipelines.stores import Stores


def labelled_examples_asset(declaration: Declaration, labels: LabelSettings, folder: Path) -> dg.AssetsDefinition:
    """Everything submitted, each accepted or quarantined with its reasons."""
    use_case = declaration.name

    @dg.asset(
        **named(declaration, "labelled_examples"),
        kinds={"great_expectations"},
        description="Every submitted example, accepted or quarantined with its reasons by Great Expectations.",
        retry_policy=RETRY,
        check_specs=[
            dg.AssetCheckSpec(
                "enough_good_examples",
                asset=[use_case, "labelled_examples"],
                blocking=True,
                description=f"At least {labels.minimum_accepted} accepted, "
                f"at most {labels.maximum_quarantined_share:.0%} quarantined.",
            )
        ],
    )
    def labelled_examples(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
        with permanent_failures():
            report = take_in(
                labels,
                use_case=use_case,
                base=declaration.base(stores.environment, folder),
                held_out_share=declaration.evaluation.held_out_share,
                catalog=stores.catalog,
                progress=context.log.info,
            )
        problems = report.problems(labels)
        set_aside = quarantined(stores.catalog, use_case, limit=50)
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": report.accepted,
                "quarantined": report.quarantined,
                "quarantined_share": report.quarantined_share,
                "new_accepted": report.new_accepted,
                "new_quarantined": report.new_quarantined,
                "seconds": report.seconds,
                "categories": counts(report.categories),
                "reasons": counts(report.reasons),
                "quarantined_rows": table(
                    ("where", "reasons", "row"), [(row.location, "; ".join(row.reasons), row.raw) for row in set_aside]
                ),
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name="enough_good_examples",
                    passed=not problems,
                    description="; ".join(problems) or f"{report.accepted} accepted, {report.quarantined} quarantined",
                )
            ],
        )

    return labelled_examples


def training_set_asset(declaration: Declaration, labels: LabelSettings) -> dg.AssetsDefinition:
    """Frozen, content-addressed snapshot with its splits."""
    use_case = declaration.name

    @dg.asset(
        **named(declaration, "training_set"),
        deps=[dg.AssetKey([use_case, "labelled_examples"])],
        description="Frozen, content-addressed snapshot of the accepted examples with its splits.",
        check_specs=[
            dg.AssetCheckSpec(
                "no_leakage",
                asset=[use_case, "training_set"],
                blocking=True,
                description="No group, text or near copy of one is both trained on and evaluated on.",
            )
        ],
    )
    def training_set(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
        with permanent_failures():
            frozen = freeze_training_set(
                labels,
                use_case=use_case,
                catalog=stores.catalog,
                folder=stores.environment.artifacts_folder(use_case, "training_set"),
                progress=context.log.info,
            )
            leakage = find_leakage(frozen)
        rows = frozen.manifest["rows"]
        by_category = frozen.manifest["by_category"]
        splits = list(rows)
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": sum(rows.values()),
                "dagster/uri": str(frozen.path),
                "fingerprint": frozen.fingerprint,
                **{f"{split}_rows": count for split, count in rows.items()},
                "categories": table(
                    ("category", *splits),
                    [
                        (category, *(by_category[split].get(category, 0) for split in splits))
                        for category in frozen.manifest["categories"]
                    ],
                ),
            },
            data_version=dg.DataVersion(frozen.fingerprint),
            check_results=[
                dg.AssetCheckResult(check_name="no_leakage", passed=leakage.clean, description=leakage.summary())
            ],
        )

    return training_set
