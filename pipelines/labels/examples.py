"""A labelled example: as somebody submitted it, and as training reads it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pipelines.artifacts import Artifact
from pipelines.errors import ArtifactError
from pipelines.fingerprint import fingerprint
from pipelines.prompt import Message

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
ORIGINS = ("human", "rule", "model")
"""Who labelled, most trusted first."""
ACCEPTED, QUARANTINED, SUPERSEDED, WITHDRAWN = "accepted", "quarantined", "superseded", "withdrawn"
STATES = (ACCEPTED, QUARANTINED, SUPERSEDED, WITHDRAWN)
"""States of an example in the catalog."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """One row of a file. Text that no database can store (NUL, lone surrogates) has become U+001A, SUBSTITUTE."""

    text: str
    """What is labelled, or the turns before a chat's last answer, system text aside; empty where the row has none."""
    labels: tuple[str, ...]
    """Sorted, distinct; none for a chat."""
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
    messages: tuple[Message, ...] = ()
    """A chat, its last turn the assistant's; empty for a text with labels."""
    rejected: str | None = None
    """The answer that was preferred less, where the row names one."""
    context: tuple[str, ...] | None = None
    """What had been retrieved for the last question, empty for nothing; None where the row does not say."""
    key: str | None = None
    """The item that it is about: of its rows only the newest counts."""
    labelled_at: datetime | None = None
    """When it was labelled, where the row says so."""
    slices: tuple[str, ...] = ()
    """Sorted: ``column=value``."""

    @property
    def location(self) -> str:
        """File and row."""
        return f"{self.file}:{self.row}"

    @property
    def example_id(self) -> str:
        """Hash (64 hex digits) of what the row says, wherever it stands; of the raw row where it cannot be read."""
        if self.problem is not None:
            return fingerprint("unreadable", self.raw)
        said: list[Any] = [self.text, self.labels, self.group, self.split, self.origin]
        if self.messages or self.key is not None or self.slices:  # added later: the ids of plain rows stay
            turns = [[message.role, message.content] for message in self.messages]
            said += [turns, self.rejected, self.context, self.key, self.slices]
        return fingerprint(*said)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a training set."""

    id: str
    text: str
    labels: tuple[str, ...]
    """Sorted, distinct; exactly one unless the use case is multi-label; none for a chat."""
    group: str
    origin: str
    messages: tuple[Message, ...] = ()
    """A chat, its last turn the assistant's."""
    context: tuple[str, ...] | None = None
    """Retrieved for the last question, best first; None where the use case retrieves nothing."""
    rejected: str | None = None
    slices: tuple[str, ...] = ()
    """Sorted: ``column=value``, and ``regression``."""

    @property
    def answer(self) -> str:
        """A chat's last turn."""
        return self.messages[-1].content


def read_split(training_set: Artifact, split: Split) -> list[Example]:
    """The examples of one split, sorted by id; an empty file is an empty split, a missing one is an error.

    Raises:
        ArtifactError: the file is missing, or a row does not fit the manifest's categories.
    """
    return list(each_of_split(training_set, split))


def each_of_split(training_set: Artifact, split: Split) -> Iterator[Example]:
    """``read_split``, one after the other."""
    path = training_set.path / f"{split}.jsonl"
    if not path.is_file():
        raise ArtifactError(f"{training_set.path} has no {path.name}; materialise its asset again")
    chats = training_set.manifest.get("task") == "generate"
    categories = set(training_set.manifest["categories"])
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            example = Example(
                id=row["id"],
                text=row["text"],
                labels=tuple(row["labels"]),
                group=row["group"],
                origin=row["origin"],
                messages=tuple(Message(turn["role"], turn["content"]) for turn in row.get("messages", ())),
                context=None if row.get("context") is None else tuple(row["context"]),
                rejected=row.get("rejected"),
                slices=tuple(row.get("slices", ())),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}, line {number}, is no row of a training set: {error!r}") from error
        unknown = sorted(set(example.labels) - categories)
        if unknown:
            raise ArtifactError(f"{path}, line {number}: label {unknown[0]!r} is not a category of the manifest")
        if chats and (not example.messages or example.messages[-1].role != "assistant"):
            raise ArtifactError(f"{path}, line {number}: a chat that does not end with the assistant's turn")
        if not chats and not training_set.manifest["multi_label"] and len(example.labels) != 1:
            raise ArtifactError(f"{path}, line {number}: {len(example.labels)} labels, but multi_label is off")
        yield example


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        yield from lines


def normalised(text: str) -> str:
    """``text`` with case, whitespace and punctuation folded: equal for copies that differ in nothing else."""
    return " ".join(re.findall(r"\w+", text.casefold())) or " ".join(text.split())


def text_group(text: str) -> str:
    """The group of a row that names none: the same for every copy of its text."""
    return "text:" + hashlib.sha256(normalised(text).encode()).hexdigest()[:32]
