"""What applications report of answers, and the examples that it makes.

A correction becomes an example with what should have been; a thumb up approves the answer, which stays the model's own
words; a thumb down without a correction makes no example. All of it counts for the score of the version that answered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from pipelines.catalog import FORGOTTEN_EXAMPLES, feedback, forgotten, now
from pipelines.errors import ConfigError
from pipelines.fingerprint import fingerprint, text_hash
from pipelines.labels.examples import ORIGINS, Submitted
from pipelines.labels.masking import masked_json, masks
from pipelines.labels.reading.records import Record
from pipelines.labels.reading.shapes import Recogniser
from pipelines.labels.settings import LabelSettings
from pipelines.prompt import Message
from pipelines.training.settings import Task

FEEDBACK = "feedback"
"""What stands for the file's name in the location of an example that feedback made."""
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Feedback:
    """One report about one answer."""

    feedback_id: str
    """The application's own, up to 64 characters: repeating it is harmless."""
    messages: tuple[Message, ...]
    """The turns up to the question; where a model classifies, one turn of the user with the text."""
    answer: str | None = None
    """What was answered; labels joined by ``; `` where a model classifies."""
    correction: str | None = None
    """What should have been."""
    labels: tuple[str, ...] | None = None
    """What should have been, where a model classifies; empty for none of them."""
    thumb: Literal[1, -1] | None = None
    context: tuple[str, ...] | None = None
    """What had been retrieved."""
    version: str | None = None
    """The published version that answered."""
    conversation: str | None = None
    """The group of the example; a later feedback on the same question of it supersedes an earlier one."""
    author: str | None = None
    origin: str = "human"
    """Who corrected."""
    received_at: datetime | None = None
    """When it came; None: now."""


def record_feedback(
    catalog: sa.Engine, use_case: str, reported: Feedback, *, labels: LabelSettings | None = None
) -> bool:
    """Store ``reported``, without what ``labels`` want masked; False when it is there already, or was erased.

    Raises:
        ConfigError: it says nothing of the answer, or another feedback has its id.
    """
    _check(reported)
    row = _row(reported)
    if labels is not None:
        row = _masked(labels, row)
    erased = sa.select(forgotten.c.use_case).where(
        forgotten.c.use_case == use_case,
        forgotten.c.source == FORGOTTEN_EXAMPLES,
        forgotten.c.document_hash == text_hash(forgotten_name(reported.feedback_id)),
    )
    known = sa.select(feedback).where(feedback.c.use_case == use_case, feedback.c.feedback_id == row["feedback_id"])
    try:
        with catalog.begin() as connection:
            if connection.execute(erased).first() is not None:
                return False
            held = connection.execute(known).mappings().first()
            if held is None:
                connection.execute(sa.insert(feedback), {"use_case": use_case, **row})
                return True
    except sa.exc.IntegrityError:  # the same, reported twice at once
        with catalog.connect() as connection:
            held = connection.execute(known).mappings().one()
    other = [name for name, value in row.items() if name != "received_at" and held[name] != value]
    if other:
        raise ConfigError(
            f"feedback {reported.feedback_id!r} is known with another {', '.join(other)}: what is new needs an id of "
            "its own; a later feedback on the same question of a conversation supersedes the earlier"
        )
    return False


def forgotten_name(feedback_id: str) -> str:
    """What the note of an erased feedback is a hash of."""
    return f"{FEEDBACK}:{feedback_id}"


def feedback_examples(
    catalog: sa.Engine, use_case: str, task: Task, settings: LabelSettings | None = None
) -> list[Submitted]:
    """The examples that the feedback makes, in the order in which it came, as rows of the file ``feedback``.

    Their item is the question in its conversation, so that of several the newest counts; without a conversation, the
    feedback itself. An approval that a later thumb down takes back makes none.
    """
    settings = settings or LabelSettings(feedback=True)
    recogniser = Recogniser(settings.model_copy(update={"shape": "auto", "file_splits": {}}), task, FEEDBACK)
    disliked: set[str] = set()
    found: list[Submitted] = []
    for number, each in reversed(list(enumerate(reports(catalog, use_case), start=1))):
        item = item_of(each)
        corrected = _corrected(each, task, multi_label=settings.multi_label)
        if corrected is None and each.thumb == -1:
            disliked.add(item)
        if corrected is None and (each.thumb != 1 or not each.answer or item in disliked):
            continue
        values = _values(each, item, corrected, settings, task)
        raw = json.dumps(values, ensure_ascii=False)
        found.append(recogniser.recognise(Record(number, raw, values))[0])
    return found[::-1]


def item_of(reported: Feedback) -> str:
    """What it is about (64 hex digits, or the feedback's own id): the newest of equals counts."""
    if reported.conversation is None:
        return reported.feedback_id
    turns = [[turn.role, turn.content] for turn in reported.messages]
    return fingerprint(FEEDBACK, reported.conversation, turns)


def mask_feedback(catalog: sa.Engine, use_case: str, settings: LabelSettings) -> int:
    """Mask what came before the settings said so; returns how many reports changed."""
    changed = []
    for each in reports(catalog, use_case):
        row = _row(each)
        masked = _masked(settings, row)
        if masked != row:
            changed.append(masked)
    with catalog.begin() as connection:
        for row in changed:
            key = (feedback.c.use_case == use_case, feedback.c.feedback_id == row["feedback_id"])
            connection.execute(sa.update(feedback).where(*key).values(row))
    return len(changed)


def _check(reported: Feedback) -> None:
    if not reported.feedback_id or len(reported.feedback_id) > 64:
        raise ConfigError(f"feedback id {reported.feedback_id!r:.80} has not between 1 and 64 characters")
    if not reported.messages or reported.messages[-1].role != "user":
        raise ConfigError("the turns of a feedback end with the user's, which is what was answered")
    if reported.origin not in ORIGINS:
        raise ConfigError(f"origin {reported.origin!r} is not one of {', '.join(ORIGINS)}")
    if reported.thumb is None and reported.correction is None and reported.labels is None:
        raise ConfigError("a feedback says what the answer should have been, or has a thumb: this one has neither")


def _row(reported: Feedback) -> dict[str, Any]:
    row = {field.name: getattr(reported, field.name) for field in fields(reported)}
    row["messages"] = [{"role": turn.role, "content": turn.content} for turn in reported.messages]
    for name in ("labels", "context"):
        row[name] = None if row[name] is None else list(row[name])
    row["received_at"] = reported.received_at or now()
    return {name: storable(value) for name, value in row.items()}


def storable(value: Any) -> Any:
    """``value`` without what Postgres cannot hold in a text."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\x1a", value)
    if isinstance(value, list):
        return [storable(inner) for inner in value]
    return {name: storable(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def _masked(settings: LabelSettings, row: dict[str, Any]) -> dict[str, Any]:
    if not masks(settings):
        return row
    said = {name: row[name] for name in ("answer", "correction", "context")}
    contents = masked_json(settings, [turn["content"] for turn in row["messages"]])
    turns = [{**turn, "content": content} for turn, content in zip(row["messages"], contents, strict=True)]
    return {**row, **masked_json(settings, said), "messages": turns}


def reports(catalog: sa.Engine, use_case: str) -> Iterator[Feedback]:
    """Every report, in the order in which it came."""
    names = [field.name for field in fields(Feedback)]
    query = (
        sa.select(*(feedback.c[name] for name in names))
        .where(feedback.c.use_case == use_case)
        .order_by(feedback.c.received_at, feedback.c.feedback_id)
    )
    with catalog.connect() as connection:
        for row in connection.execute(query, execution_options={"yield_per": _PAGE}).mappings():
            each = Feedback(**row)
            yield replace(
                each,
                messages=tuple(Message(turn["role"], turn["content"]) for turn in row["messages"]),
                labels=None if row["labels"] is None else tuple(row["labels"]),
                context=None if row["context"] is None else tuple(row["context"]),
            )


def _corrected(reported: Feedback, task: Task, *, multi_label: bool) -> Sequence[str] | None:
    """What should have been: labels, or the one answer; None where nobody said."""
    if task == "generate" or reported.labels is None:
        if reported.correction is None:
            return None
        return labels_in(reported.correction, multi_label=multi_label) if task == "classify" else [reported.correction]
    return reported.labels


def labels_in(text: str, *, multi_label: bool) -> list[str]:
    """Labels in a text: joined by ``;`` where there may be several."""
    return [label.strip() for label in (text.split(";") if multi_label else [text]) if label.strip()]


def _values(
    reported: Feedback, item: str, corrected: Sequence[str] | None, settings: LabelSettings, task: Task
) -> dict[str, Any]:
    """The row that a file would have."""
    answer = reported.answer or ""
    values: dict[str, Any] = {
        "author": reported.author,
        "origin": "model" if corrected is None else reported.origin,
        "version": reported.version,
        settings.group_column: reported.conversation,
        settings.key_column: item,
        settings.time_column: None if reported.received_at is None else reported.received_at.isoformat(),
    }
    if task == "classify":
        labels = labels_in(answer, multi_label=settings.multi_label) if corrected is None else list(corrected)
        return {**values, settings.text_column: reported.messages[-1].content, settings.label_column: labels}
    turns = [{"role": turn.role, "content": turn.content} for turn in reported.messages]
    values["context"] = None if reported.context is None else list(reported.context)
    if corrected is not None and answer.strip() and answer.strip() != corrected[0].strip():
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (corrected[0], answer))
        return {**values, "prompt": turns, "chosen": chosen, "rejected": rejected}
    content = answer if corrected is None else corrected[0]
    return {**values, "messages": [*turns, {"role": "assistant", "content": content}]}
