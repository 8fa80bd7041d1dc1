"""What a classifier gets right and wrong, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.evaluation.metrics import ClassScores
from pipelines.figures import canvas, png

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def confusion(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Counts (true category, predicted category) of indicator matrices with one label a row."""
    import numpy as np

    counts: NDArray[np.int64] = truth.astype(np.int64).T @ predicted.astype(np.int64)
    return counts


def confusion_matrix(counts: NDArray[np.int64], categories: Sequence[str]) -> bytes:
    """PNG of ``counts`` (true, predicted), shaded by the share of the true category; numbers up to 20 categories."""
    import numpy as np

    size = len(categories)
    figure, axes = canvas(width=min(3 + 0.55 * size, 16), height=min(2.2 + 0.5 * size, 15))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    font = 9 if size <= 20 else 5
    names = [_short(name) for name in categories]
    axes.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=font)
    axes.set_yticks(range(size), names, fontsize=font)
    axes.set(xlabel="predicted", ylabel="true")
    if size <= 20:
        for row in range(size):
            for column in range(size):
                if counts[row, column]:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(column, row, counts[row, column], ha="center", va="center", color=colour, fontsize=9)
    return png(figure)


def class_bars(per_class: Sequence[ClassScores]) -> bytes:
    """PNG of precision, recall and F1 of each category, with its number of true rows; for several labels a row."""
    figure, axes = canvas(width=8, height=1.4 + 0.55 * len(per_class))
    for offset, (name, colour) in enumerate((("precision", "tab:blue"), ("recall", "tab:orange"), ("f1", "tab:green"))):
        places = [place + (offset - 1) * 0.26 for place in range(len(per_class))]
        axes.barh(places, [getattr(one, name) for one in per_class], height=0.26, color=colour, label=name)
    axes.set_yticks(range(len(per_class)), [f"{_short(one.category)} ({one.support})" for one in per_class], fontsize=9)
    axes.set(xlim=(0, 1))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return png(figure)


def _short(name: str, length: int = 34) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
