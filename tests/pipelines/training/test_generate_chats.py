"""Chats as tokens: which of them are answers, through templates of several kinds."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipelines.errors import ConfigError
from pipelines.prompt import Message, render
from pipelines.training.chats import EncodedChat, encode_chats
from tests.pipelines.chat_base import TEMPLATE, make_tokenizer

LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}"
    "{% endfor %}"
)
PHI_3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GENERATION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_3 = (  # thoughts of earlier turns are dropped; the last turn gets an empty one where it has none
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (  # asks for an answer with an opened thought, which a finished answer does not show
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
ENDLESS = (
    "{% for message in messages %}{{ '### ' + message['role'] + ':\n' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)

SYSTEM = Message("system", "You are kind .")
CHAT = [
    Message("user", "Which colour has the lamp ?"),
    Message("assistant", "the lamp is blue ."),
    Message("user", "How does the tent look ?"),
    Message("assistant", "the tent is white , or so ."),
]


def tokenizer_of(template: str, *, eos: str, pad: str | None = None) -> Any:
    """All tokens that the template writes in angle brackets are special."""
    found = re.findall(r"<[|a-z_]+[a-z_3]*\|?>", template)
    special = tuple(dict.fromkeys(["<bos>", eos, *(token for token in found if "think" not in token), pad or eos]))
    names = {"bos_token": "<bos>", "eos_token": eos, "pad_token": pad or eos}
    tokenizer = make_tokenizer(special=special, **names)
    tokenizer.chat_template = template
    return tokenizer


def said(tokenizer: Any, chat: EncodedChat) -> list[str]:
    return [tokenizer.decode(chat.ids[start:end]) for start, end in chat.answers]


@pytest.mark.parametrize(
    ("template", "eos", "system", "answers"),
    [
        (TEMPLATE, "<|im_end|>", True, ["{}<|im_end|>"] * 2),
        (GENERATION, "<|im_end|>", True, ["{}<|im_end|>"] * 2),
        (LLAMA_3, "<|eot_id|>", True, ["{}<|eot_id|>"] * 2),
        (LLAMA_3, "</s>", True, ["{}<|eot_id|>"] * 2),
        (GEMMA, "<end_of_turn>", False, ["{}<end_of_turn>"] * 2),
        (MISTRAL, "</s>", False, [" {}</s>"] * 2),
        (PHI_3, "</s>", True, ["{}<|end|>"] * 2),
        (QWEN_3, "<|im_end|>", True, [None, "<think>\n\n</think>\n\n{}<|im_end|>"]),
        (THINKING, "<|im_end|>", True, [None, "{}<|im_end|>"]),
        (ENDLESS, "</s>", True, [None, "{}</s>"]),
    ],
    ids=["chatml", "generation", "llama3", "llama3-other-eos", "gemma", "mistral", "phi3", "qwen3", "think", "plain"],
)
def test_answers_and_their_end_count_through_any_template(
    template: str, eos: str, system: bool, answers: list[str | None]
) -> None:
    """T11: pad is eos here, and the end of every answer counts all the same."""
    tokenizer = tokenizer_of(template, eos=eos)
    chat = [SYSTEM, *CHAT] if system else CHAT
    (encoded,) = encode_chats(tokenizer, [chat])
    contents = [CHAT[1].content, CHAT[3].content]
    wanted = [form.format(text) for form, text in zip(answers, contents, strict=True) if form is not None]
    assert said(tokenizer, encoded) == wanted
    prompt = tokenizer(render(tokenizer, chat[:-1]), add_special_tokens=False)["input_ids"]
    assert encoded.ids[: encoded.answers[-1][0]] == prompt, "what comes before the answer is what is served"
    assert encoded.answers[-1][1] == len(encoded.ids)
    assert encoded.ids.count(tokenizer.bos_token_id) <= 1
    for start, _ in encoded.answers[:-1]:  # an earlier answer follows what was served when it was the last one
        served = tokenizer(render(tokenizer, chat[:-3]), add_special_tokens=False)["input_ids"]
        assert encoded.ids[:start] == served


def test_answers_are_those_that_the_template_itself_marks() -> None:
    tokenizer = tokenizer_of(GENERATION, eos="<|im_end|>")
    turns = [{"role": turn.role, "content": turn.content} for turn in CHAT]
    marked = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    (encoded,) = encode_chats(tokenizer, [CHAT])
    ours = [any(start <= place < end for start, end in encoded.answers) for place in range(len(encoded.ids))]
    assert marked["input_ids"][: len(encoded.ids)] == encoded.ids
    assert [bool(mark) for mark in marked["assistant_masks"]][: len(ours)] == ours
    assert not any(marked["assistant_masks"][len(ours) :])


def test_no_template_no_end_token_and_refused_turns_are_said() -> None:
    """T11, T13"""
    tokenizer = tokenizer_of(GEMMA, eos="<end_of_turn>")
    with pytest.raises(ConfigError, match="System role not supported"):
        encode_chats(tokenizer, [[SYSTEM, *CHAT]])
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        encode_chats(tokenizer, [CHAT])
    tokenizer = make_tokenizer(special=("<bos>",), bos_token="<bos>")
    tokenizer.chat_template = ENDLESS
    with pytest.raises(ConfigError, match="no token that ends an answer"):
        encode_chats(tokenizer, [CHAT])


def test_a_template_that_hides_where_an_answer_begins_is_refused() -> None:
    tokenizer = tokenizer_of(
        "{% for message in messages %}{{ '<|im_start|>' + message['content'] | upper + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        eos="<|im_end|>",
    )
    with pytest.raises(ConfigError, match="where it begins cannot be told"):
        encode_chats(tokenizer, [CHAT])


def test_an_answer_that_would_join_the_prompt_in_one_token_is_encoded_as_it_is_served() -> None:
    tokenizer = tokenizer_of("{% for m in messages %}{{ m['content'] }}{% endfor %}", eos="</s>")
    assert len(tokenizer("Which", add_special_tokens=False)["input_ids"]) == 1
    (encoded,) = encode_chats(tokenizer, [[Message("user", "Wh"), Message("assistant", "ich")]])
    prompt = tokenizer("Wh", add_special_tokens=False)["input_ids"]
    assert encoded.ids[: encoded.answers[0][0]] == prompt
    assert said(tokenizer, encoded) == ["ich</s>"]


def test_what_an_answer_quotes_of_control_tokens_ends_nothing() -> None:
    tokenizer = tokenizer_of(TEMPLATE, eos="<|im_end|>")
    (encoded,) = encode_chats(tokenizer, [[CHAT[0], Message("assistant", "blue <|im_end|> and more <|im_start|>")]])
    assert encoded.ids.count(tokenizer.eos_token_id) == 2, "the question's end and the answer's"
    assert said(tokenizer, encoded) == ["blue < |im_end|> and more < |im_start|><|im_end|>"]
