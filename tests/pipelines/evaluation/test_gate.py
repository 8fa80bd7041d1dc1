from __future__ import annotations

import pytest

from pipelines.evaluation.gate import decide
from pipelines.evaluation.metrics import Difference
from pipelines.evaluation.settings import GateSettings

GATE = GateSettings(metric="macro_f1", margin=0.01, minimum_rows=50, minimum_score=0.5)


def test_a_candidate_surely_better_than_the_champion_passes() -> None:
    verdict = decide(
        rows=200, candidate=0.9, base=0.6, champion=0.8, difference=Difference(0.1, 0.04, 0.15), settings=GATE
    )
    assert verdict.passed
    assert verdict.reasons == (
        "better: macro-f1 0.900 against 0.800 of the champion, on the same 200 rows: difference +0.100, 90% interval "
        "+0.040 to +0.150, margin 0.010",
    )


@pytest.mark.parametrize(
    ("difference", "why"),
    [
        (Difference(0.0, 0.0, 0.0), "a tie"),
        (Difference(0.05, -0.01, 0.12), "the interval holds 0"),
        (Difference(0.05, 0.01, 0.12), "the margin exactly"),
        (Difference(-0.1, -0.2, -0.05), "worse"),
    ],
)
def test_a_candidate_not_surely_better_than_the_champion_is_refused(difference: Difference, why: str) -> None:
    """T16"""
    verdict = decide(
        rows=200, candidate=0.8 + difference.value, base=0.6, champion=0.8, difference=difference, settings=GATE
    )
    assert not verdict.passed, why
    assert verdict.reasons[0].startswith("not surely better than the champion: macro-f1")


def test_a_tie_is_refused_without_a_margin_too() -> None:
    """T16"""
    verdict = decide(
        rows=200, candidate=0.8, base=0.6, champion=0.8, difference=Difference(0, 0, 0), settings=GateSettings()
    )
    assert not verdict.passed


@pytest.mark.parametrize(
    ("difference", "passed"),
    [
        (Difference(0.05, -0.02, 0.1), True),
        (Difference(-0.02, -0.06, 0.03), True),
        (Difference(-0.2, -0.3, -0.1), False),
    ],
)
def test_a_first_candidate_must_not_be_surely_worse_than_the_base(difference: Difference, passed: bool) -> None:
    """Publishing nothing is the alternative, so a tie is good enough."""
    candidate = 0.8 + difference.value
    verdict = decide(rows=50, candidate=candidate, base=0.8, champion=None, difference=difference, settings=GATE)
    assert verdict.passed is passed
    assert f"macro-f1 {candidate:.3f} against 0.800 of the untuned base, on the same 50 rows" in verdict.reasons[0]


def test_every_reason_of_a_refusal_is_named_with_its_numbers() -> None:
    """T7, T16"""
    verdict = decide(
        rows=49, candidate=0.4, base=0.6, champion=0.8, difference=Difference(-0.4, -0.5, -0.3), settings=GATE
    )
    assert not verdict.passed
    assert verdict.reasons[0] == "only 49 held-out rows; at least 50 are needed to decide anything"
    assert verdict.reasons[1] == "macro-f1 0.400 is below the minimum of 0.500"
    assert verdict.reasons[2].startswith("not surely better than the champion")
