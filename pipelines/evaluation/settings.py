"""What a use case's YAML says about evaluation and the gate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.settings import Settings

ClassificationMetric = Literal["macro_f1", "micro_f1", "accuracy"]
GenerationMetric = Literal["exact_match", "token_f1", "valid_format", "style", "supported", "refusal", "stopped"]
Metric = ClassificationMetric | GenerationMetric


class GateSettings(Settings):
    """When a candidate may replace the champion."""

    metric: Metric | None = Field(
        default=None,
        description="The metric that decides; null: macro_f1 where a model classifies, token_f1 where it generates.",
    )
    margin: float = Field(
        default=0.0, ge=0, lt=1, description="The candidate must be better than the champion by more than this."
    )
    confidence: float = Field(
        default=0.9, gt=0.5, lt=1, description="Confidence of the paired bootstrap interval of the difference."
    )
    minimum_rows: int = Field(default=50, ge=1, description="Fewer held-out rows than this decide nothing.")
    minimum_score: float = Field(
        default=0.0, ge=0, le=1, description="A candidate below this is refused whatever the champion has."
    )
    slice_floors: dict[str, float] = Field(
        default={},
        description="Least score on a slice (column=value of labels.slice_columns), whatever the champion has.",
    )
    floors: dict[Metric, float] = Field(
        default={}, description="Least score of further metrics, whatever the champion has: {valid_format: 0.98}."
    )
    maximum_regression: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="A candidate that is surely worse than the champion by more than this on the slice 'regression' is "
        "refused.",
    )
    minimum_stopped: float = Field(
        default=0.8, ge=0, le=1, description="Least share of generated answers that end by themselves."
    )
    maximum_calibration_error: float | None = Field(
        default=None, gt=0, le=1, description="Refuse a classifier whose probabilities are further off than this."
    )
    approval: bool = Field(
        default=False,
        description="Whether a person has to approve what passed (job <use case>_approve_candidate) before it is "
        "exported.",
    )


def deciding_metric(gate: GateSettings, task: str) -> Metric:
    """The metric that decides."""
    return gate.metric or ("token_f1" if task == "generate" else "macro_f1")


class EvaluationSettings(Settings):
    """Held-out rows and the gate."""

    held_out_share: float = Field(
        default=0.2, gt=0, lt=0.9, description="Share of groups that training never sees, fixed by a hash of the group."
    )
    origins: tuple[Literal["human", "rule", "model"], ...] = Field(
        default=("human",), min_length=1, description="Whose labels count in the evaluation."
    )
    maximum_rows: int | None = Field(
        default=500,
        ge=1,
        description="Most held-out chats that answers are generated for, drawn by hash; classification takes all.",
    )
    maximum_answer_tokens: int = Field(default=512, ge=1, description="A generated answer ends here at the latest.")
    gate: GateSettings = Field(default=GateSettings(), description="When a candidate may replace the champion.")
