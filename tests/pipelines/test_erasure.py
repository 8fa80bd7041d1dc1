"""Erasing a document or a person leaves nothing behind, and says what was made of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipelines.catalog import examples
from pipelines.corpus.serving import serve_index
from pipelines.corpus.settings import RetrievalSettings, TableSource
from pipelines.corpus.sync import SyncReport, sync_source
from pipelines.declaration import Declaration
from pipelines.environment import Environment
from pipelines.erasure import forget
from pipelines.errors import ConfigError
from pipelines.labels.feedback import Feedback, record_feedback
from pipelines.labels.intake import take_in
from pipelines.labels.review import decide
from pipelines.labels.settings import LabelSettings
from pipelines.labels.snapshot import freeze_training_set
from pipelines.prompt import Message
from pipelines.stores import Stores
from tests.pipelines.corpus.hash_embedder import HashEmbedder

CUSTOMERS = ("Zenobia Quartermain", "Barnaby Thistlewood", "Ottoline Fairweather", "Cosmo Abernathy")


class Shop:
    """Customers as documents, and letters of theirs as labelled examples."""

    def __init__(self, base: Path, stores: Stores) -> None:
        self.base, self.stores = base, stores
        self.embedder = HashEmbedder()
        self.source = TableSource(
            name="customers", type="table", url="customers.csv", key="id", text="{name}: {notes}", schedule=None
        )
        self.labels = LabelSettings(url="labels")
        self.retrieval = RetrievalSettings(metadata={"email": "keyword"}, chunk_tokens=64)
        self.declaration = Declaration(
            name="shop", sources=(self.source,), retrieval=self.retrieval, labels=self.labels
        )
        rows = [f"c{number},{name},{name.split()[0].lower()}@example.org" for number, name in enumerate(CUSTOMERS)]
        notes = [f"{row},Bought {number + 2} garden gnomes." for number, row in enumerate(rows)]
        notes[3] += " Sends parcels to zenobia@example.org."
        (base / "customers.csv").write_text("\n".join(["id,name,email,notes", *notes]) + "\n", encoding="utf-8")
        (base / "labels").mkdir()
        letters = [
            {
                "text": f"Letter {number}: please {'send back' if number % 2 else 'repair'} gnome number {number * 31}",
                "label": "refund" if number % 2 else "repair",
                "group": f"c{number % 20}",
            }
            for number in range(200)
        ]
        (base / "labels" / "letters.jsonl").write_text("\n".join(map(json.dumps, letters)), encoding="utf-8")

    def sync(self, **options: Any) -> SyncReport:
        stores = {"catalog": self.stores.catalog, "index": self.stores.index, "embedder": self.embedder}
        options = {"retrieval": self.retrieval, **options}
        return sync_source(self.source, use_case="shop", base=self.base, **stores, **options)

    def serve(self, **options: Any) -> str:
        stores = {"catalog": self.stores.catalog, "index": self.stores.index, "embedder": self.embedder}
        options = {"retrieval": self.retrieval, **options}
        return serve_index(use_case="shop", sources=["customers"], base=self.base, **stores, **options).collection

    def take_in(self) -> int:
        report = take_in(self.labels, use_case="shop", base=self.base, held_out_share=0.2, catalog=self.stores.catalog)
        return report.accepted


@pytest.fixture
def shop(tmp_path: Path, freshet_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    stores = Stores(Environment())
    made = Shop(tmp_path, stores)
    monkeypatch.setattr("pipelines.corpus.pipeline.open_embedder", lambda *_, **__: made.embedder)
    made.sync()
    made.serve()
    yield made
    stores.close()


def traces(folder: Path, text: str) -> list[str]:
    """Files below ``folder`` whose bytes contain ``text``, with or without compression being what hides it."""
    sought = text.encode()
    return [str(path) for path in folder.rglob("*") if path.is_file() and sought in path.read_bytes()]


def test_a_forgotten_document_leaves_every_collection_and_does_not_come_back(shop: Shop) -> None:
    larger = shop.retrieval.model_copy(update={"chunk_tokens": 128})
    shop.sync(retrieval=larger)
    shop.serve(retrieval=larger)
    done = forget(shop.declaration, shop.stores, documents=["customers/c1"])
    assert done.documents == ("customers/c1",)
    assert len(done.points) == 2, "the replaced collection too"
    assert all(done.points.values())
    report = shop.sync(retrieval=larger)
    assert (report.documents, report.added, report.deleted) == (3, 0, 0)
    for collection in done.points:
        with shop.stores.index.open(collection) as points:
            texts = [str(point.text) for point in points.scan(with_text=True)]
        assert len(texts) == 3
        assert not any("Barnaby" in text for text in texts)


def test_no_file_of_the_stores_holds_the_text_of_a_forgotten_document(shop: Shop, freshet_home: Path) -> None:
    assert traces(freshet_home, "Thistlewood"), "it is there before, so looking for it means something"
    forget(shop.declaration, shop.stores, documents=["customers/c1"])
    shop.stores.close()
    assert traces(freshet_home, "Thistlewood") == []
    assert traces(freshet_home, "Fairweather")


def test_a_person_is_found_by_declared_metadata_and_mentions_are_listed(shop: Shop) -> None:
    done = forget(shop.declaration, shop.stores, key="Zenobia@Example.org")
    assert done.documents == ("customers/c0",)
    assert done.mentions == ("customers/c3",)


def test_examples_of_a_person_go_too_and_what_was_trained_on_them_is_named(shop: Shop, freshet_home: Path) -> None:
    before = shop.take_in()
    frozen = freeze_training_set(
        shop.labels, use_case="shop", folder=freshet_home / "training_sets", catalog=shop.stores.catalog
    )
    done = forget(shop.declaration, shop.stores, documents=["customers/c2"])
    assert len(done.examples) == 10
    assert done.training_sets == (str(frozen.path),)
    assert shop.take_in() == before - 10, "read again, they stay away"


def test_feedback_reviews_and_messages_of_a_person_go_too(shop: Shop, freshet_home: Path) -> None:
    catalog = shop.stores.catalog
    shop.labels = LabelSettings(feedback=True)
    shop.declaration = shop.declaration.model_copy(update={"labels": shop.labels})
    for number, (conversation, author) in enumerate((("c1", None), ("c2", "c1"), ("c2", "ann"), (None, "ann"))):
        asked = (Message("user", f"Question {number} of Perpetua Nightingale about a gnome?"),)
        report = Feedback(f"f-{number}", asked, "repair", labels=("refund",), conversation=conversation, author=author)
        assert record_feedback(catalog, "shop", report)
    assert shop.take_in() == 4
    with catalog.connect() as connection:
        rows = connection.execute(sa.select(examples.c.location, examples.c.example_id))
        ids = {location: example_id for location, example_id in rows}  # noqa: C416 dict() of rows has no types
    edited = json.dumps({"text": "Nightingale asks about a gnome's hat", "label": "repair"})
    decide(catalog, "shop", ids["feedback:1"], "replace", replacement=edited, settings=shop.labels)
    decide(catalog, "shop", ids["feedback:3"], "release", author="c1", settings=shop.labels)
    assert shop.take_in() == 4
    done = forget(shop.declaration, shop.stores, key="c1")
    assert done.feedback == ("f-0", "f-1")
    assert len(done.examples) == 3, "the edited row with what it stands for"
    assert set(done.reviews) == {ids["feedback:1"], ids["feedback:3"]}
    assert shop.take_in() == 2
    assert not record_feedback(catalog, "shop", Feedback("f-0", asked, "repair", thumb=1)), "it was forgotten"
    mentioned = forget(shop.declaration, shop.stores, key="perpetua nightingale").mentions
    assert mentioned == ("feedback/f-2", "feedback/f-3", f"labels/{ids['feedback:3']}", f"labels/{ids['feedback:4']}")
    left = forget(shop.declaration, shop.stores, documents=[f"labels/{ids['feedback:3']}", "feedback/f-3"])
    assert (left.feedback, len(left.examples), left.documents) == (("f-2", "f-3"), 1, ())
    shop.stores.close()
    assert traces(freshet_home, "Question 2 of Perpetua") == []


def test_a_dry_run_erases_nothing(shop: Shop) -> None:
    shop.take_in()
    said = forget(shop.declaration, shop.stores, key="c1", dry_run=True)
    assert said.documents == ("customers/c1",)
    assert len(said.examples) == 10
    assert shop.sync().unchanged == 4
    assert forget(shop.declaration, shop.stores, key="c1").documents == said.documents


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "name documents"),
        ({"documents": ["c1"]}, "'c1' is not source/document_id; sources: customers"),
        ({"documents": ["wiki/c1"]}, "sources: customers"),
    ],
)
def test_what_cannot_be_meant_is_refused(shop: Shop, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        forget(shop.declaration, shop.stores, **arguments)
