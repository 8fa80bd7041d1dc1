"""Fine-tuning a causal language model on chats with LoRA, by peft and transformers' Trainer.

peft makes, trains and saves the adapters. TRL's ``SFTTrainer`` (1.16) is what the tests and ``benchmarks.generation``
compare with, and reaches the same loss in the same steps; training itself is not built on it, for

- its mask of answers needs a chat template with ``{% generation %}``, or swaps in one that it knows: a model would be
  trained with another template than it is served with; and it cuts what is too long;
- it packs to rows of ``max_length`` tokens before the training: how many chats a step takes then depends on their
  lengths, and without flash attention each row's mask is computed in full. Here a step is ``batch_size`` chats, taken
  to pieces by memory alone, and on a CPU attention runs chat by chat: several times as fast there;
- of its own ``Trainer`` nothing would be left but the arguments.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.artifacts import Artifact
from pipelines.environment import available_cores
from pipelines.errors import ConfigError, ExamplesError
from pipelines.labels.examples import Example
from pipelines.prompt import PromptSettings, build_messages, fullest_prompt, render, template_hash
from pipelines.training.chats import EncodedChat, encode_chats
from pipelines.training.dataset import rows_to_fit
from pipelines.training.lora import bf16_is_faster, save, with_adapter
from pipelines.training.memory import TOKENS_AT_ONCE, with_smaller_batches
from pipelines.training.packing import CHAT_BY_CHAT, register, windowed
from pipelines.training.passes import NOT_COUNTED, Passes, flattened
from pipelines.training.processes import add_up_gradients, summed
from pipelines.training.progress import Progress, recorder
from pipelines.training.settings import GenerateSettings
from pipelines.training.trainer import arguments, fit

logger = logging.getLogger(__name__)

ASKED_FOR_ROOM = 64
"""Questions, of which at least one has to fit the base together with all that may be retrieved."""


def fit_chat(
    settings: GenerateSettings,
    prompt: PromptSettings,
    training_set: Artifact,
    base: Path,
    folder: Path,
    work: Path,
    progress: Callable[[Progress], None],
    *,
    refit: bool = False,
) -> dict[str, Any]:
    """Train, write the adapter's files to ``folder``, and return what is particular to it in the manifest.

    The epoch with most of the validation answers' tokens right is kept; of equal ones that of the lowest loss. ``work``
    survives a kill: checkpoints and the progress so far. A ``refit`` trains on the validation chats too, to its end.

    Raises:
        ExamplesError: there is too little to learn from.
        ConfigError: the base has no chat template, one that refuses the chats or does not say where answers end, no
            room for ``prompt.context_tokens``, or no layers of the names to adapt; its quantisation needs what is not
            installed.
        TrainingError: the loss is not finite, training ended early, or not even one chat fits into memory.
    """
    import torch
    from transformers import AutoTokenizer, set_seed

    started = time.monotonic()
    torch.set_num_threads(available_cores())
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    window = _window(base)
    rows, validation_rows = rows_to_fit(training_set, refit=refit)
    _check_room(tokenizer, prompt, rows, window)
    limit = min(settings.maximum_tokens, window)
    chats, left_out = _chats(tokenizer, prompt, rows, limit)
    validation_chats, validation_left_out = _chats(tokenizer, prompt, validation_rows, limit)
    if len(chats) < 2:
        raise ExamplesError(
            f"{training_set.path} has {len(chats)} training chats of at most {limit} tokens, and {left_out} longer "
            "ones; at least 2 are needed: add examples, or raise maximum_tokens up to what the base was made for"
        )
    set_seed(settings.seed)  # before the model: the adapter starts at random
    precision = "bf16" if bf16_is_faster() else "fp32"
    model = with_adapter(_base_model(settings, base, precision, limit), settings, task="CAUSAL_LM")
    passes = Passes(model, bf16=precision == "bf16", pack=settings.packing)
    passes.try_out(chats)
    if settings.save_memory:
        passes.save_memory()
    watch = recorder(progress, work, len(chats), settings.patience)
    trainer = _trainer(
        passes,
        chats,
        validation_chats,
        settings,
        arguments(
            settings,
            work,
            bf16=precision == "bf16",
            validate=bool(validation_chats),
            include_num_input_tokens_seen="all",  # there is no padding in what the Trainer sees
        ),
    )
    state, points = fit(trainer, watch, settings, work), watch.points
    save(model, tokenizer, folder, settings)
    evaluated = {point.epoch: point for point in points if point.validation_loss is not None}
    best = evaluated.get(round(watch.best_epoch, 4)) if watch.best_epoch is not None else None
    return {
        "prompt": prompt.model_dump(mode="json"),
        "template_hash": template_hash(tokenizer),
        "end_of_turn": tokenizer.decode(chats[0].ids[-1:]),
        "effective": {
            "rows": len(chats),
            "validation_rows": len(validation_chats),
            "rows_left_out": left_out,
            "validation_rows_left_out": validation_left_out,
            "maximum_tokens": limit,
            "epochs": state.epoch,
            "best_epoch": watch.best_epoch,
            "steps": state.global_step,
            "stopped_early": watch.stopped_early,
            "tokens": int(state.num_input_tokens_seen),
            "tokens_an_epoch": sum(len(chat.ids) for chat in chats),
            "answer_tokens_an_epoch": sum(chat.answer_tokens for chat in chats),
            "packed": passes.pack,
            "sequences": trainer.sequences,
            "micro_batch_tokens": trainer.room,
            "attention": passes.attention,
            "saves_memory": passes.saves_memory,
            "trained_parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        },
        "loss": {"first": points[0].loss, "last": points[-1].loss},
        "validation": None if best is None else {"loss": best.validation_loss, "token_accuracy": best.validation_score},
        "precision": precision,
        "seconds": round(time.monotonic() - started, 2),
    }


def _count_tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _chats(
    tokenizer: Any, prompt: PromptSettings, rows: Sequence[Example], limit: int
) -> tuple[list[EncodedChat], int]:
    """What is trained on, and how many chats are longer than ``limit`` tokens: these are left out, never cut."""
    count_tokens = partial(_count_tokens, tokenizer)
    chats = [
        [*build_messages(prompt, row.messages[:-1], row.context, count_tokens=count_tokens), row.messages[-1]]
        for row in rows
    ]
    encoded = encode_chats(tokenizer, chats)
    kept = [chat for chat in encoded if len(chat.ids) <= limit]
    return kept, len(encoded) - len(kept)


def _check_room(tokenizer: Any, prompt: PromptSettings, rows: Sequence[Example], window: int) -> None:
    """Served, a question comes with up to ``prompt.context_tokens``: found out at export, the training would be lost.

    Raises:
        ConfigError: with so much retrieved, not one of the first questions leaves an answer any room.
    """
    count_tokens = partial(_count_tokens, tokenizer)
    lengths = []
    for row in [row for row in rows if row.context is not None][:ASKED_FOR_ROOM]:
        turns = build_messages(prompt, row.messages[:-1], row.context, count_tokens=count_tokens)
        lengths.append(fullest_prompt(prompt, render(tokenizer, turns), row.context, count_tokens=count_tokens))
    if lengths and min(lengths) >= window:
        raise ConfigError(
            f"prompt.context_tokens {prompt.context_tokens} makes prompts of {min(lengths)} tokens and more, but the "
            f"base was made for {window}, answer and all: choose fewer, or another base"
        )


def _window(base: Path) -> int:
    """Most tokens that the base was made for."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30


def _base_model(settings: GenerateSettings, base: Path, precision: str, longest: int) -> Any:
    """The base, in bf16, float32 or quantised, with attention that keeps packed chats apart."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.import_utils import is_flash_attn_2_available

    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    chosen: dict[str, Any] = {"dtype": torch.bfloat16 if precision == "bf16" else torch.float32}
    if settings.quantised_base is not None:
        chosen |= {"quantization_config": _quantisation(settings), "device_map": {"": _device()}}
    if torch.cuda.is_available() and precision == "bf16" and is_flash_attn_2_available():
        chosen["attn_implementation"] = "flash_attention_2"
    elif settings.packing and not torch.cuda.is_available() and not windowed(config, longest):
        register()
        chosen["attn_implementation"] = CHAT_BY_CHAT
    model = AutoModelForCausalLM.from_pretrained(
        base, use_safetensors=True, local_files_only=True, trust_remote_code=False, **chosen
    )
    for module in model.modules():
        # bitsandbytes (0.50) rearranges weights on a CPU when it evaluates, and has wrong gradients ever after.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - no attribute that torch's types know
    return model


def _quantisation(settings: GenerateSettings) -> Any:
    """QLoRA (Dettmers et al., 2023, arXiv:2305.14314): normal floats, their scales quantised too; or LLM.int8().

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"quantised_base {settings.quantised_base!r} needs bitsandbytes: pip install 'freshet[gpu]', or leave "
            "quantised_base out where memory suffices"
        )
    if settings.quantised_base == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16_is_faster() else torch.float32,
    )


def _device() -> str:
    """Where this process trains."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _trainer(
    passes: Passes,
    chats: Sequence[EncodedChat],
    validation_chats: Sequence[EncodedChat],
    settings: GenerateSettings,
    training_arguments: Any,
) -> Any:
    """A Trainer whose batch is an optimiser step; its chats go through the model some at a time.

    The loss of a step is the mean over all its answer tokens, however it is taken to pieces and on however many
    devices. Its attributes: ``room`` (tokens at once), ``sequences`` (passes through the model).
    """
    import torch
    from transformers import Trainer

    class ChatTrainer(Trainer):
        room: int
        sequences = 0

        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(
                chats,  # type: ignore[arg-type]  # a list will do
                batch_sampler=Steps(len(chats), settings.batch_size, seed=settings.seed),
                collate_fn=share,
                pin_memory=torch.cuda.is_available(),
            )

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:  # noqa: ARG002
            model.train()
            inputs = self._prepare_inputs(inputs)
            counted = summed((inputs["labels"] != NOT_COUNTED).sum())

            def step(room: int) -> Any:
                if room < max(inputs["lengths"].tolist(), default=0) and not passes.saves_memory:
                    passes.save_memory()  # a chat alone is too much
                self.room = room
                passes.model.zero_grad()  # of a try that ran out of memory
                done, loss = 0, torch.zeros((), device=self.args.device)
                for part, _ in passes.losses(inputs, room):
                    self.accelerator.backward(part / counted)
                    loss += part.detach()
                    done += 1
                self.sequences += done
                return loss / counted

            loss = with_smaller_batches(step, self.room, logger.warning)
            add_up_gradients(passes.model)
            return loss * self.args.world_size  # the Trainer takes the mean over processes

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            passes.model.eval()
            inputs = self._prepare_inputs(share(validation_chats))
            total = torch.zeros(3, dtype=torch.float64, device=self.args.device)
            total[2] = (inputs["labels"] != NOT_COUNTED).sum()
            with torch.no_grad():
                for loss, right in passes.losses(inputs, self.room):
                    total[0] += loss
                    total[1] += right
            loss, right, counted = summed(total).tolist()
            metrics = {"eval_loss": loss / counted, "eval_score": right / counted}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    def share(rows: Sequence[EncodedChat]) -> dict[str, Any]:
        """This process's chats: of each length as many as the others'."""
        longest_first = sorted(rows, key=lambda chat: -len(chat.ids))
        return flattened(longest_first[training_arguments.process_index :: training_arguments.world_size])

    trainer = ChatTrainer(
        model=passes.model,
        args=training_arguments,
        train_dataset=chats,
        eval_dataset=validation_chats or None,
    )
    trainer.room = settings.micro_batch_tokens or TOKENS_AT_ONCE
    return trainer


class Steps:
    """Indices of the chats of each optimiser step, in a new order each epoch, one of the seed and the epoch alone."""

    def __init__(self, rows: int, batch_size: int, *, seed: int) -> None:
        self._rows, self._batch_size, self._seed, self._epoch = rows, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """A resumed training finds the order of its epoch again."""
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self._rows / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        import torch

        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(self._rows, generator=draw).tolist()
        for start in range(0, self._rows, self._batch_size):
            yield order[start : start + self._batch_size]
