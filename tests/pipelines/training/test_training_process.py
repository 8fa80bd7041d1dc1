"""``python -m pipelines.training`` as a process of its own: orphaned, in a Pipes session, with a job that is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster_pipes import encode_param

from pipelines.artifacts import Artifact, load
from pipelines.environment import REPOSITORY
from pipelines.training.job import TrainingJob
from pipelines.training.progress import Progress
from pipelines.training.settings import ClassifySettings, LoraSettings

pytestmark = pytest.mark.slow
LONG = ClassifySettings(epochs=400, batch_size=16, maximum_tokens=48, lora=LoraSettings(rank=4, alpha=8))
SHORT = LONG.model_copy(update={"epochs": 2.0})


def write_job(folder: Path, training_set: Artifact, settings: ClassifySettings) -> TrainingJob:
    job = TrainingJob(use_case="shop", training_set=training_set.path, output=folder / "out", settings=settings)
    (folder / "job.json").write_text(job.model_dump_json())
    return job


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "pipelines.training", str(folder / "job.json")]


def wait_for(what: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_training_whose_parent_has_died_ends_itself(small_set: Artifact, tmp_path: Path) -> None:
    job = write_job(tmp_path, small_set, LONG)
    log = tmp_path / "log"
    starter = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({command(tmp_path)!r}, stdout=open({str(log)!r}, 'w'), stderr=subprocess.STDOUT)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", starter], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        wait_for(lambda: "step " in log.read_text())
        parent.kill()
        parent.wait()
        wait_for(lambda: not is_alive(child), seconds=30)
    finally:
        parent.kill()
        if is_alive(child):
            os.kill(child, signal.SIGKILL)
    assert "has ended; so does the training" in log.read_text()
    assert "started again, it goes on from there" in log.read_text()
    assert [path.name for path in job.output.iterdir() if path.is_dir()] == [".work"]
    assert len(list(job.output.glob(".work/*/checkpoint-*/manifest.json"))) == 1


def test_through_dagster_pipes_it_streams_its_progress_and_then_the_adapter(
    small_set: Artifact, tmp_path: Path
) -> None:
    job = write_job(tmp_path, small_set, SHORT)
    context = {"asset_keys": ["shop/lora_adapter"], "run_id": "r", "retry_number": 0, "extras": {}}
    missing = ("code_version_by_asset_key", "provenance_by_asset_key", "partition_key", "partition_key_range")
    missing += ("partition_time_window", "job_name")
    (tmp_path / "context").write_text(json.dumps({**dict.fromkeys(missing), **context}))
    variables = {
        "DAGSTER_PIPES_CONTEXT": encode_param({"path": str(tmp_path / "context")}),
        "DAGSTER_PIPES_MESSAGES": encode_param({"path": str(tmp_path / "messages")}),
    }
    done = subprocess.run(
        command(tmp_path), cwd=REPOSITORY, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in (tmp_path / "messages").read_text().splitlines()]
    payloads = [message["params"]["payload"] for message in messages if message["method"] == "report_custom_message"]
    estimated = [payload["estimate"] for payload in payloads if "estimate" in payload]
    assert estimated[0]["memory_bytes"] > 2**20 < estimated[0]["free_bytes"]
    last = Progress(**[payload["progress"] for payload in payloads if "progress" in payload][-1])
    assert last.step == last.steps > 0
    adapter = load(Path(payloads[-1]["adapter"]))
    assert adapter.path.parent == job.output
    assert adapter.manifest["effective"]["steps"] == last.steps
    assert [message for message in messages if message["method"] == "log"]
    assert "Warning" not in done.stderr


def test_a_job_that_cannot_be_done_says_why_and_exits_with_2(small_set: Artifact, tmp_path: Path) -> None:
    """T13"""
    write_job(tmp_path, small_set, LONG.model_copy(update={"base_model": "no such model"}))
    done = subprocess.run(command(tmp_path), cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("ConfigError: model 'no such model' is neither")
    assert "Traceback" not in done.stderr

    (tmp_path / "job.json").write_text('{"use_case": 1}')
    done = subprocess.run(command(tmp_path), cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is no training job" in done.stderr
