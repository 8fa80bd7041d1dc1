"""Scores that are probabilities: logits corrected so that, of decisions made with p, a share of p is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

Calibration = Mapping[str, float]
"""``temperature`` and ``bias``: logits become ``logits / temperature + bias``; ``rows`` that it was fitted on."""

MINIMUM_ROWS = 50
"""Fewer validation rows than this say too little."""


def calibrate(logits: Floats, truth: NDArray[np.bool_], *, multi_label: bool) -> Calibration | None:
    """Fit to what is true of validation rows; None where there are too few of them.

    With one label a row the temperature of the softmax (Guo et al., 2017, arXiv:1706.04599); with several one
    temperature and one bias of all sigmoids (Platt, 1999, "Probabilistic outputs for support vector machines").
    ``logits`` and ``truth`` are (rows, categories).
    """
    if len(truth) < MINIMUM_ROWS:
        return None
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    values = logits.astype(np.float64)

    def loss(found: NDArray[np.float64]) -> float:
        scaled = values / np.exp(found[0])
        if not multi_label:
            return float(-log_softmax(scaled, axis=1)[truth].mean())
        scaled = scaled + found[1]
        return float((np.logaddexp(0, scaled) - scaled * truth).mean())

    start = np.zeros(2 if multi_label else 1)
    bounds = [(-3.0, 3.0), (-3.0, 3.0)][: len(start)]
    best: Any = minimize(loss, start, method="L-BFGS-B", bounds=bounds)
    bias = float(best.x[1]) if multi_label else 0.0
    return {"temperature": float(np.exp(best.x[0])), "bias": bias, "rows": len(truth)}


def calibrated(logits: Floats, calibration: Calibration | None, *, multi_label: bool) -> Floats:
    """Probabilities of ``logits`` (rows, categories): softmax, or a sigmoid for each label."""
    import numpy as np

    if calibration is not None:
        logits = logits / np.float32(calibration["temperature"]) + np.float32(calibration["bias"])
    if multi_label:
        return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))
