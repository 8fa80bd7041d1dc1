from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from pipelines.evaluation.metrics import (
    Metric,
    best_threshold,
    expected_calibration_error,
    paired_bootstrap,
    score,
    scores,
)


def one_label(rng: np.random.Generator, rows: int, categories: int) -> NDArray[np.bool_]:
    return np.eye(categories, dtype=bool)[rng.integers(categories, size=rows)]


@pytest.mark.parametrize("several", [False, True])
def test_the_scores_are_those_of_scikit_learn(several: bool) -> None:
    rng = np.random.default_rng(1)
    truth = rng.random((200, 5)) < 0.3 if several else one_label(rng, 200, 5)
    predicted = np.where(rng.random((200, 1)) < 0.7, truth, rng.random((200, 5)) < 0.3 if several else truth[::-1])
    found = scores(truth, predicted, "abcde")
    assert found.rows == 200
    assert found.accuracy == pytest.approx(accuracy_score(truth, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found.micro_f1 == pytest.approx(f1_score(truth, predicted, average="micro"))
    expected = precision_recall_fscore_support(truth, predicted, average=None)
    for index, one in enumerate(found.per_class):
        assert one.category == "abcde"[index]
        assert (one.precision, one.recall, one.f1) == pytest.approx([expected[part][index] for part in range(3)])
        assert one.support == expected[3][index]


def test_a_category_that_neither_occurs_nor_is_predicted_has_no_part_in_macro_f1() -> None:
    truth = np.array([[True, False, False], [False, True, False]])
    assert score(truth, truth, "macro_f1") == 1
    assert scores(truth, truth, "abc").per_class[2].f1 == 0


def test_without_rows_every_score_is_0() -> None:
    none = np.zeros((0, 3), dtype=bool)
    found = scores(none, none, "abc")
    assert (found.accuracy, found.macro_f1, found.micro_f1) == (0, 0, 0)
    assert paired_bootstrap(none, none, none, "accuracy").value == 0


@pytest.mark.parametrize("metric", ["macro_f1", "micro_f1", "accuracy"])
def test_equal_predictions_differ_by_exactly_nothing(metric: Metric) -> None:
    """T16"""
    rng = np.random.default_rng(2)
    truth, predicted = one_label(rng, 80, 4), one_label(rng, 80, 4)
    found = paired_bootstrap(truth, predicted, predicted.copy(), metric)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_the_bootstrap_interval_is_the_one_that_resampling_row_by_row_gives() -> None:
    rng = np.random.default_rng(3)
    truth = one_label(rng, 120, 3)
    first = np.where(rng.random((120, 1)) < 0.8, truth, one_label(rng, 120, 3))
    second = np.where(rng.random((120, 1)) < 0.6, truth, one_label(rng, 120, 3))
    found = paired_bootstrap(truth, first, second, "macro_f1", confidence=0.9)
    slow = []
    for _ in range(600):
        drawn = rng.integers(120, size=120)
        slow.append(
            f1_score(truth[drawn], first[drawn], average="macro")
            - f1_score(truth[drawn], second[drawn], average="macro")
        )
    low, high = np.quantile(slow, [0.05, 0.95])
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)
    assert found.low < found.value < found.high


def test_the_bootstrap_is_the_same_each_time_and_in_whatever_portions_it_draws() -> None:
    rng = np.random.default_rng(4)
    truth, first, second = (one_label(rng, 300, 4) for _ in range(3))
    assert paired_bootstrap(truth, first, second, "micro_f1") == paired_bootstrap(truth, first, second, "micro_f1")
    assert paired_bootstrap(truth, first, second, "accuracy", seed=1) != paired_bootstrap(
        truth, first, second, "accuracy", seed=2
    )


def test_calibration_error_is_0_when_confidence_is_accuracy_and_the_gap_when_it_is_not() -> None:
    """T18"""
    correct = np.array([True] * 8 + [False] * 2)
    assert expected_calibration_error(np.full(10, 0.8), correct) == pytest.approx(0)
    assert expected_calibration_error(np.full(10, 1.0), correct) == pytest.approx(0.2)
    halves = np.array([0.9] * 5 + [0.1] * 5)
    assert expected_calibration_error(halves, np.array([True] * 5 + [False] * 5)) == pytest.approx(0.1)
    assert expected_calibration_error(np.zeros(0), np.zeros(0, dtype=bool)) == 0


def test_the_threshold_is_the_one_that_separates_best() -> None:
    truth = np.array([[True, False], [True, True], [False, True], [False, False]])
    chances = np.where(truth, 0.35, 0.15)
    found = best_threshold(truth, chances)
    assert 0.15 < found <= 0.35
    assert score(truth, chances >= found, "micro_f1") == 1
    assert best_threshold(truth, np.where(truth, 0.9, 0.1)) == 0.5
    assert best_threshold(np.zeros((0, 2), dtype=bool), np.zeros((0, 2))) == 0.5
