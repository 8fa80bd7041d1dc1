"""The base model's tokenizer, small: nothing is lost, digits stand alone, and training sees what serving renders."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.basemodel.language import Draw, chat
from pipelines.basemodel.tokenizer import encode_chat, save_tokenizer, train_tokenizer
from pipelines.prompt import render


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Read back from its files."""
    from transformers import AutoTokenizer

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(600, chats=200), folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back_as_it_was(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_digits_stand_alone_and_the_end_of_a_turn_is_not_the_padding(tokenizer: Any) -> None:
    assert tokenizer.tokenize("2048") == ["2", "0", "4", "8"]
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id}) == 3


def test_training_sees_the_very_tokens_that_the_template_renders(tokenizer: Any) -> None:
    for seed in range(20):
        turns = chat(Draw(seed), texts=2, facts=3, questions=3)
        ids, answers = encode_chat(tokenizer, turns)
        assert ids == tokenizer(render(tokenizer, turns, answer=True), add_special_tokens=False)["input_ids"]
        said = tokenizer.decode([token for token, answer in zip(ids, answers, strict=True) if answer])
        expected = "".join(f"{turn.content}<|im_end|>" for turn in turns if turn.role == "assistant")
        assert said == expected


def test_files_written_after_a_padded_call_pad_nothing_by_themselves(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer(["a", "longer than that"], padding=True)
    save_tokenizer(tokenizer, tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    short, _ = again.backend_tokenizer.encode_batch(["a", "longer than that"])
    assert len(short.ids) == 1
