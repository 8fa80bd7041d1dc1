"""Assets of the release: the verdict, the GGUF files, and the published model.

Verdicts are stored and read again by whatever acts on them, so that they hold in a run of their own as well: a blocking
check stops only what follows in the same run. A refused candidate is an ordinary outcome: the report says why, the
exporting asset is skipped, and what depends on it with it.
Concept: https://docs.dagster.io/guides/build/assets
"""

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg

from assets.failures import permanent_failures
from assets.metadata import picture, table
from assets.naming import named
from pipelines import artifacts
from pipelines.declaration import Declaration
from pipelines.errors import GateRefusedError
from pipelines.evaluation.approval import approve, may_export
from pipelines.evaluation.suite import evaluate
from pipelines.release.export import export
from pipelines.release.hub import push_to_hub
from pipelines.release.ollama import push_to_ollama
from pipelines.release.registry import PublishedVersion, champion, publish
from pipelines.release.settings import ReleaseSettings
from pipelines.stores import Stores


class CandidateConfig(dg.Config):
    """A person's word on the candidate, where the gate asks for one."""

    approved: bool | None = None
    """Left out: nobody says anything now; what was said before holds."""
    author: str | None = None
    """Who says so."""
    note: str | None = None
    """Why."""


_SHOWN = ("agreement", "kl_divergence", "answers_equal")
"""What Dagster plots over time, for each quantisation."""

COMPUTE_POOL = "compute"
"""Heavy on the CPU: two at once slow each other down."""


def evaluation_report_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """Candidate, champion and base on the same held-out rows; the gate's verdict."""
    use_case = declaration.name

    @dg.asset(
        **named(declaration, "evaluation_report"),
        deps=[dg.AssetKey([use_case, "lora_adapter"])],
        kinds={"pytorch"},
        description="Candidate, champion and base on the same held-out rows, and the gate's verdict.",
        pool=COMPUTE_POOL,
        check_specs=[
            dg.AssetCheckSpec(
                "gate",
                asset=[use_case, "evaluation_report"],
                description="The candidate is better than the champion. A refusal leaves the champion where it is.",
            )
        ],
    )
    def evaluation_report(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
        with permanent_failures():
            served = champion(stores.environment.registry_url, use_case)
            report = evaluate(
                artifacts.latest(stores.catalog, use_case, "lora_adapter"),
                artifacts.latest(stores.catalog, use_case, "training_set"),
                use_case=use_case,
                champion=None if served is None else served.adapter(),
                settings=declaration.evaluation,
                folder=stores.environment.artifacts_folder(use_case, "evaluation_report"),
                progress=context.log.info,
            )
            artifacts.record(stores.catalog, use_case, "evaluation_report", report)
        verdict = report.manifest["verdict"]
        return dg.MaterializeResult(
            metadata=_evaluation_metadata(report),
            data_version=dg.DataVersion(report.fingerprint),
            check_results=[
                dg.AssetCheckResult(
                    check_name="gate", passed=verdict["passed"], description=" ".join(verdict["reasons"])
                )
            ],
        )

    return evaluation_report


def gguf_model_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """Merged, converted, quantised, parity-checked."""
    use_case = declaration.name

    @dg.asset(
        **named(declaration, "gguf_model"),
        deps=[dg.AssetKey([use_case, "evaluation_report"])],
        kinds={"gguf"},
        description="The adapter merged into its base, converted to GGUF, quantised and compared with the original. "
        "Skipped when the gate refused the candidate, or a person has not approved it yet.",
        pool=COMPUTE_POOL,
        output_required=False,
    )
    def gguf_model(
        context: dg.AssetExecutionContext, config: CandidateConfig, stores: dg.ResourceParam[Stores]
    ) -> Iterator[dg.MaterializeResult]:
        with permanent_failures():
            report = artifacts.latest(stores.catalog, use_case, "evaluation_report")
            if config.approved is not None:
                approve(stores.catalog, use_case, report, config.approved, config.author, config.note)
            allowed, reason = may_export(report, stores.catalog, declaration.evaluation.gate)
            if not allowed:
                context.log.warning(f"Not exported: {reason}")
                return
            gguf = export(
                artifacts.latest(stores.catalog, use_case, "lora_adapter"),
                artifacts.latest(stores.catalog, use_case, "training_set"),
                settings=declaration.release,
                folder=stores.environment.artifacts_folder(use_case, "gguf_model"),
                progress=context.log.info,
                evaluation=declaration.evaluation,
            )
            artifacts.record(stores.catalog, use_case, "gguf_model", gguf)
        yield dg.MaterializeResult(metadata=_gguf_metadata(gguf), data_version=dg.DataVersion(gguf.fingerprint))

    return gguf_model


def parity_check(declaration: Declaration) -> dg.AssetChecksDefinition:
    """The exported files predict what the model predicted before export."""
    use_case = declaration.name

    @dg.asset_check(
        asset=[use_case, "gguf_model"],
        name="parity",
        blocking=True,
        description="Token ids are equal, and each quantisation predicts what the merged model predicts.",
    )
    def parity(stores: dg.ResourceParam[Stores]) -> dg.AssetCheckResult:
        with permanent_failures():
            verdict = artifacts.latest(stores.catalog, use_case, "gguf_model").manifest["parity"]
        return dg.AssetCheckResult(passed=verdict["passed"], description=" ".join(verdict["reasons"]) or None)

    return parity


def published_model_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """The version that is served, and the pointer to it."""
    use_case = declaration.name

    @dg.asset(
        **named(declaration, "published_model"),
        deps=[dg.AssetKey([use_case, "gguf_model"])],
        kinds={"gguf"},
        description="The version that is served. Publishing needs a passed verdict for exactly these files.",
    )
    def published_model(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
        with permanent_failures():
            report = artifacts.latest(stores.catalog, use_case, "evaluation_report")
            allowed, reason = may_export(report, stores.catalog, declaration.evaluation.gate)
            if not allowed:
                raise GateRefusedError(f"not published: {reason}")
            version = publish(
                artifacts.latest(stores.catalog, use_case, "gguf_model"),
                artifacts.latest(stores.catalog, use_case, "lora_adapter"),
                report,
                use_case=use_case,
                registry_url=stores.environment.registry_url,
                keep=declaration.release.keep_versions,
                progress=context.log.info,
            )
            context.log.info(f"{use_case} serves {version.version}")
            sent = _sent_on(version, declaration.release, context.log.info)
        return dg.MaterializeResult(
            metadata={
                **sent,
                "version": version.version,
                "dagster/uri": version.uri,
                "fingerprint": version.fingerprint,
                "model_card": dg.MetadataValue.md(version.fetch("README.md").read_text(encoding="utf-8")),
            },
            data_version=dg.DataVersion(version.fingerprint),
        )

    return published_model


def _sent_on(
    version: PublishedVersion, settings: ReleaseSettings, progress: Callable[[str], None]
) -> dict[str, dg.MetadataValue[Any]]:
    """Send a published version where the use case says; again, it sends only what is missing there."""
    sent: dict[str, dg.MetadataValue[Any]] = {}
    if settings.hub is not None:
        sent["hub"] = dg.MetadataValue.url(push_to_hub(version, settings.hub, progress=progress))
    if settings.ollama is not None:
        name = push_to_ollama(version, settings.ollama, quantisation=settings.serve, progress=progress)
        sent["ollama"] = dg.MetadataValue.text(name)
    return sent


def _evaluation_metadata(report: artifacts.Artifact) -> dict[str, Any]:
    scores: dict[str, dict[str, float]] = report.manifest["scores"]
    pictures = {path.stem: picture(path.read_bytes(), path.stem) for path in sorted(report.path.glob("*.png"))}
    tables = {
        path.stem: dg.MetadataValue.md(path.read_text(encoding="utf-8")) for path in sorted(report.path.glob("*.md"))
    }
    return {
        "dagster/row_count": report.manifest["rows"],
        "dagster/uri": str(report.path),
        "verdict": " ".join(report.manifest["verdict"]["reasons"]),
        **{f"{who}_{metric}": value for who, found in scores.items() for metric, value in found.items()},
        **tables,
        **pictures,
    }


def _gguf_metadata(gguf: artifacts.Artifact) -> dict[str, Any]:
    quantisations: dict[str, dict[str, Any]] = gguf.manifest["quantisations"]
    metric = gguf.manifest.get("metric")  # of what writes answers
    columns = ["file_type", "size", "agreement"]
    columns += ["kl_divergence", "answers_equal", "stopped"] if metric else ["row_agreement"]
    columns += ["max_logit_difference"]
    found = {
        name: {column: values[column] for column in columns} | ({metric: values["scores"][metric]} if metric else {})
        for name, values in quantisations.items()
    }
    adapter = gguf.manifest.get("adapter_gguf") or {}
    return {
        "dagster/uri": str(gguf.path),
        **{f"{name}_{column}": row[column] for name, row in found.items() for column in _SHOWN if column in row},
        **{f"{name}_bytes": values["size"] for name, values in quantisations.items()},
        **({f"merged_{metric}": gguf.manifest["merged"][metric]} if metric else {}),
        **({"adapter_gguf": adapter.get("file") or f"not written: {adapter['refused']}"} if adapter else {}),
        "parity": table(
            ("quantisation", *next(iter(found.values()))), [(name, *row.values()) for name, row in found.items()]
        ),
        "size_against_agreement": picture((gguf.path / "parity.png").read_bytes(), "size against agreement"),
    }
