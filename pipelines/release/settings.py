"""What a use case's YAML says about release."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from pipelines.settings import Settings

Quantisation = Literal["F16", "Q8_0", "Q4_K_M"]

MINIMUM_AGREEMENT: dict[Quantisation, float] = {"F16": 0.995, "Q8_0": 0.99, "Q4_K_M": 0.9}


class ReleaseSettings(Settings):
    """What is published."""

    quantisations: tuple[Quantisation, ...] = Field(
        default=("F16", "Q8_0", "Q4_K_M"), min_length=1, description="GGUF files to write."
    )
    serve: Quantisation = Field(default="Q8_0", description="The file that answers questions here.")
    minimum_agreement: dict[Quantisation, float] = Field(
        default=MINIMUM_AGREEMENT,
        description="Per quantisation, the least share of held-out predictions that are the merged model's; with "
        "several labels, each is a prediction. One that is not named keeps its default.",
    )

    @field_validator("quantisations")
    @classmethod
    def _distinct(cls, value: tuple[Quantisation, ...]) -> tuple[Quantisation, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"quantisations {list(value)} name one twice; name each once")
        return value

    @field_validator("minimum_agreement")
    @classmethod
    def _shares(cls, value: dict[Quantisation, float]) -> dict[Quantisation, float]:
        for name, share in value.items():
            if not 0 <= share <= 1:
                raise ValueError(f"minimum_agreement of {name} is {share}: give a share from 0 to 1")
        return {**MINIMUM_AGREEMENT, **value}
