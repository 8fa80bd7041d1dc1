"""What a use case's YAML says about fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.settings import Settings


class LoraSettings(Settings):
    """The adapter's shape (Hu et al., 2021, arXiv:2106.09685)."""

    rank: int = Field(default=16, ge=1, le=512, description="Rank r of the update B·A.")
    alpha: float = Field(default=32.0, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Dropout on the adapter's input, beside the base's own."
    )
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        default="all-linear", description="Names of the layers to adapt, or all-linear."
    )


class FineTuneSettings(Settings):
    """Base model and training run."""

    task: Literal["classify"] = Field(
        default="classify", description="classify: sequence classification with an encoder."
    )
    base_model: str = Field(
        default="all-MiniLM-L6-v2",
        min_length=1,
        description="all-MiniLM-L6-v2 (bundled, no download), a Hub id, or a folder with safetensors.",
    )
    base_revision: str | None = Field(
        default=None, description="Pinned revision (commit) of a Hub model; required for a Hub id."
    )
    lora: LoraSettings = Field(default=LoraSettings(), description="The adapter's shape.")
    epochs: float = Field(default=6.0, gt=0, description="Passes over the training split; the best one is kept.")
    learning_rate: float = Field(default=8e-4, gt=0, lt=1, description="Peak learning rate of AdamW.")
    batch_size: int = Field(default=32, ge=1, description="Examples in an optimiser step.")
    maximum_tokens: int = Field(default=256, ge=16, description="Longer texts are cut to this many tokens.")
    warmup_share: float = Field(default=0.06, ge=0, lt=1, description="Share of the steps that warm up.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW weight decay.")
    seed: int = Field(default=17, ge=0, description="Seed of everything random in training.")
