"""A folder of label files, and the intake that reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipelines.catalog import examples
from pipelines.labels.intake import IntakeReport, take_in
from pipelines.labels.settings import LabelSettings

Row = dict[str, Any]


class Inbox:
    """Label files in a folder, and what the catalog makes of them."""

    def __init__(self, base: Path, catalog: sa.Engine) -> None:
        self.base = base
        self.folder = base / "labels"
        self.folder.mkdir()
        self.catalog = catalog
        self.settings = LabelSettings(url="labels")

    def write(self, name: str, *rows: Row | str) -> None:
        """One line a row; a string is written as it is."""
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def take_in(
        self, held_out_share: float = 0.2, *, more: dict[str, Any] | None = None, **settings: Any
    ) -> IntakeReport:
        """``more`` are further arguments of the intake: task, prompt, count_tokens, docs."""
        return take_in(
            self.settings.model_copy(update=settings),
            use_case="mail",
            base=self.base,
            held_out_share=held_out_share,
            catalog=self.catalog,
            **(more or {}),
        )

    def stored(self, *columns: str, order_by: str = "received_at") -> list[tuple[Any, ...]]:
        """The catalog's examples, in the order in which they came."""
        query = sa.select(*(examples.c[name] for name in columns)).order_by(examples.c[order_by])
        with self.catalog.connect() as connection:
            return [tuple(row) for row in connection.execute(query)]

    def verdicts(self) -> dict[str, tuple[str, list[str]]]:
        """State and reasons by location."""
        return {place: (state, reasons) for place, state, reasons in self.stored("location", "state", "reasons")}


@pytest.fixture
def inbox(tmp_path: Path, catalog: sa.Engine) -> Inbox:
    return Inbox(tmp_path, catalog)


@pytest.fixture
def letters() -> Callable[..., list[Row]]:
    """Rows of two categories in many groups."""

    def make(count: int, start: int = 0) -> list[Row]:
        words = (
            "invoice",
            "refund",
            "parcel",
            "voucher",
            "address",
            "password",
            "delivery",
            "contract",
            "meter",
            "card",
        )
        return [
            {
                "text": f"Question {n}: my {words[n % 10]} {words[n // 10 % 10]} no {n * 7919} is not what I ordered",
                "label": "billing" if n % 2 else "shipping",
                "group": f"customer-{n}",
            }
            for n in range(start, start + count)
        ]

    return make
