"""What a use case's YAML says about release."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from pipelines.settings import Settings

Quantisation = Literal["F16", "Q8_0", "Q4_K_M"]


class ReleaseSettings(Settings):
    """What is published."""

    quantisations: tuple[Quantisation, ...] = Field(
        default=("F16", "Q8_0", "Q4_K_M"), min_length=1, description="GGUF files to write."
    )
    serve: Quantisation = Field(default="Q8_0", description="The file that answers questions here.")
    minimum_agreement: dict[Quantisation, float] = Field(
        default={"F16": 0.995, "Q8_0": 0.99, "Q4_K_M": 0.9},
        description="Per quantisation, the least share of held-out rows predicted as the merged model predicts them.",
    )

    @field_validator("quantisations")
    @classmethod
    def _distinct(cls, value: tuple[Quantisation, ...]) -> tuple[Quantisation, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"quantisations {list(value)} name one twice; name each once")
        return value
