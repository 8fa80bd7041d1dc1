from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.artifacts import Artifact, load, seal
from pipelines.errors import ArtifactError
from pipelines.evaluation import generation
from pipelines.evaluation.generation import Answer, ChatModel, base_chat_model, load_chat_model
from pipelines.labels.examples import Example, read_split
from pipelines.prompt import Message


@pytest.fixture(scope="module")
def model(good_chat: Artifact) -> ChatModel:
    return load_chat_model(good_chat)


@pytest.fixture(scope="module")
def held_out(chats: Artifact) -> list[Example]:
    return read_split(chats, "test")


def altered(adapter: Artifact, folder: Path, change: Callable[[Path], object], **facts: Any) -> Artifact:
    """A copy with another content and a seal that fits it."""
    shutil.copytree(adapter.path, folder)
    change(folder)
    seal(folder, {**{name: value for name, value in adapter.manifest.items() if name != "files"}, **facts})
    return load(folder)


def test_each_answer_is_what_the_model_says_token_by_token_and_stops_by_itself(
    model: ChatModel, held_out: list[Example]
) -> None:
    """T11, T12. Batches, padding, stages and the base's own generation settings change nothing."""
    prompts = [model.chat(row) for row in held_out]
    answers = model.answers(prompts, maximum_tokens=64)
    assert all(answer.stopped for answer in answers)
    assert sum(answer.text == row.answer for answer, row in zip(answers, held_out, strict=True)) > len(held_out) // 2
    for prompt, answer in list(zip(prompts, answers, strict=True))[:6]:
        ids = model._ids(generation.render(model.tokenizer, prompt))
        said: list[int] = []
        while not said or (said[-1] not in model.end_tokens and len(said) < 64):
            with torch.inference_mode():
                said.append(int(model.model(torch.tensor([ids + said])).logits[0, -1].argmax()))
        assert answer.text == model.tokenizer.decode(said, skip_special_tokens=True).strip()
        assert answer.tokens == len(said)


def test_answers_in_stages_and_small_batches_are_the_same_answers(
    model: ChatModel, held_out: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [model.chat(row) for row in held_out]
    whole = model.answers(prompts, maximum_tokens=64)
    monkeypatch.setattr(generation, "FIRST_STAGE", 2)
    monkeypatch.setattr(generation, "CPU_BATCH_TOKENS", 100)
    came: dict[int, Answer] = {}

    def collect(found: Mapping[int, Answer]) -> None:
        assert not came.keys() & found.keys()
        came.update(found)

    assert model.answers(prompts, maximum_tokens=64, finished=collect) == whole
    assert [came[number] for number in range(len(prompts))] == whole


def test_in_float32_the_adapter_is_merged_and_says_the_same(
    good_chat: Artifact, model: ChatModel, held_out: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arithmetic of CPUs and GPUs without bf16; answers of one precision never stand for those of the other."""
    prompts = [model.chat(row) for row in held_out]
    keys, said = set(), []
    for bf16 in (False, True):
        monkeypatch.setattr(generation, "bf16_is_faster", lambda bf16=bf16: bf16)
        here = load_chat_model(good_chat)
        keys.add(here.key)
        assert here.model.dtype is (torch.bfloat16 if bf16 else torch.float32)
        assert any("lora" in name for name, _ in here.model.named_parameters()) is bf16
        said.append([answer.text for answer in here.answers(prompts, maximum_tokens=64)])
    assert len(keys) == 2
    alike = sum(first == second for first, second in zip(*said, strict=True))
    assert alike >= 0.9 * len(prompts)


def test_the_untuned_base_answers_in_its_own_manner_to_the_same_prompts(
    good_chat: Artifact, model: ChatModel, held_out: list[Example]
) -> None:
    base = base_chat_model(good_chat)
    assert base.prompt == model.prompt
    assert base.key != model.key
    said = base.answers([base.chat(row) for row in held_out], maximum_tokens=64)
    assert all(answer.text.startswith("maybe the") for answer in said)


def test_each_model_is_prompted_as_its_own_manifest_says(
    good_chat: Artifact, held_out: list[Example], tmp_path: Path
) -> None:
    """T12"""
    prompt = {"system": "Obey .", "with_context": "{question} : {context}", "context_tokens": 9}
    other = load_chat_model(altered(good_chat, tmp_path / "other", lambda _: None, prompt=prompt))
    row = next(row for row in held_out if row.context)
    question, context = row.messages[0].content, row.context[0]
    assert other.chat(row) == [Message("system", "Obey ."), Message("user", f"{question} : [1] {context}")]
    assert load_chat_model(good_chat).chat(row)[0] == Message("system", "You are kind .")
    assert other.context(row) == (f"[1] {context}",)


def test_an_answer_that_does_not_end_is_cut_and_called_so(endless_chat: Artifact, held_out: list[Example]) -> None:
    """T11"""
    model = load_chat_model(endless_chat)
    for limit in (5, 96):
        answers = model.answers([model.chat(row) for row in held_out[:8]], maximum_tokens=limit)
        assert {(answer.stopped, answer.tokens) for answer in answers if not answer.stopped} == {(False, limit)}


def test_a_prompt_that_fills_the_window_gets_no_answer_and_a_nearly_full_one_a_short_one(model: ChatModel) -> None:
    window = model.model.config.max_position_embeddings
    overhead = len(model._ids(generation.render(model.tokenizer, [Message("user", "")])))
    lines: list[str] = []
    chats = [[Message("user", "red " * count)] for count in (3, window, window - overhead - 2)]
    answers = model.answers(chats, maximum_tokens=16, progress=lines.append)
    assert answers[1] == Answer("", stopped=False, tokens=0)
    assert answers[2].tokens <= 2
    assert answers[0].tokens > 2
    assert lines[0] == f"1 of 3 prompts fill the model's window of {window} tokens: not answered"
    assert lines[-1].startswith("3 of 3 answers, ")


def test_when_memory_runs_out_smaller_batches_give_the_same_answers(
    model: ChatModel, held_out: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [model.chat(row) for row in held_out]
    whole = model.answers(prompts, maximum_tokens=64)
    run = ChatModel._continue
    sizes: list[int] = []

    def scarce(self: ChatModel, rows: list[list[int]], new: int) -> list[list[int]]:
        if len(rows) > 8:
            raise torch.OutOfMemoryError("no memory")
        sizes.append(len(rows))
        return run(self, rows, new)

    monkeypatch.setattr(ChatModel, "_continue", scarce)
    assert model.answers(prompts, maximum_tokens=64) == whole
    assert max(sizes) <= 8


def test_the_loss_is_that_of_the_answer_and_its_end_alone(model: ChatModel, held_out: list[Example]) -> None:
    chats = [[*model.chat(row), row.messages[-1]] for row in held_out]
    losses = model.losses(chats)
    for chat, found in list(zip(chats, losses, strict=True))[:5]:
        before = model._ids(generation.render(model.tokenizer, chat[:-1]))
        whole = model._ids(generation.render(model.tokenizer, chat, answer=True))
        labels = torch.tensor([[-100] * len(before) + whole[len(before) :]])
        with torch.inference_mode():
            alone = model.model(input_ids=torch.tensor([whole]), labels=labels).loss
        assert found == pytest.approx(float(alone), rel=0.02)


def test_another_template_in_the_adapter_is_refused(good_chat: Artifact, tmp_path: Path) -> None:
    """T10"""
    other = altered(
        good_chat,
        tmp_path / "template",
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}"),
    )
    with pytest.raises(ArtifactError, match=r"was trained with chat template .* bring that template back"):
        load_chat_model(other)


def test_another_template_in_the_base_is_refused_for_both(good_chat: Artifact, chat_base: Path, tmp_path: Path) -> None:
    """T10"""
    base = tmp_path / "base"
    shutil.copytree(chat_base, base)
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    moved = altered(good_chat, tmp_path / "moved", lambda _: None, base_model=str(base))
    for read in (load_chat_model, base_chat_model):
        with pytest.raises(ArtifactError, match=r"chat_template\.jinja in .* differ"):
            read(moved)


def test_an_adapter_whose_tensors_have_no_place_is_refused(good_chat: Artifact, tmp_path: Path) -> None:
    """T19"""
    from safetensors.torch import load_file, save_file

    def rename(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        first = min(tensors)
        tensors[first.replace("layers.0", "layers.7")] = tensors.pop(first)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    lost = altered(good_chat, tmp_path / "lost", rename)
    with (
        pytest.warns(UserWarning, match="missing adapter keys"),
        pytest.raises(ArtifactError, match="tensors that did not load as stored"),
    ):
        _ = load_chat_model(lost).model


def test_a_classifier_gives_no_answers(small_adapter: Artifact) -> None:
    with pytest.raises(ArtifactError, match="was trained for task 'classify', not 'generate'"):
        load_chat_model(small_adapter)


def test_the_ends_of_an_answer_are_the_templates_the_tokenizers_and_the_bases(
    good_chat: Artifact, chat_base: Path, tmp_path: Path
) -> None:
    """T11"""
    model = load_chat_model(good_chat)
    end, start = model.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    assert model.end_tokens == (end,)
    base = tmp_path / "base"
    shutil.copytree(chat_base, base)
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [end, start]}))
    tokenizer = model.tokenizer
    assert generation._end_tokens(tokenizer, base) == (end, start)
