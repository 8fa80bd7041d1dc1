"""What makes an example acceptable, judged by Great Expectations row by row.

Great Expectations is called directly (dagster-ge stops below 1.0), on one frame of all rows. Each expectation comes
with the words for people: a kind, then ``: `` and the particulars, so that kinds can be counted. What takes more than
a look at a column (languages, personal data, answers' formats) is found out beforehand, for all rows at once; the
expectation is then that nothing was found.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError
from pipelines.fingerprint import fingerprint
from pipelines.labels.answers import breaks_off, seems_cut, wrong_turns
from pipelines.labels.candidate import Candidate, Judgement
from pipelines.labels.examples import ORIGINS
from pipelines.labels.relations import AMONG_ALL, RELATION_KINDS, relate
from pipelines.labels.settings import Expectation, LabelSettings
from pipelines.prompt import AnswerFormat, Message
from pipelines.training.settings import Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CANNOT_BE_READ", "RELATION_KINDS", "Candidate", "Judgement", "judge", "suite_fingerprint"]

CANNOT_BE_READ = "cannot be read"
"""Kind of the reason that no other expectation can outweigh."""

_SUITE = 2  # raise it when the expectations below change: everything is then judged again
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
_COMPARES_ROWS = ("_unique", "_increasing", "_decreasing", "_z_scores")

CountTokens = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True, slots=True)
class _Rule:
    """One expectation, and what to say of a row that does not meet it."""

    expectation: str
    arguments: Mapping[str, Any]
    reason: Callable[[int], str]
    warns: bool = False
    """Whether a row that does not meet it is accepted all the same."""
    title: str | None = None
    """What Data Docs call it, where the expectation's own words say too little."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found out about each row beforehand; None where nothing speaks against it."""

    columns: dict[str, list[str | None]]
    masked: list[Candidate | None]


def suite_fingerprint(
    settings: LabelSettings, *, task: Task = "classify", answer_format: AnswerFormat | None = None
) -> str:
    """What the verdicts depend on (64 hex digits); another one means that everything is judged again."""
    row = {"multi_label", "minimum_characters", "maximum_characters", "minimum_tokens", "maximum_tokens", "languages"}
    fields = row | {"personal_data", "phone_countries", "secrets", "near_duplicates", "expectations"}
    categories = None if settings.categories is None else sorted(settings.categories)
    wanted = None if answer_format is None else answer_format.model_dump(mode="json")
    return fingerprint(_SUITE, task, wanted, categories, settings.model_dump(mode="json", include=fields))


def judge(
    settings: LabelSettings,
    rows: Sequence[Candidate],
    *,
    task: Task = "classify",
    answer_format: AnswerFormat | None = None,
    count_tokens: CountTokens | None = None,
    docs: Path | None = None,
) -> list[Judgement]:
    """For each row what speaks against it, what is worth a look, and what to keep instead of it.

    Args:
        settings: what is expected.
        rows: in the order in which they came. One that brings a verdict (``judged``) keeps it; its relations to the
            others are judged anew, and reasons and warnings of ``RELATION_KINDS`` must have been taken out.
        task: which suite judges: texts with labels, or chats.
        answer_format: what a chat's answer has to look like.
        count_tokens: tokens of texts; without it nothing is counted, and limits in tokens hold for nobody.
        docs: folder of the Data Docs that this run is added to; see ``pipelines.labels.datadocs``.

    Raises:
        ConfigError: an expectation, language, country or schema of the settings does not exist, or an expectation does
            not take its arguments.
    """
    judgements = [
        Judgement([], [], None)
        if row.judged is None
        else Judgement(list(row.judged.reasons), list(row.judged.warnings), row.judged.masked)
        for row in rows
    ]
    if not rows:
        return []
    results: dict[str, Any] = {}
    fresh = [place for place, row in enumerate(rows) if row.judged is None]
    if fresh:
        own = [rows[place] for place in fresh]
        verdicts = [judgements[place] for place in fresh]
        found = _look(settings, own, task, answer_format)
        frame = _frame(settings, own, found, task, count_tokens)
        rules = _text_rules(settings, own, found) if task == "classify" else _chat_rules(settings, own, found, frame)
        rules += [_own_rule(expectation) for expectation in settings.expectations if not _among_all(expectation)]
        results["examples"] = _validate("examples", frame, rules, verdicts)
        for place, row, verdict, masked in zip(fresh, own, verdicts, found.masked, strict=True):
            if row.problem is not None:
                verdict.reasons[:] = [f"{CANNOT_BE_READ}: {row.problem}"]
                verdict.warnings.clear()
            elif masked is not None:
                judgements[place] = replace(verdict, masked=masked)
    sound = [place for place, judgement in enumerate(judgements) if not judgement.reasons]
    if sound:
        as_kept = [judgements[place].masked or rows[place] for place in sound]
        verdicts = [judgements[place] for place in sound]
        results["relations"] = _validate_relations(settings, as_kept, task, count_tokens, verdicts)
    if docs is not None:
        from pipelines.labels.datadocs import write_docs

        write_docs(docs, results)
    return judgements


def _look(settings: LabelSettings, rows: Sequence[Candidate], task: Task, answer_format: AnswerFormat | None) -> _Found:
    """What columns alone do not show."""
    columns: dict[str, list[str | None]] = {"unknown_labels": [_unknown_labels(settings, row) for row in rows]}
    masked: list[Candidate | None] = [None] * len(rows)
    readable = [place for place, row in enumerate(rows) if row.problem is None]
    if task == "generate":
        columns |= {name: [None] * len(rows) for name in ("roles", "unclosed", "cut", "format")}
        for place in readable:
            answer = rows[place].answer
            columns["roles"][place] = wrong_turns(rows[place].messages)
            columns["unclosed"][place] = breaks_off(answer)
            columns["cut"][place] = seems_cut(answer)
    if settings.languages is not None:
        columns["language"] = [None] * len(rows)
        others = _other_languages(settings.languages, [rows[place] for place in readable])
        for place, other in zip(readable, others, strict=True):
            columns["language"][place] = other
    _screen(settings, rows, readable, columns, masked)
    if answer_format is not None:
        for place in readable if task == "generate" else ():
            problem = answer_format.problem(rows[place].answer) if rows[place].answer.strip() else None
            if problem is not None and (columns["personal_data"][place] or columns["secrets"][place]):
                problem = re.sub(r"( at \$[^:]*): .*", r"\1", problem, flags=re.DOTALL)  # it may quote them
            columns["format"][place] = problem
    return _Found(columns, masked)


def _parts(row: Candidate) -> list[tuple[str, str]]:
    """Where a row holds text, and the text."""
    if not row.messages:
        return [("text", row.text)]
    parts = [("system" if turn.role == "system" else "prompt", turn.content) for turn in row.messages[:-1]]
    parts += [("answer", row.answer)]
    parts += [("rejected answer", row.rejected)] if row.rejected is not None else []
    return parts + [("context", text) for text in row.context or ()]


def _screen(
    settings: LabelSettings,
    rows: Sequence[Candidate],
    readable: Sequence[int],
    columns: dict[str, list[str | None]],
    masked: list[Candidate | None],
) -> None:
    """Look for personal data and secrets; say what stands where, and mask it where that is wanted."""
    from pipelines.labels.detectors import Finding, find_personal_data, find_secrets, mask

    def find(column: str, texts: Sequence[str]) -> list[tuple[Finding, ...]]:
        if column == "secrets":
            return find_secrets(texts)
        return find_personal_data(texts, phone_countries=settings.phone_countries)

    parts = [(place, where, text) for place in readable for where, text in _parts(rows[place])]
    handlings = {"secrets": settings.secrets, "personal_data": settings.personal_data}
    to_mask: set[int] = set()
    for column, handling in handlings.items():
        columns[column] = [None] * len(rows)
        if handling == "off":
            continue
        said: dict[int, dict[str, None]] = {}
        for (place, where, _), findings in zip(parts, find(column, [text for _, _, text in parts]), strict=True):
            for finding in findings:
                said.setdefault(place, {})[f"{finding.kind} in the {where}"] = None
        for place, kinds in said.items():
            columns[column][place] = ", ".join(kinds)
        to_mask |= said.keys() if handling == "mask" else set()
    texts = list({text: None for place in sorted(to_mask) for text in (rows[place].text, *_texts(rows[place]))})
    cleaned = texts
    for column, handling in handlings.items():
        if handling == "mask" and texts:
            cleaned = [mask(text, found) for text, found in zip(cleaned, find(column, cleaned), strict=True)]
    clean = dict(zip(texts, cleaned, strict=True))
    for place in to_mask:
        row = rows[place]
        masked[place] = replace(
            row,
            text=clean[row.text],
            messages=tuple(Message(turn.role, clean[turn.content]) for turn in row.messages),
            rejected=None if row.rejected is None else clean[row.rejected],
            context=None if row.context is None else tuple(clean[text] for text in row.context),
        )


def _texts(row: Candidate) -> list[str]:
    return [text for _, text in _parts(row)]


_FENCED = re.compile(r"```.*?(?:```|$)|`[^`]*`|https?://\S+", re.DOTALL)
_TELLING = 20  # bytes of letters from which a language can be told
_SURE = 0.5
_ALIKE = ({"bs", "hr", "sr"}, {"da", "nb", "nn", "no"}, {"id", "ms"})  # nobody tells short texts of these apart


def _other_languages(allowed: Sequence[str], rows: Sequence[Candidate]) -> list[str | None]:
    """The language of a text, a chat's last question or its answer, where it is surely none of the allowed."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    languages = [label for label in identifier.labels if len(label) == 2]  # dialects claim short texts of these
    unknown = sorted(set(allowed) - set(languages))
    if unknown:
        raise ConfigError(
            f"labels.languages: {unknown[0]!r} is not recognised; there are {', '.join(sorted(languages))}"
        )
    identifier.set_languages(languages)
    fine = {*allowed, *(each for group in _ALIKE if group & set(allowed) for each in group)}

    def other(text: str) -> str | None:
        text = _FENCED.sub(" ", text[:600])[:300]
        letters = "".join(filter(str.isalpha, text)).encode("utf-8", "replace")
        if len(letters) < _TELLING or text.lstrip()[:1] in ("{", "[", "<"):
            return None
        language, sure = identifier.classify(text)
        return str(language) if language not in fine and sure >= _SURE else None

    said = []
    for row in rows:
        places = [("text", row.text)]
        if row.messages:
            places = [("prompt", turn.content) for turn in row.messages[-2:-1]] + [("answer", row.answer)]
        found = [(other(text), where) for where, text in places]
        said.append(", ".join(f"{language} in the {where}" for language, where in found if language) or None)
    return said


def _frame(
    settings: LabelSettings,
    rows: Sequence[Candidate],
    found: _Found | None,
    task: Task,
    count_tokens: CountTokens | None,
) -> pd.DataFrame:
    import pandas as pd

    texts: dict[str, list[str | None]] = {}
    whole = [row.text for row in rows]
    if task == "classify":
        texts["text"] = [row.text or None for row in rows]
        texts["label"] = ["; ".join(row.labels) or None for row in rows]
    else:
        whole = [f"{row.text}{row.answer}" for row in rows]
        texts["prompt"] = [row.text or None for row in rows]
        texts["answer"] = [row.answer or None for row in rows]
        texts["system"] = [
            "\n".join(turn.content for turn in row.messages if turn.role == "system") or None for row in rows
        ]
        texts["rejected"] = [row.rejected for row in rows]
    texts |= {
        "group": [row.group if row.names_group else None for row in rows],
        "origin": [row.origin for row in rows],
        "author": [row.author for row in rows],
        "problem": [row.problem for row in rows],
    }
    texts |= found.columns if found is not None else {}
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in texts.items()})
    frame["characters"] = pd.Series([len(text) or None for text in whole], dtype=float)
    frame["turns" if task == "generate" else "labels"] = [len(row.messages or row.labels) for row in rows]
    frame["tokens"] = pd.Series(_tokens(settings, rows, count_tokens), dtype=float)
    return frame


def _tokens(settings: LabelSettings, rows: Sequence[Candidate], count_tokens: CountTokens | None) -> list[int | None]:
    """Tokens of each row, turns and answer together; None where no expectation depends on the number."""
    if count_tokens is None:
        return [None] * len(rows)
    texts = ["\n".join(turn.content for turn in row.messages) if row.messages else row.text for row in rows]
    asked = settings.minimum_tokens > 1 or any(
        "tokens" in map(str, expectation.arguments.values()) for expectation in settings.expectations
    )
    longest = settings.maximum_tokens or sys.maxsize
    counted = [  # a token is a byte at least
        place for place, text in enumerate(texts) if asked or len(text.encode("utf-8", "replace")) > longest
    ]
    tokens: list[int | None] = [None] * len(rows)
    for place, number in zip(counted, count_tokens([texts[place] for place in counted]), strict=True):
        tokens[place] = int(number)
    return tokens


def _say(reason: str) -> Callable[[int], str]:
    return lambda _: reason


def _nothing_in(column: str, kind: str, found: _Found, *, warns: bool = False, title: str | None = None) -> _Rule:
    """That nothing was found which ``column`` would name."""
    values = found.columns[column]
    return _Rule(
        "expect_column_values_to_be_null",
        {"column": column},
        lambda i: f"{kind}: {values[i]}",
        warns,
        title or f"no {kind}",
    )


def _text_rules(settings: LabelSettings, rows: Sequence[Candidate], found: _Found) -> list[_Rule]:
    rules = [
        _Rule("expect_column_values_to_be_null", {"column": "problem"}, _say(CANNOT_BE_READ), title="can be read"),
        *_not_empty("text", "no text"),
        *_lengths(settings, lambda i: len(rows[i].text)),
        _Rule(
            "expect_column_values_to_not_match_regex",
            {"column": "text", "regex": _CONTROL},
            _say("control characters or undecodable bytes in the text"),
        ),
        _nothing_in("unknown_labels", "label outside the categories", found),
        *_of_both(settings, rows, found),
    ]
    if not settings.multi_label:
        rules += [
            _Rule("expect_column_values_to_not_be_null", {"column": "label"}, _say("no label")),
            _Rule(
                "expect_column_values_to_be_between",
                {"column": "labels", "max_value": 1},
                lambda i: f"several labels where one is allowed: {', '.join(rows[i].labels)}",
            ),
        ]
    return rules


def _chat_rules(settings: LabelSettings, rows: Sequence[Candidate], found: _Found, frame: pd.DataFrame) -> list[_Rule]:
    characters = frame["characters"].fillna(0).astype(int).to_list()
    return [
        _Rule("expect_column_values_to_be_null", {"column": "problem"}, _say(CANNOT_BE_READ), title="can be read"),
        *_not_empty("prompt", "no prompt"),
        *_not_empty("answer", "no answer"),
        *_lengths(settings, lambda i: characters[i]),
        *(
            _Rule(
                "expect_column_values_to_not_match_regex",
                {"column": column, "regex": _CONTROL},
                _say(f"control characters or undecodable bytes in the {column}"),
            )
            for column in ("prompt", "answer", "system", "rejected")
        ),
        _nothing_in("roles", "wrong roles or turns", found),
        _nothing_in("unclosed", "answer breaks off", found),
        _nothing_in("cut", "answer seems cut, it ends with", found, warns=True, title="no answer that seems cut"),
        _nothing_in("format", "answer misses its format", found),
        *_of_both(settings, rows, found),
    ]


def _not_empty(column: str, reason: str) -> tuple[_Rule, _Rule]:
    only = "only whitespace" if column == "text" else f"only whitespace in the {column}"
    return (
        _Rule("expect_column_values_to_not_be_null", {"column": column}, _say(reason)),
        _Rule("expect_column_values_to_match_regex", {"column": column, "regex": r"\S"}, _say(only)),
    )


def _lengths(settings: LabelSettings, characters: Callable[[int], int]) -> tuple[_Rule, _Rule]:
    shortest, longest = settings.minimum_characters, settings.maximum_characters
    return (
        _Rule(
            "expect_column_values_to_be_between",
            {"column": "characters", "min_value": shortest},
            lambda i: f"shorter than {shortest} characters: {characters(i)}",
        ),
        _Rule(
            "expect_column_values_to_be_between",
            {"column": "characters", "max_value": longest},
            lambda i: f"longer than {longest} characters: {characters(i)}",
        ),
    )


def _of_both(settings: LabelSettings, rows: Sequence[Candidate], found: _Found) -> list[_Rule]:
    rules = [
        _Rule(
            "expect_column_values_to_be_in_set",
            {"column": "origin", "value_set": list(ORIGINS)},
            lambda i: f"origin is not one of {', '.join(ORIGINS)}: {rows[i].origin!r}",
        ),
        _Rule(
            "expect_column_values_to_be_between",
            {"column": "tokens", "min_value": settings.minimum_tokens},
            _say(f"fewer than {settings.minimum_tokens} tokens"),
        ),
    ]
    if settings.maximum_tokens is not None:
        rules.append(
            _Rule(
                "expect_column_values_to_be_between",
                {"column": "tokens", "max_value": settings.maximum_tokens},
                _say(f"more than {settings.maximum_tokens} tokens"),
            )
        )
    if "language" in found.columns:
        rules.append(_nothing_in("language", "another language", found))
    for column, handling, kind in (
        ("personal_data", settings.personal_data, "personal data"),
        ("secrets", settings.secrets, "secret"),
    ):
        if handling != "off":
            said = f"{kind} masked" if handling == "mask" else kind
            rules.append(_nothing_in(column, said, found, warns=handling != "quarantine", title=f"no {kind}"))
    return rules


def _unknown_labels(settings: LabelSettings, row: Candidate) -> str | None:
    if settings.categories is None:
        return None
    return ", ".join(repr(label) for label in row.labels if label not in settings.categories) or None


def _among_all(expectation: Expectation) -> bool:
    """Whether what it says of a row depends on the others."""
    compares = any(word in expectation.expectation for word in _COMPARES_ROWS)
    return compares or expectation.arguments.get("mostly", 1) != 1


def _own_rule(expectation: Expectation) -> _Rule:
    arguments = ", ".join(f"{name}={value!r}" for name, value in expectation.arguments.items())
    reason = f"{expectation.expectation} is not met: {arguments}"
    if _among_all(expectation):
        reason = f"{AMONG_ALL}: {expectation.expectation}, {arguments}"
    return _Rule(expectation.expectation, expectation.arguments, _say(reason))


def _validate_relations(
    settings: LabelSettings,
    rows: Sequence[Candidate],
    task: Task,
    count_tokens: CountTokens | None,
    verdicts: Sequence[Judgement],
) -> Any:
    """What rows that are sound one by one are to each other."""
    import pandas as pd

    among_all = [expectation for expectation in settings.expectations if _among_all(expectation)]
    frame = _frame(settings, rows, None, task, count_tokens) if among_all else pd.DataFrame()
    relations = relate(settings, rows, task)
    found = _Found({name: relation.particulars for name, relation in relations.items()}, [])
    for name, values in found.columns.items():
        frame[name] = pd.Series(values, dtype=object)
    rules = [_nothing_in(name, each.kind, found, warns=each.warns) for name, each in relations.items()]
    return _validate("relations", frame, [*rules, *map(_own_rule, among_all)], verdicts)


def _validate(name: str, frame: pd.DataFrame, rules: Sequence[_Rule], verdicts: Sequence[Judgement]) -> Any:
    """Run ``rules`` over ``frame`` in one validation, and note of each row the rules that it does not meet.

    Returns the result and its suite.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is imported
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    suite = gx.ExpectationSuite(name=name)
    for number, rule in enumerate(rules):
        suite.add_expectation(_expectation(rule, number))
    asset = context.data_sources.add_pandas("examples").add_dataframe_asset("examples")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    wanted = {"result_format": "COMPLETE", "include_unexpected_rows": False, "return_unexpected_index_query": False}
    validated = batch.validate(suite, result_format=wanted)
    results: list[Any] = validated.results
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
                verdict = verdicts[place]
                (verdict.warnings if rule.warns else verdict.reasons).append(rule.reason(place))
    return validated, suite


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
    kind: Any = get_expectation_impl(rule.expectation)
    try:
        words = {"description": rule.title} if rule.title else {}
        severity = "warning" if rule.warns else "critical"
        return kind(**rule.arguments, **words, severity=severity, meta={"rule": number})
    except (ValidationError, TypeError) as error:
        general = {"id", "meta", "notes", "result_format", "description", "catch_exceptions", "rendered_content"}
        takes = sorted(set(kind.__fields__) - general - {"batch_id", "severity", "windows"})
        raise ConfigError(
            f"labels.expectations: {rule.expectation} does not take {dict(rule.arguments)!r} ({error}); "
            f"it takes {', '.join(takes)}"
        ) from error
