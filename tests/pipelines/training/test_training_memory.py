"""What a training is said to need, and what happens where it is not there."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact, load, seal
from pipelines.errors import ConfigError, TrainingError
from pipelines.labels.examples import read_split
from pipelines.models import BUNDLED, model_folder
from pipelines.training import classify, memory
from pipelines.training.job import TrainingJob, train
from pipelines.training.memory import check_disk, duration, estimate, footprint, with_smaller_batches
from pipelines.training.settings import ClassifySettings, GenerateSettings, LoraSettings
from tests.pipelines.chat_base import make_chat_base, write_chat_set
from tests.pipelines.training.tiny_bert import (
    allocate_until_it_fits,
    train_and_measure,
    training_processes,
    write_tiny_bert,
)


@pytest.mark.slow
def test_where_memory_runs_out_the_batch_is_halved_until_it_fits() -> None:
    """Of 32 rows at 64 MiB each only eight fit into the 640 MiB that the process may still take."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = training_processes().Process(target=allocate_until_it_fits, args=(640 * 2**20, sender))
    process.start()
    assert receiver.poll(60)
    rows, tried, said = receiver.recv()
    process.join()
    assert (rows, tried) == (8, [32, 16, 8])
    assert "can't allocate memory" in said[0]
    assert said[1].endswith("going on with 8 at once, as large a step")


def test_out_of_memory_with_one_at_a_time_says_what_to_do() -> None:
    def run(rows: int) -> None:
        raise MemoryError(f"{rows} rows")

    with pytest.raises(TrainingError, match=r"one at a time \(1 rows\): lower maximum_tokens or lora\.rank"):
        with_smaller_batches(run, 4, lambda _: None)


def test_a_classifier_that_runs_out_of_memory_takes_fewer_rows_at_once_and_learns_the_same(
    small_set: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight at once are too many, and of four the second part is, when the first one's gradients are there."""
    from safetensors.torch import load_file
    from torch._subclasses.fake_tensor import FakeTensor
    from transformers import BertModel

    monkeypatch.setattr(classify, "bf16_is_faster", lambda: False)  # rounding would hide what is compared
    base = write_tiny_bert(tmp_path / "base", [row.text for row in read_split(small_set, "train")], dropout=0)
    settings = ClassifySettings(
        base_model=str(base), epochs=2, batch_size=8, maximum_tokens=48, lora=LoraSettings(rank=4, dropout=0)
    )

    def made(name: str) -> Artifact:
        job = TrainingJob(use_case="shop", training_set=small_set.path, output=tmp_path / name, settings=settings)
        return train(job, progress=lambda _: None)

    whole, forward, parts = made("whole"), BertModel.forward, []

    def scarce(self: BertModel, input_ids: Any, **more: Any) -> Any:
        if self.training and not isinstance(input_ids, FakeTensor):  # the estimate's
            parts.append(len(input_ids))
            if parts[-1] == 8 or parts[-2:] == [4, 4]:
                raise MemoryError("no more")
        return forward(self, input_ids, **more)

    monkeypatch.setattr(BertModel, "forward", scarce)
    smaller = made("smaller")
    assert parts[:4] == [8, 4, 4, 2]
    assert max(parts[4:]) < 8
    at_once = [made.manifest["effective"]["tokens_at_once"] for made in (whole, smaller)]
    assert at_once[0] == 8 * whole.manifest["estimate"]["longest"]
    assert at_once[1] <= at_once[0] / 4
    assert smaller.manifest["effective"]["steps"] == whole.manifest["effective"]["steps"]
    assert smaller.manifest["loss"]["last"] == pytest.approx(whole.manifest["loss"]["last"], rel=1e-3)
    one, other = (load_file(each.path / "adapter_model.safetensors") for each in (whole, smaller))
    for name, weights in one.items():
        assert float((weights - other[name]).norm()) <= 0.01 * float(weights.norm()) + 1e-6, name


def test_where_not_even_one_chat_fits_its_activations_are_computed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, chats = make_chat_base(tmp_path / "base", layers=8), write_chat_set(tmp_path / "set")
    settings = GenerateSettings(
        task="generate", base_model=str(base), epochs=1, maximum_tokens=64, lora=LoraSettings(rank=4, dropout=0)
    )
    usual = estimate(settings, chats, base)
    assert not usual.saves_memory
    alone = settings.model_copy(update={"micro_batch_tokens": 16})
    kept, twice = (estimate(alone.model_copy(update={"save_memory": how}), chats, base) for how in (False, True))
    assert kept.tokens_at_once == twice.tokens_at_once == kept.longest
    assert twice.memory_bytes < kept.memory_bytes

    def said(free: int, how: bool | None = None) -> tuple[int, bool]:
        monkeypatch.setattr(memory, "free_memory", lambda: free)
        found = estimate(settings.model_copy(update={"save_memory": how}), chats, base)
        return found.tokens_at_once // found.longest, found.saves_memory

    assert said(usual.memory_bytes)[1] is False
    assert said(kept.memory_bytes) == (1, False), "fewer at once are the cheaper way"
    assert said(twice.memory_bytes) == (1, True)
    assert said(twice.memory_bytes, False) == (1, False)

    job = TrainingJob(use_case="shop", training_set=chats.path, output=tmp_path / "out", settings=settings)
    monkeypatch.setattr(memory, "free_memory", lambda: twice.memory_bytes)
    adapter = train(job, progress=lambda _: None)
    assert adapter.manifest["estimate"]["saves_memory"]
    assert adapter.manifest["effective"]["saves_memory"]


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def run(rows: int) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        with_smaller_batches(run, 4, lambda _: None)


@pytest.mark.slow
def test_the_estimate_is_near_to_what_a_training_takes(small_set: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(small_set.path, folder)
    (folder / "manifest.json").unlink()
    lines = (folder / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:16]]
    (folder / "train.jsonl").write_text("".join(json.dumps({**row, "text": row["text"] * 15}) + "\n" for row in rows))
    seal(folder, {name: value for name, value in small_set.manifest.items() if name != "files"})
    settings = ClassifySettings(epochs=1, batch_size=8, maximum_tokens=128)
    job = TrainingJob(use_case="shop", training_set=folder, output=tmp_path / "out", settings=settings)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = training_processes().Process(target=train_and_measure, args=(str(tmp_path / "job.json"), sender))
    process.start()
    assert receiver.poll(120)
    grown = receiver.recv()
    process.join()
    (adapter,) = (load(path) for path in job.output.iterdir() if path.is_dir())
    said = adapter.manifest["estimate"]
    assert said["longest"] == 128
    assert said["tokens_at_once"] == 8 * 128
    assert not said["reduced"]
    assert said["tokens"] == adapter.manifest["effective"]["tokens"]
    needed = said["weights_bytes"] + said["adapter_bytes"] + said["activations_bytes"]
    assert needed == pytest.approx(grown, rel=0.35), f"{needed / grown:.2f}"
    left = sum(path.stat().st_size for path in adapter.path.iterdir())
    assert said["disk_bytes"] > left


def test_what_cannot_fit_is_refused_before_any_weight_is_read(small_set: Artifact, tmp_path: Path) -> None:
    from transformers import LlamaConfig

    write_tiny_bert(tmp_path, [row.text for row in read_split(small_set, "train")], dropout=0)
    config = LlamaConfig(hidden_size=65_536, intermediate_size=262_144, num_hidden_layers=8, vocab_size=256)
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights at all")
    settings = GenerateSettings(task="generate", base_model=str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs about [\d.]+ GiB .* are free: lower .* quantised_base"):
        estimate(settings, small_set, tmp_path)


def test_smaller_batches_and_ranks_take_less_and_dora_more() -> None:
    base = model_folder(BUNDLED, None)
    usual = footprint(ClassifySettings(), base, rows=8, length=64)
    assert footprint(ClassifySettings(), base, rows=4, length=64).kept_bytes < 0.65 * usual.kept_bytes
    assert footprint(ClassifySettings(lora=LoraSettings(rank=4)), base, rows=8, length=64).trained < usual.trained
    dora = footprint(ClassifySettings(lora=LoraSettings(variant="dora")), base, rows=8, length=64)
    assert dora.kept_bytes > usual.kept_bytes
    assert 89e6 < usual.weights_bytes < 100e6, "MiniLM in float32, and the adapter"


def test_a_full_disk_is_found_before_the_training_and_not_after_it(tmp_path: Path) -> None:
    check_disk(tmp_path, 2**20)
    with pytest.raises(TrainingError, match=r"take about 1,099,511,627,776 MiB, and [\d,]+ MiB are free"):
        check_disk(tmp_path, 2**60)


def test_durations_are_for_people() -> None:
    assert [duration(seconds) for seconds in (5, 300, 40_000)] == ["5 s", "5 min", "11.1 h"]
