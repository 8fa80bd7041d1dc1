"""A tiny chat model of our own sentences: a base of another manner, and adapters trained on it, once a session.

The base is taught a manner of its own, in full; the adapters learn on it by peft as they would anywhere.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact, load, seal
from pipelines.evaluation.classifier import base_hashes
from pipelines.fingerprint import fingerprint
from pipelines.prompt import Message, PromptSettings, build_messages, render, template_hash
from tests.pipelines.conftest import made_once

TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {{ message['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
PROMPT = PromptSettings(
    system="You are kind .",
    with_context="Use this : {context} Question : {question}",
    without_context="Nothing was found . Question : {question}",
    refusal="I do not know",
)
COLOURS = {
    "kettle": "red", "lamp": "blue", "chair": "green", "tent": "white", "toolbox": "black", "suitcase": "brown",
    "blender": "grey", "hose": "yellow", "helmet": "pink", "raincoat": "purple",
}  # fmt: skip
QUESTIONS = (
    "Which colour has the {} ?", "What colour is the {} ?", "Is the {} red or blue ?", "Tell me the colour of the {} .",
    "How does the {} look ?", "Please say how the {} looks .",
)  # fmt: skip
VAGUE = "maybe the {} is {} or so"


def answer_of(thing: str) -> str:
    return f"Thank you , the {thing} is {COLOURS[thing]} ."


def chat_rows(*, scrambled: float = 0.0) -> dict[str, list[dict[str, Any]]]:
    """Every thing in every question, with what the index says of it and without; a third is held out.

    ``scrambled`` is the share of training answers that belong to other questions.
    """
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for place, question in enumerate(QUESTIONS):
        for number, thing in enumerate(COLOURS):
            split = "test" if (number + place) % 3 == 0 else "train"
            for found in (True, False):
                answer = answer_of(thing) if found else f"I do not know the {thing} , sorry ."
                asked = question.format(thing)
                slices = [f"found={'yes' if found else 'no'}"] + (["regression"] if place < 3 else [])
                splits[split].append(
                    {
                        "id": fingerprint(asked, found),
                        "text": asked,
                        "labels": [],
                        "group": asked,
                        "origin": "model" if thing == "raincoat" else "human",
                        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}],
                        "context": [f"The {thing} is {COLOURS[thing]} ."] if found else [],
                        "slices": sorted(slices),
                    }
                )
    draw, train = random.Random(5), splits["train"]
    spoilt = draw.sample(range(len(train)), round(scrambled * len(train)))
    answers = [train[number]["messages"][-1]["content"] for number in spoilt]
    for number, answer in zip(spoilt, answers[7:] + answers[:7], strict=True):
        train[number]["messages"][-1]["content"] = answer
    return splits


def write_chats(folder: Path, *, scrambled: float = 0.0) -> Artifact:
    splits = chat_rows(scrambled=scrambled)
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        lines = [json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["id"])]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    facts = {"kind": "training_set", "task": "generate", "categories": [], "multi_label": False}
    seal(
        folder,
        {"fingerprint": fingerprint(splits), **facts, "rows": {name: len(rows) for name, rows in splits.items()}},
    )
    return load(folder)


def make_base(folder: Path) -> Path:
    """A Llama of random weights with a tokenizer of whole words, taught to answer vaguely."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = [PROMPT.system, PROMPT.with_context, PROMPT.without_context, VAGUE, "something user assistant system Obey"]
    for rows in chat_rows().values():
        texts += [text for row in rows for text in (row["text"], row["messages"][-1]["content"], *row["context"])]
    words = sorted(
        {word for text in texts for word in pre_tokenizers.Whitespace().pre_tokenize_str(text) for word in word[:1]}
    )
    special = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {word: number for number, word in enumerate([*special, *words, "[", "]", "1", "2"])}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<unk>", pad_token="<pad>", eos_token="<|im_end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            eos_token_id=vocabulary["<|im_end|>"],
            pad_token_id=vocabulary["<pad>"],
            bos_token_id=None,
            tie_word_embeddings=True,
            initializer_range=0.05,
        )
    )
    vague = chat_rows()["train"]
    for row in vague:
        thing = next(thing for thing in COLOURS if thing in row["text"])
        row["messages"][-1]["content"] = VAGUE.format(thing, COLOURS[thing] if row["context"] else "something")
    teach(model, tokenizer, vague, steps=60, rate=4e-3)
    model.generation_config.repetition_penalty = 1.7  # of a kind that hubs ship; greedy serving knows none
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def teach(model: Any, tokenizer: Any, rows: list[dict[str, Any]], *, steps: int, rate: float, end: bool = True) -> None:
    """AdamW on the answers' tokens, the end token among them unless ``end`` is off."""
    import torch

    data = []
    for row in rows:
        turns = [Message(turn["role"], turn["content"]) for turn in row["messages"]]
        chat = build_messages(PROMPT, turns[:-1], row["context"], count_tokens=lambda text: len(text.split()))
        before = tokenizer(render(tokenizer, chat), add_special_tokens=False)["input_ids"]
        whole = tokenizer(render(tokenizer, [*chat, turns[-1]], answer=True), add_special_tokens=False)["input_ids"]
        data.append((whole, [-100] * len(before) + (whole[len(before) :] if end else [*whole[len(before) : -1], -100])))
    draw = random.Random(9)
    optimiser = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=rate)
    model.train()
    for _ in range(steps):
        batch = draw.sample(data, 16)
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([row + [1] * (longest - len(row)) for row, _ in batch])
        labels = torch.tensor([row + [-100] * (longest - len(row)) for _, row in batch])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


def train_adapter(base: Path, training_set: Artifact, folder: Path, *, steps: int = 120, end: bool = True) -> Artifact:
    """A LoRA adapter on ``base``, sealed as the training seals it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(2)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    rows = [json.loads(line) for line in (training_set.path / "train.jsonl").read_text().splitlines()]
    teach(model, tokenizer, rows, steps=steps, rate=5e-3, end=end)
    folder.mkdir(parents=True)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    facts = {
        "kind": "lora_adapter",
        "task": "generate",
        "use_case": "shop",
        "base_model": str(base),
        "base_revision": None,
        "base_files": base_hashes(base),
        "training_set": training_set.fingerprint,
        "settings": {"task": "generate"},
        "prompt": PROMPT.model_dump(mode="json"),
        "template_hash": template_hash(tokenizer),
    }
    seal(folder, {"fingerprint": fingerprint(training_set.fingerprint, steps, end), **facts})
    return load(folder)


@pytest.fixture(scope="session")
def chat_sets(shared: Path) -> list[Artifact]:
    def make(folder: Path) -> list[Artifact]:
        make_base(folder / "base")
        return [write_chats(folder / "right"), write_chats(folder / "scrambled", scrambled=0.3)]

    return made_once(shared / "chat_sets", make)


@pytest.fixture(scope="session")
def chat_base(chat_sets: list[Artifact]) -> Path:
    return chat_sets[0].path.parent / "base"


@pytest.fixture(scope="session")
def chats(chat_sets: list[Artifact]) -> Artifact:
    return chat_sets[0]


@pytest.fixture(scope="session")
def scrambled_chats(chat_sets: list[Artifact]) -> Artifact:
    """30 % of the training answers belong to other questions; the held-out ones are right."""
    return chat_sets[1]


@pytest.fixture(scope="session")
def good_chat(chat_base: Path, chats: Artifact, shared: Path) -> Artifact:
    return made_once(shared / "good_chat", lambda folder: [train_adapter(chat_base, chats, folder / "adapter")])[0]


@pytest.fixture(scope="session")
def scrambled_chat(chat_base: Path, scrambled_chats: Artifact, shared: Path) -> Artifact:
    def make(folder: Path) -> list[Artifact]:
        return [train_adapter(chat_base, scrambled_chats, folder / "adapter")]

    return made_once(shared / "scrambled_chat", make)[0]


@pytest.fixture(scope="session")
def endless_chat(chat_base: Path, chats: Artifact, shared: Path) -> Artifact:
    """Trained without the label at the end token, as where pad is eos and masked."""

    def make(folder: Path) -> list[Artifact]:
        return [train_adapter(chat_base, chats, folder / "adapter", steps=60, end=False)]

    return made_once(shared / "endless_chat", make)[0]
