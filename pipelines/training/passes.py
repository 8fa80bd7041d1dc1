"""One pass of chats through a causal language model: the loss of their answers, and nothing computed beside them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pipelines.training.chats import EncodedChat
from pipelines.training.packing import CHAT_BY_CHAT, alike, bins, boundaries

NOT_COUNTED = -100
"""Label of a token that no loss is taken of."""

LOGITS_AT_ONCE = 2**22
"""Most logits that are held at a time."""

SAME = 0.05
"""Relative difference up to which two ways to compute something agree: bf16 rounds to about a fifth of that."""


def flattened(chats: Sequence[EncodedChat]) -> dict[str, Any]:
    """``input_ids`` and ``labels`` (tokens) of all chats one after the other, and their ``lengths`` (chats)."""
    import torch

    ids: list[int] = []
    labels: list[int] = []
    for chat in chats:
        counted = [NOT_COUNTED] * len(chat.ids)
        for start, end in chat.answers:
            counted[start:end] = chat.ids[start:end]
        counted[0] = NOT_COUNTED  # nothing comes before it
        ids += chat.ids
        labels += counted
    lengths = [len(chat.ids) for chat in chats]
    named = (("input_ids", ids), ("labels", labels), ("lengths", lengths))
    return {name: torch.tensor(values, dtype=torch.long) for name, values in named}


class Passes:
    """A PEFT model as it is trained: chats packed into one sequence or padded to one length, losses of answers only."""

    def __init__(self, model: Any, *, bf16: bool, pack: bool) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.model = model
        self.pack = pack
        """Whether chats share a sequence; ``try_out`` takes it back where they would see each other."""
        self.fused = False
        """Whether the loss is computed from hidden states, without logits of all answers at once."""
        self.saves_memory = False
        """Whether activations are computed twice."""
        self._bf16 = bf16
        self._base = model.get_base_model()
        if bf16:  # autocast does it; peft would make a float32 copy of every layer's input before
            for module in model.modules():
                if isinstance(module, BaseTunerLayer):
                    module.cast_input_dtype_enabled = False  # type: ignore[attr-defined]  # of each kind of layer

    @property
    def attention(self) -> str:
        """Name of the implementation."""
        return str(self._base.config._attn_implementation)  # noqa: SLF001 - transformers has no other

    def try_out(self, chats: Sequence[EncodedChat]) -> None:
        """Decide by computing: whether packed chats stay apart in this model, and what its loss needs.

        Layers with a memory of their own (Mamba, convolutions) see what is before in the sequence, whatever the
        positions say; some models scale or cap their logits.
        """
        import torch

        short, other = sorted(chats, key=lambda chat: len(chat.ids))[:2]
        alone, packed = _sequence([flattened([short])]), _sequence([flattened([other]), flattened([short])])
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.autocast():
            with boundaries(alone["lengths"]):
                logits = self._base(**_inputs(alone)).logits
                self.fused = self._is_plain() and _same(self._base.get_output_embeddings()(self._hidden(alone)), logits)
            if self.pack:
                with boundaries(packed["lengths"]):
                    self.pack = _same(self._base(**_inputs(packed)).logits[:, len(other.ids) :], logits)
            if not self.pack and self.attention == CHAT_BY_CHAT:
                self.model.set_attn_implementation("sdpa")
        self.model.train(training)

    def save_memory(self) -> None:
        """Compute activations again in the backward pass instead of keeping them: a forward pass more."""
        self.saves_memory = True
        enable = (
            getattr(self.model, "activation_checkpointing_enable", None) or self.model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})

    def losses(self, batch: dict[str, Any], room: int) -> Iterator[tuple[Any, Any]]:
        """``(sum of losses, right tokens)`` of the answers in ``batch``, chats of at most ``room`` tokens at a time.

        In nats. What is right (the likeliest token is the label) is counted where no gradients are taken, else None.
        Each pair belongs to a forward pass of its own, so that its backward pass can come before the next.
        """
        for row in self._rows(batch, room):
            with boundaries(row["lengths"]) if self.pack else nullcontext():  # the backward pass may compute again
                with self.autocast():
                    loss = self._loss(row)
                yield loss

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 where it is faster."""
        import torch

        return torch.autocast(self.model.device.type, torch.bfloat16) if self._bf16 else nullcontext()

    def _rows(self, batch: dict[str, Any], room: int) -> Iterator[dict[str, Any]]:
        """Inputs of one pass each: a sequence, or rows of one length with an ``attention_mask``."""
        import torch

        lengths = batch["lengths"].tolist()
        ids, labels = batch["input_ids"].split(lengths), batch["labels"].split(lengths)
        if self.pack:
            for chosen in bins(lengths, room):
                yield _sequence([{"input_ids": ids[index], "labels": labels[index]} for index in chosen])
            return
        pad = torch.nn.utils.rnn.pad_sequence
        for chosen in alike(lengths, room):
            yield {
                "input_ids": pad([ids[index] for index in chosen], batch_first=True),  # nobody looks at the padding
                "labels": pad([labels[index] for index in chosen], batch_first=True, padding_value=NOT_COUNTED),
                "attention_mask": pad([torch.ones_like(ids[index]) for index in chosen], batch_first=True),
            }

    def _loss(self, row: dict[str, Any]) -> tuple[Any, Any]:
        import torch

        labels = torch.nn.functional.pad(row["labels"][:, 1:], (0, 1), value=NOT_COUNTED)  # of what comes next
        counted = labels != NOT_COUNTED
        targets = labels[counted]
        if self.fused:
            head = self._base.get_output_embeddings()
            return _answer_loss(self._hidden(row)[counted], head.weight, targets)
        if "logits_to_keep" in inspect.signature(self._base.forward).parameters:
            logits = self._base(**_inputs(row), logits_to_keep=counted).logits.flatten(0, -2)
        else:
            logits = self._base(**_inputs(row)).logits[counted]
        right = None if torch.is_grad_enabled() else (logits.argmax(dim=-1) == targets).sum()
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum"), right

    def _hidden(self, row: dict[str, Any]) -> Any:
        """Hidden states (rows, tokens, width) of the last layer."""
        inner = getattr(self._base, self._base.base_model_prefix)
        return inner(**_inputs(row)).last_hidden_state

    def _is_plain(self) -> bool:
        """The head is a frozen matrix and no more, on top of a model that can be called alone."""
        import torch

        head = self._base.get_output_embeddings()
        return (
            type(head) is torch.nn.Linear
            and head.bias is None
            and not head.weight.requires_grad
            and hasattr(self._base, self._base.base_model_prefix)
        )


def _sequence(chats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of several chats, each counting its positions from 0."""
    import torch

    ids = [chat["input_ids"] for chat in chats]
    return {
        "input_ids": torch.cat(ids)[None],
        "labels": torch.cat([chat["labels"] for chat in chats])[None],
        "position_ids": torch.cat([torch.arange(len(each), device=each.device) for each in ids])[None],
        "lengths": [len(each) for each in ids],
    }


def _inputs(row: dict[str, Any]) -> dict[str, Any]:
    names = ("input_ids", "attention_mask", "position_ids")
    return {**{name: row[name] for name in names if name in row}, "use_cache": False}


def _same(one: Any, other: Any) -> bool:
    return bool((one.float() - other.float()).norm() <= SAME * other.float().norm())


def _answer_loss(hidden: Any, weight: Any, targets: Any) -> tuple[Any, Any]:
    """Sum of the cross-entropies of ``hidden @ weight.T`` (places, vocabulary), and how many likeliest ones are right.

    A few places at a time; their gradient is taken at once, in place of the logits (as in Liger Kernel,
    arXiv:2410.10989), so that memory does not grow with the vocabulary, and nothing is computed twice.
    """
    import torch

    class AnswerLoss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Any) -> Any:
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            gradient = torch.empty_like(hidden) if hidden.requires_grad else None
            step = max(1, LOGITS_AT_ONCE // weight.shape[0])
            for start in range(0, len(targets), step):
                some = slice(start, start + step)
                logits = (hidden[some].to(weight.dtype) @ weight.T).float()
                wanted = targets[some, None]
                if gradient is None:
                    right.add_((logits.argmax(dim=-1) == targets[some]).sum())
                sums = logits.logsumexp(dim=-1, keepdim=True)
                total += (sums - logits.gather(1, wanted)).sum()
                if gradient is not None:
                    chances = logits.sub_(sums).exp_()
                    chances.scatter_add_(1, wanted, torch.full_like(sums, -1.0))
                    gradient[some] = chances.to(weight.dtype) @ weight
            ctx.save_for_backward(gradient)
            return total

        @staticmethod
        def backward(ctx: Any, above: Any) -> Any:
            (gradient,) = ctx.saved_tensors
            return gradient * above.to(gradient.dtype)

    right = torch.zeros((), dtype=torch.long, device=hidden.device)
    loss = AnswerLoss.apply(hidden)  # type: ignore[no-untyped-call]
    return loss, None if hidden.requires_grad else right
