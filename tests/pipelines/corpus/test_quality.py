from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from pipelines.corpus.freshness import Lag, lag
from pipelines.corpus.golden import GoldenQuestion
from pipelines.corpus.quality import Quality, QuestionScore, compare, score_rankings

KEYS = [f"docs/{number}" for number in range(12)]
RELEVANT = st.lists(st.sampled_from(KEYS), min_size=1, max_size=6, unique=True)
RANKINGS = st.lists(st.sampled_from(KEYS), max_size=20)


def one(relevant: list[str], ranking: list[str], k: int) -> QuestionScore:
    return score_rankings([GoldenQuestion("q", tuple(relevant))], {"q": ranking}, k).rows[0]


def test_the_scores_of_a_ranking_worked_out_by_hand() -> None:
    found = one(["b", "d", "z"], ["a", "b", "b", "c", "d", "e"], 4)
    assert found == QuestionScore(
        "q",
        rank=2,
        recall=2 / 3,
        reciprocal_rank=1 / 2,
        ndcg=pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3) + 1 / 2)),
    )


def test_ndcg_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        gains, k = rng.random(30) < rng.choice([0.05, 0.3, 0.9]), int(rng.integers(1, 30))
        if not gains.any():
            continue
        order = rng.permutation(30)
        relevant = [str(place) for place in np.flatnonzero(gains)]
        expected = ndcg_score([gains.astype(float)], [-np.argsort(order).astype(float)], k=k)
        assert one(relevant, [str(place) for place in order], k).ndcg == pytest.approx(expected)


@given(RELEVANT, RANKINGS, st.integers(1, 15))
def test_scores_lie_between_0_and_1_and_are_0_together(relevant: list[str], ranking: list[str], k: int) -> None:
    found = one(relevant, ranking, k)
    scores = (found.recall, found.reciprocal_rank, found.ndcg)
    assert all(0 <= score <= 1 for score in scores)
    assert {score > 0 for score in scores} == {found.rank is not None}


@given(RELEVANT, RANKINGS, st.integers(6, 15))
def test_a_perfect_ranking_scores_1_and_nothing_scores_more(relevant: list[str], rest: list[str], k: int) -> None:
    found = one(relevant, [*relevant, *rest], k)
    assert (found.rank, found.recall, found.reciprocal_rank, found.ndcg) == (1, 1, 1, 1)


@given(RELEVANT, RANKINGS, st.integers(1, 15), st.randoms())
def test_only_the_order_of_the_ranking_matters(relevant: list[str], ranking: list[str], k: int, random: object) -> None:
    """Neither the order of the relevant documents, nor further chunks of a document, nor what stands below k."""
    best = list(dict.fromkeys(ranking))
    shuffled = sorted(relevant, key=lambda _: random.random())
    chunks = [key for key in best for _ in range(3)]
    assert one(relevant, ranking, k) == one(shuffled, chunks, k) == one(relevant, best[:k], k)


@given(RELEVANT, st.permutations(KEYS), st.integers(2, 12), st.data())
def test_moving_a_relevant_document_up_never_lowers_a_score(
    relevant: list[str], ranking: list[str], k: int, data: st.DataObject
) -> None:
    place = ranking.index(data.draw(st.sampled_from(relevant)))
    if place:
        better = [*ranking]
        better[place - 1 : place + 1] = better[place], better[place - 1]
        before, after = one(relevant, ranking, k), one(relevant, better, k)
        assert after.recall >= before.recall
        assert after.reciprocal_rank >= before.reciprocal_rank
        assert after.ndcg >= before.ndcg - 1e-12


def test_an_index_scores_the_mean_of_its_questions_and_names_the_missed_ones() -> None:
    questions = [GoldenQuestion(name, ("docs/1",)) for name in "abc"]
    rankings = {"a": ["docs/1"], "b": ["docs/2", "docs/1"], "c": []}
    found = score_rankings(questions, rankings, 10)
    assert found.recall == pytest.approx(2 / 3)
    assert found.mrr == pytest.approx((1 + 1 / 2) / 3)
    assert found.ndcg == pytest.approx((1 + 1 / math.log2(3)) / 3)
    assert (found.questions, found.missed) == (3, ("c",))
    assert score_rankings(questions[::-1], rankings, 10).ndcg == pytest.approx(found.ndcg)


def test_a_question_that_was_never_asked_is_an_error_and_no_miss() -> None:
    with pytest.raises(ValueError, match="1 questions were never asked, the first is 'b'"):
        score_rankings([GoldenQuestion("a", ("x",)), GoldenQuestion("b", ("x",))], {"a": []}, 10)


def quality(ndcgs: list[float], k: int = 10) -> Quality:
    rows = tuple(QuestionScore(f"question {place}", 1, 1, 1, ndcg) for place, ndcg in enumerate(ndcgs))
    mean = sum(ndcgs) / len(ndcgs) if ndcgs else 0.0
    return Quality(rows, mean, mean, mean, k)


MIXED = [1.0, 0.6, 0.0, 0.5] * 5


@pytest.mark.parametrize(
    ("candidate", "served", "max_drop", "refused", "said"),
    [
        (MIXED, MIXED, 0.02, False, "the same: nDCG@10 0.525 against 0.525"),
        ([], [], 0.02, False, "no questions"),
        ([0.9] * 20, [0.8] * 20, 0.02, False, "no drop beyond what is allowed"),
        ([0.79] * 20, [0.8] * 20, 0.02, False, "no drop beyond what is allowed"),  # sure, but small
        ([0.7] * 20, [0.8] * 20, 0.02, True, "surely worse"),
        ([0.7] * 20, [0.8] * 20, 0.2, False, "no drop beyond what is allowed"),
        ([0.0] * 20, [1.0] * 20, 1.0, False, "no drop beyond what is allowed"),  # max_drop 1: never refused
        ([0.79] * 20, [0.8] * 20, 0.0, True, "surely worse"),
        ([0.0, *[1.0] * 19], [1.0] * 20, 0.02, False, "a drop that may be chance"),  # one question of twenty
        ([1.0] * 9 + [0.0] * 11, [0.0] * 8 + [1.0] * 12, 0.02, False, "a drop that may be chance"),
        ([0.0] * 8 + [1.0] * 12, [1.0] * 20, 0.02, True, "surely worse"),
        ([0.0] * 10, [1.0] * 10, 0.02, True, "surely worse"),
        ([0.7] * 9, [0.8] * 9, 0.02, False, "too few questions"),
        ([0.6], [1.0], 0.02, False, "too few questions"),  # the only question, from rank 1 to rank 2
        ([0.0, 1.0, 0.0], [1.0, 1.0, 1.0], 0.02, True, "less than half of it is left"),
        ([0.0], [1.0], 0.02, True, "less than half of it is left"),
        ([0.0], [1.0], 1.0, False, "no drop beyond what is allowed"),
        ([0.0] * 3, [0.01] * 3, 0.02, False, "no drop beyond what is allowed"),
    ],
)
def test_a_new_index_is_refused_when_it_is_worse_by_too_much_and_not_by_chance(
    candidate: list[float], served: list[float], max_drop: float, refused: bool, said: str
) -> None:
    found = compare(quality(candidate), quality(served), max_drop=max_drop)
    assert found.refused is refused
    assert found.reason.startswith(said)
    assert found.low <= found.difference + 1e-12
    assert found.difference <= found.high + 1e-12


def test_the_comparison_lists_every_question_the_worst_first_and_says_the_numbers() -> None:
    found = compare(quality([0.2, 1.0, 0.5]), quality([0.1, 0.2, 0.9]), max_drop=0.02)
    assert [question for question, _ in found.changes] == ["question 2", "question 0", "question 1"]
    assert [change for _, change in found.changes] == pytest.approx([-0.4, 0.1, 0.8])
    assert "3 questions" in found.reason
    assert "1 worse, 2 better, largest drop allowed 0.020" in found.reason


def test_the_interval_is_the_one_of_scipy_and_the_same_each_time() -> None:
    from scipy.stats import bootstrap

    rng = np.random.default_rng(1)
    served = rng.random(60)
    candidate = np.clip(served + rng.normal(-0.03, 0.15, 60), 0, 1)
    found = compare(quality(list(candidate)), quality(list(served)), max_drop=0.02)
    expected = bootstrap((candidate - served,), np.mean, n_resamples=20_000, method="percentile", rng=2)
    assert found.difference == pytest.approx(float(np.mean(candidate - served)))
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.003)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.003)
    assert found == compare(quality(list(candidate)), quality(list(served)), max_drop=0.02)


def test_an_equally_good_index_is_seldom_refused_and_a_clearly_worse_one_nearly_always() -> None:
    rng = np.random.default_rng(3)

    def refusals(shift: float) -> int:
        count = 0
        for _ in range(100):
            served = rng.uniform(0.3, 1, 50)
            candidate = np.clip(served + rng.normal(shift, 0.15, 50), 0, 1)
            count += compare(quality(list(candidate)), quality(list(served)), max_drop=0.02).refused
        return count

    assert refusals(0.0) <= 10
    assert refusals(-0.12) >= 90


def test_only_answers_to_the_same_questions_are_compared() -> None:
    with pytest.raises(ValueError, match="3 questions at k=10 cannot be compared with 2 at k=10"):
        compare(quality([1.0] * 3), quality([1.0] * 2), max_drop=0.02)
    with pytest.raises(ValueError, match="k=5"):
        compare(quality([1.0], k=5), quality([1.0]), max_drop=0.02)


def test_thousands_of_questions_are_compared_in_a_moment() -> None:
    started = time.perf_counter()
    compare(quality([0.5, 0.7] * 1500), quality([0.6, 0.7] * 1500), max_drop=0.02)
    assert time.perf_counter() - started < 5


NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def test_lag_is_how_long_updates_took_to_be_searchable() -> None:
    rows = [(NOW - timedelta(seconds=second), NOW) for second in range(1, 101)]
    assert lag(rows[::-1]) == Lag(p50=50, p95=95, max=100, documents=100, ahead=0)
    assert lag(rows[:1]) == Lag(1, 1, 1, 1, 0)


def test_an_update_time_in_the_future_counts_as_no_lag_and_is_counted() -> None:
    ahead = (NOW + timedelta(hours=1), NOW)
    assert lag([ahead, ahead, (NOW - timedelta(seconds=8), NOW)]) == Lag(0, 8, 8, 3, ahead=2)


def test_documents_without_an_update_time_have_no_lag() -> None:
    assert lag([(None, NOW)]) is None
    assert lag([]) is None
    assert lag([(None, NOW), (NOW, NOW)]) == Lag(0, 0, 0, 1, 0)
