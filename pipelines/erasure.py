"""Erasure: ``python -m pipelines.erasure <use case> --document source/id`` or ``--key PERSON``, and the call behind it.

Vectors, texts and catalog rows go, from every collection, the replaced and half-built ones included, and with labelled
examples the feedback that they were made of and the decisions about them, with documents what served models answered
from them; a note by hash keeps the next sync or intake from bringing them back. Evaluation reports lose the rows, and
what models answered in evaluations is deleted; what was measured stays. Training sets and models are immutable: the
answer lists those that used what was erased, so that somebody can retrain without it and withdraw them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import sqlalchemy as sa

from pipelines import catalog as schema
from pipelines.corpus.index import VectorIndex
from pipelines.corpus.ledger import SQL_VALUES, DocumentKey, forget_rows, pages, touch
from pipelines.declaration import Declaration, declared, load_declaration
from pipelines.environment import Environment
from pipelines.errors import ConfigError, FreshetError
from pipelines.evaluation.stored import ANSWERS as ANSWERS_FOLDER
from pipelines.evaluation.stored import erase_rows, stored_answers
from pipelines.fingerprint import text_hash
from pipelines.labels.feedback import FEEDBACK, forgotten_name, item_of
from pipelines.labels.feedback import reports as all_reports
from pipelines.labels.review import TO_JUDGE
from pipelines.release.registry import versions
from pipelines.serving.records import ANSWERS, answers_about, delete_answers
from pipelines.stores import Stores


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was erased, or would be, and what still contains it."""

    documents: tuple[str, ...]
    """``source/document_id`` of each, sorted."""
    points: Mapping[str, int]
    """Points deleted, by collection."""
    examples: tuple[str, ...]
    """Ids of labelled examples."""
    feedback: tuple[str, ...]
    """Ids of reports about answers."""
    reviews: tuple[str, ...]
    """Ids of the examples that the decisions were about."""
    mentions: tuple[str, ...]
    """Documents, ``labels/<example id>``, ``feedback/<id>`` and ``answers/<id>`` left alone whose text contains the
    key: look at each, and name it if it has to go."""
    reports: tuple[str, ...]
    """Folders of evaluation reports that rows of erased examples are taken out of."""
    answers: int
    """Answers of models to held-out rows, stored to save time, that are deleted: nobody knows what they are made of."""
    served: tuple[str, ...]
    """Ids of answers that served models gave."""
    approvals: tuple[str, ...]
    """Evaluation reports whose approval no longer says by whom, and why."""
    training_sets: tuple[str, ...]
    """Folders of training sets that contain an erased example."""
    adapters: tuple[str, ...]
    """Folders of adapters trained on these."""
    published: tuple[str, ...]
    """Published versions made of these."""
    dry_run: bool

    def lines(self) -> list[str]:
        """For people."""
        would = "would be " if self.dry_run else ""
        gone = "" if self.dry_run else f", {sum(self.points.values())} points in {len(self.points)} collections"
        labelled = (
            f"{len(self.examples)} labelled examples, {len(self.feedback)} feedbacks, {len(self.reviews)} reviews"
        )
        labelled += f", {self.answers} stored answers" * bool(self.answers)
        labelled += f", {len(self.served)} served answers" * bool(self.served)
        lines = [f"{len(self.documents)} documents, {labelled} {would}erased{gone}"]
        for title, names in (
            ("documents", self.documents),
            ("mention the key and stay; look at each", self.mentions),
            ("evaluation reports that lose rows", self.reports),
            ("approvals that no longer say by whom", self.approvals),
            ("training sets that contain them", self.training_sets),
            ("adapters trained on these", self.adapters),
            ("published versions made of these", self.published),
        ):
            lines += [f"{title}:", *(f"  {name}" for name in names)] if names else []
        return lines


def forget(
    declaration: Declaration,
    stores: Stores,
    *,
    documents: Sequence[str] = (),
    key: str | None = None,
    dry_run: bool = False,
) -> Erasure:
    """Erase documents, and everything about a person.

    Args:
        declaration: the use case.
        stores: its catalog and index.
        documents: each as ``source/document_id``, ``labels/<example id>``, ``feedback/<id>`` or ``answers/<id>``.
        key: of a person (customer number, e-mail address): erases every document with that id or with that value in a
            declared metadata field, every labelled example of that group or author, every feedback and every served
            answer of that conversation or author, every decision of that author, and who gave that author's approvals.
        dry_run: only say what would be erased.

    Raises:
        ConfigError: nothing is named, or a document has no source.
    """
    if not documents and not key:
        raise ConfigError("name documents (source/id) or a person's key: nothing is erased by default")
    names = {source.name for source in declaration.sources}
    named = {_document_key(each, names) for each in documents}
    wanted = {(source, name) for source, name in named if source in names}
    catalog = stores.catalog
    collections = _collections(declaration.name, catalog, stores.index) if declaration.sources else []
    mentions: set[DocumentKey] = set()
    if key:
        for collection in collections:
            meant, mentioning = _about(key, collection, stores.index)
            wanted |= meant
            mentions |= mentioning
    wanted |= _known_by_id(key, collections, catalog) if key else set()
    people = [each for _, each in wanted] + ([key] if key else [])
    examples, reports, decided = _labelled(declaration.name, named - wanted, people, catalog)
    if key:
        mentions |= _mentioning(declaration.name, key, catalog) - {
            (schema.FORGOTTEN_EXAMPLES, each) for each in examples
        }
        mentions -= {(FEEDBACK, each) for each in reports}
    given, told = answers_about(
        catalog,
        declaration.name,
        documents=wanted,
        people=people,
        ids={name for source, name in named - wanted if source == ANSWERS},
        key=key,
    )
    mentions |= {(ANSWERS, each) for each in told}
    sets = _training_sets(declaration.name, examples, catalog)
    approved = _approved(declaration.name, people, catalog)
    noted = _noted(declaration.name, catalog) | {text_hash(each) for each in examples}
    reports_of = [path for _, path in _artifacts(declaration.name, "evaluation_report", catalog)]
    answers = (
        [each / ANSWERS_FOLDER for each in sorted({path.parent for path in reports_of})] if wanted or examples else []
    )
    stored = sum(map(stored_answers, answers))
    points = dict.fromkeys(collections, 0)
    if not dry_run:
        _note(declaration.name, wanted, [*examples, *map(forgotten_name, reports)], catalog)
        for collection in collections:
            points[collection] = _take_out(collection, wanted, catalog, stores.index)
        _delete_labelled(declaration.name, examples, reports, decided, catalog)
        delete_answers(catalog, declaration.name, given)
        _anonymise(declaration.name, approved, catalog)
        for folder in answers:
            shutil.rmtree(folder, ignore_errors=True)
        schema.purge(catalog)
    return Erasure(
        documents=tuple(sorted("/".join(each) for each in wanted)),
        points=points,
        examples=tuple(sorted(examples)),
        feedback=tuple(sorted(reports)),
        reviews=tuple(sorted(decided)),
        mentions=tuple(sorted("/".join(each) for each in mentions - wanted)),
        reports=tuple(str(path) for path in reports_of if erase_rows(path, noted, dry_run=dry_run)),
        answers=stored,
        served=tuple(sorted(given)),
        approvals=tuple(approved),
        training_sets=tuple(str(path) for path in sets.values()),
        adapters=tuple(_adapters(declaration.name, sets, catalog)),
        published=tuple(
            f"{each.version} ({each.path})"
            for each in versions(stores.environment.registry_url, declaration.name)
            if each.manifest.get("training_set") in sets
        ),
        dry_run=dry_run,
    )


def _document_key(name: str, sources: Iterable[str]) -> DocumentKey:
    source, slash, document_id = name.partition("/")
    if not slash or not document_id or source not in {*sources, schema.FORGOTTEN_EXAMPLES, FEEDBACK, ANSWERS}:
        raise ConfigError(
            f"document {name!r} is not source/document_id; sources: {', '.join(sorted(sources)) or 'none'}; or "
            f"{schema.FORGOTTEN_EXAMPLES}/<example id>, {FEEDBACK}/<id>, {ANSWERS}/<id>"
        )
    return source, document_id


def _collections(use_case: str, catalog: sa.Engine, index: VectorIndex) -> list[str]:
    table = schema.collections.c
    with catalog.connect() as connection:
        names = connection.scalars(sa.select(table.collection).where(table.use_case == use_case)).all()
    return sorted(name for name in names if index.exists(name))


def _about(key: str, collection: str, index: VectorIndex) -> tuple[set[DocumentKey], set[DocumentKey]]:
    """Documents with the key as a metadata value, and those whose text contains it."""
    meant: set[DocumentKey] = set()
    mentioning: set[DocumentKey] = set()
    sought = key.casefold()
    with index.open(collection) as points:
        scanned = points.scan(with_text=True)
        while page := list(islice(scanned, SQL_VALUES)):
            mentioning |= {(each.source, each.document_id) for each in page if sought in (each.text or "").casefold()}
            for payload in points.payloads([each.point_id for each in page]).values():
                values = (payload.get("metadata") or {}).values()
                stated = [value for each in values for value in (each if isinstance(each, list) else [each])]
                if any(str(value).casefold() == sought for value in stated):
                    meant.add((payload["source"], payload["document_id"]))
    return meant, mentioning


def _known_by_id(key: str, collections: Sequence[str], catalog: sa.Engine) -> set[DocumentKey]:
    table = schema.documents.c
    query = sa.select(table.source, table.document_id).where(
        table.collection.in_(collections), table.document_id == key
    )
    with catalog.connect() as connection:
        return {(row.source, row.document_id) for row in connection.execute(query)}


def _note(use_case: str, documents: Iterable[DocumentKey], examples: Iterable[str], catalog: sa.Engine) -> None:
    """First of all: a sync that runs at this moment does not bring back what is about to go."""
    noted = [*documents, *((schema.FORGOTTEN_EXAMPLES, each) for each in examples)]
    rows = [
        {"use_case": use_case, "source": source, "document_hash": text_hash(each), "forgotten_at": schema.now()}
        for source, each in noted
    ]
    if rows:
        with catalog.begin() as connection:
            connection.execute(schema.insert_or_ignore(catalog, schema.forgotten), rows)


def _take_out(collection: str, documents: Iterable[DocumentKey], catalog: sa.Engine, index: VectorIndex) -> int:
    by_source: dict[str, list[str]] = {}
    for source, document_id in sorted(documents):
        by_source.setdefault(source, []).append(document_id)
    deleted = 0
    with index.open(collection) as points:
        for source, ids in by_source.items():
            deleted += points.delete(source, ids)
        points.flush()
    with catalog.begin() as connection:
        for source, ids in by_source.items():
            forget_rows(connection, collection, source, ids)
        touch(connection, collection)
    index.purge(collection)  # of what was deleted long ago too
    return deleted


# --- labelled examples, and what was made of them


def _labelled(
    use_case: str, named: Iterable[DocumentKey], people: Sequence[str], catalog: sa.Engine
) -> tuple[set[str], set[str], set[str]]:
    """Ids of examples, of feedback, and of examples that decisions are about: what is named, and what is people's."""
    e, f, r = schema.examples.c, schema.feedback.c, schema.example_reviews.c
    ids = [name for source, name in named if source == schema.FORGOTTEN_EXAMPLES]
    reports = {name for source, name in named if source == FEEDBACK}
    theirs = sa.or_(e.group.in_(people), e.author.in_(people), e.example_id.in_(ids))
    with catalog.connect() as connection:
        found = connection.execute(sa.select(e.example_id, e.item).where(e.use_case == use_case, theirs)).all()
        examples, items = {row.example_id for row in found}, {row.item for row in found}
        spoken = sa.or_(f.conversation.in_(people), f.author.in_(people), f.feedback_id.in_(reports))
        reports = set(connection.scalars(sa.select(f.feedback_id).where(f.use_case == use_case, spoken)))
        decisions = connection.execute(sa.select(r.example_id, r.author).where(r.use_case == use_case))
        decided = {row.example_id for row in decisions if row.example_id in examples or row.author in people}
    reports |= {each.feedback_id for each in all_reports(catalog, use_case) if item_of(each) in items}
    return examples, reports, decided


def _mentioning(use_case: str, key: str, catalog: sa.Engine) -> set[DocumentKey]:
    """Examples and feedback whose text contains the key."""
    e, f = schema.examples.c, schema.feedback.c
    told = {
        schema.FORGOTTEN_EXAMPLES: (e.use_case, e.example_id, (e.text, e.messages, e.rejected, e.context, e.raw)),
        FEEDBACK: (f.use_case, f.feedback_id, (f.messages, f.answer, f.correction, f.context)),
    }
    found: set[DocumentKey] = set()
    with catalog.connect() as connection:
        for source, (of, name, columns) in told.items():
            contains = [
                sa.cast(column, sa.Text).icontains(written, autoescape=True)
                for column in columns
                for written in {key, json.dumps(key)[1:-1]}  # as JSON writes it
            ]
            names = connection.scalars(sa.select(name).where(of == use_case, sa.or_(*contains)))
            found |= {(source, each) for each in names}
    return found


def _noted(use_case: str, catalog: sa.Engine) -> set[str]:
    """Hashes of the ids of examples that were ever erased."""
    table = schema.forgotten.c
    query = sa.select(table.document_hash).where(table.use_case == use_case, table.source == schema.FORGOTTEN_EXAMPLES)
    with catalog.connect() as connection:
        return set(connection.scalars(query))


def _approved(use_case: str, people: Sequence[str], catalog: sa.Engine) -> list[str]:
    """Reports that one of ``people`` approved or refused."""
    table = schema.approvals.c
    query = sa.select(table.report).where(table.use_case == use_case, table.author.in_(people)).order_by(table.report)
    with catalog.connect() as connection:
        return list(connection.scalars(query))


def _anonymise(use_case: str, approved: Sequence[str], catalog: sa.Engine) -> None:
    """What was decided stands, without who did and what they wrote."""
    table = schema.approvals.c
    with catalog.begin() as connection:
        for page in pages(approved):
            mine = (table.use_case == use_case, table.report.in_(page))
            connection.execute(sa.update(schema.approvals).where(*mine).values(author=None, note=None))


def _delete_labelled(
    use_case: str, examples: Iterable[str], reports: Iterable[str], decided: Iterable[str], catalog: sa.Engine
) -> None:
    e, f, r = schema.examples.c, schema.feedback.c, schema.example_reviews.c
    with catalog.begin() as connection:
        for ids, table, column in (
            (decided, schema.example_reviews, r.example_id),
            (examples, schema.examples, e.example_id),
            (reports, schema.feedback, f.feedback_id),
        ):
            for page in pages(sorted(ids)):
                connection.execute(sa.delete(table).where(table.c.use_case == use_case, column.in_(page)))
        for page in pages(sorted(decided)):  # what stays is judged by the expectations again
            mine = (e.use_case == use_case, e.example_id.in_(page))
            connection.execute(sa.update(schema.examples).where(*mine).values(suite=TO_JUDGE))


def _training_sets(use_case: str, examples: set[str], catalog: sa.Engine) -> dict[str, Path]:
    """Folder by fingerprint of every recorded training set that has one of the examples."""
    return {
        fingerprint: path
        for fingerprint, path in _artifacts(use_case, "training_set", catalog)
        if any(_has_example(file, examples) for file in sorted(path.glob("*.jsonl")))
    }


def _has_example(file: Path, examples: set[str]) -> bool:
    with file.open(encoding="utf-8") as lines:
        return any(json.loads(line)["id"] in examples for line in lines)


def _adapters(use_case: str, training_sets: Mapping[str, Path], catalog: sa.Engine) -> list[str]:
    found = []
    for _, path in _artifacts(use_case, "lora_adapter", catalog):
        manifest = path / "manifest.json"
        if manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8"))["training_set"] in training_sets:
            found.append(str(path))
    return found


def _artifacts(use_case: str, kind: str, catalog: sa.Engine) -> list[tuple[str, Path]]:
    table = schema.artifacts.c
    query = sa.select(table.fingerprint, table.path).where(table.use_case == use_case, table.kind == kind)
    with catalog.connect() as connection:
        return [(row.fingerprint, Path(row.path)) for row in connection.execute(query)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when done, 2 when it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.erasure", description="Erase documents, or everything about a person, for good."
    )
    parser.add_argument("use_case", help=f"one of: {', '.join(declared())}")
    parser.add_argument(
        "--document",
        action="append",
        default=[],
        metavar="SOURCE/ID",
        help="or labels/ID, feedback/ID, answers/ID; may be repeated",
    )
    parser.add_argument("--key", help="a person's key: customer number, e-mail address")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be erased")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    stores = Stores(Environment())
    try:
        declaration = load_declaration(given.use_case)
        erasure = forget(declaration, stores, documents=given.document, key=given.key, dry_run=given.dry_run)
    except FreshetError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    finally:
        stores.close()
    print(json.dumps(asdict(erasure), ensure_ascii=False, indent=2) if given.json else "\n".join(erasure.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
