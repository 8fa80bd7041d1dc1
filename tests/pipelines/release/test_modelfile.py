"""Modelfiles: what Ollama reads from them is what the model was trained with."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact
from pipelines.errors import ArtifactError, ExportError
from pipelines.fingerprint import text_hash
from pipelines.prompt import Message
from pipelines.release.gguf import Header
from pipelines.release.gotemplate import evaluate
from pipelines.release.modelfile import adapter_modelfile, modelfile, parsed
from tests.pipelines.chat_base import make_tokenizer
from tests.pipelines.release.chat_templates import CHATML, DATED, FAMILIES, GEMMA, LLAMA_3, MISTRAL_SYSTEM_LAST, QWEN_3

SYSTEM = "You are kind."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter's tokenizer."""
    folder = tmp_path_factory.mktemp("adapter")
    tokenizer().save_pretrained(folder)
    return folder


@cache
def tokenizer() -> Any:
    return make_tokenizer(special=("<s>", "</s>", "<unk>"), bos_token="<s>", eos_token="</s>")


def facts(
    folder: Path,
    template: str,
    *,
    system: str = SYSTEM,
    stops: tuple[str, ...] = ("</s>",),
    base: str = "owner/chat-base",
) -> tuple[Artifact, Artifact, Header]:
    """An export of an adapter with this chat template, as far as Modelfiles are made from it."""
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    digest = text_hash(template)
    gguf: dict[str, Any] = {
        "quantisations": {"Q8_0": {"file": "shop-Q8_0.gguf"}, "F16": {"file": "shop-F16.gguf"}},
        "settings": {"serve": "Q8_0"},
        "template_hash": digest,
        "prompt": {"system": system},
        "stops": list(stops),
        "context_length": 768,
        "maximum_answer_tokens": 96,
        "adapter_gguf": {"file": "shop-adapter-F16.gguf", "size": 1},
    }
    header = Header(
        "Q8_0", {}, (), "llama", (), "NONE", {}, "smollm", {"bos": tokenizer().bos_token_id, "eos": 1},
        "bos_token" in template, False, template, 2048,
    )  # fmt: skip
    adapter = {"base_model": base, "base_revision": "abc123", "template_hash": digest}
    return Artifact(Path("gguf"), gguf), Artifact(folder, adapter), header


def rendered(template: str, chat: list[Message]) -> str:
    turns = [{"role": message.role, "content": message.content} for message in chat]
    return str(
        tokenizer().apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)
    )


def test_everything_is_said_that_ollama_would_guess_otherwise(folder: Path) -> None:
    """G9, G11, G12: read by the rules of Ollama's parser."""
    text = modelfile(*facts(folder, CHATML, stops=("<|im_end|>", "</s>")))
    commands = parsed(text)
    assert [name for name, _ in commands] == [
        "model", "template", "system", "stop", "stop", "num_ctx", "num_predict", "temperature", "repeat_penalty",
    ]  # fmt: skip
    said = dict(commands)
    assert said["model"] == "./shop-Q8_0.gguf"
    assert said["system"] == SYSTEM
    assert [value for name, value in commands if name == "stop"] == ["<|im_end|>", "</s>"]
    numbers = {name: said[name] for name in ("num_ctx", "num_predict", "temperature", "repeat_penalty")}
    assert numbers == {"num_ctx": "768", "num_predict": "96", "temperature": "0", "repeat_penalty": "1"}
    assert str(folder) not in text


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "Gemma"])
def test_the_template_read_back_makes_the_prompts_of_the_family(folder: Path, family: str) -> None:
    """T10, G8: with the system text, as Ollama puts it before a chat that has none."""
    template = FAMILIES[family]
    said = dict(parsed(modelfile(*facts(folder, template))))
    bos = "<s>" if "bos_token" in template else ""
    asked = [Message("user", "Is it 10?"), Message("assistant", "No."), Message("user", "{{ .System }}\n<|user|>")]
    with_system = [Message("system", said["system"]), *asked]
    assert bos + evaluate(said["template"], with_system) == rendered(template, [Message("system", SYSTEM), *asked])


def test_a_model_without_a_system_text_has_no_system_line(folder: Path) -> None:
    text = modelfile(*facts(folder, GEMMA, system="", stops=("<end_of_turn>",)))
    assert "system" not in dict(parsed(text))
    assert "# The chat template knows no system text" in text
    assert "# Space around a turn's text was taken away in training" in text
    assert "# Space around" not in modelfile(*facts(folder, CHATML, system=""))


@pytest.mark.parametrize(
    "system",
    [
        'She said "no".', '"quoted"', '"', '""', '"""', 'a """ b', 'ends with "', '"""\nstarts', "two\nlines\n\n",
        'a"""\nFROM ./other.gguf', '"\nPARAMETER stop x', "# no comment", "FROM a\nSYSTEM b", " spaced ", "\\", "C:\\n",
        "tab\there", "é 한국어 🦙", "\u00a0no break", "👩🏽\u200d💻 joined", "\r\nwindows\r\n", "{{ .System }}", "{{",
        "}}", "{", "bell\x07", "soft\u00adhyphen",
    ],
)  # fmt: skip
@pytest.mark.parametrize("family", ["ChatML", "Llama 3"])
def test_no_system_text_leaves_its_place_in_the_modelfile(folder: Path, family: str, system: str) -> None:
    """It comes back as it was, or stands inside the template; and it never becomes another command."""
    template = FAMILIES[family]
    commands = parsed(modelfile(*facts(folder, template, system=system)))
    said = dict(commands)
    assert {name for name, _ in commands} <= {
        "model", "template", "system", "stop", "num_ctx", "num_predict", "temperature", "repeat_penalty",
    }  # fmt: skip
    assert said["model"] == "./shop-Q8_0.gguf"
    assert [value for name, value in commands if name == "stop"] == ["</s>"]
    asked = Message("user", "Is it 10?")
    chat = [Message("system", said["system"]), asked] if "system" in said else [asked]
    bos = "<s>" if "bos_token" in template else ""
    assert bos + evaluate(said["template"], chat) == rendered(template, [Message("system", system), asked])


@pytest.mark.parametrize("stop", ["<|im_end|>", '"', '"""', "\n", "\n\n", "### User: ", ' "', 'a"\n', "é🦙", "#", ""])
def test_a_stop_text_comes_back_as_it_is(folder: Path, stop: str) -> None:
    """G9"""
    text = modelfile(*facts(folder, CHATML, stops=("</s>", stop)))
    assert [value for name, value in parsed(text) if name == "stop"] == ["</s>", stop]


@pytest.mark.parametrize("stop", ['\n"""\n', "zero\u200bwidth", "\x07"])
def test_a_stop_text_that_ollama_would_read_otherwise_makes_no_modelfile(folder: Path, stop: str) -> None:
    """G9: what is quoted ends at the first line's end behind quotes, and what cannot be printed is dropped."""
    with pytest.raises(ExportError, match="no Modelfile can hold"):
        modelfile(*facts(folder, CHATML, stops=("</s>", stop)))


def test_the_adapter_alone_goes_onto_the_base_that_is_named(folder: Path) -> None:
    """G5"""
    gguf, adapter, header = facts(folder, CHATML)
    text = adapter_modelfile(gguf, adapter, header)
    assert parsed(text)[:2] == [("model", "./base"), ("adapter", "./shop-adapter-F16.gguf")]
    assert parsed(text)[2:] == parsed(modelfile(gguf, adapter, header))[1:]
    assert "owner/chat-base, revision abc123" in text


def test_of_a_local_base_only_its_name_is_said(folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "private place" / "my\nFROM base"
    base.mkdir(parents=True)
    text = adapter_modelfile(*facts(folder, CHATML, base=str(base)))
    assert "private place" not in text
    assert [value for name, value in parsed(text) if name == "model"] == ["./base"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (MISTRAL_SYSTEM_LAST, "around turns that follow a system text|not write the turns system"),
        (GEMMA, "System role not supported"),
        (DATED, "or writes the date"),
        (CHATML.replace("message['content']", "message['content'] | upper"), "does not write the turns"),
    ],
)
def test_a_template_that_ollama_cannot_render_makes_no_modelfile(folder: Path, template: str, said: str) -> None:
    """G11"""
    for write in (modelfile, adapter_modelfile):
        with pytest.raises(ExportError, match=said):
            write(*facts(folder, template))


def test_a_remark_says_where_reasoning_would_stay_in_earlier_answers(folder: Path) -> None:
    """T10, G11"""
    assert "takes reasoning" in modelfile(*facts(folder, QWEN_3))
    assert "takes reasoning" not in modelfile(*facts(folder, CHATML))


def test_a_bos_that_the_file_adds_and_the_template_does_not_makes_no_modelfile(folder: Path) -> None:
    """G8"""
    gguf, adapter, header = facts(folder, CHATML)
    with pytest.raises(ExportError, match="another beginning than it was trained with"):
        modelfile(gguf, adapter, replace(header, add_bos=True))
    gguf, adapter, header = facts(folder, LLAMA_3)
    template = dict(parsed(modelfile(gguf, adapter, header)))["template"]
    assert "<s>" not in template
    assert "<s>" in dict(parsed(modelfile(gguf, adapter, replace(header, add_bos=False))))["template"]


@pytest.mark.parametrize("where", ["header", "gguf", "adapter", "file"])
def test_chat_templates_that_are_not_one_are_refused(folder: Path, where: str) -> None:
    """T10, G10: in the GGUF file, in both manifests and beside the adapter."""
    gguf, adapter, header = facts(folder, CHATML)
    if where == "header":
        header = replace(header, chat_template=CHATML + " ")
    elif where == "file":
        (folder / "chat_template.jinja").write_text(CHATML + " ", encoding="utf-8")
    else:
        changed = gguf if where == "gguf" else adapter
        changed = Artifact(changed.path, {**changed.manifest, "template_hash": "0" * 64})
        gguf, adapter = (changed, adapter) if where == "gguf" else (gguf, changed)
    with pytest.raises(ArtifactError, match="hold other chat templates than their manifests state"):
        modelfile(gguf, adapter, header)


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("from  a b  ", [("model", "a b")]),
        ('FROM a\nSYSTEM """\none\n"two"\n"""  \nPARAMETER top_k 3', [
            ("model", "a"), ("system", '\none\n"two"\n'), ("top_k", "3"),
        ]),
        ("# FROM b\n\tFROM a # no comment\r\n", [("model", "a # no comment")]),
        ('FROM "  a  "\nSYSTEM ""', [("model", "  a  "), ("system", "")]),
        ('FROM a\nSYSTEM say "it"\nlicense \'\'', [("model", "a"), ("system", 'say "it"'), ("license", "''")]),
        ("FROM a\nSYSTEM x\u200by\x07", [("model", "a"), ("system", "xy")]),
        ("", "has no FROM"),
        ("PARAMETER a b", "has no FROM"),
        ("FROM a\nTEMPLAT b", "is no command"),
        ("FROM a\nSYSTEM \"\"\"b\"\"\nPARAMETER c d", "is never closed"),
        ('FROM a\nSYSTEM "', "is never closed"),
        ("FROM a\nPARAMETER top_k\n", "needs a word and a space"),
        ("FROM", "needs a word and a space"),
    ],
)  # fmt: skip
def test_modelfiles_are_read_as_ollama_reads_them(text: str, commands: list[tuple[str, str]] | str) -> None:
    """By the rules of ollama/ollama's parser/parser.go."""
    if isinstance(commands, str):
        with pytest.raises(ExportError, match=commands):
            parsed(text)
    else:
        assert parsed(text) == commands
