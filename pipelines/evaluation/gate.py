"""Whether a candidate may be published: a pure decision on measured scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard, get_args

from pipelines.artifacts import Artifact
from pipelines.errors import ArtifactError, ConfigError
from pipelines.evaluation.metrics import Difference
from pipelines.evaluation.settings import (
    ClassificationMetric,
    GateSettings,
    GenerationMetric,
    deciding_metric,
)
from pipelines.training.settings import Task

REGRESSION = "regression"
"""The slice of the oldest held-out rows."""


@dataclass(frozen=True, slots=True)
class OnSlice:
    """The deciding metric on the rows of one slice."""

    rows: int
    candidate: float | None
    """None where it could not be measured."""
    difference: Difference | None = None
    """Candidate minus champion; None without a champion, or where it could not be measured."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision, with its reasons in plain words and everything that it was made from."""

    passed: bool
    reasons: tuple[str, ...]
    """Why it was refused, all of them; or, when it passed, what it passed on."""
    metric: str
    rows: int
    candidate: float | None
    base: float | None
    champion: float | None
    difference: Difference | None
    """Candidate minus champion on the same rows; without a champion, minus base."""
    task: Task = "classify"
    has_champion: bool = False
    further: Mapping[str, float | None] = field(default_factory=dict)
    """Every metric of the candidate."""
    slices: Mapping[str, OnSlice] = field(default_factory=dict)
    calibration_error: float | None = None


def check_settings(settings: GateSettings, task: Task) -> None:
    """Every metric that the gate names can be measured for ``task``.

    Raises:
        ConfigError: one cannot.
    """
    allowed = get_args(GenerationMetric if task == "generate" else ClassificationMetric)
    named = {"metric": [settings.metric] if settings.metric else [], "floors": list(settings.floors)}
    for place, metrics in named.items():
        for metric in metrics:
            if metric not in allowed:
                raise ConfigError(
                    f"evaluation.gate.{place} names {metric!r}, which says nothing about task {task!r}; allowed: "
                    f"{', '.join(allowed)}"
                )
    if task == "generate" and settings.maximum_calibration_error is not None:
        raise ConfigError(
            f"evaluation.gate.maximum_calibration_error {settings.maximum_calibration_error:g} is about classifiers; a "
            "model that generates gives no probabilities: leave it out"
        )


def decide(
    *,
    rows: int,
    candidate: float | None,
    base: float | None,
    champion: float | None,
    difference: Difference | None,
    settings: GateSettings,
    task: Task = "classify",
    has_champion: bool | None = None,
    further: Mapping[str, float | None] | None = None,
    slices: Mapping[str, OnSlice] | None = None,
    calibration_error: float | None = None,
) -> Verdict:
    """Judge a candidate by the deciding metric, every score (0 to 1) measured on the same ``rows`` held-out rows.

    Against a champion the whole bootstrap interval of the difference has to lie above the margin, so that a tie never
    promotes. Without one, where publishing nothing is the alternative, the candidate must not be surely worse than the
    untuned base: the interval must not lie below zero as a whole. What could not be measured (None, or not finite)
    never passes where the settings ask for it.

    Args:
        rows: held-out rows.
        candidate: its score by the deciding metric.
        base: the untuned base's.
        champion: the champion's.
        difference: candidate minus champion, or, without one, minus base.
        settings: of the gate.
        task: classify or generate.
        has_champion: whether there is one, although its score could not be measured; by default, where it has a score.
        further: every metric of the candidate, for ``settings.floors``.
        slices: the deciding metric by slice, for ``settings.slice_floors`` and the regression slice.
        calibration_error: of the candidate's probabilities.

    Raises:
        ConfigError: the settings name a metric that says nothing about ``task``.
    """
    check_settings(settings, task)
    name = deciding_metric(settings, task)
    metric, refusals = _shown(name), []
    further, slices = further or {}, slices or {}
    has_champion = champion is not None if has_champion is None else has_champion
    if rows < settings.minimum_rows:
        refusals.append(f"only {rows} held-out rows; at least {settings.minimum_rows} are needed to decide anything")
    if not _known(candidate):
        refusals.append(f"{metric} of the candidate could not be measured on any of the {rows} rows")
    elif candidate < settings.minimum_score:
        refusals.append(f"{metric} {candidate:.3f} is below the minimum of {settings.minimum_score:.3f}")
    other, score = ("champion", champion) if has_champion else ("untuned base", base)
    compared = ""
    if not _known(candidate) or not _known(score) or difference is None or not _finite(difference):
        refusals.append(f"{metric} could not be compared with the {other}'s: nothing shows that it is better")
    else:
        compared = (
            f"{metric} {candidate:.3f} against {score:.3f} of the {other}, on the same {rows} rows: difference "
            f"{difference.value:+.3f}, {settings.confidence:.0%} interval {difference.low:+.3f} to "
            f"{difference.high:+.3f}"
        )
        if has_champion:
            compared += f", margin {settings.margin:.3f}"
            if difference.low <= settings.margin:
                refusals.append(f"not surely better than the champion: {compared}")
        elif difference.high < 0:
            refusals.append(f"surely worse than the untuned base: {compared}")
    refusals += _below_floors(settings, further)
    refusals += _below_slice_floors(settings, slices, metric)
    refusals += _regressions(settings, slices, metric, has_champion=has_champion)
    refusals += _uncalibrated(settings, calibration_error)
    if task == "generate":
        refusals += _endless(settings, further.get("stopped"))
    return Verdict(
        passed=not refusals,
        reasons=tuple(refusals) or (f"{'better' if has_champion else 'not surely worse'}: {compared}",),
        metric=name,
        rows=rows,
        candidate=candidate,
        base=base,
        champion=champion,
        difference=difference,
        task=task,
        has_champion=has_champion,
        further=dict(further),
        slices=dict(slices),
        calibration_error=calibration_error,
    )


def decided_again(report: Artifact) -> Verdict:
    """The decision that follows from the measurements that ``report`` stores, whatever verdict it states.

    Raises:
        ArtifactError: it holds none.
    """
    try:
        stored: dict[str, Any] = json.loads((report.path / "report.json").read_text(encoding="utf-8"))["verdict"]
        return decide(
            **{name: stored[name] for name in ("rows", "candidate", "base", "champion")},
            difference=_difference(stored["difference"]),
            settings=GateSettings.model_validate(report.manifest["settings"]["gate"]),
            task=stored.get("task", "classify"),
            has_champion=stored.get("has_champion"),
            further=stored.get("further"),
            slices={
                name: OnSlice(found["rows"], found["candidate"], _difference(found["difference"]))
                for name, found in stored.get("slices", {}).items()
            },
            calibration_error=stored.get("calibration_error"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ArtifactError(f"{report.path} holds no verdict that can be checked: {error!r}") from error


def _below_floors(settings: GateSettings, further: Mapping[str, float | None]) -> list[str]:
    found = []
    for metric, floor in settings.floors.items():
        score = further.get(metric)
        if not _known(score):
            found.append(f"{_shown(metric)} could not be measured; it has to be at least {floor:.3f}")
        elif score < floor:
            found.append(f"{_shown(metric)} {score:.3f} is below its floor of {floor:.3f}")
    return found


def _below_slice_floors(settings: GateSettings, slices: Mapping[str, OnSlice], metric: str) -> list[str]:
    found = []
    for name, floor in settings.slice_floors.items():
        on_slice = slices.get(name)
        if on_slice is None or not on_slice.rows:
            known = ", ".join(sorted(slices)) or "none"
            found.append(f"no held-out row is of slice {name!r}, whose floor is {floor:.3f}; there are: {known}")
        elif not _known(on_slice.candidate):
            found.append(f"{metric} could not be measured on slice {name!r} ({on_slice.rows} rows)")
        elif on_slice.candidate < floor:
            found.append(
                f"{metric} {on_slice.candidate:.3f} on slice {name!r} ({on_slice.rows} rows) is below its floor of "
                f"{floor:.3f}"
            )
    return found


def _regressions(
    settings: GateSettings, slices: Mapping[str, OnSlice], metric: str, *, has_champion: bool
) -> list[str]:
    on_slice = slices.get(REGRESSION)
    if not has_champion or on_slice is None or not on_slice.rows:
        return []
    difference = on_slice.difference
    if difference is None or not _finite(difference):
        return [f"{metric} could not be compared on the slice {REGRESSION!r} ({on_slice.rows} rows)"]
    if difference.high >= -settings.maximum_regression:
        return []
    return [
        f"surely worse than the champion on the slice {REGRESSION!r} ({on_slice.rows} rows): {metric} difference "
        f"{difference.value:+.3f}, {settings.confidence:.0%} interval {difference.low:+.3f} to {difference.high:+.3f}, "
        f"allowed -{settings.maximum_regression:.3f}"
    ]


def _uncalibrated(settings: GateSettings, error: float | None) -> list[str]:
    limit = settings.maximum_calibration_error
    if limit is None:
        return []
    if not _known(error):
        return [f"the calibration error could not be measured; it has to be at most {limit:.3f}"]
    return [f"calibration error {error:.3f} is above the maximum of {limit:.3f}"] if error > limit else []


def _endless(settings: GateSettings, stopped: float | None) -> list[str]:
    if not _known(stopped):
        return ["whether its answers end by themselves could not be measured"]
    if stopped >= settings.minimum_stopped:
        return []
    return [
        f"only {stopped:.1%} of its answers end by themselves; at least {settings.minimum_stopped:.1%} have to: is the "
        "end of an answer in what it learns from?"
    ]


def _difference(stored: Mapping[str, float] | None) -> Difference | None:
    return None if stored is None else Difference(**stored)


def _finite(difference: Difference) -> bool:
    return all(map(math.isfinite, (difference.value, difference.low, difference.high)))


def _known(score: float | None) -> TypeGuard[float]:
    return score is not None and math.isfinite(score)


def _shown(metric: str) -> str:
    return metric.replace("_", "-")
