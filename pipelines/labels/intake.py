"""Taking submitted examples into the catalog: each accepted or quarantined with its reasons, none lost.

A file is the truth about its own rows: one that is taken out of it, or corrected, is withdrawn (and comes back as it
was when it reappears); taking a whole file away withdraws nothing, so that an inbox may be emptied. Of the rows about
one item only the newest counts, wherever it came from; the others are superseded, and come back when it is withdrawn.
What people decided about single examples outweighs all of that.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pipelines.catalog import FORGOTTEN_EXAMPLES, example_reviews, examples, forgotten, insert_or_ignore, now
from pipelines.fingerprint import text_hash
from pipelines.labels.examples import (
    ACCEPTED,
    QUARANTINED,
    SUPERSEDED,
    WITHDRAWN,
    Split,
    Submitted,
    normalised,
    text_group,
)
from pipelines.labels.expectations import CANNOT_BE_READ, RELATION_KINDS, Candidate, Judgement, judge, suite_fingerprint
from pipelines.labels.feedback import FEEDBACK, feedback_examples, mask_feedback
from pipelines.labels.masking import masked_texts, masks
from pipelines.labels.reading import read_examples
from pipelines.labels.review import REVIEW, TO_JUDGE, UNRELEASABLE, Review, mask_reviews, replacements, reviews
from pipelines.labels.settings import LabelSettings
from pipelines.labels.splits import check_shares, split_of
from pipelines.prompt import Message, PromptSettings
from pipelines.training.settings import Task

__all__ = ["ACCEPTED", "QUARANTINED", "SUPERSEDED", "WITHDRAWN", "IntakeReport", "quarantined", "take_in"]

CountTokens = Callable[[Sequence[str]], Sequence[int]]
_SHORT = 200  # characters
_KEPT = ("text", "messages", "rejected", "context", "raw")
_OTHER_TEXT = "about the same item as quite another text"
"""Kind of the warning that ``labels.key_column`` may name different things by the same key."""
_OTHER_ITEM = "counts beside quite another text with the same key, in another file"
"""Kind of the warning that two rows are taken for two items, as no ``labels.key_column`` is named."""
_HARDLY = 0.2  # share of common words
_COMPARED = 20  # items of one key that a row is compared with: more of them are numbers, counted anew in each file
_VERDICT = ("state", "reasons", "warnings", "suite")


@dataclass(frozen=True, slots=True)
class IntakeReport:
    """What one intake found, and where the catalog stands after it."""

    files: int
    """Files read; a database, feedback and rows edited by hand count as one each."""
    rows: int
    """Rows in them, copies included."""
    new: int
    """Distinct rows never seen before."""
    new_accepted: int
    new_quarantined: int
    rejudged: int
    """Known rows whose verdict changed: by other expectations, by people, or by what came beside them."""
    withdrawn: int
    """Known rows that their file no longer holds, since this intake."""
    accepted: int
    """Total in the catalog."""
    quarantined: int
    """Total in the catalog."""
    superseded: int
    """Total in the catalog: rows about an item that a newer row is about, or that somebody edited."""
    released: int
    """Of the accepted, those that somebody released from quarantine."""
    reasons: Mapping[str, int]
    """Kinds of reasons among all quarantined rows, most frequent first."""
    warnings: Mapping[str, int]
    """Kinds of warnings among all accepted rows, most frequent first."""
    categories: Mapping[str, int]
    """Labels among all accepted rows."""
    by_origin: Mapping[str, int]
    """Accepted rows by who labelled them, most frequent first."""
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
    item: str | None
    labelled_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is submitted now."""

    files: int
    rows: int
    present: Mapping[str, Submitted]
    """By example id."""
    gone: frozenset[str]
    """Known rows that a file held when it was last read, and now does not."""
    replaced: Mapping[str, str]
    """Where the row stands that somebody wrote in the place of another, by the id of the other."""


def take_in(
    settings: LabelSettings,
    *,
    use_case: str,
    base: Path,
    held_out_share: float,
    catalog: sa.Engine,
    task: Task = "classify",
    prompt: PromptSettings | None = None,
    count_tokens: CountTokens | None = None,
    docs: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> IntakeReport:
    """Read what is submitted and store everything new with its verdict; a second run changes nothing.

    A row is judged once by itself, and again when the expectations changed or somebody decided about it; what rows are
    to each other is found out anew whenever some came or went. The split of an example is decided here, once: its
    item's, or else its group's. Of a row that is masked nothing else is kept.

    Args:
        settings: where the rows are, and what is expected of them.
        use_case: whose catalog rows.
        base: where relative paths start.
        held_out_share: of new groups, for the test split.
        catalog: see ``pipelines.catalog``.
        task: texts with labels, or chats.
        prompt: what an answer has to look like, where that is enforced.
        count_tokens: tokens of texts, for limits in tokens.
        docs: folder of the Data Docs.
        progress: takes lines for people.

    Raises:
        SourceError: nothing is at ``settings.url``, or a file is of an unknown format.
        SourceUnavailableError: it cannot be read now.
        ConfigError: an expectation or its arguments do not exist, or the shares leave nothing to train on.
    """
    started = time.perf_counter()
    check_shares(held_out_share, settings.validation_share)
    answer_format = None if prompt is None else prompt.answer_format
    suite = suite_fingerprint(settings, task=task, answer_format=answer_format)
    held = _held(catalog, use_case)
    masking = masks(settings)
    if masking and (not held or any(known.suite not in (suite, TO_JUDGE) for known in held.values())):
        mask_feedback(catalog, use_case, settings)
        mask_reviews(catalog, use_case, settings)
    decided = reviews(catalog, use_case)
    wanted = _wanted(settings, held, decided, use_case=use_case, base=base, catalog=catalog, task=task)
    present, gone = wanted.present, wanted.gone
    new = [example_id for example_id in present if example_id not in held]
    returned = {key for key, known in held.items() if known.state == WITHDRAWN and key in present}
    stale = any(known.suite != suite for known in held.values() if masking or known.state != WITHDRAWN)
    reordered = _reordered(present, held)
    progress(f"{wanted.rows} rows in {wanted.files} files, {len(new)} new, {len(gone)} withdrawn")

    new_rows: list[dict[str, Any]] = []
    changed: list[dict[str, Any]] = []
    if new or returned or gone or stale or reordered:
        known_rows = _known_rows(catalog, use_case, raw=masking)
        new_rows = _new_rows(
            [present[key] for key in new], known_rows, settings, use_case=use_case, held_out_share=held_out_share
        )
        for row in known_rows:
            row["before"] = {name: row[name] for name in (*_VERDICT, *_KEPT) if name in row}
            if row["example_id"] in gone:
                row.update(state=WITHDRAWN, reasons=[f"withdrawn: no longer in {_file(row['location'])}"], warnings=[])
            elif row["example_id"] in present:
                again = present[row["example_id"]]
                row.update(location=again.location, labelled_at=again.labelled_at)
                if row["suite"] != suite:  # what was masked by other settings is judged as its file has it
                    row.update(_kept(again))
                if row["state"] == WITHDRAWN:
                    row.update(state=None, reasons=[])
        aside, others = _set_aside(known_rows + new_rows, decided, wanted.replaced, named=_names_items(settings))
        _decide(
            known_rows + new_rows,
            aside,
            others,
            settings,
            suite,
            decided,
            present,
            more={"task": task, "answer_format": answer_format, "count_tokens": count_tokens},
            docs=docs,
            progress=progress,
        )
        changed = [row for row in known_rows if any(row[name] != value for name, value in row["before"].items())]
    moved = [
        {"example_id": key, "location": present[key].location, "labelled_at": present[key].labelled_at}
        for key, known in held.items()
        if key in present and (known.location, known.labelled_at) != (present[key].location, present[key].labelled_at)
    ]
    rewritten = [
        row for row in changed if any(row[name] != row["before"].get(name, row[name]) for name in _KEPT if name in row)
    ]
    with catalog.begin() as connection:
        _execute(connection, insert_or_ignore(catalog, examples), new_rows)
        _update(connection, use_case, _VERDICT, changed)
        _update(connection, use_case, _KEPT, rewritten)
        _update(connection, use_case, ("location", "labelled_at"), moved)

    states = Counter(row["state"] for row in new_rows)
    return IntakeReport(
        files=wanted.files,
        rows=wanted.rows,
        new=len(new_rows),
        new_accepted=states[ACCEPTED],
        new_quarantined=states[QUARANTINED],
        rejudged=sum(row["state"] != row["before"]["state"] for row in changed if row["state"] != WITHDRAWN),
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


# --- what is submitted


def _file(location: str) -> str:
    return location.rpartition(":")[0]


def _held(catalog: sa.Engine, use_case: str) -> dict[str, _Held]:
    names = ("example_id", "state", "location", "suite", "item", "labelled_at")
    query = sa.select(*(examples.c[name] for name in names)).where(examples.c.use_case == use_case)
    with catalog.connect() as connection:
        return {example_id: _Held(*known) for example_id, *known in connection.execute(query)}


def _forgotten(catalog: sa.Engine, use_case: str) -> set[str]:
    table = forgotten.c
    query = sa.select(table.document_hash).where(table.use_case == use_case, table.source == FORGOTTEN_EXAMPLES)
    with catalog.connect() as connection:
        return set(connection.scalars(query))


def _wanted(
    settings: LabelSettings,
    held: Mapping[str, _Held],
    decided: Mapping[str, Review],
    *,
    use_case: str,
    base: Path,
    catalog: sa.Engine,
    task: Task,
) -> _Wanted:
    reading = read_examples(settings, base=base, task=task)
    rows, files = list(reading.rows), set(reading.files)
    if settings.feedback:
        rows += feedback_examples(catalog, use_case, task, settings)
        files.add(FEEDBACK)
    erased = _forgotten(catalog, use_case)
    present: dict[str, Submitted] = {}
    for submitted in rows:
        example_id = submitted.example_id
        if erased and text_hash(example_id) in erased:
            continue
        known = present.get(example_id)
        if known is None or (submitted.key is not None and not _is_older(submitted, known)):
            present[example_id] = submitted
    gone = {
        key
        for key, known in held.items()
        if known.state != WITHDRAWN and key not in present and _file(known.location) in files
    }
    replaced: dict[str, str] = {}
    edited = replacements(catalog, use_case, decided, settings, task)
    for original, submitted in edited:
        example_id = submitted.example_id
        known_as = held.get(original)
        stands = original in present or (
            known_as is not None
            and known_as.state != WITHDRAWN
            and original not in gone
            and _file(known_as.location) != REVIEW  # such a row is there only while what it replaces is
        )
        if stands and not (erased and text_hash(example_id) in erased):
            replaced[original] = present.setdefault(example_id, submitted).location
    gone |= {
        key
        for key, known in held.items()
        if known.state != WITHDRAWN and key not in present and _file(known.location) == REVIEW
    }
    return _Wanted(len(files) + bool(edited), len(rows) + len(edited), present, frozenset(gone), replaced)


def _is_older(one: Submitted, other: Submitted) -> bool:
    return one.labelled_at is not None and other.labelled_at is not None and one.labelled_at < other.labelled_at


def _reordered(present: Mapping[str, Submitted], held: Mapping[str, _Held]) -> bool:
    """Whether rows about one item, all known, may now come in another order."""
    rows = Counter(known.item for known in held.values() if known.item is not None and known.state != WITHDRAWN)
    if len(rows) == rows.total():
        return False
    return any(
        known.item is not None
        and rows[known.item] > 1
        and key in present
        and (known.location, known.labelled_at) != (present[key].location, present[key].labelled_at)
        for key, known in held.items()
    )


# --- catalog rows


def _known_rows(catalog: sa.Engine, use_case: str, *, raw: bool) -> list[dict[str, Any]]:
    """Every row, in the order in which they came; lists of equal content may be one."""
    columns = [column for column in examples.c if column.name != "raw" or raw]
    lists = [column.name for column in columns if isinstance(column.type, sa.JSON)]
    selected = [sa.cast(column, sa.Text).label(column.name) if column.name in lists else column for column in columns]
    query = sa.select(*selected).where(examples.c.use_case == use_case)
    parsed = lru_cache(maxsize=10_000)(json.loads)  # most of them are short, and the same
    rows = []
    with catalog.connect() as connection:
        for found in connection.execute(query.order_by(examples.c.received_at, examples.c.example_id)).mappings():
            row = dict(found)
            for name in lists:
                text = row[name]
                if text is not None:
                    row[name] = parsed(text) if len(text) < _SHORT else json.loads(text)
            rows.append(row)
    return rows


def _new_rows(
    submitted: Sequence[Submitted],
    known_rows: Sequence[Mapping[str, Any]],
    settings: LabelSettings,
    *,
    use_case: str,
    held_out_share: float,
) -> list[dict[str, Any]]:
    """Catalog rows, not yet judged; an item or group that is known keeps its split whatever the shares are now."""
    splits: dict[str, Split] = {}
    for row in sorted(known_rows, key=lambda row: bool(row["state"] == WITHDRAWN)):
        splits.setdefault(row["group"], row["split"])
    named = _names_items(settings)
    of_items: dict[str, tuple[Split, str]] = {}
    for row in known_rows:
        of_items.setdefault(row["item"], (row["split"], row["text"]))
    received = now()
    rows = []
    for number, example in enumerate(submitted):
        group = example.group or text_group(example.text)
        known = None if example.key is None else of_items.get(example.key)
        of_item = None if known is None or (not named and _differ(known[1], example.text)) else known[0]
        split = example.split or of_item or splits.get(group)
        if split is None:
            split = split_of(group, held_out_share=held_out_share, validation_share=settings.validation_share)
        splits.setdefault(group, split)
        if example.key is not None:
            of_items.setdefault(example.key, (split, example.text))
        rows.append(
            {
                "use_case": use_case,
                "example_id": example.example_id,
                "labels": list(example.labels),
                "group": group,
                "split": split,
                "origin": example.origin[:16],
                "author": example.author,
                "location": example.location,
                "item": example.key,
                "labelled_at": example.labelled_at,
                "slices": list(example.slices),
                "received_at": received + timedelta(microseconds=number),  # keeps the order in which they stood
                "trained_at": None,
                "state": None,
                "reasons": [],
                "warnings": [],
                "suite": TO_JUDGE,
                **_kept(example),
            }
        )
    return rows


def _kept(row: Submitted) -> dict[str, Any]:
    return {
        "text": row.text,
        "messages": [{"role": turn.role, "content": turn.content} for turn in row.messages] or None,
        "rejected": row.rejected,
        "context": None if row.context is None else list(row.context),
        "raw": row.raw,
    }


# --- verdicts


def _set_aside(
    rows: Iterable[dict[str, Any]], decided: Mapping[str, Review], replaced: Mapping[str, str], *, named: bool
) -> tuple[set[str], dict[str, str]]:
    """Give rows that are not to be judged their state; the others lose a state of that kind.

    Returns the ids of the former, and by id of the others a warning where quite another text has their key.
    """
    standing: list[dict[str, Any]] = []
    aside: set[str] = set()

    def put(row: dict[str, Any], state: str, reason: str) -> None:
        row.update(state=state, reasons=[reason], warnings=[])
        aside.add(row["example_id"])

    for row in rows:
        if row["state"] == WITHDRAWN:
            aside.add(row["example_id"])
            continue
        decision = decided.get(row["example_id"])
        if row["example_id"] in replaced:
            reason = f"superseded: edited {'' if decision is None else decision.by}, {replaced[row['example_id']]}"
            put(row, SUPERSEDED, reason)
        elif decision is not None and decision.decision == "reject":
            reason = f"rejected {decision.by}" + (f": {decision.note}" if decision.note else "")
            put(row, QUARANTINED, reason)
        else:
            standing.append(row)
    newer, others = _superseded(standing, named=named)
    for row in standing:
        by = newer.get(row["example_id"])
        if by is not None:
            put(row, SUPERSEDED, f"superseded: a newer row is about the same item, {by['location']}")
            if _differ(row["text"], by["text"]):
                others[by["example_id"]] = f"{_OTHER_TEXT}: {row['location']}"
        elif row["state"] == SUPERSEDED:
            row.update(state=None, reasons=[])
    return aside, others


def _differ(one: str, other: str) -> bool:
    """Whether two texts have next to no words in common: then one is hardly a correction of the other."""
    words, others = (set(normalised(text).split()) for text in (one, other))
    return len(words & others) < _HARDLY * len(words | others)


def _names_items(settings: LabelSettings) -> bool:
    """Whether somebody said that a key names the same item in every file."""
    return "key_column" in settings.model_fields_set


def _superseded(rows: Iterable[dict[str, Any]], *, named: bool) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The newest row about the same item, by the id of each older one; and warnings, by the id of a row.

    The newest is labelled last. A row that does not say when was labelled when the last row about the item came in its
    file; of these the last line counts.
    """
    keys: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["item"] is not None:
            keys[row["item"]].append(row)
    newer: dict[str, dict[str, Any]] = {}
    others: dict[str, str] = {}
    items: list[list[dict[str, Any]]] = []
    for same in keys.values():
        apart = [same] if named else _told_apart(same)
        items += apart
        for one, other in pairwise(apart):
            others[other[0]["example_id"]] = f"{_OTHER_ITEM}: {one[0]['location']}"
    for same in items:
        if len(same) == 1:
            continue
        came: dict[str, datetime] = {}
        for row in same:
            file = _file(row["location"])
            came[file] = max(came.get(file, row["received_at"]), row["received_at"])

        def order(row: Mapping[str, Any], came: Mapping[str, datetime] = came) -> tuple[datetime, datetime, int]:
            arrived = came[_file(row["location"])]
            return row["labelled_at"] or arrived, arrived, int(row["location"].rpartition(":")[2])

        newest = max(same, key=order)
        newer |= {row["example_id"]: newest for row in same if row is not newest}
    return newer, others


def _told_apart(same: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows with one key, by item: each file may number its rows anew, so that in another one quite another text has it.

    A correction has words of what it corrects, or stands in the same file.
    """
    apart: list[list[dict[str, Any]]] = []
    of_file: dict[str, list[dict[str, Any]]] = {}
    for row in same:
        file = _file(row["location"])
        item = of_file.get(file)
        if item is None:
            item = next((each for each in apart[-_COMPARED:] if not _differ(each[-1]["text"], row["text"])), None)
        if item is None:
            item = []
            apart.append(item)
        item.append(row)
        of_file[file] = item
    return apart


def _decide(
    rows: Sequence[dict[str, Any]],
    aside: set[str],
    others: Mapping[str, str],
    settings: LabelSettings,
    suite: str,
    decided: Mapping[str, Review],
    present: Mapping[str, Submitted],
    *,
    more: Mapping[str, Any],
    docs: Path | None,
    progress: Callable[[str], None],
) -> None:
    """Judge ``rows`` and write state, reasons, warnings and suite into them, and what is kept of those that are masked.

    Rows that are set ``aside`` are only masked; ``others`` are warnings of other texts with the same key. ``more`` are
    further arguments of ``judge``.
    """
    masking = masks(settings)
    resting = [row for row in rows if row["example_id"] in aside]
    unseen = [row for row in resting if row["suite"] != suite] if masking else []
    for row, judgement in zip(unseen, judge(settings, _candidates(unseen, present), **more), strict=True):
        _keep(row, judgement.masked, settings)
    for row in resting:
        if masking or row["state"] != WITHDRAWN:
            row["suite"] = suite
    active = [row for row in rows if row["example_id"] not in aside]
    fresh = [row for row in active if row["suite"] != suite or row["state"] is None]
    progress(f"judging {len(fresh)} examples, and how {len(active)} stand to each other")
    own = {
        row["example_id"]: Judgement(_own(row["reasons"]), _own(row["warnings"] or []), None)
        for row in active
        if row["suite"] == suite and row["state"] is not None
    }
    released = {key: each for key, each in decided.items() if each.decision == "release"}
    by_hand = [row for row in fresh if row["example_id"] in released]
    for row, judgement in zip(by_hand, judge(settings, _candidates(by_hand, present), **more), strict=True):
        reasons, warnings = _own(judgement.reasons), _own(judgement.warnings)
        if not _stays(reasons):
            warnings += [f"{reason} (released {released[row['example_id']].by})" for reason in reasons]
            reasons = []
        own[row["example_id"]] = Judgement(reasons, warnings, judgement.masked)
    judgements = judge(settings, _candidates(active, present, own), **more, docs=docs)
    for row, judgement in zip(active, judgements, strict=True):
        reasons, warnings = judgement.reasons, judgement.warnings
        if row["example_id"] in released and not _stays(reasons):
            warnings = warnings + [f"{reason} (released {released[row['example_id']].by})" for reason in reasons]
            reasons = []
        if row["example_id"] in others:
            warnings = [*warnings, others[row["example_id"]]]
        row.update(state=QUARANTINED if reasons else ACCEPTED, reasons=reasons, warnings=warnings, suite=suite)
        _keep(row, judgement.masked, settings)
    if masking:
        _mask_unreadable([row for row in [*unseen, *fresh] if _problem(row, present) is not None], settings)


def _own(reasons: Iterable[str]) -> list[str]:
    """Without what is only so because of other rows."""
    by_others = RELATION_KINDS | {_OTHER_TEXT, _OTHER_ITEM}
    return [reason for reason in reasons if _kind(reason) not in by_others]


def _stays(reasons: Iterable[str]) -> bool:
    """Whether nobody can release a row with these reasons."""
    return any(_kind(reason) in UNRELEASABLE for reason in reasons)


def _kind(reason: str) -> str:
    return reason.partition(": ")[0]


def _candidates(
    rows: Sequence[Mapping[str, Any]],
    present: Mapping[str, Submitted],
    own: Mapping[str, Judgement] | None = None,
) -> list[Candidate]:
    return [
        Candidate(
            text=row["text"],
            labels=tuple(row["labels"]),
            group=row["group"],
            names_group=_UNNAMED.fullmatch(row["group"]) is None,
            split=row["split"],
            origin=row["origin"],
            author=row["author"],
            location=row["location"],
            problem=_problem(row, present),
            messages=tuple(Message(turn["role"], turn["content"]) for turn in row["messages"] or ()),
            rejected=row["rejected"],
            context=None if row["context"] is None else tuple(row["context"]),
            judged=None if own is None else own.get(row["example_id"]),
        )
        for row in rows
    ]


_UNNAMED = re.compile(r"text:[0-9a-f]{32}")


def _problem(row: Mapping[str, Any], present: Mapping[str, Submitted]) -> str | None:
    """Why a row cannot be read: said by its file, or noted when the file was last there."""
    submitted = present.get(row["example_id"])
    if submitted is not None:
        return submitted.problem
    prefix = f"{CANNOT_BE_READ}: "
    return next((reason.removeprefix(prefix) for reason in row["reasons"] if reason.startswith(prefix)), None)


def _keep(row: dict[str, Any], masked: Candidate | None, settings: LabelSettings) -> None:
    """Keep the masked row instead, and nothing of what it was: fields that nobody looked into go as well."""
    if masked is None:
        return
    row.update(
        text=masked.text,
        messages=[{"role": turn.role, "content": turn.content} for turn in masked.messages] or None,
        rejected=masked.rejected,
        context=None if masked.context is None else list(masked.context),
    )
    said: dict[str, Any] = {
        settings.group_column: row["group"] if masked.names_group else None,
        settings.key_column: row["item"],
        "origin": row["origin"],
        "author": row["author"],
        "context": row["context"],
    }
    turns = row["messages"]
    if turns is None:
        said |= {settings.text_column: row["text"], settings.label_column: row["labels"]}
    elif row["rejected"] is None:
        said["messages"] = turns
    else:
        said |= {"prompt": turns[:-1], "chosen": turns[-1:]}
        said["rejected"] = [{"role": "assistant", "content": row["rejected"]}]
    row["raw"] = json.dumps({name: value for name, value in said.items() if value is not None}, ensure_ascii=False)


def _mask_unreadable(rows: Sequence[dict[str, Any]], settings: LabelSettings) -> None:
    """Of a row that cannot be read nobody knows what is what: all of it is masked."""
    texts = [row["raw"] for row in rows]
    for row, raw in zip(rows, masked_texts(settings, texts), strict=True):
        row.update(raw=raw, reasons=masked_texts(settings, row["reasons"]))


# --- the catalog


def _execute(connection: sa.Connection, statement: Any, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        connection.execute(statement, rows)


def _update(
    connection: sa.Connection, use_case: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Write ``columns``; a verdict only over the one that was read, so that what people decided meanwhile stands."""
    judged = "suite" in columns
    was = [examples.c.suite == sa.bindparam("was")] if judged else []
    statement = (
        sa.update(examples)
        .where(examples.c.use_case == use_case, examples.c.example_id == sa.bindparam("key"), *was)
        .values({name: sa.bindparam(f"new_{name}", type_=examples.c[name].type) for name in columns})
    )
    values = [
        {
            "key": row["example_id"],
            **({"was": row["before"]["suite"]} if judged else {}),
            **{f"new_{name}": row[name] for name in columns},
        }
        for row in rows
    ]
    _execute(connection, statement, values)


def _totals(catalog: sa.Engine, use_case: str) -> dict[str, Any]:
    """Where the catalog stands: numbers, kinds of reasons and warnings, categories, origins."""
    mine = examples.c.use_case == use_case
    accepted = (mine, examples.c.state == ACCEPTED)
    released = (
        sa.select(sa.func.count())
        .select_from(examples)
        .join(
            example_reviews,
            sa.and_(
                example_reviews.c.use_case == examples.c.use_case,
                example_reviews.c.example_id == examples.c.example_id,
            ),
        )
        .where(*accepted, example_reviews.c.decision == "release")
    )
    with catalog.connect() as connection:

        def counted(column: sa.ColumnElement[Any], *where: sa.ColumnElement[bool]) -> list[tuple[Any, int]]:
            query = sa.select(column, sa.func.count()).where(*where).group_by(column)
            return [(value, count) for value, count in connection.execute(query)]

        states = dict(counted(examples.c.state, mine))
        origins = Counter(dict(counted(examples.c.origin, *accepted)))
        # Postgres cannot compare JSON.
        reasons = counted(sa.cast(examples.c.reasons, sa.Text), mine, examples.c.state == QUARANTINED)
        said = sa.cast(examples.c.warnings, sa.Text)
        warnings = counted(said, *accepted, said.not_in(("[]", "null")))
        labelled = counted(sa.cast(examples.c.labels, sa.Text), *accepted)
        number_released = connection.scalar(released) or 0
    categories: Counter[str] = Counter()
    for text, count in labelled:
        for label in json.loads(text):
            categories[label] += count
    return {
        "accepted": states.get(ACCEPTED, 0),
        "quarantined": states.get(QUARANTINED, 0),
        "superseded": states.get(SUPERSEDED, 0),
        "released": number_released,
        "reasons": _kinds(reasons),
        "warnings": _kinds(warnings),
        "categories": dict(sorted(categories.items())),
        "by_origin": dict(origins.most_common()),
    }


def _kinds(lists: Iterable[tuple[str, int]]) -> dict[str, int]:
    kinds: Counter[str] = Counter()
    for text, count in lists:
        for reason in json.loads(text):
            kinds[_kind(reason)] += count
    return dict(kinds.most_common())
