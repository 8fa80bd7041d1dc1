"""One training as a job: what it needs, and that it is done once, whole, and by nobody else."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.artifacts import MANIFEST, Artifact, alone, load, seal, writing
from pipelines.errors import ArtifactError, ConfigError, PermanentError
from pipelines.evaluation.classifier import base_hashes, quiet_transformers
from pipelines.fingerprint import fingerprint, write_json_atomically, write_text_atomically
from pipelines.models import model_folder
from pipelines.prompt import PromptSettings
from pipelines.settings import Settings
from pipelines.training.classify import fit_classifier
from pipelines.training.dataset import training_set_at
from pipelines.training.generate import fit_chat
from pipelines.training.memory import Estimate, check_disk, estimate
from pipelines.training.processes import devices, together
from pipelines.training.progress import PROGRESS, Progress, read_progress, write_progress
from pipelines.training.settings import ClassifySettings, FineTune, GenerateSettings

TRAINER = "4"
"""Version of what a training makes of equal inputs; part of the adapter's fingerprint."""

CHANGES_NOTHING = {"micro_batch_tokens", "save_memory", "checkpoint_minutes"}
"""Settings that the same adapter comes out of, whatever they are."""

CHOSEN = "chosen.json"
"""In the work folder: the outcome of the first of two trainings."""

REFIT = "refit"
"""In the work folder: the work folder of the second one."""

LEFTOVER_DAYS = 7
"""Work of a killed training whose settings or examples have changed since is removed after so long."""


class TrainingJob(Settings):
    """Everything one training needs; ``python -m pipelines.training`` reads it as JSON."""

    use_case: str
    training_set: Path
    """Folder of the frozen training set."""
    output: Path
    """Folder of the use case's adapters: this one becomes ``<output>/<fingerprint>``."""
    settings: FineTune = ClassifySettings()
    prompt: PromptSettings = PromptSettings()


def adapter_fingerprint(job: TrainingJob, training_set: Artifact, base_files: Mapping[str, str]) -> str:
    """What an adapter is made from: base, training set, settings and trainer, not the machine it is made on."""
    settings = job.settings.model_dump(mode="json", exclude=CHANGES_NOTHING)
    prompt = job.prompt.model_dump(mode="json") if isinstance(job.settings, GenerateSettings) else None
    return fingerprint(
        "lora_adapter", TRAINER, job.use_case, training_set.fingerprint, settings, prompt, dict(base_files)
    )


def train(
    job: TrainingJob,
    *,
    progress: Callable[[Progress], None],
    started: Callable[[Estimate], None] = lambda _: None,
    processes: int | None = None,
) -> Artifact:
    """Fine-tune and return the finished adapter; one made from equal inputs before is returned as it is.

    A training that was killed goes on from its last checkpoint.

    Args:
        job: what to train.
        progress: called about every second; what it raises ends the training.
        started: called before the base is loaded, with what the training will need.
        processes: that train together, one a GPU; they divide ``batch_size``. None: as many as there are GPUs.

    Raises:
        ArtifactError: the training set is incomplete or altered.
        ExamplesError: it has too little to learn from.
        ConfigError: the base model is not there, has no layers of the names to adapt, or does not fit into memory.
        LockedError: another training writes to the same folder.
        TrainingError: the loss is not finite, training ended early, or there is no room on the disk.
        TrainingInterruptedError: it was told to end (SIGTERM), or one of several processes ended.
    """
    training_set = training_set_at(job.training_set)
    base = model_folder(job.settings.base_model, job.settings.base_revision)
    base_files = base_hashes(base)
    key = adapter_fingerprint(job, training_set, base_files)
    folder, work = job.output / key, job.output / ".work" / key
    with alone(job.output / ".training.lock", "training"):
        finished = _finished(folder)
        if finished is not None:
            return finished
        _tidy(job.output, work)
        count = devices(job.settings.batch_size) if processes is None else processes
        if job.settings.batch_size % count:
            raise ConfigError(f"batch_size {job.settings.batch_size} cannot be shared evenly by {count} processes")
        try:
            with writing(folder) as scratch, quiet_transformers():
                needs = estimate(job.settings, training_set, base, processes=count)
                check_disk(job.output, needs.disk_bytes)
                started(needs)
                fitting = job
                if needs.reduced or needs.saves_memory:
                    most: dict[str, Any] = {"micro_batch_tokens": max(16, needs.tokens_at_once)}
                    if needs.saves_memory:
                        most["save_memory"] = True
                    fitting = job.model_copy(update={"settings": job.settings.model_copy(update=most)})
                write_text_atomically(work / "job.json", fitting.model_dump_json())
                with together(count, work / "job.json"):
                    fitted = _fit(fitting, training_set, base, scratch, work, progress)
                _write_progress(work, scratch)
                manifest = _manifest(job, key, training_set, base_files)
                seal(scratch, {**manifest, "processes": count, "estimate": asdict(needs), **fitted})
        except PermanentError:  # going on from its checkpoints would end the same way
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work)
        with suppress(OSError):  # work of other trainings
            work.parent.rmdir()
        return load(folder)


def assist(job: TrainingJob, work: Path) -> None:
    """Train as one of several processes, beside the first, which holds the lock and reports; what comes out is its."""
    training_set = training_set_at(job.training_set)
    base = model_folder(job.settings.base_model, job.settings.base_revision)
    with TemporaryDirectory() as scratch, quiet_transformers():
        _fit(job, training_set, base, Path(scratch), work, lambda _: None)


def _fit(
    job: TrainingJob,
    training_set: Artifact,
    base: Path,
    scratch: Path,
    work: Path,
    progress: Callable[[Progress], None],
) -> dict[str, Any]:
    """Train, and where the settings ask for it once more on all rows; what is particular to it in the manifest."""
    if not job.settings.refit:
        return _fit_once(job, training_set, base, scratch, work, progress)
    chosen = work / CHOSEN
    if chosen.is_file():
        first = json.loads(chosen.read_text(encoding="utf-8"))
    else:
        first = _fit_once(job, training_set, base, scratch, work, lambda point: progress(_first_of_two(point)))
        if first["effective"]["best_epoch"] is None:  # nothing validated: there is nothing to add either
            return first
        write_json_atomically(chosen, first)
    epochs = first["effective"]["best_epoch"] if first["effective"]["stopped_early"] else job.settings.epochs
    again = job.model_copy(update={"settings": job.settings.model_copy(update={"epochs": epochs})})
    second = _fit_once(
        again, training_set, base, scratch, work / REFIT, lambda point: progress(_after(first, point)), refit=True
    )
    effective = {name: first["effective"][name] for name in ("validation_rows", "best_epoch", "stopped_early")}
    return {
        **second,
        **{name: first[name] for name in ("thresholds", "calibration", "validation") if name in first},
        "effective": {**second["effective"], **effective, "rows_before_refit": first["effective"]["rows"]},
        "loss": {"first": first["loss"]["first"], "last": second["loss"]["last"]},
        "seconds": round(first["seconds"] + second["seconds"], 2),
    }


def _fit_once(
    job: TrainingJob,
    training_set: Artifact,
    base: Path,
    scratch: Path,
    work: Path,
    progress: Callable[[Progress], None],
    *,
    refit: bool = False,
) -> dict[str, Any]:
    import torch

    work.mkdir(exist_ok=True)
    torch.set_flush_denormal(True)
    try:
        if isinstance(job.settings, GenerateSettings):
            return fit_chat(job.settings, job.prompt, training_set, base, scratch, work, progress, refit=refit)
        return fit_classifier(job.settings, training_set, base, scratch, work, progress, refit=refit)
    finally:  # it holds for the whole thread, and for whatever it computes next
        torch.set_flush_denormal(False)


def _first_of_two(point: Progress) -> Progress:
    """With the time for the second training, which is taken to be as long."""
    return replace(point, steps=2 * point.steps, seconds_left=round(point.seconds + 2 * point.seconds_left, 3))


def _after(first: Mapping[str, Any], point: Progress) -> Progress:
    """A point of the second training, counted on from the end of the ``first``, of which this is the outcome."""
    before = first["effective"]
    return replace(
        point,
        step=before["steps"] + point.step,
        steps=before["steps"] + point.steps,
        epoch=round(before["epochs"] + point.epoch, 4),
        tokens=before["tokens"] + point.tokens,
        seconds=round(first["seconds"] + point.seconds, 3),
    )


def _write_progress(work: Path, folder: Path) -> None:
    """The points of the training, or of both one after the other."""
    if not (work / REFIT).is_dir():
        shutil.copyfile(work / PROGRESS, folder / PROGRESS)
        return
    first = json.loads((work / CHOSEN).read_text(encoding="utf-8"))
    again = [_after(first, point) for point in read_progress(work / REFIT / PROGRESS)]
    write_progress(folder / PROGRESS, [*read_progress(work / PROGRESS), *again])


def _tidy(output: Path, work: Path) -> None:
    """Make ``work``, and remove what killed trainings have left: half-written adapters, and other work that is old."""
    for left in output.glob(".*.*"):
        if left.is_dir():
            shutil.rmtree(left)
    work.mkdir(parents=True, exist_ok=True)
    os.utime(work)
    for other in work.parent.iterdir():
        if time.time() - other.stat().st_mtime > LEFTOVER_DAYS * 86_400:
            shutil.rmtree(other)


def _manifest(job: TrainingJob, key: str, training_set: Artifact, base_files: Mapping[str, str]) -> dict[str, Any]:
    """What the manifest of every adapter says, whatever its task."""
    import torch

    return {
        "fingerprint": key,
        "kind": "lora_adapter",
        "use_case": job.use_case,
        "task": job.settings.task,
        "base_model": job.settings.base_model,
        "base_revision": job.settings.base_revision,
        "base_files": dict(base_files),
        "training_set": training_set.fingerprint,
        "settings": job.settings.model_dump(mode="json"),
        "trainer": TRAINER,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }


def _finished(folder: Path) -> Artifact | None:
    """The adapter in ``folder``; None where there is none, or an altered one that has to be made again."""
    try:
        return load(folder) if (folder / MANIFEST).is_file() else None
    except ArtifactError:
        return None
