"""Chats that share a sequence: nothing of one reaches another, and the loss is that of each alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.prompt import Message
from pipelines.training.chats import EncodedChat, encode_chats
from pipelines.training.lora import with_adapter
from pipelines.training.packing import CHAT_BY_CHAT, alike, bins, boundaries, register, windowed
from pipelines.training.passes import NOT_COUNTED, Passes, flattened
from pipelines.training.settings import GenerateSettings, LoraSettings
from tests.pipelines.chat_base import chat_rows, make_tokenizer

SHAPE = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2, "pad_token_id": 3,
}  # fmt: skip


def llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes}))


def gemma2() -> Any:
    """Caps scores and logits, scales them, and sees every other layer through a window."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, sliding_window=8, final_logit_softcapping=2.0))


def granite() -> Any:
    """Divides its logits."""
    from transformers import GraniteConfig, GraniteForCausalLM

    return GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=4.0))


def qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8))


def mamba() -> Any:
    """Has a state that runs through the whole sequence, whatever the positions say."""
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=2, state_size=4))


def passes_of(
    make: Callable[[], Any], *, attention: str | None = None, pack: bool = True, dropout: float = 0
) -> Passes:
    """An untried model with an adapter that already does something."""
    import torch

    torch.manual_seed(3)
    model = make()
    if attention is not None:
        register()
        model.set_attn_implementation(attention)
    targets: Any = ("in_proj",) if make is mamba else "all-linear"
    lora = LoraSettings(rank=4, dropout=dropout, target_modules=targets)
    settings = GenerateSettings(task="generate", base_model="tiny", lora=lora)
    model = with_adapter(model, settings, task="CAUSAL_LM")
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    return Passes(model, bf16=False, pack=pack)


@pytest.fixture(scope="module")
def chats() -> list[EncodedChat]:
    rows = chat_rows(turns=2)["train"][:4] + chat_rows()["train"][:5]
    turns = [[Message(turn["role"], turn["content"]) for turn in row["messages"]] for row in rows]
    return encode_chats(make_tokenizer(), turns)


def alone(passes: Passes, chat: EncodedChat) -> Any:
    """Logits by the model's own forward pass, and the sum of the answers' losses by torch."""
    import torch

    ids = torch.tensor([chat.ids])
    with boundaries([len(chat.ids)]):
        logits = passes.model(input_ids=ids, use_cache=False).logits[0]
    labels = flattened([chat])["labels"]
    counted = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=NOT_COUNTED, reduction="sum")
    return logits, counted


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(8, 64))
def test_every_chat_is_in_one_bin_and_no_bin_is_too_full(lengths: list[int], room: int) -> None:
    for found in (bins(lengths, room), alike(lengths, room)):
        assert sorted(index for chosen in found for index in chosen) == list(range(len(lengths)))
    for chosen in bins(lengths, room):
        assert len(chosen) == 1 or sum(lengths[index] for index in chosen) <= room
    for chosen in alike(lengths, room):
        assert len(chosen) == 1 or len(chosen) * max(lengths[index] for index in chosen) <= room
    fewest = -(-sum(lengths) // room)
    if lengths and max(lengths) <= room:
        assert len(bins(lengths, room)) <= max(1, 2 * fewest), "no two bins could share one"


@pytest.mark.parametrize("attention", [CHAT_BY_CHAT, "sdpa", "eager"])
def test_logits_of_a_packed_chat_are_those_of_the_chat_alone(chats: list[EncodedChat], attention: str) -> None:
    import torch

    passes = passes_of(llama, attention=attention)
    lengths = [len(chat.ids) for chat in chats]
    flat = flattened(chats)["input_ids"][None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.no_grad(), boundaries(lengths):
        packed = passes.model(input_ids=flat, position_ids=positions, use_cache=False).logits[0].split(lengths)
    with torch.no_grad():
        for chat, logits in zip(chats, packed, strict=True):
            torch.testing.assert_close(logits, alone(passes, chat)[0], rtol=1e-4, atol=1e-4)


def test_attention_over_chats_that_were_not_announced_is_refused(chats: list[EncodedChat]) -> None:
    passes = passes_of(llama, attention=CHAT_BY_CHAT)
    with pytest.raises(RuntimeError, match="is not of chats that end at"):
        passes.model(input_ids=flattened(chats)["input_ids"][None])


@pytest.mark.parametrize("make", [llama, qwen3, gemma2, granite, mamba])
@pytest.mark.parametrize("pack", [True, False])
def test_losses_and_gradients_are_those_of_each_chat_alone(
    chats: list[EncodedChat], make: Callable[[], Any], pack: bool
) -> None:
    """However the chats are put together, and for models that cap or scale their logits, or cannot be packed."""
    import torch

    passes = passes_of(make, pack=pack)
    passes.try_out(chats)
    assert passes.pack == (pack and make is not mamba)
    assert passes.fused == (make in (llama, qwen3, mamba))
    trained = [value for value in passes.model.parameters() if value.requires_grad]
    wanted = sum(alone(passes, chat)[1] for chat in chats)
    gradients = torch.autograd.grad(wanted, trained)
    for room in (1, 60, 10_000):
        passes.model.zero_grad()
        found = 0.0
        for loss, right in passes.losses(flattened(chats), room):
            loss.backward()
            found += float(loss.detach())
            assert right is None
        assert found == pytest.approx(float(wanted.detach()), rel=1e-4)
        for parameter, gradient in zip(trained, gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_each_packed_chat_has_dropout_of_its_own() -> None:
    import torch

    torch.manual_seed(0)
    (dropout,) = (
        module
        for name, module in passes_of(llama, dropout=0.5).model.named_modules()
        if name.endswith("layers.0.self_attn.q_proj.lora_dropout.default")
    )
    with boundaries([3, 4]):
        found = dropout.train()(torch.ones(1, 7, 32))[0]
    first, second = found[:3], found[3:]
    assert (first == first[0]).all()
    assert (second == second[0]).all()
    assert not torch.equal(first[0], second[0])
    assert set(found.unique().tolist()) == {0.0, 2.0}


def test_right_tokens_are_counted_where_no_gradients_are_taken(chats: list[EncodedChat]) -> None:
    import torch

    for make in (llama, granite):
        passes = passes_of(make)
        passes.try_out(chats)
        with torch.no_grad():
            wanted = 0
            for chat in chats:
                labels = flattened([chat])["labels"][1:]
                wanted += int((alone(passes, chat)[0][:-1].argmax(dim=-1) == labels).sum())
            assert sum(int(right) for _, right in passes.losses(flattened(chats), 60)) == wanted


def test_the_loss_takes_no_memory_of_the_vocabularys_size(
    chats: list[EncodedChat], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few places at a time come to the same."""
    from pipelines.training import passes as module

    passes = passes_of(llama)
    passes.try_out(chats)
    (at_once,) = [float(loss.detach()) for loss, _ in passes.losses(flattened(chats), 10_000)]
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 3 * 512)
    (in_parts,) = [float(loss.detach()) for loss, _ in passes.losses(flattened(chats), 10_000)]
    assert in_parts == pytest.approx(at_once, rel=1e-5)


def test_activations_computed_twice_change_nothing(chats: list[EncodedChat]) -> None:
    import torch

    passes = passes_of(llama, attention=CHAT_BY_CHAT)
    passes.try_out(chats)
    trained = [value for value in passes.model.parameters() if value.requires_grad]
    passes.model.train()
    ((once, _),) = passes.losses(flattened(chats), 10_000)
    wanted = torch.autograd.grad(once, trained)
    passes.save_memory()
    for loss, _ in passes.losses(flattened(chats), 10_000):
        for gradient, other in zip(torch.autograd.grad(loss, trained), wanted, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


def test_models_with_a_window_or_capped_scores_keep_their_own_attention() -> None:
    assert windowed(gemma2().config, 16)
    assert not windowed(llama().config, 256)
    from transformers import MistralConfig

    assert windowed(MistralConfig(sliding_window=32), 64)
    assert not windowed(MistralConfig(sliding_window=64), 64)
