"""What a use case's YAML says about evaluation and the gate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.settings import Settings


class GateSettings(Settings):
    """When a candidate may replace the champion."""

    metric: Literal["macro_f1", "micro_f1", "accuracy"] = Field(
        default="macro_f1", description="The metric that decides."
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


class EvaluationSettings(Settings):
    """Held-out rows and the gate."""

    held_out_share: float = Field(
        default=0.2, gt=0, lt=0.9, description="Share of groups that training never sees, fixed by a hash of the group."
    )
    origins: tuple[Literal["human", "rule", "model"], ...] = Field(
        default=("human",), min_length=1, description="Whose labels count in the evaluation."
    )
    gate: GateSettings = Field(default=GateSettings(), description="When a candidate may replace the champion.")
