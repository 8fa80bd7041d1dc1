"""What makes an example acceptable, judged by Great Expectations row by row.

Great Expectations is called directly (dagster-ge stops below 1.0), on one frame of all rows. Each expectation comes
with the words for people: a kind, then ``: `` and the particulars, so that kinds can be counted.
"""

from __future__ import annotations

import difflib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError
from pipelines.fingerprint import fingerprint
from pipelines.labels.examples import ORIGINS, Split
from pipelines.labels.settings import Expectation, LabelSettings
from pipelines.prompt import AnswerFormat, Message
from pipelines.training.settings import Task

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

CANNOT_BE_READ = "cannot be read"
"""Kind of the reason that no other expectation can outweigh."""

_SUITE = 1  # raise it when the expectations below change: everything is then judged again
_RELATIONS = {
    "outranked": "same text labelled by a more trusted origin",
    "contradicted": "same text with another label",
    "other_split": "its group is in another split",
    "copy": "same text and labels as an earlier row",
}
RELATION_KINDS = frozenset(_RELATIONS.values())
"""Kinds of reasons and warnings that are relations between rows: they hold only among the rows that were judged."""

_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An example to judge."""

    text: str
    labels: tuple[str, ...]
    group: str
    names_group: bool
    """Whether the row itself says what it belongs to."""
    split: Split
    origin: str
    author: str | None
    location: str
    problem: str | None
    """Why it cannot be read."""
    messages: tuple[Message, ...] = ()
    """A chat, its last turn the assistant's; empty for a text with labels."""
    rejected: str | None = None
    """The answer that was preferred less."""
    context: tuple[str, ...] | None = None
    """What had been retrieved for the last question."""
    judged: Judgement | None = None
    """A verdict on the row by itself that still holds: only its relations to other rows are judged anew."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the expectations say of one row."""

    reasons: list[str]
    """Against it, in plain words: a kind, or ``kind: particulars``; none means accepted."""
    warnings: list[str]
    """Worth a look, and accepted all the same."""
    masked: Candidate | None
    """What to keep instead: the row with personal data and secrets replaced by their kinds; None where it stays."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """One expectation, and what to say of a row that does not meet it."""

    expectation: str
    arguments: Mapping[str, Any]
    reason: Callable[[int], str]


def suite_fingerprint(
    settings: LabelSettings, *, task: Task = "classify", answer_format: AnswerFormat | None = None
) -> str:
    """What the verdicts depend on (64 hex digits); another one means that everything is judged again."""
    fields = {"multi_label", "minimum_characters", "maximum_characters", "expectations"}
    categories = None if settings.categories is None else sorted(settings.categories)
    return fingerprint(_SUITE, categories, settings.model_dump(mode="json", include=fields))


def judge(
    settings: LabelSettings,
    rows: Sequence[Candidate],
    *,
    task: Task = "classify",
    answer_format: AnswerFormat | None = None,
    count_tokens: Callable[[Sequence[str]], Sequence[int]] | None = None,
    docs: Path | None = None,
) -> list[Judgement]:
    """For each row what speaks against it.

    ``rows`` are in the order in which they came: of copies the first is accepted. A human's label beats a rule's, and a
    rule's a model's; where equals contradict each other on a single-label text, all of its rows are refused, because
    nobody knows the right one.

    Raises:
        ConfigError: an expectation of the settings does not exist, or does not take its arguments.
    """
    reasons: list[list[str]] = [[] for _ in rows]
    if not rows:
        return []
    _validate(_frame(settings, rows), _rules(settings, rows), reasons)
    for row, against in zip(rows, reasons, strict=True):
        if row.problem is not None:
            against[:] = [f"{CANNOT_BE_READ}: {row.problem}"]
    sound = [place for place, against in enumerate(reasons) if not against]
    if sound:
        among: list[list[str]] = [[] for _ in sound]
        _validate_relations(settings, [rows[place] for place in sound], among)
        for place, against in zip(sound, among, strict=True):
            reasons[place] = against
    return [Judgement(against, [], None) for against in reasons]


def _frame(settings: LabelSettings, rows: Sequence[Candidate]) -> pd.DataFrame:
    import pandas as pd

    texts: dict[str, list[str | None]] = {
        "text": [row.text or None for row in rows],
        "label": ["; ".join(row.labels) or None for row in rows],
        "group": [row.group if row.names_group else None for row in rows],
        "origin": [row.origin for row in rows],
        "author": [row.author for row in rows],
        "unknown_labels": [_unknown_labels(settings, row) for row in rows],
        "problem": [row.problem for row in rows],
    }
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in texts.items()})
    frame["characters"] = [len(row.text) for row in rows]
    frame["labels"] = [len(row.labels) for row in rows]
    return frame


def _rules(settings: LabelSettings, rows: Sequence[Candidate]) -> list[_Rule]:
    shortest, longest = settings.minimum_characters, settings.maximum_characters

    def say(reason: str) -> Callable[[int], str]:
        return lambda _: reason

    rules = [
        _Rule("expect_column_values_to_be_null", {"column": "problem"}, say(CANNOT_BE_READ)),
        _Rule("expect_column_values_to_not_be_null", {"column": "text"}, say("no text")),
        _Rule("expect_column_values_to_match_regex", {"column": "text", "regex": r"\S"}, say("only whitespace")),
        _Rule(
            "expect_column_value_lengths_to_be_between",
            {"column": "text", "min_value": shortest},
            lambda i: f"shorter than {shortest} characters: {len(rows[i].text)}",
        ),
        _Rule(
            "expect_column_value_lengths_to_be_between",
            {"column": "text", "max_value": longest},
            lambda i: f"longer than {longest} characters: {len(rows[i].text)}",
        ),
        _Rule(
            "expect_column_values_to_not_match_regex",
            {"column": "text", "regex": _CONTROL},
            say("control characters or undecodable bytes in the text"),
        ),
        _Rule(
            "expect_column_values_to_be_null",
            {"column": "unknown_labels"},
            lambda i: f"label outside the categories: {_unknown_labels(settings, rows[i])}",
        ),
        _Rule(
            "expect_column_values_to_be_in_set",
            {"column": "origin", "value_set": list(ORIGINS)},
            lambda i: f"origin is not one of {', '.join(ORIGINS)}: {rows[i].origin!r}",
        ),
    ]
    if not settings.multi_label:
        rules += [
            _Rule("expect_column_values_to_not_be_null", {"column": "label"}, say("no label")),
            _Rule(
                "expect_column_values_to_be_between",
                {"column": "labels", "max_value": 1},
                lambda i: f"several labels where one is allowed: {', '.join(rows[i].labels)}",
            ),
        ]
    return [*rules, *(_own_rule(expectation) for expectation in settings.expectations)]


def _unknown_labels(settings: LabelSettings, row: Candidate) -> str | None:
    if settings.categories is None:
        return None
    return ", ".join(repr(label) for label in row.labels if label not in settings.categories) or None


def _own_rule(expectation: Expectation) -> _Rule:
    arguments = ", ".join(f"{name}={value!r}" for name, value in expectation.arguments.items())
    return _Rule(
        expectation.expectation, expectation.arguments, lambda _: f"{expectation.expectation} is not met: {arguments}"
    )


def _validate_relations(settings: LabelSettings, rows: Sequence[Candidate], reasons: list[list[str]]) -> None:
    """What rows that are sound one by one are to each other."""
    import pandas as pd

    most_trusted: dict[str, Candidate] = {}
    for row in rows:
        best = most_trusted.setdefault(row.text.strip(), row)
        if ORIGINS.index(row.origin) < ORIGINS.index(best.origin):
            most_trusted[row.text.strip()] = row
    said: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)
    for row in rows:
        if row.origin == most_trusted[row.text.strip()].origin:
            said[row.text.strip()].setdefault(row.labels, row.location)
    columns: dict[str, list[str | None]] = {name: [None] * len(rows) for name in _RELATIONS}
    splits: dict[str, Candidate] = {}
    first: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)
    for place, row in enumerate(rows):
        text = row.text.strip()
        best, in_split = most_trusted[text], splits.get(row.group, row)
        others = [f"{', '.join(labels)} at {where}" for labels, where in said[text].items() if labels != row.labels]
        if row.origin != best.origin:
            columns["outranked"][place] = f"{best.origin} at {best.location}"
        elif others and not settings.multi_label:
            columns["contradicted"][place] = "; ".join(others)
        elif in_split.split != row.split:
            columns["other_split"][place] = f"{row.split} here, {in_split.split} at {in_split.location}"
        elif row.labels in first[text]:
            columns["copy"][place] = first[text][row.labels]
        else:
            first[text][row.labels] = row.location
            splits.setdefault(row.group, row)

    def rule(name: str) -> _Rule:
        arguments = {"column": name}
        return _Rule("expect_column_values_to_be_null", arguments, lambda i: f"{_RELATIONS[name]}: {columns[name][i]}")

    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    _validate(frame, [rule(name) for name in columns], reasons)


def _validate(frame: pd.DataFrame, rules: Sequence[_Rule], reasons: list[list[str]]) -> None:
    """Run ``rules`` over ``frame`` in one validation, and note against each row the rules that it does not meet."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is imported
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    suite = gx.ExpectationSuite(name="examples")
    for number, rule in enumerate(rules):
        suite.add_expectation(_expectation(rule, number))
    asset = context.data_sources.add_pandas("examples").add_dataframe_asset("examples")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    wanted = {"result_format": "COMPLETE", "include_unexpected_rows": False, "return_unexpected_index_query": False}
    results: list[Any] = batch.validate(suite, result_format=wanted).results
    by_rule = {result.expectation_config.meta["rule"]: result for result in results}  # they come in another order
    for number, rule in enumerate(rules):
        result = by_rule.get(number)
        if result is None:  # the suite keeps one of two equal expectations
            continue
        if "unexpected_index_list" not in result.result:
            raise ConfigError(
                f"labels.expectations: {rule.expectation} with {dict(rule.arguments)!r} cannot be evaluated: "
                f"{_error(result.exception_info)}; columns are {', '.join(map(repr, frame.columns))}"
            )
        if not result.success:  # where `mostly` tolerates rows, it succeeds
            for place in result.result["unexpected_index_list"]:
                reasons[place].append(rule.reason(place))


def _error(exception_info: Mapping[str, Any]) -> str:
    """The message in what Great Expectations reports, keyed by metric where there are several."""
    infos = [info for info in exception_info.values() if isinstance(info, Mapping)] or [exception_info]
    return str(infos[0].get("exception_message"))


def _expectation(rule: _Rule, number: int) -> Any:
    from great_expectations.expectations import expectation as kinds
    from great_expectations.expectations.registry import (
        get_expectation_impl,
        list_registered_expectation_implementations,
    )
    from pydantic.v1 import ValidationError

    by_row = (kinds.ColumnMapExpectation, kinds.ColumnPairMapExpectation, kinds.MulticolumnMapExpectation)
    known = sorted(
        name for name in list_registered_expectation_implementations() if issubclass(get_expectation_impl(name), by_row)
    )
    if rule.expectation not in known:
        nearest = difflib.get_close_matches(rule.expectation, known, n=3)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
        raise ConfigError(
            f"labels.expectations: {rule.expectation!r} is no expectation that judges single rows{hint}; "
            f"there are: {', '.join(known)}"
        )
    kind = get_expectation_impl(rule.expectation)
    try:
        return kind(**rule.arguments, meta={"rule": number})
    except (ValidationError, TypeError) as error:
        general = {"id", "meta", "notes", "result_format", "description", "catch_exceptions", "rendered_content"}
        takes = sorted(set(kind.__fields__) - general - {"batch_id", "severity", "windows"})
        raise ConfigError(
            f"labels.expectations: {rule.expectation} does not take {dict(rule.arguments)!r} ({error}); "
            f"it takes {', '.join(takes)}"
        ) from error
