"""Whether a candidate may be published: a pure decision on measured scores."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.evaluation.metrics import Difference
from pipelines.evaluation.settings import GateSettings


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision, with its reasons in plain words."""

    passed: bool
    reasons: tuple[str, ...]
    """Why it was refused, all of them; or, when it passed, what it passed on."""
    metric: str
    rows: int
    candidate: float
    base: float
    champion: float | None
    difference: Difference
    """Candidate minus champion on the same rows; without a champion, minus base."""


def decide(
    *,
    rows: int,
    candidate: float,
    base: float,
    champion: float | None,
    difference: Difference,
    settings: GateSettings,
) -> Verdict:
    """Judge a candidate by ``settings.metric``, every score (0 to 1) measured on the same ``rows`` held-out rows.

    Against a champion the whole bootstrap interval of the difference has to lie above the margin, so that a tie never
    promotes. Without one, where publishing nothing is the alternative, the candidate must not be surely worse than the
    untuned base: the interval must not lie below zero as a whole.
    """
    metric, refusals = (settings.metric or "macro_f1").replace("_", "-"), []
    if rows < settings.minimum_rows:
        refusals.append(f"only {rows} held-out rows; at least {settings.minimum_rows} are needed to decide anything")
    if candidate < settings.minimum_score:
        refusals.append(f"{metric} {candidate:.3f} is below the minimum of {settings.minimum_score:.3f}")
    other, score = ("untuned base", base) if champion is None else ("champion", champion)
    compared = (
        f"{metric} {candidate:.3f} against {score:.3f} of the {other}, on the same {rows} rows: difference "
        f"{difference.value:+.3f}, {settings.confidence:.0%} interval {difference.low:+.3f} to {difference.high:+.3f}"
    )
    if champion is not None:
        compared += f", margin {settings.margin:.3f}"
        if difference.low <= settings.margin:
            refusals.append(f"not surely better than the champion: {compared}")
    elif difference.high < 0:
        refusals.append(f"surely worse than the untuned base: {compared}")
    return Verdict(
        passed=not refusals,
        reasons=tuple(refusals) or (f"{'better' if champion is not None else 'not surely worse'}: {compared}",),
        metric=settings.metric or "macro_f1",
        rows=rows,
        candidate=candidate,
        base=base,
        champion=champion,
        difference=difference,
    )
