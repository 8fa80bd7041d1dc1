"""A tiny Llama with random weights and a tokenizer of its own, and chats that it can learn, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.artifacts import Artifact, load, seal
from pipelines.fingerprint import fingerprint

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML: the end-of-turn token is neither the padding nor the end of a text."""

THINGS = {
    "kettle": "red", "lamp": "blue", "chair": "green", "tent": "white", "toolbox": "black", "suitcase": "brown",
    "blender": "grey", "hose": "yellow", "helmet": "pink", "raincoat": "purple",
}  # fmt: skip
QUESTIONS = (
    "Which colour has the {} ?", "What colour is the {} ?", "Is the {} red or blue ?", "Tell me the colour of the {} .",
    "How does the {} look ?", "Please say how the {} looks .", "Can you tell me which colour the {} has ?",
    "I forgot the colour of the {} , which one is it ?",
)  # fmt: skip


def answer_of(thing: str) -> str:
    return f"Thank you for asking : the {thing} is {THINGS[thing]} ."


def make_tokenizer(*, vocabulary: int = 512, special: tuple[str, ...] = SPECIAL, **names: Any) -> Any:
    """Byte-level BPE with digits one by one, as llama.cpp's converter knows it; ``names`` are of its special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [question.format(thing) + " " + answer_of(thing) for question in QUESTIONS for thing in THINGS]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [*texts, "system user assistant context question information found"],
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    names = names or {"bos_token": special[0], "eos_token": special[2], "pad_token": special[3]}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, model_max_length=512, **names
    )
    fast.add_special_tokens({"additional_special_tokens": [token for token in special if token not in names.values()]})
    fast.chat_template = TEMPLATE
    return fast


def make_chat_base(
    folder: Path, *, hidden: int = 64, layers: int = 2, vocabulary: int = 512, seed: int = 0, tokenizer: Any = None
) -> Path:
    """A Llama with random weights and its tokenizer, as safetensors in ``folder``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or make_tokenizer(vocabulary=vocabulary)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=max(vocabulary, len(tokenizer)),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat_rows(*, context: bool = False, turns: int = 1) -> dict[str, list[dict[str, Any]]]:
    """Every thing in every question; of ten, two are held out and one validates.

    Args:
        context: half of the rows have something retrieved, the others nothing, and their answer is a refusal.
        turns: questions and answers in a chat.
    """
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for place, question in enumerate(QUESTIONS):
        for number, thing in enumerate(THINGS):
            messages = []
            for turn in range(turns):
                asked = QUESTIONS[(place + turn) % len(QUESTIONS)].format(thing)
                messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer_of(thing)}]
            found = [f"The {thing} is {THINGS[thing]} ."] if number % 2 else []
            if context and not found:
                messages[-1]["content"] = f"I do not know the colour of the {thing} ."
            split = {0: "test", 1: "test", 2: "validation"}.get((number + 3 * place) % 10, "train")
            splits[split].append(
                {
                    "id": fingerprint(question, thing, turns),
                    "text": question.format(thing),
                    "labels": [],
                    "group": f"{place}-{thing}",
                    "origin": "human",
                    "messages": messages,
                    "context": found if context else None,
                    "slices": [],
                }
            )
    return splits


def write_chat_set(
    folder: Path,
    rows: dict[str, list[dict[str, Any]]] | None = None,
    *,
    context: bool = False,
    turns: int = 1,
) -> Artifact:
    """A sealed training set of task generate: ``rows`` by split, or those of ``chat_rows``."""
    splits = chat_rows(context=context, turns=turns) if rows is None else rows
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        lines = [json.dumps(row) + "\n" for row in sorted(splits.get(split, []), key=lambda row: row["id"])]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    facts = {"kind": "training_set", "task": "generate", "categories": [], "multi_label": False}
    counts = {split: len(splits.get(split, [])) for split in ("train", "validation", "test")}
    seal(folder, {"fingerprint": fingerprint(splits), **facts, "rows": counts})
    return load(folder)
