"""What models get right and wrong, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.evaluation.metrics import ClassScores, Difference, Measured
from pipelines.figures import canvas, png

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COLOURS = {"candidate": "tab:blue", "champion": "tab:orange", "base": "0.6"}


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


def metric_bars(metrics: Mapping[str, Mapping[str, Measured | None]]) -> bytes:
    """PNG of every metric (by name, by model) as bars with their intervals."""
    shown = {name: by_model for name, by_model in metrics.items() if any(by_model.values())}
    figure, axes = canvas(width=8, height=1.6 + 0.62 * len(shown))
    models = [name for name in COLOURS if any(name in by_model for by_model in shown.values())]
    height = 0.8 / max(1, len(models))
    for offset, model in enumerate(models):
        places, found = [], []
        for place, by_model in enumerate(shown.values()):
            measured = by_model.get(model)
            if measured is not None:
                places.append(place + (offset - (len(models) - 1) / 2) * height)
                found.append(measured)
        axes.barh(
            places,
            [one.value for one in found],
            xerr=_whiskers(found),
            height=height * 0.92,
            color=COLOURS[model],
            ecolor="0.25",
            capsize=2,
            label=model,
        )
    axes.set_yticks(range(len(shown)), [name.replace("_", " ") for name in shown], fontsize=9)
    axes.set(xlim=(0, 1.02))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return png(figure)


def slice_differences(differences: Mapping[str, tuple[int, Difference | None]], *, metric: str, other: str) -> bytes:
    """PNG of how much better the candidate is on each slice (its rows, the difference), with intervals."""
    shown = [(name, rows, found) for name, (rows, found) in differences.items() if found is not None]
    figure, axes = canvas(width=8, height=1.3 + 0.4 * len(shown))
    for place, (_, _, found) in enumerate(shown):
        colour = "tab:red" if found.high < 0 else "tab:green" if found.low > 0 else "0.45"
        axes.errorbar([found.value], [place], xerr=_whiskers([found]), fmt="o", color=colour, capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [f"{_short(name)} ({rows})" for name, rows, _ in shown], fontsize=9)
    axes.set_ylim(max(1, len(shown)) - 0.5, -0.5)
    axes.set(xlabel=f"{metric.replace('_', ' ')}: candidate minus {other}")
    axes.grid(axis="x", alpha=0.3)
    return png(figure)


def _whiskers(found: Sequence[Measured | Difference]) -> list[list[float]]:
    """Lengths below and above the values, for error bars."""
    return [[max(0.0, one.value - one.low) for one in found], [max(0.0, one.high - one.value) for one in found]]
