"""What served models answered, kept for feedback: question, what was retrieved, answer, and which version it was."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pipelines.catalog import answers, now
from pipelines.labels.feedback import storable
from pipelines.labels.masking import masked_json, masks
from pipelines.labels.settings import LabelSettings
from pipelines.prompt import Message

if TYPE_CHECKING:
    from pipelines.corpus.search import Hit
    from pipelines.serving.answering import Answer

ANSWERS = "answers"
"""In the place of a source's name: an answer of a served model."""


def record_answer(
    catalog: sa.Engine,
    use_case: str,
    answer_id: str,
    messages: Sequence[Message],
    said: Answer,
    *,
    seconds: float,
    whole: bool = True,
    conversation: str | None = None,
    author: str | None = None,
    labels: LabelSettings | None = None,
) -> None:
    """Store one answer, without what ``labels`` want masked; ``whole`` is false where the client left early."""
    told: dict[str, Any] = {
        "messages": [{"role": turn.role, "content": turn.content} for turn in messages],
        "answer": said.text,
        "hits": None if said.hits is None else [_hit(hit) for hit in said.hits],
    }
    if labels is not None and masks(labels):
        texts = {
            "turns": [turn["content"] for turn in told["messages"]],
            "answer": said.text,
            "hits": [hit["text"] for hit in told["hits"] or ()],
        }
        masked = masked_json(labels, texts)
        told["answer"] = masked["answer"]
        for turn, content in zip(told["messages"], masked["turns"], strict=True):
            turn["content"] = content
        for hit, text in zip(told["hits"] or (), masked["hits"], strict=True):
            hit["text"] = text
    row = {
        **storable(told),
        "use_case": use_case,
        "answer_id": answer_id,
        "answered_at": now(),
        "version": said.version,
        "file": said.file,
        "finish": said.finish if whole else "cancelled",
        "refused": said.refused,
        "conversation": storable(conversation),
        "author": storable(author),
        "prompt_tokens": said.prompt_tokens,
        "answer_tokens": said.answer_tokens,
        "seconds": seconds,
    }
    with catalog.begin() as connection:
        connection.execute(sa.insert(answers), row)


def stored_answer(catalog: sa.Engine, use_case: str, answer_id: str) -> dict[str, Any] | None:
    """The row of one answer, as the catalog has it."""
    query = sa.select(answers).where(answers.c.use_case == use_case, answers.c.answer_id == answer_id)
    with catalog.connect() as connection:
        row = connection.execute(query).mappings().one_or_none()
    return None if row is None else dict(row)


def forget_older(catalog: sa.Engine, use_case: str, before: datetime) -> int:
    """Delete answers given before then; returns how many."""
    old = sa.delete(answers).where(answers.c.use_case == use_case, answers.c.answered_at < before)
    with catalog.begin() as connection:
        return int(connection.execute(old).rowcount)


def answers_about(
    catalog: sa.Engine,
    use_case: str,
    *,
    documents: Collection[tuple[str, str]],
    people: Collection[str],
    ids: Collection[str],
    key: str | None,
) -> tuple[set[str], set[str]]:
    """Ids of the answers that go when these are erased, and of those that only mention ``key``.

    Gone are those with ``ids``, of conversations with ``people`` or asked by them, and those that had one of
    ``documents`` (source, id) before them: their words may be its own.
    """
    sought = None if key is None else key.casefold()
    meant: set[str] = set()
    mentioning: set[str] = set()
    query = sa.select(answers).where(answers.c.use_case == use_case)
    with catalog.connect() as connection:
        for row in connection.execute(query, execution_options={"yield_per": 1000}).mappings():
            hits = row["hits"] or []
            about = {(hit["source"], hit["document_id"]) for hit in hits}
            if row["answer_id"] in ids or {row["conversation"], row["author"]} & set(people) or about & set(documents):
                meant.add(row["answer_id"])
            elif sought is not None:
                texts = [row["answer"], *(turn["content"] for turn in row["messages"]), *(hit["text"] for hit in hits)]
                if any(sought in text.casefold() for text in texts):
                    mentioning.add(row["answer_id"])
    return meant, mentioning


def delete_answers(catalog: sa.Engine, use_case: str, ids: Collection[str]) -> None:
    """Delete answers by id."""
    with catalog.begin() as connection:
        for answer_id in sorted(ids):
            key = (answers.c.use_case == use_case, answers.c.answer_id == answer_id)
            connection.execute(sa.delete(answers).where(*key))


def _hit(hit: Hit) -> dict[str, Any]:
    return {
        "source": hit.source,
        "document_id": hit.document_id,
        "title": hit.title,
        "uri": hit.uri,
        "version": hit.version,
        "text": hit.text,
        "score": hit.score,
        "updated_at": None if hit.updated_at is None else hit.updated_at.isoformat(),
        "indexed_at": hit.indexed_at.isoformat(),
    }
