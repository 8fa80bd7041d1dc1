"""BM25 as Qdrant computes it: term weights of a text, whose inverse document frequencies the engine adds.

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009. Both adapters take their
sparse vectors from here, so that they hold the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from qdrant_edge import Bm25

NO_LANGUAGE = "none"
UNSPACED = ("chinese", "japanese")
"""Written without spaces: a dictionary finds the words."""

AVERAGE_LENGTH = 100.0
"""Words of a usual chunk, stop words aside; BM25's k and b are the usual 1.2 and 0.75."""

_ENDING = re.compile(r"\.[A-Za-z0-9]{1,8}$")
_SEPARATORS = re.compile(r"[\W_]+")


@cache
def bm25(language: str) -> Bm25:
    """Tokenizer, stop words, stems and term weights of a language; none: words as they are, in lower case.

    Raises:
        ConfigError: Qdrant does not know the language.
    """
    import qdrant_edge as qe

    if language == NO_LANGUAGE:
        plain = qe.Bm25Config(avg_len=AVERAGE_LENGTH, stopwords=qe.StopwordsSet(), stemmer=qe.DisabledStemmer())
        return qe.Bm25(plain)
    tokenizer = qe.TokenizerType.Multilingual if language in UNSPACED else qe.TokenizerType.Word
    try:
        return qe.Bm25(qe.Bm25Config(avg_len=AVERAGE_LENGTH, language=language, tokenizer=tokenizer))
    except ValueError as error:
        known = ", ".join(sorted(name.lower() for name in dir(qe.Language) if name[0].isupper()))
        raise ConfigError(f"language {language!r} is not known: use {NO_LANGUAGE}, {known}") from error


def weighted_text(payload: Mapping[str, Any]) -> str:
    """What a chunk's words are counted in: its text, its headings twice more, and the words of its document's id.

    Terms of several fields weighed in one bag: Robertson, Zaragoza and Taylor, "Simple BM25 extension to multiple
    weighted fields", CIKM 2004. The id is often a path or a URL, which says what a document is about.
    """
    headings = " ".join(payload.get("headings", ()))
    place = _SEPARATORS.sub(" ", _ENDING.sub("", payload["document_id"]))
    return f"{headings}\n{headings}\n{place}\n{payload['text']}"
