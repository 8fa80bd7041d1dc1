"""A labelled example: as somebody submitted it, and as training reads it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipelines.fingerprint import fingerprint

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
ORIGINS = ("human", "rule", "model")
"""Who labelled, most trusted first."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """One row of a file. Text that no database can store (NUL, lone surrogates) has become U+001A, SUBSTITUTE."""

    text: str
    """Empty where the row has none."""
    labels: tuple[str, ...]
    """Sorted, distinct."""
    group: str | None
    """What the example belongs to (document, customer, conversation), where the row says so."""
    split: Split | None
    """The given split, where there is one."""
    origin: str
    author: str | None
    file: str
    """Path below the folder that was read."""
    row: int
    """Line in the file, counted from 1."""
    raw: str
    """The row as it was."""
    problem: str | None = None
    """Why it cannot be read as an example."""

    @property
    def location(self) -> str:
        """File and row."""
        return f"{self.file}:{self.row}"

    @property
    def example_id(self) -> str:
        """Hash (64 hex digits) of what the row says, wherever it stands; of the raw row where it cannot be read."""
        if self.problem is not None:
            return fingerprint("unreadable", self.raw)
        return fingerprint(self.text, self.labels, self.group, self.split, self.origin)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a training set."""

    id: str
    text: str
    labels: tuple[str, ...]
    """Sorted, distinct; exactly one unless the use case is multi-label."""
    group: str
    origin: str


def read_split(folder: Path, split: Split) -> list[Example]:
    """The examples of one split of the training set in ``folder``, sorted by id."""
    with (folder / f"{split}.jsonl").open(encoding="utf-8", newline="\n") as file:
        found = [json.loads(line) for line in file]
    return [Example(row["id"], row["text"], tuple(row["labels"]), row["group"], row["origin"]) for row in found]


def normalised(text: str) -> str:
    """``text`` with case, whitespace and punctuation folded: equal for copies that differ in nothing else."""
    return " ".join(re.findall(r"\w+", text.casefold())) or " ".join(text.split())


def text_group(text: str) -> str:
    """The group of a row that names none: the same for every copy of its text."""
    return "text:" + hashlib.sha256(normalised(text).encode()).hexdigest()[:32]
