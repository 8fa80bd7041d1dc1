"""Fine-tuning a causal language model on chats with LoRA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.artifacts import Artifact
from pipelines.errors import ConfigError
from pipelines.prompt import PromptSettings
from pipelines.training.progress import Progress
from pipelines.training.settings import GenerateSettings


def fit_chat(
    settings: GenerateSettings,
    prompt: PromptSettings,
    training_set: Artifact,
    base: Path,
    folder: Path,
    work: Path,
    progress: Callable[[Progress], None],
) -> dict[str, Any]:
    """Train, write the adapter's files to ``folder``, and return what is particular to it in the manifest."""
    del prompt, training_set, base, folder, work, progress
    raise ConfigError(f"task {settings.task!r} is not there yet")
