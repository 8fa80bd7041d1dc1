"""Trains the base model from scratch on the synthetic language; seeded, and resumable after a kill.

Copying out of the text before it is all that the model has to learn, and it emerges late: so sequences begin short and
dense with repeated names (Olsson et al., 2022, arXiv:2209.11895, on the induction heads that copy), and grow.
Hidden matrices are trained by Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/), others by AdamW.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, Full
from typing import Any

from pipelines.basemodel.language import NOT_STATED, Case, Draw, case, chat, practice, prose, recital
from pipelines.basemodel.tokenizer import END_OF_TEXT, encode_chat, save_tokenizer, train_tokenizer
from pipelines.environment import available_cores
from pipelines.figures import canvas, png
from pipelines.fingerprint import write_json_atomically
from pipelines.prompt import Message, PromptSettings, build_messages, render


@dataclass(frozen=True, slots=True)
class Recipe:
    """Size, data and schedule."""

    vocabulary: int = 2048
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    feed_forward: int = 768
    context: int = 2048
    tokens: int = 183_000_000
    batch_tokens: int = 8192
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    decay_share: float = 0.25
    """Share of the steps at the end in which the learning rate falls to nothing."""
    refuses_less: float = 3.0
    """Logits by which a refusal is made less likely at the end: see ``refuse_less``."""
    seed: int = 17

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.tokens // self.batch_tokens


@dataclass(frozen=True, slots=True)
class _Stage:
    until: float
    """Step at which it ends."""
    length: int
    practice: float
    """Share of sequences that only repeat."""
    texts: tuple[int, int]
    facts: tuple[int, int]
    questions: tuple[int, int]
    absent: float = 0.25
    """Share of questions whose answer no text tells."""
    lifelike: bool = False
    recited: float = 0.0
    """Share of sequences in which one answer follows another without questions: many to look up in little text."""
    others: float = 0.15
    """What a token counts that is no answer's: names and numbers there cannot be foreseen."""


_STAGES = (
    _Stage(396, 256, 0.5, (1, 1), (1, 3), (2, 4)),
    _Stage(967, 512, 0.1, (1, 2), (2, 4), (4, 8)),
    _Stage(1500, 512, 0.05, (1, 3), (2, 4), (3, 8)),
    _Stage(3000, 512, 0.03, (1, 3), (3, 5), (3, 8), lifelike=True, others=0.05),
    _Stage(5000, 512, 0.02, (1, 3), (3, 5), (5, 12), lifelike=True, others=0.05),
    _Stage(math.inf, 1024, 0.02, (2, 4), (3, 6), (6, 14), absent=0.33, lifelike=True, recited=0.45, others=0.05),
)


def batch(recipe: Recipe, tokenizer: Any, step: int) -> tuple[Any, Any]:
    """Token ids and the weight of each, int16 and float32 (sequences, length): the same for the same step."""
    import numpy as np

    stage = next(stage for stage in _STAGES if step < stage.until)
    draw = Draw(recipe.seed * 1_000_003 + step, lifelike=stage.lifelike)
    pick = draw.random
    separator = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    shape = (recipe.batch_tokens // stage.length, stage.length)
    ids, weights = np.full(shape, separator, dtype=np.int16), np.zeros(shape, dtype=np.float32)
    used, drawn = [0] * shape[0], 0
    while drawn < 1.25 * recipe.batch_tokens:  # what finds no room in any sequence is left out
        chance = pick.random()
        if chance < stage.practice:
            pieces = tokenizer.backend_tokenizer.encode(
                practice(draw, items=pick.randint(3, max(4, stage.length // 40))), add_special_tokens=False
            ).ids
            half = len(pieces) // 2
            counted = [0.05] * half + [1.0] * (len(pieces) - half)
        elif chance < stage.practice + 0.04:
            text = prose(draw, texts=pick.randint(*stage.texts))
            pieces = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
            counted = [0.3] * len(pieces)
        elif chance < stage.practice + 0.04 + stage.recited:
            turns, begins = recital(draw, texts=pick.randint(*stage.texts), facts=pick.randint(*stage.facts))
            pieces, answers = encode_chat(tokenizer, turns)
            counted = [1.0 if answer else stage.others for answer in answers]
            starts = [at for at, answer in enumerate(answers) if answer and not answers[at - 1]]
            encoded = tokenizer.backend_tokenizer.encode_batch(begins, add_special_tokens=False)
            for at, begin in list(zip(starts, encoded, strict=True))[1:]:
                counted[at : at + len(begin.ids)] = [stage.others] * len(begin.ids)
        else:
            turns = chat(
                draw,
                texts=pick.randint(*stage.texts),
                facts=pick.randint(*stage.facts),
                questions=pick.randint(*stage.questions),
                absent=stage.absent,
            )
            pieces, answers = encode_chat(tokenizer, turns)
            counted = [1.0 if answer else stage.others for answer in answers]
        if len(pieces) >= stage.length:  # an answer without its text teaches to make it up
            continue
        drawn += len(pieces) + 1
        for row, start in enumerate(used):
            if start + len(pieces) < stage.length:
                ids[row, start : start + len(pieces)] = pieces
                weights[row, start : start + len(pieces)] = counted
                used[row] += len(pieces) + 1
                break
    return ids, weights


def _make_ahead(recipe: Recipe, folder: str, first: int, queue: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    parent = multiprocessing.parent_process()
    for step in range(first, recipe.steps):
        made = batch(recipe, tokenizer, step)
        while parent is not None:
            try:
                queue.put(made, timeout=5)
                break
            except Full:
                if not parent.is_alive():  # killed: it could not end this process
                    queue.cancel_join_thread()
                    return


def _batches(recipe: Recipe, folder: Path, first: int) -> Iterator[tuple[Any, Any]]:
    """Made in a process of its own, a few ahead."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue(16)
    maker = context.Process(target=_make_ahead, args=(recipe, str(folder), first, queue), daemon=True)
    maker.start()
    try:
        for step in range(first, recipe.steps):
            while True:
                try:
                    made = queue.get(timeout=5)
                    break
                except Empty:
                    if not maker.is_alive():
                        raise RuntimeError(f"no batch for step {step}: what makes them ended, see above") from None
            yield made
    finally:
        maker.terminate()


def new_model(recipe: Recipe, tokenizer: Any) -> Any:
    """A Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    ids = tokenizer.convert_tokens_to_ids
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            bos_token_id=ids(tokenizer.bos_token),
            eos_token_id=ids(tokenizer.eos_token),
            pad_token_id=ids(tokenizer.pad_token),
        )
    )


def pretrain(
    recipe: Recipe,
    folder: Path,
    *,
    tell: Callable[[str], None],
    every: int = 500,
    questions: int = 48,
    compiled: bool = False,
) -> Path:
    """Train, or go on where a killed training stopped; the model is in ``<folder>/model`` when it is done.

    ``compiled``: by torch.compile, which needs a C++ compiler, takes a minute for each of three lengths and then is a
    third to four fifths faster on a CPU.
    """
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(available_cores())
    tokens, state = folder / "tokenizer", folder / "state.pt"
    if not (tokens / "tokenizer.json").is_file():
        tell("training the tokenizer")
        save_tokenizer(train_tokenizer(recipe.vocabulary), tokens)
    tokenizer = AutoTokenizer.from_pretrained(tokens)
    model = new_model(recipe, tokenizer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    matrices = [each for name, each in model.named_parameters() if each.dim() == 2 and "embed" not in name]
    others = [each for name, each in model.named_parameters() if each.dim() != 2 or "embed" in name]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=recipe.learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    first, curve = 0, []
    if state.is_file():
        saved = torch.load(state, weights_only=True, map_location=device)
        model.load_state_dict(saved["model"])
        for optimiser, held in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(held)
        first, curve = saved["step"], saved["curve"]
        tell(f"going on at step {first} of {recipe.steps}")
    tell(f"{sum(each.numel() for each in model.parameters()):,} parameters, {recipe.tokens:,} tokens, on {device}")

    forward = torch.compile(model) if compiled else model
    started, total, count = time.monotonic(), 0.0, 0
    for step, (ids, weights) in enumerate(_batches(recipe, tokens, first), start=first):
        rate = _rate(recipe, step)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        inputs = torch.from_numpy(ids).to(device, torch.long)
        counted = torch.from_numpy(weights).to(device)[:, 1:].reshape(-1)
        with torch.autocast(device, torch.bfloat16):
            logits = forward(input_ids=inputs, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.reshape(-1, recipe.vocabulary).float(), inputs[:, 1:].reshape(-1), reduction="none"
        )
        loss = (losses * counted).sum() / counted.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        answers = counted >= 1.0
        total, count = total + float(losses.detach()[answers].mean()), count + 1
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - started
            speed = (step + 1 - first) * recipe.batch_tokens / seconds
            left = (recipe.steps - step - 1) * recipe.batch_tokens / speed
            curve.append((step + 1, total / count))
            tell(
                f"step {step + 1} of {recipe.steps}, answer loss {total / count:.3f}, rate {rate:.1e}, "
                f"{speed:,.0f} tokens/s, {left / 60:.0f} min left"
            )
            total, count = 0.0, 0
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            _save_state(state, model, optimisers, step + 1, curve)
            held_out = [Draw(1, held_out=True, lifelike=lifelike) for lifelike in (False, True)]
            tell(f"  held out: {measure(model, tokenizer, held_out, questions)}")
    model.eval()
    refuse_less(model, tokenizer, recipe.refuses_less)
    final = folder / "model"
    model.to("cpu", torch.float16).save_pretrained(final)
    save_tokenizer(AutoTokenizer.from_pretrained(tokens), final)  # as it was before any padded call
    (final / "loss.png").write_bytes(loss_curve(curve))
    write_json_atomically(folder / "recipe.json", {**asdict(recipe), "curve": curve})
    return final


def loss_curve(curve: list[tuple[int, float]]) -> bytes:
    """PNG of the loss of answers' tokens (nats), each point the mean of the steps since the one before."""
    figure, axes = canvas(7, 3.5)
    axes.plot([step for step, _ in curve], [loss for _, loss in curve])
    axes.set(xlabel="step", ylabel="loss of answers", yscale="log")
    axes.grid(visible=True, which="both", alpha=0.3)
    return png(figure)


def _rate(recipe: Recipe, step: int) -> float:
    """Warm up, stay, fall to nothing."""
    falls = int(recipe.steps * recipe.decay_share)
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup_steps, (recipe.steps - step) / max(1, falls))


def _save_state(path: Path, model: Any, optimisers: list[Any], step: int, curve: list[Any]) -> None:
    import torch

    scratch = path.with_suffix(".new")
    states = [optimiser.state_dict() for optimiser in optimisers]
    torch.save({"model": model.state_dict(), "optimisers": states, "step": step, "curve": curve}, scratch)
    scratch.replace(path)


def measure(model: Any, tokenizer: Any, draws: Sequence[Draw], questions: int) -> dict[str, float]:
    """Shares of questions on three texts, drawn by ``draws`` in turn, that are answered rightly, and refused.

    So many ``questions`` whose answer the texts tell, and as many whose answer they do not.
    """
    there = [case(draws[number % len(draws)]) for number in range(questions)]
    absent = [case(draws[number % len(draws)], absent=True) for number in range(questions)]
    answers = answers_of(model, tokenizer, [*there, *absent])
    right = sum(each.value is not None and each.value in said for each, said in zip(there, answers, strict=False))
    refused = sum("do not know" in said for said in answers[questions:])
    wrongly = sum("do not know" in said for said in answers[:questions])
    return {
        "right": round(right / questions, 3),
        "refused_absent": round(refused / questions, 3),
        "refused_present": round(wrongly / questions, 3),
    }


def refuse_less(model: Any, tokenizer: Any, by: float, *, cases: int = 100) -> None:
    """Lower the logit of a refusal's first token by ``by``, where an answer goes on with that or with a value.

    What is asked in words that the model never heard looks to it like what no text tells, so it refuses too much: the
    prior of refusing is adjusted (Menon et al., 2021, arXiv:2007.07314). The token's row moves as little as does it on
    the hidden states of so many training ``cases`` of each kind (ridge regression); its embedding, tied, moves along.
    """
    import torch

    states = []
    for draw in (Draw(3), Draw(3, lifelike=True)):
        for each in (case(draw, absent=number % 2 == 1) for number in range(2 * cases)):
            before, follows, _ = each.answer.rpartition(f" {each.value or NOT_STATED}")
            if follows:
                text = prompt_of(each, tokenizer) + before
                ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"].to(model.device)
                with torch.inference_mode():
                    states.append(model.model(input_ids=ids).last_hidden_state[0, -1].float())
    held = torch.stack(states)
    spread = held.T @ held / len(held) + torch.eye(held.shape[1], device=held.device)
    token = tokenizer(f" {NOT_STATED}", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.lm_head.weight[token] -= by * torch.linalg.solve(spread, held.mean(dim=0))


def prompt_of(asked: Case, tokenizer: Any) -> str:
    """By the serving prompt builder."""

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    turns = build_messages(PromptSettings(), [Message("user", asked.question)], asked.context, count_tokens=count)
    return render(tokenizer, turns)


def answers_of(model: Any, tokenizer: Any, cases: list[Case], *, maximum: int = 48, at_once: int = 24) -> list[str]:
    """Greedy answers, through the serving prompt builder."""
    import torch

    prompts = [prompt_of(each, tokenizer) for each in cases]
    said = []
    was_training = model.training
    model.eval()
    for start in range(0, len(prompts), at_once):
        asked = tokenizer(
            prompts[start : start + at_once],
            return_tensors="pt",
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_token_type_ids=False,
        ).to(model.device)
        with torch.inference_mode():
            made = model.generate(**asked, max_new_tokens=maximum, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        said += tokenizer.batch_decode(made[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    model.train(was_training)
    return said
