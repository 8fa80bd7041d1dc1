"""What a use case's YAML says about its labelled examples."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.settings import Settings


class Expectation(Settings):
    """One more Great Expectations expectation, by its name and arguments."""

    expectation: str = Field(min_length=1, description="Snake-case name, e.g. expect_column_values_to_not_match_regex.")
    arguments: dict[str, Any] = Field(
        default={},
        description="Its keyword arguments. Columns are text, label (several joined by '; '), group (null where the "
        "row names none), origin, author, characters.",
    )


class LabelSettings(Settings):
    """Where labelled examples come from and what makes them acceptable."""

    url: str = Field(
        min_length=1,
        description="Folder or file of labelled examples: relative to the use case's folder, absolute, or fsspec URL. "
        "A row taken out of a file, or corrected, is withdrawn; taking a whole file away withdraws nothing.",
    )
    glob: tuple[str, ...] = Field(
        default=("*.jsonl", "*.csv"), min_length=1, description="Which files of the folder hold examples."
    )
    categories: tuple[str, ...] | None = Field(
        default=None, min_length=2, description="The allowed labels; null: every label that occurs is allowed."
    )
    multi_label: bool = Field(default=False, description="Whether an example can have several labels, or none.")
    text_column: str = Field(default="text", description="Column with the text.")
    label_column: str = Field(default="label", description="Column with the label, or a list of labels.")
    group_column: str = Field(
        default="group",
        description="Column naming what an example belongs to (document, customer, conversation): a group is never "
        "split between training and evaluation. Rows without one are grouped by their text.",
    )
    split_column: str = Field(
        default="split", description="Column with a given split (train, validation, test), where there is one."
    )
    file_splits: dict[str, Literal["train", "validation", "test"]] = Field(
        default={}, description="Files whose rows all have a given split: glob of the file name to the split."
    )
    minimum_characters: int = Field(default=8, ge=1, description="Shorter texts are quarantined.")
    maximum_characters: int = Field(default=4000, ge=1, description="Longer texts are quarantined.")
    expectations: tuple[Expectation, ...] = Field(default=(), description="Further Great Expectations expectations.")
    minimum_accepted: int = Field(
        default=50, ge=1, description="Fewer accepted examples than this fail the blocking check."
    )
    maximum_quarantined_share: float = Field(
        default=0.2, ge=0, le=1, description="A larger share of quarantined examples fails the blocking check."
    )
    minimum_new: int = Field(
        default=50, ge=1, description="How many accepted examples that no training has seen start a retraining."
    )
    maximum_attempts: int = Field(
        default=3, ge=1, description="How often a failed retraining is tried again before somebody has to look."
    )
    validation_share: float = Field(default=0.1, ge=0, lt=0.5, description="Share of groups for validation.")
    near_copies: Literal["block", "leave_out"] = Field(
        default="block",
        description="What training texts nearly equal to held-out ones do: block the training, or be left out of it.",
    )
    schedule: str | None = Field(default="30 * * * *", description="Cron expression for reading new examples.")

    @model_validator(mode="after")
    def _bounds(self) -> LabelSettings:
        if self.minimum_characters > self.maximum_characters:
            raise ValueError(
                f"minimum_characters {self.minimum_characters} exceeds maximum_characters {self.maximum_characters}"
            )
        return self
