"""Whatever comes, goes, is edited and decided: the catalog says what judging everything anew would say."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from typing import Any

import sqlalchemy as sa

from pipelines.catalog import examples
from pipelines.errors import ConfigError
from pipelines.labels import review

STEPS = 12


def test_after_any_history_the_verdicts_are_those_of_judging_everything_again(inbox: Any, letters: Any) -> None:
    """T1, T2."""
    draw = random.Random(11)
    texts = [row["text"] for row in letters(12)] + ["?", "Ouch!"]
    files: dict[str, list[dict[str, Any] | str]] = {"a.jsonl": [], "b.jsonl": [], "c.jsonl": []}

    def row() -> dict[str, Any] | str:
        if draw.random() < 0.05:
            return "{broken" * draw.randint(1, 3)
        number = draw.randrange(len(texts))
        made = {"text": texts[number], "label": draw.choice(("billing", "shipping"))}
        made |= {"group": f"g-{draw.randrange(8)}"} if draw.random() < 0.7 else {}
        made |= {"id": f"item-{number}"} if draw.random() < 0.6 else {}
        made |= {"origin": draw.choice(("human", "model"))} if draw.random() < 0.5 else {}
        return made | ({"time": f"2026-01-{draw.randint(1, 28):02}"} if draw.random() < 0.3 else {})

    def verdicts() -> list[Any]:
        return list(inbox.stored("example_id", "state", "reasons", "warnings", "split", "text", "labelled_at"))

    seen: Counter[str] = Counter()
    for _ in range(STEPS):
        rows = files[draw.choice(list(files))]
        for _ in range(draw.randint(1, 6)):
            action = draw.random()
            if action < 0.6 or not rows:
                rows.insert(draw.randint(0, len(rows)), row())
            elif action < 0.8:
                rows.pop(draw.randrange(len(rows)))
            else:
                rows[draw.randrange(len(rows))] = row()
        for name, content in files.items():
            inbox.write(name, *content)
        for (example_id,) in draw.sample(stored := inbox.stored("example_id"), min(2, len(stored))):
            decision: Any = draw.choice(("release", "reject", "replace", "undo"))
            said = json.dumps({"text": f"Edited: {draw.choice(texts)}", "label": "billing"})
            given = {"replacement": said if decision == "replace" else None, "settings": inbox.settings}
            try:
                if decision == "undo":
                    review.undo(inbox.catalog, "mail", example_id)
                else:
                    review.decide(inbox.catalog, "mail", example_id, decision, **given)
                seen[decision] += 1
            except ConfigError:
                seen["refused"] += 1
        report = inbox.take_in()
        after = verdicts()
        seen.update(state for _, state, *_ in after)
        again = inbox.take_in()
        assert (again.new, again.rejudged, again.withdrawn) == (0, 0, 0)
        assert verdicts() == after
        with inbox.catalog.begin() as connection:
            connection.execute(sa.update(examples).values(suite=review.TO_JUDGE))
        anew = inbox.take_in()
        assert verdicts() == after
        assert (anew.accepted, anew.quarantined, anew.superseded) == (
            report.accepted,
            report.quarantined,
            report.superseded,
        )
        items, splits = Counter[str](), defaultdict[str, set[str]](set)
        for state, item, group, split in inbox.stored("state", "item", "group", "split"):
            if state == "accepted":
                splits[group].add(split)
                items.update([] if item is None else [item])
        assert max(items.values(), default=1) == 1
        assert all(len(found) == 1 for found in splits.values())
    assert {"release", "reject", "replace", "undo", "refused", "superseded", "withdrawn", "quarantined"} <= set(seen)
