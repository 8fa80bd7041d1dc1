"""Rows of a frozen training set, as training and evaluation read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines.artifacts import Artifact
from pipelines.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text."""

    id: str
    text: str
    labels: tuple[str, ...]
    origin: str
    """Who labelled it: human, rule or model."""


def read_split(training_set: Artifact, split: Split) -> list[Row]:
    """The rows of one split; an empty file is an empty split, a missing one is an error.

    Raises:
        ArtifactError: the file is missing, or a row does not fit the manifest's categories.
    """
    path = training_set.path / f"{split}.jsonl"
    if not path.is_file():
        raise ArtifactError(f"{training_set.path} has no {path.name}; materialise its asset again")
    categories = set(training_set.manifest["categories"])
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            value = json.loads(line)
            row = Row(str(value["id"]), str(value["text"]), tuple(value["labels"]), str(value["origin"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}, line {number}, is no row of a training set: {error!r}") from error
        unknown = sorted(set(row.labels) - categories)
        if unknown:
            raise ArtifactError(f"{path}, line {number}: label {unknown[0]!r} is not a category of the manifest")
        if not training_set.manifest["multi_label"] and len(row.labels) != 1:
            raise ArtifactError(f"{path}, line {number}: labels {list(row.labels)}, but multi_label is off: give one")
        rows.append(row)
    return rows


def indicators(labels: Sequence[Sequence[str]], categories: Sequence[str]) -> NDArray[np.bool_]:
    """Labels as a boolean matrix (rows, categories); a label that is no category sets nothing."""
    import numpy as np

    column = {category: index for index, category in enumerate(categories)}
    matrix = np.zeros((len(labels), len(categories)), dtype=bool)
    for index, names in enumerate(labels):
        matrix[index, [column[name] for name in names if name in column]] = True
    return matrix


def training_set_at(folder: Path) -> Artifact:
    """Open and verify a training set.

    Raises:
        ArtifactError: it is incomplete or altered, or is not a training set of this kind.
    """
    from pipelines.artifacts import load

    artifact = load(folder)
    missing = sorted({"categories", "multi_label"} - artifact.manifest.keys())
    if missing:
        raise ArtifactError(f"{folder} is no training set: its manifest has no {', '.join(missing)}")
    return artifact
