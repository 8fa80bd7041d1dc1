"""The asset of training: a process of its own, watched over Dagster Pipes.

What belongs here: starting the process and showing its progress. Training itself is ``pipelines.training``.
Concept: https://docs.dagster.io/guides/build/external-pipelines
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg

from assets.failures import permanent_failures
from assets.metadata import picture
from assets.naming import named
from pipelines.artifacts import Artifact, latest, load, record
from pipelines.declaration import Declaration
from pipelines.environment import REPOSITORY
from pipelines.errors import TrainingError
from pipelines.fingerprint import write_text_atomically
from pipelines.labels.trigger import mark_trained
from pipelines.stores import Stores
from pipelines.training.job import TrainingJob
from pipelines.training.plots import loss_curve
from pipelines.training.progress import Progress, read_progress
from pipelines.training.settings import FineTune

POLL_SECONDS = 1.0
CURVE_SECONDS = 10.0


def lora_adapter_asset(declaration: Declaration, fine_tune: FineTune) -> dg.AssetsDefinition:
    """The adapter and its manifest."""
    use_case = declaration.name

    @dg.asset(
        **named(declaration, "lora_adapter"),
        deps=[dg.AssetKey([use_case, "training_set"])],
        kinds={"pytorch", "huggingface"},
        description="LoRA adapter trained on the frozen training set, with the manifest of what produced it.",
        pool="gpu",
    )
    def lora_adapter(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
        with permanent_failures():
            training_set = latest(stores.catalog, use_case, "training_set")
            job = TrainingJob(
                use_case=use_case,
                training_set=training_set.path,
                output=stores.environment.artifacts_folder(use_case, "lora_adapter"),
                settings=fine_tune,
            )
            adapter = load(_train_in_its_own_process(context, job))
            record(stores.catalog, use_case, "lora_adapter", adapter)
            newly_seen = mark_trained(stores.catalog, use_case, training_set)
        return dg.MaterializeResult(
            metadata={**_metadata(adapter), "newly_seen_examples": newly_seen},
            data_version=dg.DataVersion(adapter.fingerprint),
        )

    return lora_adapter


def _train_in_its_own_process(context: dg.AssetExecutionContext, job: TrainingJob) -> Path:
    """Run ``python -m pipelines.training`` in a Pipes session, showing its progress as it comes.

    Raises:
        TrainingError: the process ended without an adapter.
    """
    job_file = job.output / "jobs" / f"{context.run.run_id}.json"
    write_text_atomically(job_file, job.model_dump_json(indent=2) + "\n")
    with dg.open_pipes_session(
        context=context,
        context_injector=dg.PipesTempFileContextInjector(),
        message_reader=dg.PipesTempFileMessageReader(),
    ) as session:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.training", str(job_file)],
            env={**os.environ, **session.get_bootstrap_env_vars()},
            cwd=REPOSITORY,
        )
        curve = _Curve(context)
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                curve.show(session.get_custom_messages())
        except BaseException:  # the run is cancelled: the training must not go on by itself
            process.terminate()
            process.wait()
            raise
    messages = session.get_custom_messages()
    curve.show(messages)
    adapters = [Path(message["adapter"]) for message in messages if "adapter" in message]
    if process.returncode != 0 or not adapters:
        said = next((message["error"] for message in messages if "error" in message), "its output is in the run's logs")
        raise TrainingError(
            f"training ended with status {process.returncode} and no adapter: {said}. "
            f"To try it by hand: python -m pipelines.training {job_file}"
        )
    return adapters[-1]


class _Curve:
    """Shows each new progress message as an observation of the asset, now and then with the loss curve."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._seen = 0
        self._points: list[Progress] = []
        self._drawn = time.monotonic()

    def show(self, messages: Sequence[Any]) -> None:
        """Report what has come since the last call: the newest point stands for all of them."""
        new = [Progress(**message["progress"]) for message in messages[self._seen :] if "progress" in message]
        self._seen = len(messages)
        if not new:
            return
        self._points += new
        metadata: dict[str, Any] = {name: value for name, value in asdict(new[-1]).items() if value is not None}
        if time.monotonic() - self._drawn >= CURVE_SECONDS:
            self._drawn = time.monotonic()
            metadata["loss_curve"] = picture(loss_curve(self._points), "loss by step")
        self._context.log_event(dg.AssetObservation(self._context.asset_key, metadata=metadata))


def _metadata(adapter: Artifact) -> dict[str, Any]:
    manifest = adapter.manifest
    effective = {name: value for name, value in manifest["effective"].items() if value is not None}
    return {
        "dagster/uri": str(adapter.path),
        "fingerprint": adapter.fingerprint,
        "loss_curve": picture(loss_curve(read_progress(adapter.path / "progress.jsonl")), "loss by step"),
        "manifest": dg.MetadataValue.json(dict(manifest)),
        **effective,
        "seconds": manifest["seconds"],
    }
