"""The model that comes with Freshet: whole, small, safe, and read alike by transformers and llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.basemodel.language import Draw, case
from pipelines.basemodel.pretrain import answers_of
from pipelines.models import BUNDLED_CHAT, model_folder
from pipelines.release.gguf import convert, read_header


@pytest.fixture(scope="module")
def folder() -> Path:
    return model_folder(BUNDLED_CHAT, None)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_it_is_small_safetensors_with_a_card(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 25_000_000
    assert {"model.safetensors", "tokenizer.json", "config.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".py"))]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llama"
    assert config["max_position_embeddings"] >= 1024
    assert config["dtype"] in ("float16", "bfloat16")


def test_a_turn_ends_with_a_token_of_its_own(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    assert 3e6 <= sum(each.numel() for each in model.parameters()) <= 15e6
    assert len({tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}) == 3
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    assert tokenizer.eos_token in tokenizer.apply_chat_template(turns, tokenize=False)


def test_llama_cpp_reads_it_as_transformers_does(folder: Path, tmp_path: Path) -> None:
    """G6, G8, G9, G10: converting proves the tokenizer, the template and the special tokens, or refuses."""
    path = tmp_path / "base.gguf"
    convert(folder, path, name="base", metadata={})
    assert read_header(path).file_type == "F16"


def test_it_copies_what_it_never_saw_and_says_what_is_not_there(loaded: tuple[Any, Any]) -> None:
    """Far below its measured figures (see its card): whether the weights are the trained ones."""
    model, tokenizer = loaded
    draw = Draw(77, held_out=True)
    told = [case(draw, texts=1) for _ in range(16)]
    absent = [case(draw, texts=1, absent=True) for _ in range(16)]
    answers = answers_of(model.float(), tokenizer, [*told, *absent])
    assert sum(each.value is not None and each.value in said for each, said in zip(told, answers, strict=False)) >= 5
    assert sum("do not know" in said for said in answers[16:]) >= 8
