"""What examples that are sound one by one are to each other: copies, contradictions, near-copies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from pipelines.labels.answers import ends_open
from pipelines.labels.candidate import Candidate
from pipelines.labels.examples import ORIGINS
from pipelines.labels.settings import LabelSettings
from pipelines.training.settings import Task

_MOSTLY = 0.8  # share of answers with closing punctuation from which its lack is odd
_NAMED = 5  # others that a row is told of
_ENOUGH = 20  # answers from which there is a "most"


@dataclass(frozen=True, slots=True)
class Relation:
    """One way in which rows can stand to each other."""

    kind: str
    """In plain words; what is said of a row is ``kind: particulars``."""
    warns: bool
    particulars: list[str | None]
    """Of each row that stands so."""


_KINDS: dict[Task, Mapping[str, str]] = {
    "classify": {
        "outranked": "same text labelled by a more trusted origin",
        "contradicted": "same text with another label",
        "other_split": "its group is in another split",
        "copy": "same text and labels as an earlier row",
        "near": "nearly the same as an earlier row",
        "near_other": "nearly the same text with another label",
    },
    "generate": {
        "outranked": "same prompt answered by a more trusted origin",
        "other_split": "its group is in another split",
        "copy": "same chat as an earlier row",
        "other_answer": "same prompt with another answer",
        "near": "nearly the same as an earlier row",
        "ends_open": "answer ends without punctuation, unlike most",
    },
}
AMONG_ALL = "not met among all rows"
"""Kind of what an expectation says that compares rows or tolerates a share of them."""

RELATION_KINDS = frozenset({AMONG_ALL, *(kind for kinds in _KINDS.values() for kind in kinds.values())})
"""Kinds of reasons and warnings that are relations between rows: they hold only among the rows that were judged."""


def relate(settings: LabelSettings, rows: Sequence[Candidate], task: Task) -> dict[str, Relation]:
    """How ``rows`` stand to each other, by the name of the relation; one refusal a row at most.

    ``rows`` are in the order in which they came: of copies the first stays. A human's example beats a rule's, and a
    rule's a model's; where equals contradict each other on a single-label text, all of its rows are refused, because
    nobody knows the right one. One prompt may have several right answers: that is only worth a look. A prompt is all
    turns before the answer, and what was retrieved for it.
    """
    off = {"near", "near_other"} if settings.near_duplicates == "off" else set()
    warning = {"near_other", "other_answer", "ends_open"} | ({"near"} if settings.near_duplicates == "flag" else set())
    relations = {
        name: Relation(kind, name in warning, [None] * len(rows))
        for name, kind in _KINDS[task].items()
        if name not in off
    }
    chats = task == "generate"
    questions = [_question(row) if chats else row.text.strip() for row in rows]
    answers: list[Hashable] = [row.answer.strip() if chats else row.labels for row in rows]
    most_trusted: dict[Hashable, Candidate] = {}
    for question, row in zip(questions, rows, strict=True):
        best = most_trusted.setdefault(question, row)
        if _rank(row) < _rank(best):
            most_trusted[question] = row
    said: dict[Hashable, dict[Hashable, str]] = defaultdict(dict)
    for question, answer, row in zip(questions, answers, rows, strict=True):
        if row.origin == most_trusted[question].origin:
            said[question].setdefault(answer, row.location if chats else f"{', '.join(row.labels)} at {row.location}")
    splits: dict[str, Candidate] = {}
    first: dict[tuple[Hashable, Hashable], str] = {}
    kept: list[int] = []
    for place, (question, answer, row) in enumerate(zip(questions, answers, rows, strict=True)):
        best, in_split = most_trusted[question], splits.get(row.group, row)
        others = list(islice((where for known, where in said[question].items() if known != answer), _NAMED))
        if row.origin != best.origin:
            relations["outranked"].particulars[place] = f"{best.origin} at {best.location}"
        elif others and not chats and not settings.multi_label:
            relations["contradicted"].particulars[place] = "; ".join(others)
        elif in_split.split != row.split:
            there = f"{row.split} here, {in_split.split} at {in_split.location}"
            relations["other_split"].particulars[place] = there
        elif (question, answer) in first:
            relations["copy"].particulars[place] = first[question, answer]
        else:
            first[question, answer] = row.location
            splits.setdefault(row.group, row)
            kept.append(place)
            if others and chats:
                relations["other_answer"].particulars[place] = "; ".join(others)
    if not off:
        _near_copies(rows, kept, relations)
    if chats:
        _open_ends(rows, kept, relations["ends_open"].particulars)
    return relations


def _rank(row: Candidate) -> int:
    """Most trusted first; of a row that was released by hand the origin may be anything."""
    return ORIGINS.index(row.origin) if row.origin in ORIGINS else len(ORIGINS)


def _question(row: Candidate) -> Hashable:
    return tuple((turn.role, turn.content.strip()) for turn in row.messages[:-1]), row.context


def _near_copies(rows: Sequence[Candidate], kept: Sequence[int], relations: Mapping[str, Relation]) -> None:
    """Rows that nearly repeat an earlier one; only what stands is compared with, so that templates stay cheap."""
    from pipelines.labels.similarity import NearCopies, sign

    index = NearCopies()
    texts = [f"{rows[place].text}\n{rows[place].answer}" for place in kept]
    for number, text in sign(texts):
        place = kept[number]
        found = index.find(text)
        same = [pair for pair in found if rows[pair[1]].labels == rows[place].labels]
        for name, pairs in (("near", same), ("near_other", [] if same else found)):
            if pairs:
                similarity, earlier = pairs[0]
                labels = f"{', '.join(rows[earlier].labels)} at " if name == "near_other" else ""
                relations[name].particulars[place] = f"{labels}{rows[earlier].location} ({similarity:.2f})"
        if not same:
            index.add(place, text)


def _open_ends(rows: Sequence[Candidate], kept: Sequence[int], particulars: list[str | None]) -> None:
    """Where nearly everybody closes a sentence, one that does not was probably cut."""
    opens = {place: ends_open(rows[place].answer) for place in kept}
    prose = [is_open for is_open in opens.values() if is_open is not None]
    closed = prose.count(False)
    if len(prose) >= _ENOUGH and closed >= _MOSTLY * len(prose):
        for place, is_open in opens.items():
            if is_open:
                particulars[place] = f"{closed} of {len(prose)} end with it"
