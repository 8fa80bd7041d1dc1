"""How much room an export asks for, held against what llama.cpp writes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from pipelines.errors import ExportError
from pipelines.release.gguf import BITS, convert, disk_needed, quantise
from pipelines.release.settings import Quantisation
from tests.pipelines.chat_base import make_chat_base, make_tokenizer

QUANTISED = tuple(name for name in get_args(Quantisation) if name[-2:] != "16" and name[:2] != "IQ")
"""All but IQ4_NL and IQ4_XS, which take seconds to find, and are about as large as Q4_0 where they fall back."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that outweighs what is allowed for around weights, with much of it in embeddings, which llama.cpp
    keeps in more bits; its rows do not divide by 256, so that there are more bits than asked for everywhere."""
    folder = tmp_path_factory.mktemp("disk") / "base"
    return make_chat_base(folder, hidden=160, layers=14, vocabulary=16384, tokenizer=make_tokenizer())


@pytest.fixture(scope="module")
def files(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that an export of ``base`` can be asked for, by llama.cpp's own converter and quantiser."""
    folder = tmp_path_factory.mktemp("disk_files")
    made = {"F16": folder / "F16.gguf"}
    convert(base, made["F16"], name="shop", metadata={"freshet.adapter": "a" * 64})
    for name in QUANTISED:
        made[name] = folder / f"{name}.gguf"
        quantise(made["F16"], made[name], name, None)
    return made


def size(*paths: Path) -> int:
    return sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize("quantisation", QUANTISED)
def test_what_an_export_asks_for_holds_its_file_and_the_one_it_is_made_from(
    base: Path, files: dict[str, Path], quantisation: Quantisation
) -> None:
    """G13: also where llama.cpp falls back to another type; and never several times as much."""
    written = size(files["F16"], files[quantisation])
    assert size(files["F16"]) > 15_000_000
    assert written <= disk_needed(base, (quantisation,)) <= 2 * written


def test_each_file_more_asks_for_room_of_its_own(base: Path, files: dict[str, Path]) -> None:
    asked: list[Quantisation] = []
    before = 0
    for name, path in files.items():
        asked.append(name)  # type: ignore[arg-type]
        needed = disk_needed(base, asked)
        assert needed - before >= size(path), name
        assert needed >= size(*(files[each] for each in asked))
        before = needed


@pytest.mark.parametrize("quantisation", QUANTISED)
def test_a_weight_takes_no_more_bits_than_are_reckoned_with(files: dict[str, Path], quantisation: Quantisation) -> None:
    """G13: embeddings aside, which are reckoned with apart."""
    from gguf import GGUFReader

    tensors = [
        tensor
        for tensor in GGUFReader(files[quantisation]).tensors
        if len(tensor.shape) > 1 and tensor.name not in {"token_embd.weight", "output.weight"}
    ]
    assert len(tensors) == 14 * 7
    assert sum(int(tensor.n_bytes) for tensor in tensors) * 8 <= BITS[quantisation] * sum(
        int(tensor.n_elements) for tensor in tensors
    )


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


def test_a_base_without_weights_asks_for_nothing_but_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ExportError, match="safetensors"):
        disk_needed(tmp_path, ("Q8_0",))
