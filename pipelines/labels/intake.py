"""Taking submitted examples into the catalog: each accepted or quarantined with its reasons, none lost.

A file is the truth about its own rows: one that is taken out of it, or corrected, is withdrawn (and comes back as it
was when it reappears); taking a whole file away withdraws nothing, so that an inbox may be emptied.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pipelines.catalog import FORGOTTEN_EXAMPLES, examples, forgotten, insert_or_ignore, now
from pipelines.fingerprint import text_hash
from pipelines.labels.examples import Split, Submitted, text_group
from pipelines.labels.expectations import CANNOT_BE_READ, Candidate, judge, suite_fingerprint
from pipelines.labels.reading import Reading, read_examples
from pipelines.labels.settings import LabelSettings
from pipelines.labels.splits import check_shares, split_of

ACCEPTED, QUARANTINED, WITHDRAWN = "accepted", "quarantined", "withdrawn"


@dataclass(frozen=True, slots=True)
class IntakeReport:
    """What one intake found, and where the catalog stands after it."""

    files: int
    rows: int
    """Rows in the files, copies included."""
    new: int
    """Distinct rows never seen before."""
    new_accepted: int
    new_quarantined: int
    rejudged: int
    """Known rows whose verdict changed: by other expectations, or by what came beside them."""
    withdrawn: int
    """Known rows that their file no longer holds, since this intake."""
    accepted: int
    """Total in the catalog."""
    quarantined: int
    """Total in the catalog."""
    reasons: Mapping[str, int]
    """Kinds of reasons among all quarantined rows, most frequent first."""
    categories: Mapping[str, int]
    """Labels among all accepted rows."""
    seconds: float

    @property
    def quarantined_share(self) -> float:
        """Quarantined of all accepted and quarantined examples, 0 to 1."""
        return self.quarantined / max(1, self.accepted + self.quarantined)

    def problems(self, settings: LabelSettings) -> list[str]:
        """The blocking conditions that fail, with the numbers; empty when training may go on."""
        found = []
        if self.accepted < settings.minimum_accepted:
            found.append(
                f"{self.accepted} accepted examples of at least {settings.minimum_accepted} (minimum_accepted)"
            )
        if self.quarantined_share > settings.maximum_quarantined_share:
            often = ", ".join(f"{reason} ({count})" for reason, count in list(self.reasons.items())[:3])
            found.append(
                f"{self.quarantined} of {self.accepted + self.quarantined} examples are quarantined, "
                f"{self.quarantined_share:.1%} where {settings.maximum_quarantined_share:.1%} is allowed "
                f"(maximum_quarantined_share); most often: {often}"
            )
        return found


@dataclass(frozen=True, slots=True)
class QuarantinedExample:
    """A row for people to look at."""

    location: str
    reasons: tuple[str, ...]
    raw: str


@dataclass(frozen=True, slots=True)
class _Held:
    """What the catalog knows of an example before this intake, in few bytes."""

    state: str
    location: str
    suite: str


def take_in(
    settings: LabelSettings,
    *,
    use_case: str,
    base: Path,
    held_out_share: float,
    catalog: sa.Engine,
    progress: Callable[[str], None] = lambda _: None,
) -> IntakeReport:
    """Read what is submitted and store everything new with its verdict; a second run changes nothing.

    Everything is judged again when rows came or went (copies and contradictions are between rows) or when the
    expectations changed since. The split of an example is decided here, once.

    Raises:
        SourceError: nothing is at ``settings.url``, or a file is of an unknown format.
        SourceUnavailableError: it cannot be read now.
        ConfigError: an expectation or its arguments do not exist, or the shares leave nothing to train on.
    """
    started = time.perf_counter()
    check_shares(held_out_share, settings.validation_share)
    suite = suite_fingerprint(settings)
    reading = read_examples(settings, base=base)
    erased = _forgotten(catalog, use_case)
    present: dict[str, Submitted] = {}
    for submitted in reading.rows:
        if not erased or text_hash(submitted.example_id) not in erased:
            present.setdefault(submitted.example_id, submitted)
    held = _held(catalog, use_case)
    new = [example_id for example_id in present if example_id not in held]
    returned = {key for key, known in held.items() if known.state == WITHDRAWN and key in present}
    gone = _gone(reading, present, held)
    stale = any(known.suite != suite for known in held.values() if known.state != WITHDRAWN)
    progress(f"{len(reading.rows)} rows in {len(reading.files)} files, {len(new)} new, {len(gone)} withdrawn")

    new_rows: list[dict[str, Any]] = []
    changed: list[dict[str, Any]] = []
    if new or returned or gone or stale:
        with catalog.connect() as connection:
            query = sa.select(examples).where(examples.c.use_case == use_case)
            ordered = query.order_by(examples.c.received_at, examples.c.example_id)
            known_rows = [dict(row) for row in connection.execute(ordered).mappings()]
        new_rows = _new_rows(
            [present[key] for key in new], known_rows, settings, use_case=use_case, held_out_share=held_out_share
        )
        for row in known_rows:
            row["before"] = (row["state"], row["reasons"], row["suite"])
            if row["example_id"] in gone:
                row.update(state=WITHDRAWN, reasons=[f"withdrawn: no longer in {_file(row['location'])}"])
            elif row["example_id"] in present:
                row["location"] = present[row["example_id"]].location
        active = [row for row in known_rows if row["state"] != WITHDRAWN or row["example_id"] in returned]
        progress(f"judging {len(active) + len(new_rows)} examples")
        _decide(settings, suite, active + new_rows, present)
        changed = [row for row in known_rows if (row["state"], row["reasons"], row["suite"]) != row["before"]]
    moved = {
        key: present[key].location
        for key, known in held.items()
        if key in present and known.location != present[key].location
    }
    with catalog.begin() as connection:
        _execute(connection, insert_or_ignore(catalog, examples), new_rows)
        _update(connection, use_case, ("state", "reasons", "suite"), changed)
        _update(connection, use_case, ("location",), [{"example_id": k, "location": v} for k, v in moved.items()])

    states = Counter(row["state"] for row in new_rows)
    return IntakeReport(
        files=len(reading.files),
        rows=len(reading.rows),
        new=len(new_rows),
        new_accepted=states[ACCEPTED],
        new_quarantined=states[QUARANTINED],
        rejudged=sum(row["state"] != row["before"][0] for row in changed if row["state"] != WITHDRAWN),
        withdrawn=len(gone),
        **_totals(catalog, use_case),
        seconds=time.perf_counter() - started,
    )


def quarantined(catalog: sa.Engine, use_case: str, limit: int = 50) -> list[QuarantinedExample]:
    """The newest ``limit`` quarantined rows."""
    query = (
        sa.select(examples.c.location, examples.c.reasons, examples.c.raw)
        .where(examples.c.use_case == use_case, examples.c.state == QUARANTINED)
        .order_by(examples.c.received_at.desc())
        .limit(limit)
    )
    with catalog.connect() as connection:
        rows = connection.execute(query).all()
    return [QuarantinedExample(location, tuple(reasons), raw) for location, reasons, raw in rows]


def _file(location: str) -> str:
    return location.rpartition(":")[0]


def _held(catalog: sa.Engine, use_case: str) -> dict[str, _Held]:
    query = sa.select(examples.c.example_id, examples.c.state, examples.c.location, examples.c.suite)
    with catalog.connect() as connection:
        rows = connection.execute(query.where(examples.c.use_case == use_case))
        return {example_id: _Held(state, location, suite) for example_id, state, location, suite in rows}


def _forgotten(catalog: sa.Engine, use_case: str) -> set[str]:
    table = forgotten.c
    query = sa.select(table.document_hash).where(table.use_case == use_case, table.source == FORGOTTEN_EXAMPLES)
    with catalog.connect() as connection:
        return set(connection.scalars(query))


def _gone(reading: Reading, present: Mapping[str, Submitted], held: Mapping[str, _Held]) -> set[str]:
    """Known rows that a file held when it was last read, and now does not."""
    files = set(reading.files)
    return {
        key
        for key, known in held.items()
        if known.state != WITHDRAWN and key not in present and _file(known.location) in files
    }


def _new_rows(
    submitted: Sequence[Submitted],
    known_rows: Iterable[Mapping[str, Any]],
    settings: LabelSettings,
    *,
    use_case: str,
    held_out_share: float,
) -> list[dict[str, Any]]:
    """Catalog rows, not yet judged; a group that is known keeps its split whatever the shares are now."""
    splits: dict[str, Split] = {}
    for row in sorted(known_rows, key=lambda row: bool(row["state"] == WITHDRAWN)):
        splits.setdefault(row["group"], row["split"])
    received = now()
    rows = []
    for number, example in enumerate(submitted):
        group = example.group or text_group(example.text)
        split = example.split or splits.get(group)
        if split is None:
            split = split_of(group, held_out_share=held_out_share, validation_share=settings.validation_share)
        splits.setdefault(group, split)
        rows.append(
            {
                "use_case": use_case,
                "example_id": example.example_id,
                "text": example.text,
                "labels": list(example.labels),
                "group": group,
                "split": split,
                "origin": example.origin[:16],
                "author": example.author,
                "location": example.location,
                "raw": example.raw,
                "received_at": received + timedelta(microseconds=number),  # keeps the order in which they stood
                "trained_at": None,
            }
        )
    return rows


def _decide(
    settings: LabelSettings, suite: str, rows: Sequence[dict[str, Any]], present: Mapping[str, Submitted]
) -> None:
    """Judge ``rows`` and write state, reasons and suite into them."""
    candidates = [
        Candidate(
            text=row["text"],
            labels=tuple(row["labels"]),
            group=row["group"],
            names_group=row["group"] != text_group(row["text"]),
            split=row["split"],
            origin=row["origin"],
            author=row["author"],
            location=row["location"],
            problem=_problem(row, present.get(row["example_id"])),
        )
        for row in rows
    ]
    for row, judgement in zip(rows, judge(settings, candidates), strict=True):
        reasons = judgement.reasons
        row.update(state=QUARANTINED if reasons else ACCEPTED, reasons=reasons, suite=suite)


def _problem(row: Mapping[str, Any], submitted: Submitted | None) -> str | None:
    """Why a row cannot be read: said by its file, or noted when the file was last there."""
    if submitted is not None:
        return submitted.problem
    prefix = f"{CANNOT_BE_READ}: "
    return next((reason.removeprefix(prefix) for reason in row["reasons"] if reason.startswith(prefix)), None)


def _execute(connection: sa.Connection, statement: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(statement, rows)


def _update(
    connection: sa.Connection, use_case: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    statement = (
        sa.update(examples)
        .where(examples.c.use_case == use_case, examples.c.example_id == sa.bindparam("key"))
        .values({name: sa.bindparam(f"new_{name}", type_=examples.c[name].type) for name in columns})
    )
    values = [{"key": row["example_id"], **{f"new_{name}": row[name] for name in columns}} for row in rows]
    _execute(connection, statement, values)


def _totals(catalog: sa.Engine, use_case: str) -> dict[str, Any]:
    """Where the catalog stands: numbers, kinds of reasons, categories."""
    mine = examples.c.use_case == use_case
    labels = sa.cast(examples.c.labels, sa.Text)  # Postgres cannot compare JSON
    with catalog.connect() as connection:
        states = connection.execute(
            sa.select(examples.c.state, sa.func.count()).where(mine).group_by(examples.c.state)
        ).all()
        reasons = connection.scalars(sa.select(examples.c.reasons).where(mine, examples.c.state == QUARANTINED)).all()
        labelled = connection.execute(
            sa.select(labels, sa.func.count()).where(mine, examples.c.state == ACCEPTED).group_by(labels)
        ).all()
    number: dict[str, int] = {state: count for state, count in states}  # noqa: C416 - dict() of rows has no types
    kinds = Counter(reason.partition(": ")[0] for row in reasons for reason in row)
    categories: Counter[str] = Counter()
    for text, count in labelled:
        for label in json.loads(text):
            categories[label] += count
    return {
        "accepted": number.get(ACCEPTED, 0),
        "quarantined": number.get(QUARANTINED, 0),
        "reasons": dict(kinds.most_common()),
        "categories": dict(sorted(categories.items())),
    }
