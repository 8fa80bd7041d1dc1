from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from PIL import Image

from pipelines.corpus.freshness import Lag
from pipelines.corpus.plots import (
    FreshnessPoint,
    QualityPoint,
    freshness_over_time,
    quality_over_time,
    question_changes,
)
from pipelines.corpus.quality import Comparison

START = datetime(2026, 3, 1, tzinfo=UTC)
BLUE, ORANGE, GREEN = (0, 114, 178), (230, 159, 0), (0, 158, 115)
VERMILION, PURPLE = (213, 94, 0), (204, 121, 167)
POINTS = [
    QualityPoint(START + timedelta(days=day), "one", "a" * 64, False, 10, 0.9, 0.6 + day / 200, 0.75)
    for day in range(20)
]


def pixels(png: bytes, colour: tuple[int, int, int]) -> int:
    """How many pixels are drawn in ``colour``."""
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.size == (880, 440)
        drawn = np.asarray(picture.convert("RGBA")).astype(int)
    assert (drawn[..., 3] == 255).all(), "a transparent background is unreadable in the dark UI"
    return int((np.abs(drawn[..., :3] - colour).max(axis=2) < 12).sum())


def test_quality_is_a_line_for_each_metric() -> None:
    png = quality_over_time(POINTS)
    assert all(pixels(png, colour) > 500 for colour in (BLUE, ORANGE, GREEN))
    assert pixels(png, VERMILION) == pixels(png, PURPLE) == 0


def test_a_switch_of_collections_and_other_questions_are_marked() -> None:
    switched = [*POINTS[:10], *(replace(point, collection="two") for point in POINTS[10:])]
    asked = [*POINTS[:10], *(replace(point, golden="b" * 64) for point in POINTS[10:])]
    deeper = [*POINTS[:10], *(replace(point, k=20) for point in POINTS[10:])]
    assert pixels(quality_over_time(switched), VERMILION) > 100
    assert pixels(quality_over_time(switched), PURPLE) == 0
    for points in (asked, deeper):
        assert pixels(quality_over_time(points), PURPLE) > 30
        assert pixels(quality_over_time(points), VERMILION) == 0


def test_generated_questions_that_follow_the_documents_are_not_marked() -> None:
    points = [replace(point, golden=f"{place:064}", generated=True) for place, point in enumerate(POINTS)]
    assert pixels(quality_over_time(points), PURPLE) == 0


@pytest.mark.parametrize("longest", [0.0, 90.0, 40 * 86_400.0])
def test_freshness_is_drawn_from_no_time_at_all_to_weeks(longest: float) -> None:
    points = [FreshnessPoint(START + timedelta(hours=hour), Lag(0, longest / 3, longest, 40, 0)) for hour in range(30)]
    png = freshness_over_time(points)
    assert pixels(png, BLUE) > 500
    if longest:
        assert pixels(png, VERMILION) > 500


def test_one_point_is_enough() -> None:
    assert pixels(quality_over_time(POINTS[:1]), GREEN) > 30
    assert pixels(freshness_over_time([FreshnessPoint(START, Lag(9, 60, 600, 3, 0))]), VERMILION) > 30


@pytest.mark.parametrize("count", [1, 50, 1000])
def test_a_comparison_shows_each_question(count: int) -> None:
    changes = tuple((f"question {place}", change) for place, change in enumerate(np.linspace(-0.6, 0.3, count)))
    png = question_changes(Comparison(-0.15, -0.2, -0.1, True, "surely worse", changes, 10))
    assert pixels(png, VERMILION) > 1000
    assert pixels(png, GREEN) > 500
    assert (pixels(png, BLUE) > 1000) is (count > 1)
