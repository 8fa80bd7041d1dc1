"""Trainings that are killed, told to end, started twice, or spread over processes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact, load
from pipelines.errors import ArtifactError, ConfigError
from pipelines.labels.examples import read_split
from pipelines.training.checkpoints import KEPT, last_checkpoint
from pipelines.training.job import LEFTOVER_DAYS, TrainingJob, adapter_fingerprint, train
from pipelines.training.progress import Progress, read_progress
from pipelines.training.settings import ClassifySettings, GenerateSettings, LoraSettings
from tests.pipelines.chat_base import make_chat_base, write_chat_set
from tests.pipelines.conftest import texts_of, write_training_set
from tests.pipelines.training.tiny_bert import train_as_a_process, training_processes, write_tiny_bert

pytestmark = pytest.mark.slow
WEIGHTS = "adapter_model.safetensors"
EVERY_STEP = 1e-9
"""Minutes between checkpoints."""


@pytest.fixture(scope="module")
def tiny_bert(small_set: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [row.text for row in read_split(small_set, "train")]
    return write_tiny_bert(tmp_path_factory.mktemp("tiny") / "base", texts, dropout=0.1)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    context = training_processes()
    context.Process(target=int).start()  # the imports take seconds, beside the first tests
    return context


def job_of(training_set: Artifact, base: Path, output: Path, **settings: Any) -> TrainingJob:
    usual = {"epochs": 3, "batch_size": 6, "maximum_tokens": 48, "learning_rate": 0.01, "patience": None}
    usual["lora"] = LoraSettings(rank=4, alpha=8)
    fine_tune = ClassifySettings(base_model=str(base), **{**usual, **settings})
    return TrainingJob(use_case="shop", training_set=training_set.path, output=output, settings=fine_tune)


@pytest.fixture(scope="module")
def job(small_set: Artifact, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    return job_of(small_set, tiny_bert, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def whole(job: TrainingJob) -> Artifact:
    """Trained without a break."""
    return train_and_show_all(job)


@pytest.fixture(scope="module")
def chat_job(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    folder = tmp_path_factory.mktemp("chats")
    settings = GenerateSettings(
        task="generate",
        base_model=str(make_chat_base(folder / "base", hidden=32)),
        epochs=2,
        batch_size=8,
        learning_rate=0.01,
        maximum_tokens=64,
        lora=LoraSettings(rank=4, alpha=8, dropout=0.1),
        patience=None,
    )
    chats = write_chat_set(folder / "set")
    return TrainingJob(use_case="shop", training_set=chats.path, output=folder / "whole", settings=settings)


@pytest.fixture(scope="module")
def whole_chat(chat_job: TrainingJob) -> Artifact:
    """Trained without a break."""
    return train_and_show_all(chat_job)


def train_and_show_all(job: TrainingJob) -> Artifact:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.training.progress.SECONDS_BETWEEN_REPORTS", 0)
        return train(job, progress=ignore)


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


@pytest.mark.parametrize(
    ("task", "step"),
    [("classify", 1), ("classify", 10), ("classify", 14), ("generate", 10)],
    ids=["before the first checkpoint", "at an epoch's end", "in an epoch", "chats"],
)
def test_a_resumed_training_makes_the_same_adapter_as_one_without_a_break(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, step: int
) -> None:
    """Same order of examples, same dropout, same best epoch, and a curve without gaps or doubles."""
    whole: Artifact = request.getfixturevalue("whole" if task == "classify" else "whole_chat")
    job: TrainingJob = request.getfixturevalue("job" if task == "classify" else "chat_job")
    monkeypatch.setattr("pipelines.training.progress.SECONDS_BETWEEN_REPORTS", 0)
    settings = job.settings.model_copy(update={"checkpoint_minutes": EVERY_STEP})
    job = job.model_copy(update={"output": tmp_path, "settings": settings})
    with pytest.raises(KeyboardInterrupt):
        train(job, progress=stop_at(step))
    assert accepted(job.output) == []
    seen: list[Progress] = []
    resumed = train(job, progress=seen.append)
    assert seen[0].step == step, "the step before was saved"
    assert resumed.fingerprint == whole.fingerprint, "how often it is saved is not part of what it is"
    assert (resumed.path / WEIGHTS).read_bytes() == (whole.path / WEIGHTS).read_bytes()
    assert without_times(resumed.path / "progress.jsonl") == without_times(whole.path / "progress.jsonl")
    for key in ("loss", "validation"):
        assert resumed.manifest[key] == whole.manifest[key]
    counted = {name: value for name, value in whole.manifest["effective"].items() if name != "sequences"}
    assert counted.items() <= resumed.manifest["effective"].items()
    assert not (job.output / ".work").exists()


@pytest.mark.parametrize("task", ["classify", "generate"])
def test_a_refit_is_a_second_training_on_all_rows_and_resumes_as_one(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    once: Artifact = request.getfixturevalue("whole" if task == "classify" else "whole_chat")
    job: TrainingJob = request.getfixturevalue("job" if task == "classify" else "chat_job")
    settings = job.settings.model_copy(update={"refit": True})
    whole = train_and_show_all(job.model_copy(update={"output": tmp_path / "whole", "settings": settings}))
    first, effective = once.manifest["effective"], whole.manifest["effective"]
    assert effective["rows"] == first["rows"] + first["validation_rows"] > effective["rows_before_refit"]
    assert (effective["epochs"], effective["best_epoch"]) == (first["epochs"], first["best_epoch"])
    for key in ("validation", "thresholds", "calibration"):
        assert whole.manifest.get(key) == once.manifest.get(key), "of the first training: nothing is held out after it"
    assert (whole.path / WEIGHTS).read_bytes() != (once.path / WEIGHTS).read_bytes()
    points = read_progress(whole.path / "progress.jsonl")
    assert [point.step for point in points] == sorted(point.step for point in points)
    assert points[-1].step == points[-1].steps == first["steps"] + effective["steps"]

    monkeypatch.setattr("pipelines.training.progress.SECONDS_BETWEEN_REPORTS", 0)
    settings = settings.model_copy(update={"checkpoint_minutes": EVERY_STEP})
    job = job.model_copy(update={"output": tmp_path / "killed", "settings": settings})
    step = first["steps"] + 2
    with pytest.raises(KeyboardInterrupt):
        train(job, progress=stop_at(step))
    seen: list[Progress] = []
    resumed = train(job, progress=seen.append)
    assert seen[0].step == step, "the first training is not repeated"
    assert (resumed.path / WEIGHTS).read_bytes() == (whole.path / WEIGHTS).read_bytes()
    assert without_times(resumed.path / "progress.jsonl") == without_times(whole.path / "progress.jsonl")
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
    weights = kept[-1] / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    half = work / "checkpoint-99"
    shutil.copytree(kept[0], half, ignore=shutil.ignore_patterns("manifest.json"))
    assert last_checkpoint(work) == kept[0]
    assert list(work.glob("checkpoint-*")) == [kept[0]]
    (kept[0] / "manifest.json").write_text("{")
    assert last_checkpoint(work) is None
    assert train(job, progress=ignore).manifest["effective"]["steps"] == 27


@pytest.mark.parametrize("task", ["classify", "generate"])
def test_kill_9_at_20_random_moments(
    request: pytest.FixtureRequest, tmp_path: Path, processes: ForkServerContext, task: str
) -> None:
    """T5, T8: every next run resumes or restarts rightly, never two at once, never half an adapter accepted.

    Ten moments for each task; FRESHET_TEST_SEED draws others.
    """
    draw = random.Random(int(os.environ.get("FRESHET_TEST_SEED", "11")))
    whole: Artifact = request.getfixturevalue("whole" if task == "classify" else "whole_chat")
    job: TrainingJob = request.getfixturevalue("job" if task == "classify" else "chat_job")
    output, wanted = tmp_path / "out", (whole.path / WEIGHTS).read_bytes()
    settings = job.settings.model_copy(update={"checkpoint_minutes": EVERY_STEP})
    (tmp_path / "job.json").write_text(
        job.model_copy(update={"output": output, "settings": settings}).model_dump_json()
    )
    kills = refused = resumed = finished = 0

    def start() -> ForkServerProcess:
        process = processes.Process(target=train_as_a_process, args=(str(tmp_path / "job.json"),))
        process.start()
        return process

    def saved() -> int:
        complete = output.glob(".work/*/checkpoint-*/manifest.json")
        return max((int(path.parent.name.removeprefix("checkpoint-")) for path in complete), default=0)

    began = time.monotonic()
    start().join()
    seconds = time.monotonic() - began
    shutil.rmtree(output)
    while kills < 10:
        before = saved()
        resumed += before > 0
        running = [start(), start()] if kills % 4 == 0 else [start()]
        if kills % 3 == 2:  # while the adapter itself is written
            while not list(output.glob(".*.*/adapter_config.json")) and running[0].is_alive():
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.1))
        else:
            time.sleep(draw.uniform(0, seconds / (2 if before else 1)))  # what is resumed takes less
        if len(running) == 2:
            while all(process.is_alive() for process in running):
                time.sleep(0.01)  # one of the two finds the other's lock
            assert os.EX_TEMPFAIL in [process.exitcode for process in running]
            refused += 1
        for process in running:
            kills += process.is_alive()
            process.kill()
            process.join()
        found = accepted(output)
        assert all((each.path / WEIGHTS).read_bytes() == wanted for each in found)
        assert all(each.fingerprint == whole.fingerprint for each in found)
        if found:
            finished += 1
            shutil.rmtree(output)
        else:
            assert saved() >= before, "a kill loses nothing that was saved"
    last = start()
    last.join()
    assert last.exitcode == 0
    (adapter,) = accepted(output)
    assert (adapter.path / WEIGHTS).read_bytes() == wanted
    steps = [point.step for point in read_progress(adapter.path / "progress.jsonl")]
    assert steps == sorted(steps)
    assert {path.name for path in output.iterdir()} == {adapter.path.name, ".training.lock"}
    assert refused
    assert resumed
    print(f"{task}: {kills} kills, {resumed} resumed, {finished} finished, {refused} refused, {seconds:.1f} s whole")


def test_a_training_that_is_told_to_end_saves_a_checkpoint_and_says_so(
    small_set: Artifact, tiny_bert: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    job = job_of(small_set, tiny_bert, tmp_path / "out", epochs=2000)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    process = processes.Process(target=train_as_a_process, args=(str(tmp_path / "job.json"),))
    process.start()
    while not list(job.output.glob(".work/*/progress.jsonl")):
        assert process.is_alive()
        time.sleep(0.05)
    process.terminate()
    process.join(30)
    assert process.exitcode == os.EX_TEMPFAIL
    (work,) = (job.output / ".work").iterdir()
    saved = last_checkpoint(work)
    assert saved is not None, "although the next checkpoint by the clock is ten minutes away"
    seen: list[Progress] = []

    def stop(point: Progress) -> None:
        seen.append(point)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job, progress=stop)
    assert seen[0].step > int(saved.name.removeprefix("checkpoint-"))
    assert seen[0].seconds_left > seen[0].seconds, "the pace is of this run's steps, of which there were few"


def test_two_processes_make_what_one_makes_and_outlive_neither_each_other_nor_a_kill(
    tmp_path: Path, processes: ForkServerContext
) -> None:
    """One process of two is killed: the other ends as well, and the next run goes on with both."""
    import torch
    from safetensors.torch import load_file

    examples = write_training_set(tmp_path / "set", validation=False)  # rounding may make another epoch the best
    base = write_tiny_bert(tmp_path / "base", texts_of(examples, "train"), dropout=0)  # each draws dropout of its own
    adapter = LoraSettings(rank=4, alpha=8, dropout=0)
    alone = train(job_of(examples, base, tmp_path / "one", epochs=8, lora=adapter), progress=ignore)
    job = job_of(examples, base, tmp_path / "two", epochs=8, lora=adapter, checkpoint_minutes=EVERY_STEP)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    arguments = ("--processes", "2", str(tmp_path / "job.json"))
    first = processes.Process(target=train_as_a_process, args=arguments)
    first.start()
    while not list(job.output.glob(".work/*/checkpoint-*/manifest.json")):
        assert first.is_alive()
        time.sleep(0.02)
    (other,) = children(first.pid or 0)
    os.kill(other, signal.SIGKILL)
    first.join(60)
    assert first.exitcode == os.EX_TEMPFAIL
    assert accepted(job.output) == []

    second = processes.Process(target=train_as_a_process, args=arguments)
    second.start()
    second.join(120)
    assert second.exitcode == 0
    (made,) = accepted(job.output)
    assert made.manifest["processes"] == 2
    assert made.manifest["effective"] == {
        **alone.manifest["effective"],
        "tokens_at_once": alone.manifest["effective"]["tokens_at_once"] // 2,
    }
    one, two = load_file(alone.path / WEIGHTS), load_file(made.path / WEIGHTS)
    learned = [torch.cat([tensors[name].flatten() for name in one if "lora_B" in name]) for tensors in (one, two)]
    assert torch.nn.functional.cosine_similarity(*learned, dim=0) > 0.98, "but for rounding"
    assert alone.manifest["loss"]["first"] == pytest.approx(made.manifest["loss"]["first"], rel=0.01)
    assert made.manifest["loss"]["last"] < 0.4 > alone.manifest["loss"]["last"], "both learned"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_what_nobody_goes_on_with_is_removed_after_a_week(small_set: Artifact, tiny_bert: Path, tmp_path: Path) -> None:
    old, recent = tmp_path / ".work" / "old", tmp_path / ".work" / "recent"
    for folder in (old, recent):
        (folder / "checkpoint-1").mkdir(parents=True)
    then = time.time() - (LEFTOVER_DAYS * 86_400 + 60)
    os.utime(old, (then, then))
    train(job_of(small_set, tiny_bert, tmp_path, epochs=1), progress=ignore)
    assert [path.name for path in (tmp_path / ".work").iterdir()] == ["recent"]


def test_training_stops_early_where_no_evaluation_is_better_and_says_what_it_trained(
    small_set: Artifact, tiny_bert: Path, tmp_path: Path
) -> None:
    """T9"""
    job = job_of(small_set, tiny_bert, tmp_path, epochs=60, patience=2)
    adapter = train(job, progress=ignore)
    effective = adapter.manifest["effective"]
    assert effective["stopped_early"]
    assert effective["epochs"] == effective["best_epoch"] + 2 < 60
    assert effective["steps"] == effective["epochs"] * 9
    points = read_progress(adapter.path / "progress.jsonl")
    assert effective["tokens"] == points[-1].tokens
    scores = [(point.validation_score or 0, -(point.validation_loss or 0)) for point in points if point.validation_loss]
    assert scores.index(max(scores)) + 1 == effective["best_epoch"]
    assert all(point.memory_bytes > 2**20 and point.tokens_per_second > 0 for point in points)
    refit = train(job_of(small_set, tiny_bert, tmp_path / "refit", epochs=60, patience=2, refit=True), progress=ignore)
    assert refit.manifest["effective"]["epochs"] == effective["best_epoch"], "so long, and no longer"


def test_settings_that_change_nothing_of_the_adapter_are_not_in_its_fingerprint(
    small_set: Artifact, tiny_bert: Path
) -> None:
    def key(settings: ClassifySettings | GenerateSettings, **more: Any) -> str:
        job = TrainingJob(use_case="shop", training_set=small_set.path, output=Path("out"), settings=settings, **more)
        return adapter_fingerprint(job, small_set, {"model.safetensors": "a"})

    classify = ClassifySettings()
    same = classify.model_copy(update={"micro_batch_tokens": 64, "checkpoint_minutes": 1.0})
    assert key(classify) == key(same)
    assert key(classify) == key(classify, prompt={"system": "Be brief."}), "a classifier has no prompt"
    assert key(classify) != key(classify.model_copy(update={"patience": 1}))
    chat = GenerateSettings(task="generate", base_model="base")
    assert key(chat) != key(chat, prompt={"system": "Be brief."})


def test_a_batch_that_processes_cannot_share_is_refused(small_set: Artifact, tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size 6 cannot be shared evenly by 4 processes"):
        train(job_of(small_set, tiny_bert, tmp_path), progress=ignore, processes=4)
