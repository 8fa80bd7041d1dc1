"""When to retrain: a small state machine, pure but for one indexed query.

A batch is what waits to be trained, counted in whole multiples of the minimum since the last successful training. So a
failed batch has a fixed number of attempts however the examples trickle in, and another full minimum of new ones is a
new batch with attempts of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import sqlalchemy as sa

from pipelines.artifacts import Artifact
from pipelines.catalog import examples, now
from pipelines.fingerprint import fingerprint
from pipelines.labels.examples import SPLITS, read_split
from pipelines.labels.intake import ACCEPTED

_COUNTED = 100_000  # counting stops here, so that the sensor stays quick however much has piled up

LastRun = Literal["succeeded", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Untrained:
    """Accepted examples that no successful training has used."""

    count: int
    batch_id: str
    """12 hex digits; equal as long as an attempt would be for the same reason."""


@dataclass(frozen=True, slots=True)
class TriggerState:
    """Everything that the decision depends on."""

    untrained: Untrained
    minimum: int
    """How many make a retraining worth while."""
    maximum_attempts: int
    """How often a batch is tried."""
    runs_in_flight: int
    """Retraining runs of the use case that are queued, starting or running, of whatever batch."""
    attempts: int
    """Runs of this batch so far: the highest attempt number among them, 0 for none."""
    last_run: LastRun | None = None
    """How the last run of this batch ended."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Not enough yet."""

    reason: str


@dataclass(frozen=True, slots=True)
class InFlight:
    """At most one retraining at a time."""

    reason: str


@dataclass(frozen=True, slots=True)
class Start:
    """Retrain now."""

    run_key: str
    """Dagster remembers it even when its run failed, so it carries the attempt number."""
    batch_id: str
    attempt: int
    """Counted from 1."""
    reason: str


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Tried as often as allowed: somebody has to look, and the sensor says so loudly."""

    reason: str


Decision = Wait | InFlight | Start | Exhausted


def decide(state: TriggerState) -> Decision:
    """Whether to retrain now, and if not, why not, with the numbers."""
    count, minimum = state.untrained.count, state.minimum
    numbers = f"{count} of {minimum} new accepted examples"
    if state.runs_in_flight:
        return InFlight(f"{state.runs_in_flight} retraining in flight; {numbers} wait for it to end")
    if count < minimum:
        return Wait(numbers)
    ended = f"the last attempt {state.last_run}" if state.last_run else "no attempt yet"
    if state.attempts >= state.maximum_attempts:
        another = minimum - count % minimum
        return Exhausted(
            f"{numbers}, but {state.attempts} of {state.maximum_attempts} attempts are used up ({ended}): look at the "
            f"failed runs, then launch the retraining by hand; {another} more examples would start a new batch"
        )
    attempt = state.attempts + 1
    return Start(
        run_key=f"retrain-{state.untrained.batch_id}-{attempt}",
        batch_id=state.untrained.batch_id,
        attempt=attempt,
        reason=f"{numbers}; attempt {attempt} of {state.maximum_attempts} ({ended})",
    )


def untrained(catalog: sa.Engine, use_case: str, *, minimum: int) -> Untrained:
    """How many accepted examples no successful training has used, and the batch that they make.

    One query that reads the index ``examples_untrained`` only.
    """
    accepted = (examples.c.use_case == use_case, examples.c.state == ACCEPTED)
    waiting = sa.select(sa.literal(1)).where(*accepted, examples.c.trained_at.is_(None)).limit(_COUNTED).subquery()
    counted = sa.select(sa.func.count()).select_from(waiting).scalar_subquery()
    trained = (
        sa.select(examples.c.trained_at)
        .where(*accepted, examples.c.trained_at.is_not(None))
        .order_by(examples.c.trained_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    with catalog.connect() as connection:
        count, trained_at = connection.execute(sa.select(counted, trained)).one()
    since = None if trained_at is None else trained_at.isoformat()
    return Untrained(count, fingerprint(use_case, since, count // minimum)[:12])


def mark_trained(catalog: sa.Engine, use_case: str, training_set: Artifact) -> int:
    """Note that a successful training used ``training_set``; returns how many examples that is new for.

    A second call finds nothing to do. Held-out and left-out rows count as used too: waiting longer changes nothing.
    """
    used = [example.id for split in SPLITS for example in read_split(training_set, split)]
    ids = iter([*used, *training_set.manifest.get("left_out", ())])
    trained_at, marked = now(), 0
    with catalog.begin() as connection:
        for some in _batches(ids, 500):
            statement = (
                sa.update(examples)
                .where(
                    examples.c.use_case == use_case, examples.c.example_id.in_(some), examples.c.trained_at.is_(None)
                )
                .values(trained_at=trained_at)
            )
            marked += connection.execute(statement).rowcount
    return marked


def _batches(ids: Iterator[str], size: int) -> Iterator[list[str]]:
    while batch := list(islice(ids, size)):
        yield batch
