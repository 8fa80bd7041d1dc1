"""The streaming merge: what peft merges in memory, for every family of models and every kind of LoRA."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pipelines.errors import ExportError
from pipelines.release.merge import MergeReport, merge_checkpoint

SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SMALL),
    "llama, tied": ("Llama", {**SMALL, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", SMALL),
    "qwen3": ("Qwen3", {**SMALL, "head_dim": 8}),
    "mistral": ("Mistral", SMALL),
    "gemma": ("Gemma", {**SMALL, "head_dim": 8}),
    "gemma2": ("Gemma2", {**SMALL, "head_dim": 8}),
    "gemma3": ("Gemma3", {**SMALL, "head_dim": 8}),
    "phi3": ("Phi3", SMALL),
    "gpt2": ("GPT2", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
}
KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
IDS = torch.tensor([[3, 14, 15, 92, 65, 35, 89, 79]])


def make_base(folder: Path, family: str, **changes: Any) -> Path:
    name, facts = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")(**{**facts, **changes})
    head = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    getattr(transformers, head)(config).save_pretrained(folder)
    return folder


def load(folder: Path, auto: Any = transformers.AutoModelForCausalLM, **options: Any) -> Any:
    model, loading = auto.from_pretrained(folder, output_loading_info=True, **{"dtype": torch.float32, **options})
    assert set(loading["unexpected_keys"]) <= {"lm_head.weight"}  # of a base that becomes a classifier
    return model.eval()


def make_adapter(base: Any, folder: Path, **options: Any) -> Any:
    """A peft adapter whose update is not zero, saved and put on ``base`` again."""
    options = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "target_modules": "all-linear", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tied embeddings, and GPT-2's (in, out) layers
        model = peft.get_peft_model(base, peft.LoraConfig(**options))
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                # DoRA's magnitudes are near the norms that they start from, the others small
                scale = 0.1 * parameter.detach() if "magnitude" in name else 0.2
                value = parameter.detach() * ("magnitude" in name) + scale * torch.randn_like(parameter)
                parameter.data.copy_(value)  # in place: tied adapters share their numbers
        model.save_pretrained(folder)
        return peft.PeftModel.from_pretrained(model.unload(), folder).eval()


def merged_both_ways(
    tmp_path: Path, base: Path, *, auto: Any = transformers.AutoModelForCausalLM, dtype: Any = None, **options: Any
) -> tuple[MergeReport, Any, Any, Any]:
    """Report, model read back, model merged by peft, and logits of base and adapter."""
    adapted = make_adapter(load(base, auto), tmp_path / "adapter", **options)
    with torch.no_grad():
        expected = adapted(IDS).logits
    report = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged", dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = adapted.merge_and_unload()
    return report, load(tmp_path / "merged", auto), theirs, expected


def assert_equal(ours: Any, theirs: Any) -> None:
    one, other = ours.state_dict(), theirs.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, other[name], atol=2e-6, rtol=1e-5, msg=lambda text, name=name: f"{name} {text}"
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_what_peft_merges(tmp_path: Path, family: str, kind: str) -> None:
    """G4: ranks and alphas by pattern, LoRA, rsLoRA and DoRA, fused and transposed layers."""
    pattern = "c_fc" if family == "gpt2" else "gate_up_proj" if family == "phi3" else "up_proj"
    report, ours, theirs, expected = merged_both_ways(
        tmp_path,
        make_base(tmp_path / "base", family),
        rank_pattern={pattern: 2},
        alpha_pattern={pattern: 5},
        **KINDS[kind],
    )
    assert_equal(ours, theirs)
    with torch.no_grad():
        assert (ours(IDS).logits - expected).abs().max() < 1e-4
    assert len(report.changed) == (8 if family in {"gpt2", "phi3"} else 14)
    assert not report.untied
    assert not report.replaced


@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_encoder_gets_the_head_that_the_adapter_brings(tmp_path: Path, kind: str) -> None:
    """G3: the base's names lack ``bert.``; the head is in the adapter only."""
    torch.manual_seed(0)
    small = {name: SMALL[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    config = transformers.BertConfig(**small, num_attention_heads=4, num_labels=2)
    transformers.BertModel(config).save_pretrained(tmp_path / "base")
    report, ours, theirs, _ = merged_both_ways(
        tmp_path,
        tmp_path / "base",
        auto=transformers.AutoModelForSequenceClassification,
        task_type="SEQ_CLS",
        target_modules=["query", "key", "value", "dense"],
        modules_to_save=["classifier"],
        **KINDS[kind],
    )
    assert_equal(ours, theirs)
    assert report.replaced == ("classifier.bias", "classifier.weight")
    assert "bert.encoder.layer.1.output.dense.weight" in report.changed


def test_a_decoder_becomes_a_classifier_without_its_language_head(tmp_path: Path) -> None:
    """G3: the report names what is left out."""
    report, ours, theirs, _ = merged_both_ways(
        tmp_path,
        make_base(tmp_path / "base", "qwen2"),
        auto=transformers.AutoModelForSequenceClassification,
        task_type="SEQ_CLS",
        modules_to_save=["score"],
    )
    assert_equal(ours, theirs)
    assert report.replaced == ("score.weight",)
    assert report.dropped == ("lm_head.weight",)
    assert ours.config.architectures == ["Qwen2ForSequenceClassification"]


@pytest.mark.parametrize("family", ["llama", "llama, tied", "gpt2", "gemma3"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_embeddings_can_be_adapted_and_answer_as_base_and_adapter(tmp_path: Path, family: str, kind: str) -> None:
    """Tied embeddings become two where the adapter changes one; peft would change both, and the answers with them."""
    target = "wte" if family == "gpt2" else "embed_tokens"
    linear = "c_attn" if family == "gpt2" else "q_proj"
    report, ours, theirs, expected = merged_both_ways(
        tmp_path, make_base(tmp_path / "base", family), target_modules=[target, linear], **KINDS[kind]
    )
    with torch.no_grad():
        assert (ours(IDS).logits - expected).abs().max() < 1e-4
    assert report.untied == (family != "llama")
    assert ours.config.tie_word_embeddings == (not report.untied and theirs.config.tie_word_embeddings)
    name = f"{'transformer' if family == 'gpt2' else 'model'}.{target}.weight"
    assert torch.allclose(ours.state_dict()[name], theirs.state_dict()[name], atol=2e-6)


@pytest.mark.parametrize("whole", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_embeddings_trained_whole_are_kept_whole(tmp_path: Path, whole: list[str]) -> None:
    """G3, with tied embeddings in the base."""
    report, ours, theirs, expected = merged_both_ways(
        tmp_path, make_base(tmp_path / "base", "llama, tied"), target_modules=["q_proj"], modules_to_save=whole
    )
    assert_equal(ours, theirs)
    assert report.untied
    with torch.no_grad():
        assert (ours(IDS).logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    "options", [{"target_modules": ["q_proj", "embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}]
)
def test_embeddings_that_are_adapted_as_one_stay_one(tmp_path: Path, options: dict[str, Any]) -> None:
    report, ours, _, expected = merged_both_ways(
        tmp_path,
        make_base(tmp_path / "base", "llama, tied"),
        ensure_weight_tying=True,
        **{"target_modules": ["q_proj"], **options},
    )
    assert not report.untied
    assert ours.config.tie_word_embeddings
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")
    with torch.no_grad():
        assert (ours(IDS).logits - expected).abs().max() < 1e-4


def test_layers_that_are_not_adapted_stay_as_they_are(tmp_path: Path) -> None:
    """G3: an adapter of the upper layers only."""
    base = make_base(tmp_path / "base", "qwen2")
    _, ours, theirs, _ = merged_both_ways(tmp_path, base, exclude_modules=r"(model\.layers)\.(0)\..*")
    assert_equal(ours, theirs)
    below, before = (each.state_dict()["model.layers.0.mlp.up_proj.weight"] for each in (ours, load(base)))
    assert torch.equal(below, before)


def test_biases_of_the_adapter_are_merged(tmp_path: Path) -> None:
    """G3: of LoRA's own layers, and the base's trained beside them."""
    for number, options in enumerate(({"lora_bias": True}, {"bias": "all"})):
        folder = tmp_path / str(number)
        _, ours, theirs, _ = merged_both_ways(
            folder, make_base(folder / "base", "qwen2"), target_modules=["q_proj", "v_proj"], **options
        )
        assert_equal(ours, theirs)


def test_files_names_and_types_are_those_of_the_base(tmp_path: Path) -> None:
    """G2: in shards, in bfloat16, rounded once."""
    base = make_base(tmp_path / "base", "llama")
    load(base, dtype=torch.bfloat16).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    report, ours, theirs, _ = merged_both_ways(tmp_path, tmp_path / "shards")
    wanted = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())["weight_map"]
    found = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert found["weight_map"] == wanted
    assert len(set(wanted.values())) == 3
    tensors = {name: load_file(tmp_path / "merged" / file)[name] for name, file in wanted.items()}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensors[name], tensor.to(torch.bfloat16)) or torch.allclose(
            tensors[name].float(), tensor, rtol=2**-8, atol=0
        )
    assert report.size == found["metadata"]["total_size"] == sum(2 * tensor.numel() for tensor in tensors.values())
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert ours.config.architectures == ["LlamaForCausalLM"]


def test_the_wanted_type_is_written(tmp_path: Path) -> None:
    merged_both_ways(tmp_path, make_base(tmp_path / "base", "qwen2"), dtype="F16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.float16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float16"


def test_experts_that_transformers_fuses_are_kept_as_stored_beside_adapted_attention(tmp_path: Path) -> None:
    """Names of the files are not those of the model: each expert is stored alone."""
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        **SMALL, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1
    )
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "base")
    assert any(".experts.3.up_proj" in name for name in load_file(tmp_path / "base" / "model.safetensors"))
    _, ours, theirs, _ = merged_both_ways(tmp_path, tmp_path / "base", target_modules=["q_proj", "o_proj"])
    assert_equal(ours, theirs)
    for name in ("mlp.experts.gate_up_proj", "mlp.experts.down_proj"):
        make_adapter(load(tmp_path / "base"), tmp_path / name, target_modules=["q_proj"], target_parameters=[name])
        with pytest.raises(ExportError, match=r"target_parameters"):
            merge_checkpoint(tmp_path / "base", tmp_path / name, tmp_path / "refused")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and an adapter of it."""
    folder = tmp_path_factory.mktemp("llama")
    base = make_base(folder / "base", "llama")
    make_adapter(load(base), folder / "adapter", target_modules=["q_proj"])
    return base, folder / "adapter"


def edited(source: Path, folder: Path, file: str, change: Callable[[dict[str, Any]], object]) -> Path:
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if file.endswith(".json"):
        value = json.loads((folder / file).read_text())
        change(value)
        (folder / file).write_text(json.dumps(value))
    else:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file)
    return folder


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("adapter_model", {f"{Q_PROJ}.lora_C.weight": torch.ones(2, 2)}, r"q_proj\.lora_C\.weight.*refused"),
        ("adapter_model", {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(4, 32)}, "layers.9"),
        (
            "adapter_model",
            {f"{Q_PROJ}.lora_B.weight": torch.zeros(32, 4)},
            r"equals its base in .*0\.self_attn\.q_proj",
        ),
        ("adapter_model", {f"{Q_PROJ}.lora_B.weight": torch.full((32, 4), torch.nan)}, "cannot hold"),
        ("adapter_model", {f"{Q_PROJ}.lora_A.weight": torch.ones(4, 31)}, r"shapes \[4, 31\]"),
        ("adapter_model", {f"{Q_PROJ}.lora_magnitude_vector": torch.ones(32)}, "use_dora False"),
        ("adapter_model", {f"{Q_PROJ}.lora_B.bias": torch.ones(32)}, r"lora_B\.bias"),
        ("adapter_config", {"r": 8}, "says rank 8"),
        ("adapter_config", {"peft_type": "LOHA"}, "LOHA"),
        ("adapter_config", {"init_lora_weights": "pissa"}, "pissa"),
        ("adapter_config", {"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
        ("adapter_config", {"trainable_token_indices": [1]}, "trainable_token_indices"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    llama: tuple[Path, Path], tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    """G1, G3, G4: nothing trained is dropped, nothing untrained passes."""
    file += ".json" if file == "adapter_config" else ".safetensors"
    odd = edited(llama[1], tmp_path / "odd", file, lambda value: value.update(change))
    with pytest.raises(ExportError, match=message):
        merge_checkpoint(llama[0], odd, tmp_path / "merged")


def test_a_base_that_is_not_whole_plain_and_unquantised_is_refused(llama: tuple[Path, Path], tmp_path: Path) -> None:
    """G2, G5"""
    base, adapter = llama
    quantised = {"quantization_config": {"quant_method": "bitsandbytes"}}
    odd = edited(base, tmp_path / "quantised", "config.json", lambda config: config.update(quantised))
    with pytest.raises(ExportError, match="bitsandbytes"):
        merge_checkpoint(odd, adapter, tmp_path / "merged")
    odd = edited(base, tmp_path / "partial", "model.safetensors", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ExportError, match=r"no weights for model\.norm\.weight"):
        merge_checkpoint(odd, adapter, tmp_path / "merged")
    odd = edited(base, tmp_path / "wide", "config.json", lambda config: config.update(hidden_size=64))
    with pytest.raises(ExportError, match="of shape"):
        merge_checkpoint(odd, adapter, tmp_path / "merged")
    whole = (base / "model.safetensors").read_bytes()
    (tmp_path / "partial" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExportError, match="no complete safetensors file"):
        merge_checkpoint(tmp_path / "partial", adapter, tmp_path / "merged")
    (tmp_path / "partial" / "model.safetensors").rename(tmp_path / "partial" / "pytorch_model.bin")
    with pytest.raises(ExportError, match="can run code"):
        merge_checkpoint(tmp_path / "partial", adapter, tmp_path / "merged")


def test_the_adapters_tokenizer_wins_and_nothing_executable_is_copied(llama: tuple[Path, Path], tmp_path: Path) -> None:
    """G10: the chat template is the one that was trained with."""
    base = edited(llama[0], tmp_path / "base", "config.json", dict)
    adapter = edited(llama[1], tmp_path / "adapter", "adapter_config.json", dict)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt"):
        (base / name).write_text('{"of": "base"}')
    for name in ("optimizer.pt", "modeling_odd.py"):
        (base / name).write_text("base")
    merge_checkpoint(base, adapter, tmp_path / "first")
    assert (tmp_path / "first" / "chat_template.jinja").read_text() == '{"of": "base"}'
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (adapter / name).write_text('{"of": "adapter"}')
    merge_checkpoint(base, adapter, tmp_path / "second")
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert (tmp_path / "second" / "chat_template.jinja").read_text() == '{"of": "adapter"}'


MEASURE = """
import sys
from pathlib import Path
from pipelines.release.merge import merge_checkpoint
small, large, adapter, folder = map(Path, sys.argv[1:])
merge_checkpoint(small, small / "adapter", folder / "merged_small")
Path("/proc/self/clear_refs").write_text("5")
def resident(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(name)) * 1024
before = resident("VmRSS")
report = merge_checkpoint(large, adapter, folder / "large")
print(resident("VmHWM") - before, report.size)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux's /proc")
def test_memory_holds_a_part_of_the_model_however_large_it_is(tmp_path: Path) -> None:
    small = make_base(tmp_path / "small", "llama")
    make_adapter(load(small), small / "adapter")
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 32000, "num_hidden_layers": 8}
    large = make_base(tmp_path / "base", "llama", **sizes)
    make_adapter(load(large), tmp_path / "adapter")
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, (small, large, tmp_path / "adapter", tmp_path))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    growth, size = map(int, ran.stdout.split())
    assert size > 4 * 64e6
    assert growth < 64e6, f"{growth / 1e6:.0f} MB to merge {size / 1e6:.0f} MB"
