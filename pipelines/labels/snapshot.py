"""Training sets: frozen, content-addressed snapshots of the accepted examples, with their splits.

Rows go from the catalog to the files one by one: of a million examples no more is held than their numbers.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pipelines import artifacts
from pipelines.artifacts import Artifact
from pipelines.catalog import FORGOTTEN_EXAMPLES, examples, forgotten, now
from pipelines.errors import ArtifactError, ExamplesError, NotBuiltError
from pipelines.fingerprint import fingerprint, text_hash
from pipelines.labels.examples import SPLITS, Example, Split
from pipelines.labels.intake import ACCEPTED
from pipelines.labels.leakage import leaked_pairs
from pipelines.labels.settings import LabelSettings
from pipelines.training.settings import Task

SCHEMA = 2
REGRESSION = "regression"
"""The slice of the oldest held-out examples, where nothing may get worse."""

_TOGETHER = 512  # rows that contexts are retrieved for at a time

Retrieve = Callable[[Sequence[str]], Sequence[tuple[str, ...]]]
"""Questions in, for each what is retrieved for it, best first, empty where nothing is relevant."""


def freeze_training_set(
    settings: LabelSettings,
    *,
    use_case: str,
    task: Task = "classify",
    catalog: sa.Engine,
    folder: Path,
    origins: Sequence[str] = ("human",),
    retrieve: Retrieve | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Artifact:
    """Freeze the accepted examples, old and new, in ``folder/<fingerprint>/``: the latest training set.

    ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl`` hold rows as ``read_split`` reads them, sorted by id;
    ``manifest.json`` says what they are. The same rows give the same fingerprint, and nothing is written again.

    With ``replay``, that many of the training examples that an earlier training used are in it, and all new ones. With
    ``near_copies: leave_out``, training examples nearly equal to held-out ones stay out. The oldest
    ``regression_rows`` held-out examples of ``origins`` (whose labels count in the evaluation) are the slice
    ``regression``: it stays the same as long as they are accepted.

    Chats that state no context get what ``retrieve`` finds for their last question, once: the training set before says
    what an example was given then, so that a changed index alone makes no new training set. Only when a document was
    forgotten since, which a context may quote, all are retrieved anew.

    Raises:
        ExamplesError: nothing to train on, nothing to evaluate on, fewer than two categories to tell apart, or examples
            that were taken in for the other task.
    """
    previous = _previous(catalog, use_case, progress)
    not_replayed = _not_replayed(catalog, use_case, settings.replay)
    left_out: list[str] = []
    if settings.near_copies == "leave_out":
        left_out = _near_copies(catalog, use_case, task, not_replayed)
        progress(f"{len(left_out)} training examples left out: near-copies of held-out ones")
    rows = _accepted(catalog, use_case, task, leave_out=not_replayed.union(left_out))
    rows = _with_slice(rows, _regression_ids(catalog, use_case, settings.regression_rows, origins))
    if task == "generate" and retrieve is not None and settings.retrieve:
        kept = None if previous is None or _erased_since(catalog, use_case, previous) else previous
        rows = _with_contexts(rows, _Contexts(kept), retrieve, progress)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        written = _Written(Path(scratch))
        for row in rows:
            written.add(row)
            if sum(written.rows.values()) % 100_000 == 0:
                progress(f"{sum(written.rows.values())} examples")
        hashes = written.close()
        categories: list[str] = []
        if task == "classify":
            categories = sorted(settings.categories or {label for count in written.labels.values() for label in count})
        _check(use_case, task, written)
        not_in_train = [category for category in categories if not written.labels["train"][category]]
        if not_in_train:
            progress(f"no training example of {', '.join(not_in_train)}: the model cannot learn it from this set")
        multi_label = task == "classify" and settings.multi_label
        identity = fingerprint(SCHEMA, task, categories, multi_label, left_out, hashes)
        path = folder / identity
        try:
            artifact = artifacts.load(path)
            progress(f"unchanged: {identity[:12]}")
        except ArtifactError:
            manifest = {
                "fingerprint": identity,
                "kind": "training_set",
                "schema": SCHEMA,
                "use_case": use_case,
                "task": task,
                "categories": categories,
                "not_in_train": not_in_train,
                "multi_label": multi_label,
                "rows": dict(written.rows),
                "by_category": {split: dict(sorted(count.items())) for split, count in written.labels.items()},
                "slices": {name: dict(count) for name, count in sorted(written.slices.items())},
                "replayed": written.replayed,
                "not_replayed": len(not_replayed),
                "left_out": left_out,
                "previous": None if previous is None else previous.fingerprint,
                "created_at": now().isoformat(),
            }
            with artifacts.writing(path) as finished:
                for split in SPLITS:
                    (Path(scratch) / f"{split}.jsonl").rename(finished / f"{split}.jsonl")
                artifacts.seal(finished, manifest)
            artifact = artifacts.load(path)
            progress(f"frozen: {identity[:12]}, " + ", ".join(f"{written.rows[split]} {split}" for split in SPLITS))
    artifacts.record(catalog, use_case, "training_set", artifact)
    return artifact


def previous_training_set(training_set: Artifact) -> Artifact | None:
    """The training set before, as the manifest names it; None for the first, and where it is gone or altered."""
    named = training_set.manifest.get("previous")
    try:
        return None if named is None else artifacts.load(training_set.path.parent / str(named))
    except ArtifactError:
        return None


Row = dict[str, Any]
"""A line of a split's file, and its ``split`` and whether it ``is_old``, which are no part of the line."""


class _Written:
    """The files of a training set, and what is in them."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._files = {split: self._stack.enter_context((folder / f"{split}.jsonl").open("wb")) for split in SPLITS}
        self._hashes = {split: hashlib.sha256() for split in SPLITS}
        self.rows: dict[Split, int] = dict.fromkeys(SPLITS, 0)
        self.labels: dict[Split, Counter[str]] = {split: Counter() for split in SPLITS}
        self.slices: dict[str, Counter[Split]] = defaultdict(Counter)
        self.replayed = 0

    def add(self, row: Row) -> None:
        split = row.pop("split")
        self.replayed += row.pop("is_old") and split == "train"
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        self._files[split].write(line)
        self._hashes[split].update(line)
        self.rows[split] += 1
        self.labels[split].update(row["labels"])
        for name in row.get("slices", ()):
            self.slices[name][split] += 1

    def close(self) -> dict[Split, str]:
        """SHA-256 of each file."""
        self._stack.close()
        return {split: hashed.hexdigest() for split, hashed in self._hashes.items()}


class _Contexts:
    """What the examples of the training set before had as context: read along, because both are sorted by id."""

    def __init__(self, previous: Artifact | None) -> None:
        paths = {} if previous is None else {split: previous.path / f"{split}.jsonl" for split in SPLITS}
        self._lines = {split: _lines(path) for split, path in paths.items()}
        self._next: dict[Split, Row] = {}

    def of(self, split: Split, example_id: str) -> list[str] | None:
        """None: it was not in it, or without context."""
        while split in self._lines:
            row = self._next.get(split) or next(self._lines[split], None)
            if row is None:
                return None
            self._next[split] = row
            if row["id"] > example_id:
                return None
            if row["id"] == example_id:
                return row.get("context")
            del self._next[split]
        return None


def _lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield json.loads(line)


def _previous(catalog: sa.Engine, use_case: str, progress: Callable[[str], None]) -> Artifact | None:
    try:
        return artifacts.latest(catalog, use_case, "training_set")
    except NotBuiltError:
        return None
    except ArtifactError as error:
        progress(f"nothing is taken from the training set before: {error}")
        return None


def _erased_since(catalog: sa.Engine, use_case: str, previous: Artifact) -> bool:
    """Whether a document was forgotten since ``previous`` was frozen, whose contexts may quote it."""
    table = forgotten.c
    since = datetime.fromisoformat(previous.manifest["created_at"])
    query = sa.select(table.source).where(
        table.use_case == use_case, table.source != FORGOTTEN_EXAMPLES, table.forgotten_at >= since
    )
    with catalog.connect() as connection:
        return connection.execute(query.limit(1)).first() is not None


def _accepted(catalog: sa.Engine, use_case: str, task: Task, *, leave_out: set[str]) -> Iterator[Row]:
    c = examples.c
    columns = (c.split, c.example_id, c.text, c.labels, c.group, c.origin, c.messages, c.rejected, c.context)
    query = sa.select(*columns, c.slices, c.item, c.location, c.trained_at.is_not(None).label("is_old"))
    query = query.where(c.use_case == use_case, c.state == ACCEPTED).order_by(c.example_id)
    with catalog.connect() as connection:
        for stored in connection.execution_options(yield_per=1000).execute(query):
            if stored.example_id in leave_out:
                continue
            if bool(stored.messages) != (task == "generate"):
                raise ExamplesError(
                    f"the example at {stored.location} is {'a chat' if stored.messages else 'no chat'}, but "
                    f"{use_case} is there to {task}: take the examples in again, which sets it aside with its reasons"
                )
            row = {
                "split": stored.split,
                "is_old": stored.is_old,
                "id": stored.example_id,
                "text": stored.text,
                "labels": stored.labels,
                "group": stored.group,
                "origin": stored.origin,
            }
            # What is not there takes no place in the line.
            said = {"messages": stored.messages, "rejected": stored.rejected, "context": stored.context}
            said |= {"slices": stored.slices or None, "item": stored.item}
            yield row | {name: value for name, value in said.items() if value is not None}


def _with_slice(rows: Iterable[Row], ids: set[str]) -> Iterator[Row]:
    for row in rows:
        if row["id"] in ids:
            row["slices"] = sorted({*row.get("slices", ()), REGRESSION})
        yield row


def _with_contexts(
    rows: Iterator[Row], before: _Contexts, retrieve: Retrieve, progress: Callable[[str], None]
) -> Iterator[Row]:
    kept = retrieved = 0
    while some := list(islice(rows, _TOGETHER)):
        asked = []
        for row in some:
            if "context" not in row:
                context = before.of(row["split"], row["id"])
                if context is None:
                    asked.append(row)
                else:
                    row["context"] = context
                    kept += 1
        if asked:
            for row, found in zip(asked, retrieve([_question(row) for row in asked]), strict=True):
                row["context"] = list(found)
            retrieved += len(asked)
            progress(f"contexts: {retrieved} retrieved, {kept} as they were in the training set before")
        yield from some


def _question(row: Row) -> str:
    """The last thing that the user said before the answer."""
    return next((str(turn["content"]) for turn in reversed(row["messages"][:-1]) if turn["role"] == "user"), "")


def _regression_ids(catalog: sa.Engine, use_case: str, limit: int, origins: Sequence[str]) -> set[str]:
    c = examples.c
    query = (
        sa.select(c.example_id)
        .where(c.use_case == use_case, c.state == ACCEPTED, c.split == "test", c.origin.in_(origins))
        .order_by(c.received_at, c.example_id)
        .limit(limit)
    )
    with catalog.connect() as connection:
        return set(connection.scalars(query))


def _not_replayed(catalog: sa.Engine, use_case: str, cap: int | None) -> set[str]:
    """Training examples that an earlier training used and that are beyond the cap."""
    if cap is None:
        return set()
    c = examples.c
    query = sa.select(c.example_id, c.labels).where(
        c.use_case == use_case, c.state == ACCEPTED, c.split == "train", c.trained_at.is_not(None)
    )
    labels: dict[str, tuple[str, ...]] = {}
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    with catalog.connect() as connection:
        for example_id, said in connection.execution_options(yield_per=10_000).execute(query):
            labels[example_id] = known.setdefault(tuple(said), tuple(said))
    return set(in_order_of_replay(labels)[cap:])


def in_order_of_replay(labels: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Ids of ``labels``, so that the first so many of them are a fair draw whatever the number.

    One example of every label comes first; then the categories (equal sets of labels) take turns in proportion to their
    sizes, by Webster's method, which never takes away a place when there are more to give. Within a category a hash of
    the id decides.
    """
    drawn = sorted(labels, key=text_hash)
    sizes = Counter(labels.values())
    seen: set[str] = set()
    taken: Counter[tuple[str, ...]] = Counter()
    places = {}
    for number, example_id in enumerate(drawn):
        own = labels[example_id]
        first_of_a_label = not seen.issuperset(own)
        seen.update(own)
        taken[own] += 1
        places[example_id] = (0.0 if first_of_a_label else (taken[own] - 0.5) / sizes[own], number)
    return sorted(drawn, key=places.__getitem__)


def _near_copies(catalog: sa.Engine, use_case: str, task: Task, not_replayed: set[str]) -> list[str]:
    """Ids of training examples that nearly repeat a held-out one."""
    c = examples.c
    query = sa.select(c.split, c.example_id, c.text, c.group, c.origin)
    query = query.where(c.use_case == use_case, c.state == ACCEPTED).order_by(c.example_id)
    by_split: dict[Split, list[Example]] = {split: [] for split in SPLITS}
    with catalog.connect() as connection:
        for split, example_id, text, group, origin in connection.execution_options(yield_per=1000).execute(query):
            if example_id not in not_replayed:
                by_split[split].append(Example(example_id, text, (), group, origin))
    return sorted({pair.train.id for pair in leaked_pairs(by_split, chats=task == "generate")})


def _check(use_case: str, task: Task, written: _Written) -> None:
    numbers = ", ".join(f"{written.rows[split]} {split}" for split in SPLITS)
    purposes: dict[Split, str] = {"train": "train", "test": "evaluate"}
    for split, purpose in purposes.items():
        if not written.rows[split]:
            raise ExamplesError(
                f"{use_case} has no accepted example to {purpose} on ({numbers}); groups are never split, so a few "
                "large ones can fall on one side: submit more examples, finer groups, or given splits"
            )
    if task == "generate" and written.rows["train"] < 2:
        raise ExamplesError(f"{use_case} has one example to train on ({numbers}); at least two are needed")
    if task == "classify" and len(written.labels["train"]) < 2:
        raise ExamplesError(
            f"{use_case} has training examples of {', '.join(written.labels['train']) or 'no category'} only; at least "
            "two categories are needed"
        )
