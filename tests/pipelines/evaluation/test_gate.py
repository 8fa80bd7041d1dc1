from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.artifacts import Artifact, load, seal
from pipelines.errors import ArtifactError, ConfigError
from pipelines.evaluation.gate import OnSlice, Verdict, check_settings, decide, decided_again
from pipelines.evaluation.metrics import Difference
from pipelines.evaluation.settings import GateSettings
from pipelines.fingerprint import write_json_atomically

GATE = GateSettings(metric="macro_f1", margin=0.01, minimum_rows=50, minimum_score=0.5)
BETTER = Difference(0.1, 0.04, 0.15)


def judged(settings: GateSettings = GATE, **changes: Any) -> Verdict:
    """A candidate that is surely better, and what is changed about it."""
    facts = {"rows": 200, "candidate": 0.9, "base": 0.6, "champion": 0.8, "difference": BETTER}
    return decide(**{**facts, **changes}, settings=settings)


def chat_judged(settings: GateSettings | None = None, **changes: Any) -> Verdict:
    return judged(settings or GateSettings(), **{"task": "generate", "further": {"stopped": 1.0}, **changes})


def test_a_candidate_surely_better_than_the_champion_passes() -> None:
    verdict = judged()
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
    verdict = judged(candidate=0.8 + difference.value, difference=difference)
    assert not verdict.passed, why
    assert verdict.reasons[0].startswith("not surely better than the champion: macro-f1")


def test_a_tie_is_refused_without_a_margin_too() -> None:
    """T16"""
    assert not judged(GateSettings(), candidate=0.8, difference=Difference(0, 0, 0)).passed
    assert not chat_judged(candidate=0.8, difference=Difference(0, 0, 0)).passed


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
    verdict = judged(rows=50, candidate=candidate, base=0.8, champion=None, difference=difference)
    assert verdict.passed is passed
    assert f"macro-f1 {candidate:.3f} against 0.800 of the untuned base, on the same 50 rows" in verdict.reasons[0]


def test_every_reason_of_a_refusal_is_named_with_its_numbers() -> None:
    """T7, T16"""
    verdict = judged(rows=49, candidate=0.4, difference=Difference(-0.4, -0.5, -0.3))
    assert not verdict.passed
    assert verdict.reasons[0] == "only 49 held-out rows; at least 50 are needed to decide anything"
    assert verdict.reasons[1] == "macro-f1 0.400 is below the minimum of 0.500"
    assert verdict.reasons[2].startswith("not surely better than the champion")


SLICES = {
    "plan=basic": OnSlice(40, 0.7, Difference(0.1, 0.0, 0.2)),
    "regression": OnSlice(60, 0.8, Difference(-0.05, -0.09, -0.021)),
    "plan=rare": OnSlice(3, None, None),
}


@pytest.mark.parametrize(
    ("settings", "changes", "reason"),
    [
        ({"floors": {"micro_f1": 0.9}}, {"further": {"micro_f1": 0.85}}, "micro-f1 0.850 is below its floor of 0.900"),
        ({"floors": {"micro_f1": 0.9}}, {}, "micro-f1 could not be measured; it has to be at least 0.900"),
        (
            {"slice_floors": {"plan=basic": 0.75}},
            {"slices": SLICES},
            "macro-f1 0.700 on slice 'plan=basic' (40 rows) is below its floor of 0.750",
        ),
        (
            {"slice_floors": {"plan=rare": 0.1}},
            {"slices": SLICES},
            "macro-f1 could not be measured on slice 'plan=rare' (3 rows)",
        ),
        (
            {"slice_floors": {"plan=gone": 0.1}},
            {"slices": {"plan=basic": OnSlice(40, 0.7)}},
            "no held-out row is of slice 'plan=gone', whose floor is 0.100; there are: plan=basic",
        ),
        (
            {},
            {"slices": SLICES},
            "surely worse than the champion on the slice 'regression' (60 rows): macro-f1 difference -0.050, 90% "
            "interval -0.090 to -0.021, allowed -0.020",
        ),
        (
            {},
            {"slices": {"regression": OnSlice(60, 0.8, None)}},
            "macro-f1 could not be compared on the slice 'regression' (60 rows)",
        ),
        (
            {"maximum_calibration_error": 0.05},
            {"calibration_error": 0.08},
            "calibration error 0.080 is above the maximum of 0.050",
        ),
        (
            {"maximum_calibration_error": 0.05},
            {},
            "the calibration error could not be measured; it has to be at most 0.050",
        ),
        ({}, {"candidate": None}, "macro-f1 of the candidate could not be measured on any of the 200 rows"),
        (
            {},
            {"champion": None, "has_champion": True, "difference": None},
            "macro-f1 could not be compared with the champion's: nothing shows that it is better",
        ),
    ],
)
def test_one_thing_that_is_not_as_it_has_to_be_refuses_an_otherwise_better_candidate(
    settings: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    """T7, T14, T16, T18"""
    gate = GateSettings(metric="macro_f1").model_copy(update=settings)
    assert judged(GateSettings(metric="macro_f1")).passed
    verdict = judged(gate, **changes)
    assert not verdict.passed
    assert reason in verdict.reasons


def test_a_small_loss_on_the_regression_slice_and_what_is_well_above_its_floor_pass() -> None:
    """T14"""
    slices = {"regression": OnSlice(60, 0.8, Difference(-0.03, -0.08, -0.019)), "a=b": OnSlice(9, 0.7)}
    settings = GateSettings(slice_floors={"a=b": 0.7}, floors={"accuracy": 0.5}, maximum_calibration_error=0.1)
    assert judged(settings, slices=slices, further={"accuracy": 0.5}, calibration_error=0.1).passed


def test_answers_that_do_not_end_are_refused() -> None:
    """T11"""
    assert chat_judged().passed
    refused = chat_judged(further={"stopped": 0.4})
    assert refused.reasons[0].startswith("only 40.0% of its answers end by themselves; at least 80.0% have to")
    assert not chat_judged(further={}).passed


@pytest.mark.parametrize(
    ("settings", "task", "message"),
    [
        ({"metric": "token_f1"}, "classify", "gate.metric names 'token_f1', which says nothing about task 'classify'"),
        ({"metric": "accuracy"}, "generate", "allowed: exact_match, token_f1, valid_format, style"),
        ({"floors": {"style": 0.5}}, "classify", "gate.floors names 'style'"),
        ({"maximum_calibration_error": 0.1}, "generate", "maximum_calibration_error 0.1 is about classifiers"),
    ],
)
def test_a_metric_of_another_task_is_an_error_not_a_pass(settings: dict[str, Any], task: Any, message: str) -> None:
    gate = GateSettings.model_validate(settings)
    with pytest.raises(ConfigError, match=message):
        check_settings(gate, task)
    with pytest.raises(ConfigError, match=message):
        judged(gate, task=task)


SCORE = st.one_of(st.none(), st.just(math.nan), st.just(math.inf), st.floats(-1, 1))
DIFFERENCE = st.one_of(
    st.none(), st.builds(Difference, SCORE.map(lambda s: math.nan if s is None else s), SCORE, SCORE)
)


def well_formed(difference: Difference | None) -> bool:
    return difference is None or None not in (difference.value, difference.low, difference.high)


@given(
    candidate=SCORE,
    champion=SCORE,
    difference=DIFFERENCE.filter(well_formed),
    floor=SCORE,
    on_slice=SCORE,
    calibration=SCORE,
    rows=st.integers(0, 100),
)
def test_nothing_unmeasured_tied_or_below_a_bound_ever_passes(
    candidate: float | None,
    champion: float | None,
    difference: Difference | None,
    floor: float | None,
    on_slice: float | None,
    calibration: float | None,
    rows: int,
) -> None:
    """T16"""
    settings = GateSettings(
        metric="accuracy",
        floors={"micro_f1": 0.5},
        slice_floors={"a=b": 0.5},
        maximum_calibration_error=0.2,
        minimum_score=0.3,
    )
    verdict = decide(
        rows=rows,
        candidate=candidate,
        base=0.1,
        champion=champion,
        difference=difference,
        settings=settings,
        has_champion=True,
        further={"micro_f1": floor},
        slices={"a=b": OnSlice(5, on_slice)},
        calibration_error=calibration,
    )
    measured = all(
        value is not None and math.isfinite(value) for value in (candidate, champion, floor, on_slice, calibration)
    )
    assert verdict.reasons
    assert verdict.passed is (
        measured
        and difference is not None
        and all(map(math.isfinite, (difference.value, difference.low, difference.high)))
        and rows >= 50
        and candidate >= 0.3
        and difference.low > 0
        and floor >= 0.5
        and on_slice >= 0.5
        and calibration <= 0.2
    )


@given(low=st.floats(-1, 1), shift=st.floats(0, 0.5), margin=st.floats(0, 0.9))
def test_a_better_difference_never_turns_a_pass_into_a_refusal(low: float, shift: float, margin: float) -> None:
    settings = GateSettings(margin=margin)
    worse, better = Difference(low, low, low), Difference(low + shift, low + shift, low + shift)
    assert judged(settings, difference=worse).passed <= judged(settings, difference=better).passed


def stored(folder: Path, verdict: Verdict, settings: GateSettings) -> Artifact:
    folder.mkdir()
    write_json_atomically(folder / "report.json", {"verdict": asdict(verdict)})
    seal(folder, {"fingerprint": "f", "kind": "evaluation_report", "settings": {"gate": settings.model_dump()}})
    return load(folder)


@pytest.mark.parametrize("refused", [False, True])
def test_the_decision_is_made_again_from_what_a_report_stores(tmp_path: Path, refused: bool) -> None:
    """T6, T7"""
    settings = GateSettings(slice_floors={"plan=basic": 0.8 if refused else 0.6}, floors={"stopped": 0.9})
    slices = {**SLICES, "regression": OnSlice(60, 0.8, Difference(0, 0, 0))}
    verdict = chat_judged(settings, slices=slices)
    assert verdict.passed is not refused
    report = stored(tmp_path / "report", verdict, settings)
    assert decided_again(report) == verdict
    turned = stored(
        tmp_path / "turned",
        Verdict(**{**{name: getattr(verdict, name) for name in Verdict.__slots__}, "passed": True}),
        settings,
    )
    assert decided_again(turned).passed is not refused


def test_a_report_without_measurements_is_an_error(tmp_path: Path) -> None:
    """T6"""
    for number, text in enumerate(("{}", "[]", "no json", json.dumps({"verdict": {"passed": True}}))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "report.json").write_text(text)
        seal(folder, {"fingerprint": "f", "settings": {"gate": {}}})
        with pytest.raises(ArtifactError, match="holds no verdict that can be checked"):
            decided_again(load(folder))
