"""A frozen training set, as training and evaluation use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.artifacts import Artifact
from pipelines.errors import ArtifactError
from pipelines.labels.examples import Example, Split, read_split
from pipelines.labels.leakage import leaked_pairs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def indicators(labels: Sequence[Sequence[str]], categories: Sequence[str]) -> NDArray[np.bool_]:
    """Labels as a boolean matrix (rows, categories); a label that is no category sets nothing."""
    import numpy as np

    column = {category: index for index, category in enumerate(categories)}
    matrix = np.zeros((len(labels), len(categories)), dtype=bool)
    for index, names in enumerate(labels):
        matrix[index, [column[name] for name in names if name in column]] = True
    return matrix


def rows_to_fit(training_set: Artifact, *, refit: bool) -> tuple[list[Example], list[Example]]:
    """What is trained on, and what validates: nothing in a refit, which trains on all of it.

    All but validation rows that nearly repeat a test row: only of training rows it is known before that none does.

    Raises:
        ArtifactError: the training set is incomplete.
    """
    rows, validation_rows = read_split(training_set, "train"), read_split(training_set, "validation")
    if not refit:
        return rows, validation_rows
    splits: dict[Split, list[Example]] = {
        "train": validation_rows,
        "validation": [],
        "test": read_split(training_set, "test"),
    }
    pairs = leaked_pairs(splits, chats=training_set.manifest.get("task") == "generate")
    near = {pair.train.id for pair in pairs}
    return [*rows, *(row for row in validation_rows if row.id not in near)], []


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
