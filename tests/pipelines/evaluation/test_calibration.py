"""Probabilities that mean what they say."""

import numpy as np
import pytest

from pipelines.evaluation.calibration import MINIMUM_ROWS, calibrate, calibrated
from pipelines.evaluation.classifier import Classifier
from pipelines.evaluation.metrics import expected_calibration_error

CATEGORIES = ("a", "b", "c")


def drawn(rows: int, *, multi_label: bool, temperature: float, bias: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that overstate by ``temperature``, and what is true, drawn from the honest probabilities."""
    rng = np.random.default_rng(3)
    honest = rng.normal(size=(rows, 3)) * 1.5
    if multi_label:
        truth = rng.random((rows, 3)) < 1 / (1 + np.exp(-honest))
        return ((honest - bias) * temperature).astype(np.float32), truth
    chances = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    chosen = (rng.random((rows, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    return (honest * temperature).astype(np.float32), np.eye(3, dtype=bool)[chosen]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_overstates_is_found_and_taken_back(temperature: float) -> None:
    """T18"""
    logits, truth = drawn(8000, multi_label=False, temperature=temperature)
    found = calibrate(logits, truth, multi_label=False)
    assert found is not None
    assert found["temperature"] == pytest.approx(temperature, rel=0.1)
    chances = calibrated(logits, found, multi_label=False)
    assert chances.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    right = truth[np.arange(len(truth)), chances.argmax(axis=1)]
    assert expected_calibration_error(chances.max(axis=1).astype(np.float64), right) < 0.02


def test_several_labels_share_a_temperature_and_a_bias() -> None:
    """T18"""
    logits, truth = drawn(8000, multi_label=True, temperature=3.0, bias=1.0)
    found = calibrate(logits, truth, multi_label=True)
    assert found is not None
    assert (found["temperature"], found["bias"]) == (pytest.approx(3.0, rel=0.1), pytest.approx(1.0, abs=0.1))
    before, after = (calibrated(logits, each, multi_label=True).astype(np.float64) for each in (None, found))
    assert expected_calibration_error(after.ravel(), truth.ravel()) < 0.02
    assert expected_calibration_error(before.ravel(), truth.ravel()) > 0.1


def test_too_few_rows_calibrate_nothing_and_scores_stay_as_they_were() -> None:
    logits, truth = drawn(MINIMUM_ROWS - 1, multi_label=False, temperature=4.0)
    assert calibrate(logits, truth, multi_label=False) is None


def test_calibration_of_one_label_never_changes_which_one_is_chosen() -> None:
    logits, truth = drawn(500, multi_label=False, temperature=4.0)
    found = calibrate(logits, truth, multi_label=False)
    plain, corrected = (calibrated(logits, each, multi_label=False) for each in (None, found))
    assert (plain.argmax(axis=1) == corrected.argmax(axis=1)).all()


def test_a_classifier_abstains_below_its_threshold_and_never_with_several_labels() -> None:
    chances = np.array([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]], dtype=np.float32)
    careful = Classifier(None, None, CATEGORIES, multi_label=False, thresholds={}, maximum_tokens=16, abstain_below=0.6)
    assert careful.decide(chances) == [[], ["a"]]
    several = Classifier(
        None, None, CATEGORIES, multi_label=True, thresholds=dict.fromkeys(CATEGORIES, 0.25), maximum_tokens=16,
        abstain_below=0.6,
    )  # fmt: skip
    assert several.decide(chances) == [["a", "b"], ["a"]]
