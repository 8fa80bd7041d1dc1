"""Trainings that are killed, told to end, started twice, or spread over processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact, load
from pipelines.environment import REPOSITORY
from pipelines.errors import ArtifactError, ConfigError
from pipelines.labels.examples import read_split
from pipelines.training.checkpoints import KEPT, last_checkpoint
from pipelines.training.job import LEFTOVER_DAYS, TrainingJob, adapter_fingerprint, train
from pipelines.training.progress import Progress, read_progress
from pipelines.training.settings import ClassifySettings, GenerateSettings, LoraSettings
from tests.pipelines.training.tiny_bert import train_as_a_process, training_processes, write_tiny_bert

pytestmark = pytest.mark.slow
EVERY_STEP = 1e-9
"""Minutes between checkpoints."""


@pytest.fixture(scope="module")
def tiny_bert(small_set: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [row.text for row in read_split(small_set, "train")]
    return write_tiny_bert(tmp_path_factory.mktemp("tiny") / "base", texts, dropout=0.1)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return training_processes()


def job_of(training_set: Artifact, base: Path, output: Path, **settings: Any) -> TrainingJob:
    usual = {"epochs": 4, "batch_size": 6, "maximum_tokens": 48, "learning_rate": 0.01, "patience": None}
    fine_tune = ClassifySettings(base_model=str(base), lora=LoraSettings(rank=4, alpha=8), **{**usual, **settings})
    return TrainingJob(use_case="shop", training_set=training_set.path, output=output, settings=fine_tune)


def ignore(_: Progress) -> None: ...


def accepted(output: Path) -> list[Artifact]:
    """What others would take for a finished adapter."""
    found = []
    for path in output.iterdir():
        try:
            found.append(load(path))
        except (ArtifactError, NotADirectoryError):
            continue
    return found


def without_times(path: Path) -> list[tuple[Any, ...]]:
    return [
        (point.step, point.epoch, point.tokens, point.learning_rate, point.validation_score)
        for point in read_progress(path)
    ]


def stop_at(step: int) -> Callable[[Progress], None]:
    def stop(point: Progress) -> None:
        if point.step >= step:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("step", [1, 7, 9, 13, 35], ids=lambda step: f"stopped at {step}")
def test_a_resumed_training_makes_the_same_adapter_as_one_without_a_break(
    small_set: Artifact, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Same order of examples, same dropout, same best epoch; at an epoch's end (9) and in the middle of one."""
    monkeypatch.setattr("pipelines.training.progress.SECONDS_BETWEEN_REPORTS", 0)
    whole = train(job_of(small_set, tiny_bert, tmp_path / "whole"), progress=ignore)
    job = job_of(small_set, tiny_bert, tmp_path / "broken", checkpoint_minutes=EVERY_STEP)
    with pytest.raises(KeyboardInterrupt):
        train(job, progress=stop_at(step))
    assert accepted(job.output) == []
    seen: list[Progress] = []
    resumed = train(job, progress=seen.append)
    if step > 1:
        assert seen[0].step >= step
    assert resumed.fingerprint == whole.fingerprint, "how often it is saved is not part of what it is"
    name = "adapter_model.safetensors"
    assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert without_times(resumed.path / "progress.jsonl") == without_times(whole.path / "progress.jsonl")
    for key in ("effective", "loss", "validation"):
        assert resumed.manifest[key] == whole.manifest[key]
    assert not (job.output / ".work").exists()


def test_half_written_and_altered_checkpoints_are_never_resumed_from(
    small_set: Artifact, tiny_bert: Path, tmp_path: Path
) -> None:
    job = job_of(small_set, tiny_bert, tmp_path, checkpoint_minutes=EVERY_STEP)
    with pytest.raises(KeyboardInterrupt):
        train(job, progress=stop_at(12))
    (work,) = (tmp_path / ".work").iterdir()
    kept = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert len(kept) == KEPT
    assert not [path.name for folder in kept for path in folder.iterdir() if path.suffix in (".bin", ".pkl")]
    assert last_checkpoint(work) == kept[-1]
    weights = kept[-1] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    half = work / "checkpoint-99"
    shutil.copytree(kept[0], half, ignore=shutil.ignore_patterns("manifest.json"))
    assert last_checkpoint(work) == kept[0]
    assert list(work.glob("checkpoint-*")) == [kept[0]]
    (kept[0] / "manifest.json").write_text("{")
    assert last_checkpoint(work) is None
    assert train(job, progress=ignore).manifest["effective"]["steps"] == 36


def test_kill_9_at_20_random_moments(
    small_set: Artifact, tiny_bert: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    """T5, T8: every next run resumes or restarts rightly, never two at once, never half an adapter accepted."""
    draw = random.Random(int(os.environ.get("FRESHET_TEST_SEED", "11")))
    whole = train(job_of(small_set, tiny_bert, tmp_path / "whole"), progress=ignore)
    output, kills, refused, resumed, finished = tmp_path / "killed", 0, 0, 0, 0
    wanted = (whole.path / "adapter_model.safetensors").read_bytes()
    job_file = tmp_path / "job.json"
    job = job_of(small_set, tiny_bert, output, checkpoint_minutes=EVERY_STEP)
    job_file.write_text(job.model_dump_json())

    def start() -> ForkServerProcess:
        process = processes.Process(target=train_as_a_process, args=(str(job_file),))
        process.start()
        return process

    def steps() -> int:
        return max((int(path.parent.name[11:]) for path in output.glob(".work/*/checkpoint-*/manifest.json")), default=0)

    start().join()  # the server's imports, and how long a whole training takes
    shutil.rmtree(output)
    began = time.monotonic()
    start().join()
    seconds = time.monotonic() - began
    shutil.rmtree(output)
    while kills < 20:
        before = steps() if output.exists() else 0
        running = [start(), *([start()] if kills % 4 == 0 else [])]
        if kills % 3 == 2:  # while the adapter itself is written
            end = time.monotonic() + 60
            while not list(output.glob(".*.*/adapter_config.json")) and running[0].is_alive():
                assert time.monotonic() < end
            time.sleep(draw.uniform(0, 0.1))
        else:
            time.sleep(draw.uniform(0, seconds))
        if len(running) == 2:
            while all(process.is_alive() for process in running):
                time.sleep(0.01)  # one of the two finds the other's lock
            assert sorted(process.exitcode or 0 for process in running)[1] == os.EX_TEMPFAIL
            refused += 1
        alive = [process for process in running if process.is_alive()]
        for process in alive:
            process.kill()
            kills += 1
        for process in running:
            process.join()
        found = accepted(output)
        assert all((each.path / "adapter_model.safetensors").read_bytes() == wanted for each in found)
        assert all(each.fingerprint == whole.fingerprint for each in found)
        if found:
            finished += 1
            shutil.rmtree(output)
        elif before:
            assert steps() >= before, "a kill loses nothing that was saved"
            resumed += 1
    last = start()
    last.join()
    assert last.exitcode == 0
    (adapter,) = accepted(output)
    assert (adapter.path / "adapter_model.safetensors").read_bytes() == wanted
    assert without_times(adapter.path / "progress.jsonl") == without_times(whole.path / "progress.jsonl")
    assert refused >= 1
    assert resumed >= 3
    assert {path.name for path in output.iterdir()} == {adapter.path.name, ".training.lock"}
    print(f"{kills} kills, {resumed} resumed, {finished} finished between, {refused} refused, {seconds:.1f} s whole")
