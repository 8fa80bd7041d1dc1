"""From a chat adapter to artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from tokenizers.normalizers import NFC
from tokenizers.processors import TemplateProcessing

from pipelines.artifacts import Artifact
from pipelines.errors import ArtifactError
from pipelines.evaluation.classifier import base_folder
from pipelines.evaluation.generation import load_chat_model
from pipelines.fingerprint import text_hash
from pipelines.labels.examples import read_split
from pipelines.prompt import render
from pipelines.release.export import export, prompt_budget
from pipelines.release.gguf import quantise, read_header
from pipelines.release.language import GgufLanguageModel
from pipelines.release.registry import publish
from pipelines.release.settings import Quantisation, ReleaseSettings
from tests.pipelines.chat_base import SPECIAL, TEMPLATE, make_chat_base, make_tokenizer, write_chat_set
from tests.pipelines.release.chat_samples import CHAT_EVALUATION, CHAT_PROMPT, CHAT_USE_CASE, train_chat
from tests.pipelines.release.samples import copied, write_report


def test_the_artifact_holds_what_the_contract_says(chat_gguf: Artifact, chat_adapter: Artifact) -> None:
    """G5, G10"""
    manifest = chat_gguf.manifest
    assert manifest["task"] == "generate"
    assert not {"categories", "multi_label", "thresholds", "calibration", "abstain_below"} & manifest.keys()
    assert manifest["prompt"] == chat_adapter.manifest["prompt"] == CHAT_PROMPT.model_dump(mode="json")
    assert manifest["stops"] == ["<|im_end|>"]
    assert manifest["maximum_tokens"] == 512
    template = (chat_gguf.path / "chat_template.jinja").read_bytes()
    assert template == TEMPLATE.encode()
    assert text_hash(template.decode()) == manifest["template_hash"] == chat_adapter.manifest["template_hash"]
    for found in manifest["quantisations"].values():
        header = read_header(chat_gguf.path / found["file"])
        assert header.chat_template == TEMPLATE
        assert header.file_type == found["file_type"]
        assert header.metadata["freshet.adapter"] == chat_adapter.fingerprint
        assert header.metadata["freshet.training_set"] == chat_adapter.manifest["training_set"]
        assert header.metadata.keys() >= {"freshet.base_model", "freshet.base_revision", "freshet.base_files"}
    assert [path.name for path in chat_gguf.path.parent.iterdir() if path.is_dir()] == [chat_gguf.fingerprint]


def test_the_champion_of_a_local_base_can_be_compared_with_the_next_candidate(
    chat_gguf: Artifact, chat_adapter: Artifact, tmp_path: Path
) -> None:
    """T16: what is published for others names the base without its folder, and an evaluation finds it all the same."""
    version = publish(
        copied(chat_gguf, tmp_path / "gguf", parity={"passed": True, "reasons": []}),
        chat_adapter,
        copied(write_report(tmp_path / "one", chat_adapter), tmp_path / "report", use_case=CHAT_USE_CASE),
        use_case=CHAT_USE_CASE,
        registry_url=str(tmp_path / "registry"),
    )
    base = str(chat_adapter.manifest["base_model"])
    assert base not in (version.path / "adapter" / "manifest.json").read_text(encoding="utf-8")
    champion = version.adapter()
    assert base_folder(champion) == Path(base)
    assert champion.fingerprint == chat_adapter.fingerprint
    (version.path / "adapter" / "adapter_config.json").chmod(0o644)
    (version.path / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match="missing or altered"):
        version.adapter()


@pytest.mark.parametrize("quantisation", [name for name in get_args(Quantisation) if name not in {"F16", "BF16"}])
def test_every_quantisation_that_can_be_asked_for_is_made(
    chat_gguf: Artifact, quantisation: Quantisation, tmp_path: Path
) -> None:
    """G13: none of these needs an importance matrix."""
    header = quantise(chat_gguf.path / "shop-F16.gguf", tmp_path / "out.gguf", quantisation, None)
    assert header.file_type == quantisation
    assert not {"F16", "BF16"} & header.tensor_types.keys()
    assert header.chat_template == TEMPLATE


def test_an_importance_matrix_comes_from_the_training_texts(
    chat_training: list[Artifact], chat_gguf: Artifact, tmp_path: Path
) -> None:
    """G14: 8 bits and more are as without."""
    said: list[str] = []
    wanted = ReleaseSettings(
        quantisations=("Q8_0", "Q4_K_M"), importance_matrix=True, adapter_gguf=False, minimum_agreement={"Q4_K_M": 0}
    )
    weighed = export(
        chat_training[1],
        chat_training[0],
        settings=wanted,
        folder=tmp_path,
        progress=said.append,
        evaluation=CHAT_EVALUATION,
    )
    assert any(line.startswith("importance matrix: ") for line in said)
    files = weighed.manifest["files"]
    assert files["shop-Q8_0.gguf"] == chat_gguf.manifest["files"]["shop-Q8_0.gguf"]
    assert files["shop-Q4_K_M.gguf"] != chat_gguf.manifest["files"]["shop-Q4_K_M.gguf"]


def test_a_classifier_is_also_made_in_few_bits(gguf: Artifact, tmp_path: Path) -> None:
    """G13"""
    for quantisation in ("Q6_K", "Q5_0", "IQ4_XS", "Q2_K"):
        path = tmp_path / f"{quantisation}.gguf"
        header = quantise(gguf.path / "notices-F16.gguf", path, quantisation, gguf.manifest["categories"])
        assert header.file_type == quantisation
        assert header.pooling == "RANK"


def test_equal_inputs_are_exported_once_and_another_gate_anew(
    chat_training: list[Artifact], chat_gguf: Artifact
) -> None:
    said: list[str] = []
    again = export(
        chat_training[1],
        chat_training[0],
        settings=ReleaseSettings(keep_versions=3),  # says nothing about the files
        folder=chat_gguf.path.parent,
        progress=said.append,
        evaluation=CHAT_EVALUATION,
    )
    assert again.manifest == chat_gguf.manifest
    assert said == []


def test_the_context_length_is_measured_on_prompts_with_all_that_may_be_retrieved(
    chat_training: list[Artifact], chat_gguf: Artifact
) -> None:
    """G12"""
    model = load_chat_model(chat_training[1])
    rows = read_split(chat_training[0], "test")
    prompts = [render(model.tokenizer, model.chat(row)) for row in rows]
    shown = [sum(map(model.count_tokens, model.context(row))) for row in rows]
    expected = max(model.count_tokens(text) + 64 - seen for text, seen in zip(prompts, shown, strict=True))

    def budget(window: int, answer: int) -> Any:
        evaluation = CHAT_EVALUATION.model_copy(update={"maximum_answer_tokens": answer})
        return prompt_budget(model, rows, prompts, window, evaluation)

    assert chat_gguf.manifest["longest_prompt"] == expected
    assert chat_gguf.manifest["context_length"] == 256
    assert chat_gguf.manifest["maximum_answer_tokens"] == 64
    assert budget(4096, 300).context_length == 512
    tight = budget(300, 300)
    assert (tight.context_length, tight.answer_tokens) == (300, 300 - expected)
    assert "answers end at" in tight.warnings[0]
    assert tight.reasons == []
    exactly = budget(300, 300 - expected)
    assert (exactly.context_length, exactly.answer_tokens, exactly.warnings) == (300, 300 - expected, [])
    assert "choose fewer prompt.context_tokens" in budget(expected, 300).reasons[0]


@pytest.fixture(scope="module")
def bad_gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, list[str], list[Path]]:
    """An export that must not be published, what it said, and checkpoints that it wrote: the model has hardly learned
    anything, so that it never stops, and its tokenizer puts a BOS before texts that its template does not have; it
    also composes characters first."""
    folder = tmp_path_factory.mktemp("bad")
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], tokenizer.bos_token_id)]
    )
    tokenizer.backend_tokenizer.normalizer = NFC()
    training_set = write_chat_set(folder / "training_set", context=True)
    base = make_chat_base(folder / "base", tokenizer=tokenizer)
    adapter = train_chat(base, training_set, folder / "lora_adapter", epochs=1, learning_rate=1e-6)
    said: list[str] = []
    checkpoints: list[Path] = []

    def progress(line: str) -> None:
        said.append(line)
        checkpoints.extend((folder / "gguf_model").rglob("*.safetensors"))

    settings = ReleaseSettings(quantisations=("BF16", "IQ4_XS"), serve="BF16")
    made = export(
        adapter,
        training_set,
        settings=settings,
        folder=folder / "gguf_model",
        progress=progress,
        evaluation=CHAT_EVALUATION,
    )
    return made, said, checkpoints


def test_a_model_that_never_stops_fails_parity_as_an_artifact(
    bad_gguf: tuple[Artifact, list[str], list[Path]],
) -> None:
    """G9"""
    artifact, said, _ = bad_gguf
    assert artifact.manifest["parity"]["passed"] is False
    assert "BF16: 0.00 of its answers end by themselves; at least 0.80 must" in artifact.manifest["parity"]["reasons"]
    assert artifact.manifest["quantisations"]["BF16"]["stopped"] == 0
    assert any(line.startswith("parity failed: ") for line in said)


def test_a_bos_that_training_never_had_fails_parity(bad_gguf: tuple[Artifact, list[str], list[Path]]) -> None:
    """G8"""
    artifact, _, _ = bad_gguf
    reasons = "\n".join(artifact.manifest["parity"]["reasons"])
    assert "token ids differ on the rendered prompt of row" in reasons
    assert "at token 0, ['<|im_start|>', 'system', 'Ċ'] in training, ['<|endoftext|>', '<|im_start|>'" in reasons
    assert "16 of 16 prompts would not be served as they were trained on" in reasons


def test_characters_that_only_have_to_be_composed_first_are_counted_and_do_not_block(
    bad_gguf: tuple[Artifact, list[str], list[Path]],
) -> None:
    """G6"""
    artifact, _, _ = bad_gguf
    tokens = json.loads((artifact.path / "parity.json").read_text(encoding="utf-8"))["tokens"]
    assert tokens["composed_first"] > 0
    assert not any("token ids differ on '" in reason for reason in tokens["reasons"])


def test_a_bos_of_file_and_template_is_one(bad_gguf: tuple[Artifact, list[str], list[Path]]) -> None:
    """G8"""
    artifact, _, _ = bad_gguf
    model = GgufLanguageModel(artifact.path / "shop-BF16.gguf", 64)
    once = model.prompt_tokens("<|im_start|>user")
    assert once[0] == make_tokenizer().bos_token_id
    assert model.prompt_tokens("<|endoftext|><|im_start|>user") == once
    assert model.tokens("<|endoftext|><|im_start|>user") == [once[0], *once]


def test_no_merged_checkpoint_lies_on_the_disk_meanwhile(bad_gguf: tuple[Artifact, list[str], list[Path]]) -> None:
    _, said, checkpoints = bad_gguf
    assert "quantising to IQ4_XS" in said
    assert checkpoints == []


def test_where_only_bf16_is_asked_for_everything_is_made_from_it(
    bad_gguf: tuple[Artifact, list[str], list[Path]],
) -> None:
    """G13"""
    artifact, said, _ = bad_gguf
    assert said[:2] == ["converting to GGUF (BF16)", "quantising to IQ4_XS"]
    files = ["shop-BF16.gguf", "shop-IQ4_XS.gguf", "shop-adapter-F16.gguf"]
    assert sorted(path.name for path in artifact.path.glob("*.gguf")) == files
    assert artifact.manifest["quantisations"]["BF16"]["tensor_types"].keys() == {"BF16", "F32"}
    assert artifact.manifest["quantisations"]["IQ4_XS"]["file_type"] == "IQ4_XS"
