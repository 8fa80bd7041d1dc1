"""What a use case's YAML says about its labelled examples."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.settings import Settings

Shape = Literal["labelled", "instruction", "prompt_completion", "input_output", "sharegpt", "messages", "preference"]
"""How a row says what it means: text and label(s); instruction, input, output; prompt, completion; input, output;
ShareGPT's conversations; OpenAI's messages; chosen and rejected."""

Handling = Literal["off", "flag", "mask", "quarantine"]


class Expectation(Settings):
    """One more Great Expectations expectation, by its name and arguments."""

    expectation: str = Field(min_length=1, description="Snake-case name, e.g. expect_column_values_to_not_match_regex.")
    arguments: dict[str, Any] = Field(
        default={},
        description="Its keyword arguments. Columns are text and label (several joined by '; ') where a model "
        "classifies, and prompt (the turns before the answer), answer, system, rejected, turns where it generates; "
        "with both group (null where the row names none), origin, author, characters, tokens. With mostly, or about "
        "uniqueness, it is judged among all rows that are good otherwise.",
    )


class SqlLabels(Settings):
    """A table or query whose rows are examples, in the columns that a file's rows would have."""

    url: str = Field(min_length=1, description="SQLAlchemy URL; keep its password in a variable: {{ env.NAME }}.")
    query: str = Field(
        min_length=1,
        description="Name of a table, or a SELECT. A row that it no longer returns is withdrawn.",
    )


class LabelSettings(Settings):
    """Where labelled examples come from and what makes them acceptable."""

    url: str | None = Field(
        default=None,
        min_length=1,
        description="Folder or file of labelled examples: relative to the use case's folder, absolute, or fsspec URL. "
        "A row taken out of a file, or corrected, is withdrawn; taking a whole file away withdraws nothing.",
    )
    glob: tuple[str, ...] = Field(
        default=("*.jsonl", "*.csv", "*.parquet"),
        min_length=1,
        description="Which files of the folder hold examples.",
    )
    sql: SqlLabels | None = Field(default=None, description="A database that examples are read from as well.")
    feedback: bool = Field(
        default=False,
        description="Whether corrections and approvals that applications report (POST /feedback) become examples.",
    )
    shape: Shape | Literal["auto"] = Field(
        default="auto",
        description="How a row says what it means; auto: recognised by its columns, each row by itself.",
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
    key_column: str = Field(
        default="id",
        description="Column naming the item: of several rows about one item only the newest counts, so that a "
        "correction replaces what it corrects. Unless it is named, another file's row with the same key and next to no "
        "word in common is another item: files may number their rows anew.",
    )
    time_column: str = Field(
        default="time",
        description="Column with the time of labelling (ISO 8601); without it the order of arrival says.",
    )
    slice_columns: tuple[str, ...] = Field(
        default=(), description="Columns whose values name slices that evaluation reports, and the gate can guard."
    )
    file_splits: dict[str, Literal["train", "validation", "test"]] = Field(
        default={}, description="Files whose rows all have a given split: glob of the file name to the split."
    )
    minimum_characters: int = Field(
        default=8, ge=1, description="Shorter texts are quarantined; of a chat prompt and answer count together."
    )
    maximum_characters: int = Field(
        default=4000, ge=1, description="Longer texts are quarantined; of a chat prompt and answer count together."
    )
    minimum_tokens: int = Field(default=1, ge=1, description="Fewer tokens than this, answer and all: quarantined.")
    maximum_tokens: int | None = Field(
        default=None,
        ge=1,
        description="More tokens than this, answer and all: quarantined; null: as many as fine-tuning takes in a chat, "
        "and any number where it classifies, which cuts.",
    )
    languages: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Allowed languages (ISO 639-1, such as en, de) of texts, and of a chat's last question and answer; "
        "null: any. Texts too short to tell pass.",
    )
    personal_data: Handling = Field(
        default="flag",
        description="E-mail addresses, telephone, card and account numbers and the like: off, flag (a warning), mask "
        "(replaced by their kind), or quarantine.",
    )
    phone_countries: tuple[str, ...] = Field(
        default=("US", "GB"),
        description="Countries (ISO 3166, such as US, DE) whose telephone numbers are recognised without a leading +.",
    )
    secrets: Handling = Field(
        default="quarantine", description="Keys, tokens, passwords: off, flag, mask, or quarantine."
    )
    near_duplicates: Literal["off", "flag", "quarantine"] = Field(
        default="flag", description="Examples that nearly repeat an earlier one (word pairs, Jaccard .8 and more)."
    )
    minimum_per_category: int = Field(
        default=8, ge=0, description="Categories with fewer accepted training examples are warned of."
    )
    maximum_drift: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="Jensen-Shannon distance between new examples and the last training set, by labels and by length, "
        "beyond which a check warns.",
    )
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
    cooldown_hours: float = Field(
        default=0.0, ge=0, description="Hours after a retraining started in which none follows."
    )
    maximum_age_days: float | None = Field(
        default=None,
        gt=0,
        description="Fewer new examples than minimum_new start a retraining too once the oldest has waited so long.",
    )
    maximum_score_drop: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Retrain without new examples, too, when the share of approved answers of the served version falls "
        "by more than this from its first score_window feedbacks to its last.",
    )
    score_window: int = Field(default=100, ge=10, description="Feedbacks that a share is taken over.")
    replay: int | None = Field(
        default=None,
        ge=0,
        description="Most training examples of earlier trainings that are trained on again, drawn by hash; null: all.",
    )
    regression_rows: int = Field(
        default=200,
        ge=0,
        description="The oldest so many held-out examples are the slice 'regression', where nothing may get worse.",
    )
    retrieve: bool = Field(
        default=True,
        description="Whether chats that state no context get what the served index returns for their question, where "
        "there is one: the model then learns to answer from what it will be given.",
    )
    validation_share: float = Field(default=0.1, ge=0, lt=0.5, description="Share of groups for validation.")
    near_copies: Literal["block", "leave_out"] = Field(
        default="block",
        description="What training texts nearly equal to held-out ones do: block the training, or be left out of it.",
    )
    schedule: str | None = Field(default="30 * * * *", description="Cron expression for reading new examples.")

    @model_validator(mode="after")
    def _bounds(self) -> LabelSettings:
        if self.url is None and self.sql is None and not self.feedback:
            raise ValueError("no labelled examples: give labels.url, labels.sql, or feedback: true")
        if self.minimum_characters > self.maximum_characters:
            raise ValueError(
                f"minimum_characters {self.minimum_characters} exceeds maximum_characters {self.maximum_characters}"
            )
        return self
