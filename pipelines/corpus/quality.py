"""How well an index answers golden questions, and whether a new one may replace the served one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.corpus.golden import GoldenQuestion

FEW_QUESTIONS = 10
"""Below this, resampling the questions says nothing about chance."""


@dataclass(frozen=True, slots=True)
class QuestionScore:
    """How well one question was answered; the scores are from 0 to 1."""

    question: str
    rank: int | None
    """Of the best relevant document, from 1; None: not among the first k."""
    recall: float
    """Share of the relevant documents among the first k."""
    reciprocal_rank: float
    """1 / ``rank``, 0 without one."""
    ndcg: float


@dataclass(frozen=True, slots=True)
class Quality:
    """Scores of one index on golden questions: means over the questions, 0 without any."""

    rows: tuple[QuestionScore, ...]
    recall: float
    mrr: float
    ndcg: float
    k: int

    @property
    def questions(self) -> int:
        """How many were asked; 0: nothing was measured."""
        return len(self.rows)

    @property
    def missed(self) -> tuple[str, ...]:
        """Questions with no relevant document among the first k."""
        return tuple(row.question for row in self.rows if row.rank is None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Candidate against served index on the same questions, by nDCG@k, and the gate's decision."""

    difference: float
    """Mean of candidate minus served."""
    low: float
    """``low`` to ``high``: 95 % interval of the difference."""
    high: float
    refused: bool
    reason: str
    """Of either decision, in plain words with the numbers."""
    changes: tuple[tuple[str, float], ...]
    """Every question with its own difference, the worst first."""
    k: int


def score_rankings(questions: Sequence[GoldenQuestion], rankings: Mapping[str, Sequence[str]], k: int) -> Quality:
    """Score what an index found.

    Args:
        questions: with document keys as ``relevant``, at least one each.
        rankings: for each question, the document keys of the found chunks, best first. A document counts once, where
            its best chunk stands; so retrieve enough chunks for k documents.
        k: depth.

    Recall@k and the reciprocal rank are those of TREC (a question with more than k relevant documents cannot reach a
    recall of 1); nDCG@k has binary gains and the discount 1 / log2(rank + 1) (Järvelin & Kekäläinen, 2002,
    doi:10.1145/582415.582418).

    Raises:
        ValueError: a question has no ranking, which is not the same as an empty one.
    """
    if missing := [each.question for each in questions if each.question not in rankings]:
        raise ValueError(f"{len(missing)} questions were never asked, the first is {missing[0]!r}")
    rows = tuple(_score(each, rankings[each.question], k) for each in questions)
    if not rows:
        return Quality((), 0.0, 0.0, 0.0, k)
    return Quality(
        rows,
        recall=fmean(row.recall for row in rows),
        mrr=fmean(row.reciprocal_rank for row in rows),
        ndcg=fmean(row.ndcg for row in rows),
        k=k,
    )


def compare(candidate: Quality, served: Quality, *, max_drop: float, seed: int = 17) -> Comparison:
    """Whether ``candidate`` may replace ``served``: it is refused when it is worse by too much, and not by chance.

    - Its mean nDCG@k has to have dropped by more than ``max_drop``; otherwise it is never refused.
    - With 10 questions or more, the 95 % interval of the difference has to lie below 0 as a whole: whichever questions
      had been asked, the answers would have become worse.
    - With fewer, nobody can tell a drop from chance, and one question weighs a lot. Only a broken index is refused
      then: one that kept less than half of the served nDCG@k.
    - Without questions nothing is known, and nothing is refused; the reason says so.

    The interval is a percentile bootstrap of 10,000 resamples of the questions, both indexes judged on the same ones
    (Efron & Tibshirani, 1993, An Introduction to the Bootstrap, chapter 13; for retrieval: Sakai, 2006,
    doi:10.1145/1148170.1148261).

    Raises:
        ValueError: the two were not asked the same questions to the same depth.
    """
    before = {row.question: row.ndcg for row in served.rows}
    after = {row.question: row.ndcg for row in candidate.rows}
    if before.keys() != after.keys() or candidate.k != served.k:
        raise ValueError(
            f"{len(after)} questions at k={candidate.k} cannot be compared with {len(before)} at k={served.k}: ask "
            "both indexes the same"
        )
    changes = tuple(sorted(((each, after[each] - before[each]) for each in after), key=lambda change: change[::-1]))
    if not changes:
        return Comparison(0.0, 0.0, 0.0, False, "no questions to compare by: nothing was measured", (), candidate.k)
    difference, low, high = _bootstrap([change for _, change in changes], seed)
    compared = (
        f"nDCG@{candidate.k} {candidate.ndcg:.3f} against {served.ndcg:.3f} of the served index on the same "
        f"{len(changes)} questions: difference {difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}, "
        f"{sum(change < 0 for _, change in changes)} worse, {sum(change > 0 for _, change in changes)} better, largest "
        f"drop allowed {max_drop:.3f}"
    )
    if all(change == 0 for _, change in changes):
        refused, verdict = False, "the same"
    elif -difference <= max_drop:
        refused, verdict = False, "no drop beyond what is allowed"
    elif len(changes) < FEW_QUESTIONS:
        refused = candidate.ndcg < served.ndcg / 2
        verdict = "less than half of it is left" if refused else "too few questions to tell a drop from chance"
    else:
        refused = high < 0
        verdict = "surely worse" if refused else "a drop that may be chance"
    return Comparison(difference, low, high, refused, f"{verdict}: {compared}", changes, candidate.k)


def _score(question: GoldenQuestion, ranking: Sequence[str], k: int) -> QuestionScore:
    relevant = set(question.relevant)
    best = list(dict.fromkeys(ranking))[:k]
    ranks = [rank for rank, key in enumerate(best, 1) if key in relevant]
    return QuestionScore(
        question.question,
        rank=ranks[0] if ranks else None,
        recall=len(ranks) / len(relevant),
        reciprocal_rank=1 / ranks[0] if ranks else 0.0,
        ndcg=_gain(ranks) / _gain(range(1, min(len(relevant), k) + 1)),
    )


def _gain(ranks: Sequence[int]) -> float:
    return math.fsum(1 / math.log2(rank + 1) for rank in ranks)


def _bootstrap(differences: Sequence[float], seed: int, resamples: int = 10_000) -> tuple[float, float, float]:
    """Mean of ``differences`` and its 95 % percentile interval."""
    import numpy as np

    values, rng = np.array(differences), np.random.default_rng(seed)
    at_once = max(1, 5_000_000 // len(values))  # 40 MB of drawn places
    means = [
        values[rng.integers(len(values), size=(min(at_once, resamples - start), len(values)))].mean(axis=1)
        for start in range(0, resamples, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)
