"""The grammar (GBNF) by which llama.cpp and its kin can only write answers of the wanted format.

Whatever a grammar lets through, ``AnswerFormat.problem`` accepts. Where that cannot be promised there is no grammar,
and the reason is told. llama-cpp-python's own converter of JSON schemas promises nothing of the kind: it passes over
what it does not know (minimum, required properties without a schema), lets control characters into strings, and writes
constants with quotes in them wrong.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pipelines.errors import ExportError
from pipelines.prompt import AnswerFormat
from pipelines.release.llama import llama_library

ANNOTATIONS = frozenset((
    "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "format",
    "deprecated", "readOnly", "writeOnly",
))  # fmt: skip
"""Keywords that say nothing about which values are valid."""

KEYWORDS: Mapping[str, frozenset[str]] = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "minItems", "maxItems")),
    "string": frozenset(("minLength", "maxLength", "pattern")),
    "number": frozenset(),
    "integer": frozenset(("minimum", "maximum")),
    "boolean": frozenset(),
    "null": frozenset(),
}
"""What a grammar can enforce beside a type."""

MOST_REPEATS = 2000
"""llama.cpp refuses more."""

MOST_RANGES = 96
"""Of a character class: each character that a model might write is held against all of them."""

MOST_NUMBERS = 256
"""Between a minimum and a maximum: each is written out."""

PRIMITIVES = {
    "space": r'( " " | "\n" [ \t]{0,20} )?',
    "char": r'[^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" ([0-9a-cefA-CEF] [0-9a-fA-F] | [dD] [0-7]) [0-9a-fA-F]{2})',
    "string": r'"\"" char* "\""',
    "integer": r'"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": r'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": r'"true" | "false"',
    "null": r'"null"',
    "value": "object | array | string | number | boolean | null",
    "object": r'"{" space (string ":" space value ("," space string ":" space value)* space)? "}"',
    "array": r'"[" space (value ("," space value)* space)? "]"',
}


def grammar(answer_format: AnswerFormat) -> str:
    """The grammar of ``answer_format``, which llama.cpp has parsed.

    Raises:
        ExportError: it has no grammar that lets nothing else through, with the reason.
    """
    if answer_format.regex is not None:
        said, rules = f"Answers that match {answer_format.regex!r}.", f"root ::= {_Regex(answer_format.regex).whole()}"
    else:
        said, rules = "JSON as answer.schema.json describes it.", _Schema(answer_format.json_schema or {}).rules()
    text = f"# {said}\n{rules}\n"
    llama = llama_library()
    sampler = llama.llama_sampler_init_grammar(None, text.encode(), b"root")
    if not sampler:
        raise ExportError(f"llama.cpp does not take the grammar of the answer format: {said}")
    llama.llama_sampler_free(sampler)
    return text


def answer_schema(answer_format: AnswerFormat) -> dict[str, Any]:
    """The JSON schema of an answer; where it is no JSON, of its text as a string."""
    if answer_format.regex is None:
        return dict(answer_format.json_schema or {})
    return {
        "$comment": "An answer is no JSON: this is about its text.",
        "type": "string",
        "pattern": f"^(?:{answer_format.regex})$",
    }


class _Schema:
    """A JSON schema as rules of GBNF.

    Properties are written in the schema's order, and none beside them. Taken: ``type``, ``enum``, ``const``, ``anyOf``,
    ``$ref`` within the schema, and ``KEYWORDS``.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.schema = schema
        self.found: dict[str, str] = {}
        self.names: dict[str, str] = {}

    def rules(self) -> str:
        """All of them, ``root`` first."""
        root = self._value(self.schema, "$")
        text = "\n".join(f"{name} ::= {rule}" for name, rule in {"root": root, **self.found}.items())
        return "\n".join([text, *(f"{name} ::= {rule}" for name, rule in PRIMITIVES.items())])

    def _value(self, schema: Any, where: str) -> str:
        """What may be written for ``schema``, as one item of a sequence."""
        if schema is True:
            return "value"
        if not isinstance(schema, Mapping):
            raise ExportError(f"json_schema allows no value at {where}")
        said = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
        if "$ref" in said:
            self._only(said, {"$ref"}, where)
            return self._referred(said["$ref"])
        if "enum" in said or "const" in said:
            self._only(said, {"enum", "const", "type"}, where)
            values = [value for value in said.get("enum", [said.get("const")]) if _fits(value, said)]
            if not values:
                raise ExportError(f"json_schema allows no value at {where}")
            return f"({' | '.join(_literal(json.dumps(value, ensure_ascii=False)) for value in values)})"
        if "anyOf" in said:
            self._only(said, {"anyOf"}, where)
            options = [self._value(one, f"{where}.anyOf[{place}]") for place, one in enumerate(said["anyOf"])]
            return f"({' | '.join(options)})"
        kind = said.pop("type", "object" if "properties" in said else None)
        if isinstance(kind, list):
            self._only(said, set(), where)
            return f"({' | '.join(self._value({'type': one}, where) for one in kind)})"
        self._only(said, KEYWORDS.get(kind or "", frozenset()), where)
        if kind == "object" and said.keys() - {"additionalProperties"}:
            return self._object(said, where)
        if kind == "object" and said.get("additionalProperties") is False:
            return '"{" space "}"'
        if kind == "object" and said:
            item = f'string ":" space {self._value(said["additionalProperties"], where)}'
            return self._repeated("{", item, "}", {}, where)
        if kind == "array" and said:
            return self._repeated("[", self._value(said.get("items", True), f"{where}[]"), "]", said, where)
        if kind == "string" and said:
            return _string(said, where)
        if kind == "integer" and said:
            return _numbers(said, where)
        return kind or "value"

    def _only(self, said: Mapping[str, Any], allowed: frozenset[str] | set[str], where: str) -> None:
        more = sorted(said.keys() - allowed)
        if more:
            raise ExportError(f"json_schema says {', '.join(more)} at {where}, which no grammar here can enforce")

    def _referred(self, reference: str) -> str:
        if reference not in self.names:
            found: Any = self.schema if reference.startswith("#") else None
            for part in reference.removeprefix("#").split("/")[1:]:
                found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
            if found is None:
                raise ExportError(f"json_schema refers to {reference!r}, which is not in it")
            name = self.names[reference] = f"ref-{len(self.names)}"
            self.found[name] = self._value(found, reference)
        return self.names[reference]

    def _object(self, said: Mapping[str, Any], where: str) -> str:
        properties, required = said.get("properties", {}), set(said.get("required", ()))
        lacking = sorted(required - properties.keys())
        if lacking:
            raise ExportError(f"json_schema requires {', '.join(lacking)} at {where} without saying what that is")
        # From the last to the first: what may follow, behind another property or as the first one.
        behind = first = '""'
        for name, schema in reversed(properties.items()):
            if schema is False and name not in required:
                continue
            key = _literal(json.dumps(name, ensure_ascii=False))
            member = f'{key} ":" space {self._value(schema, f"{where}.{name}")}'
            with_it = self._rule(f"{member} {behind}")
            if name in required:
                behind, first = f'"," space {with_it}', with_it
            else:
                behind, first = f'("," space {with_it} | {self._rule(behind)})', f"({with_it} | {self._rule(first)})"
        return f'"{{" space {first} space "}}"'

    def _rule(self, text: str) -> str:
        if re.fullmatch(r'[\w-]+|""', text):
            return text
        name = f"part-{len(self.found)}"
        self.found[name] = text
        return name

    def _repeated(self, opening: str, item: str, closing: str, said: Mapping[str, Any], where: str) -> str:
        least, most = _bounds(said, "Items", where)
        if most == 0:
            return f'"{opening}" space "{closing}"'
        more = f'("," space {item}){{{max(0, least - 1)},{"" if most is None else most - 1}}}'
        inside = f"{item} {more} space"
        return f'"{opening}" space {inside if least else f"({inside})?"} "{closing}"'


def _string(said: Mapping[str, Any], where: str) -> str:
    if "pattern" in said:
        if len(said) > 1:
            raise ExportError(f"json_schema says a pattern and a length at {where}, which no grammar here can enforce")
        return f'"\\"" {_Regex(said["pattern"]).within_json()} "\\""'
    least, most = _bounds(said, "Length", where)
    return f'"\\"" char{{{least},{"" if most is None else most}}} "\\""'


def _bounds(said: Mapping[str, Any], what: str, where: str) -> tuple[int, int | None]:
    """The least and the most; llama.cpp takes memory without end where the most is below the least."""
    least, most = int(said.get(f"min{what}", 0)), said.get(f"max{what}")
    if max(least, int(most or 0)) > MOST_REPEATS:
        raise ExportError(f"json_schema says min{what} or max{what} above {MOST_REPEATS} at {where}")
    if most is not None and most < least:
        raise ExportError(f"json_schema allows no value at {where}: min{what} {least}, max{what} {most}")
    return least, None if most is None else int(most)


def _numbers(said: Mapping[str, Any], where: str) -> str:
    least, most = said.get("minimum"), said.get("maximum")
    if least is None or most is None or not 0 <= most - least < MOST_NUMBERS:
        raise ExportError(
            f"json_schema says {', '.join(sorted(said))} at {where}; a grammar needs both minimum and maximum, at most "
            f"{MOST_NUMBERS} integers apart"
        )
    numbers = [number for number in range(int(least) - 1, int(most) + 2) if least <= number <= most]
    if not numbers:
        raise ExportError(f"json_schema allows no value at {where}: no integer is from {least} to {most}")
    return f"({' | '.join(_literal(str(number)) for number in numbers)})"


def _literal(text: str) -> str:
    written = (c if 32 <= ord(c) < 127 and c not in '"\\' else _code(ord(c)) for c in text)
    return f'"{"".join(written)}"'


def _fits(value: Any, said: Mapping[str, Any]) -> bool:
    from jsonschema import Draft202012Validator

    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:  # not a number, or half a surrogate pair: no JSON in UTF-8 holds it
        return False
    return bool(Draft202012Validator(dict(said)).is_valid(value))


Ranges = tuple[tuple[int, int], ...]
"""Code points, first and last, in order and apart from each other."""

JSON_ONLY_ESCAPED: Ranges = ((0, 31), (34, 34), (92, 92))
"""Characters that a JSON string cannot hold as they are."""


@cache
def _class(escape: str) -> Ranges:
    r"""The characters that re matches by ``\s``, ``\w`` or ``\d``."""
    pattern = re.compile(escape)
    return _joined([(code, code) for code in range(sys.maxunicode + 1) if pattern.match(chr(code))])


def _joined(ranges: Sequence[tuple[int, int]]) -> Ranges:
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return tuple(found)


def _others(ranges: Ranges) -> Ranges:
    """All other characters, those aside that no text in UTF-8 holds or no grammar can name."""
    found, at = [], 1
    for first, last in _joined([*ranges, (0xD800, 0xDFFF)]):
        if at < first:
            found.append((at, first - 1))
        at = max(at, last + 1)
    return tuple([*found, (at, sys.maxunicode)] if at <= sys.maxunicode else found)


class _Regex:
    r"""A regular expression of Python as an item of GBNF, read once from left to right.

    Taken: characters, escapes of them (``\n``, ``\t``, ``\x41``, ``\u00e9``, ``\.``), ``.``, classes, ``\d``, ``\w``,
    ``\s`` and their opposites, groups (named or not, capturing or not), ``|``, ``*``, ``+``, ``?`` and ``{2,5}``, lazy
    ones too, ``^`` at the start and ``$`` at the end. Not taken: looking ahead or back, references to groups, ``\b``,
    flags, possessive repeats. ``\d`` is 0 to 9 here, and large classes such as ``\w`` leave rarer scripts out.
    """

    def __init__(self, pattern: str) -> None:
        self.said, self.pattern, self.at = pattern, pattern.removeprefix("^"), 0
        escapes = len(self.pattern[:-1]) - len(self.pattern[:-1].rstrip("\\"))
        if self.pattern.endswith("$") and escapes % 2 == 0:
            self.pattern = self.pattern[:-1]
        self.left_out: Ranges = ()

    def whole(self) -> str:
        r"""For an answer that is nothing else.

        Refused where it may begin or end with space, which is taken off an answer before it is checked.
        """
        text, first, last = self._read()
        for edge, name in ((first, "begin"), (last, "end")):
            if _overlap(edge, _class(r"\s")):
                raise ExportError(
                    f"regex {self.said!r} has no grammar: a match may {name} with space, which is taken off an answer "
                    r"before it is checked; write \S there"
                )
        return text

    def within_json(self) -> str:
        """For the inside of a JSON string, without characters that have to be escaped there."""
        self.left_out = JSON_ONLY_ESCAPED
        return self._read()[0]

    def _read(self) -> tuple[str, Ranges, Ranges]:
        text, _, first, last = self._choice()
        if self.at < len(self.pattern):
            raise self._problem("a parenthesis that was never opened")
        return f"({text})", first, last

    def _problem(self, what: str) -> ExportError:
        return ExportError(f"regex {self.said!r} has no grammar: {what} at {self.pattern[self.at :][:12]!r}")

    def _next(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _choice(self) -> tuple[str, bool, Ranges, Ranges]:
        """Alternatives up to a closing parenthesis: in GBNF, whether one is empty, what they begin and end with."""
        options = [self._sequence()]
        while self._next() == "|":
            self.at += 1
            options.append(self._sequence())
        texts, empty, firsts, lasts = zip(*options, strict=True)
        return " | ".join(texts), any(empty), _joined(sum(firsts, ())), _joined(sum(lasts, ()))

    def _sequence(self) -> tuple[str, bool, Ranges, Ranges]:
        texts: list[str] = []
        empty = True
        first: Ranges = ()
        last: Ranges = ()
        while self._next() not in ("", "|", ")"):
            text, nothing, begins, ends = self._repeated()
            texts.append(text)
            first = _joined([*first, *begins]) if empty else first
            last = _joined([*last, *ends]) if nothing else ends
            empty = empty and nothing
        return " ".join(texts) or '""', empty, first, last

    def _repeated(self) -> tuple[str, bool, Ranges, Ranges]:
        text, nothing, first, last = self._one()
        braces = re.compile(r"\{(\d*)(,?)(\d*)\}").match(self.pattern, self.at)
        if self._next() in ("*", "+", "?") and self._next():
            sign = self._next()
            self.at += 1
            text, nothing = f"{text}{sign}", nothing or sign != "+"
        elif braces and braces[0] != "{}":
            least, most = int(braces[1] or 0), braces[3] if braces[2] else braces[1]
            if max(least, int(most or 0)) > MOST_REPEATS:
                raise self._problem(f"more than {MOST_REPEATS} repeats")
            self.at = braces.end()
            text, nothing = f"{text}{{{least},{most}}}", nothing or not least
        else:
            return text, nothing, first, last
        if self._next() == "?":
            self.at += 1
        if self._next() and (self._next() in "*+?" or re.compile(r"\{\d").match(self.pattern, self.at)):
            raise self._problem("a possessive or doubled repeat")
        return text, nothing, first, last

    def _one(self) -> tuple[str, bool, Ranges, Ranges]:
        """A group or a character."""
        sign = self._next()
        if sign == "(":
            opened = re.compile(r"\((?:\?:|\?P<\w+>|(?!\?))").match(self.pattern, self.at)
            if opened is None:
                raise self._problem("a group that is more than a group")
            self.at = opened.end()
            text, nothing, first, last = self._choice()
            if self._next() != ")":
                raise self._problem("a parenthesis that is never closed")
            self.at += 1
            return f"({text})", nothing, first, last
        if sign in "^$*+?":
            raise self._problem(f"{sign!r} in this place")
        ranges = self._set() if sign == "[" else self._dot() if sign == "." else self._character()
        ranges = _others(_joined([*_others(ranges), *self.left_out]))
        if not ranges:
            raise self._problem("nothing that may be written before")
        return _written(ranges), False, ranges, ranges

    def _dot(self) -> Ranges:
        self.at += 1
        return _others(((10, 10),))

    def _character(self) -> Ranges:
        sign = self._next()
        if sign != "\\":
            self.at += 1
            return ((ord(sign), ord(sign)),)
        found = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL).match(
            self.pattern, self.at
        )
        letter = found[4] if found else None
        if found and letter is None:
            code = int(found[1] or found[2] or found[3], 16)
        elif letter and letter in "ntrfv":
            code = ord({"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}[letter])
        elif found and letter and letter in "dDsSwW":
            self.at = found.end()
            ranges = _class(f"\\{letter.lower()}")
            return ranges if letter.islower() else _others(ranges)
        elif letter and not (letter.isascii() and letter.isalnum()):
            code = ord(letter)
        else:
            raise self._problem("an escape that is no character")
        assert found is not None  # noqa: S101 - the branches above say so
        self.at = found.end()
        return ((code, code),)

    def _set(self) -> Ranges:
        self.at += 1
        opposite = self._next() == "^"
        self.at += opposite
        ranges: list[tuple[int, int]] = []
        start = self.at
        while self._next() != "]" or self.at == start:
            if not self._next():
                raise self._problem("a class that is never closed")
            one = self._character()
            after = self.pattern[self.at + 1 : self.at + 2]
            if len(one) == 1 and one[0][0] == one[0][1] and self._next() == "-" and after not in ("]", ""):
                self.at += 1
                until = self._character()
                if len(until) > 1 or until[0][0] < one[0][0]:
                    raise self._problem("a range of a class that is none")
                one = ((one[0][0], until[0][1]),)
            ranges += one
        self.at += 1
        joined = _joined(ranges)
        return _others(joined) if opposite else joined


def _overlap(one: Ranges, other: Ranges) -> bool:
    return any(first <= last_ and first_ <= last for first, last in one for first_, last_ in other)


def _written(ranges: Ranges) -> str:
    """A class in GBNF: of all the world's digits ours, of very many ranges Latin ones and the largest."""
    if ranges == _class(r"\d"):
        ranges = ((48, 57),)
    if len(ranges) > MOST_RANGES:
        latin = [one for one in ranges if one[0] < 0x250]
        largest = sorted(ranges, key=lambda one: (one[0] - one[1], one))[: MOST_RANGES - len(latin)]
        ranges = tuple(sorted({*latin, *largest}))
    parts = (_code(first) + (f"-{_code(last)}" if last > first else "") for first, last in ranges)
    return f"[{''.join(parts)}]"


def _code(code: int) -> str:
    if code < 128 and chr(code).isalnum():
        return chr(code)
    return f"\\x{code:02X}" if code < 256 else f"\\u{code:04X}" if code < 1 << 16 else f"\\U{code:08X}"
