from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.answers import (
    balanced,
    common_words,
    exact_match,
    refusal_score,
    refuses,
    row_kind,
    supported,
    supported_score,
    token_f1,
    words,
)
from pipelines.evaluation.metrics import Difference, measured_rows, paired_bootstrap_rows

REFUSAL = "I do not know."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The Answer, is: 3.5 kg!", ["the", "answer", "is", "3.5", "kg"]),
        ("Größe  ＡＢＣ", ["grösse", "abc"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("北京 2024年", ["北", "京", "2024", "年"]),
        ("✓", ["✓"]),
        ("  ", []),
    ],
)
def test_words_are_found_in_any_script(text: str, found: list[str]) -> None:
    assert words(text) == found


@pytest.mark.parametrize(
    ("answer", "reference", "f1", "exact"),
    [
        ("the red house", "The red house.", 1.0, 1.0),
        ("red house", "the red house", 0.8, 0.0),
        ("house house house", "house", 0.5, 0.0),
        ("a b", "b a", 1.0, 0.0),
        ("", "something", 0.0, 0.0),
        ("something", "", 0.0, 0.0),
        ("", "", 1.0, 1.0),
    ],
)
def test_overlap_is_counted_as_squad_does(answer: str, reference: str, f1: float, exact: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(f1)
    assert exact_match(answer, reference) == exact


@given(st.text(max_size=40), st.text(max_size=40))
def test_overlap_is_symmetric_within_bounds_and_1_for_a_match(first: str, second: str) -> None:
    assert 0 <= token_f1(first, second) <= 1
    assert token_f1(first, second) == token_f1(second, first)
    if exact_match(first, second):
        assert token_f1(first, second) == 1


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        ("It costs 1,000.50 euros", "price: 1000.5 Euro, costs"),
        ("It weighs 5kg", "It weighs 05 kg"),
        ("On 2024-05-01", "since 1.5.2024"),
        ("On the 12th", "12 May"),
        ("1. Open it.\n2. Close it.", "open, then close"),
        ("Open it [1], close it [2].", "open and close"),
        ("1 000 000 people", "1,000,000 people"),
        ("10–20 people", "10 to 20 people"),
        ("version 1.2.3", "Version 1.2.3 is out"),
        ("Refunded within days", "A refund takes some days"),
    ],
)
def test_what_the_source_says_in_another_form_is_supported(answer: str, source: str) -> None:
    share, invented = supported(answer, [source], common=frozenset({"within"}), citations=2)
    assert (share, invented) == (1.0, [])


@pytest.mark.parametrize(
    ("answer", "source", "invented"),
    [
        ("It costs 35 euros", "It costs 3.5 euros", ["35"]),
        ("On 2024-05-02", "On 2024-05-01", ["2024-05-02"]),
        ("Part AB124", "Part AB123", ["ab124"]),
        ("version 1.3.2", "version 1.2.3", ["1.3.2"]),
        ("See [3]", "See", ["3"]),
        ("It takes 14 days", "It takes two weeks, or days", ["14"]),
    ],
)
def test_one_invented_figure_makes_an_answer_unsupported(answer: str, source: str, invented: list[str]) -> None:
    assert supported(answer, [source], citations=2) == (0.0, invented)


def test_the_share_of_content_words_and_names_counts() -> None:
    common = common_words([])
    assert supported("The kettle has a warranty.", ["kettle warranty"], common=common)[0] == 1.0
    assert supported("The kettle has a battery.", ["kettle warranty"], common=common)[0] == 0.5
    assert supported("Ask for Ann.", ["ask for bob"], common=common)[0] == 0.0
    assert supported("Yes.", ["no"], common=common)[0] == 1.0


def test_words_of_the_manner_are_those_that_many_answers_share() -> None:
    answers = [f"Kind regards about thing{number}, Team Berlin" for number in range(10)]
    common = common_words(answers)
    assert {"regards", "the"} <= common
    assert not {"thing1", "berlin"} & common, "names are checked, however often they come"


def test_a_refusal_is_right_only_where_there_is_nothing_to_answer_from() -> None:
    assert row_kind(None, "x", REFUSAL) is None
    assert row_kind((), "x", REFUSAL) == "unanswerable"
    assert row_kind(("text",), "i do not know, sorry", REFUSAL) == "unanswerable"
    assert row_kind(("text",), "It is red.", REFUSAL) == "answerable"
    assert refuses("I do not know. Ask us.", REFUSAL)
    assert refuses("Its colour is not stated: I do not know.", REFUSAL)
    assert not refuses("I do not", REFUSAL)
    assert not refuses("It is not known what I do.", REFUSAL)
    assert refusal_score("I do not know.", "No idea! Sorry.", REFUSAL, "unanswerable") == 1
    assert refusal_score("No idea, honestly", "No idea! Sorry.", REFUSAL, "unanswerable") == 1
    assert refusal_score("It is red.", "No idea! Sorry.", REFUSAL, "unanswerable") == 0
    assert refusal_score("It is red.", "It is blue.", REFUSAL, "answerable") == 1
    assert refusal_score("I do not know.", "It is blue.", REFUSAL, "answerable") == 0
    assert refusal_score("", "It is blue.", REFUSAL, "answerable") == 0
    assert math.isnan(refusal_score("I do not know.", "x", REFUSAL, None))


def test_refusing_or_saying_nothing_gains_no_support() -> None:
    def score(answer: str, reference: str, kind: str | None = "answerable", citations: int = 1) -> float:
        return supported_score(answer, reference, ["It is blue."], kind=kind, refusal=REFUSAL, citations=citations)

    assert score("It is blue.", "It is blue.") == 1
    assert score("I do not know.", "It is blue.") == 0
    assert score(" ", "It is blue.") == 0
    assert score("I do not know.", "I do not know.", kind="unanswerable") == 1
    assert math.isnan(score("It is blue.", "x", kind=None))
    assert math.isnan(score("It is blue.", "x", kind="unanswerable", citations=0))


def test_a_model_that_always_answers_gets_half_of_the_refusals_however_rare_they_are() -> None:
    kinds = ["answerable"] * 95 + ["unanswerable"] * 5
    always = np.array([1.0] * 95 + [0.0] * 5)
    found = measured_rows(always, balanced(kinds))
    assert found is not None
    assert found.value == pytest.approx(0.5)


def test_scores_by_row_are_resampled_in_pairs_and_what_is_missing_is_left_out() -> None:
    """T16"""
    rng = np.random.default_rng(5)
    first = rng.random(300)
    second = first - 0.05 + rng.normal(0, 0.01, 300)
    found = paired_bootstrap_rows(first, second)
    assert found is not None
    assert found.low > 0.04
    assert found.high < 0.06
    assert paired_bootstrap_rows(first, first.copy()) == Difference(0, 0, 0)
    some = first.copy()
    some[::2] = np.nan
    half, alone = paired_bootstrap_rows(some, second), paired_bootstrap_rows(first[1::2], second[1::2])
    assert half == alone
    none = np.full(300, np.nan)
    assert paired_bootstrap_rows(none, second) is None
    assert measured_rows(none) is None
    measured = measured_rows(some)
    assert measured is not None
    assert measured.rows == 150
    assert measured.low < measured.value < measured.high
