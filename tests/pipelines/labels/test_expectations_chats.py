from __future__ import annotations

from typing import Any

import pytest

from pipelines.errors import ConfigError
from pipelines.labels.expectations import RELATION_KINDS, Candidate, Judgement, judge, suite_fingerprint
from pipelines.labels.settings import Expectation, LabelSettings
from pipelines.prompt import AnswerFormat, Message

SETTINGS = LabelSettings(url="x", near_duplicates="off")
ANSWER = "It left our warehouse yesterday."


def chat(
    question: str = "Where is my parcel?",
    answer: str = ANSWER,
    *earlier: str,
    system: str | None = None,
    at: str = "a:1",
    origin: str = "human",
    group: str | None = None,
    **more: Any,
) -> Candidate:
    turns = [Message("system", system)] if system is not None else []
    turns += [Message("assistant" if number % 2 else "user", text) for number, text in enumerate(earlier)]
    turns += [Message("user", question), Message("assistant", answer)]
    return from_turns(turns, at=at, origin=origin, group=group, **more)


def from_turns(
    turns: list[Message], *, at: str = "a:1", origin: str = "human", group: str | None = None, **more: Any
) -> Candidate:
    text = "\n".join(turn.content for turn in turns[:-1] if turn.role != "system")
    own = group or text
    return Candidate(text, (), own, group is not None, "train", origin, None, at, None, tuple(turns), **more)


def verdicts(rows: list[Candidate], settings: LabelSettings = SETTINGS, **more: Any) -> list[list[str]]:
    return [judgement.reasons for judgement in judge(settings, rows, task="generate", **more)]


def warnings(rows: list[Candidate], settings: LabelSettings = SETTINGS, **more: Any) -> list[list[str]]:
    return [judgement.warnings for judgement in judge(settings, rows, task="generate", **more)]


def test_a_chat_is_refused_for_what_is_wrong_with_it() -> None:
    user, assistant = Message("user", "Where is my parcel?"), Message("assistant", ANSWER)
    cases: list[tuple[Candidate, list[str]]] = [
        (chat(), []),
        (chat("And now?", ANSWER, "Where is it?", "On its way.", system="Be kind."), []),
        (chat(answer=""), ["no answer"]),
        (chat(answer=" \n"), ["only whitespace in the answer"]),
        (chat("", at="a:3"), ["no prompt", "wrong roles or turns: turn 1 is empty"]),
        (chat("bell \x07 inside"), ["control characters or undecodable bytes in the prompt"]),
        (chat("Other?", answer="bell \x07 inside."), ["control characters or undecodable bytes in the answer"]),
        (
            from_turns([user, user, assistant]),
            ["wrong roles or turns: turn 2 is the user's where the assistant's is due"],
        ),
        (from_turns([user, assistant, user]), ["wrong roles or turns: the last turn is the user's"]),
        (
            from_turns([Message("tool", "42 + 1 is a question"), assistant]),
            ["wrong roles or turns: role 'tool'; there are system, user, assistant"],
        ),  # type: ignore[arg-type]
        (chat("Show me code", "Here:\n```python\nprint(1)\n"), ["answer breaks off: unclosed code fence"]),
        (chat("Give me JSON", '{"a": [1, 2, {"b": "}"'), ["answer breaks off: 3 unclosed brackets"]),
        (chat("Give me a list", '["a", "b"]'), []),
        (chat("Hi", "Yes."), ["shorter than 8 characters: 6"]),
        (chat("Who knows", "a" * 3992), ["longer than 4000 characters: 4001"]),
        (chat("Who says so", origin="robot"), ["origin is not one of human, rule, model: 'robot'"]),
    ]
    # each is its own prompt, so that none is another's copy
    rows = [row for row, _ in cases]
    found = verdicts(rows)
    assert dict(enumerate(found)) == {place: reasons for place, (_, reasons) in enumerate(cases)}


def test_an_answer_that_only_seems_cut_is_accepted_with_a_warning() -> None:
    rows = [
        chat("One?", "It depends on the"),
        chat("Two?", "There are three things,"),
        chat("Three?", "Both, of course."),
    ]
    rows += [chat("Four?", "Use `a` and\n```\nx = [\n```"), chat("Five?", "42")]
    assert warnings(rows) == [
        ["answer seems cut, it ends with: 'the'"],
        ["answer seems cut, it ends with: ','"],
        [],
        [],
        [],
    ]


def test_an_answer_without_a_full_stop_is_odd_only_where_nearly_all_have_one() -> None:
    closed = [chat(f"Question {n}?", f"This is a long enough answer about number {n}.") for n in range(24)]
    rows = [*closed, chat("Last?", "This is a long enough answer that was probably cut somew")]
    said = warnings(rows)
    assert said == [[]] * 24 + [["answer ends without punctuation, unlike most: 24 of 25 end with it"]]
    casual = [chat(f"Question {n}?", f"this is a long enough answer about number {n} lol") for n in range(24)]
    assert warnings([*casual, *rows[-1:]]) == [[]] * 25


SCHEMA = {
    "type": "object",
    "required": ["total"],
    "properties": {"total": {"type": "number"}, "lines": {"type": "array", "items": {"type": "string"}}},
}


def test_an_answer_in_the_wrong_format_is_refused_and_no_personal_data_quoted() -> None:
    wanted = AnswerFormat(json_schema=SCHEMA)
    rows = [
        chat("One please", '{"total": 3}'),
        chat("Two please", '{"lines": ["x"]}'),
        chat("Three please", '{"total": "jane.doe@acme.com"}'),
        chat("Four please", '{"total": 1, "lines": ["x", 5]}'),
        chat("Five please", "It is jane.doe@acme.com."),
    ]
    schema = "answer misses its format: does not fit its JSON schema at"
    assert verdicts(rows, answer_format=wanted) == [
        [],
        [f"{schema} $: 'total' is a required property"],
        [f"{schema} $.total"],
        [f"{schema} $.lines[1]: 5 is not of type 'string'"],
        ["answer misses its format: is not JSON: Expecting value: line 1 column 1 (char 0)"],
    ]
    rows = [chat("One please", "billing"), chat("Two please", "billing, I think")]
    assert verdicts(rows, answer_format=AnswerFormat(regex="billing|shipping")) == [
        [],
        ["answer misses its format: does not match 'billing|shipping'"],
    ]


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def test_tokens_are_counted_over_the_whole_chat_and_only_where_it_could_matter() -> None:
    counted: list[str] = []

    def count(texts: Any) -> list[int]:
        counted.extend(texts)
        return count_words(texts)

    rows = [chat("Short one"), chat("word " * 12, "answer " * 8)]
    limited = SETTINGS.model_copy(update={"maximum_tokens": 60})
    assert verdicts(rows, limited, count_tokens=count) == [[], []]
    assert counted == ["word " * 12 + "\n" + "answer " * 8]
    limited = SETTINGS.model_copy(update={"maximum_tokens": 19, "minimum_tokens": 8})
    assert verdicts(rows, limited, count_tokens=count) == [["fewer than 8 tokens"], ["more than 19 tokens"]]
    assert verdicts(rows, limited) == [[], []], "nobody counts"
    own = Expectation(expectation="expect_column_values_to_be_between", arguments={"column": "tokens", "max_value": 10})
    (_, reasons) = verdicts(rows, SETTINGS.model_copy(update={"expectations": (own,)}), count_tokens=count)
    assert reasons == ["expect_column_values_to_be_between is not met: column='tokens', max_value=10"]


def test_own_expectations_judge_the_parts_of_a_chat() -> None:
    rows = [
        chat("Where is it?", system="Be kind.", rejected="No idea."),
        chat("Who is it?", "Nobody is it.", "Hi", "Hello"),
    ]
    for column, pattern, missed in (
        ("prompt", "Where", [True, False]),
        ("answer", "Nobody", [False, True]),
        ("system", "kind", [True, False]),
        ("rejected", "No idea", [True, False]),
    ):
        own = Expectation(
            expectation="expect_column_values_to_not_match_regex", arguments={"column": column, "regex": pattern}
        )
        found = verdicts(rows, SETTINGS.model_copy(update={"expectations": (own,)}))
        assert [bool(reasons) for reasons in found] == missed, column
    own = Expectation(expectation="expect_column_values_to_be_between", arguments={"column": "turns", "max_value": 3})
    assert [bool(r) for r in verdicts(rows, SETTINGS.model_copy(update={"expectations": (own,)}))] == [False, True]


def test_another_language_is_refused_and_short_texts_pass() -> None:
    settings = SETTINGS.model_copy(update={"languages": ("en",)})
    rows = [
        chat(),
        chat("Wo bleibt mein Paket, ich warte schon seit drei Wochen?"),
        chat("Say it in German", "Ihr Paket hat gestern unser Lager verlassen."),
        chat("Danke?", "Bitte!!!"),
        chat("How do I get a pin for it?", '{"antwort": "Ihr Paket hat gestern unser Lager verlassen."}'),
    ]
    assert verdicts(rows, settings) == [
        [],
        ["another language: de in the prompt"],
        ["another language: de in the answer"],
        [],
        [],
    ]
    assert verdicts(rows, SETTINGS.model_copy(update={"languages": ("en", "de")})) == [[]] * 5
    with pytest.raises(ConfigError, match="'german' is not recognised; there are af, am, "):
        verdicts(rows, SETTINGS.model_copy(update={"languages": ("german",)}))


MAIL, KEY = "jane.doe@acme.com", "hunter2k"


def full_of_secrets() -> Candidate:
    return chat(
        f"I am {MAIL}, where is it?",
        f"Dear {MAIL}, log in: your password is {KEY} now.",
        system=f"You write to {MAIL}.",
        rejected=f"Ask {MAIL}.",
        context=(f"{MAIL} ordered.", "nothing"),
    )


@pytest.mark.parametrize("handling", ["off", "flag", "quarantine", "mask"])
def test_personal_data_and_secrets_are_handled_as_asked_and_never_quoted(handling: str) -> None:
    settings = SETTINGS.model_copy(update={"personal_data": handling, "secrets": handling})
    (judgement,) = judge(settings, [full_of_secrets()], task="generate")
    said = [*judgement.reasons, *judgement.warnings]
    assert not any(MAIL in words or KEY in words for words in said)
    where = "e-mail address in the system, e-mail address in the prompt, e-mail address in the answer, "
    where += "e-mail address in the rejected answer, e-mail address in the context"
    expected = [f"personal data: {where}", "secret: password in the answer"]
    if handling == "off":
        assert (judgement.reasons, judgement.warnings, judgement.masked) == ([], [], None)
    elif handling == "quarantine":
        assert (judgement.reasons, judgement.warnings, judgement.masked) == (expected, [], None)
    elif handling == "flag":
        assert (judgement.reasons, judgement.warnings, judgement.masked) == ([], expected, None)
    else:
        assert [words.partition(":")[0] for words in judgement.warnings] == ["personal data masked", "secret masked"]
        masked = judgement.masked
        assert masked is not None
        assert MAIL not in repr(masked).replace(masked.group, "")
        assert KEY not in repr(masked)
        assert masked.answer == "Dear [E-MAIL ADDRESS], log in: your password is [PASSWORD] now."
        assert masked.context == ("[E-MAIL ADDRESS] ordered.", "nothing")
        assert masked.rejected == "Ask [E-MAIL ADDRESS]."
        assert masked.text == "I am [E-MAIL ADDRESS], where is it?"


def test_rows_that_masking_makes_equal_are_copies() -> None:
    settings = LabelSettings(url="x", personal_data="mask")
    rows = [
        Candidate(f"Write to {name}@acme.com please", ("mail",), name, False, "train", "human", None, f"a:{name}", None)
        for name in ("ann.lee", "bob.fox")
    ]
    first, second = judge(settings, rows)
    assert first.reasons == []
    assert second.reasons == ["same text and labels as an earlier row: a:ann.lee"]


def test_a_verdict_that_still_holds_is_not_made_again_but_its_relations_are() -> None:
    refused = Judgement(["reviewed: not ours"], [], None)
    accepted = Judgement([], ["personal data: e-mail address in the prompt"], None)
    rows = [
        chat("bell \x07 inside", judged=accepted, at="a:1"),  # released by hand: what was found then is not found again
        chat("Where is it?", judged=refused, at="a:2"),
        chat("Where is it?", at="a:3"),
        chat("bell \x07 inside", judged=accepted, at="a:4"),
    ]
    found = judge(SETTINGS, rows, task="generate")
    assert [judgement.reasons for judgement in found] == [
        [],
        ["reviewed: not ours"],
        [],
        ["same chat as an earlier row: a:1"],
    ]
    assert found[0].warnings == accepted.warnings
    assert refused.reasons == ["reviewed: not ours"]
    assert accepted.reasons == [], "the verdicts that were brought are not written to"
    assert {reason.partition(": ")[0] for reason in found[3].reasons} <= RELATION_KINDS


def test_one_prompt_may_have_several_answers_and_a_persons_beats_a_models() -> None:
    """T20."""
    rows = [
        chat(at="a:1"),
        chat(answer="It arrives tomorrow.", at="a:2"),
        chat(answer="Nobody knows.", origin="model", at="a:3"),
        chat(at="a:4"),
        chat(answer="It is lost.", system="Be rude.", origin="model", at="a:5"),
        chat(answer="It is lost.", context=("lost",), origin="model", at="a:6"),
    ]
    found = judge(SETTINGS, rows, task="generate")
    assert [judgement.reasons for judgement in found] == [
        [],
        [],
        ["same prompt answered by a more trusted origin: human at a:1"],
        ["same chat as an earlier row: a:1"],
        [],
        [],
    ]
    assert [judgement.warnings for judgement in found[:2]] == [
        ["same prompt with another answer: a:2"],
        ["same prompt with another answer: a:1"],
    ]


def test_the_suite_of_chats_depends_on_their_task_and_format() -> None:
    def suite(**more: Any) -> str:
        return suite_fingerprint(SETTINGS.model_copy(update=more.pop("update", {})), **{"task": "generate", **more})

    same = suite()
    assert suite(update={"minimum_per_category": 3, "maximum_drift": 0.3}) == same
    changed = {
        suite(task="classify"),
        suite(answer_format=AnswerFormat(regex="a")),
        suite(answer_format=AnswerFormat(regex="b")),
        *(
            suite(update={name: value})
            for name, value in {
                "personal_data": "off",
                "secrets": "off",
                "near_duplicates": "quarantine",
                "languages": ("en",),
                "phone_countries": ("DE",),
                "minimum_tokens": 2,
                "maximum_tokens": 9,
            }.items()
        ),
    }
    assert len(changed | {same}) == 11
