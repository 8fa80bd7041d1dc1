"""Whether a chat is complete and its answer ends as answers do."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import get_args

from pipelines.prompt import Message, Role

_FENCE = re.compile(r"`{3,}|^[ \t>]*~{3,}", re.MULTILINE)
_OPENS = re.compile(r"[ \t>]*[`~]{3,}[\w+#.-]*[ \t]*(?:\n|$)")
_CUT_CHARACTERS = tuple(",:([{-–—")
_SMILEY = re.compile(r"[:;=]['-]?[(\[{]$|:[\w+-]+:$|--$")
_CUT_WORDS = re.compile(  # no sentence ends with these
    r"\s(?:a|an|the|and|or|but|of|with|from|into|because|whereas|if|than|every|und|oder|aber|der|den|dem|das|ein|eine|einen"
    r"|mit|von|weil|et|ou|le|les|des|une|avec|el|los|las|una|que)$"
)
_CLOSING = re.compile(r"[.!?…。！？।؟][\"'”’»)\]*_`]*$")
_MARKUP = re.compile(r"```|~~~|^[ \t]*(?:[-*•|]|\d+[.)])\s|^[ \t]*[\[{<]|https?://\S+$", re.MULTILINE)


def wrong_turns(messages: Sequence[Message]) -> str | None:
    """What is wrong with roles and turns; None where a chat alternates and ends with an answer."""
    roles = [message.role for message in messages]
    unknown = [role for role in roles if role not in get_args(Role)]
    if unknown:
        return f"role {unknown[0]!r}; there are {', '.join(get_args(Role))}"
    turns = roles[1:] if roles[:1] == ["system"] else roles
    wanted = ["user" if number % 2 == 0 else "assistant" for number in range(len(turns))]
    if turns != wanted:
        at = next(number for number, pair in enumerate(zip(turns, wanted, strict=True)) if pair[0] != pair[1])
        return f"turn {at + 1 + len(roles) - len(turns)} is the {turns[at]}'s where the {wanted[at]}'s is due"
    if not turns or turns[-1] != "assistant":
        return f"the last turn is the {turns[-1]}'s" if turns else "no turns"
    empty = next((number for number, message in enumerate(messages[:-1], 1) if not message.content.strip()), None)
    return None if empty is None else f"turn {empty} is empty"


def breaks_off(answer: str) -> str | None:
    """What an answer leaves open, surely."""
    fences = list(_FENCE.finditer(answer))
    if len(fences) % 2 and _OPENS.match(answer, fences[-1].start()):
        return "unclosed code fence"
    text = answer.strip()
    if text[:1] in ("{", "[") and not _is_json(text):
        quoted, escaped, depth = False, False, 0
        for character in text:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = quoted
            elif character == '"':
                quoted = not quoted
            elif not quoted:
                depth += (character in "{[") - (character in "}]")
        if depth > 0:
            return f"{depth} unclosed brackets" if depth > 1 else "unclosed bracket"
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def seems_cut(answer: str) -> str | None:
    """What an answer ends with that ends no sentence."""
    text = answer.rstrip()
    if text.endswith(_CUT_CHARACTERS) and not _SMILEY.search(text):
        return repr(text[-1])
    word = _CUT_WORDS.search(text)
    return repr(word[0].strip()) if word else None


def ends_open(answer: str) -> bool | None:
    """Whether a sentence ends without punctuation; None where it is no prose, too short to need any, or cut."""
    text = answer.rstrip()
    if len(text) < 40 or _MARKUP.search(text) or seems_cut(text):
        return None
    return not _CLOSING.search(text)
