"""What a running training reports: to its caller about every second, and every point to ``progress.jsonl``."""

# ruff: noqa: ARG002 - the signatures of the recorder are transformers'

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

SECONDS_BETWEEN_REPORTS = 1.0
POINTS_OF_A_CURVE = 200


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
    tokens: int
    """Tokens trained on so far, padding not counted."""
    seconds: float
    """Since the first step began."""
    seconds_left: float
    validation_loss: float | None = None
    """At the end of an epoch, where there is a validation split."""
    validation_score: float | None = None
    """Accuracy, or micro-F1 with several labels: at the end of an epoch, where there is a validation split."""

    def line(self) -> str:
        """For people."""
        validation = "" if self.validation_score is None else f", validation {self.validation_score:.3f}"
        return (
            f"step {self.step} of {self.steps}, epoch {self.epoch:.2f}, loss {self.loss:.4f}{validation}, "
            f"{self.examples_per_second:.0f} examples/s, {self.seconds_left:.0f} s left"
        )


def read_progress(path: Path) -> list[Progress]:
    """The points of a ``progress.jsonl``."""
    return [Progress(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def recorder(report: Callable[[Progress], None], path: Path, rows: int) -> Any:
    """A ``TrainerCallback`` that reports, and keeps the adapter of the best epoch in memory.

    Its attributes: ``points``, ``best`` (the adapter's tensors, None without validation), ``best_epoch``.
    """
    from peft import get_peft_model_state_dict
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def __init__(self) -> None:
            self.points: list[Progress] = []
            self.best: dict[str, Any] | None = None
            self.best_epoch: float | None = None
            self._best_key = (float("-inf"), float("-inf"))
            self._started = self._reported = self._logged = time.monotonic()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._started = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            every = max(1, state.max_steps // POINTS_OF_A_CURVE)
            due = time.monotonic() - self._logged >= SECONDS_BETWEEN_REPORTS
            control.should_log = due or state.global_step % every == 0 or state.global_step in (1, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs: dict[str, float] = kwargs["logs"]
            if "loss" not in logs:  # an evaluation's, or the summary
                return
            self._logged = time.monotonic()
            seconds = self._logged - self._started
            self._add(
                Progress(
                    step=state.global_step,
                    steps=state.max_steps,
                    epoch=round(state.epoch, 4),
                    loss=logs["loss"],
                    learning_rate=logs["learning_rate"],
                    examples_per_second=round(state.epoch * rows / seconds, 2),
                    tokens=int(state.num_input_tokens_seen),
                    seconds=round(seconds, 3),
                    seconds_left=round(seconds / state.global_step * (state.max_steps - state.global_step), 3),
                )
            )

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            score, loss = kwargs["metrics"]["eval_score"], kwargs["metrics"]["eval_loss"]
            key = (score, -loss)
            if key > self._best_key:
                self._best_key, self.best_epoch = key, state.epoch
                state_dict = get_peft_model_state_dict(kwargs["model"], save_embedding_layers=False)
                self.best = {name: value.clone() for name, value in state_dict.items()}
            self._add(replace(self.points[-1], validation_loss=loss, validation_score=score))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            report(self.points[-1])

        def _add(self, point: Progress) -> None:
            self.points.append(point)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(point)) + "\n")
            now = time.monotonic()
            if now - self._reported >= SECONDS_BETWEEN_REPORTS:
                self._reported = now
                report(point)

    return Recorder()
