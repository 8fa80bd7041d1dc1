"""The chat template trained with as a Go template, which is what Ollama renders prompts by.

Nothing is guessed from a model's name: a chat of marked turns goes through the Jinja template, what it puts between the
turns becomes the Go template, and chats of all shapes must then come out the same from both. A template that does not
write its turns in order, each once, always with the same text between them, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import ExportError
from pipelines.prompt import Message, Role

Render = Callable[[Sequence[Message], bool], str]
"""A chat and whether the answer's beginning is written behind it, to the prompt; raises what it likes."""

CONTENTS = (
    "Is it 10 or 12?",
    "two\nlines\n\nand a gap",
    '{{ .System }} {% if x %}{{ "}}" }} {- -} {',
    'quotes: """ \' " \\n \\" `x`',
    "# Überschrift, 한국어, 🦙 and \u200b\u00a0what cannot be seen",
    "0",
    "<b>&amp;</b> $1 %s | tojson",
)
"""What the turns of the chats say on which both templates are compared."""

REASONING = tuple(
    f"{begins}\nIt is {number}.\n{ends}\n\nThen {number}."
    for number, (begins, ends) in enumerate(
        (
            ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"),
            ("<reasoning>", "</reasoning>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"),
            ("<|channel>thought", "<channel|>"), ("<|begin_of_thought|>", "<|end_of_thought|>"),
        )
    )
)  # fmt: skip
"""Turns that begin with reasoning, as families of models mark it: many templates take it out of earlier answers."""

SPACED = "\n  space around it \n"


@dataclass(frozen=True, slots=True)
class GoTemplate:
    """A proved equivalent of a chat template, for prompts that end with the user's turn."""

    text: str
    system: str
    """What ``.System`` has to be for the system text that was given; without the space around it where that is lost."""
    keeps_space: bool
    """Whether space around a turn's text stays; where the original takes it away, a Go template cannot."""
    keeps_reasoning: bool
    """Whether reasoning in a turn stays; where the original takes it out, a Go template cannot."""
    takes_system: bool
    """Whether a chat may have a system turn."""
    chats: int
    """How many it was proved on."""


def go_template(render: Render, *, bos: str | None, system: str = "", own_system: bool = False) -> GoTemplate:
    """The Go template that makes the prompts that ``render`` makes.

    Args:
        render: the original template.
        bos: text that readers of the GGUF file put before every prompt themselves; None where they put nothing.
        system: what chats of the use case begin with.
        own_system: write ``system`` into the template, for chats that bring none: for a text that no SYSTEM line of a
            Modelfile can hold.

    Raises:
        ExportError: Ollama cannot render these prompts, with the reason.
    """
    x = _between(render, "uauau")
    if (x[1], x[2]) != (x[3], x[4]):
        raise ExportError("the chat template puts other text around later turns than around the first ones")
    if _between(render, "u") != [x[0], x[5]]:
        raise ExportError("the chat template puts other text around a single turn than around several")
    try:
        z = _between(render, "suauau")
    except ExportError:
        if system:
            raise
        z = []
    if z and z[2:] != x[1:]:
        raise ExportError("the chat template puts other text around turns that follow a system text")
    before_user, after_user, before_answer, after_answer, end = _split(render, x, z, bos or "")
    begin, opened, closed = x[0].removesuffix(before_user), "", ""
    if z:
        opened, closed = z[0], z[1].removesuffix(before_user)
    if bos is not None:  # Ollama puts it there as the file says, whatever the prompt begins with
        if not bos or not begin.startswith(bos) or (z and not opened.startswith(bos)):
            raise ExportError(
                f"readers of the GGUF file put {bos!r} before every prompt, and the chat template does not: Ollama "
                "would show the model another beginning than it was trained with"
            )
        begin, opened = begin.removeprefix(bos), opened.removeprefix(bos)

    def prompts(chat: Sequence[Message], text: str) -> tuple[str, str]:
        return _rendered(render, chat, generate=True), (bos or "") + evaluate(text, chat)

    turns = (
        f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{_literal(before_user)}{{{{ .Content }}}}'
        f'{_literal(after_user)}{{{{ else if eq .Role "assistant" }}}}{_literal(before_answer)}{{{{ .Content }}}}'
        f"{_literal(after_answer)}{{{{ end }}}}{{{{ end }}}}{_literal(end)}"
    )
    text = _head(opened, closed, _literal(begin), takes_system=bool(z)) + turns
    chats = list(_chats(CONTENTS, with_system=bool(z)))
    for chat in chats:
        _same(*prompts(chat, text))
    thought = list(_chats(REASONING, with_system=bool(z)))
    kept = all(wanted == found for wanted, found in (prompts(chat, text) for chat in thought))
    wanted, found = prompts([Message(message.role, SPACED) for message in max(chats, key=len)], text)
    keeps_space = wanted == found
    if system:
        asked = Message("user", CONTENTS[0])
        wanted = _rendered(render, [Message("system", system), asked], generate=True)
        if wanted != prompts([Message("system", system), asked], text)[1]:
            system = system.strip()
        if own_system:
            inside = _literal(opened) + _literal(system) + _literal(closed)
            text = _head(opened, closed, inside, takes_system=True) + turns
            _same(wanted, prompts([asked], text)[1])
        _same(wanted, prompts([Message("system", system), asked], text)[1])
    return GoTemplate(text, system, keeps_space, kept, bool(z), len(chats) + (len(thought) if kept else 0))


def evaluate(template: str, messages: Sequence[Message]) -> str:
    """What Ollama makes of ``messages`` by ``template``: Go's text/template, as far as ``go_template`` writes it.

    As in Ollama, turns of the same role in sequence are one, and all system texts together are ``.System``.

    Raises:
        ExportError: the template has something that is not understood here.
    """
    collated: list[Message] = []
    for message in messages:
        if collated and collated[-1].role == message.role:
            collated[-1] = Message(message.role, f"{collated[-1].content}\n\n{message.content}")
        else:
            collated.append(message)
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    tokens = _lexed(template)
    nodes, closing = _parsed(tokens)
    if closing is not None:
        raise ExportError(f"the Go template closes what it never opened: {closing!r}")
    return _executed(nodes, {"System": system, "Messages": collated})


def _between(render: Render, shape: str) -> list[str]:
    """What ``render`` writes before, between and behind turns: a text more than ``shape`` has letters."""
    roles: dict[str, Role] = {"s": "system", "u": "user", "a": "assistant"}
    chat = [Message(roles[letter], f"Qz{number}v7") for number, letter in enumerate(shape)]
    parts, rest = [], _rendered(render, chat, generate=True)
    for message in chat:
        before, found, rest = rest.partition(message.content)
        if not found or message.content in rest:
            turns = ", ".join(turn.role for turn in chat)
            raise ExportError(f"the chat template does not write the turns {turns} in this order, each once")
        parts.append(before)
    return [*parts, rest]


def _rendered(render: Render, chat: Sequence[Message], *, generate: bool) -> str:
    try:
        return render(chat, generate)
    except Exception as error:  # templates raise what they like
        turns = ", ".join(message.role for message in chat)
        raise ExportError(f"the chat template refuses the turns {turns}, or writes the date: {error}") from error


def _split(render: Render, x: Sequence[str], z: Sequence[str], bos: str) -> tuple[str, str, str, str, str]:
    """The text between turns: before and behind a user's, before and behind an assistant's, and at the prompt's end.

    Where a chat that does not end in an answer's beginning does not show where to split, any place does.
    """
    user, answer = Message("user", "Qz0v7"), Message("assistant", "Qz1v7")
    after_user = _rendered(render, [user], generate=False).partition(user.content)[2]
    if not (x[1].startswith(after_user) and x[5].startswith(after_user)):
        after_user = ""
    after_answer = _rendered(render, [user, answer], generate=False).partition(answer.content)[2]
    before_user = x[2].removeprefix(after_answer)
    starts = [x[0].removeprefix(bos), x[2], *([z[1]] if z else [])]
    if not x[2].startswith(after_answer) or not all(start.endswith(before_user) for start in starts):
        before_user = ""
    return (
        before_user,
        after_user,
        x[1].removeprefix(after_user),
        x[2].removesuffix(before_user),
        x[5].removeprefix(after_user),
    )


def _head(opened: str, closed: str, without: str, *, takes_system: bool) -> str:
    """What comes before the turns; ``without`` is a piece of Go template for chats with no system text."""
    if not takes_system:
        return without
    otherwise = f"{{{{ else }}}}{without}" if without else ""
    return f"{{{{ if .System }}}}{_literal(opened)}{{{{ .System }}}}{_literal(closed)}{otherwise}{{{{ end }}}}"


def _chats(contents: Sequence[str], *, with_system: bool) -> Iterator[list[Message]]:
    for turns in (1, 2, 3):
        for first in range(len(contents)):
            said = [contents[(first + turn) % len(contents)] for turn in range(2 * turns)]
            roles: list[Role] = ["user", "assistant"] * turns
            chat = [Message(role, text) for role, text in zip(roles[:-1], said[:-1], strict=True)]
            yield chat
            if with_system:
                yield [Message("system", said[-1]), *chat]


def _same(wanted: str, found: str) -> None:
    if wanted != found:
        at = next((n for n, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), len(found))
        raise ExportError(
            f"the Go template made from the chat template writes {found[at : at + 40]!r} where the original writes "
            f"{wanted[at : at + 40]!r}: it does more with a turn's text than to write it"
        )


def _literal(text: str) -> str:
    """``text`` in a Go template within triple quotes: as a Go string where it would be read wrong as it is."""
    plain = all(character.isprintable() or character in "\n\t" for character in text)
    if plain and "{{" not in text and '"""' not in text and not text.endswith(("{", '"')):
        return text
    return "{{ " + go_string(text) + " }}"


def go_string(text: str) -> str:
    """``text`` as an interpreted string literal of Go, in ASCII."""
    escaped = ""
    for character in text:
        code = ord(character)
        if character in '"\\':
            escaped += f"\\{character}"
        elif 32 <= code < 127:
            escaped += character
        else:
            escaped += "\\n" if character == "\n" else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"
    return f'"{escaped}"'


_STRING = r'"(?:[^"\\\n]|\\(?:["\\n]|u[0-9a-f]{4}|U[0-9a-f]{8}))*"'
_ACTION = re.compile(rf"\{{\{{ ((?:{_STRING}|[^\"{{}}\n])*) \}}\}}")


def _lexed(template: str) -> Iterator[tuple[bool, str]]:
    """Pieces of ``template``: whether an action, and its text."""
    at = 0
    while True:
        start = template.find("{{", at)
        if start < 0:
            yield False, template[at:]
            return
        if start > at:
            yield False, template[at:start]
        found = _ACTION.match(template, start)
        if found is None:
            raise ExportError(f"the Go template has {template[start : start + 30]!r}, which is not understood here")
        yield True, found[1]
        at = found.end()


def _parsed(tokens: Iterator[tuple[bool, str]]) -> tuple[list[Any], str | None]:
    """Nodes up to the action that closes them: that action, or None at the template's end."""
    nodes: list[Any] = []
    for action, text in tokens:
        if not action:
            nodes.append(("text", text))
        elif text == "end" or text == "else" or text.startswith("else if "):
            return nodes, text
        elif text.startswith("if "):
            nodes.append(_branch(text.removeprefix("if "), tokens))
        elif text == "range .Messages":
            body, closing = _parsed(tokens)
            if closing != "end":
                raise ExportError(f"the Go template's range ends with {closing!r}")
            nodes.append(("range", body))
        elif text.startswith('"'):
            nodes.append(("text", _unquoted(text)))
        elif text in (".System", ".Content"):
            nodes.append(("field", text[1:]))
        else:
            raise ExportError(f"the Go template has {text!r}, which is not understood here")
    return nodes, None


def _branch(condition: str, tokens: Iterator[tuple[bool, str]]) -> tuple[str, str, list[Any], list[Any]]:
    body, closing = _parsed(tokens)
    otherwise: list[Any] = []
    if closing is not None and closing.startswith("else if "):
        otherwise = [_branch(closing.removeprefix("else if "), tokens)]
    elif closing == "else":
        otherwise, closing = _parsed(tokens)
        if closing != "end":
            raise ExportError(f"the Go template's else ends with {closing!r}")
    elif closing != "end":
        raise ExportError(f"the Go template's if ends with {closing!r}")
    return "if", condition, body, otherwise


def _executed(nodes: Sequence[Any], dot: dict[str, Any]) -> str:
    written = ""
    for node in nodes:
        if node[0] == "text":
            written += node[1]
        elif node[0] == "field":
            written += _field(dot, node[1])
        elif node[0] == "range":
            written += "".join(
                _executed(node[1], {"Role": turn.role, "Content": turn.content}) for turn in dot["Messages"]
            )
        else:
            _, condition, body, otherwise = node
            equal = re.fullmatch(rf"eq \.Role ({_STRING})", condition)
            if equal is None and condition != ".System":
                raise ExportError(f"the Go template has the condition {condition!r}, which is not understood here")
            true = bool(_field(dot, "System")) if equal is None else _field(dot, "Role") == _unquoted(equal[1])
            written += _executed(body if true else otherwise, dot)
    return written


def _field(dot: dict[str, Any], name: str) -> str:
    if name not in dot:
        raise ExportError(f"the Go template asks for .{name} where there is none")
    return str(dot[name])


def _unquoted(literal: str) -> str:
    def plain(found: re.Match[str]) -> str:
        escape = found[1]
        return chr(int(escape[1:], 16)) if escape[0] in "uU" else "\n" if escape == "n" else escape

    return re.sub(r'\\(u[0-9a-f]{4}|U[0-9a-f]{8}|["\\n])', plain, literal[1:-1])
