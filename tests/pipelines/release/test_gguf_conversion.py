"""Conversion and quantisation: what the header says, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from pipelines.artifacts import Artifact
from pipelines.errors import ConfigError, ExportError
from pipelines.models import BUNDLED, model_folder
from pipelines.release.gguf import convert, converter_root, quantise, read_header

LABELS = ("billing", "other")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random classifier whose rows of 48 no quantisation divides; its tokenizer is the bundled one."""
    folder = tmp_path_factory.mktemp("narrow")
    config = BertConfig(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=30522,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder(BUNDLED, None)).save_pretrained(folder)
    return folder


def changed(checkpoint: Path, folder: Path, file: str, change: Any) -> Path:
    """A copy of a checkpoint with one JSON file changed."""
    shutil.copytree(checkpoint, folder)
    value = json.loads((folder / file).read_text(encoding="utf-8"))
    change(value)
    (folder / file).write_text(json.dumps(value), encoding="utf-8")
    return folder


def test_every_file_is_what_its_header_says(gguf: Artifact) -> None:
    """G13, G5: types, labels and parents are read back from the files."""
    for asked, found in gguf.manifest["quantisations"].items():
        header = read_header(gguf.path / found["file"])
        assert header.file_type == asked == found["file_type"]
        assert dict(header.tensor_types) == found["tensor_types"]
        assert header.labels == tuple(gguf.manifest["categories"])
        assert header.pooling == "RANK"
        assert header.metadata["freshet.adapter"] == gguf.manifest["adapter"]
        assert header.metadata["freshet.base_model"] == f"sentence-transformers/{BUNDLED}"


def test_a_k_quant_of_narrow_rows_says_which_types_it_fell_back_to(gguf: Artifact) -> None:
    """G13: rows of 384 do not divide by 256, so most matrices cannot be K-quants; the manifest does not hide it."""
    types = gguf.manifest["quantisations"]["Q4_K_M"]["tensor_types"]
    assert types["Q5_0"] > types["Q4_K"] > 0
    assert "F16" not in types


def test_a_quantisation_that_stays_in_16_bits_is_refused(narrow: Path, tmp_path: Path) -> None:
    """G13: two labels are kept as well, although the converter takes two for a default."""
    source = tmp_path / "narrow-F16.gguf"
    header = convert(narrow, source, name="narrow", metadata={"freshet.adapter": "none"})
    assert header.labels == LABELS
    with pytest.raises(ExportError, match="was to be Q8_0, but"):
        quantise(source, tmp_path / "narrow-Q8_0.gguf", "Q8_0", LABELS)


def test_a_tokenizer_that_the_converter_does_not_know_is_refused(narrow: Path, tmp_path: Path) -> None:
    """G6: one swapped pair of ids makes it another vocabulary; its rules are not guessed."""

    def swap(tokenizer: Any) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["3"], vocabulary["it"] = vocabulary["it"], vocabulary["3"]

    unknown = changed(narrow, tmp_path / "unknown", "tokenizer.json", swap)
    with pytest.raises(ExportError, match=r"does not know the tokenizer.*never guessed"):
        convert(unknown, tmp_path / "unknown.gguf", name="unknown", metadata={})
    assert not (tmp_path / "unknown.gguf").exists()


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused(narrow: Path, tmp_path: Path) -> None:
    """G7"""
    larger = changed(narrow, tmp_path / "larger", "config.json", lambda config: config.update(vocab_size=1000))
    with pytest.raises(ExportError, match="ids up to 30521, the embedding has 1000 rows"):
        convert(larger, tmp_path / "larger.gguf", name="larger", metadata={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["DistilBertForSequenceClassification"]}, "DistilBertForSequenceClassification"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
    ],
)
def test_a_model_that_llama_cpp_computes_otherwise_is_refused(
    narrow: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    other = changed(narrow, tmp_path / "other", "config.json", lambda config: config.update(change))
    with pytest.raises(ExportError, match=message):
        convert(other, tmp_path / "other.gguf", name="other", metadata={})


def test_a_checkout_without_a_converter_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"LLAMA_CPP_ROOT must be a llama\.cpp checkout"):
        converter_root(tmp_path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "half.gguf").write_bytes(b"GGUF")
    with pytest.raises(ExportError, match="is no complete GGUF file"):
        read_header(tmp_path / "half.gguf")
