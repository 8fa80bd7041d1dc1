"""Two rankings into one, on this side of the engine, so that every engine's answers merge alike.

Qdrant fuses too, but only scores of single points: here a chunk also gains from the rest of its document, and a hit
says what it owes to meaning and what to words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import sqrt

from pipelines.corpus.index import Candidates, Scored
from pipelines.corpus.settings import Fusion

RRF_K = 60
"""Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet", SIGIR 2009."""

DOCUMENT_SHARE = 0.2
"""Of what the other chunks of its document score above average, a chunk gains so much."""


def fused(candidates: Candidates, fusion: Fusion) -> list[Scored]:
    """Every candidate, best first; equal scores in the order of their ids, so that no engine's order shows through.

    ``rrf`` adds reciprocal ranks. ``dbsf`` adds scores normalised by their distribution in each ranking, as Qdrant
    does, and to each chunk a share of what the others of its document score above the average of both rankings: of two
    pages with equal best chunks, the one that deals with the question throughout comes first.
    """
    rankings = [ranking for ranking in (candidates.dense, candidates.words) if ranking]
    normalise = _distributed if fusion == "dbsf" else _reciprocal
    totals: dict[str, float] = defaultdict(float)
    documents: dict[str, tuple[str, str]] = {}
    for ranking in rankings:
        for each, score in zip(ranking, normalise(ranking), strict=True):
            totals[each.point_id] += score
            documents[each.point_id] = each.document
    if fusion == "dbsf":
        average = 0.5 * len(rankings)
        shares: dict[tuple[str, str], float] = defaultdict(float)
        for point_id, total in totals.items():
            shares[documents[point_id]] += max(0.0, total - average)
        for point_id, total in totals.items():
            others = shares[documents[point_id]] - max(0.0, total - average)
            totals[point_id] = total + DOCUMENT_SHARE * others
    scored = (Scored(point_id, total, documents[point_id]) for point_id, total in totals.items())
    return sorted(scored, key=lambda each: (-each.score, each.point_id))


def _distributed(ranking: Sequence[Scored]) -> list[float]:
    """0 and 1 are three standard deviations below and above the mean."""
    mean = sum(each.score for each in ranking) / len(ranking)
    deviation = sqrt(sum((each.score - mean) ** 2 for each in ranking) / max(1, len(ranking) - 1))
    return [0.5 + ((each.score - mean) / (6 * deviation) if deviation else 0.0) for each in ranking]


def _reciprocal(ranking: Sequence[Scored]) -> list[float]:
    return [1 / (RRF_K + rank) for rank in range(1, len(ranking) + 1)]
