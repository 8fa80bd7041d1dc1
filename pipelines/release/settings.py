"""What a use case's YAML says about release."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pipelines.settings import Settings, without_credentials

Quantisation = Literal[
    "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_M",
    "Q2_K",
]  # fmt: skip
"""As llama.cpp names them, the most exact first."""

MINIMUM_AGREEMENT: dict[Quantisation, float] = {
    "F16": 0.995, "BF16": 0.99, "Q8_0": 0.99, "Q6_K": 0.97, "Q5_K_M": 0.95, "Q5_K_S": 0.95, "Q5_0": 0.95,
    "Q4_K_M": 0.9, "Q4_K_S": 0.9, "Q4_0": 0.88, "IQ4_NL": 0.9, "IQ4_XS": 0.9, "Q3_K_M": 0.8, "Q2_K": 0.6,
}  # fmt: skip

MINIMUM_SCORE: dict[Quantisation, float] = {
    "F16": 0.99, "BF16": 0.98, "Q8_0": 0.98, "Q6_K": 0.97, "Q5_K_M": 0.96, "Q5_K_S": 0.96, "Q5_0": 0.96,
    "Q4_K_M": 0.95, "Q4_K_S": 0.95, "Q4_0": 0.93, "IQ4_NL": 0.95, "IQ4_XS": 0.95, "Q3_K_M": 0.9, "Q2_K": 0.8,
}  # fmt: skip


class HubSettings(Settings):
    """A repository on the Hugging Face Hub that published versions are sent to; the token is HF_TOKEN."""

    repository: str = Field(
        pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name; versions become its tags and commits."
    )
    private: bool = Field(
        default=True, description="Whether the repository has to be private; one that is made here then is."
    )
    replaces: str | None = Field(
        default=None,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="owner/name of the repository that versions went to before; its card then points to this one "
        "(new_version).",
    )

    @model_validator(mode="after")
    def _another(self) -> HubSettings:
        if self.replaces == self.repository:
            raise ValueError(f"replaces {self.replaces!r} is the repository itself; name the one before it, or none")
        return self


OLLAMA_NAME = r"([A-Za-z0-9][A-Za-z0-9_.-]*/){0,2}[A-Za-z0-9][A-Za-z0-9_.-]{0,79}"
"""A model there, without a tag."""


class OllamaSettings(Settings):
    """An Ollama server that published versions are sent to."""

    url: str = Field(default="http://127.0.0.1:11434", description="Of the server: http:// or https://.")
    model: str | None = Field(
        default=None, pattern=f"^{OLLAMA_NAME}$", description="Name there, without a tag; null: the use case's."
    )

    @field_validator("url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            whole = False
        if (
            not whole
            or "@" in parts.netloc
            or parts.query
            or parts.fragment
            or not value.isascii()
            or len(value.split()) != 1
        ):
            raise ValueError(
                f"url {without_credentials(value)!r} is no address of an Ollama server: give http://host:11434 or "
                "https://host, without user, password and query"
            )
        return value.rstrip("/")


class ReleaseSettings(Settings):
    """What is published."""

    quantisations: tuple[Quantisation, ...] = Field(
        default=("F16", "Q8_0", "Q4_K_M"), min_length=1, description="GGUF files to write."
    )
    serve: Quantisation = Field(default="Q8_0", description="The file that answers questions here.")
    importance_matrix: bool = Field(
        default=False,
        description="Weigh what matters on training texts when quantising below 8 bits: takes longer, loses less.",
    )
    adapter_gguf: bool = Field(
        default=True,
        description="Also write the adapter alone as GGUF, for people who hold the base, where GGUF can represent it.",
    )
    minimum_agreement: dict[Quantisation, float] = Field(
        default=MINIMUM_AGREEMENT,
        description="Per quantisation, the least share of held-out predictions that are the merged model's: labels "
        "(with several, each is a prediction), or next tokens. One that is not named keeps its default.",
    )
    minimum_score: dict[Quantisation, float] = Field(
        default=MINIMUM_SCORE,
        description="Per quantisation of a model that writes, the least score on held-out rows as a share of the "
        "merged model's, in the gate's metric.",
    )
    keep_versions: int = Field(
        default=10, ge=1, description="Published versions to keep, the served one and what it can fall back to aside."
    )
    hub: HubSettings | None = Field(default=None, description="Send published versions to the Hugging Face Hub too.")
    ollama: OllamaSettings | None = Field(default=None, description="Send published versions to an Ollama server too.")

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

    @field_validator("minimum_score")
    @classmethod
    def _scores(cls, value: dict[Quantisation, float]) -> dict[Quantisation, float]:
        for name, share in value.items():
            if not 0 <= share <= 1:
                raise ValueError(f"minimum_score of {name} is {share}: give a share from 0 to 1")
        return {**MINIMUM_SCORE, **value}
