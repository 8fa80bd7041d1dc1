"""One training on several devices: a process for each, of which the first is the one that was started."""

from __future__ import annotations

from typing import Any

_control: list[Any] = []
"""The group of processes for decisions, once it is made."""


def processes() -> int:
    """How many processes train together."""
    import torch
    from accelerate import PartialState

    return int(PartialState(cpu=not torch.cuda.is_available()).num_processes)


def agreed(flag: bool) -> bool:
    """What the first process decides, for all of them; each has to ask as often. Clocks and signals differ."""
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        return flag
    if not _control:  # decisions by gloo: on a GPU's own stream each would wait for the steps before
        _control.append(distributed.new_group(backend="gloo"))
    told = torch.tensor(int(flag))
    distributed.broadcast(told, src=0, group=_control[0])
    return bool(told.item())


def wait_for_all() -> None:
    """Until every process has come here."""
    agreed(False)
