"""What a use case's YAML says about fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipelines.settings import ByField, Settings

Task = Literal["classify", "generate"]


class LoraSettings(Settings):
    """The adapter's shape (Hu et al., 2021, arXiv:2106.09685)."""

    variant: Literal["lora", "rslora", "dora"] = Field(
        default="lora",
        description="lora; rslora scales by alpha / sqrt(rank) (arXiv:2312.03732); dora learns magnitudes apart "
        "(arXiv:2402.09353).",
    )
    rank: int = Field(default=16, ge=1, le=512, description="Rank r of the update B·A.")
    alpha: float = Field(default=32.0, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Dropout on the adapter's input, beside the base's own."
    )
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        default="all-linear", description="Names of the layers to adapt, or all-linear."
    )
    upper_layers: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the base's blocks to adapt, counted from the output. With .5 the lower half reads texts "
        "as it did: less of what the base can do is forgotten where few examples teach a manner, in less time.",
    )


class FineTuneSettings(Settings):
    """Base model and training run: what both tasks have in common."""

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
    learning_rate: float = Field(default=5e-4, gt=0, lt=1, description="Peak learning rate of AdamW.")
    batch_size: int = Field(default=32, ge=1, description="Examples in an optimiser step.")
    micro_batch_tokens: int | None = Field(
        default=None,
        ge=16,
        description="Most tokens at once on a device, padding included; null: measured. Smaller takes less memory and "
        "changes nothing else.",
    )
    maximum_tokens: int = Field(default=256, ge=16, description="Longer examples are cut to this many tokens.")
    warmup_share: float = Field(default=0.06, ge=0, lt=1, description="Share of the steps that warm up.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW weight decay.")
    patience: int | None = Field(
        default=3, ge=1, description="Evaluations without a better one after which training stops early; null: never."
    )
    refit: bool = Field(
        default=False,
        description="Train again, for as long as was best, on training and validation examples together: twice the "
        "time, more to learn from. What validation says is of the first training.",
    )
    checkpoint_minutes: float = Field(
        default=10.0, gt=0, description="A killed training resumes from its last checkpoint: how far they are apart."
    )
    seed: int = Field(default=17, ge=0, description="Seed of everything random in training.")


class ClassifySettings(FineTuneSettings):
    """Sequence classification with an encoder or a decoder."""

    task: Literal["classify"] = Field(default="classify", description="classify: a text gets labels.")
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: rare categories count more, by the inverse of their frequency."
    )
    label_smoothing: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the truth that training spreads over all categories, where a text has one label: some "
        "labels are wrong.",
    )
    abstain_below: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Calibrated probability below which the model says that it does not know; 0: never.",
    )


class GenerateSettings(FineTuneSettings):
    """A causal language model, trained on chats."""

    task: Literal["generate"] = Field(description="generate: a chat gets an answer.")
    base_model: str = Field(
        min_length=1, description="A Hub id, or a folder with safetensors, tokenizer and chat template."
    )
    lora: LoraSettings = Field(default=LoraSettings(dropout=0.05), description="The adapter's shape.")
    epochs: float = Field(default=3.0, gt=0, description="Passes over the training split; the best one is kept.")
    learning_rate: float = Field(default=2e-4, gt=0, lt=1, description="Peak learning rate of AdamW.")
    batch_size: int = Field(default=16, ge=1, description="Chats in an optimiser step.")
    maximum_tokens: int = Field(
        default=1024,
        ge=16,
        description="Longest chat, answer and all; longer ones are left out, and said so.",
    )
    packing: bool = Field(
        default=True, description="Short chats share a sequence without seeing each other: less padding, same result."
    )
    save_memory: bool | None = Field(
        default=None,
        description="Compute activations again in the backward pass instead of keeping them: less memory, up to half "
        "as much time again, the same result; null: where not even one chat fits otherwise.",
    )
    quantised_base: Literal["nf4", "int8"] | None = Field(
        default=None, description="QLoRA (arXiv:2305.14314): hold the base in 4 or 8 bits; needs bitsandbytes."
    )


def _classify_by_default(value: Any) -> Any:
    return {"task": "classify", **value} if isinstance(value, dict) else value


FineTune = Annotated[
    ClassifySettings | GenerateSettings,
    Field(discriminator="task"),
    ByField("task", "classify"),
    BeforeValidator(_classify_by_default),
]
