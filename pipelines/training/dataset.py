"""A frozen training set, as training and evaluation use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.artifacts import Artifact
from pipelines.errors import ArtifactError

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
