"""What an evaluation report holds, whatever the task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.errors import ArtifactError, ConfigError
from pipelines.evaluation.gate import REGRESSION, Verdict
from pipelines.evaluation.metrics import Measured
from pipelines.evaluation.settings import GateSettings
from pipelines.labels.examples import Example

MAXIMUM_SLICES = 40

Table = Mapping[str, Mapping[str, Measured | None]]
"""By metric, by model."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Candidate, champion and base, measured and judged."""

    verdict: Verdict
    metrics: Table
    slices: Mapping[str, Table]
    """The same on the rows of each slice."""
    details: Mapping[str, Any]
    """What else ``report.json`` says, in JSON types."""
    files: Mapping[str, bytes]
    """Pictures, tables and predictions, by file name."""
    notes: Sequence[str] = ()
    """What else people should know, a line each."""

    def scores(self) -> dict[str, dict[str, float]]:
        """By model, by metric; what could not be measured is left out."""
        found: dict[str, dict[str, float]] = {}
        for metric, by_model in self.metrics.items():
            for model, measured in by_model.items():
                if measured is not None:
                    found.setdefault(model, {})[metric] = measured.value
        return found


@contextmanager
def as_champion() -> Iterator[None]:
    """Says of an error in the block that it is the champion that cannot be scored, and what to do."""
    try:
        yield
    except (ArtifactError, ConfigError) as error:
        raise type(error)(
            f"the champion cannot be scored as it is served: {error}. Bring back what it needs, or roll back to a "
            "version that is whole"
        ) from error


def slices_of(rows: Sequence[Example], gate: GateSettings, *more: Sequence[str | None]) -> dict[str, list[int]]:
    """Row numbers by slice: those of the examples, their origins where there are several, and ``more`` names a row.

    The largest ones, and always those that the gate guards.
    """
    found: dict[str, list[int]] = {}
    origins = len({row.origin for row in rows}) > 1
    for number, row in enumerate(rows):
        names = {*row.slices, *(name for names in more if (name := names[number]) is not None)}
        if origins:
            names.add(f"origin={row.origin}")
        for name in sorted(names):
            found.setdefault(name, []).append(number)
    guarded = {REGRESSION, *gate.slice_floors}
    largest = Counter({name: len(numbers) for name, numbers in found.items()}).most_common(MAXIMUM_SLICES)
    kept = {name for name, _ in largest} | guarded
    return {name: found[name] for name in sorted(found) if name in kept}


def summary(judged: Judged) -> str:
    """Markdown for people: the verdict, every metric with its interval, and the deciding one by slice."""
    models = [name for name in ("candidate", "champion", "base") if any(name in row for row in judged.metrics.values())]
    lines = [f"**{'passed' if judged.verdict.passed else 'refused'}** on {judged.verdict.rows} held-out rows", ""]
    lines += [f"- {cell(reason, 2000)}" for reason in judged.verdict.reasons]  # they quote names of slices
    lines += ["", *_table("metric", judged.metrics.items(), models)]
    metric = judged.verdict.metric
    by_slice = [(name, table[metric]) for name, table in judged.slices.items() if metric in table]
    if by_slice:
        lines += ["", f"{metric.replace('_', '-')} by slice:", "", *_table("slice", by_slice, models)]
    lines += ["", *(f"- {cell(note)}" for note in judged.notes)] if judged.notes else []
    return "\n".join(lines) + "\n"


def cell(text: object, length: int = 600) -> str:
    """``text`` in a cell of a Markdown table: one line, cut, and nothing in it is markup."""
    shown = str(text)
    shown = shown if len(shown) <= length else shown[: length - 1] + "…"
    for mark, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("`", "&#96;"), ("[", "&#91;")):
        shown = shown.replace(mark, name)
    return "<br>".join(" ".join(line.split()) for line in shown.splitlines() if line.strip()) or " "


def _table(first: str, rows: Iterable[tuple[str, Mapping[str, Measured | None]]], models: Sequence[str]) -> list[str]:
    lines = [f"| {first} | rows | " + " | ".join(models) + " |", "|" + "---|" * (2 + len(models))]
    for name, by_model in rows:
        counts = max((found.rows for found in by_model.values() if found is not None), default=0)
        shown = [_shown(by_model.get(model)) for model in models]
        lines.append(f"| {cell(name)} | {counts} | " + " | ".join(shown) + " |")
    return lines


def _shown(found: Measured | None) -> str:
    return "not measured" if found is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
