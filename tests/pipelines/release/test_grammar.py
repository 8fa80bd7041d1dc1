"""Grammars of answer formats, held against llama.cpp's own: it reads them, and says byte for byte what they let
through."""

from __future__ import annotations

import ctypes
import json
import math
import random
import re
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from pipelines.errors import ExportError
from pipelines.prompt import AnswerFormat
from pipelines.release import grammar as module
from pipelines.release.grammar import answer_schema, grammar
from pipelines.release.llama import load_llama

if TYPE_CHECKING:
    from collections.abc import Iterator

LABELS = (
    "yes", "yes, but", 'says "no"', "'", "back\\slash", "C:\\new", "two\nlines", "tab\t", "🦙", "é", "한국어",
    "e\u0301", "", " spaced ", "[a-z]*", "::= |", "# none", "</s>", "<0x41>", "\u2028", "\x7f", "{{ x }}",
)  # fmt: skip
"""Quotes, backslashes, newlines, scripts, what means something in a grammar, and one that begins another."""

CHARACTERS = "éßſ°٣०Ω日🦙\u00a0\u0085\u2028\u3000\u0301\ud7ff\ue000\U0010ffff"


class Grammar:
    """llama.cpp's grammar over a vocabulary of all bytes, and of some characters whole."""

    def __init__(self, text: str, vocabulary: tuple[Any, Any]) -> None:
        self.text, (self.llama, self.vocabulary) = text, vocabulary

    def accepts(self, text: str) -> bool:
        """Whether a model may write ``text``, and end there."""
        return self.end in self._after([byte + 3 for byte in text.encode()], [self.end])

    def begins(self, text: str) -> bool:
        """Whether a model may write ``text``, and go on."""
        *before, last = [byte + 3 for byte in text.encode()]
        return last in self._after(before, [last])

    def written(self, rng: random.Random) -> str:
        """What a model might write that chooses by chance, and ends soon."""
        tokens = [*range(3 + 1, 3 + 128), *range(259, 259 + len(CHARACTERS))]
        text = ""
        with self._sampler() as sampler:
            while len(text) < 400:
                allowed = self._allowed(sampler, [self.end, *tokens])
                assert allowed, f"nothing may follow {text!r}"
                if allowed == [self.end] or (self.end in allowed and rng.random() < 0.3):
                    return text
                # Rather what closes something: else objects within objects never end.
                closing = [token for token in allowed if token - 3 in map(ord, '"]}')]
                token = rng.choice(closing if closing and rng.random() < 0.4 else allowed[self.end in allowed :])
                self.llama.llama_sampler_accept(sampler, token)
                text += chr(token - 3) if token < 259 else CHARACTERS[token - 259]
        return self.written(rng)

    end = 2

    @contextmanager
    def _sampler(self) -> Iterator[Any]:
        sampler = self.llama.llama_sampler_init_grammar(self.vocabulary, self.text.encode(), b"root")
        assert sampler, self.text
        try:
            yield sampler
        finally:
            self.llama.llama_sampler_free(sampler)

    def _after(self, before: Sequence[int], tokens: Sequence[int]) -> list[int]:
        with self._sampler() as sampler:
            for token in before:
                if not self._allowed(sampler, [token]):
                    return []
                self.llama.llama_sampler_accept(sampler, token)
            return self._allowed(sampler, tokens)

    def _allowed(self, sampler: Any, tokens: Sequence[int]) -> list[int]:
        llama = self.llama
        data = (llama.llama_token_data * len(tokens))(*(llama.llama_token_data(token, 1.0, 0.0) for token in tokens))
        array = llama.llama_token_data_array(data, len(tokens), -1, False)
        llama.llama_sampler_apply(sampler, ctypes.byref(array))
        return [one.id for one in data if one.logit > -math.inf]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """A real vocabulary of llama.cpp's, and its bindings: 0 to 2 are special, then come bytes, then ``CHARACTERS``."""
    import gguf

    path = tmp_path_factory.mktemp("vocabulary") / "bytes.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *CHARACTERS]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, *[kinds.NORMAL] * len(CHARACTERS)]
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(Grammar.end)
    writer.add_unk_token_id(0)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()

    class Owner:
        """Frees the model when it goes."""

    owner = Owner()
    llama, model = load_llama(owner, path, vocab_only=True)
    yield llama, llama.llama_model_get_vocab(model)
    del owner


def of(vocabulary: tuple[Any, Any], **answer_format: Any) -> tuple[Grammar, AnswerFormat]:
    wanted = AnswerFormat(**answer_format)
    return Grammar(grammar(wanted), vocabulary), wanted


def as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def test_of_a_set_of_labels_each_one_can_be_written_and_nothing_else(vocabulary: tuple[Any, Any]) -> None:
    found, wanted = of(vocabulary, json_schema={"enum": list(LABELS)})
    for label in LABELS:
        assert wanted.problem(as_json(label)) is None
        assert found.accepts(as_json(label)), label
        assert found.text.isascii()
        if label:
            assert not found.accepts(as_json(label + label[-1]))
            assert not found.accepts(as_json(label)[:-1])
            assert not found.accepts(label)
    for other in ("", '"', '"no"', '"yes,"', '"says "no""', '"back\\slash"', '"two\nlines"', '"yes" ', "null"):
        assert not found.accepts(other), other
    assert found.begins('"yes')
    assert found.begins('"yes,')


def test_labels_that_are_no_json_can_be_a_regex(vocabulary: tuple[Any, Any]) -> None:
    labels = [label for label in LABELS if label == label.strip() and label]
    found, wanted = of(vocabulary, regex="|".join(map(re.escape, labels)))
    for label in labels:
        assert wanted.problem(label) is None
        assert found.accepts(label), label
        assert not found.accepts(label + "x")
        assert not found.accepts(as_json(label))
    assert not found.accepts("")
    with pytest.raises(ExportError, match="a match may begin with space"):
        grammar(AnswerFormat(regex=re.escape(" spaced")))


TICKET = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Ticket",
    "type": "object",
    "properties": {
        "queue": {"enum": ["billing", 'the "other" one', "back\\slash"]},
        "note": {"type": "string", "maxLength": 3},
        "urgency": {"type": "integer", "minimum": -1, "maximum": 12},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 2},
        'a"key\\🦙': {"type": ["null", "boolean"]},
    },
    "required": ["queue", "tags"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "pattern": "^[a-z]{2,3}-\\d$"}},
}
TREE = {
    "type": "object",
    "properties": {"is": {"const": "leaf"}, "has": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
    "required": ["is"],
}
SCHEMAS: tuple[dict[str, Any], ...] = (
    {},
    TICKET,
    TREE,
    {"anyOf": [{"type": "number"}, {"type": "array", "minItems": 2}, {"const": {"a": ["é", None, 1.5]}}]},
    {"type": "object", "additionalProperties": {"type": "string", "minLength": 1, "maxLength": 2}},
    {"type": "object", "properties": {"a": True, "b": False, "c": {"type": "integer"}}, "required": ["c"]},
    {"type": "object", "additionalProperties": False},
    {"type": "string", "pattern": "[^a]|\\w\\s."},
    {"type": "array", "maxItems": 0},
    {"type": "integer", "enum": [1, "x", 2.0, True, None]},
)
REGEXES = (
    r"^[A-Z]{2}-\d{3,5}$",
    r"(?:yes|no)(?:, because \S(?:.*\S)?)?",
    r"(?P<one>[^\s\]^-]+?)(\.(\w)){,2}",
    r"\x41\u00e9\U0001F999\.\\\"\[\]",
    r"[]^a-c\\-]{1,4}|",
    r"[\d.]+\S|[^\w\s]\D?\S",
)


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_whatever_a_grammar_of_a_schema_lets_through_fits_the_schema(
    vocabulary: tuple[Any, Any], schema: dict[str, Any]
) -> None:
    found, wanted = of(vocabulary, json_schema=schema)
    rng = random.Random(5)
    for _ in range(25):
        answer = found.written(rng)
        assert wanted.problem(answer) is None, answer
        assert found.accepts(answer)


@pytest.mark.parametrize("regex", REGEXES)
def test_whatever_a_grammar_of_a_regex_lets_through_matches_it(vocabulary: tuple[Any, Any], regex: str) -> None:
    found, wanted = of(vocabulary, regex=regex)
    rng = random.Random(5)
    answers = {found.written(rng) for _ in range(40)}
    assert {answer: wanted.problem(answer) for answer in answers} == dict.fromkeys(answers)
    assert len(answers) > 1 or "\\x41" in regex


def test_the_answers_that_a_schema_means_can_be_written_as_models_write_json(vocabulary: tuple[Any, Any]) -> None:
    full = {"queue": 'the "other" one', "note": 'ü"\n', "urgency": -1, "tags": ["ab-1", "abc-9"], 'a"key\\🦙': None}
    found, wanted = of(vocabulary, json_schema=TICKET)
    for left_out in ((), ("note",), ("urgency", "note"), ('a"key\\🦙', "urgency", "note")):
        answer = {key: value for key, value in full.items() if key not in left_out}
        for text in (as_json(answer), json.dumps(answer, ensure_ascii=False, separators=(",", ":"))):
            assert wanted.problem(text) is None
            assert found.accepts(text), text
    for key, value in {
        "queue": "another", "note": "four", "urgency": 13, "tags": [], 'a"key\\🦙': 0, "more": 1,
    }.items():  # fmt: skip
        assert wanted.problem(as_json(full | {key: value}))
        assert not found.accepts(as_json(full | {key: value})), key
    for required in ("queue", "tags"):
        assert not found.accepts(as_json({key: value for key, value in full.items() if key != required}))
    tree, _ = of(vocabulary, json_schema=TREE)
    assert tree.accepts('{"is": "leaf", "has": [{"is": "leaf"}, {"is": "leaf", "has": []}]}')
    assert tree.accepts('{\n  "is": "leaf",\n  "has": [\n    {\n      "is": "leaf"\n    }\n  ]\n}')
    assert not tree.accepts('{"is": "leaf", "has": [{}]}')


def test_text_of_any_script_can_be_written_where_the_regex_says_so(vocabulary: tuple[Any, Any]) -> None:
    found, _ = of(vocabulary, regex=r'"\S.*\S"')
    for text in ("äöü", "日本語です", "🦙 👩🏽‍💻 ok", 'a "b" \\ c'):
        assert found.accepts(f'"{text}"'), text
    assert not found.accepts('"two\nlines"')
    digits, _ = of(vocabulary, regex=r"\d{1,3}")
    assert [digits.accepts(text) for text in ("7", "123", "1234", "٣", "")] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("answer_format", "said"),
    [
        ({"regex": r"a(?=b)b"}, "a group that is more than a group"),
        ({"regex": r"(a)\1"}, "an escape that is no character"),
        ({"regex": r"\bword"}, "an escape that is no character"),
        ({"regex": r"(?i)word"}, "a group that is more than a group"),
        ({"regex": r"a*+b"}, "a possessive or doubled repeat"),
        ({"regex": r"(^a)"}, r"'\^' in this place"),
        ({"regex": r"a{2001}"}, "more than 2000 repeats"),
        ({"regex": r".*"}, "a match may begin with space"),
        ({"regex": r"a.?"}, "a match may end with space"),
        ({"json_schema": {"type": "object", "minProperties": 1}}, r"minProperties at \$"),
        ({"json_schema": {"properties": {"a": {"minimum": 0}}}}, r"minimum at \$\.a"),
        ({"json_schema": {"type": "integer", "minimum": 0}}, "both minimum and maximum"),
        ({"json_schema": {"type": "integer", "minimum": 0, "maximum": 256}}, "at most 256 integers apart"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, r"uniqueItems at \$"),
        ({"json_schema": {"type": "object", "required": ["a"]}}, "requires a at"),
        ({"json_schema": {"type": "string", "pattern": "a", "maxLength": 3}}, "a pattern and a length"),
        ({"json_schema": {"type": "string", "pattern": "a\"b"}}, "nothing that may be written"),
        ({"json_schema": {"type": "string", "maxLength": 2001}}, "maxLength above 2000"),
        ({"json_schema": {"$ref": "https://example.org/x"}}, "which is not in it"),
        ({"json_schema": {"allOf": [{"type": "string"}]}}, "says allOf"),
        # What no answer fits: llama.cpp would take the machine's memory, or let something else through.
        ({"json_schema": {"type": "string", "minLength": 3, "maxLength": 2}}, r"allows no value at \$"),
        ({"json_schema": {"type": "array", "minItems": 3, "maxItems": 2}}, r"allows no value at \$"),
        ({"json_schema": {"type": "array", "minItems": 1, "maxItems": 0}}, r"allows no value at \$"),
        ({"json_schema": {"type": "integer", "minimum": 1.2, "maximum": 1.8}}, r"allows no value at \$"),
        ({"json_schema": {"enum": [math.nan]}}, r"allows no value at \$"),
        ({"json_schema": {"const": math.inf}}, r"allows no value at \$"),
        ({"json_schema": {"enum": ["\ud800"]}}, r"allows no value at \$"),
        ({"json_schema": {"enum": ["a"], "type": "integer"}}, r"allows no value at \$"),
        ({"json_schema": {"type": "array", "items": False}}, r"allows no value at \$\[\]"),
    ],
)  # fmt: skip
def test_what_no_grammar_can_promise_is_refused_before_llama_cpp_sees_it(
    answer_format: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> None:
        raise AssertionError("llama.cpp was asked")

    monkeypatch.setattr(module, "llama_library", never)
    with pytest.raises(ExportError, match=said):
        grammar(AnswerFormat(**answer_format))


@pytest.mark.parametrize(
    "answer_format",
    [
        {"json_schema": {"$ref": "#"}},
        {"json_schema": {"type": "array", "maxItems": 2000, "items": {"type": "string", "maxLength": 2000}}},
    ],
)
def test_what_llama_cpp_does_not_take_is_refused(answer_format: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match=r"llama\.cpp does not take the grammar"):
        grammar(AnswerFormat(**answer_format))


def test_the_schema_beside_a_grammar_means_the_same() -> None:
    assert answer_schema(AnswerFormat(json_schema=TICKET)) == TICKET
    wanted = AnswerFormat(regex=r"a\|b|c")
    schema = answer_schema(wanted)
    Draft202012Validator.check_schema(schema)
    for text in ("a|b", "c", "a", "cc", "a|bc", ""):
        assert Draft202012Validator(schema).is_valid(text) == (wanted.problem(text) is None), text


def test_equal_formats_have_equal_grammars_on_one_line_of_comment() -> None:
    """A published version is reproducible, and no text of a format can leave the comment."""
    for wanted in (AnswerFormat(json_schema=TICKET), AnswerFormat(regex="a\nroot ::= b|x\u2028c")):
        text = grammar(wanted)
        assert text == grammar(wanted.model_copy(deep=True))
        lines = text.splitlines()
        assert lines[0].startswith("# ")
        assert [line for line in lines if line.startswith("root ::= ")] == lines[1:2]
