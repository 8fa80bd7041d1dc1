"""One training on several devices: a process for each, of which the first is the one that was started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.environment import REPOSITORY, available_cores
from pipelines.errors import FreshetError, TrainingInterruptedError

PATIENCE = 30.0
"""Seconds that a process has to notice by itself that another one is gone, and to end when it is told to."""

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


def summed(value: Any) -> Any:
    """The tensor ``value`` added up over all processes, in place."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.all_reduce(value)
    return value


def add_up_gradients(model: Any) -> None:
    """Over all processes; once a step, at its end: each may have taken its examples in other parts."""
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        return
    parameters = [value for value in model.parameters() if value.requires_grad]
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
    distributed.all_reduce(flat)
    start = 0
    for parameter in parameters:
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()


def devices(batch_size: int) -> int:
    """GPUs that share a batch evenly: at most all that this process sees, and 1 on a CPU."""
    import torch

    most = max(1, torch.cuda.device_count())
    return max(count for count in range(1, most + 1) if batch_size % count == 0)


@contextmanager
def together(count: int, job: Path) -> Iterator[None]:
    """Train as the first of ``count`` processes while the block runs; the others are started for the ``job`` file.

    What ``accelerate launch`` and torchrun do, but the process that was started, watched and told to stop is the one
    that reports, locks and writes, and none outlives it.

    Raises:
        TrainingInterruptedError: one of the others has ended.
    """
    if count == 1:
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores = max(1, available_cores() // count)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DAGSTER_PIPES_")}
    others = [
        subprocess.Popen(
            [sys.executable, "-m", "pipelines.training", str(job), "--rank", str(rank)],
            env={**inherited, **_place(rank, count, port, cores)},
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
        )
        for rank in range(1, count)
    ]
    left = threading.Event()
    threading.Thread(target=_give_up_without, args=(others, left), daemon=True).start()
    before = dict(os.environ)
    os.environ.update(_place(0, count, port, cores))
    try:
        yield
        for other in others:
            other.wait(PATIENCE)
    except Exception as error:
        failed = None if isinstance(error, FreshetError) else _failed(others)
        if failed is None:
            raise
        raise TrainingInterruptedError(f"{failed}; started again, training goes on from its checkpoint") from error
    finally:
        left.set()
        for other in others:
            other.terminate()
        for other in others:
            try:
                other.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                other.kill()
                other.wait()
        _leave()
        os.environ.clear()
        os.environ.update(before)


def end_with_parent() -> None:
    """End this process as soon as the one that started it has: it may wait for it in a collective for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _place(rank: int, count: int, port: int, cores: int) -> Mapping[str, str]:
    """What torch.distributed and accelerate read."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(cores),
    }


def _failed(others: list[subprocess.Popen[bytes]]) -> str | None:
    time.sleep(1)  # which of two fell first is not known at once
    ended = [(rank, other.poll()) for rank, other in enumerate(others, start=1) if other.poll() not in (None, 0)]
    return f"process {ended[0][0]} of {len(others) + 1} ended with status {ended[0][1]}" if ended else None


def _give_up_without(others: list[subprocess.Popen[bytes]], left: threading.Event) -> None:
    """End this process where another one has, and this one still waits for it in a collective after a while."""
    while not left.wait(1.0):
        if any(other.poll() not in (None, 0) for other in others) and not left.wait(PATIENCE):
            print(f"{_failed(others)}, and training cannot go on without it", file=sys.stderr, flush=True)  # noqa: T201 - nobody else can say it
            for other in others:
                other.kill()
            os._exit(os.EX_TEMPFAIL)


def _leave() -> None:
    """Forget that there were other processes."""
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from torch import distributed

    _control.clear()
    if distributed.is_initialized():
        distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 - accelerate's tests do it so, nothing else does
    GradientState._reset_state()  # noqa: SLF001
    PartialState._reset_state()  # noqa: SLF001
