"""Chat templates as Go templates: equal prompts, or a refusal that says why."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from pipelines.errors import ExportError
from pipelines.prompt import Message
from pipelines.release.gotemplate import CONTENTS, REASONING, GoTemplate, Render, evaluate, go_string, go_template
from tests.pipelines.chat_base import make_tokenizer
from tests.pipelines.release.chat_templates import (
    CHATML,
    DATED,
    DEEPSEEK_R1,
    FAMILIES,
    GEMMA,
    LLAMA_3,
    MISTRAL_SYSTEM_LAST,
    QWEN_3,
)

BOS = "<s>"
ENDLESS = "{% for m in messages %}{{ m.role + ': ' + MORE + '\n' }}{% endfor %}{{ 'assistant: ' }}"
"""Turns one below the other; MORE stands for what is done with their text."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(special=(BOS, "</s>", "<unk>"), bos_token=BOS, eos_token="</s>")


def rendering(tokenizer: Any, template: str) -> Render:
    """transformers' own rendering of ``template``."""

    def render(chat: Sequence[Message], generate: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in chat]
        return str(
            tokenizer.apply_chat_template(
                turns, chat_template=template, tokenize=False, add_generation_prompt=generate, strftime_now=None
            )
        )

    return render


def made(tokenizer: Any, template: str, **given: Any) -> tuple[Render, GoTemplate]:
    render = rendering(tokenizer, template)
    return render, go_template(render, bos=BOS if "bos_token" in template else None, **given)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_go_template_makes_the_prompts_of_chats_that_it_was_not_proved_on(
    tokenizer: Any, family: str
) -> None:
    """T10, G11: contents drawn at random, with what means something in Jinja, Go or the template itself."""
    render, found = made(tokenizer, FAMILIES[family])
    bos = BOS if "bos_token" in FAMILIES[family] else ""
    rng = random.Random(family)
    pieces = (
        "{{",
        "}}",
        ".Content",
        "{%",
        "%}",
        "\n",
        " a ",
        "{{ end }}",
        '"',
        "\\",
        "`",
        "é🦙",
        "<|user|>",
        "<think>",
        "</think>",
        "[INST]",
        "0",
    )
    for turns in range(1, 6):
        for system in (False, True)[: 1 + found.takes_system]:
            said = ["x".join(rng.choices(pieces, k=5)) for _ in range(2 * turns)]
            if not found.keeps_space:
                said = [text.strip() for text in said]
            chat = [Message(("user", "assistant")[place % 2], text) for place, text in enumerate(said[:-1])]
            chat = [Message("system", f"s{said[-1]}"), *chat] if system else chat
            assert bos + evaluate(found.text, chat) == render(chat, True)


def test_the_go_templates_of_known_families_are_as_people_write_them(tokenizer: Any) -> None:
    """G11"""
    _, chatml = made(tokenizer, CHATML)
    assert chatml.text == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ range .Messages }}"
        '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
        "<|im_start|>assistant\n"
    )
    _, gemma = made(tokenizer, GEMMA)
    assert gemma.text == (
        '{{ range .Messages }}{{ if eq .Role "user" }}<start_of_turn>user\n{{ .Content }}<end_of_turn>\n'
        '{{ else if eq .Role "assistant" }}<start_of_turn>model\n{{ .Content }}<end_of_turn>\n{{ end }}{{ end }}'
        "<start_of_turn>model\n"
    )
    _, qwen = made(tokenizer, FAMILIES["Qwen"])
    assert '{{ else }}<|im_start|>system\nYou are a helpful "assistant".<|im_end|>\n{{ end }}{{ range' in qwen.text


@pytest.mark.parametrize(
    ("family", "takes_system", "keeps_space"),
    [
        ("ChatML", True, True), ("Qwen", True, True), ("Llama 2", True, False), ("Llama 3", True, False),
        ("Zephyr", True, True), ("Gemma", False, False), ("Gemma 3", True, False), ("Alpaca", True, True),
    ],
)  # fmt: skip
def test_it_is_known_whether_a_family_takes_a_system_text_and_keeps_space(
    tokenizer: Any, family: str, takes_system: bool, keeps_space: bool
) -> None:
    _, found = made(tokenizer, FAMILIES[family])
    assert (found.takes_system, found.keeps_space) == (takes_system, keeps_space)
    assert found.chats == 3 * (len(CONTENTS) + len(REASONING)) * (1 + takes_system)


def test_bos_is_written_once_whoever_writes_it(tokenizer: Any) -> None:
    """G8"""
    render = rendering(tokenizer, LLAMA_3)
    chat = [Message("user", "a")]
    assert not go_template(render, bos=BOS).text.startswith(BOS)
    alone = go_template(render, bos=None)
    assert evaluate(alone.text, chat) == render(chat, True)
    assert evaluate(alone.text, chat).count(BOS) == 1
    with pytest.raises(ExportError, match="readers of the GGUF file put '<s>' before every prompt"):
        go_template(rendering(tokenizer, CHATML), bos=BOS)


@pytest.mark.parametrize(
    ("template", "system", "said"),
    [
        (MISTRAL_SYSTEM_LAST, "Be kind.", "around turns that follow a system text|not write the turns system"),
        (GEMMA, "Be kind.", r"refuses the turns system, user.*System role not supported"),
        (DATED, "", "or writes the date"),
        (ENDLESS.replace("MORE", "m.content | upper"), "", "does not write the turns user, assistant"),
        (ENDLESS.replace("MORE", "m.content | replace('\n', ' ')"), "", "does more with a turn's text than to write"),
        (ENDLESS.replace("MORE", "m.content | e"), "", "does more with a turn's text than to write"),
        (ENDLESS.replace("MORE", "loop.index | string + m.content"), "", "other text around later turns"),
        (ENDLESS.replace("MORE", "m.content + m.content"), "", "each once"),
        (ENDLESS.replace("MORE", "m.content[:3]"), "", "does not write the turns"),
        (ENDLESS.replace("in messages", "in messages[-1:]").replace("MORE", "m.content"), "", "does not write"),
        ("{{ messages | length }}" + ENDLESS.replace("MORE", "m.content"), "", "around a single turn than around"),
        (ENDLESS.replace("MORE", "raise_exception('never')"), "", "refuses the turns user.*never"),
        (ENDLESS.replace("in messages", "in messages | reverse").replace("MORE", "m.content"), "", "in this order"),
    ],
    ids=range(13),
)
def test_a_template_that_no_go_template_can_equal_is_refused_with_the_reason(
    tokenizer: Any, template: str, system: str, said: str
) -> None:
    """G11: nothing is guessed."""
    with pytest.raises(ExportError, match=f"(?s){said}"):
        made(tokenizer, template, system=system)


THOUGHT = "<think>\nIs 12 even? Yes.\n</think>\n\n12."


@pytest.mark.parametrize("template", [QWEN_3, DEEPSEEK_R1], ids=["Qwen 3", "DeepSeek R1"])
def test_a_template_that_takes_reasoning_out_of_earlier_answers_is_known_to_be_equal_without_any(
    tokenizer: Any, template: str
) -> None:
    """T10, G11: a Go template has nothing to cut a text with, and Ollama would show the model its old thoughts."""
    render, found = made(tokenizer, template)
    asked = [Message("user", "Is it 10 or 12?"), Message("assistant", THOUGHT), Message("user", "Sure?")]
    assert "even" not in render(asked, True)
    assert "12." in render(asked, True)
    assert not found.keeps_reasoning
    assert found.chats == 3 * len(CONTENTS) * (1 + found.takes_system)
    asked[1] = Message("assistant", "12.")
    assert evaluate(found.text, asked).removeprefix(BOS) == render(asked, True).removeprefix(BOS)


@pytest.mark.parametrize(
    ("begins", "ends"),
    [
        ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"),
        ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("<|channel>thought", "<channel|>"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["every answer", "all but the last answer", "the first answer"])
def test_reasoning_is_looked_for_as_families_mark_it_and_wherever_it_is_taken_out(
    tokenizer: Any, begins: str, ends: str, where: str
) -> None:
    """T10"""
    of = {"every answer": "true", "all but the last answer": "not loop.last", "the first answer": "loop.index0 < 3"}
    cut = f"(m.content.split({ends!r})[-1] if m.role == 'assistant' and {of[where]} else m.content)"
    opened = cut.replace(f"split({ends!r})[-1]", f"replace({begins!r}, '')")
    for taken in (cut, opened):
        assert not made(tokenizer, ENDLESS.replace("MORE", taken))[1].keeps_reasoning


@pytest.mark.parametrize("family", FAMILIES)
def test_reasoning_stays_where_the_original_leaves_it(tokenizer: Any, family: str) -> None:
    render, found = made(tokenizer, FAMILIES[family])
    assert found.keeps_reasoning
    asked = [Message("user", THOUGHT), Message("assistant", THOUGHT), Message("user", "Sure?")]
    bos = BOS if "bos_token" in FAMILIES[family] else ""
    assert bos + evaluate(found.text, asked) == render(asked, True)
    assert render(asked, True).count("Is 12 even?") == 2


def test_a_use_case_without_a_system_text_may_have_a_template_that_refuses_one(tokenizer: Any) -> None:
    render, found = made(tokenizer, GEMMA)
    chat = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    assert BOS + evaluate(found.text, chat) == render(chat, True)
    assert ".System" not in found.text


@pytest.mark.parametrize(
    ("family", "system", "shown"),
    [("ChatML", " two\nlines \n", " two\nlines \n"), ("Llama 3", " two\nlines \n", "two\nlines")],
)
def test_a_system_text_is_what_the_model_saw_of_it(tokenizer: Any, family: str, system: str, shown: str) -> None:
    render, found = made(tokenizer, FAMILIES[family], system=system)
    assert found.system == shown
    wanted = render([Message("system", system), Message("user", "a")], True)
    bos = BOS if "bos_token" in FAMILIES[family] else ""
    assert bos + evaluate(found.text, [Message("system", found.system), Message("user", "a")]) == wanted


@pytest.mark.parametrize("family", ["ChatML", "Qwen", "Llama 2", "Llama 3", "Zephyr", "Gemma 3", "Alpaca"])
@pytest.mark.parametrize("system", ['quotes """\nand {{ .Messages }}', "👩🏽‍💻 \u00a0 {", 'ends with "'])
def test_a_system_text_inside_the_template_stands_where_a_chat_brings_none(
    tokenizer: Any, family: str, system: str
) -> None:
    render, found = made(tokenizer, FAMILIES[family], system=system, own_system=True)
    bos = BOS if "bos_token" in FAMILIES[family] else ""
    asked = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    assert bos + evaluate(found.text, asked) == render([Message("system", system), *asked], True)
    other = [Message("system", "another"), *asked]
    assert bos + evaluate(found.text, other) == render(other, True)
    assert '"""' not in found.text


@pytest.mark.parametrize(
    "odd",
    ["{{ x }}", "{{", "a {", '"""', 'a "', "\u200b", "\r\n", "\\ \t🦙", "{{/* x */}}", '{{ "\\" }} """ {"\u200b{'],
)
def test_what_a_template_writes_in_braces_and_quotes_is_text_in_go_too(tokenizer: Any, odd: str) -> None:
    """And nothing that a Modelfile's triple quotes could not hold."""
    template = "{% for m in messages %}{{ m.role + ODD + m.content + ODD }}{% endfor %}{{ ODD }}"
    render = rendering(tokenizer, template.replace("ODD", repr(odd)))
    found = go_template(render, bos=None)
    assert '"""' not in found.text
    assert not found.text.endswith('"')
    assert all(character.isprintable() or character in "\n\t" for character in found.text)
    chat = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    assert render(chat, True) == f"user{odd}a{odd}assistant{odd}b{odd}user{odd}c{odd}{odd}"
    assert evaluate(found.text, chat) == render(chat, True)


def test_a_go_string_is_ascii_and_escaped_as_go_reads_it() -> None:
    assert go_string('a"b\\c\n\té🦙\x00{{') == r'"a\"b\\c\n\u0009\u00e9\U0001f999\u0000{{"'


def test_turns_are_put_together_as_ollama_does() -> None:
    """By hand: Go's text/template and Ollama's collation of roles."""
    template = (
        '{{ if .System }}[{{ .System }}]{{ else }}none{{ end }}{{ "{{" }}{{ range .Messages }}{{ if eq .Role "user" }}'
        'u:{{ .Content }};{{ else if eq .Role "assistant" }}a:{{ .Content }};{{ end }}{{ end }}.'
    )
    chat = [
        Message("system", "one"), Message("user", "a"), Message("user", "b"), Message("system", "two"),
        Message("assistant", "{{ .System }}"),
    ]  # fmt: skip
    assert evaluate(template, chat) == "[one\n\ntwo]{{u:a\n\nb;a:{{ .System }};."
    assert evaluate(template, [Message("user", "")]) == "none{{u:;."


@pytest.mark.parametrize(
    "template",
    [
        "{{ .Prompt }}", "{{- .System }}", "{{ range .Messages }}", "{{ end }}", "{{ if .System }}a", "{{ .Content }}",
        "{{ if eq .Role `user` }}{{ end }}", '{{ range .Messages }}{{ if eq .Role "a" }}{{ else }}', "{{ .System",
    ],
)  # fmt: skip
def test_a_go_template_that_was_not_written_here_is_not_guessed_at(template: str) -> None:
    with pytest.raises(ExportError, match="the Go template"):
        evaluate(template, [Message("user", "a")])


def test_a_proof_does_not_pass_over_a_template_that_changes_rare_texts_only(tokenizer: Any) -> None:
    """T10: each text of the proof's chats matters, in each turn of a chat."""
    for content in CONTENTS:
        for role in ("user", "assistant", "system"):
            condition = f"m.role == {role!r} and m.content == {content!r}"
            wrong = ENDLESS.replace("MORE", f"('' if {condition} else m.content)")
            with pytest.raises(ExportError, match="does more with a turn's text"):
                made(tokenizer, wrong)
