"""Chats of different lengths in one pass through a model, without padding and without seeing each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

CHAT_BY_CHAT = "chat_by_chat"
"""Name of our attention in transformers' registry."""

FLOAT32_UP_TO = 256
"""Tokens of the longest chat up to which attention is computed in float32: bf16's gradient is slower there on a CPU."""

_bounds: list[int] = []
"""Where the chats of the sequence that is being computed begin, and where the last one ends."""


def bins(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices in groups of at most ``room`` tokens, first fit decreasing; one that is longer is alone.

    At most 11/9 of the fewest possible, and one more (Dósa, 2007).
    """
    found: list[list[int]] = []
    left: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = next((place for place, free in enumerate(left) if free >= lengths[index]), None)
        if place is None:
            found.append([index])
            left.append(room - lengths[index])
        else:
            found[place].append(index)
            left[place] -= lengths[index]
    return found


def alike(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices in groups of alike lengths that padded to their longest have at most ``room`` tokens."""
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if found and (len(found[-1]) + 1) * lengths[found[-1][0]] <= room:
            found[-1].append(index)
        else:
            found.append([index])
    return found


@contextmanager
def boundaries(lengths: Sequence[int]) -> Iterator[None]:
    """Attention of the kind ``CHAT_BY_CHAT`` stays within chats of these lengths while the block runs."""
    global _bounds  # noqa: PLW0603 - attention functions get no arguments of ours on every architecture
    before, _bounds = _bounds, [0]
    for length in lengths:
        _bounds.append(_bounds[-1] + length)
    try:
        yield
    finally:
        _bounds = before


def packed_lengths() -> list[int]:
    """Of the chats that share the sequence that is being computed; none where it is no such sequence."""
    return [end - start for start, end in pairwise(_bounds)]


def register() -> None:
    """Make ``CHAT_BY_CHAT`` known to transformers: causal attention over each chat alone, so without any mask.

    On a CPU it takes a fraction of the time of a masked one over the whole sequence, which computes what it then
    throws away. A GPU has better: flash attention over sequences of different lengths.
    """
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    attention: Any = sdpa_attention_forward

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **settings: Any
    ) -> tuple[torch.Tensor, None]:
        if attention_mask is not None or query.shape[0] != 1 or _bounds[-1:] != [query.shape[2]]:  # never wrongly
            raise RuntimeError(f"attention over {tuple(query.shape)} is not of chats that end at {_bounds}")
        # Split, not sliced: the gradient of each slice would be as long as the whole sequence.
        lengths = packed_lengths()
        dtype = torch.float32 if max(lengths) <= FLOAT32_UP_TO else query.dtype
        with torch.autocast(query.device.type, enabled=False):
            parts = [
                attention(module, *chat, None, **settings)[0]
                for chat in zip(*(each.to(dtype).split(lengths, dim=2) for each in (query, key, value)), strict=True)
            ]
            return torch.cat(parts, dim=1).to(query.dtype), None

    AttentionInterface.register(CHAT_BY_CHAT, attend)
    AttentionMaskInterface.register(CHAT_BY_CHAT, lambda *_args, **_settings: None)


def windowed(config: Any, longest: int) -> bool:
    """Whether some layer sees less than ``longest`` tokens back, or caps its scores."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None) or math.inf
    return window < longest or getattr(text, "attn_logit_softcapping", None) is not None
