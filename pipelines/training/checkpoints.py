"""Checkpoints that a killed training resumes from: complete ones only, known by a manifest that is written last."""

# ruff: noqa: ARG002 - the signatures of the callback are transformers'

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.artifacts import load, seal
from pipelines.errors import ArtifactError, TrainingInterruptedError
from pipelines.training.processes import agreed, wait_for_all

KEPT = 2
"""Checkpoints of one training: the one before the newest is there should the newest not be readable."""


def last_checkpoint(work: Path) -> Path | None:
    """Newest complete checkpoint in ``work``, None where there is none; half-written and altered ones are deleted."""
    for folder in sorted(_checkpoints(work), key=_step, reverse=True):
        try:
            return load(folder).path
        except (ArtifactError, ValueError, KeyError):  # its manifest is not there, or cut off
            shutil.rmtree(folder, ignore_errors=True)
    return None


def checkpointing(work: Path, minutes: float) -> Any:
    """A ``TrainerCallback`` that has a checkpoint written to ``work`` every so many minutes, and at the end.

    It comes last of the callbacks: what the others wrote to the folder before is sealed with it. Its ``stop`` may be
    set at any time: a checkpoint follows the step that is under way, and TrainingInterruptedError.

    The Trainer's own files are read back with ``weights_only``, and from folders whose hashes are right.
    """
    from transformers import TrainerCallback

    class Checkpointing(TrainerCallback):
        def __init__(self) -> None:
            self.stop = False
            self._stopping = False
            self._saved = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            due = agreed(self.stop or time.monotonic() - self._saved >= minutes * 60)
            self._stopping = agreed(self.stop) if due else False
            at_end = state.global_step >= state.max_steps or state.epoch == int(state.epoch)
            if due and not at_end:  # at an epoch's end it is evaluated first: its checkpoint knows the outcome
                control.should_save = control.should_log = True

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            due = agreed(self.stop or time.monotonic() - self._saved >= minutes * 60)
            self._stopping = agreed(self.stop) if due else False
            control.should_save = due or control.should_training_stop or state.global_step >= state.max_steps

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            wait_for_all()  # each has written the state of its random numbers
            if state.is_world_process_zero:
                folder = work / f"checkpoint-{state.global_step}"
                (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
                seal(folder, {"fingerprint": folder.name})
                for old in sorted(_checkpoints(work), key=_step)[:-KEPT]:
                    shutil.rmtree(old, ignore_errors=True)
            wait_for_all()
            self._saved = time.monotonic()
            if self._stopping:
                raise TrainingInterruptedError(
                    f"training was told to end after step {state.global_step} of {state.max_steps}; "
                    "started again, it goes on from there"
                )

    return Checkpointing()


@contextmanager
def stopping_on_sigterm(callback: Any) -> Iterator[None]:
    """Let SIGTERM (a preemption, a cancelled run) set ``callback.stop`` while the block runs."""
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return

    def stop(_number: int, _frame: Any) -> None:
        callback.stop = True

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _checkpoints(work: Path) -> list[Path]:
    return [path for path in work.glob("checkpoint-*") if path.is_dir() and path.name[11:].isdigit()]


def _step(folder: Path) -> int:
    return int(folder.name[11:])
