"""What SQLite does for a question to the catalog."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa


def plans(catalog: sa.Engine, question: Callable[[], object]) -> list[list[str]]:
    """The query plan of every statement that ``question`` runs."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    sa.event.listen(catalog, "before_cursor_execute", note)
    question()
    sa.event.remove(catalog, "before_cursor_execute", note)
    with catalog.connect() as connection:
        return [
            [str(step[3]) for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            for statement, parameters in asked
        ]
