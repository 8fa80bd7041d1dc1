"""Language models to GGUF: tokens, special tokens and logits are those of transformers, or the model is refused."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipelines.errors import ExportError
from pipelines.fingerprint import file_sha256
from pipelines.release.gguf import convert, quantise, read_header
from pipelines.release.language import GgufLanguageModel
from pipelines.release.merge import merge_checkpoint
from pipelines.release.probes import PROBES
from pipelines.release.tokens import (
    GPT2,
    LLAMA3,
    QWEN2,
    GgufVocabulary,
    load_tokenizer,
    pre_tokenizer,
    prove,
    special_tokens,
)
from pipelines.release.tokens import TEXTS as PROBE_TEXTS
from tests.conftest import shared_data
from tests.pipelines.chat_base import SPECIAL, TEMPLATE, make_chat_base, make_tokenizer
from tests.pipelines.release.test_merge_streaming import load, make_adapter

TEXTS = (
    "<|im_start|>user\nWhich colour has the kettle ?<|im_end|>\n<|im_start|>assistant\n",
    "Thank you for asking : 12345 lamps, 6.78 tents\n\n\tand a hose !",
)


def with_rules(folder: Path, steps: list[dict[str, Any]], *, ignore_merges: bool = False, **facts: Any) -> Any:
    """A tokenizer that learnt the probes themselves, cut by ``steps``: where rules differ on them, its tokens do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    held = json.loads(tokenizer.to_str())
    held["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    tokenizer = Tokenizer.from_str(json.dumps(held))
    corpus = [*(probe.text for probe in PROBES), *PROBE_TEXTS, *TEXTS]
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus * 2, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    held = json.loads(tokenizer.to_str()) | facts
    held["model"]["ignore_merges"] = ignore_merges
    names = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[2], "pad_token": SPECIAL[3]}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(held)), **names)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return load_tokenizer(folder)


def split(regex: str) -> list[dict[str, Any]]:
    """Cut by ``regex``, then into bytes."""
    return [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]


def make_model(folder: Path, name: str, tokenizer: Any, **facts: Any) -> Path:
    torch.manual_seed(0)
    small = {
        "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.05,
    }  # fmt: skip
    if name == "GPT2":
        small = {"vocab_size": 2048, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
    ids = {kind: getattr(tokenizer, kind) for kind in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = getattr(transformers, f"{name}Config")(**{**small, **ids, **facts})
    head = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    getattr(transformers, head)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def assert_same_logits(file: Path, checkpoint: Path, tolerance: float) -> None:
    """Every text: token ids equal, logits within ``tolerance``, the best token the same where it is clear."""
    model, tokenizer = load(checkpoint), load_tokenizer(checkpoint)
    theirs = GgufLanguageModel(file, 256)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert theirs.tokens(text) == ids
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        found = theirs.logits(ids)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < tolerance
        best = np.sort(expected, axis=1)
        clear = best[:, -1] - best[:, -2] > 2 * tolerance
        assert (found.argmax(1) == expected.argmax(1))[clear].all()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a tokenizer of digits one by one, which no converter knows by hash."""
    folder = make_chat_base(tmp_path_factory.mktemp("base") / "base")
    stops = {"eos_token_id": [0, 2], "pad_token_id": 3, "bos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(stops))
    return folder


@pytest.fixture(scope="module")
def f16(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("f16") / "base-F16.gguf"
    convert(base, path, name="base", metadata={"freshet.adapter": "none"}, texts=TEXTS)
    return path


def test_a_llama_with_a_tokenizer_of_its_own_answers_as_in_transformers(base: Path, f16: Path) -> None:
    """G6: recognised by its structure, proved on the probes; F16 within rounding."""
    assert pre_tokenizer(load_tokenizer(base)) == "smollm"
    assert_same_logits(f16, base, 5e-3)


def test_special_tokens_and_chat_template_are_read_back_from_the_file(base: Path, f16: Path) -> None:
    """G8, G9, G10, G13: the end of a turn is the end of an answer; nothing is put before a text."""
    header = read_header(f16)
    tokenizer = load_tokenizer(base)
    assert header.pre == "smollm"
    assert header.file_type == "F16"
    assert header.special == {"bos": 0, "eos": 2, "padding": 3}
    assert (header.add_bos, header.add_eos) == (False, False)
    assert header.chat_template == tokenizer.chat_template == TEMPLATE
    assert header.metadata == {"freshet.adapter": "none"}
    assert header.context_length == 512
    vocabulary = GgufVocabulary(f16)
    assert [vocabulary.ends(token) for token in range(6)] == [True, False, True, False, False, False]


def test_an_end_of_turn_that_is_not_the_end_of_a_text_stops_too(tmp_path: Path) -> None:
    """G9: tokens that llama.cpp has never heard of."""
    special = ("<eot>", "<turn>", "<done>", "<nothing>")
    tokenizer = make_tokenizer(special=special, bos_token="<eot>", eos_token="<eot>", pad_token="<nothing>")
    tokenizer.chat_template = TEMPLATE.replace("<|im_start|>", "<turn>").replace("<|im_end|>", "<done>")
    folder = make_chat_base(tmp_path / "base", tokenizer=tokenizer)
    header = convert(folder, tmp_path / "base.gguf", name="base", metadata={})
    assert header.special == {"bos": 0, "eos": 0, "eot": 2, "padding": 3}
    assert [GgufVocabulary(tmp_path / "base.gguf").ends(token) for token in range(4)] == [True, False, True, False]


def test_an_adapter_is_merged_on_its_way_into_the_file(base: Path, tmp_path: Path) -> None:
    """G1, G4: no merged checkpoint on the disk, and the same bytes as if there were one."""
    make_adapter(load(base), tmp_path / "adapter", use_dora=True)
    convert(base, tmp_path / "straight.gguf", name="model", metadata={}, adapter=tmp_path / "adapter")
    merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged", dtype="F32")
    convert(tmp_path / "merged", tmp_path / "merged.gguf", name="model", metadata={})
    assert file_sha256(tmp_path / "straight.gguf") == file_sha256(tmp_path / "merged.gguf")
    assert_same_logits(tmp_path / "straight.gguf", tmp_path / "merged", 5e-3)
    assert not list(tmp_path.glob(".*"))


def test_an_adapter_that_changes_nothing_is_refused_on_the_straight_way_too(base: Path, tmp_path: Path) -> None:
    """G1"""
    make_adapter(load(base), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(tensor for name, tensor in tensors.items() if name.endswith("k_proj.lora_B.weight")).zero_()
    save_file(tensors, path)
    with pytest.raises(ExportError, match=r"equals its base in .*k_proj"):
        convert(base, tmp_path / "model.gguf", name="model", metadata={}, adapter=tmp_path / "adapter")


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SMOLLM = [{"type": "Digits", "individual_digits": True}, BYTES]
NFC = {"normalizer": {"type": "NFC"}}
BOS = {
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": SPECIAL[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {SPECIAL[0]: {"id": SPECIAL[0], "ids": [0], "tokens": [SPECIAL[0]]}},
    }
}
FAMILIES: dict[str, tuple[str, list[dict[str, Any]], str, dict[str, Any], dict[str, Any]]] = {
    "Llama, digits": ("Llama", SMOLLM, "smollm", {}, {}),
    "Qwen2": ("Qwen2", split(QWEN2), "qwen2", NFC, {}),
    "Qwen3": ("Qwen3", split(QWEN2), "qwen2", NFC, {"head_dim": 32}),
    "Mistral": ("Mistral", split(LLAMA3), "smaug-bpe", {}, {}),
    "Llama": ("Llama", split(LLAMA3), "llama-bpe", {"ignore_merges": True, **BOS}, {"tie_word_embeddings": True}),
    "GPT-2": ("GPT2", [BYTES], "gpt-2", {}, {}),
}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Model and file of each family; two at a time, for most of a small conversion is its process's start."""
    folder = tmp_path_factory.mktemp("families")
    made = {}
    for number, (family, (name, steps, _, tokenizer, facts)) in enumerate(FAMILIES.items()):
        found = with_rules(folder / f"tokenizer{number}", steps, **tokenizer)
        made[family] = make_model(folder / f"model{number}", name, found, **facts), folder / f"model{number}.gguf"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: convert(*pair, name="model", metadata={}, texts=TEXTS), made.values()))
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_families_and_their_tokenizers_answer_as_in_transformers(
    families: dict[str, tuple[Path, Path]], family: str
) -> None:
    """G6, G8: also where a tokenizer puts a token before every text."""
    model, file = families[family]
    header = read_header(file)
    assert header.pre == FAMILIES[family][2] == pre_tokenizer(load_tokenizer(model))
    assert header.add_bos == (family == "Llama")
    assert_same_logits(file, model, 5e-3)


@pytest.mark.parametrize(
    ("steps", "facts"),
    [
        (split(r"\w+|\s+|[^\w\s]+"), {}),
        (split(GPT2.replace("'s|", "")), {}),
        (split(QWEN2), {"normalizer": {"type": "NFKC"}}),
        (split(QWEN2), {"normalizer": {"type": "Lowercase"}}),
        ([{**BYTES, "add_prefix_space": True}], {}),
        ([{"type": "Digits", "individual_digits": False}, BYTES], {}),
        (split(QWEN2), {"ignore_merges": True}),
    ],
)
def test_a_tokenizer_of_unknown_structure_is_not_recognised(
    tmp_path: Path, steps: list[dict[str, Any]], facts: dict[str, Any]
) -> None:
    """G6: rules are never guessed."""
    assert pre_tokenizer(with_rules(tmp_path, steps, **facts)) is None


def test_a_tokenizer_that_is_not_recognised_is_refused(tmp_path: Path) -> None:
    """G6"""
    model = make_model(tmp_path / "model", "Llama", with_rules(tmp_path / "tokenizer", split(r"\w+|\s+|[^\w\s]+")))
    with pytest.raises(ExportError, match=r"does not know the tokenizer.*never guessed"):
        convert(model, tmp_path / "model.gguf", name="model", metadata={})


def test_a_file_with_nearly_the_rules_of_the_tokenizer_is_refused(
    families: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """G6: the proof itself, on the same vocabulary with the rules of another family."""
    for family, other in (
        ("Qwen2", "gpt-2"),
        ("GPT-2", "smollm"),
        ("Mistral", "qwen2"),
        ("Llama, digits", "qwen2"),
    ):
        model, file = families[family]
        renamed = tmp_path / f"{other}.gguf"
        rename_rules(file, renamed, other)
        with pytest.raises(ExportError, match=r"reads .* where transformers reads"):
            prove(renamed, load_tokenizer(model), special_tokens(model, load_tokenizer(model)))


def rename_rules(file: Path, output: Path, pre: str) -> None:
    """A copy of a file's vocabulary that names other rules."""
    reader = gguf.GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(output, architecture)
    for name, field in reader.fields.items():
        if name.startswith(("tokenizer.", f"{architecture}.")):
            value = pre if name == "tokenizer.ggml.pre" else field.contents()
            part = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, value, field.types[0], sub_type=part)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_a_stop_that_the_file_lacks_is_refused(base: Path, f16: Path, tmp_path: Path) -> None:
    """G9"""
    tokenizer = load_tokenizer(base)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 2, 1]}')
    with pytest.raises(ExportError, match=r"would not stop at \['<\|im_start\|>'\]"):
        prove(f16, tokenizer, special_tokens(tmp_path, tokenizer))


def test_a_vocabulary_larger_than_the_embedding_is_refused(base: Path, tmp_path: Path) -> None:
    """G7"""
    shutil.copytree(base, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(ExportError, match="the embedding has 100 rows"):
        convert(tmp_path / "model", tmp_path / "model.gguf", name="model", metadata={})


def test_a_tensor_that_llama_cpp_has_no_place_for_is_refused(base: Path, tmp_path: Path) -> None:
    """G3"""
    shutil.copytree(base, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    save_file(load_file(path) | {"model.vision_tower.weight": torch.ones(2, 2)}, path)
    with pytest.raises(ExportError, match=r"no place for model\.vision_tower\.weight"):
        convert(tmp_path / "model", tmp_path / "model.gguf", name="model", metadata={})


def test_a_language_model_is_quantised_and_transformers_reads_the_file(base: Path, f16: Path) -> None:
    """G13: the type is read back."""
    quantised = f16.with_name("base-Q8_0.gguf")
    header = quantise(f16, quantised, "Q8_0", None)
    assert header.file_type == "Q8_0"
    assert not header.unquantised
    assert header.chat_template == TEMPLATE
    assert_same_logits(quantised, base, 0.05)
    theirs = load(f16.parent, gguf_file=f16.name)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert (theirs(ids).logits - load(base)(ids).logits).abs().max() < 5e-3


@pytest.mark.parametrize(
    ("name", "lost"),
    [("gpt-2", (0xAC, 0xC5, 0xC4, 0x80, 0xC4, 0xC3, 0x81, 0xC4, 0xC4)), ("bert-bge", (0x80, 0x8C))],
)
def test_texts_become_the_tokens_that_llama_cpp_itself_expects(
    name: str, lost: tuple[int, ...], tmp_path: Path
) -> None:
    """G6: real vocabularies, with the tokenisations that their authors published.

    The copies went through a text format: ``lost`` are the bytes of lengths, ids and an epsilon that are no UTF-8.
    """
    source = shared_data("gguf-vocab-public") / f"ggml-vocab-{name}.gguf"
    first, *parts = source.read_bytes().split("\ufffd".encode())
    assert len(parts) == len(lost)
    path = tmp_path / source.name
    path.write_bytes(first + b"".join(bytes([byte]) + part for byte, part in zip(lost, parts, strict=True)))
    vocabulary = GgufVocabulary(path)
    texts = source.with_name(f"{source.name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = source.with_name(f"{source.name}.out").read_text(encoding="utf-8").splitlines()
    found = [vocabulary.tokens(text) for text in texts]
    if name == "bert-bge":  # published without what is put around a text
        found = [ids[1:-1] for ids in found]
    assert [ids for ids, line in zip(found, expected, strict=False)] == [
        [int(token) for token in line.split()] for line in expected[: len(found)]
    ]
    assert len(found) > 40
