"""What people decide about single examples: it outweighs the expectations, and outlives every reading and judging.

A decision is stored here and takes effect at the next intake; a rejection at once, so that nothing trains on it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any, Literal, get_args

import sqlalchemy as sa

from pipelines.catalog import example_reviews, examples, now
from pipelines.errors import ConfigError
from pipelines.labels.examples import ACCEPTED, QUARANTINED, Submitted
from pipelines.labels.expectations import CANNOT_BE_READ
from pipelines.labels.masking import masked_json
from pipelines.labels.reading.records import Record
from pipelines.labels.reading.shapes import Recogniser
from pipelines.labels.settings import LabelSettings
from pipelines.training.settings import Task

Decision = Literal["release", "reject", "replace"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)

REVIEW = "review"
"""What stands for the file's name in the location of a row that somebody edited."""
TO_JUDGE = ""
"""In the place of the fingerprint of the expectations: the verdict no longer holds."""
UNRELEASABLE = frozenset(
    {
        CANNOT_BE_READ,
        "no text",
        "only whitespace",
        "no prompt",
        "only whitespace in the prompt",
        "no answer",
        "only whitespace in the answer",
        "no label",
        "several labels where one is allowed",
        "label outside the categories",
        "wrong roles or turns",
        "its group is in another split",
    }
)
"""Kinds of reasons that nobody can release a row from: it cannot be trained on, or would leak. It has to be edited."""
_IDS = 500  # in one query
_SHORTEST_PREFIX = 6


@dataclass(frozen=True, slots=True)
class Review:
    """A decision about one example."""

    example_id: str
    decision: Decision
    replacement: str | None
    """The row that stands for it, as JSON."""
    author: str | None
    note: str | None
    decided_at: datetime

    @property
    def by(self) -> str:
        """By whom, for people."""
        return f"by {self.author or 'hand'}"


@dataclass(frozen=True, slots=True)
class Listed:
    """An example for people to look at."""

    example_id: str
    state: str
    location: str
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    raw: str
    """The row as it was; of a masked one, as it was masked."""

    def as_edited(self) -> str:
        """One line of JSON to edit and import: change ``row``, or add a ``decision`` (release, reject) and a ``note``.

        A row that is no JSON object stands as text.
        """
        line = {
            "example": self.example_id,
            "where": self.location,
            "reasons": list(self.reasons),
            "row": _parsed(self.raw),
        }
        return json.dumps(line, ensure_ascii=False)


def listed(
    catalog: sa.Engine,
    use_case: str,
    *,
    state: str = QUARANTINED,
    reason: str | None = None,
    location: str | None = None,
    limit: int | None = 50,
) -> list[Listed]:
    """Examples in ``state``, newest first.

    Args:
        catalog: where they are.
        use_case: whose.
        state: accepted, quarantined, superseded or withdrawn.
        reason: only those with this in one of their reasons or warnings, case aside.
        location: only those whose ``file:row`` begins so.
        limit: how many at most; None: all.
    """
    c = examples.c
    query = (
        sa.select(c.example_id, c.state, c.location, c.reasons, c.warnings, c.raw)
        .where(c.use_case == use_case, c.state == state)
        .order_by(c.received_at.desc(), c.example_id)
    )
    if location is not None:
        query = query.where(c.location.startswith(location, autoescape=True))

    with catalog.connect() as connection:
        rows = connection.execute(query, execution_options={"yield_per": _IDS})
        found = (
            Listed(example_id, held, where, tuple(reasons), tuple(warnings or ()), raw)
            for example_id, held, where, reasons, warnings, raw in rows
            if reason is None or any(reason.casefold() in said.casefold() for said in [*reasons, *(warnings or ())])
        )
        return list(islice(found, limit))


def decide(
    catalog: sa.Engine,
    use_case: str,
    example: str,
    decision: Decision,
    *,
    settings: LabelSettings,
    task: Task = "classify",
    author: str | None = None,
    note: str | None = None,
    replacement: str | None = None,
) -> str:
    """Decide about one example; returns its id.

    Args:
        catalog: where it is.
        use_case: whose.
        example: its id, or the beginning of it (six hex digits at least).
        decision: ``release`` accepts it despite its reasons; ``reject`` keeps it out for good; ``replace`` puts
            ``replacement`` in its place, which is judged like any other row, in the same group and split.
        settings: of the labels.
        task: of the use case.
        author: who decides.
        note: why.
        replacement: the edited row as a JSON object, in any shape that a file's row may have.

    Raises:
        ConfigError: there is no such example, or this cannot be decided about it.
    """
    rows = [_prepared(catalog, use_case, example, decision, settings, task, author, note, replacement)]
    _store(catalog, use_case, rows)
    return str(rows[0]["example_id"])


def undo(catalog: sa.Engine, use_case: str, example: str) -> str:
    """Take a decision back: the expectations judge again; returns the example's id.

    Raises:
        ConfigError: there is no such example, or no decision about it.
    """
    example_id = _found(catalog, use_case, example)["example_id"]
    key = (example_reviews.c.use_case == use_case, example_reviews.c.example_id == example_id)
    with catalog.begin() as connection:
        if not connection.execute(sa.delete(example_reviews).where(*key)).rowcount:
            raise ConfigError(f"nobody has decided about example {example_id[:12]} of {use_case}")
        connection.execute(_to_judge(use_case, [example_id]))
    return str(example_id)


def import_edited(
    catalog: sa.Engine,
    use_case: str,
    lines: Iterable[str],
    *,
    settings: LabelSettings,
    task: Task = "classify",
    author: str | None = None,
) -> Mapping[str, int]:
    """Decide what an edited export (``Listed.as_edited``) says, all of it or nothing.

    Returns how many rows by decision, and ``unchanged``.

    Raises:
        ConfigError: lines that cannot be understood or decided, by their number.
    """
    rows, problems = [], []
    counts: Counter[str] = Counter()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = _edited(catalog, use_case, line, settings, task, author)
        except ConfigError as error:
            problems.append(f"line {number}: {error}")
            continue
        counts["unchanged" if found is None else found["decision"]] += 1
        rows += [] if found is None else [found]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ConfigError(f"nothing was imported; {'; '.join(problems[:5])}{more}")
    _store(catalog, use_case, rows)
    return dict(counts)


def reviews(catalog: sa.Engine, use_case: str) -> dict[str, Review]:
    """Every decision by the id of its example, in the order in which they were made."""
    c = example_reviews.c
    query = sa.select(c.example_id, c.decision, c.replacement, c.author, c.note, c.decided_at)
    query = query.where(c.use_case == use_case).order_by(c.decided_at, c.example_id)
    with catalog.connect() as connection:
        return {row.example_id: Review(*row) for row in connection.execute(query)}


def replacements(
    catalog: sa.Engine, use_case: str, decided: Mapping[str, Review], settings: LabelSettings, task: Task
) -> list[tuple[str, Submitted]]:
    """Each edited row with the id of the example that it stands for; rows of the file ``review``."""
    edited = [each for each in decided.values() if each.decision == "replace" and each.replacement is not None]
    originals: dict[str, Mapping[str, Any]] = {}
    c = examples.c
    query = sa.select(c.example_id, c.group, c.split, c.item, c.location)
    with catalog.connect() as connection:
        for start in range(0, len(edited), _IDS):
            ids = [each.example_id for each in edited[start : start + _IDS]]
            rows = connection.execute(query.where(c.use_case == use_case, c.example_id.in_(ids))).mappings()
            originals |= {row["example_id"]: row for row in rows}
    found = []
    for number, each in enumerate(edited, start=1):
        original = originals.get(each.example_id)
        if original is None:  # it was erased
            continue
        row = _recognised(str(each.replacement), original["location"], settings, task, number)
        found.append(
            (
                each.example_id,
                replace(
                    row,
                    group=original["group"],
                    split=original["split"],
                    key=original["item"],
                    origin="human",
                    author=each.author or row.author,
                    labelled_at=each.decided_at,
                ),
            )
        )
    return found


def mask_reviews(catalog: sa.Engine, use_case: str, settings: LabelSettings) -> None:
    """Mask what was edited before the settings said so."""
    changed = []
    for each in reviews(catalog, use_case).values():
        if each.replacement is not None:
            masked = _masked(settings, each.replacement)
            changed += [(each.example_id, masked)] if masked != each.replacement else []
    c = example_reviews.c
    with catalog.begin() as connection:
        for example_id, masked in changed:
            key = (c.use_case == use_case, c.example_id == example_id)
            connection.execute(sa.update(example_reviews).where(*key).values(replacement=masked))


def _found(catalog: sa.Engine, use_case: str, example: str) -> Mapping[str, Any]:
    """The one example whose id begins so."""
    c = examples.c
    query = sa.select(c.example_id, c.state, c.reasons, c.location, c.raw, c.group, c.split, c.item)
    query = query.where(c.use_case == use_case, c.example_id.startswith(example, autoescape=True)).limit(2)
    if len(example) < _SHORTEST_PREFIX:
        raise ConfigError(f"example {example!r}: give {_SHORTEST_PREFIX} characters of its id at least")
    with catalog.connect() as connection:
        rows = connection.execute(query).mappings().all()
    if len(rows) != 1:
        what = "several examples" if rows else "no example"
        raise ConfigError(
            f"{use_case} has {what} whose id begins with {example!r}; python -m pipelines.labels list {use_case} "
            "shows those in quarantine"
        )
    return dict(rows[0])


def _prepared(
    catalog: sa.Engine,
    use_case: str,
    example: str,
    decision: str,
    settings: LabelSettings,
    task: Task,
    author: str | None,
    note: str | None,
    replacement: str | None,
) -> dict[str, Any]:
    """The decision as a row of the catalog, once it is certain that it can be made."""
    if decision not in DECISIONS:
        raise ConfigError(f"decision {decision!r} is not one of {', '.join(DECISIONS)}")
    if (decision == "replace") != (replacement is not None):
        raise ConfigError(f"decision {decision!r} {'needs a' if replacement is None else 'takes no'} replacement")
    held = _found(catalog, use_case, example)
    short = held["example_id"][:12]
    if held["state"] not in (ACCEPTED, QUARANTINED):
        raise ConfigError(
            f"example {short} is {held['state']} ({'; '.join(held['reasons'])}): only accepted and quarantined ones "
            "can be decided about; a decision that was made is taken back by undo"
        )
    if decision == "release":
        stays = [reason for reason in held["reasons"] if reason.partition(": ")[0] in UNRELEASABLE]
        if stays:
            raise ConfigError(f"example {short} cannot be released, only edited or rejected: {'; '.join(stays)}")
    if replacement is not None:
        replacement = _masked(settings, replacement)
        row = _recognised(replacement, held["location"], settings, task, 1)
        if row.problem is not None:
            raise ConfigError(f"what replaces example {short} {CANNOT_BE_READ}: {row.problem}")
        before = _recognised(held["raw"], held["location"], settings, task, 1)
        if _says(row) == _says(before):
            raise ConfigError(f"what replaces example {short} says the same; to accept it as it is, release it")
    return {
        "use_case": use_case,
        "example_id": held["example_id"],
        "decision": decision,
        "replacement": replacement,
        "author": author,
        "note": note,
        "decided_at": now(),
    }


def _says(row: Submitted) -> tuple[Any, ...]:
    return row.text, row.labels, row.messages, row.rejected, row.context, row.slices


def _store(catalog: sa.Engine, use_case: str, rows: Sequence[Mapping[str, Any]]) -> None:
    c = example_reviews.c
    ids = [row["example_id"] for row in rows]
    if not rows:
        return
    with catalog.begin() as connection:
        for start in range(0, len(ids), _IDS):
            some = ids[start : start + _IDS]
            connection.execute(sa.delete(example_reviews).where(c.use_case == use_case, c.example_id.in_(some)))
            connection.execute(_to_judge(use_case, some))
        connection.execute(sa.insert(example_reviews), list(rows))
        for row in rows:
            if row["decision"] == "reject":
                mine = (examples.c.use_case == use_case, examples.c.example_id == row["example_id"])
                connection.execute(sa.update(examples).where(*mine).values(state=QUARANTINED))


def _to_judge(use_case: str, ids: Sequence[str]) -> sa.Update:
    mine = (examples.c.use_case == use_case, examples.c.example_id.in_(ids))
    return sa.update(examples).where(*mine).values(suite=TO_JUDGE)


def _edited(
    catalog: sa.Engine, use_case: str, line: str, settings: LabelSettings, task: Task, author: str | None
) -> dict[str, Any] | None:
    """What one line of an export decides; None where nobody touched it."""
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON ({error})") from error
    if not isinstance(given, dict) or not isinstance(given.get("example"), str):
        raise ConfigError("no 'example' with the id that was exported")
    unknown = sorted(given.keys() - {"example", "where", "reasons", "row", "decision", "note"})
    if unknown:
        raise ConfigError(f"{unknown[0]!r} means nothing here; edit 'row', or add 'decision' and 'note'")
    decision, row, note = given.get("decision"), given.get("row"), given.get("note")
    if note is not None and not isinstance(note, str):
        raise ConfigError(f"note {note!r:.60} is no text")
    held = _found(catalog, use_case, given["example"])
    changed = "row" in given and row != _parsed(held["raw"])
    if decision in ("release", "reject") and changed:
        raise ConfigError(f"decision {decision!r} and another row: an edited row replaces the old one")
    if decision is None and not changed:
        return None
    if changed and not isinstance(row, dict):
        raise ConfigError(f"row is not a JSON object: {row!r:.60}")
    replacement = json.dumps(row, ensure_ascii=False) if changed else None
    return _prepared(
        catalog, use_case, held["example_id"], decision or "replace", settings, task, author, note, replacement
    )


def _parsed(raw: str) -> Any:
    """The row as JSON where it is an object, otherwise as the text that it is."""
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    return values if isinstance(values, dict) else raw


def _recognised(row: str, location: str, settings: LabelSettings, task: Task, number: int) -> Submitted:
    values = _parsed(row)
    problem = None if isinstance(values, dict) else "not a JSON object"
    cells = location.rpartition(":")[0].endswith((".csv", "sql"))  # where lists are text in a cell
    recogniser = Recogniser(settings.model_copy(update={"shape": "auto", "file_splits": {}}), task, REVIEW)
    return recogniser.recognise(Record(number, row, {} if problem else values, problem, cells=cells))[0]


def _masked(settings: LabelSettings, row: str) -> str:
    values = _parsed(row)
    return row if isinstance(values, str) else json.dumps(masked_json(settings, values), ensure_ascii=False)
