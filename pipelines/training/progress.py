"""What a running training reports: to its caller about every second, and every point to ``progress.jsonl``."""

# ruff: noqa: ARG002 - the signatures of the recorder are transformers'

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.fingerprint import write_json_atomically
from pipelines.training.processes import agreed

SECONDS_BETWEEN_REPORTS = 1.0
POINTS_OF_A_CURVE = 200
PROGRESS = "progress.jsonl"


@dataclass(frozen=True, slots=True)
class Progress:
    """A point of a running training."""

    step: int
    steps: int
    epoch: float
    loss: float
    """Mean training loss since the point before."""
    learning_rate: float
    examples_per_second: float
    """Since this run began, evaluations included, as the next one."""
    tokens_per_second: float
    """Padding not counted."""
    tokens: int
    """Trained on so far, padding not counted."""
    memory_bytes: int
    """Most so far: of this process, or of the GPU's memory where it trains on one."""
    seconds: float
    """Spent on training so far, runs that ended early included."""
    seconds_left: float
    """By the pace of this run."""
    validation_loss: float | None = None
    """At an evaluation, where there is a validation split."""
    validation_score: float | None = None
    """Accuracy, or micro-F1 with several labels, or of answer tokens: at an evaluation."""

    def line(self) -> str:
        """For people."""
        validation = "" if self.validation_score is None else f", validation {self.validation_score:.3f}"
        return (
            f"step {self.step} of {self.steps}, epoch {self.epoch:.2f}, loss {self.loss:.4f}{validation}, "
            f"{self.examples_per_second:.0f} examples/s, {self.tokens_per_second:,.0f} tokens/s, "
            f"{self.memory_bytes / 2**30:.1f} GiB, {self.seconds_left:.0f} s left"
        )


def read_progress(path: Path) -> list[Progress]:
    """The points of a ``progress.jsonl``."""
    return [Progress(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def write_progress(path: Path, points: Sequence[Progress]) -> None:
    """As ``read_progress`` reads them."""
    path.write_text("".join(json.dumps(asdict(point)) + "\n" for point in points), encoding="utf-8")


def most_memory() -> int:
    """Bytes that this process has held at most: of the GPU where there is one, else of main memory."""
    import resource

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def recorder(report: Callable[[Progress], None], work: Path, rows: int, patience: int | None = None) -> Any:
    """A ``TrainerCallback`` that reports, keeps the adapter of the best evaluation, and stops where none is better.

    Better is a higher ``eval_score``, where the Trainer's metrics have one, then a lower ``eval_loss``. After
    ``patience`` evaluations without a better one training stops; None: never. Points go to ``<work>/progress.jsonl``.
    All of it is in the checkpoints, for ``restore``.

    Its attributes: ``points``, ``best`` (the adapter's tensors, None without an evaluation), ``best_epoch``,
    ``stopped_early``.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file, save_file
    from transformers import TrainerCallback

    path = work / PROGRESS

    class Recorder(TrainerCallback):
        def __init__(self) -> None:
            self.points: list[Progress] = []
            self.best: dict[str, Any] | None = None
            self.best_epoch: float | None = None
            self.stopped_early = False
            self._best_key = (float("-inf"), float("-inf"))
            self._without_better = 0
            self._begun = 0, 0.0, 0  # step, epoch and tokens at which this run began
            self._seconds_before = 0.0
            self._started = self._reported = self._logged = time.monotonic()

        def restore(self, checkpoint: Path) -> None:
            """Go on from what was recorded at ``checkpoint``."""
            said = json.loads((checkpoint / "recorder.json").read_text(encoding="utf-8"))
            self.points = read_progress(checkpoint / PROGRESS)
            self.best_epoch, self._best_key = said["best_epoch"], (said["best_score"], said["best_loss"])
            self.stopped_early, self._without_better = said["stopped_early"], said["without_better"]
            self._seconds_before = said["seconds"]
            if self.best_epoch is not None:
                self.best = load_file(checkpoint / "best.safetensors")
            shutil.copyfile(checkpoint / PROGRESS, path)

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0 and state.is_world_process_zero:
                path.unlink(missing_ok=True)  # of a training that was killed before its first checkpoint
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            self._begun = state.global_step, state.epoch or 0.0, state.num_input_tokens_seen
            self._started = self._logged = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            every = max(1, state.max_steps // POINTS_OF_A_CURVE)
            now = time.monotonic()
            # Every second at first; in a training of hours every half a minute, or the curve grows without end.
            due = now - self._logged >= max(SECONDS_BETWEEN_REPORTS, min((now - self._started) / 500, 30.0))
            due = due or state.global_step % every == 0 or state.global_step in (1, state.max_steps)
            due = due or state.epoch == int(state.epoch)  # an evaluation's point has the loss up to its step
            control.should_log = agreed(due) or control.should_log or control.should_evaluate

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs: dict[str, float] = kwargs["logs"]
            if "loss" not in logs:  # an evaluation's, or the summary
                return
            self._logged = time.monotonic()
            seconds = self._logged - self._started
            step, epoch, tokens = self._begun
            self._add(
                Progress(
                    step=state.global_step,
                    steps=state.max_steps,
                    epoch=round(state.epoch, 4),
                    loss=logs["loss"],
                    learning_rate=logs["learning_rate"],
                    examples_per_second=round((state.epoch - epoch) * rows / seconds, 2),
                    tokens_per_second=round((state.num_input_tokens_seen - tokens) / seconds, 1),
                    tokens=int(state.num_input_tokens_seen),
                    memory_bytes=most_memory(),
                    seconds=round(self._seconds_before + seconds, 3),
                    seconds_left=round(seconds / (state.global_step - step) * (state.max_steps - state.global_step), 3),
                ),
                state,
            )

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            score, loss = kwargs["metrics"].get("eval_score"), kwargs["metrics"]["eval_loss"]
            key = (0.0 if score is None else score, -loss)
            if key > self._best_key:
                self._best_key, self.best_epoch, self._without_better = key, state.epoch, 0
                state_dict = get_peft_model_state_dict(kwargs["model"], save_embedding_layers=False)
                self.best = {name: value.detach().cpu().clone() for name, value in state_dict.items()}
            else:
                self._without_better += 1
            self._add(replace(self.points[-1], validation_loss=loss, validation_score=score), state)
            if patience is not None and self._without_better >= patience and state.global_step < state.max_steps:
                self.stopped_early = control.should_training_stop = control.should_save = True

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not state.is_world_process_zero:
                return
            checkpoint = work / f"checkpoint-{state.global_step}"
            if self.best is not None:
                save_file(self.best, checkpoint / "best.safetensors")
            shutil.copyfile(path, checkpoint / PROGRESS)
            said = {
                "best_epoch": self.best_epoch,
                "best_score": self._best_key[0],
                "best_loss": self._best_key[1],
                "stopped_early": self.stopped_early,
                "without_better": self._without_better,
                "seconds": self._seconds_before + time.monotonic() - self._started,
            }
            write_json_atomically(checkpoint / "recorder.json", said)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                report(self.points[-1])

        def _add(self, point: Progress, state: Any) -> None:
            self.points.append(point)
            if not state.is_world_process_zero:
                return
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(point)) + "\n")
            now = time.monotonic()
            if now - self._reported >= SECONDS_BETWEEN_REPORTS:
                self._reported = now
                report(point)

    return Recorder()
