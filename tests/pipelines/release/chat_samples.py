"""A chat adapter trained for real on the tiny base, for the tests of the release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.artifacts import Artifact
from pipelines.evaluation.settings import EvaluationSettings, GateSettings
from pipelines.prompt import PromptSettings
from pipelines.training.job import TrainingJob, train
from pipelines.training.settings import GenerateSettings, LoraSettings
from tests.pipelines.release.samples import no_progress

CHAT_USE_CASE = "shop"
CHAT_PROMPT = PromptSettings(
    system="You are kind .",
    with_context="Use this : {context} Question : {question}",
    without_context="No information was found . Question : {question}",
    ask_without_context=True,
    refusal="I do not know",
    context_tokens=64,
)
CHAT_EVALUATION = EvaluationSettings(maximum_answer_tokens=64, gate=GateSettings(minimum_rows=8))


def train_chat(base: Path, training_set: Artifact, output: Path, **settings: Any) -> Artifact:
    """An adapter of task generate on ``base``; by default trained until it knows its answers."""
    usual: dict[str, Any] = {
        "epochs": 14,
        "batch_size": 8,
        "learning_rate": 0.01,
        "patience": None,
        "lora": LoraSettings(rank=32, alpha=32, dropout=0),
    }
    fine_tune = GenerateSettings(task="generate", base_model=str(base), **{**usual, **settings})
    job = TrainingJob(
        use_case=CHAT_USE_CASE, training_set=training_set.path, output=output, settings=fine_tune, prompt=CHAT_PROMPT
    )
    return train(job, progress=no_progress)
