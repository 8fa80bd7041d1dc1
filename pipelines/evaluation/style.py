"""Does a model answer in the manner of the reference answers, whatever they are about?"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.evaluation.answers import common_words, words
from pipelines.fingerprint import text_hash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MINIMUM_ANSWERS = 20
MAXIMUM_ANSWERS = 1000
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Style:
    """Scores of manner, and how far they can be trusted."""

    scores: Mapping[str, NDArray[np.float64]]
    """Probability (rows,) by model that an answer is in the manner of the references."""
    references: float
    """Mean score of the held-out reference answers themselves: as good as it gets."""
    auc: float
    """How often a held-out reference answer scores above an answer of the untuned base (ROC AUC); at .5 the manner
    cannot be told from the base's."""
    training_answers: int


def style_scores(
    training_answers: Sequence[str], references: Sequence[str], answers: Mapping[str, Sequence[str]]
) -> Style | None:
    """Score ``answers`` by model, ``base`` among them, row by row with ``references``; None with too few to learn from.

    A logistic regression tells reference answers of the training split from answers of the untuned base to other rows
    (five folds, so that none is scored by what it was fitted on) and from spoilt reference answers: shuffled, cut off,
    repeating themselves. It sees character n-grams (Stamatatos, 2009, doi:10.1002/asi.21001) of texts whose rarer words
    and numbers are masked (text distortion: Stamatatos, 2017, E17-1107), so that topics tell it nothing, and counts of
    lengths, punctuation and layout. No model judges.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    models = sorted(set(training_answers) - {""}, key=text_hash)[:MAXIMUM_ANSWERS]
    if len(models) < MINIMUM_ANSWERS or len(references) < FOLDS:
        return None
    common = common_words(models)
    spoilt = [text for answer in models for text in _spoilt(answer)]
    read = _reader([*models, *spoilt, *answers["base"]], common)
    good, bad, base = read(models), read(spoilt), read(answers["base"])
    said = {name: read(texts) for name, texts in {**answers, "references": references}.items()}
    scores = {name: np.zeros(len(references)) for name in said}
    folds = np.arange(len(references)) % FOLDS
    for fold in range(FOLDS):
        others, own = folds != fold, folds == fold
        parts = [good, bad, base[others]]
        weights = [1.0, 0.5 if others.any() else 1.0, 0.5]
        fitted = LogisticRegression(C=3.0, max_iter=500)
        fitted.fit(
            _stacked(parts),
            np.repeat([1, 0, 0], [part.shape[0] for part in parts]),
            sample_weight=np.concatenate(
                [
                    np.full(part.shape[0], weight * len(models) / max(1, part.shape[0]))
                    for part, weight in zip(parts, weights, strict=True)
                ]
            ),
        )
        for name, rows in said.items():
            scores[name][own] = fitted.predict_proba(rows[own])[:, 1]
    for name, texts in {**answers, "references": references}.items():
        empty = np.array(
            [not text.strip() and bool(reference.strip()) for text, reference in zip(texts, references, strict=True)]
        )
        scores[name][empty] = 0.0
    truth = np.repeat([1, 0], [len(references), len(references)])
    return Style(
        scores={name: scores[name] for name in answers},
        references=float(scores["references"].mean()),
        auc=float(roc_auc_score(truth, np.concatenate([scores["references"], scores["base"]]))),
        training_answers=len(models),
    )


def masked(text: str, common: Collection[str]) -> str:
    """``text`` with every number as 0 and every word that is not ``common`` as w, W (capital first) or A (capitals)."""

    def shape(found: Any) -> str:
        word: str = found[0]
        if word[0].isdecimal():
            return "0"
        if word.casefold() in common:
            return word
        return "A" if len(word) > 1 and word.isupper() else "W" if word[0].isupper() else "w"

    import regex

    return str(regex.sub(r"\p{Nd}+(?:[.,:]\p{Nd}+)*|[\p{L}\p{M}]+", shape, unicodedata.normalize("NFKC", text)))


def _reader(texts: Sequence[str], common: Collection[str]) -> Any:
    """A function from texts to a sparse matrix of features, fitted on ``texts``."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import StandardScaler

    def distorted(texts: Sequence[str]) -> list[str]:
        return [masked(text, common) for text in texts]

    grams = TfidfVectorizer(
        analyzer="char", ngram_range=(1, 4), lowercase=False, max_features=20_000, sublinear_tf=True
    ).fit(distorted(texts))
    scaler = StandardScaler().fit(_layout(texts))

    def read(texts: Sequence[str]) -> Any:
        counts = csr_matrix(scaler.transform(_layout(texts)).clip(-4, 4) * 0.1)  # beside n-grams of length 1
        return _joined(grams.transform(distorted(texts)), counts)

    return read


def _layout(texts: Sequence[str]) -> NDArray[np.float64]:
    """Lengths, punctuation and layout of each text (texts, features)."""
    import numpy as np

    rows = []
    for text in texts:
        said, lines, length = words(text), text.splitlines(), max(1, len(text))
        count = max(1, len(said))
        sentences = max(1, sum(text.count(mark) for mark in ".!?。！？"))
        rows.append(
            [
                np.log1p(len(said)),
                np.log1p(len(lines)),
                count / sentences,
                sum(map(len, said)) / count,
                len(set(said)) / count,
                *(text.count(mark) / count for mark in ",.!?:;-()[]{}\"'*#`|"),
                sum(line.lstrip()[:1] in {"-", "*", "•"} for line in lines) / max(1, len(lines)),
                sum(letter.isupper() for letter in text) / length,
                sum(letter.isdecimal() for letter in text) / length,
                sum(not letter.isascii() for letter in text) / length,
                float(text.rstrip()[-1:] in set(".!?。！？")),
                float(text[:1].isupper()),
            ]
        )
    return np.array(rows, dtype=np.float64)


def _spoilt(answer: str) -> list[str]:
    """Three spoilt versions; those that are as before are left out."""
    draw, parts = random.Random(text_hash(answer)), answer.split()  # noqa: S311 - nothing secret is drawn
    shuffled = parts.copy()
    draw.shuffle(shuffled)
    found = [shuffled, parts[: max(1, len(parts) // 2)], (parts[:2] * len(parts))[: len(parts)]]
    return [text for text in (" ".join(part) for part in found) if text != " ".join(parts)]


def _stacked(parts: Sequence[Any]) -> Any:
    from scipy.sparse import vstack

    return vstack(parts).tocsr()


def _joined(left: Any, right: Any) -> Any:
    from scipy.sparse import hstack

    return hstack([left, right]).tocsr()
