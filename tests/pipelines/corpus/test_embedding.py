from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.corpus.embedding import Embedder, SentenceTransformerEmbedder, open_embedder
from pipelines.environment import REPOSITORY
from pipelines.errors import ConfigError
from pipelines.models import BUNDLED, model_folder

TEXTS = ["The pump is switched off.", "A valve " * 60, "Wie schwer ist der Tank?", "", "x"]


def test_vectors_are_float32_of_unit_length_in_the_order_of_the_texts(minilm: Embedder) -> None:
    vectors = minilm.encode(TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (5, 384))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert float(minilm.encode([text])[0] @ vector) > 0.999
    assert float(minilm.encode_question(TEXTS[0]) @ vectors[0]) > 0.999


def test_no_texts_are_no_vectors(minilm: Embedder) -> None:
    assert minilm.encode([]).shape == (0, 384)


def test_both_precisions_agree(minilm: Embedder) -> None:
    other = "float32" if minilm.identity["precision"] == "bfloat16" else "bfloat16"
    cosines = np.sum(minilm.encode(TEXTS) * open_embedder(BUNDLED, None, other).encode(TEXTS), axis=1)
    assert cosines.min() >= 0.999


def test_what_is_alike_is_near(minilm: Embedder) -> None:
    vectors = minilm.encode(["Our refund takes ten days.", "The drill weighs two kilograms."])
    question = minilm.encode_question("How long do I wait for my money back?")
    assert vectors[0] @ question > vectors[1] @ question + 0.1


def test_the_model_counts_the_tokens_that_the_counter_counts(minilm: SentenceTransformerEmbedder) -> None:
    tokens = minilm._model.tokenize(TEXTS[:4])["attention_mask"].sum(dim=1).tolist()
    assert tokens == minilm.counter.counts(TEXTS[:4])
    assert minilm.max_tokens == 256 == minilm._model.max_seq_length


def test_the_identity_is_known_without_torch_and_says_precision_and_dimension() -> None:
    code = (
        "import sys, json; from pipelines.corpus.embedding import open_embedder\n"
        f"embedder = open_embedder({BUNDLED!r}, None); embedder.counter.counts(['x'])\n"
        "print(json.dumps([dict(embedder.identity), embedder.max_tokens, sorted("
        "{'torch', 'transformers', 'sentence_transformers'} & set(sys.modules))]))"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    identity, max_tokens, loaded = json.loads(printed.stdout)
    assert loaded == []
    assert identity == dict(open_embedder(BUNDLED, None).identity)
    assert (identity["model"], identity["dimension"], max_tokens) == (BUNDLED, 384, 256)
    assert identity["precision"] in ("float32", "bfloat16")


def test_other_files_or_precision_are_another_embedder(tmp_path: Path) -> None:
    """I11"""
    copy = shutil.copytree(model_folder(BUNDLED, None), tmp_path / "model")
    first = SentenceTransformerEmbedder(str(copy), None, "float32").identity
    assert SentenceTransformerEmbedder(str(copy), None, "bfloat16").identity != first
    (copy / "README.md").write_text("other words")
    assert SentenceTransformerEmbedder(str(copy), None, "float32").identity == first
    config = copy / "config.json"
    config.write_text(config.read_text().replace("1e-12", "1e-6"))
    assert SentenceTransformerEmbedder(str(copy), None, "float32").identity != first


def test_a_prompt_before_documents_takes_its_share_of_the_tokens(tmp_path: Path) -> None:
    copy = shutil.copytree(model_folder(BUNDLED, None), tmp_path / "model")
    config = json.loads((copy / "config_sentence_transformers.json").read_text())
    (copy / "config_sentence_transformers.json").write_text(
        json.dumps({**config, "prompts": {"document": "passage: "}})
    )
    assert SentenceTransformerEmbedder(str(copy), None, "float32").max_tokens == 254


def test_a_model_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    copy = shutil.copytree(model_folder(BUNDLED, None), tmp_path / "model")
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer.json"):
        SentenceTransformerEmbedder(str(copy), None, "float32").max_tokens  # noqa: B018 reading it is the act
