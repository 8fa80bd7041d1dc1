"""How much room an export asks for, held against what llama.cpp writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest

from pipelines.artifacts import Artifact
from pipelines.errors import ExportError
from pipelines.evaluation.classifier import base_folder
from pipelines.release.gguf import convert, disk_needed, quantise
from pipelines.release.merge import open_merge
from pipelines.release.settings import Quantisation
from tests.pipelines.chat_base import make_chat_base, make_tokenizer

WRITTEN = tuple(name for name in get_args(Quantisation) if name != "BF16")
SHAPES = {
    "rows that do not divide by 256": {"hidden": 160, "layers": 14, "vocabulary": 16384},
    "embeddings most of all": {"hidden": 256, "layers": 2, "vocabulary": 24576},
}
SAME = {"IQ4_NL": "rows that do not divide by 256"}
"""Takes seconds, and is what IQ4_XS falls back to there."""
CLOSE = 1.2
"""How many times what is needed may be asked for."""
CASES = [(shape, name) for shape in SHAPES for name in WRITTEN if SAME.get(name) != shape]


def tie(base: Path) -> None:
    """Make one of the two embeddings of ``base``."""
    from safetensors.torch import load_file, save_file

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}), encoding="utf-8")
    tensors = load_file(base / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random Llamas that outweigh what is allowed for around weights; llama.cpp keeps embeddings in more bits than the
    rest, and everything where rows do not divide by 256."""
    folder = tmp_path_factory.mktemp("disk")
    made = {
        shape: make_chat_base(folder / f"base-{number}", tokenizer=make_tokenizer(), **sizes)
        for number, (shape, sizes) in enumerate(SHAPES.items())
    }
    tie(made["embeddings most of all"])
    return made


@pytest.fixture(scope="module")
def base(bases: dict[str, Path]) -> Path:
    return bases["rows that do not divide by 256"]


@pytest.fixture(scope="module")
def sizes(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], int]:
    """Of the files that an export of each base can be asked for, by llama.cpp's own converter and quantiser."""
    folder = tmp_path_factory.mktemp("disk_files")
    found = {}
    for shape, each in bases.items():
        sixteen = folder / "F16.gguf"
        convert(each, sixteen, name="shop", metadata={"freshet.adapter": "a" * 64})
        found[shape, "F16"] = sixteen.stat().st_size
        for name in WRITTEN[1:]:
            if (shape, name) in CASES:
                quantise(sixteen, folder / "other.gguf", name, None)
                found[shape, name] = (folder / "other.gguf").stat().st_size
    return found


@pytest.mark.parametrize(("shape", "quantisation"), CASES)
def test_an_export_asks_for_its_file_and_the_one_it_is_made_from_and_for_little_more(
    bases: dict[str, Path], sizes: dict[tuple[str, str], int], shape: str, quantisation: Quantisation
) -> None:
    """G13: also where llama.cpp falls back to another type, and where embeddings are most of the model."""
    sixteen, own = sizes[shape, "F16"], sizes[shape, quantisation]
    assert sixteen > 15_000_000
    asked = disk_needed(bases[shape], (quantisation,))
    if quantisation == "F16":
        assert sixteen <= asked <= CLOSE * sixteen
    else:
        assert own <= asked - disk_needed(bases[shape], ("F16",)) <= CLOSE * own
        assert sixteen + own <= asked <= CLOSE * (sixteen + own)


def test_each_file_more_asks_for_room_of_its_own(base: Path, sizes: dict[tuple[str, str], int]) -> None:
    shape = "rows that do not divide by 256"
    asked: list[Quantisation] = []
    wanted: tuple[Quantisation, ...] = ("F16", "Q8_0", "Q4_K_M", "Q2_K")
    before = 0
    for name in wanted:
        asked.append(name)
        needed = disk_needed(base, asked)
        assert needed - before >= sizes[shape, name], name
        before = needed
    assert before >= sum(sizes[shape, name] for name in asked)


def test_sixteen_bits_are_counted_once_for_each_file_that_is_written(base: Path) -> None:
    """BF16 alone is what the others are made from; with F16 there are two."""
    once = disk_needed(base, ("F16",))
    assert disk_needed(base, ("BF16",)) == once
    assert disk_needed(base, ("F16", "BF16")) == 2 * once
    assert disk_needed(base, ("BF16", "Q8_0")) == disk_needed(base, ("F16", "Q8_0")) == disk_needed(base, ("Q8_0",))
    assert disk_needed(base, ()) == once


def test_weights_in_several_files_are_all_counted(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    model.save_pretrained(tmp_path, max_shard_size="8MB")
    (tmp_path / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert disk_needed(tmp_path, ("Q8_0",)) == disk_needed(base, ("Q8_0",))


@pytest.mark.parametrize(
    ("adapted", "unties"),
    [
        ({"target_modules": ["q_proj"]}, False),
        ({"target_modules": ["embed_tokens"]}, True),
        ({"target_modules": ["lm_head"]}, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, True),
    ],
    ids=["neither", "input", "output", "output, whole"],
)
def test_an_adapter_that_makes_two_of_a_tied_embedding_asks_for_both(
    bases: dict[str, Path], tmp_path: Path, adapted: dict[str, Any], unties: bool
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = bases["embeddings most of all"]
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, local_files_only=True),
        LoraConfig(task_type="CAUSAL_LM", r=4, **adapted),
    )
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value) * 0.02)
    adapter = tmp_path / "adapter"
    model.save_pretrained(str(adapter))
    merge = open_merge(base, adapter, dtype="F16")  # what is written, 16 bits each
    size = 2 * sum(math.prod(merge.shape(name)) for name in merge.tensors)
    asked = disk_needed(base, ("F16",), adapter=adapter)
    assert merge.untied is unties
    assert size <= asked <= CLOSE * size
    assert (asked > CLOSE * disk_needed(base, ("F16",))) is unties


def test_what_an_adapter_brings_of_its_own_is_counted(adapter: Artifact, gguf: Artifact) -> None:
    """A classifier's head, and the layer through which it reads."""
    files = gguf.manifest["quantisations"]
    size = sum(found["size"] for found in files.values())
    assert size <= disk_needed(base_folder(adapter), tuple(files), adapter=adapter.path) <= CLOSE * size


def test_a_base_without_weights_asks_for_nothing_but_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ExportError, match="safetensors"):
        disk_needed(tmp_path, ("Q8_0",))
