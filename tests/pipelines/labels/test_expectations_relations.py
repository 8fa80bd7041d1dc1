from __future__ import annotations

import time
from dataclasses import replace

import pytest

from pipelines.labels.candidate import Candidate
from pipelines.labels.expectations import RELATION_KINDS, Judgement, judge
from pipelines.labels.relations import relate
from pipelines.labels.settings import Expectation, LabelSettings
from pipelines.labels.similarity import NearCopies, sign
from pipelines.prompt import Message

SETTINGS = LabelSettings(url="x")
STRICT = SETTINGS.model_copy(update={"near_duplicates": "quarantine"})
LONG = "the parcel that I ordered from you three weeks ago has still not arrived at my new address"


def row(text: str, label: str = "shipping", at: str = "a:1", split: str = "train") -> Candidate:
    return Candidate(text, (label,), at, True, split, "human", None, at, None)  # type: ignore[arg-type]


def test_a_near_copy_is_flagged_or_refused_and_the_first_stays() -> None:
    rows = [
        row(LONG, at="a:1"),
        row(f"Hello, {LONG}!", at="a:2"),
        row("something else entirely, about a card", at="a:3"),
        row(f"{LONG} today", at="a:4"),
    ]
    said = "nearly the same as an earlier row: a:1 (0.9"
    flagged = judge(SETTINGS, rows)
    assert [judgement.reasons for judgement in flagged] == [[]] * 4
    assert [[words[: len(said)] for words in judgement.warnings] for judgement in flagged] == [[], [said], [], [said]]
    refused = judge(STRICT, rows)
    assert [[words[: len(said)] for words in judgement.reasons] for judgement in refused] == [[], [said], [], [said]]
    assert [judgement.warnings for judgement in refused] == [[]] * 4
    off = judge(SETTINGS.model_copy(update={"near_duplicates": "off"}), rows)
    assert [judgement.warnings for judgement in off] == [[]] * 4
    kinds = {words.partition(": ")[0] for judgement in flagged for words in judgement.warnings}
    assert kinds <= RELATION_KINDS


def test_a_near_copy_with_another_label_is_worth_a_look_and_never_refused() -> None:
    rows = [row(LONG, at="a:1"), row(f"Hello, {LONG}!", "billing", at="a:2")]
    for settings in (SETTINGS, STRICT):
        first, second = judge(settings, rows)
        assert (first.reasons, first.warnings, second.reasons) == ([], [], [])
        assert second.warnings == ["nearly the same text with another label: shipping at a:1 (0.94)"]


def test_chats_are_compared_with_their_answers() -> None:
    def chat(answer: str, at: str) -> Candidate:
        turns = (Message("user", LONG), Message("assistant", answer))
        return Candidate(LONG, (), at, True, "train", "human", None, at, None, turns)

    rows = [chat("It was sent.", "a:1"), chat("It was sent!", "a:2"), chat(LONG.replace("I", "you"), "a:3")]
    found = judge(SETTINGS, rows, task="generate")
    assert [any("nearly" in words for words in judgement.warnings) for judgement in found] == [False, True, False]


def test_a_template_filled_ten_thousand_times_takes_seconds() -> None:
    rows = [row(f"{LONG}, order {number}", at=f"a:{number}") for number in range(10_000)]
    started = time.perf_counter()
    relations = relate(SETTINGS, rows, "classify")
    assert time.perf_counter() - started < 20
    assert sum(said is not None for said in relations["near"].particulars) == 9_999


def test_ten_thousand_answers_to_one_prompt_take_seconds_and_short_words() -> None:
    def chat(number: int) -> Candidate:
        turns = (Message("user", "Write a poem"), Message("assistant", f"Poem {number}"))
        return Candidate("Write a poem", (), "g", True, "train", "human", None, f"a:{number}", None, turns)

    started = time.perf_counter()
    off = SETTINGS.model_copy(update={"near_duplicates": "off"})
    relations = relate(off, [chat(number) for number in range(10_000)], "generate")
    assert time.perf_counter() - started < 5
    assert relations["other_answer"].particulars[9_999] == "a:0; a:1; a:2; a:3; a:4"
    assert not any(relations["copy"].particulars)


def test_near_copies_are_what_shares_most_pairs_of_words() -> None:
    index = NearCopies()
    texts = [LONG, LONG.upper() + "!!", " ".join(reversed(LONG.split())), "one", "???", "one more"]
    assert [place for place, _ in sign(texts)] == [0, 1], "the others are like nothing, so nobody looks for them"
    signed = dict(sign([*texts, *texts[2:]]))
    for number, text in signed.items():
        index.add(number, text)
    assert index.find(signed[0]) == [(1.0, 0), (1.0, 1)]
    for number in (2, 3, 4, 5):
        assert index.find(signed[number]) == [(1.0, number), (1.0, number + 4)]
    assert {place: text.shingles.tolist() for place, text in sign([LONG] * 2)}[1] == signed[0].shingles.tolist()


@pytest.mark.parametrize("words", [1, 2, 7, 40])
def test_a_text_is_signed_alike_whatever_stands_beside_it(words: int) -> None:
    text = " ".join(f"word{number}" for number in range(words))
    others = [" ".join(f"other{line}-{number}" for number in range(line % 9)) or "none" for line in range(30)]
    (_, alone), _ = sign([text, text])
    found = dict(sign([*others[:15], text, *others[15:], text]))
    assert found[15].minhash == found[31].minhash == alone.minhash
    assert len(alone.shingles) == max(1, words - 1)


def test_what_an_expectation_says_among_rows_is_a_relation_and_sees_every_sound_row() -> None:
    unique = Expectation(expectation="expect_column_values_to_be_unique", arguments={"column": "author"})
    settings = SETTINGS.model_copy(update={"expectations": (unique,), "near_duplicates": "off"})
    first, second = judge(settings, [row("Where is my parcel"), row("Where is my card", at="a:2")])
    assert (first.reasons, second.reasons) == ([], []), "nobody is named"
    by_ann = Candidate("Where is my parcel", ("shipping",), "g", True, "train", "human", "ann", "a:1", None)
    known = Candidate("Where is my card", ("billing",), "g", True, "train", "human", "ann", "a:2", None, judged=first)
    for judgement in judge(settings, [by_ann, known]):
        assert judgement.reasons == [
            "not met among all rows: expect_column_values_to_be_unique, column='author'",
        ]
        assert judgement.reasons[0].partition(": ")[0] in RELATION_KINDS


def test_a_released_row_of_unknown_origin_is_trusted_least() -> None:
    released = replace(row("Where is my parcel", "billing"), origin="robot", judged=Judgement([], [], None))
    first, second = judge(SETTINGS, [released, row("Where is my parcel", at="a:2")])
    assert first.reasons == ["same text labelled by a more trusted origin: human at a:2"]
    assert second.reasons == []
