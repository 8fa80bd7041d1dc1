"""Training sets of chats: their contexts, what is replayed, the regression slice, and what changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipelines.artifacts import Artifact, latest
from pipelines.catalog import FORGOTTEN_EXAMPLES, examples, forgotten, now
from pipelines.errors import ExamplesError
from pipelines.fingerprint import text_hash
from pipelines.labels.difference import diff
from pipelines.labels.examples import SPLITS, Example, read_split
from pipelines.labels.leakage import find_leakage
from pipelines.labels.settings import LabelSettings
from pipelines.labels.snapshot import REGRESSION, freeze_training_set, in_order_of_replay, previous_training_set
from pipelines.labels.trigger import mark_trained
from pipelines.prompt import Message

START = datetime(2026, 3, 1, tzinfo=UTC)
TOPICS = ("kettles", "toasters", "blenders", "mixers", "grills", "ovens", "fridges", "irons", "fans", "lamps")


class Chats:
    """Accepted chats in the catalog, and the training sets that are made of them."""

    def __init__(self, catalog: sa.Engine, folder: Path) -> None:
        self.catalog = catalog
        self.folder = folder
        self.asked: list[str] = []
        self.index = "as of March"

    def accept(self, *numbers: int, **more: Any) -> None:
        """Every fifth is held out."""
        rows = []
        for number in numbers:
            question = (
                f"How long do {TOPICS[number % 10]} of line {number * 7919} keep their guarantee in case {number}?"
            )
            said = {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": f"For {number} months."},
                ],
                "text": question, "labels": [], "group": f"g{number}", "split": "train" if number % 5 else "test",
                "origin": "human", "context": None, "rejected": None, "slices": None, "item": None,
            } | more  # fmt: skip
            rows.append(said)
            rows[-1] |= {"use_case": "help", "example_id": text_hash(f"{number} {sorted(more)}"), "suite": "s"}
            rows[-1] |= {"location": f"a.jsonl:{number}", "raw": "", "state": "accepted", "reasons": []}
            rows[-1] |= {"received_at": START + timedelta(minutes=number), "trained_at": None}
        with self.catalog.begin() as connection:
            connection.execute(sa.insert(examples), rows)

    def drop(self, number: int) -> None:
        with self.catalog.begin() as connection:
            statement = sa.update(examples).where(examples.c.location == f"a.jsonl:{number}")
            connection.execute(statement.values(state="withdrawn"))

    def retrieve(self, questions: Sequence[str]) -> list[tuple[str, ...]]:
        self.asked += questions
        return [() if "lamps" in question else (f"{self.index}: {question}", "More.") for question in questions]

    def freeze(
        self,
        *,
        retrieve: bool = True,
        switched_on: bool = True,
        origins: Sequence[str] = ("human",),
        **settings: Any,
    ) -> Artifact:
        self.asked = []
        return freeze_training_set(
            LabelSettings(url="labels", retrieve=switched_on, **settings),
            use_case="help",
            task="generate",
            catalog=self.catalog,
            folder=self.folder,
            origins=origins,
            retrieve=self.retrieve if retrieve else None,
        )

    def train(self, frozen: Artifact) -> None:
        mark_trained(self.catalog, "help", frozen)


@pytest.fixture
def chats(catalog: sa.Engine, tmp_path: Path) -> Chats:
    return Chats(catalog, tmp_path / "training_set")


def rows_of(artifact: Artifact) -> dict[str, Example]:
    return {example.group: example for split in SPLITS for example in read_split(artifact, split)}


def test_a_chat_comes_back_as_it_was(chats: Chats) -> None:
    chats.accept(*range(10))
    chats.accept(11, rejected="For ever.", slices=["language=en"], context=["Eleven months."], item="t-11")
    frozen = chats.freeze(retrieve=False)
    assert (frozen.manifest["task"], frozen.manifest["categories"], frozen.manifest["multi_label"]) == (
        "generate",
        [],
        False,
    )
    row = rows_of(frozen)["g11"]
    assert row.messages[0] == Message("system", "Be brief.")
    assert (row.answer, row.rejected, row.slices) == ("For 11 months.", "For ever.", ("language=en",))
    assert row.context == ("Eleven months.",)
    assert frozen.manifest["slices"]["language=en"] == {"train": 1}


def test_without_an_index_a_chat_that_says_nothing_of_context_has_none(chats: Chats) -> None:
    chats.accept(*range(10))
    assert all(row.context is None for row in rows_of(chats.freeze(retrieve=False)).values())
    assert chats.asked == []


def test_contexts_are_retrieved_for_the_last_question_where_the_chat_states_none(chats: Chats) -> None:
    chats.accept(*range(10))
    chats.accept(11, context=[])
    chats.accept(12, context=["Twelve months."])
    rows = rows_of(chats.freeze())
    assert len(chats.asked) == 10
    assert rows["g1"].context == (f"as of March: {rows['g1'].messages[1].content}", "More.")
    assert rows["g9"].context == (), "nothing was found"
    assert rows["g11"].context == (), "the row says that nothing was found"
    assert rows["g12"].context == ("Twelve months.",)


def test_retrieval_can_be_switched_off(chats: Chats) -> None:
    chats.accept(*range(10))
    assert rows_of(chats.freeze())["g1"].context is not None
    assert rows_of(chats.freeze(switched_on=False))["g1"].context is None
    assert chats.asked == []


def test_a_changed_index_alone_makes_no_new_training_set(chats: Chats) -> None:
    chats.accept(*range(20))
    first = chats.freeze()
    assert len(chats.asked) == 20
    chats.index = "as of April"
    assert chats.freeze().fingerprint == first.fingerprint
    assert chats.asked == []


def test_only_what_is_new_is_retrieved(chats: Chats) -> None:
    chats.accept(*range(20))
    first = chats.freeze()
    chats.index = "as of April"
    chats.accept(20, 21)
    chats.drop(3)
    second = chats.freeze()
    assert len(chats.asked) == 2
    before, after = rows_of(first), rows_of(second)
    assert {group: after[group].context for group in before.keys() - {"g3"}} == {
        group: row.context for group, row in before.items() if group != "g3"
    }
    assert after["g21"].context == (f"as of April: {after['g21'].text}", "More.")
    assert second.manifest["previous"] == first.fingerprint
    assert previous_training_set(second) == first
    assert previous_training_set(first) is None


def test_chats_without_context_gain_one_when_there_is_an_index(chats: Chats) -> None:
    chats.accept(*range(10))
    first = chats.freeze(retrieve=False)
    assert chats.freeze().fingerprint != first.fingerprint
    assert len(chats.asked) == 10


def test_contexts_are_retrieved_anew_when_the_training_set_before_is_damaged(chats: Chats) -> None:
    chats.accept(*range(10))
    first = chats.freeze()
    (first.path / "train.jsonl").write_text("")
    again = chats.freeze()
    assert (again.fingerprint, len(chats.asked)) == (first.fingerprint, 10)


def test_what_was_forgotten_is_not_kept_as_a_context(chats: Chats) -> None:
    chats.accept(*range(10))
    first = chats.freeze()
    with chats.catalog.begin() as connection:
        erased = {"use_case": "help", "document_hash": "d", "forgotten_at": now()}
        connection.execute(sa.insert(forgotten), [{**erased, "source": FORGOTTEN_EXAMPLES}])
    assert chats.freeze() == first
    assert chats.asked == [], "an example that was forgotten is in no context"
    with chats.catalog.begin() as connection:
        connection.execute(sa.insert(forgotten), [{**erased, "source": "manuals"}])
    chats.index = "without that manual"
    second = chats.freeze()
    assert rows_of(second)["g1"].context == (f"without that manual: {rows_of(second)['g1'].text}", "More.")
    chats.freeze()
    assert chats.asked == []


def test_replay_takes_all_new_examples_and_a_capped_draw_of_the_old(chats: Chats) -> None:
    """T14."""
    chats.accept(*range(100))
    chats.train(chats.freeze())
    chats.accept(*range(100, 120))
    whole = chats.freeze()
    assert (whole.manifest["replayed"], whole.manifest["not_replayed"]) == (80, 0)
    capped = {cap: chats.freeze(replay=cap) for cap in (0, 10, 30)}
    groups = {cap: {row.group for row in read_split(frozen, "train")} for cap, frozen in capped.items()}
    new = {f"g{number}" for number in range(100, 120) if number % 5}
    assert groups[0] == new
    assert groups[0] < groups[10] < groups[30]
    assert [len(found) for found in groups.values()] == [16, 26, 46]
    assert all(frozen.manifest["rows"]["test"] == 24 for frozen in capped.values())
    assert (capped[30].manifest["replayed"], capped[30].manifest["not_replayed"]) == (30, 50)
    assert chats.freeze(replay=30).fingerprint == capped[30].fingerprint


@pytest.mark.parametrize("cap", [3, 4, 10, 33, 100, 130])
def test_replay_draws_categories_in_proportion_and_at_least_one_of_each(cap: int) -> None:
    labels = {f"a{n}": ("a",) for n in range(100)} | {f"b{n}": ("b",) for n in range(30)} | {"c": ("b", "c")}
    order = in_order_of_replay(labels)
    assert sorted(order) == sorted(labels)
    drawn = [labels[key] for key in order[:cap]]
    assert {label for said in drawn for label in said} == {"a", "b", "c"}
    assert drawn.count(("a",)) == pytest.approx(cap * 100 / 131, abs=2)


def test_the_oldest_held_out_examples_are_the_regression_slice_and_stay_it(chats: Chats) -> None:
    """T14."""

    def slice_of(artifact: Artifact) -> set[str]:
        return {group for group, row in rows_of(artifact).items() if REGRESSION in row.slices}

    chats.accept(*range(1, 40))
    chats.accept(0, origin="model", slices=["language=en"])
    first = chats.freeze(regression_rows=3)
    assert slice_of(first) == {"g5", "g10", "g15"}, "a model's own labels do not count"
    assert first.manifest["slices"] == {REGRESSION: {"test": 3}, "language=en": {"test": 1}}
    chats.accept(*range(40, 60))
    assert slice_of(chats.freeze(regression_rows=3)) == {"g5", "g10", "g15"}
    both = chats.freeze(regression_rows=3, origins=("human", "model"))
    assert slice_of(both) == {"g0", "g5", "g10"}
    assert rows_of(both)["g0"].slices == ("language=en", REGRESSION)
    chats.drop(5)
    assert slice_of(chats.freeze(regression_rows=3)) == {"g10", "g15", "g20"}
    assert slice_of(chats.freeze(regression_rows=0)) == set()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 5), r"no accepted example to train on \(0 train, 0 validation, 2 test\)"),
        ((1, 2), r"no accepted example to evaluate on \(2 train, 0 validation, 0 test\)"),
        ((0, 1), r"one example to train on \(1 train, 0 validation, 1 test\); at least two"),
    ],
)
def test_too_few_chats_are_refused_and_leave_nothing_behind(chats: Chats, numbers: Sequence[int], message: str) -> None:
    chats.accept(*numbers)
    with pytest.raises(ExamplesError, match=message):
        chats.freeze()
    assert not list(chats.folder.parent.glob("*training_set*"))


def test_a_text_with_labels_among_chats_is_refused_not_trained_on(chats: Chats) -> None:
    """T13."""
    chats.accept(*range(10))
    chats.accept(11, messages=None, labels=["billing"])
    with pytest.raises(ExamplesError, match=r"the example at a.jsonl:11 is no chat, but help is there to generate"):
        chats.freeze()


def test_the_content_counts_not_only_the_ids(chats: Chats) -> None:
    """Personal data that is masked later makes another training set."""
    chats.accept(*range(10))
    first = chats.freeze()
    with chats.catalog.begin() as connection:
        statement = sa.update(examples).where(examples.c.location == "a.jsonl:3")
        masked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<NAME>"}]
        connection.execute(statement.values(messages=masked))
    second = chats.freeze()
    assert second.fingerprint != first.fingerprint
    assert (diff(first, second).changed, diff(first, second).added) == (1, 0)


def test_a_prompt_in_two_splits_is_found_and_equal_answers_are_not(chats: Chats) -> None:
    """T1."""
    question = "How do I get the limescale out of my kettle without any vinegar in the house, and how often must I?"
    answer = "Boil it with the juice of two lemons, wait for an hour, and rinse it three times. " * 4

    def chat(text: str) -> dict[str, Any]:
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return {"messages": turns, "text": text}

    chats.accept(*range(10))
    chats.accept(15, **chat("Limescale again: what now?"))
    chats.accept(16, **chat("My kettle looks white inside; is that dangerous?"))
    assert find_leakage(chats.freeze()).clean
    chats.accept(20, **chat(question), item="x")
    chats.accept(21, **chat(question.replace("often", "frequently")), item="x")
    report = find_leakage(chats.freeze())
    assert [(pair.held_out.group, pair.train.group) for pair in report.pairs] == [("g20", "g21")]
    assert not find_leakage(chats.freeze(near_copies="leave_out")).pairs
    assert latest(chats.catalog, "help", "training_set").manifest["left_out"] == [report.pairs[0].train.id]


def test_an_instruction_around_every_question_makes_no_copies(chats: Chats) -> None:
    """T1: or no use case of this kind could ever train."""
    instruction = (
        "You are given a message of a customer. Answer it in one sentence, politely, without any promise. " * 3
    )

    def wrapped(number: int) -> str:
        words = text_hash(str(number))
        return f"{instruction} Message: {' '.join(words[place : place + 4] for place in range(0, 40, 4))}"

    for number in range(200):
        chats.accept(number, text=wrapped(number))
    chats.accept(200, text=wrapped(1), item="x")
    report = find_leakage(chats.freeze(retrieve=False))
    assert [(pair.held_out.group, pair.train.group) for pair in report.pairs] == [("g200", "g1")]


def test_the_difference_is_readable(chats: Chats) -> None:
    chats.accept(*range(1, 20), item="i")
    first = chats.freeze(retrieve=False, regression_rows=0)
    assert diff(None, first).added == 19
    nothing = diff(first, first)
    assert (nothing.added, nothing.removed, nothing.changed, nothing.samples) == (0, 0, 0, ())
    chats.drop(3)
    chats.drop(4)
    turns = [{"role": "user", "content": "a | b"}, {"role": "assistant", "content": "<b>" + "no " * 100}]
    chats.accept(4, slices=["edited=yes"])
    chats.accept(21, messages=turns, text="a | b", origin="rule", context=[])
    second = chats.freeze(retrieve=False, regression_rows=0)
    change = diff(first, second)
    assert (change.added, change.removed, change.changed) == (1, 1, 1)
    shown = change.markdown()
    assert "**1 added, 1 removed, 1 changed**" in shown
    assert "| split: train | 16 | 16 |  |" in shown
    assert "| origin: rule | 0 | 1 | +1 |" in shown
    assert "| slice: edited=yes | 0 | 1 | +1 |" in shown
    (added,) = [line for line in shown.splitlines() if line.startswith("| added")]
    assert added.startswith("| added | train |  | a \\| b → \\<b\\>no no")
    assert added.endswith("… |")
    assert len([line for line in shown.splitlines() if line.startswith("| removed")]) == 1
    assert all(len(line) < 500 for line in shown.splitlines())


def test_a_row_of_the_same_item_or_nearly_the_same_text_is_an_edit(chats: Chats) -> None:
    chats.accept(*range(1, 20))
    chats.accept(20, text="What does it cost?", group="g20")
    chats.accept(21, item="t-21")
    first = chats.freeze(retrieve=False)
    for number in (20, 21, 7):
        chats.drop(number)
    chats.accept(20, text="What does this cost?", group="g20", rejected="x")
    chats.accept(21, item="t-21", text="Something else altogether", group="elsewhere", rejected="x")
    chats.accept(7, text="Nothing in common but the group", rejected="x")
    change = diff(first, chats.freeze(retrieve=False))
    assert (change.added, change.removed, change.changed) == (1, 1, 2)


def test_the_files_of_a_split_are_written_in_the_order_of_ids_with_nothing_that_is_not_there(chats: Chats) -> None:
    chats.accept(*range(10))
    lines = [json.loads(line) for line in (chats.freeze(retrieve=False).path / "train.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == sorted(line["id"] for line in lines)
    assert list(lines[0]) == ["id", "text", "labels", "group", "origin", "messages"]
