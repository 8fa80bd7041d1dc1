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

from assets.failures import RETRY, permanent_failures
from assets.metadata import picture
from assets.naming import named
from pipelines.artifacts import Artifact, latest, load, record
from pipelines.declaration import Declaration
from pipelines.environment import REPOSITORY
from pipelines.errors import TrainingError, TrainingInterruptedError
from pipelines.fingerprint import write_text_atomically
from pipelines.labels.trigger import mark_trained
from pipelines.stores import Stores
from pipelines.training.job import TrainingJob
from pipelines.training.plots import loss_curve
from pipelines.training.progress import Progress, read_progress
from pipelines.training.settings import FineTune

POLL_SECONDS = 1.0
CURVE_SECONDS = 10.0
STOP_SECONDS = 120.0
"""For the step under way and a checkpoint, when a run is cancelled."""


def lora_adapter_asset(declaration: Declaration, fine_tune: FineTune) -> dg.AssetsDefinition:
    """The adapter and its manifest."""
    use_case = declaration.name

    @dg.asset(
        **named(declaration, "lora_adapter"),
        deps=[dg.AssetKey([use_case, "training_set"])],
        kinds={"pytorch", "huggingface"},
        description="LoRA adapter trained on the frozen training set, with the manifest of what produced it.",
        pool="gpu",
        retry_policy=RETRY,
    )
    def lora_adapter(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
        with permanent_failures():
            training_set = latest(stores.catalog, use_case, "training_set")
            job = TrainingJob(
                use_case=use_case,
                training_set=training_set.path,
                output=stores.environment.artifacts_folder(use_case, "lora_adapter"),
                settings=fine_tune,
                prompt=declaration.prompt,
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
        TrainingError: the process ended without an adapter, and would again.
        TrainingInterruptedError: it was killed or told to end; a retry goes on from its checkpoint.
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
        watched = _Watched(context)
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                watched.show(session.get_custom_messages())
        except BaseException:  # the run is cancelled: the training must not go on by itself
            _end(process)
            raise
    messages = session.get_custom_messages()
    watched.show(messages)
    adapters = [Path(message["adapter"]) for message in messages if "adapter" in message]
    if process.returncode == 0 and adapters:
        job_file.unlink()
        return adapters[-1]
    said = next((message["error"] for message in messages if "error" in message), "its output is in the run's logs")
    interrupted = process.returncode < 0 or process.returncode == os.EX_TEMPFAIL
    raise (TrainingInterruptedError if interrupted else TrainingError)(
        f"training ended with status {process.returncode} and no adapter: {said}. "
        f"To try it by hand: python -m pipelines.training {job_file}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the training to write a checkpoint and end."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Watched:
    """Shows the estimate, then each new progress message, as an observation; now and then with the loss curve."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._seen = 0
        self._points: list[Progress] = []
        self._drawn = time.monotonic()

    def show(self, messages: Sequence[Any]) -> None:
        """Report what has come since the last call: the newest point stands for all of them."""
        new, self._seen = messages[self._seen :], len(messages)
        for estimate in (message["estimate"] for message in new if "estimate" in message):
            self._observe({f"estimated/{name}": value for name, value in estimate.items()})
        points = [Progress(**message["progress"]) for message in new if "progress" in message]
        if not points:
            return
        self._points += points
        metadata: dict[str, Any] = {name: value for name, value in asdict(points[-1]).items() if value is not None}
        if time.monotonic() - self._drawn >= CURVE_SECONDS:
            self._drawn = time.monotonic()
            metadata["loss_curve"] = picture(loss_curve(self._points), "loss by step")
        self._observe(metadata)

    def _observe(self, metadata: dict[str, Any]) -> None:
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
