from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipelines.evaluation.metrics import scores
from pipelines.evaluation.plots import class_bars, confusion, confusion_matrix
from pipelines.training.plots import loss_curve
from pipelines.training.progress import Progress


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as picture:
        picture.load()
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24) or []) > 20
        return picture.size


@pytest.mark.parametrize("categories", [2, 12, 77])
def test_a_confusion_matrix_is_drawn_at_any_size(categories: int) -> None:
    rng = np.random.default_rng(1)
    truth = np.eye(categories, dtype=bool)[rng.integers(categories, size=400)]
    counts = confusion(truth, np.roll(truth, 1, axis=0))
    assert counts.sum() == 400
    names = [f"A rather long category name, number {number}" for number in range(categories)]
    width, height = size(confusion_matrix(counts, names))
    assert 300 < width < 2000
    assert 250 < height < 2000


def test_scores_by_category_are_drawn_as_bars() -> None:
    truth = np.random.default_rng(1).random((60, 9)) < 0.3
    width, height = size(
        class_bars(scores(truth, truth[::-1], [f"category {number}" for number in range(9)]).per_class)
    )
    assert width > 600
    assert height > 500


@pytest.mark.parametrize("validated", [False, True])
def test_a_loss_curve_is_drawn_from_its_points(validated: bool) -> None:
    first = Progress(
        step=1,
        steps=50,
        epoch=0.1,
        loss=2.0,
        learning_rate=1e-3,
        examples_per_second=100.0,
        tokens_per_second=1000.0,
        tokens=10,
        memory_bytes=2**30,
        seconds=1.0,
        seconds_left=49.0,
    )
    points = [replace(first, step=step, epoch=step / 10, loss=2 / step) for step in range(1, 51)]
    if validated:
        points.insert(10, replace(points[9], validation_loss=0.4, validation_score=0.7))
    assert size(loss_curve(points))[0] > 700
    size(loss_curve(points[:1]))
