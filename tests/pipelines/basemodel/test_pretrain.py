"""Training from scratch: the same batches for the same step, and a killed training goes on as if nothing had been."""

from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest

from pipelines.basemodel.language import Draw, case
from pipelines.basemodel.pretrain import Recipe, batch, pretrain, prompt_of, refuse_less
from pipelines.basemodel.tokenizer import save_tokenizer, train_tokenizer
from pipelines.models import BUNDLED_CHAT, model_folder

TINY = Recipe(
    vocabulary=400, hidden=32, layers=1, heads=2, feed_forward=64, tokens=6 * 1024, batch_tokens=1024, warmup_steps=2
)


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    save_tokenizer(train_tokenizer(TINY.vocabulary, chats=100), folder)
    return folder


def train(folder: Path, tokens: Path, *, stop_at: int | None = None) -> dict[str, object]:
    from safetensors.torch import load_file

    (folder / "tokenizer").parent.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer").exists():
        (folder / "tokenizer").symlink_to(tokens)
    told = 0

    def tell(line: str) -> None:
        nonlocal told
        told += "held out" in line
        if stop_at is not None and told == stop_at:
            raise KilledError

    final = pretrain(TINY, folder, tell=tell, every=2, questions=1)
    return load_file(final / "model.safetensors")


def test_the_same_step_always_gives_the_same_batch_and_counts_answers_most(tokens: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokens)
    ids, weights = batch(TINY, tokenizer, 3)
    again, _ = batch(TINY, tokenizer, 3)
    assert (ids == again).all()
    assert ids.shape == weights.shape
    assert ids.size == TINY.batch_tokens
    assert weights.max() == 1.0
    assert (weights[ids == tokenizer.bos_token_id] == 0).all()


def test_late_batches_are_full_and_count_of_answers_without_a_question_only_what_the_texts_tell(tokens: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokens)
    ids, weights = batch(replace(TINY, batch_tokens=32_768), tokenizer, 6000)
    assert (weights == 0).mean() < 0.25
    runs = [
        tokenizer.decode([token for token, _ in run])
        for row in zip(ids.tolist(), weights.tolist(), strict=True)
        for counted, run in groupby(zip(*row, strict=True), key=lambda each: each[1] == 1.0)
        if counted
    ]
    whole = [run for run in runs if run.startswith("The ")]
    values = [run for run in runs if run.startswith(" ")]
    assert len(whole) > 10
    assert len(values) > 50
    assert all(" is " in run for run in whole)
    assert any(run.startswith(" not stated: I do not know.") for run in values)


def test_a_training_that_is_stopped_ends_as_one_that_is_not(tokens: Path, tmp_path: Path) -> None:
    import torch

    whole = train(tmp_path / "whole", tokens)
    with pytest.raises(KilledError):
        train(tmp_path / "stopped", tokens, stop_at=1)
    resumed = train(tmp_path / "stopped", tokens)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_refusals_become_less_likely_where_an_answer_decides_and_nothing_else_changes() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder(BUNDLED_CHAT, None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = case(Draw(8, held_out=True))
    before, _, _ = asked.answer.rpartition(f" {asked.value}")
    ids = tokenizer(prompt_of(asked, tokenizer) + before, return_tensors="pt", add_special_tokens=False)["input_ids"]

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=ids).logits[0, -1]

    was = logits()
    refuse_less(model, tokenizer, 1.5, cases=20)
    change = logits() - was
    refusing = tokenizer(" not", add_special_tokens=False)["input_ids"][0]
    assert float(change[refusing]) == pytest.approx(-1.5, abs=0.5)
    change[refusing] = 0
    assert float(change.abs().max()) < 0.3, "but for what reads the token's own embedding"
