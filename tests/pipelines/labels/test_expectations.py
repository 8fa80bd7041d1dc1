from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError
from pipelines.labels.examples import Split
from pipelines.labels.expectations import Candidate, suite_fingerprint
from pipelines.labels.expectations import judge as judge_all
from pipelines.labels.settings import Expectation, LabelSettings

SETTINGS = LabelSettings(url="x", categories=("billing", "shipping"), minimum_characters=8, maximum_characters=40)


def judge(settings: LabelSettings, rows: list[Candidate]) -> list[list[str]]:
    return [judgement.reasons for judgement in judge_all(settings, rows)]


def row(
    text: str = "Where is my parcel?",
    *labels: str,
    group: str | None = None,
    split: Split = "train",
    origin: str = "human",
    at: str = "a:1",
    problem: str | None = None,
) -> Candidate:
    own = group is not None
    return Candidate(text, labels or ("shipping",), group or text, own, split, origin, None, at, problem)


def nobody(text: str) -> Candidate:
    return Candidate(text, (), text, False, "train", "human", None, "a:1", None)


@pytest.mark.parametrize(
    ("candidate", "reasons"),
    [
        (row(), []),
        (row("tab\tand\nline break are text"), []),
        (row("eight ch"), []),
        (row("seven c"), ["shorter than 8 characters: 7"]),
        (row("x " * 20), []),
        (row("x " * 20 + "y"), ["longer than 40 characters: 41"]),
        (row(""), ["no text"]),
        (row(" \t\n" * 4), ["only whitespace"]),
        (row("  "), ["only whitespace", "shorter than 8 characters: 2"]),
        (row("bell \x07 inside"), ["control characters or undecodable bytes in the text"]),
        (row("was caf\x1a once"), ["control characters or undecodable bytes in the text"]),
        (nobody("has no label"), ["no label"]),
        (row("two labels", "billing", "shipping"), ["several labels where one is allowed: billing, shipping"]),
        (row("unknown label", "speling"), ["label outside the categories: 'speling'"]),
        (row("unknown origin", origin="robot"), ["origin is not one of human, rule, model: 'robot'"]),
        (row("", problem="not JSON (…)"), ["cannot be read: not JSON (…)"]),
    ],
)
def test_a_row_is_refused_for_every_reason_that_applies(candidate: Candidate, reasons: list[str]) -> None:
    assert judge(SETTINGS, [candidate]) == [reasons]
    assert judge(SETTINGS, [row("Another parcel"), candidate])[1] == reasons


def test_no_rows_need_no_verdict() -> None:
    assert judge(SETTINGS, []) == []


def test_a_multi_label_row_may_have_several_labels_or_none() -> None:
    settings = SETTINGS.model_copy(update={"multi_label": True})
    rows = [row("two labels", "billing", "shipping"), nobody("has no label"), row("one is unknown", "billing", "x")]
    assert judge(settings, rows) == [[], [], ["label outside the categories: 'x'"]]


def test_of_copies_the_first_good_one_is_accepted() -> None:
    rows = [
        row("The same words", origin="robot", at="a:1"),
        row("The same words", at="a:2"),
        row(" The same words ", at="b:7"),
        row("the same words!", at="b:8"),
    ]
    verdicts = judge(SETTINGS, rows)
    assert verdicts[1:] == [[], ["same text and labels as an earlier row: a:2"], []]


def test_where_two_people_contradict_each_other_both_rows_are_refused() -> None:
    rows = [row("The same words", "billing", at="a:1"), row("The same words", "shipping", at="a:2"), row("Other words")]
    assert judge(SETTINGS, rows) == [
        ["same text with another label: shipping at a:2"],
        ["same text with another label: billing at a:1"],
        [],
    ]


def test_different_labels_of_one_text_are_no_contradiction_where_several_are_allowed() -> None:
    settings = SETTINGS.model_copy(update={"multi_label": True})
    rows = [
        row("The same words", "billing"),
        row("The same words", "shipping"),
        row("The same words", "billing", at="z:9"),
    ]
    assert judge(settings, rows) == [[], [], ["same text and labels as an earlier row: a:1"]]


def test_a_persons_label_beats_a_rules_and_a_rules_beats_a_models() -> None:
    """T20."""
    rows = [
        row("The same words", "billing", origin="model", at="a:1"),
        row("The same words", "shipping", at="a:2"),
        row("The same words", "shipping", origin="rule", at="a:3"),
        row("Other words", "billing", origin="model", at="a:4"),
    ]
    outranked = ["same text labelled by a more trusted origin: human at a:2"]
    assert judge(SETTINGS, rows) == [outranked, [], outranked, []]


def test_a_given_split_that_would_divide_a_group_is_refused() -> None:
    """T1."""
    rows = [
        row("One of a document", group="d", split="test", at="a:1"),
        row("Two of a document", group="d", split="train", at="a:2"),
        row("Three of a document", group="d", split="test", at="a:3"),
    ]
    assert judge(SETTINGS, rows) == [[], ["its group is in another split: train here, test at a:1"], []]


def own(name: str, **arguments: Any) -> LabelSettings:
    return SETTINGS.model_copy(update={"expectations": (Expectation(expectation=name, arguments=arguments),)})


def test_expectations_of_ones_own_judge_the_documented_columns() -> None:
    rows = [row("Where is it now", group="g"), row("Where is it then", origin="rule"), row("Somewhere else", group="h")]
    assert judge(own("expect_column_values_to_not_be_null", column="group"), rows) == [
        [],
        ["expect_column_values_to_not_be_null is not met: column='group'"],
        [],
    ]
    verdicts = judge(own("expect_column_values_to_not_match_regex", column="text", regex="Where"), rows)
    assert [bool(reasons) for reasons in verdicts] == [True, True, False]
    for column in ("label", "origin", "author"):
        assert judge(own("expect_column_values_to_not_be_in_set", column=column, value_set=["x"]), rows) == [[], [], []]
    verdicts = judge(own("expect_column_values_to_be_between", column="characters", max_value=15), rows)
    assert [bool(reasons) for reasons in verdicts] == [False, True, False]


def test_an_expectation_that_tolerates_some_rows_refuses_none_of_them() -> None:
    rows = [row("Where is it now"), row("Somewhere else"), row("Elsewhere, then")]
    name, arguments = "expect_column_values_to_not_match_regex", {"column": "text", "regex": "Where"}
    assert judge(own(name, **arguments, mostly=0.5), rows) == [[], [], []]
    assert judge(own(name, **arguments, mostly=0.9), rows)[0]


def test_an_expectation_named_twice_counts_once() -> None:
    twice = own("expect_column_values_to_not_match_regex", column="text", regex="Where").expectations * 2
    (reasons,) = judge(SETTINGS.model_copy(update={"expectations": twice}), [row("Where is it now")])
    assert len(reasons) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("expect_column_values_to_not_match_regx", {}, "nearest: expect_column_values_to_not_match_regex"),
        ("expect_column_mean_to_be_between", {"column": "characters"}, "is no expectation that judges single rows"),
        (
            "expect_column_values_to_match_regex",
            {"column": "text", "pattern": "x"},
            r"does not take .*'pattern'.*it takes column, condition_parser, mostly, regex, row_condition",
        ),
        (
            "expect_column_values_to_match_regex",
            {"column": "body", "regex": "x"},
            "columns are 'text', 'label', 'group'",
        ),
        ("expect_column_values_to_match_regex", {"column": "text", "regex": "["}, "cannot be evaluated"),
    ],
)
def test_a_wrong_expectation_says_what_there_is(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        judge(own(name, **arguments), [row()])


def test_the_suite_changes_with_what_verdicts_depend_on_and_with_nothing_else() -> None:
    def suite(**settings: Any) -> str:
        return suite_fingerprint(SETTINGS.model_copy(update=settings))

    same = suite()
    assert suite(url="y", minimum_new=7, schedule=None, categories=("shipping", "billing")) == same
    changed = {
        suite(categories=None),
        suite(categories=("billing", "shipping", "other")),
        suite(minimum_characters=9),
        suite(maximum_characters=9),
        suite(multi_label=True),
        suite_fingerprint(own("expect_column_values_to_be_unique", column="text")),
    }
    assert len(changed | {same}) == 7


def test_great_expectations_reports_to_nobody_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GX_ANALYTICS_ENABLED", "true")
    before = set(tmp_path.rglob("*"))
    judge(SETTINGS, [row()])
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
    assert set(tmp_path.rglob("*")) == before
