"""The loss curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.figures import canvas, png
from pipelines.training.progress import Progress


def loss_curve(points: Sequence[Progress], *, smoothing: float = 0.8) -> bytes:
    """PNG: training loss (faint, and its moving average), and validation loss and score after each epoch."""
    figure, axes = canvas(width=8, height=4)
    training = [point for point in points if point.validation_loss is None]
    smooth: list[float] = []
    for point in training:
        smooth.append(point.loss if not smooth else smoothing * smooth[-1] + (1 - smoothing) * point.loss)
    steps = [point.step for point in training]
    axes.plot(steps, [point.loss for point in training], color="tab:blue", alpha=0.25)
    axes.plot(steps, smooth, color="tab:blue", label="training loss")
    steps = [point.step for point in points if point.validation_loss is not None]
    if steps:
        losses = [point.validation_loss for point in points if point.validation_loss is not None]
        reached = [point.validation_score for point in points if point.validation_score is not None]
        axes.plot(steps, losses, color="tab:orange", marker="o", label="validation loss")
        right = axes.twinx()
        right.plot(steps, reached, color="tab:green", marker="s", linestyle="--", label="validation score (right)")
        right.set(ylim=(0, 1), ylabel="score")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return png(figure)
