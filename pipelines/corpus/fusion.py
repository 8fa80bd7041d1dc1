"""Two rankings into one, on this side of the engine, so that every engine's answers merge alike.

Qdrant fuses too, but only scores of single points: here a chunk also gains from the rest of its document, and a hit
says what it owes to meaning and what to words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import sqrt

from pipelines.corpus.index import Candidates, Scored
from pipelines.corpus.settings import Fusion

RRF_K = 60
"""Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet", SIGIR 2009."""

DOCUMENT_SHARE = 0.2
"""Of what the other chunks of its document score above average, a chunk above average gains so much."""


def fused(candidates: Candidates, fusion: Fusion) -> list[Scored]:
    """Every candidate, best first; equal scores in the order of their ids, so that no engine's order shows through.

    ``rrf`` adds reciprocal ranks; ``dbsf`` adds scores normalised by their distribution in each ranking, as Qdrant
    does.
    """
    normalise = _distributed if fusion == "dbsf" else _reciprocal
    totals: dict[str, float] = defaultdict(float)
    for ranking in (candidates.dense, candidates.words):
        for each, score in zip(ranking, normalise(ranking), strict=True):
            totals[each.point_id] += score
    return _ordered(totals)


def above_average(ranking: Sequence[Scored], candidates: Candidates) -> list[Scored]:
    """Of a ranking by ``dbsf`` what lies above the average of the candidates that it was made of."""
    average = 0.5 * sum(bool(each) for each in (candidates.dense, candidates.words))
    return [Scored(each.point_id, each.score - average) for each in ranking if each.score > average]


def lifted(
    ranking: Sequence[Scored], above: Sequence[Scored], documents: Mapping[str, tuple[str, str]]
) -> list[Scored]:
    """The ranking, once each chunk above average has its share of what the others of its document have above it.

    Of two pages with equal best chunks, the one that deals with the question throughout comes first. ``documents`` has
    source and id of the document of each chunk above average, as far as it is still there.
    """
    totals = {each.point_id: each.score for each in ranking}
    sums: dict[tuple[str, str], float] = defaultdict(float)
    held = [each for each in above if each.point_id in documents]
    for each in held:
        sums[documents[each.point_id]] += each.score
    for each in held:
        totals[each.point_id] += DOCUMENT_SHARE * (sums[documents[each.point_id]] - each.score)
    return _ordered(totals)


def _ordered(totals: Mapping[str, float]) -> list[Scored]:
    scored = (Scored(*item) for item in totals.items())
    return sorted(scored, key=lambda each: (-each.score, each.point_id))


def _distributed(ranking: Sequence[Scored]) -> list[float]:
    """0 and 1 are three standard deviations below and above the mean."""
    if not ranking:
        return []
    mean = sum(each.score for each in ranking) / len(ranking)
    deviation = sqrt(sum((each.score - mean) ** 2 for each in ranking) / max(1, len(ranking) - 1))
    return [0.5 + ((each.score - mean) / (6 * deviation) if deviation else 0.0) for each in ranking]


def _reciprocal(ranking: Sequence[Scored]) -> list[float]:
    return [1 / (RRF_K + rank) for rank in range(1, len(ranking) + 1)]
