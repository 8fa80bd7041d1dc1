"""The comparison of chat models after export, and what it blocks."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.artifacts import Artifact
from pipelines.evaluation.generation import ChatModel, load_chat_model
from pipelines.labels.examples import Example, read_split
from pipelines.prompt import render
from pipelines.release import parity_chats
from pipelines.release.gguf import Header, read_header
from pipelines.release.language import GgufLanguageModel
from pipelines.release.parity_chats import ChatParity, compare_chats, load_reference, plot_chats
from pipelines.release.settings import Quantisation, ReleaseSettings
from tests.pipelines.chat_base import TEMPLATE, chat_rows, write_chat_set
from tests.pipelines.release.chat_samples import CHAT_EVALUATION, train_chat
from tests.pipelines.release.samples import no_progress


@pytest.fixture(scope="module")
def chat_model(chat_adapter: Artifact) -> ChatModel:
    return load_chat_model(chat_adapter, exact=True)


@pytest.fixture(scope="module")
def rows(chat_training: list[Artifact]) -> list[Example]:
    return read_split(chat_training[0], "test")


def files(gguf: Artifact, *names: Quantisation) -> dict[Quantisation, tuple[Path, Header]]:
    paths = {name: gguf.path / str(gguf.manifest["quantisations"][name]["file"]) for name in names}
    return {name: (path, read_header(path)) for name, path in paths.items()}


def compared(
    adapter: Artifact,
    training_set: Artifact,
    rows: list[Example],
    found: dict[Quantisation, tuple[Path, Header]],
    *,
    lines: list[str] | None = None,
    evaluation: dict[str, Any] | None = None,
    **settings: Any,
) -> ChatParity:
    progress = no_progress if lines is None else lines.append
    return compare_chats(
        adapter,
        load_reference(adapter, Path(adapter.manifest["base_model"]), progress),
        training_set,
        rows,
        found,
        settings=ReleaseSettings(**settings),
        evaluation=CHAT_EVALUATION.model_copy(update=evaluation or {}),
        progress=progress,
    )


def test_a_faithful_export_passes_and_says_what_it_measured(chat_gguf: Artifact) -> None:
    """G1, G8, G9, G10, G14: next tokens, answers, ends and scores of every file beside those of base and adapter."""
    manifest = chat_gguf.manifest
    report = json.loads((chat_gguf.path / "parity.json").read_text(encoding="utf-8"))
    assert manifest["parity"] == {"passed": True, "reasons": []}
    assert manifest["held_out_rows"] == report["tokens"]["prompts"] == 16
    assert report["tokens"]["prompts_differing"] == 0
    assert report["tokens"]["probes"] > 40
    assert report["next_tokens"] > 200
    assert manifest["metric"] == "token_f1"
    assert manifest["merged"]["token_f1"] > 0.9
    assert manifest["merged"]["refusal"] == 1
    found = manifest["quantisations"]
    assert found["F16"]["max_logit_difference"] < 0.01
    assert found["F16"]["agreement"] >= 0.995
    assert found["F16"]["answers_equal"] == 1
    assert found["F16"]["scores"] == manifest["merged"]
    assert 0 < found["F16"]["kl_divergence"] < found["Q8_0"]["kl_divergence"] < found["Q4_K_M"]["kl_divergence"] < 0.01
    assert found["F16"]["size"] > found["Q8_0"]["size"] > found["Q4_K_M"]["size"]
    assert all(values["stopped"] == 1 for values in found.values())
    with Image.open(io.BytesIO((chat_gguf.path / "parity.png").read_bytes())) as picture:
        assert picture.size[0] > 900


def test_answers_with_kept_keys_and_values_are_those_of_reading_everything_anew(
    chat_gguf: Artifact, chat_model: ChatModel, rows: list[Example]
) -> None:
    """G14: greedy, and several at once."""
    prompts = [chat_model.tokenizer(render(chat_model.tokenizer, chat_model.chat(row)))["input_ids"] for row in rows]
    path = chat_gguf.path / "shop-F16.gguf"
    model = GgufLanguageModel(path, 192)
    expected = []
    for prompt in prompts[:3]:
        said: list[int] = []
        while len(said) < 64 and not (said and model.ends(said[-1])):
            said.append(int(model.logits([*prompt, *said])[-1].argmax()))
        expected.append((said, model.ends(said[-1])))
    assert [model.answer(prompt, 64) for prompt in prompts[:3]] == expected
    ended: list[int] = []
    together = GgufLanguageModel(path, 192, texts_at_once=3).answers(prompts, 64, finished=ended.append)
    assert together[:3] == expected
    assert sorted(ended) == sorted(len(ids) for ids, _ in together)
    assert model.answer(prompts[0], 4) == (expected[0][0][:4], False)
    assert model.answer(prompts[0] * 9, 4) == ([], False), "a prompt that fills the context"


def test_files_of_another_adapter_are_refused(
    chat_gguf: Artifact,
    chat_training: list[Artifact],
    rows: list[Example],
    tmp_path: Path,
) -> None:
    """G1, G5, G14: the files are whole, of the same base and prompt, and not this adapter's."""
    training_set, adapter = chat_training
    other = train_chat(Path(adapter.manifest["base_model"]), training_set, tmp_path, epochs=1, learning_rate=1e-3)
    parity = compared(other, training_set, rows, files(chat_gguf, "F16", "Q4_K_M"), evaluation={"maximum_rows": 8})
    assert not parity.passed
    text = "\n".join(parity.reasons)
    assert "F16: logits differ by up to" in text
    assert "next tokens are not the original's" in text
    assert "Q4_K_M" in text
    assert parity.quantisations["F16"].agreement < 0.9
    assert parity.quantisations["F16"].answers_equal < 0.5
    assert plot_chats(parity).startswith(b"\x89PNG")


def test_another_chat_template_in_a_file_is_refused(
    chat_gguf: Artifact, chat_training: list[Artifact], rows: list[Example], tmp_path: Path
) -> None:
    """G10: one letter, in one file of two."""
    content = (chat_gguf.path / "shop-Q8_0.gguf").read_bytes()
    altered = TEMPLATE.replace("|>assistant", "|>Assistant")
    assert altered != TEMPLATE
    assert content.count(TEMPLATE.encode()) == 1
    path = tmp_path / "shop-Q8_0.gguf"
    path.write_bytes(content.replace(TEMPLATE.encode(), altered.encode()))
    found = {**files(chat_gguf, "F16"), "Q8_0": (path, read_header(path))}
    parity = compared(chat_training[1], chat_training[0], rows[:8], found)
    assert len(parity.reasons) == 1
    assert parity.reasons[0].startswith("Q8_0: the chat template in the file is ")


def test_a_score_below_its_floor_is_refused_but_one_row_is_within_it(
    chat_gguf: Artifact, chat_training: list[Artifact], rows: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """G14"""
    measure, worse = parity_chats.mean_scores, 0.0

    def spoilt(*given: Any) -> Any:
        found = measure(*given)
        score = found["Q8_0"]["token_f1"]
        found["Q8_0"]["token_f1"] = replace(score, value=found["candidate"]["token_f1"].value - worse / score.rows)
        return found

    monkeypatch.setattr(parity_chats, "mean_scores", spoilt)
    for worse, passes in ((1.0, True), (1.01, False)):  # noqa: B007 - spoilt reads it
        parity = compared(chat_training[1], chat_training[0], rows[:8], files(chat_gguf, "Q8_0"))
        assert parity.passed is passes
    assert "Q8_0: token-f1" in parity.reasons[0]
    assert "at least 0.98 of that is asked for" in parity.reasons[0]


def test_rows_beyond_what_a_slow_model_may_answer_are_left_out_and_said_so(
    chat_gguf: Artifact, chat_training: list[Artifact], rows: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """G14: the number follows from the model, never from how fast the machine is."""
    monkeypatch.setattr(parity_chats, "ANSWER_WORK", 1.0)
    monkeypatch.setattr(parity_chats, "MINIMUM_ROWS", 5)
    lines: list[str] = []
    parity = compared(chat_training[1], chat_training[0], rows, files(chat_gguf, "F16"), lines=lines)
    assert (parity.rows, parity.left_out) == (5, 11)
    assert "5 of 16 held-out rows are answered, to bound the time" in lines
    assert parity.passed


def test_a_model_that_memory_does_not_hold_in_float32_is_compared_in_fewer_bits(
    chat_gguf: Artifact, chat_training: list[Artifact], rows: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """G14"""
    monkeypatch.setattr(parity_chats, "free_memory", lambda: 1 << 20)
    monkeypatch.setattr("pipelines.evaluation.generation.bf16_is_faster", lambda: True)
    lines: list[str] = []
    parity = compared(chat_training[1], chat_training[0], rows[:8], files(chat_gguf, "F16"), lines=lines)
    assert lines[0].startswith("memory does not hold the model in float32")
    assert parity.arithmetic == "bfloat16"
    assert parity.quantisations["F16"].max_logit_difference > 0.005, "the reference rounds"
    assert parity.passed, parity.reasons


def test_what_style_is_learned_from_is_answered_too_where_style_decides(
    chat_gguf: Artifact, chat_adapter: Artifact, rows: list[Example], tmp_path: Path
) -> None:
    """G14: the task's own score, whichever it is."""
    splits = chat_rows(context=True)
    for number, row in enumerate(splits["train"]):
        row["messages"][-1]["content"] += f" It is number {number} ."  # different answers enough
    varied = write_chat_set(tmp_path / "varied", splits)
    gate = CHAT_EVALUATION.gate.model_copy(update={"metric": "style"})
    parity = compared(chat_adapter, varied, rows, files(chat_gguf, "F16"), evaluation={"gate": gate})
    assert parity.passed, parity.reasons
    assert parity.quantisations["F16"].scores["style"] == pytest.approx(parity.merged["style"])


def test_a_metric_that_cannot_be_measured_proves_nothing(
    chat_gguf: Artifact, chat_training: list[Artifact], rows: list[Example]
) -> None:
    gate = CHAT_EVALUATION.gate.model_copy(update={"metric": "valid_format"})
    parity = compared(chat_training[1], chat_training[0], rows[:8], files(chat_gguf, "F16"), evaluation={"gate": gate})
    assert parity.reasons == ("F16: valid-format could not be measured on the held-out rows",)


def test_no_held_out_chats_prove_nothing(chat_gguf: Artifact, chat_training: list[Artifact]) -> None:
    parity = compared(chat_training[1], chat_training[0], [], files(chat_gguf, "F16"))
    assert parity.reasons[0] == "there are no held-out rows to compare on"
