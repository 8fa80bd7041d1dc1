"""Memory: what a training will need, said before it starts, and smaller batches where it was not enough."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

from pipelines.errors import TrainingError

T = TypeVar("T")


def shares(batch_size: int, most: int, processes: int = 1) -> tuple[int, int]:
    """``(rows, accumulation)`` of one process: ``rows * accumulation * processes == batch_size``, ``rows <= most``.

    ``processes`` has to divide ``batch_size``.
    """
    each = batch_size // processes
    rows = max(rows for rows in range(1, each + 1) if each % rows == 0 and rows <= max(1, most))
    return rows, each // rows


def with_smaller_batches(run: Callable[[int], T], start: int, tell: Callable[[str], None]) -> T:
    """``run(start)``, and again with half as much while memory does not suffice.

    ``run`` takes rows or tokens at once, keeps the batch of an optimiser step by accumulating gradients, holds nothing
    when it has raised, and goes on from its last checkpoint.

    Raises:
        TrainingError: one at a time is still too many.
    """
    micro = start
    while True:
        try:
            return run(micro)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            said = str(error).partition("\n")[0][:300]
        # Here the error, and with it the frames that hold tensors, is gone.
        _free()
        if micro == 1:
            raise TrainingError(f"out of memory with one at a time ({said}): {ADVICE}")
        micro //= 2
        tell(f"out of memory ({said}): going on with {micro} at once, as large a step")


ADVICE = (
    "lower maximum_tokens or lora.rank, set quantised_base: nf4 (task generate, on a GPU), name a smaller base_model, "
    "or train on a machine with more memory"
)


def _out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
