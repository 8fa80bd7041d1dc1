"""The model card and the commands beside it, from manifests alone."""

from __future__ import annotations

import ast
import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from pipelines.artifacts import Artifact
from pipelines.errors import ExportError
from pipelines.models import BUNDLED, BUNDLED_CHAT
from pipelines.prompt import PromptSettings
from pipelines.release import export as export_module
from pipelines.release.card import Beside, base_name, model_card, public_manifest, run_guide
from pipelines.release.parity import QuantisationParity
from pipelines.release.parity_chats import ChatQuantisation
from pipelines.release.settings import ReleaseSettings
from tests.pipelines.release.samples import no_progress

TRAINING_SET = "123456789012e456" * 4
"""Its first half would be a number in YAML without quotes."""
AGREEMENTS = {"Q4_K_M": 0.9123, "F16": 0.9991, "Q8_0": 0.99}
"""Not in the order of their exactness."""
REPORT = Artifact(
    Path("report"), {"fingerprint": "e" * 64, "verdict": {"passed": True, "reasons": ["token-f1 0.812 against 0.401."]}}
)


def adapter(base: str = "owner/chat-base", revision: str | None = "abc123", **lora: Any) -> Artifact:
    return Artifact(
        Path("adapter"),
        {
            "fingerprint": "a" * 64,
            "base_model": base,
            "base_revision": revision,
            "settings": {"base_model": base, "lora": {"rank": 16, **lora}},
            "effective": {"rows": 120, "steps": 45},
            "base_files": {"model.safetensors": "0" * 64},
        },
    )


def common(use_case: str, licence: str) -> dict[str, Any]:
    return {
        "fingerprint": "b" * 64,
        "use_case": use_case,
        "training_set": TRAINING_SET,
        "base_licence": licence,
        "held_out_rows": 37,
        "settings": ReleaseSettings().model_dump(mode="json"),
    }


def chat(use_case: str = "shop", *, licence: str = "apache-2.0", system: str = "Be kind.", **changes: Any) -> Artifact:
    """A chat model's export, as far as a card is made from it."""

    def measured(name: str, agreement: float) -> dict[str, Any]:
        return asdict(
            ChatQuantisation(
                file=f"{use_case}-{name}.gguf", file_type=name, tensor_types={name: 14, "F32": 5}, size=123_400_000,
                agreement=agreement, disagreements=3, kl_divergence=0.00123, max_logit_difference=0.456,
                answers_equal=0.75, stopped=0.9876,
                scores={"exact_match": 0.5, "token_f1": agreement - 0.1, "chrf": 0.7},
            )
        )  # fmt: skip

    facts = {
        **common(use_case, licence),
        "task": "generate",
        "prompt": PromptSettings(system=system).model_dump(mode="json"),
        "template_hash": "c" * 64,
        "stops": ["<|im_end|>", "`", "\n"],
        "maximum_answer_tokens": 96,
        "context_length": 768,
        "quantisations": {name: measured(name, share) for name, share in AGREEMENTS.items()},
        "merged": {"exact_match": 0.51, "token_f1": 0.8765, "chrf": 0.71, "stopped": 0.9911},
        "metric": "token_f1",
        "adapter_gguf": {"file": f"{use_case}-adapter-F16.gguf", "size": 2_500_000},
        "warnings": ["answers end at 60."],
        **changes,
    }  # fmt: skip
    return Artifact(Path("gguf"), facts)


def classifier(folder: Path, use_case: str = "notices", **changes: Any) -> Artifact:
    def measured(name: str, accuracy: float) -> dict[str, Any]:
        return asdict(
            QuantisationParity(
                file=f"{use_case}-{name}.gguf", file_type=name, tensor_types={name: 37, "F32": 63}, size=46_000_000,
                agreement=0.9722, disagreements=1, row_agreement=0.97, max_logit_difference=0.1, accuracy=accuracy,
                micro_f1=accuracy + 0.01,
            )
        )  # fmt: skip

    known = [{"text": "x", "known": "Hangul is composed first"}, {"text": "y", "known": None}]
    (folder / "parity.json").write_text(json.dumps({"tokens": {"differences": known}}), encoding="utf-8")
    facts = {
        **common(use_case, "mit"),
        "task": "classify",
        "categories": ["closure", "payment"],
        "multi_label": False,
        "maximum_tokens": 48,
        "quantisations": {"Q8_0": measured("Q8_0", 0.8333), "F16": measured("F16", 0.8611)},
        "merged": {"accuracy": 0.8611, "micro_f1": 0.8711},
        "calibration": {"rows": 40, "temperature": 1.234, "bias": 0},
        **changes,
    }
    return Artifact(folder, facts)


def front(text: str) -> dict[str, Any]:
    """The front matter as any reader of YAML takes it; the Hub's own takes it too."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert found
    assert ModelCard(text).data.eval_results
    read: dict[str, Any] = yaml.safe_load(found[1])
    return read


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of the code blocks."""
    found = re.finditer(r"^(`{3,})(\w+)\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)
    return [(each[2], each[3]) for each in found]


def tables(text: str) -> list[list[list[str]]]:
    """Cells of each table, which all have as many as its head."""
    found = []
    for rows in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows.splitlines()]
        assert {len(row) for row in cells} == {len(cells[0])}
        found.append(cells)
    return found


def test_the_hub_reads_what_a_chat_model_is_and_how_it_scored() -> None:
    """G15: the figures are those of the file that is served."""
    text = model_card(chat(), adapter(), REPORT, Beside("FROM x"), version="v3")
    assert front(text) == {
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "base_model": "owner/chat-base",
        "base_model_relation": "finetune",
        "tags": ["freshet", "gguf", "llama.cpp", "lora", "text-generation", "conversational"],
        "model-index": [
            {
                "name": "shop-v3",
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"name": "shop, held-out rows", "type": "123456789012e456"},
                        "metrics": [
                            {"type": "token_f1", "name": "token f1", "value": 0.89},
                            {"type": "chrf", "name": "chrf", "value": 0.7},
                            {"type": "exact_match", "name": "exact match", "value": 0.5},
                        ],
                    }
                ],
            }
        ],
    }


def test_the_hub_reads_what_a_classifier_is_and_how_it_scored(tmp_path: Path) -> None:
    """G15"""
    found = front(model_card(classifier(tmp_path), adapter(BUNDLED, None), REPORT, Beside("FROM x"), version="v1"))
    assert (found["pipeline_tag"], found["license"]) == ("text-classification", "mit")
    assert found["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    (result,) = found["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"accuracy": 0.8333, "f1": 0.8433}


def test_a_refit_is_said_with_the_rows_of_the_training_before() -> None:
    trained = adapter()
    effective = {**trained.manifest["effective"], "rows": 150, "rows_before_refit": 120}
    refitted = Artifact(trained.path, {**trained.manifest, "effective": effective})
    made_from, _ = tables(model_card(chat(), refitted, REPORT, Beside("FROM x"), version="v3"))
    said = "150, and 120 in the training before, which validated on the others"
    assert dict(made_from[2:])["training rows"] == said


def test_every_figure_of_a_chat_model_is_in_the_table_the_most_exact_file_first() -> None:
    """G14, G15"""
    text = model_card(chat(), adapter(), REPORT, Beside("FROM x"), version="v3")
    made_from, results = tables(text)
    facts = dict(made_from[2:])
    assert facts["training set"] == f"`{TRAINING_SET}`"
    assert facts["base revision"] == "abc123"
    assert facts["method"] == "LoRA, rank 16, merged in float32"
    assert (facts["training rows"], facts["optimiser steps"]) == ("120", "45")
    assert (facts["adapter"], facts["evaluation report"]) == (f"`{'a' * 64}`", f"`{'e' * 64}`")
    assert results[0][-3:] == ["token f1", "chrf", "exact match"]
    assert [row[0] for row in results[2:]] == [
        "merged, float32", "`shop-F16.gguf`", "`shop-Q8_0.gguf`", "`shop-Q4_K_M.gguf`",
    ]  # fmt: skip
    assert results[2][-4:] == ["0.9911", "0.8765", "0.7100", "0.5100"]
    assert results[-1] == [
        "`shop-Q4_K_M.gguf`", "123.4", "14 Q4_K_M", "0.9123", "0.0012", "0.46", "0.7500", "0.9876", "0.8123", "0.7000",
        "0.5000",
    ]  # fmt: skip
    for said in (
        "## Held-out results (37 rows)",
        "The gate let this version pass: token-f1 0.812 against 0.401.\n",
        f"SHA-256 `{'c' * 64}`",
        "An answer ends with `<|im_end|>` or `` ` `` or `\\n`.",
        "in up to 96 tokens, within a context of 768",
        "Prompts of more than 672 tokens were not measured",
        "- answers end at 60.\n",
        "`shop-adapter-F16.gguf` (2.5 MB)",
    ):
        assert said in text, said


@pytest.mark.parametrize(("variant", "method"), [("dora", "DoRA"), ("rslora", "rsLoRA")])
def test_the_method_is_that_of_the_training(variant: str, method: str) -> None:
    text = model_card(chat(), adapter(variant=variant), REPORT, Beside(None), version="v1")
    assert f"| method | {method}, rank 16, merged in float32 |" in text


@pytest.mark.parametrize("use_case", ["no", "null", "y", "on", "true", "x__init__y", "a" * 63])
def test_a_use_case_may_be_called_what_yaml_takes_for_something_else(use_case: str) -> None:
    text = model_card(chat(use_case), adapter(), REPORT, Beside("FROM x"), version="v10")
    (index,) = front(text)["model-index"]
    assert index["name"] == f"{use_case}-v10"
    assert index["results"][0]["dataset"]["name"] == f"{use_case}, held-out rows"
    assert f"\n# {use_case} v10\n" in text


@pytest.mark.parametrize("licence", ["cc-by-sa-4.0", "no", "1.0", "other: see # below"])
def test_a_licence_is_text_and_an_unknown_one_is_not_stated(licence: str) -> None:
    text = model_card(chat(licence=licence), adapter(), REPORT, Beside(None), version="v1")
    assert front(text)["license"] == licence
    text = model_card(chat(licence="unknown"), adapter(), REPORT, Beside(None), version="v1")
    assert "license" not in front(text)
    assert "| licence of the base model | unknown |" in text


def test_no_path_of_this_machine_is_in_a_card_or_beside_it(tmp_path: Path) -> None:
    """A local base is known by its folder's name, which may be an odd one."""
    base = tmp_path / "home of someone" / "my | base\nmodel"
    base.mkdir(parents=True)
    trained = adapter(str(base), None)
    beside = Beside("FROM x", "FROM ./base", why={"grammar.gbnf": "no grammar"})
    card, guide = (
        model_card(chat(), trained, REPORT, beside, version="v1"),
        run_guide(chat(), trained, beside, version="v1"),
    )
    public = json.dumps(public_manifest(trained))
    for text in (card, guide, public):
        assert "home of someone" not in text
        assert str(tmp_path) not in text
    assert "base_model" not in front(card)
    assert dict(tables(card)[0])["base model"] == "my \\| base model (a local folder)"
    assert "`./base` stands for my | base model, the model it was trained on." in guide
    assert base_name(str(base)) == "my | base model"
    ours = model_card(chat(), adapter(BUNDLED_CHAT, None), REPORT, beside, version="v1")
    assert "(comes with Freshet)" in ours


def test_why_an_adapter_is_not_there_names_no_path_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a converter refuses it says with the folders that it worked in."""
    base, folder = tmp_path / "cache" / "base", tmp_path / "exports" / ".scratch"
    trained = Artifact(tmp_path / "adapters" / "one", adapter().manifest | {"use_case": "shop"})

    def refuse(adapter: Path, base: Path, output: Path, **_: Any) -> None:
        raise ExportError(f"{adapter} on {base} cannot be {output}: odd tensors")

    monkeypatch.setattr(export_module, "adapter_to_gguf", refuse)
    found = export_module._adapter_alone(trained, base, {}, folder, no_progress)
    text = model_card(chat(adapter_gguf=found), trained, REPORT, Beside("FROM x"), version="v1")
    assert str(tmp_path) not in text
    assert "- The adapter alone is not here as GGUF: " in text
    assert "odd tensors" in text


@pytest.mark.parametrize(
    "system", ["```\n# not a heading\n```", "````` five", "---\nlicense: mit\n---", "| a | b |", "ends with `", "\n\n"]
)
def test_a_system_text_cannot_leave_its_code_block(system: str) -> None:
    text = model_card(chat(system=system), adapter(), REPORT, Beside(None), version="v1")
    assert ("text", system) in blocks(text)
    assert front(text)["license"] == "apache-2.0"


def test_labels_of_all_kinds_stay_on_their_line(tmp_path: Path) -> None:
    labels = ["a|b", "`code`", "two\nlines", "*bold*", "🦙", "``", "plain"]
    text = model_card(
        classifier(tmp_path, categories=labels, multi_label=True), adapter(), REPORT, Beside("FROM x"), version="v1"
    )
    assert "Assigns any number of 7 labels to a text of up to 48 tokens" in text
    shown = "`a|b`, `` `code` ``, `two\\nlines`, `*bold*`, `🦙`, ``` `` ```, `plain`"
    assert f"\nLabels: {shown}\n" in text
    assert "logits divided by 1.234, before" in text
    assert "- Hangul is composed first." in text


def test_the_card_says_what_is_not_there_and_why() -> None:
    """G4, G11"""
    found = chat(adapter_gguf={"refused": "the adapter cannot be a GGUF adapter: DoRA"}, warnings=[])
    beside = Beside(None, why={"Modelfile": "the chat template\nwrites the date.", "grammar.gbnf": "regex has none"})
    text = model_card(found, adapter(), REPORT, beside, version="v1")
    assert "- There is no `Modelfile`: the chat template writes the date.\n" in text
    assert "- There is no `grammar.gbnf`: regex has none.\n" in text
    assert "- The adapter alone is not here as GGUF: the adapter cannot be a GGUF adapter: DoRA\n" in text
    guide = run_guide(found, adapter(), beside, version="v1")
    assert "Ollama cannot run it as it was trained: the chat template writes the date.\n" in guide
    assert "ollama create" not in guide
    assert "--grammar-file" not in guide


def test_the_commands_for_a_chat_model_say_what_it_was_measured_with() -> None:
    """T12, G9, G12"""
    system = 'Say "yes", or\n`no` in 日本語.'
    prompt = PromptSettings(system=system, answer_format={"json_schema": {"enum": ["a"]}})  # type: ignore[arg-type]
    found = chat("no", prompt=prompt.model_dump(mode="json"), stops=["<|im_end|>", '"'])
    beside = Beside("FROM x", "FROM ./base", grammar="root ::= x", answer_schema="{}")
    guide = run_guide(found, adapter(), beside, version="v2")
    parts = blocks(guide)
    commands = [shlex.split(text) for language, text in parts if language == "sh"]
    assert commands[0] == [
        "llama-server", "-m", "./no-Q8_0.gguf", "--jinja", "-c", "768", "-n", "96", "--temp", "0", "--grammar-file",
        "grammar.gbnf",
    ]  # fmt: skip
    assert commands[1] == ["ollama", "create", "no", "-f", "Modelfile", "&&", "ollama", "run", "no"]
    assert "`ollama create no -f Modelfile.adapter`" in guide
    (body,) = [json.loads(text) for language, text in parts if language == "json"]
    assert body["messages"][0] == {"role": "system", "content": system}
    (code,) = [ast.parse(text) for language, text in parts if language == "python"]
    constants = [node.value for node in ast.walk(code) if isinstance(node, ast.Constant)]
    for value in (system, "<|im_end|>", '"', "owner/chat-base", "abc123", 96):
        assert value in constants, value


def test_the_commands_for_a_classifier_name_the_served_file(tmp_path: Path) -> None:
    parts = blocks(run_guide(classifier(tmp_path, "no"), adapter(), Beside("FROM x"), version="v1"))
    for language, text in parts:
        if language == "python":
            ast.parse(text)
    (command,) = [shlex.split(text) for language, text in parts if language == "sh"]
    assert command[:3] == ["llama-embedding", "-m", "./no-Q8_0.gguf"]


def test_equal_manifests_give_equal_cards(tmp_path: Path) -> None:
    once, again = (
        model_card(classifier(tmp_path), adapter(), REPORT, Beside("FROM x"), version="v1") for _ in range(2)
    )
    assert once == again
    assert once.endswith("\n")
    assert not re.search(r"\bNone\b|\bnan\b", once)
