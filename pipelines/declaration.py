"""What one use case's YAML declares, framework-free: the Dagster component and the query surface both read it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from pipelines.corpus.settings import Name, RetrievalSettings, Source
from pipelines.environment import REPOSITORY, Environment
from pipelines.errors import ConfigError
from pipelines.evaluation.settings import EvaluationSettings
from pipelines.labels.settings import LabelSettings
from pipelines.prompt import PromptSettings
from pipelines.release.settings import ReleaseSettings
from pipelines.settings import Settings
from pipelines.training.settings import FineTune, Task

USE_CASES = REPOSITORY / "pipelines" / "usecases"
"""One folder a use case, with its ``defs.yaml``."""

TRAINING_ASSETS = (
    "labelled_examples",
    "training_set",
    "lora_adapter",
    "evaluation_report",
    "gguf_model",
    "published_model",
)
"""What a retraining makes, in order."""

RESERVED = ("document_index", *TRAINING_ASSETS, "labels")
"""Names that a source cannot have: other assets', and the labels' schedule."""


class Declaration(Settings):
    """A use case: what it knows (sources, retrieval) and how it behaves (labels, fine-tuning, release)."""

    name: Name = Field(description="Name of the use case, the same as its folder: prefix of its assets and jobs.")
    description: str = Field(default="", description="What it is for, in a sentence.")
    owner: str | None = Field(default=None, description="Who answers for it: team:<name> or an e-mail address.")
    sources: tuple[Source, ...] = Field(default=(), description="Where documents come from: one asset each.")
    retrieval: RetrievalSettings = Field(
        default=RetrievalSettings(), description="How documents are cut, embedded and searched."
    )
    labels: LabelSettings | None = Field(default=None, description="Labelled examples, if the use case has any.")
    fine_tune: FineTune | None = Field(
        default=None, description="Fine-tuning; without it there are no training assets."
    )
    prompt: PromptSettings = Field(
        default=PromptSettings(), description="What a chat model is told beside the question, in training and serving."
    )
    evaluation: EvaluationSettings = Field(
        default=EvaluationSettings(), description="Held-out rows, and the gate before a release."
    )
    release: ReleaseSettings = Field(default=ReleaseSettings(), description="What is published.")

    @model_validator(mode="after")
    def _whole(self) -> Declaration:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources named twice: {', '.join(twice)}; each source needs its own name")
        taken = sorted(set(names) & set(RESERVED))
        if taken:
            raise ValueError(f"source name {taken[0]!r} is taken by another asset; reserved: {', '.join(RESERVED)}")
        if self.fine_tune is not None and self.labels is None:
            raise ValueError("fine_tune needs labels: say where the labelled examples come from")
        if not self.sources and self.labels is None:
            raise ValueError("nothing to do: give the use case sources, labels, or both")
        if self.release.serve not in self.release.quantisations:
            raise ValueError(
                f"release.serve {self.release.serve!r} is not written; quantisations: "
                f"{', '.join(self.release.quantisations)}"
            )
        if self.release.ollama is not None and self.task == "classify":
            raise ValueError("release.ollama needs fine_tune with task: generate: Ollama runs chat models only")
        return self

    @property
    def task(self) -> Task:
        """What labelled examples are for."""
        return "classify" if self.fine_tune is None else self.fine_tune.task

    @property
    def label_settings(self) -> LabelSettings | None:
        """The labels' settings, with the longest chat that fine-tuning takes where they name none."""
        longest = None if self.labels is None else self.labels.maximum_tokens
        if self.labels is None or self.fine_tune is None or self.task != "generate" or longest is not None:
            return self.labels
        return self.labels.model_copy(update={"maximum_tokens": self.fine_tune.maximum_tokens})

    def base(self, environment: Environment, folder: Path) -> Path:
        """Where relative paths of this use case start: its own ``folder``, unless ``FRESHET_DATA`` says otherwise."""
        return folder if environment.data is None else environment.data / self.name


def declared(root: Path = USE_CASES) -> tuple[str, ...]:
    """Names of the use cases below ``root``."""
    return tuple(sorted(path.parent.name for path in root.glob("*/defs.yaml")))


def load_declaration(name: str, root: Path = USE_CASES) -> Declaration:
    """Read one use case.

    Raises:
        ConfigError: there is none of this name, or its YAML is not valid.
    """
    if name not in declared(root):
        known = ", ".join(declared(root)) or "none"
        raise ConfigError(f"no use case {name!r}; there are: {known}. A new one is a file {root / name / 'defs.yaml'}")
    path = root / name / "defs.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Declaration.model_validate(_fill_in(document["attributes"], os.environ))
    except (yaml.YAMLError, KeyError, TypeError, ValidationError) as error:
        raise ConfigError(f"{path} is not a valid use case: {error}; `dg check yaml` shows the line") from error


def _fill_in(value: Any, variables: Mapping[str, str]) -> Any:
    """``{{ env.NAME }}`` replaced, as Dagster does it for the component."""
    if isinstance(value, dict):
        return {key: _fill_in(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fill_in(inner, variables) for inner in value]
    if isinstance(value, str):
        return re.sub(r"\{\{\s*env\.(\w+)\s*\}\}", lambda match: variables.get(match[1], ""), value)
    return value
