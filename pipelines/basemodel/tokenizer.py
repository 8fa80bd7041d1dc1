"""The base model's tokenizer: byte-level BPE with digits one by one, which llama.cpp knows as ``smollm``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.basemodel.language import Draw, chat, practice, prose
from pipelines.prompt import Message

END_OF_TEXT, START_OF_TURN, END_OF_TURN, PADDING = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL = (END_OF_TEXT, START_OF_TURN, END_OF_TURN, PADDING)

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, without anything that a template could do to the turns."""


def train_tokenizer(size: int, *, chats: int = 20_000, seed: int = 0) -> Any:
    """A ``PreTrainedTokenizerFast`` with ``size`` tokens, learnt from the synthetic language."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def texts() -> Any:
        draw = Draw(seed)
        for number in range(chats):
            yield "\n".join(turn.content for turn in chat(draw, texts=3, facts=4, questions=3))
            if number % 10 == 0:
                yield practice(draw, items=8)
                yield prose(draw, texts=3)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TURN,
        unk_token=END_OF_TEXT,
        pad_token=PADDING,
        additional_special_tokens=[START_OF_TURN],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    fast.chat_template = TEMPLATE
    return fast


def encode_chat(tokenizer: Any, turns: list[Message]) -> tuple[list[int], list[bool]]:
    """Token ids of a chat, as its template renders it, and which of them are an answer's (its end token counted)."""
    start, end = tokenizer.convert_tokens_to_ids([START_OF_TURN, END_OF_TURN])
    ids: list[int] = []
    answers: list[bool] = []

    def add(pieces: list[int], *, answer: bool) -> None:
        ids.extend(pieces)
        answers.extend([answer] * len(pieces))

    pieces = tokenizer.backend_tokenizer.encode_batch(
        [text for turn in turns for text in (f"{turn.role}\n", turn.content)], add_special_tokens=False
    )
    newline = tokenizer.backend_tokenizer.encode("\n", add_special_tokens=False).ids
    for number, turn in enumerate(turns):
        answer = turn.role == "assistant"
        add([start, *pieces[2 * number].ids], answer=False)
        add([*pieces[2 * number + 1].ids, end], answer=answer)
        add(newline, answer=False)
    return ids, answers


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Every file that transformers and llama.cpp's converter read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.no_padding()  # a padded call before stays in it, and would stay in the file
    tokenizer.save_pretrained(folder)
