"""A labelled example: as somebody submitted it, and as training reads it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Literal, get_args

from pipelines.artifacts import Artifact
from pipelines.errors import ArtifactError
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


def read_split(training_set: Artifact, split: Split) -> list[Example]:
    """The examples of one split, sorted by id; an empty file is an empty split, a missing one is an error.

    Raises:
        ArtifactError: the file is missing, or a row does not fit the manifest's categories.
    """
    path = training_set.path / f"{split}.jsonl"
    if not path.is_file():
        raise ArtifactError(f"{training_set.path} has no {path.name}; materialise its asset again")
    categories = set(training_set.manifest["categories"])
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            example = Example(row["id"], row["text"], tuple(row["labels"]), row["group"], row["origin"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}, line {number}, is no row of a training set: {error!r}") from error
        unknown = sorted(set(example.labels) - categories)
        if unknown:
            raise ArtifactError(f"{path}, line {number}: label {unknown[0]!r} is not a category of the manifest")
        if not training_set.manifest["multi_label"] and len(example.labels) != 1:
            raise ArtifactError(f"{path}, line {number}: {len(example.labels)} labels, but multi_label is off")
        found.append(example)
    return found


def normalised(text: str) -> str:
    """``text`` with case, whitespace and punctuation folded: equal for copies that differ in nothing else."""
    return " ".join(re.findall(r"\w+", text.casefold())) or " ".join(text.split())


def text_group(text: str) -> str:
    """The group of a row that names none: the same for every copy of its text."""
    return "text:" + hashlib.sha256(normalised(text).encode()).hexdigest()[:32]
