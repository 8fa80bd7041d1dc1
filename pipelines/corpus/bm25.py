"""BM25 as Qdrant computes it: term weights of a text, whose inverse document frequencies the engine adds.

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009. Both adapters take their
sparse vectors from here, so that they hold the same ones.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from qdrant_edge import Bm25

NO_LANGUAGE = "none"


@cache
def bm25(language: str) -> Bm25:
    """Tokenizer, stop words, stems and term weights of a language; none: words as they are, in lower case.

    Raises:
        ConfigError: Qdrant does not know the language.
    """
    import qdrant_edge as qe

    if language == NO_LANGUAGE:
        plain = qe.Bm25Config(stopwords=qe.StopwordsSet(), stemmer=qe.DisabledStemmer())
        return qe.Bm25(plain)
    try:
        return qe.Bm25(qe.Bm25Config(language=language))
    except ValueError as error:
        known = ", ".join(sorted(name.lower() for name in dir(qe.Language) if name[0].isupper()))
        raise ConfigError(f"language {language!r} is not known: use {NO_LANGUAGE}, {known}") from error
