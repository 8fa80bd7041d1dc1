"""Golden questions: questions with known answers, which an index is asked before it is served."""

from __future__ import annotations

import csv
import heapq
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.corpus.parsing import decode
from pipelines.corpus.sources.base import storable
from pipelines.corpus.sources.location import locate
from pipelines.errors import ConfigError, DocumentError, SourceUnavailableError
from pipelines.fingerprint import fingerprint, text_hash

MOST_ALIKE = 5
"""A title that more documents share ("Index", "README") names none of them: no question is made of it."""

_SPARE_TITLES = 4
_COLUMNS = ("question", "relevant")
_ALLOWED = (
    "each line needs a question, and the documents that answer it in relevant: ids, source/id or uris, as a list in "
    "JSONL and separated by ';' in CSV"
)


@dataclass(frozen=True, slots=True)
class GoldenQuestion:
    """A question and the documents that answer it."""

    question: str
    relevant: tuple[str, ...]
    """Each is ``source/document_id``, a document id or a uri; ``matched`` says which documents that are."""


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """Questions for one index."""

    questions: tuple[GoldenQuestion, ...]
    generated: bool
    """Made from document titles instead of written by people: good for comparing indexes, not for praising one."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of questions and answers, in whatever order."""
        return fingerprint(sorted([each.question, sorted(each.relevant)] for each in self.questions), self.generated)


@dataclass(frozen=True, slots=True)
class MatchedQuestions:
    """Golden questions whose answers are documents that exist."""

    questions: tuple[GoldenQuestion, ...]
    """The ones to ask; ``relevant`` holds document keys (``document_key``) only."""
    unknown: tuple[str, ...]
    """What the questions name that is no document, sorted."""
    unanswerable: tuple[str, ...]
    """Questions none of whose documents exists: they are left out of the scores."""


def document_key(source: str, document_id: str) -> str:
    """``source/document_id``: unique, since no source's name has a slash."""
    return f"{source}/{document_id}"


def load_golden(url: str, base: Path) -> GoldenSet:
    """Questions of a JSONL or CSV file at ``url``, a path relative to ``base`` or any fsspec URL.

    Raises:
        ConfigError: there is no such file, or it holds something that is no question; all lines are checked first.
        SourceUnavailableError: it cannot be read now.
    """
    location = locate(url, base)
    suffix = PurePosixPath(location.path).suffix.lower()
    if suffix not in (".jsonl", ".ndjson", ".csv"):
        raise ConfigError(f"golden questions {location.shown}: {suffix!r} is no known ending; allowed: .jsonl, .csv")
    try:
        location.files.invalidate_cache()
        data: bytes = location.files.cat_file(location.path)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ConfigError(
            f"golden questions {location.shown} are no readable file: {error!r}; correct retrieval.golden.url"
        ) from error
    except Exception as error:  # object stores raise errors of their own
        raise SourceUnavailableError(f"golden questions {location.shown} cannot be read now: {error!r}") from error
    questions: list[GoldenQuestion] = []
    lines: dict[str, int] = {}
    faults = []
    try:
        for line, row in _csv_rows(decode(data)) if suffix == ".csv" else _json_rows(decode(data)):
            question = row if isinstance(row, str) else _question(row)
            if isinstance(question, str):
                faults.append(f"line {line}: {question}")
            elif question.question in lines:
                faults.append(f"line {line}: question {question.question!r} is also in line {lines[question.question]}")
            else:
                lines[question.question] = line
                questions.append(question)
    except (DocumentError, csv.Error) as error:
        faults.append(str(error))
    if not questions and not faults:
        faults = ["there is no question in it"]
    if faults:
        more = f"\n… and {len(faults) - 10} more" if len(faults) > 10 else ""
        listed = "\n".join(faults[:10])
        raise ConfigError(f"golden questions {location.shown}: {_ALLOWED}\n{listed}{more}")
    return GoldenSet(tuple(questions), generated=False)


def generate_golden(titles: Iterable[tuple[str, str, str]], most: int) -> GoldenSet:
    """At most ``most`` questions made from ``titles`` (source, document id, title): each asks for its document.

    Titles are chosen by their hash, so that nearly the same ones are chosen while documents come and go. Documents that
    share a title all answer it; empty titles and those that more than ``MOST_ALIKE`` documents share are passed over.
    """
    alike: dict[str, list[tuple[str, str]]] = {}
    largest: list[tuple[int, str]] = []  # a heap: the title to give up next, by the negative of its hash
    for source, document_id, title in titles:
        question = " ".join(title.split())
        folded = question.casefold()
        if not any(character.isalnum() for character in question):
            continue
        if folded not in alike:
            heapq.heappush(largest, (-int(text_hash(folded), 16), folded))
            alike[folded] = []
            # Some of what is kept proves too common. What is given up never comes back: its hash stays too large.
            if len(largest) > most * _SPARE_TITLES and (given_up := heapq.heappop(largest)[1]):
                del alike[given_up]
        if (bearers := alike.get(folded)) is not None and len(bearers) <= MOST_ALIKE:
            bearers.append((document_key(source, document_id), question))
    usable = (folded for folded, bearers in alike.items() if len(bearers) <= MOST_ALIKE)
    chosen = heapq.nsmallest(most, usable, key=text_hash)
    return GoldenSet(
        tuple(
            GoldenQuestion(
                min(question for _, question in alike[folded]), tuple(sorted(key for key, _ in alike[folded]))
            )
            for folded in chosen
        ),
        generated=True,
    )


def match_documents(golden: GoldenSet, documents: Iterable[tuple[str, str, str]]) -> MatchedQuestions:
    """Which of ``documents`` (source, document id, uri) the golden questions mean.

    An entry of ``relevant`` is taken as ``source/document_id``; where there is no such document, it means every
    document with that id or uri. Pass every document that the catalog lists, those that failed included: a question
    whose document a new parser can no longer read is a miss, which the gate has to see, and not a question less.
    """
    wanted = {entry for each in golden.questions for entry in each.relevant}
    exact: set[str] = set()
    loose: dict[str, list[str]] = {}
    for source, document_id, uri in documents:
        key = document_key(source, document_id)
        if key in wanted:
            exact.add(key)
        for name in {document_id, uri} & wanted:
            loose.setdefault(name, []).append(key)
    found = {entry: [entry] if entry in exact else loose.get(entry, []) for entry in wanted}
    asked, unanswerable = [], []
    for each in golden.questions:
        if keys := {key for entry in each.relevant for key in found[entry]}:
            asked.append(GoldenQuestion(each.question, tuple(sorted(keys))))
        else:
            unanswerable.append(each.question)
    unknown = sorted(entry for entry, keys in found.items() if not keys)
    return MatchedQuestions(tuple(asked), tuple(unknown), tuple(unanswerable))


def _question(row: Mapping[str, Any]) -> GoldenQuestion | str:
    """The question of one row, or what is wrong with it."""
    if unknown := sorted(set(map(str, row)) - set(_COLUMNS)):
        return f"unknown {', '.join(map(repr, unknown))}; allowed: {', '.join(_COLUMNS)}"
    question, relevant = row.get("question"), row.get("relevant")
    if not isinstance(question, str) or not question.strip() or not storable(question):
        return f"question {question!r:.80} is no text"
    if not isinstance(relevant, list) or not all(isinstance(entry, str) for entry in relevant):
        return f"relevant {relevant!r:.80} is no list of texts"
    entries = tuple(dict.fromkeys(entry.strip() for entry in relevant if entry.strip()))
    if not entries:
        return f"question {question!r:.80} has no relevant document"
    return GoldenQuestion(" ".join(question.split()), entries)


def _csv_rows(text: str) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = [column.strip() for column in next(reader, [])]
    if sorted(header) != sorted(_COLUMNS):
        raise DocumentError(f"line 1: columns {', '.join(header) or 'none'}; they have to be {', '.join(_COLUMNS)}")
    for cells in reader:
        if len(cells) == len(header):
            row: dict[str, Any] = dict(zip(header, cells, strict=True))
            yield reader.line_num, row | {"relevant": row["relevant"].split(";")}
        elif any(cell.strip() for cell in cells):
            yield reader.line_num, f"{len(cells)} cells, the header has {len(header)}; quote text that has commas"


def _json_rows(text: str) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    for line, written in enumerate(text.split("\n"), 1):
        if not written.strip():
            continue
        try:
            value = json.loads(written)
        except (ValueError, RecursionError) as error:
            yield line, f"{written!r:.80} is no JSON: {error}"
            continue
        yield line, value if isinstance(value, dict) else f"{written!r:.80} is no object"
