"""When to retrain: a small state machine, pure but for a few indexed queries.

A batch is what waits to be trained, counted in whole multiples of the minimum since the last successful training. So a
failed batch has a fixed number of attempts however the examples trickle in, and another full minimum of new ones is a
new batch with attempts of its own. A drop of the served version's score makes a batch of its own kind: the version and
the whole windows of feedback that it has had. Attempts are for trainings that fail: a candidate that the gate refuses
is an outcome, so its run succeeded, its examples are used, and the same drop starts no other.

Held-out examples count as they are submitted: people see examples, not splits, and a training that succeeded has used
them too, to choose and to judge. But examples that are all held out start nothing, because the model would be the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Literal

import sqlalchemy as sa

from pipelines.artifacts import Artifact
from pipelines.catalog import examples, feedback, now
from pipelines.errors import ArtifactError
from pipelines.fingerprint import fingerprint
from pipelines.labels.examples import SPLITS
from pipelines.labels.intake import ACCEPTED

_COUNTED = 10_000  # or four times the minimum: counting stops there, so that the sensor stays quick
_COUNTED_FEEDBACKS = 100_000
_LOOKED_THROUGH = 10  # times the window: among so many feedbacks those that say good or bad are looked for

LastRun = Literal["succeeded", "failed", "cancelled"]
Cause = Literal["examples", "age", "score"]


@dataclass(frozen=True, slots=True)
class Untrained:
    """Accepted examples that no successful training has used."""

    count: int
    batch_id: str
    """12 hex digits; equal as long as an attempt would be for the same reason."""
    or_more: bool = False
    """Whether counting stopped at ``count``."""


@dataclass(frozen=True, slots=True)
class Score:
    """How often users approve of the served version's answers: at first, and of late."""

    version: str
    """The published version that most of the newest feedbacks are about."""
    first: float
    """Share of approvals, 0 to 1, among its first ``window`` feedbacks."""
    last: float
    """The same among its last ``window``."""
    window: int
    feedbacks: int
    """How many it has had."""
    comparable: bool
    """Whether both windows are full, and the one ends before the other begins."""
    batch_id: str
    """12 hex digits; another one with each further window."""

    @property
    def drop(self) -> float | None:
        """How much the share fell; negative where it rose, None where the windows cannot be compared yet."""
        return self.first - self.last if self.comparable else None


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
    trainable: bool = True
    """Whether any of the untrained examples is one to train on, not held out."""
    oldest_waits: timedelta | None = None
    """How long the oldest untrained example to train on has waited."""
    maximum_age: timedelta | None = None
    """Waiting longer than this is reason enough; None: it never is."""
    since_last_start: timedelta | None = None
    """Time since a retraining last started, whoever started it; None: there was none."""
    cooldown: timedelta = timedelta()
    """How long none follows."""
    score: Score | None = None
    """None: not asked for, or no feedback names a version."""
    maximum_drop: float | None = None
    """A larger drop of the score is reason enough; None: it never is."""
    score_attempts: int = 0
    """Runs of the score's batch so far."""
    score_last_run: LastRun | None = None
    """How the last of these ended."""


@dataclass(frozen=True, slots=True)
class Wait:
    """No reason to retrain yet."""

    reason: str


@dataclass(frozen=True, slots=True)
class InFlight:
    """At most one retraining at a time."""

    reason: str


@dataclass(frozen=True, slots=True)
class CoolingDown:
    """There is reason to retrain, but the last retraining was a short while ago."""

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
    cause: Cause = "examples"


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Tried as often as allowed: somebody has to look, and the sensor says so loudly."""

    reason: str
    batch_id: str


Decision = Wait | InFlight | CoolingDown | Start | Exhausted


def decide(state: TriggerState) -> Decision:
    """Whether to retrain now, and if not, why not, with the numbers."""
    count, minimum = state.untrained.count, state.minimum
    numbers = f"{count}{'+' * state.untrained.or_more} of {minimum} new accepted examples"
    if state.runs_in_flight:
        return InFlight(f"{state.runs_in_flight} retraining in flight; {numbers} wait for it to end")
    cause = _cause(state)
    if cause is None:
        return Wait("; ".join([numbers, *_waiting_for(state)]))
    batch_id, attempts, last_run = state.untrained.batch_id, state.attempts, state.last_run
    another = f"{minimum - count % minimum} more examples"
    if cause == "age":
        numbers += f", the oldest waiting {_days(state.oldest_waits)} of {_days(state.maximum_age)} days"
    if cause == "score" and state.score is not None:
        batch_id, attempts, last_run = state.score.batch_id, state.score_attempts, state.score_last_run
        another = f"{state.score.window - state.score.feedbacks % state.score.window} more feedbacks"
        numbers += f"; {_fell(state.score, state.maximum_drop)}"
    ended = f"the last attempt {last_run}" if last_run else "no attempt yet"
    if attempts >= state.maximum_attempts:
        return Exhausted(
            f"{numbers}, but {attempts} of {state.maximum_attempts} attempts are used up ({ended}): look at the "
            f"failed runs, then launch the retraining by hand; {another} would start a new batch",
            batch_id,
        )
    if state.since_last_start is not None and state.since_last_start < state.cooldown:
        return CoolingDown(
            f"{numbers}; the last retraining started {_hours(state.since_last_start)} hours ago, "
            f"{_hours(state.cooldown - state.since_last_start)} of {_hours(state.cooldown)} hours of cool-down are left"
        )
    attempt = attempts + 1
    return Start(
        run_key=f"retrain-{batch_id}-{attempt}",
        batch_id=batch_id,
        attempt=attempt,
        reason=f"{numbers}; attempt {attempt} of {state.maximum_attempts} ({ended})",
        cause=cause,
    )


def _cause(state: TriggerState) -> Cause | None:
    """Why to retrain, the strongest reason first."""
    if state.trainable and state.untrained.count >= state.minimum:
        return "examples"
    waits, age = state.oldest_waits, state.maximum_age
    if state.trainable and state.untrained.count and waits is not None and age is not None and waits >= age:
        return "age"
    drop = None if state.score is None else state.score.drop
    if drop is not None and state.maximum_drop is not None and drop > state.maximum_drop:
        # One retraining that went through is the answer to one drop, even where the gate kept the champion.
        return None if state.score_last_run == "succeeded" else "score"
    return None


def _waiting_for(state: TriggerState) -> Iterator[str]:
    """What else could start a retraining, and how far it is."""
    if state.untrained.count and not state.trainable:
        yield "all of them are held out, so there is nothing new to train on"
    elif state.untrained.count and state.maximum_age is not None and state.oldest_waits is not None:
        yield f"the oldest waits {_days(state.oldest_waits)} of {_days(state.maximum_age)} days"
    if state.score is not None and state.maximum_drop is not None:
        if state.score.drop is None:
            yield f"{state.score.feedbacks} of {2 * state.score.window} feedbacks on {state.score.version}"
        else:
            yield _fell(state.score, state.maximum_drop)
            if state.score_last_run == "succeeded":
                more = state.score.window - state.score.feedbacks % state.score.window
                yield (
                    "retrained for it already, whatever the gate said of the candidate; "
                    f"{more} more feedbacks would be another reason"
                )


def _fell(score: Score, maximum_drop: float | None) -> str:
    return (
        f"{score.version} approved {score.first:.0%} at first, {score.last:.0%} in the last {score.window} feedbacks "
        f"(a drop of more than {maximum_drop or 0:.0%} counts)"
    )


def _days(waits: timedelta | None) -> str:
    return f"{(waits or timedelta()) / timedelta(days=1):.1f}"


def _hours(passed: timedelta) -> str:
    return f"{passed / timedelta(hours=1):.1f}"


def untrained(catalog: sa.Engine, use_case: str, *, minimum: int) -> Untrained:
    """How many accepted examples no successful training has used, and the batch that they make.

    One query that reads the index ``examples_untrained`` only.
    """
    enough = max(_COUNTED, 4 * minimum)
    accepted = (examples.c.use_case == use_case, examples.c.state == ACCEPTED)
    waiting = sa.select(sa.literal(1)).where(*accepted, examples.c.trained_at.is_(None)).limit(enough).subquery()
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
    return Untrained(count, fingerprint(use_case, since, count // minimum)[:12], or_more=count == enough)


def oldest_untrained(catalog: sa.Engine, use_case: str) -> datetime | None:
    """When the oldest untrained example came that is there to train on; None: there is none.

    One query that looks up the first entry of the index ``examples_waiting``.
    """
    c = examples.c
    query = (
        sa.select(c.received_at)
        .where(c.use_case == use_case, c.state == ACCEPTED, c.split == "train", c.trained_at.is_(None))
        .order_by(c.received_at)
        .limit(1)
    )
    with catalog.connect() as connection:
        return connection.scalar(query)


def approval_score(catalog: sa.Engine, use_case: str, *, window: int) -> Score | None:
    """Approvals of the served version's first and last ``window`` feedbacks; None: no feedback names a version.

    The served version is the one that most of the newest ``window`` feedbacks name: so no registry has to be reached,
    and a late opinion of an older version does not count. A thumb says good or bad; without one, a correction says bad.
    """
    c = feedback.c
    # JSON columns hold JSON's null where nothing was said.
    labelled = sa.func.coalesce(sa.cast(c.labels, sa.Text), "null") != "null"
    says = sa.or_(c.thumb.is_not(None), c.correction.is_not(None), labelled)
    newest = (
        sa.select(c.version)
        .where(c.use_case == use_case, c.version.is_not(None))
        .order_by(c.received_at.desc())
        .limit(window)
    )
    with catalog.connect() as connection:
        versions = Counter(connection.scalars(newest))
        if not versions:
            return None
        version = versions.most_common(1)[0][0]
        mine = (c.use_case == use_case, c.version == version)

        def judged(newest_first: bool) -> list[tuple[datetime, bool]]:
            query = sa.select(c.thumb, c.received_at, says.label("says")).where(*mine)
            query = query.order_by(c.received_at.desc() if newest_first else c.received_at)
            looked = query.limit(_LOOKED_THROUGH * window).subquery().c
            found = sa.select(looked.received_at, looked.thumb).where(looked.says).limit(window)
            found = found.order_by(looked.received_at.desc() if newest_first else looked.received_at)
            return [(received, thumb == 1) for received, thumb in connection.execute(found)]

        first, last = judged(newest_first=False), judged(newest_first=True)
        some = sa.select(sa.literal(1)).where(*mine).limit(_COUNTED_FEEDBACKS).subquery()
        feedbacks = connection.scalar(sa.select(sa.func.count()).select_from(some)) or 0
    return Score(
        version=version,
        first=_share(first),
        last=_share(last),
        window=window,
        feedbacks=feedbacks,
        comparable=len(first) == len(last) == window and first[-1][0] < last[-1][0],
        batch_id=fingerprint(use_case, "score", version, feedbacks // window)[:12],
    )


def _share(judged: Sequence[tuple[datetime, bool]]) -> float:
    return sum(approved for _, approved in judged) / max(1, len(judged))


def mark_trained(catalog: sa.Engine, use_case: str, training_set: Artifact) -> int:
    """Note that a successful training used ``training_set``; returns how many examples that is new for.

    A second call finds nothing to do. Held-out and left-out rows count as used too: waiting longer changes nothing.

    Raises:
        ArtifactError: a file of the training set is missing.
    """
    ids = _ids(training_set)
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


def _ids(training_set: Artifact) -> Iterator[str]:
    for split in SPLITS:
        path = training_set.path / f"{split}.jsonl"
        if not path.is_file():
            raise ArtifactError(f"{training_set.path} has no {path.name}; materialise its asset again")
        with path.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                yield json.loads(line)["id"]
    yield from training_set.manifest.get("left_out", ())


def _batches(ids: Iterable[str], size: int) -> Iterator[list[str]]:
    ids = iter(ids)
    while batch := list(islice(ids, size)):
        yield batch
