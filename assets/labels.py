"""Assets of the labels: everything submitted, and the frozen training set.

What belongs here: reading resources, one domain call, metadata. How rows are judged, split and frozen is in
``pipelines.labels``. Concept: https://docs.dagster.io/guides/build/assets
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from assets.failures import RETRY, permanent_failures
from assets.metadata import counts, picture, table
from assets.naming import named
from pipelines.artifacts import Artifact
from pipelines.corpus.search import retrieved_texts
from pipelines.declaration import Declaration
from pipelines.labels.difference import diff
from pipelines.labels.drift import balance, distribution, drift, drift_plot
from pipelines.labels.examples import SPLITS, Example, read_split
from pipelines.labels.intake import IntakeReport, quarantined, take_in
from pipelines.labels.leakage import find_leakage
from pipelines.labels.settings import LabelSettings
from pipelines.labels.snapshot import Retrieve, freeze_training_set, previous_training_set
from pipelines.models import token_counter
from pipelines.stores import Stores


def labelled_examples_asset(declaration: Declaration, labels: LabelSettings, folder: Path) -> dg.AssetsDefinition:
    """Everything submitted, each accepted or quarantined with its reasons."""
    use_case = declaration.name
    key = [use_case, "labelled_examples"]

    @dg.asset(
        **named(declaration, "labelled_examples"),
        kinds={"great_expectations"},
        description="Every submitted example, accepted or quarantined with its reasons by Great Expectations.",
        retry_policy=RETRY,
        check_specs=[
            dg.AssetCheckSpec(
                "enough_good_examples",
                asset=key,
                blocking=True,
                description=f"At least {labels.minimum_accepted} accepted, "
                f"at most {labels.maximum_quarantined_share:.0%} quarantined.",
            ),
            dg.AssetCheckSpec(
                "nothing_flagged",
                asset=key,
                description="No accepted example was flagged: personal data, near-copies, answers that seem cut.",
            ),
        ],
    )
    def labelled_examples(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
        tuned = declaration.fine_tune
        docs = stores.environment.artifacts_folder(use_case, "labelled_examples") / "docs"
        with permanent_failures():
            report = take_in(
                labels,
                use_case=use_case,
                base=declaration.base(stores.environment, folder),
                held_out_share=declaration.evaluation.held_out_share,
                catalog=stores.catalog,
                task=declaration.task,
                prompt=declaration.prompt,
                count_tokens=None if tuned is None else token_counter(tuned.base_model, tuned.base_revision),
                docs=docs,
                progress=context.log.info,
            )
        problems = report.problems(labels)
        flagged = ", ".join(f"{kind} ({count})" for kind, count in report.warnings.items())
        set_aside = quarantined(stores.catalog, use_case, limit=50)
        return dg.MaterializeResult(
            metadata={
                **_numbers(report),
                "quarantined_rows": table(
                    ("where", "reasons", "row"), [(row.location, "; ".join(row.reasons), row.raw) for row in set_aside]
                ),
                **({"data_docs": dg.MetadataValue.url((docs / "index.html").as_uri())} if docs.is_dir() else {}),
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name="enough_good_examples",
                    passed=not problems,
                    description="; ".join(problems) or f"{report.accepted} accepted, {report.quarantined} quarantined",
                ),
                dg.AssetCheckResult(
                    check_name="nothing_flagged",
                    passed=not flagged,
                    severity=dg.AssetCheckSeverity.WARN,
                    description=f"flagged: {flagged}" if flagged else "no accepted example was flagged",
                ),
            ],
        )

    return labelled_examples


def _numbers(report: IntakeReport) -> dict[str, Any]:
    return {
        "dagster/row_count": report.accepted,
        "quarantined": report.quarantined,
        "quarantined_share": report.quarantined_share,
        "superseded": report.superseded,
        "released": report.released,
        "new_accepted": report.new_accepted,
        "new_quarantined": report.new_quarantined,
        "rejudged": report.rejudged,
        "seconds": report.seconds,
        "categories": counts(report.categories),
        "origins": counts(report.by_origin),
        "reasons": counts(report.reasons),
        "warnings": counts(report.warnings),
    }


def training_set_asset(declaration: Declaration, labels: LabelSettings) -> dg.AssetsDefinition:
    """Frozen, content-addressed snapshot with its splits."""
    use_case = declaration.name
    key = [use_case, "training_set"]

    @dg.asset(
        **named(declaration, "training_set"),
        deps=[dg.AssetKey([use_case, "labelled_examples"])],
        description="Frozen, content-addressed snapshot of the accepted examples with its splits.",
        check_specs=[
            dg.AssetCheckSpec(
                "no_leakage",
                asset=key,
                blocking=True,
                description="No group, text or near copy of one is both trained on and evaluated on.",
            ),
            dg.AssetCheckSpec(
                "balanced",
                asset=key,
                description=f"Every category has at least {labels.minimum_per_category} training examples.",
            ),
            dg.AssetCheckSpec(
                "no_drift",
                asset=key,
                description="What is new is like what was trained on before: in labels and in lengths.",
            ),
        ],
    )
    def training_set(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
        with permanent_failures():
            frozen = freeze_training_set(
                labels,
                use_case=use_case,
                task=declaration.task,
                catalog=stores.catalog,
                folder=stores.environment.artifacts_folder(use_case, "training_set"),
                origins=declaration.evaluation.origins,
                retrieve=_retrieve(context, declaration, labels, stores),
                progress=context.log.info,
            )
            leakage = find_leakage(frozen)
            before = previous_training_set(frozen)
            changes = diff(before, frozen)
        spread = balance(frozen.manifest["by_category"]["train"], minimum=labels.minimum_per_category)
        moved, drift_metadata = _drift(before, frozen, labels)
        rows = frozen.manifest["rows"]
        by_category = frozen.manifest["by_category"]
        splits = list(rows)
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": sum(rows.values()),
                "dagster/uri": str(frozen.path),
                "fingerprint": frozen.fingerprint,
                **{f"{split}_rows": count for split, count in rows.items()},
                "changes": dg.MetadataValue.md(changes.markdown()),
                "categories": table(
                    ("category", *splits),
                    [
                        (category, *(by_category[split].get(category, 0) for split in splits))
                        for category in frozen.manifest["categories"]
                    ],
                ),
                **drift_metadata,
            },
            data_version=dg.DataVersion(frozen.fingerprint),
            check_results=[
                dg.AssetCheckResult(check_name="no_leakage", passed=leakage.clean, description=leakage.summary()),
                dg.AssetCheckResult(
                    check_name="balanced",
                    passed=not spread.rare,
                    severity=dg.AssetCheckSeverity.WARN,
                    description=spread.summary(),
                ),
                moved,
            ],
        )

    return training_set


def _retrieve(
    context: dg.AssetExecutionContext, declaration: Declaration, labels: LabelSettings, stores: Stores
) -> Retrieve | None:
    """What gives a question its context; None where chats keep to what they state."""
    if declaration.task != "generate" or not declaration.sources or not labels.retrieve:
        return None
    if declaration.retrieval.access.mode == "enforce":
        context.log.warning("Access rules are enforced, so no context is retrieved for training: state it in the rows.")
        return None

    def retrieve(questions: Sequence[str]) -> list[tuple[str, ...]]:
        return retrieved_texts(
            questions,
            use_case=declaration.name,
            retrieval=declaration.retrieval,
            catalog=stores.catalog,
            index=stores.index,
        )

    return retrieve


def _drift(
    before: Artifact | None, frozen: Artifact, labels: LabelSettings
) -> tuple[dg.AssetCheckResult, dict[str, Any]]:
    """The check of what is new against the training set before, and its picture."""
    known = {} if before is None else {row.id: row for row in _rows(before)}
    new = [row for row in _rows(frozen) if row.id not in known]
    if not known or not new:
        said = "nothing is new" if known else "the first training set: nothing to compare with"
        return dg.AssetCheckResult(check_name="no_drift", passed=True, description=said), {}
    was, is_now = distribution(known.values()), distribution(new)
    moved = drift(was, is_now, maximum=labels.maximum_drift)
    check = dg.AssetCheckResult(
        check_name="no_drift",
        passed=not moved.beyond,
        severity=dg.AssetCheckSeverity.WARN,
        description=moved.summary(),
    )
    distances = {f"drift_{name.replace(' ', '_')}": far for name, far in moved.distances.items()}
    return check, {**distances, "drift": picture(drift_plot(was, is_now), "new examples against those before")}


def _rows(training_set: Artifact) -> Iterator[Example]:
    for split in SPLITS:
        yield from read_split(training_set, split)
