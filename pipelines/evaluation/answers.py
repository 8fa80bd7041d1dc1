"""Metrics of generated answers: each a score from 0 to 1 a row, or NaN where the row says nothing about it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["answerable", "unanswerable"]

COMMON_SHARE = 0.2
"""A word in at least so many training answers belongs to their manner, not to what they are about."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = (
    r"\p{Nd}+(?:[.,:/'’-]\p{Nd}+)*"
    rf"|[{_UNSPACED}]\p{{M}}*"
    rf"|[[\p{{L}}\p{{M}}]--[{_UNSPACED}]](?:[[\p{{L}}\p{{M}}\p{{Nd}}]--[{_UNSPACED}]])*"
)
_FIGURE = r"\p{L}*\p{Nd}[\p{L}\p{Nd}]*(?:[-–./:,'’_](?=[\p{L}\p{Nd}])[\p{L}\p{Nd}]+)*"
_NUMBER = r"\p{Nd}+(?:[.,'’]\p{Nd}+)*"
_ORDINALS = frozenset({"st", "nd", "rd", "th"})


def words(text: str) -> list[str]:
    """The words and numbers of ``text``, case and punctuation folded; scripts without spaces sign by sign.

    A text of neither, such as a symbol, is split at its spaces.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _pattern(_WORD).findall(folded) or folded.split()


def exact_match(answer: str, reference: str) -> float:
    """1 where both are the same words in the same order."""
    return float(words(answer) == words(reference))


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words, as SQuAD counts them (arXiv:1606.05250), in any language.

    English articles count, as all words do.
    """
    said, wanted = words(answer), words(reference)
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def begins(answer: str, opening: str) -> bool:
    """Whether ``answer`` begins with the words of ``opening``."""
    wanted = words(opening)
    return bool(wanted) and words(answer)[: len(wanted)] == wanted


def refuses(answer: str, refusal: str) -> bool:
    """Whether ``answer`` says the words of ``refusal``, at its beginning or once it has said of what."""
    said, wanted = words(answer), words(refusal)
    return bool(wanted) and any(
        said[start : start + len(wanted)] == wanted for start in range(len(said) - len(wanted) + 1)
    )


def row_kind(context: Sequence[str] | None, reference: str, refusal: str) -> Kind | None:
    """Whether a right answer refuses: nothing was retrieved, or the reference refuses; None without retrieval."""
    if context is None:
        return None
    return "unanswerable" if not context or refuses(reference, refusal) else "answerable"


def refusal_score(answer: str, reference: str, refusal: str, kind: Kind | None) -> float:
    """1 where an unanswerable row is refused and an answerable one is not.

    An unanswerable row is also right when it begins as its reference does: refusals in other words, small talk.
    """
    if kind is None:
        return float("nan")
    refused = refuses(answer, refusal)
    if kind == "unanswerable":
        return float(refused or begins(answer, _first_sentence(reference)))
    return float(bool(answer.strip()) and not refused)


def supported(
    answer: str, sources: Sequence[str], *, common: Collection[str] = (), citations: int = 0
) -> tuple[float, list[str]]:
    """Share of the answer's content words that occur in ``sources``, and its figures that do not.

    The share is 0 as soon as one figure (number, date, code) is not there: a plausible number is the worst invention.
    1,000 and 1000, 05 and 5, 5kg and 5 kg are the same, and so are dates in figures, whatever their order; list numbers
    and citations [1] to ``citations`` are none. Content words are those of four letters and more, and names, that are
    not ``common``. They are compared by their first four to six letters, two fewer than they have: truncation stems
    any language (Can et al., 2008, doi:10.1002/asi.20750).
    """
    said = _without_markers(answer, citations)
    source = "\n".join(sources)
    known_words = set(words(source))
    stems = {word[:length] for word in known_words for length in (4, 5, 6)}
    invented = _invented(said, source, known_words)
    content = _content(said, common)
    found = sum(word in known_words or word[: min(6, max(4, len(word) - 2))] in stems for word in content)
    share = found / len(content) if content else 1.0
    return (0.0 if invented else share), invented


def supported_score(
    answer: str,
    reference: str,
    sources: Sequence[str],
    *,
    kind: Kind | None,
    refusal: str,
    common: Collection[str] = (),
    citations: int = 0,
) -> float:
    """``supported`` where something was retrieved; saying nothing, or refusing what can be answered, scores 0."""
    if kind is None or not citations:
        return float("nan")
    if refuses(answer, refusal):
        return float(kind == "unanswerable" or refuses(reference, refusal))
    return supported(answer, sources, common=common, citations=citations)[0] if answer.strip() else 0.0


def common_words(texts: Iterable[str]) -> frozenset[str]:
    """English function words, and the words in at least a fifth of ``texts``, unless a capital makes them names."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    occurs: Counter[str] = Counter()
    names: Counter[str] = Counter()
    count = 0
    for text in texts:
        count += 1
        found = list(_named(text))
        occurs.update({word for word, _ in found})
        names.update({word for word, name in found if name})
    often = {word for word, rows in occurs.items() if rows >= max(2, COMMON_SHARE * count) and names[word] * 2 < rows}
    return frozenset(often | set(ENGLISH_STOP_WORDS))


def balanced(kinds: Sequence[Kind | None]) -> NDArray[np.float64]:
    """Weights (rows,) by which answerable and unanswerable rows count alike, however many there are of each."""
    import numpy as np

    counts = Counter(kinds)
    return np.array([1.0 if kind is None else len(kinds) / (2 * counts[kind]) for kind in kinds], dtype=np.float64)


def _first_sentence(text: str) -> str:
    return str(_pattern(r"(?<=[.!?。！？])\s|\n").split(text.strip(), maxsplit=1)[0])


def _without_markers(answer: str, citations: int) -> str:
    cited = _pattern(r"\[(\p{Nd}+)\]")
    answer = cited.sub(lambda found: " " if 1 <= int(found[1]) <= citations else found[0], answer)
    return str(_pattern(r"(?m)^\s*\p{Nd}{1,2}[.)](?=\s)").sub(" ", answer))


def _content(text: str, common: Collection[str]) -> list[str]:
    """Content words, folded; a short one counts where it is a name."""
    unspaced = _pattern(rf"[{_UNSPACED}]")
    return [
        word
        for word, name in _named(text)
        if word not in common and not word[0].isdecimal() and (len(word) >= 4 or name or unspaced.match(word))
    ]


def _named(text: str) -> Iterator[tuple[str, bool]]:
    """Every word, folded, and whether a capital within a sentence makes it a name."""
    text = unicodedata.normalize("NFKC", text)
    for match in _pattern(_WORD).finditer(text):
        before = text[: match.start()].rstrip(" \t\"'“‘(*_") if match[0][0].isupper() else ""
        yield match[0].casefold(), bool(before) and before[-1] not in ".!?:\n#-•"


def _invented(answer: str, source: str, known_words: Collection[str]) -> list[str]:
    """Figures of ``answer`` that ``source`` does not have."""
    known = _figures(source)
    numbers = {reading for figure in known for number in _numbers(figure) for reading in _readings(number)}
    letters = {part for figure in known for part in _letters(figure)} | set(known_words) | _ORDINALS

    def there(figure: str) -> bool:
        found = _numbers(figure)
        if len(found) > 2 and not any(len(number) == 4 for number in found):
            return False  # a version, an address: its parts elsewhere prove nothing; those of a date do
        return all(_readings(number) & numbers for number in found) and all(
            part in letters for part in _letters(figure)
        )

    return [figure for figure in _figures(answer) if figure not in known and not there(figure)]


def _figures(text: str) -> list[str]:
    """Runs of letters and digits with a digit in them, folded, thousands set apart by spaces joined."""
    text = unicodedata.normalize("NFKC", text).casefold()  # every narrow space is a space now
    thousands = _pattern(r"(?<![\p{L}\p{Nd}.,])\p{Nd}{1,3}(?: \p{Nd}{3})+(?![\p{L}\p{Nd}])")
    return list(_pattern(_FIGURE).findall(thousands.sub(lambda found: found[0].replace(" ", ""), text)))


def _numbers(figure: str) -> list[str]:
    """The numbers in a figure; of one that is none as a whole (a dotted date or version), its parts."""
    found = _pattern(_NUMBER).findall(figure)
    return [part for number in found for part in ([number] if _readings(number) else _split(number))]


def _letters(figure: str) -> list[str]:
    return list(_pattern(r"\p{L}+").findall(figure))


def _readings(number: str) -> set[Decimal]:
    """What a written number can mean: 1,234 is 1234 or, elsewhere, 1.234; 1.2.3 is no number."""
    parts = _split(number)
    if len(parts) == 1:
        return {Decimal(number).normalize()}
    found = set()
    marks = _pattern(r"[.,'’]").findall(number)
    *whole, last = parts
    grouped = len(parts[0]) <= 3 and all(len(part) == 3 for part in whole[1:])
    if grouped and len(last) == 3 and len(set(marks)) == 1:
        found.add(Decimal("".join(parts)).normalize())
    if marks[-1] in ".," and marks[-1] not in marks[:-1] and len(set(marks[:-1])) <= 1 and (grouped or len(parts) == 2):
        found.add(Decimal("".join(whole) + "." + last).normalize())
    return found


def _split(number: str) -> list[str]:
    return list(_pattern(r"[.,'’]").split(number))


@cache
def _pattern(pattern: str) -> Any:
    import regex  # knows scripts and marks, which re does not

    return regex.compile(pattern, regex.V1)
