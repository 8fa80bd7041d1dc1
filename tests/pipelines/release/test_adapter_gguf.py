"""The adapter alone as GGUF: with its base it computes what the merged model does, or it is not written."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from pipelines.artifacts import Artifact
from pipelines.errors import ExportError
from pipelines.evaluation.classifier import base_folder
from pipelines.fingerprint import fingerprint
from pipelines.release.adapter_gguf import adapter_to_gguf
from pipelines.release.gguf import convert, read_header
from pipelines.release.language import GgufLanguageModel
from tests.pipelines.chat_base import make_chat_base, make_tokenizer
from tests.pipelines.release.test_merge_streaming import load, make_adapter

IDS = [5, 77, 130, 9, 260, 301, 44, 8, 199, 63]


def logits(base: Path, adapter: Path | None) -> Any:
    """Of ``IDS``, by llama.cpp with the adapter beside the base."""
    model = GgufLanguageModel(base, 64)
    llama = model._llama
    if adapter is None:
        return model.logits(IDS)
    held = llama.llama_adapter_lora_init(model._model, str(adapter).encode())  # freed with the model
    assert held, f"llama.cpp cannot load {adapter}"
    with model._context() as (context, _):
        adapters = (llama.llama_adapter_lora_p_ctypes * 1)(held)
        assert llama.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)) == 0
    return model.logits(IDS)


def test_base_and_adapter_answer_as_the_merged_file(
    chat_adapter: Artifact, chat_gguf: Artifact, tmp_path: Path
) -> None:
    """G4, G5: the export's own file, on the base as everybody would convert it."""
    base = base_folder(chat_adapter)
    plain = tmp_path / "base.gguf"
    convert(base, plain, name="base", metadata={})
    found = chat_gguf.manifest["adapter_gguf"]
    file = chat_gguf.path / found["file"]
    assert found == {"file": "shop-adapter-F16.gguf", "size": file.stat().st_size}
    merged = logits(chat_gguf.path / "shop-F16.gguf", None)
    assert np.abs(logits(plain, file) - merged).max() < 0.02
    assert np.abs(logits(plain, None) - merged).max() > 1
    header = read_header(file)
    assert header.metadata["freshet.base_files"] == fingerprint(chat_adapter.manifest["base_files"])
    assert header.metadata["freshet.adapter"] == chat_adapter.fingerprint
    fields = {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}
    assert (fields["general.type"], fields["adapter.type"], fields["general.architecture"]) == (
        "adapter",
        "lora",
        "llama",
    )
    assert fields["adapter.lora.alpha"] == 32
    tensors = {tensor.name for tensor in gguf.GGUFReader(file).tensors}
    assert {"blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"} <= tensors
    assert not any(name.startswith("tokenizer.") for name in fields)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and its file."""
    folder = tmp_path_factory.mktemp("alone")
    made = make_chat_base(folder / "base")
    convert(made, folder / "base.gguf", name="base", metadata={})
    return made, folder / "base.gguf"


def assert_equal_to_peft(base: Path, file: Path, tmp_path: Path, **options: Any) -> None:
    adapted = make_adapter(load(base), tmp_path / "adapter", **options)
    with torch.no_grad():
        expected = adapted(torch.tensor([IDS])).logits[0].numpy()
        plain = adapted.unload()(torch.tensor([IDS])).logits[0].numpy()
    header = adapter_to_gguf(tmp_path / "adapter", base, tmp_path / "adapter.gguf", name="x", metadata={})
    assert header.file_type == "F16"
    difference = np.abs(logits(file, tmp_path / "adapter.gguf") - expected).max()
    assert difference < 0.01 * np.abs(plain - expected).max()


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"use_rslora": True, "rank_pattern": {"up_proj": 8}, "alpha_pattern": {"q_proj": 3}, "lora_alpha": 5},
        {"target_modules": ["q_proj", "lm_head"]},
        {"exclude_modules": r"(model\.layers)\.(0)\..*"},
    ],
    ids=["rslora", "patterns", "head", "upper layers"],
)
def test_what_scales_updates_otherwise_is_kept(
    base: tuple[Path, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    """G4: rsLoRA, ranks and alphas by pattern, the output layer, and layers that stay as they are."""
    assert_equal_to_peft(*base, tmp_path, **options)


def test_transposed_and_fused_layers_are_kept(tmp_path: Path) -> None:
    """G4: GPT-2 stores its weights the other way round, and query, key and value as one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.1, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    convert(tmp_path / "base", tmp_path / "base.gguf", name="base", metadata={})
    assert_equal_to_peft(tmp_path / "base", tmp_path / "base.gguf", tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, r"trained whole \(lm_head\.weight\)"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "only linear layers"),
        ({"lora_bias": True}, "lost|trained biases"),
    ],
    ids=["dora", "whole", "embedding", "bias"],
)
def test_what_gguf_cannot_represent_is_refused(
    base: tuple[Path, Path], tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    """G4"""
    make_adapter(load(base[0]), tmp_path / "adapter", **options)
    with pytest.raises(ExportError, match=reason):
        adapter_to_gguf(tmp_path / "adapter", base[0], tmp_path / "adapter.gguf", name="x", metadata={})
    assert not (tmp_path / "adapter.gguf").exists()
