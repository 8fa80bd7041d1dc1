"""The asset of training: a process of its own, watched over Dagster Pipes.

What belongs here: starting the process and showing its progress. Training itself is ``pipelines.training``.
Concept: https://docs.dagster.io/guides/build/external-pipelines
"""

import os
import subprocess
import sys
from typing import Any

import dagster as dg

from assets.failures import permanent_failures
from assets.metadata import picture
from pipelines.artifacts import Artifact, latest, record
from pipelines.declaration import Declaration
from pipelines.environment import REPOSITORY
from pipelines.errors import TrainingError
from pipelines.fingerprint import write_json_atomically
from pipelines.labels.intake import mark_trained
from pipelines.stores import Stores
from pipelines.training.lora import TrainingJob
from pipelines.training.plots import loss_curve
from pipelines.training.settings import FineTuneSettings

POLL_SECONDS = 1.0
CURVE_SECONDS = 10.0


def lora_adapter_asset(declaration: Declaration, fine_tune: FineTuneSettings) -> dg.AssetsDefinition:
    """The adapter and its manifest."""
    use_case = declaration.name

    @dg.asset(
        key=[use_case, "lora_adapter"],
        group_name=use_case,
        owners=[declaration.owner] if declaration.owner else None,
        deps=[dg.AssetKey([use_case, "training_set"])],
        kinds={"pytorch", "huggingface"},
        description="LoRA adapter trained on the frozen training set, with the manifest of what produced it.",
        pool="gpu",
    )
    def lora_adapter(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult[None]:
        with permanent_failures():
            training_set = latest(stores.catalog, use_case, "training_set")
            job = TrainingJob(
                use_case=use_case,
                training_set=training_set.path,
                folder=stores.environment.artifacts_folder(use_case, "lora_adapter"),
                settings=fine_tune,
            )
            adapter = _train(context, job)
            record(stores.catalog, use_case, "lora_adapter", adapter)
            seen = mark_trained(stores.catalog, use_case, training_set)
        manifest = adapter.manifest
        return dg.MaterializeResult(
            metadata={
                "dagster/uri": str(adapter.path),
                "fingerprint": adapter.fingerprint,
                "newly_seen_examples": seen,
            },
            data_version=dg.DataVersion(adapter.fingerprint),
        )

    return lora_adapter
