from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.corpus.embedding import (
    Embedder,
    ModelFiles,
    OpenVinoEmbedder,
    SentenceTransformerEmbedder,
    comparable,
    open_embedder,
)
from pipelines.corpus.embedding.choice import _computes_bfloat16, _has_cuda, _valid_record
from pipelines.corpus.embedding.conversion import convert, least_cosine
from pipelines.corpus.embedding.interface import EXACT, by_budget
from pipelines.environment import REPOSITORY, available_cores
from pipelines.errors import ConfigError
from pipelines.fingerprint import write_json_atomically
from pipelines.models import BUNDLED, model_folder

TEXTS = [
    "The pump is switched off.",
    "A valve " * 60,
    "Wie schwer ist der Tank?",
    "",
    "x",
    "水箱 ÉTAT 12,5 m³",
    "far too long for the model " * 90,
]
NATIVE = "bfloat16" if _computes_bfloat16() else "float32"

_OPEN = """
import json, logging, sys, time
logging.basicConfig(level="INFO")
from pipelines.corpus.embedding import open_embedder
embedder = open_embedder(sys.argv[1], None)
embedder.counter.counts(["x"])
before = sorted({"torch", "transformers", "sentence_transformers", "openvino"} & set(sys.modules))
embedder.encode(["A tank of forty litres. " * 9] * 8)
wall, processor = time.perf_counter(), time.process_time()
vectors = embedder.encode(["A tank of forty litres. " * 30] * 48)
cores = (time.process_time() - processor) / (time.perf_counter() - wall)
question = embedder.encode_question("How much does the tank hold?")
after = sorted({"torch", "transformers", "sentence_transformers", "openvino"} & set(sys.modules))
print(json.dumps({
    "identity": dict(embedder.identity), "max_tokens": embedder.max_tokens, "before": before, "after": after,
    "cores": cores, "telemetry": sys.modules.get("openvino_telemetry") is not None,
}))
"""


def started(home: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _OPEN, BUNDLED],
        cwd=REPOSITORY,
        env={**os.environ, "FRESHET_HOME": str(home), "FRESHET_CACHE": str(home / "cache"), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    printed, logged = process.communicate(timeout=120)
    assert process.returncode == 0, logged
    return json.loads(printed), logged


@pytest.fixture(scope="session")
def two_openings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[dict[str, Any], str]]]:
    """A home in which two processes opened the bundled model at once, and what each said."""
    home = tmp_path_factory.mktemp("two") / "freshet"
    return home, [ended(each) for each in [started(home), started(home)]]


@pytest.fixture(autouse=True)
def converted(two_openings: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which the bundled model is converted already: it is the home of every test here."""
    monkeypatch.setenv("FRESHET_HOME", str(two_openings[0]))
    monkeypatch.setenv("FRESHET_CACHE", str(two_openings[0] / "cache"))
    return two_openings[0]


@pytest.fixture(scope="session")
def reference() -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder(ModelFiles(BUNDLED, None), "float32")


@pytest.fixture
def bundled(converted: Path) -> Embedder:
    return open_embedder(BUNDLED, None)


@pytest.fixture
def entry(converted: Path) -> Path:
    [folder] = (converted / "cache" / "embedders").glob(f"{BUNDLED}-openvino-{NATIVE}-*")
    return folder


def altered(folder: Path, **changes: Mapping[str, Any]) -> Path:
    """A copy of the bundled model with changed JSON files: ``config__sub={...}`` changes ``sub/config.json``."""
    copy = shutil.copytree(model_folder(BUNDLED, None), folder)
    for name, change in changes.items():
        stem, _, sub = name.partition("__")
        path = copy / sub / f"{stem}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return copy


def test_vectors_are_float32_of_unit_length_in_the_order_of_the_texts(bundled: Embedder) -> None:
    vectors = bundled.encode(TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), 384))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert float(bundled.encode_question(TEXTS[0]) @ vectors[0]) > EXACT


def test_questions_together_are_what_they_are_alone(bundled: Embedder, reference: Embedder) -> None:
    for embedder in (bundled, reference):
        together, alone = embedder.encode_questions(TEXTS), np.stack([embedder.encode_question(each) for each in TEXTS])
        assert (together.dtype, together.shape) == (np.float32, alone.shape)
        assert np.sum(together * alone, axis=1).min() > 0.9995
        assert embedder.encode_questions([]).shape == (0, 384)


def test_neither_order_nor_batches_change_a_vector(bundled: Embedder) -> None:
    """I8"""
    texts = [f"{text} {number}" for number in range(9) for text in TEXTS]
    together, alone = bundled.encode(texts), np.concatenate([bundled.encode([text]) for text in texts])
    assert np.sum(together * alone, axis=1).min() > 0.9995
    assert np.sum(together * bundled.encode(texts[::-1])[::-1], axis=1).min() > 0.9995
    np.testing.assert_array_equal(together, bundled.encode(texts))


def test_no_texts_are_no_vectors(bundled: Embedder, reference: Embedder) -> None:
    assert bundled.encode([]).shape == reference.encode([]).shape == (0, 384)


@pytest.mark.parametrize("backend", ["openvino", "torch"])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_every_backend_and_precision_agrees_with_float32(
    backend: str, precision: str, reference: SentenceTransformerEmbedder, entry: Path
) -> None:
    files = ModelFiles(BUNDLED, None)
    tried = (
        OpenVinoEmbedder(files, precision, entry)
        if backend == "openvino"
        else SentenceTransformerEmbedder(files, precision)
    )
    cosines = np.sum(tried.encode(TEXTS) * reference.encode(TEXTS), axis=1)
    assert cosines.min() >= (0.99999 if precision == "float32" else EXACT)
    assert float(tried.encode_question(TEXTS[2]) @ reference.encode_question(TEXTS[2])) >= EXACT
    assert tried.identity != reference.identity or (backend, precision) == ("torch", "float32")
    assert comparable(tried.identity, reference.identity)


def test_what_a_text_has_beyond_the_limit_is_cut_off(bundled: Embedder) -> None:
    longest = "valve " * 254  # 256 with the special tokens
    assert bundled.counter.counts([longest]) == [256]
    vectors = bundled.encode([longest, longest + "refund refund", "refund"])
    assert vectors[0] @ vectors[1] > EXACT > vectors[0] @ vectors[2]


def test_what_is_alike_is_near(bundled: Embedder) -> None:
    vectors = bundled.encode(["Our refund takes ten days.", "The drill weighs two kilograms."])
    question = bundled.encode_question("How long do I wait for my money back?")
    assert vectors[0] @ question > vectors[1] @ question + 0.1


def test_the_model_counts_the_tokens_that_the_counter_counts(reference: SentenceTransformerEmbedder) -> None:
    tokens = reference._model.tokenize(TEXTS[:6])["attention_mask"].sum(dim=1).tolist()
    assert tokens == reference.counter.counts(TEXTS[:6])
    assert reference.max_tokens == 256 == reference._model.max_seq_length


def test_two_processes_at_once_convert_a_model_once(
    two_openings: tuple[Path, list[tuple[dict[str, Any], str]]], entry: Path
) -> None:
    home, openings = two_openings
    assert sum(logged.count("trying openvino") for _, logged in openings) == 1
    assert openings[0][0]["identity"] == openings[1][0]["identity"]
    assert _valid_record(entry)["cosine"] >= EXACT
    left = {path.name for path in (home / "cache" / "embedders").iterdir()}
    assert left == {entry.name, f".{entry.name}.lock", "hashes"}


def test_a_converted_model_embeds_without_torch_on_the_cores_that_it_may_use(
    two_openings: tuple[Path, list[tuple[dict[str, Any], str]]],
) -> None:
    home, openings = two_openings
    said, logged = ended(started(home, OMP_NUM_THREADS="1"))
    assert (said["before"], said["after"], said["telemetry"]) == ([], ["openvino"], False)
    assert openings[0][0]["after"] == ["openvino"], "the first process did not load torch either"
    assert said["cores"] < 1.3
    assert "trying" not in logged
    identity = said["identity"]
    assert identity == openings[0][0]["identity"] == dict(open_embedder(BUNDLED, None).identity)
    assert (identity["model"], identity["dimension"], said["max_tokens"]) == (BUNDLED, 384, 256)
    assert (identity["backend"], identity["precision"]) == ("openvino", NATIVE)


def test_a_damaged_conversion_is_made_again(
    entry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Embedder
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("FRESHET_HOME", str(home))
    monkeypatch.setenv("FRESHET_CACHE", str(home / "cache"))
    copy = shutil.copytree(entry, home / "cache" / "embedders" / entry.name)
    before = _valid_record(copy)
    assert before is not None
    with (copy / "model.bin").open("r+b") as file:  # same size, other bytes
        file.seek(1_000_000)
        file.write(b"\0" * 4096)
    assert _valid_record(copy) is None
    embedder = open_embedder.__wrapped__(BUNDLED, None)
    assert _valid_record(copy)["files"]["model.bin"] == before["files"]["model.bin"]
    assert np.sum(embedder.encode(TEXTS) * reference.encode(TEXTS), axis=1).min() >= EXACT
    (copy / "record.json").write_text("{")
    assert _valid_record(copy) is None


def test_a_model_that_cannot_be_converted_is_embedded_by_torch_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = altered(tmp_path / "model", config__1_Pooling={"include_prompt": False})
    caplog.set_level(logging.INFO)
    embedder = open_embedder.__wrapped__(str(copy), None, "float32")
    assert (embedder.identity["backend"], embedder.identity["precision"]) == ("torch", "float32")
    assert "pooling without the prompt" in caplog.text
    assert "trying openvino" in caplog.text
    caplog.clear()
    assert open_embedder.__wrapped__(str(copy), None, "float32").identity == embedder.identity
    assert "trying openvino" not in caplog.text
    with pytest.raises(ConfigError, match="pooling without the prompt"):
        open_embedder.__wrapped__(str(copy), None, "float32", "openvino")


def test_a_conversion_that_crashes_is_remembered_as_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FRESHET_HOME", str(tmp_path))
    monkeypatch.setenv("FRESHET_CACHE", str(tmp_path / "cache"))
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho out of everything >&2\nkill -FPE $$\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    for _ in range(2):
        assert open_embedder.__wrapped__(BUNDLED, None, "float32").identity["backend"] == "torch"
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert caplog.text.count("ended with status -8: out of everything") == 2
    assert {path.name for path in (tmp_path / "cache" / "embedders").glob("*/*")} >= {"record.json"}


def test_a_conversion_that_computes_something_else_is_not_exact(
    tmp_path: Path, entry: Path, reference: SentenceTransformerEmbedder
) -> None:
    copy = altered(tmp_path / "model", sentence_bert_config={"max_seq_length": 12})
    shorter = OpenVinoEmbedder(ModelFiles(str(copy), None), "float32", entry)
    assert least_cosine(shorter, reference, 256) < EXACT


@pytest.mark.filterwarnings("ignore")  # torch's tracer
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "lasttoken"])
def test_poolings_dense_layers_and_prompts_are_converted(pooling: str, tmp_path: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,  # texts differ, as they do after training
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(model_folder(BUNDLED, None)).save_pretrained(tmp_path / "bert")
    modules = [
        Transformer(str(tmp_path / "bert"), max_seq_length=48),
        Pooling(32, pooling_mode=pooling),
        Dense(32, 24),
        Normalize(),
    ]
    prompts = {"query": "question: ", "document": "passage: "}
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(tmp_path / "model"))
    files = ModelFiles(str(tmp_path / "model"), None)
    reference = SentenceTransformerEmbedder(files, "float32")
    write_json_atomically(tmp_path / "record.json", convert(reference._model, tmp_path))
    tried = OpenVinoEmbedder(files, "float32", tmp_path)
    assert (tried.dimension, tried.max_tokens) == (24, 48 - 2)
    assert least_cosine(tried, reference, 48) > 0.9999
    assert reference.encode_question("tank") @ reference.encode(["tank"])[0] < EXACT, "the prompts make a difference"
    assert tried.encode_questions(["tank"])[0] @ reference.encode_question("tank") > 0.9999
    direct = reference._model.encode_document(["tank"], show_progress_bar=False)[0]
    assert tried.encode(["tank"])[0] @ direct > 0.9999


def test_other_threads_go_on_while_texts_are_embedded(bundled: Embedder) -> None:
    bundled.encode(TEXTS)
    gaps, done = [0.0], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not done.wait(0.001):
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    bundled.encode(["A tank of forty litres. " * 30] * 96)
    took = time.perf_counter() - start
    done.set()
    thread.join()
    assert max(gaps) < took / 2


def test_questions_are_embedded_while_documents_are(bundled: Embedder) -> None:
    """I17"""
    expected = bundled.encode_question(TEXTS[0])
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(bundled.encode(TEXTS * 20))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        assert float(bundled.encode_question(TEXTS[0]) @ expected) > EXACT
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found[0], found[1])


def test_other_files_precision_or_backend_are_another_embedder(tmp_path: Path) -> None:
    """I11, I12"""
    copy = altered(tmp_path / "model")
    first = SentenceTransformerEmbedder(ModelFiles(str(copy), None), "float32").identity
    assert SentenceTransformerEmbedder(ModelFiles(str(copy), None), "bfloat16").identity != first
    other = OpenVinoEmbedder(ModelFiles(str(copy), None), "float32", tmp_path).identity
    assert other != first
    assert comparable(other, first)
    (copy / "README.md").write_text("other words")
    assert SentenceTransformerEmbedder(ModelFiles(str(copy), None), "float32").identity == first
    config = copy / "config.json"
    config.write_text(config.read_text().replace("1e-12", "1e-6 "))
    changed = SentenceTransformerEmbedder(ModelFiles(str(copy), None), "float32").identity
    assert changed != first
    assert not comparable(changed, first)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"backend": "openvino", "precision": "bfloat16"}, True),
        ({"precision": "float16"}, True),
        ({"model": "other"}, False),
        ({"revision": "2"}, False),
        ({"files": "b"}, False),
        ({"dimension": 8}, False),
    ],
)
def test_only_backend_and_precision_may_differ_between_a_question_and_its_index(
    change: dict[str, Any], expected: bool
) -> None:
    """I12"""
    built = {"model": "m", "revision": "1", "files": "a", "dimension": 4, "backend": "torch", "precision": "float32"}
    assert comparable(built, {**built, **change}) is expected


def test_a_backend_that_is_asked_for_is_used_or_refused() -> None:
    open_embedder.cache_clear()  # another test may have opened it in a cache folder of its own
    forced = open_embedder(BUNDLED, None, "float32", "torch").identity
    assert (forced["backend"], forced["precision"]) == ("torch", "float32")
    assert open_embedder(BUNDLED, None, None) is open_embedder(BUNDLED, None), "one in memory"
    if _has_cuda():
        return
    assert open_embedder(BUNDLED, None, NATIVE, "openvino") is open_embedder(BUNDLED, None)
    with pytest.raises(ConfigError, match="float16 by any backend needs what"):
        open_embedder(BUNDLED, None, "float16")


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_container_s_quota_limits_the_cores(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr("pipelines.environment._QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert available_cores() == cores


def test_batches_hold_at_most_their_budget_of_padded_tokens() -> None:
    lengths = [16, 256, 48, 16, 3000, 64, 16]
    batches = by_budget(lengths, 256)
    assert batches == [[4], [1], [5, 2, 0, 3], [6]]
    assert by_budget([], 256) == []
    assert by_budget([5, 9], 0) == [[1], [0]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 384),
        ({"pooling_mode_cls_token": True}, 768),
        ({"embedding_dimension": 100, "pooling_mode": "mean"}, 100),
        ({"embedding_dimension": 100, "pooling_mode": ["cls", "mean", "max"]}, 300),
    ],
)
def test_each_mode_of_a_pooling_adds_its_components(change: dict[str, Any], expected: int, tmp_path: Path) -> None:
    assert ModelFiles(str(altered(tmp_path / "model", config__1_Pooling=change)), None).dimension == expected


def test_a_prompt_before_documents_takes_its_share_of_the_tokens(tmp_path: Path) -> None:
    copy = altered(tmp_path / "model", config_sentence_transformers={"prompts": {"document": "passage: "}})
    assert ModelFiles(str(copy), None).max_tokens == 254


def test_a_model_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    copy = altered(tmp_path / "model")
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer.json"):
        ModelFiles(str(copy), None).max_tokens  # noqa: B018 reading it is the act
