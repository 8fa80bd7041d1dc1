"""Chat models trained for real: they learn, stop by themselves, and are the same however the work was divided."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact
from pipelines.errors import ConfigError, ExamplesError, TrainingError
from pipelines.evaluation.generation import ChatModel, base_chat_model, load_chat_model
from pipelines.labels.examples import read_split
from pipelines.models import BUNDLED, model_folder
from pipelines.prompt import Message, PromptSettings, template_hash
from pipelines.training import generate
from pipelines.training.job import TrainingJob, train
from pipelines.training.lora import with_adapter
from pipelines.training.passes import Passes
from pipelines.training.progress import Progress, read_progress
from pipelines.training.settings import GenerateSettings, LoraSettings
from tests.pipelines.chat_base import chat_rows, make_chat_base, write_chat_set

pytestmark = pytest.mark.slow

PLAIN = PromptSettings(context_tokens=256)  # the base reads 512
PROMPT = PLAIN.model_copy(
    update={"system": "You are kind .", "with_context": "Use this : {context} Question : {question}"}
)
LORA = LoraSettings(rank=32, alpha=32, dropout=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_base(tmp_path_factory.mktemp("base") / "tiny", hidden=128)


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_chat_set(tmp_path_factory.mktemp("chats") / "set", context=True)


@pytest.fixture(scope="module")
def adapter(base: Path, chats: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Trained until it knows its answers."""
    output = tmp_path_factory.mktemp("adapter")
    return fit(base, chats, output, epochs=14, learning_rate=0.01, patience=None, prompt=PROMPT)


def ignore(_: Progress) -> None: ...


def fit(
    base: Path,
    chats: Artifact,
    output: Path,
    *,
    progress: Callable[[Progress], None] = ignore,
    prompt: PromptSettings = PLAIN,
    processes: int | None = None,
    **settings: Any,
) -> Artifact:
    usual = {"epochs": 2, "batch_size": 8, "learning_rate": 0.005, "lora": LORA}
    fine_tune = GenerateSettings(task="generate", base_model=str(base), **{**usual, **settings})
    job = TrainingJob(use_case="shop", training_set=chats.path, output=output, settings=fine_tune, prompt=prompt)
    return train(job, progress=progress, processes=processes)


def held_out_loss(model: ChatModel, chats: Artifact) -> float:
    """Mean over held-out answers."""
    losses = model.losses([[*model.chat(row), row.messages[-1]] for row in read_split(chats, "test")])
    return sum(losses) / len(losses)


def tensors(adapter: Artifact) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(adapter.path / "adapter_model.safetensors")


def assert_as_good_as_equal(one: Artifact, other: Artifact) -> None:
    """Adapters whose difference is one of rounding: Adam's first steps turn the tiniest gradient's sign into a step."""
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    difference = sum(float((left[name] - right[name]).norm() ** 2) for name in left) ** 0.5
    size = sum(float(right[name].norm() ** 2) for name in right) ** 0.5
    assert difference < 0.01 * size
    assert one.manifest["loss"]["last"] == pytest.approx(other.manifest["loss"]["last"], rel=1e-3)
    assert one.manifest["validation"]["loss"] == pytest.approx(other.manifest["validation"]["loss"], rel=1e-3)


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bf16 is faster its rounding would hide what is compared."""
    monkeypatch.setattr(generate, "bf16_is_faster", lambda: False)


def test_a_tuned_model_answers_what_it_was_taught_after_reload_and_stops_by_itself(
    adapter: Artifact, chats: Artifact
) -> None:
    """T11, T12: the end token was learnt, and what is served is what was trained on."""
    tuned, base = load_chat_model(adapter), base_chat_model(adapter)
    assert held_out_loss(tuned, chats) < 0.3 * held_out_loss(base, chats)
    rows = read_split(chats, "test")
    answers, before = (model.answers([model.chat(row) for row in rows], maximum_tokens=40) for model in (tuned, base))
    assert all(answer.stopped for answer in answers)
    right = [answer.text == row.answer for answer, row in zip(answers, rows, strict=True)]
    assert sum(right) >= 0.7 * len(rows), "how many exactly depends on the number of threads"
    assert not any(answer.text == row.answer for answer, row in zip(before, rows, strict=True))


def test_the_validation_loss_of_the_training_is_that_of_the_reloaded_adapter(
    adapter: Artifact, chats: Artifact
) -> None:
    tuned = load_chat_model(adapter)
    rows = read_split(chats, "validation")
    whole = [[*tuned.chat(row), row.messages[-1]] for row in rows]
    tokens = [tuned.count_tokens(row.answer) + 1 for row in rows]
    losses = tuned.losses(whole)
    mean = sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)
    assert mean == pytest.approx(adapter.manifest["validation"]["loss"], rel=0.03, abs=0.02)


def test_the_manifest_says_what_was_really_done(adapter: Artifact, chats: Artifact) -> None:
    """T9, T10"""
    manifest = adapter.manifest
    effective, rows = manifest["effective"], read_split(chats, "train")
    assert manifest["task"] == "generate"
    assert manifest["prompt"] == PROMPT.model_dump(mode="json")
    assert manifest["template_hash"] == template_hash(load_chat_model(adapter).tokenizer)
    assert manifest["end_of_turn"] == "<|im_end|>"
    assert effective["rows"] == len(rows)
    assert effective["rows_left_out"] == 0
    assert effective["epochs"] == 14
    assert effective["steps"] == 14 * -(-len(rows) // 8) == effective["sequences"]
    assert effective["tokens"] == 14 * effective["tokens_an_epoch"]
    count = load_chat_model(adapter).count_tokens
    assert effective["answer_tokens_an_epoch"] == sum(count(row.answer) + 1 for row in rows)
    assert effective["packed"]
    assert manifest["loss"]["last"] < manifest["loss"]["first"]
    assert manifest["validation"]["token_accuracy"] > 0.9
    points = read_progress(adapter.path / "progress.jsonl")
    assert [point for point in points if point.validation_loss is not None]


@pytest.mark.usefixtures("in_float32")
def test_how_a_step_is_divided_changes_nothing(base: Path, chats: Artifact, tmp_path: Path) -> None:
    """Packed or padded, at once or chat by chat: the loss is the mean over the step's answer tokens."""
    at_once = fit(base, chats, tmp_path / "at_once")
    packed = fit(base, chats, tmp_path / "packed", micro_batch_tokens=100)
    padded = fit(base, chats, tmp_path / "padded", packing=False, micro_batch_tokens=120)
    alone = fit(base, chats, tmp_path / "alone", micro_batch_tokens=16)
    sequences = [found.manifest["effective"]["sequences"] for found in (at_once, packed, alone)]
    assert sequences[0] < sequences[1] < sequences[2] == 2 * len(read_split(chats, "train"))
    assert not padded.manifest["effective"]["packed"]
    for other in (packed, padded, alone):
        assert_as_good_as_equal(other, at_once)
    assert at_once.fingerprint == packed.fingerprint


def test_several_processes_come_to_what_one_does(base: Path, chats: Artifact, tmp_path: Path) -> None:
    one = fit(base, chats, tmp_path / "one", micro_batch_tokens=100)
    two = fit(base, chats, tmp_path / "two", micro_batch_tokens=100, processes=2)
    assert two.manifest["processes"] == 2
    assert two.manifest["effective"]["tokens"] == one.manifest["effective"]["tokens"]
    for number, point in ((0, "first"), (1, "last")):
        assert two.manifest["loss"][point] == pytest.approx(one.manifest["loss"][point], rel=(0.001, 0.01)[number])
    assert two.manifest["validation"]["loss"] == pytest.approx(one.manifest["validation"]["loss"], rel=0.01)


@pytest.mark.usefixtures("in_float32")
def test_memory_that_runs_out_makes_parts_smaller_and_nothing_else(
    base: Path, chats: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(base, chats, tmp_path / "whole")
    computed = Passes.losses

    def scarce(self: Passes, batch: dict[str, Any], room: int) -> Any:
        for number, pair in enumerate(computed(self, batch, room)):
            if room > 64 and number == (room < 200):  # at first, or when some of the gradients are there
                raise MemoryError("no more")
            yield pair

    monkeypatch.setattr(Passes, "losses", scarce)
    smaller = fit(base, chats, tmp_path / "smaller")
    assert smaller.manifest["effective"]["micro_batch_tokens"] == 64
    assert_as_good_as_equal(smaller, whole)
    monkeypatch.setattr(Passes, "losses", lambda *_: (_ for _ in ()).throw(MemoryError("none at all")))
    with pytest.raises(TrainingError, match="out of memory"):
        fit(base, chats, tmp_path / "none")


def test_a_training_that_was_broken_off_ends_as_if_it_had_not_been(
    base: Path, chats: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch, dropout and all."""
    from pipelines.training import progress as module

    monkeypatch.setattr(module, "SECONDS_BETWEEN_REPORTS", 0.0)
    settings: dict[str, Any] = {"lora": LoraSettings(rank=4, dropout=0.1), "checkpoint_minutes": 1e-9}
    whole = fit(base, chats, tmp_path / "whole", **settings)

    def fall(point: Progress) -> None:
        if point.step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(base, chats, tmp_path / "broken", progress=fall, **settings)
    seen: list[int] = []
    resumed = fit(base, chats, tmp_path / "broken", progress=lambda point: seen.append(point.step), **settings)
    assert min(seen) >= 10
    assert (
        resumed.manifest["files"]["adapter_model.safetensors"] == whole.manifest["files"]["adapter_model.safetensors"]
    )


def test_longer_chats_are_left_out_and_counted_never_cut(base: Path, chats: Artifact, tmp_path: Path) -> None:
    """T9"""
    rows = chat_rows()
    rows["train"][0]["messages"][0]["content"] *= 40
    rows["validation"][0]["messages"][1]["content"] *= 40
    longer = write_chat_set(tmp_path / "longer", rows)
    effective = fit(base, longer, tmp_path / "out", maximum_tokens=200, epochs=1).manifest["effective"]
    assert effective["rows"] == len(rows["train"]) - 1
    assert (effective["rows_left_out"], effective["validation_rows_left_out"]) == (1, 1)
    assert effective["tokens"] == effective["tokens_an_epoch"]
    with pytest.raises(ExamplesError, match="0 training chats of at most 16 tokens, and 56 longer ones"):
        fit(base, chats, tmp_path / "none", maximum_tokens=16)
    del chats


def test_prompts_that_leave_an_answer_no_room_are_refused_before_the_training(base: Path, tmp_path: Path) -> None:
    rows = chat_rows()
    for row in rows["train"]:
        row["context"] = ["The lamp is blue ."]
    chats = write_chat_set(tmp_path / "chats", rows)
    much = PLAIN.model_copy(update={"context_tokens": 512})
    with pytest.raises(ConfigError, match=r"context_tokens 512 makes prompts of 5\d\d tokens .* made for 512"):
        fit(base, chats, tmp_path / "much", prompt=much, epochs=1)


def test_a_base_without_a_template_is_refused(base: Path, chats: Artifact, tmp_path: Path) -> None:
    """T13"""
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="has no chat template"):
        fit(bare, chats, tmp_path / "out")


@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_other_kinds_of_adapters_learn_too(base: Path, chats: Artifact, tmp_path: Path, variant: str) -> None:
    found = fit(base, chats, tmp_path, lora=LoraSettings(rank=8, alpha=8, dropout=0, variant=variant))
    assert found.manifest["loss"]["last"] < 0.9 * found.manifest["loss"]["first"]
    assert held_out_loss(load_chat_model(found), chats) < 0.9 * held_out_loss(base_chat_model(found), chats)


def test_only_the_upper_blocks_are_adapted_where_that_is_wanted(base: Path, chats: Artifact, tmp_path: Path) -> None:
    lora = LORA.model_copy(update={"upper_layers": 0.5})
    found = fit(base, chats, tmp_path, lora=lora)
    assert {name.split(".layers.")[1][0] for name in tensors(found)} == {"1"}
    assert held_out_loss(load_chat_model(found), chats) < 0.9 * held_out_loss(base_chat_model(found), chats)


def test_a_share_of_blocks_is_at_least_one_and_refused_where_a_base_has_none() -> None:
    import torch
    from peft import get_peft_model_state_dict
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    settings = GenerateSettings(task="generate", base_model="some/base", lora=LoraSettings(upper_layers=0.01))
    bert = AutoModelForSequenceClassification.from_pretrained(model_folder(BUNDLED, None))
    adapted = get_peft_model_state_dict(with_adapter(bert, settings, task="SEQ_CLS"), save_embedding_layers=False)
    assert {name.split(".layer.")[1][0] for name in adapted if ".layer." in name} == {"5"}

    class Flat(torch.nn.Module):
        config = LlamaConfig(num_hidden_layers=3)
        blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2)])

    with pytest.raises(ConfigError, match=r"upper_layers 0\.01 .* 'some/base', which has no stack of 3 blocks"):
        with_adapter(Flat(), settings, task="CAUSAL_LM")


def test_a_quantised_base_is_trained_on_or_refused_with_what_to_install(
    base: Path, chats: Artifact, tmp_path: Path
) -> None:
    if find_spec("bitsandbytes") is None:
        with pytest.raises(ConfigError, match=r"pip install 'freshet\[gpu\]'"):
            fit(base, chats, tmp_path, quantised_base="nf4")
        return
    plain = fit(base, chats, tmp_path / "plain")
    for kind in ("nf4", "int8"):
        found = fit(base, chats, tmp_path / kind, quantised_base=kind)
        assert found.manifest["validation"]["loss"] == pytest.approx(plain.manifest["validation"]["loss"], rel=0.1)


def test_it_learns_as_trl_does_in_the_same_steps(base: Path, tmp_path: Path) -> None:
    """Held-out answers' loss within 2 % of a plain ``SFTTrainer`` run."""
    pytest.importorskip("trl")
    from benchmarks.generation import trl_trainer

    chats = write_chat_set(tmp_path / "plain")
    ours = fit(base, chats, tmp_path / "ours", patience=None, epochs=10)
    model = load_chat_model(ours)
    start, reached = held_out_loss(base_chat_model(ours), chats), held_out_loss(model, chats)
    trainer = trl_trainer(base, chats, tmp_path, lora=LORA, num_train_epochs=10, learning_rate=0.005)
    trainer.train()
    assert trainer.state.global_step == ours.manifest["effective"]["steps"]
    model.loaded = trainer.model.eval()
    assert reached < 0.7 * start
    assert reached == pytest.approx(held_out_loss(model, chats), rel=0.02)


def test_every_turn_of_a_conversation_is_learnt_from(base: Path, tmp_path: Path) -> None:
    chats = write_chat_set(tmp_path / "turns", turns=3)
    found = fit(base, chats, tmp_path / "out", epochs=1)
    rows = read_split(chats, "train")
    count = load_chat_model(found).count_tokens
    wanted = sum(count(turn.content) + 1 for row in rows for turn in row.messages if turn.role == "assistant")
    assert found.manifest["effective"]["answer_tokens_an_epoch"] == wanted
    assert isinstance(rows[0].messages[0], Message)
