"""Filters as text, and fusion: pure functions."""

from __future__ import annotations

import pytest

from pipelines.corpus.filters import may_read, parsed_filters
from pipelines.corpus.fusion import DOCUMENT_SHARE, RRF_K, above_average, fused, lifted
from pipelines.corpus.index import Candidates, Scored
from pipelines.errors import ConfigError


def test_filters_are_read_from_text() -> None:
    texts = ["product=pump", " product = tank ", "year>=2024", "year<2026", "released<=2025-01-01", "title=a=b > c"]
    assert parsed_filters(texts) == {
        "product": ["pump", "tank"],
        "year": {"gte": "2024", "lt": "2026"},
        "released": {"lte": "2025-01-01"},
        "title": ["a=b > c"],
    }
    assert parsed_filters([]) == {}


@pytest.mark.parametrize("text", ["", "pump", "=pump", "two words=1", "year!=3"])
def test_a_text_that_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not like field=value"):
        parsed_filters([text])


@pytest.mark.parametrize("texts", [["a=1", "a>=2"], ["a>1", "a=1"], ["a>1", "a>2"]])
def test_values_and_bounds_of_one_field_contradict(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="contradicts an earlier one on 'a'"):
        parsed_filters(texts)


@pytest.mark.parametrize(
    ("access", "principals", "readable"),
    [
        (["staff"], ["staff"], True),
        (["staff"], ["ann", "staff"], True),
        (["staff"], ["ann"], False),
        (["*"], ["ann"], True),
        (["*"], [], False),
        ([], ["ann"], False),
        ([], ["*"], False),
        ([], [], False),
    ],
)
def test_who_may_read_what(access: list[str], principals: list[str], readable: bool) -> None:
    """I21"""
    assert may_read(access, principals) is readable


def ranking(**scores: float) -> list[Scored]:
    return [Scored(name, score) for name, score in scores.items()]


def test_reciprocal_ranks_add_up() -> None:
    found = fused(Candidates(ranking(a=0.9, b=0.5), ranking(b=7, c=3)), "rrf")
    assert [each.point_id for each in found] == ["b", "a", "c"]
    assert found[0].score == pytest.approx(1 / (RRF_K + 2) + 1 / (RRF_K + 1))


def test_scores_add_up_by_their_distribution() -> None:
    found = {each.point_id: each.score for each in fused(Candidates(ranking(a=0.9, b=0.5), ranking(b=7, c=3)), "dbsf")}
    spread = 1 / (6 * 2**0.5)  # of two scores, each lies 1 / sqrt(2) standard deviations from the mean
    assert found == pytest.approx({"a": 0.5 + spread, "b": 1.0, "c": 0.5 - spread})


def test_a_chunk_gains_from_what_else_its_document_scores_above_average() -> None:
    candidates = Candidates(ranking(x1=0.9, y1=0.9, y2=0.8, y3=0.1, z1=0.1), ranking(x1=9, y1=9, y2=8, y3=1, z1=1))
    before = fused(candidates, "dbsf")
    above = above_average(before, candidates)
    assert [each.point_id for each in above] == ["x1", "y1", "y2"]
    documents = {each.point_id: ("s", each.point_id[0]) for each in above}
    scores = {each.point_id: each.score for each in before}
    found = {each.point_id: each.score for each in lifted(before, above, documents)}
    assert list(found) == ["y1", "x1", "y2", "y3", "z1"]
    assert found["y1"] == pytest.approx(scores["y1"] + DOCUMENT_SHARE * (scores["y2"] - 1))
    assert found["y2"] == pytest.approx(scores["y2"] + DOCUMENT_SHARE * (scores["y1"] - 1))
    assert [found[name] for name in ("x1", "y3", "z1")] == [scores[name] for name in ("x1", "y3", "z1")]
    assert lifted(before, above, {}) == before


def test_equal_scores_come_in_the_order_of_their_ids() -> None:
    for fusion in ("dbsf", "rrf"):
        found = fused(Candidates(ranking(b=0.5), ranking(a=0.5)), fusion)
        assert [each.point_id for each in found] == ["a", "b"]
    assert fused(Candidates([], []), "dbsf") == []
    assert [each.score for each in fused(Candidates(ranking(a=0.7), []), "dbsf")] == [0.5]


def test_the_command_takes_filters_principals_neighbours_and_a_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import ask
    from pipelines.declaration import USE_CASES

    given: dict[str, object] = {}
    monkeypatch.setattr(ask, "ask", lambda *names, **options: given.update(options, names=names) or [])
    arguments = ["support", "why", "--filter", "product=kettle", "--filter", "year>=2025", "--principal", "staff"]
    assert ask.main([*arguments, "--principal", "ann", "--neighbours", "2", "--mode", "words", "--top-k", "3"]) == 0
    assert given == {
        "names": ("support", "why"),
        "top_k": 3,
        "filters": {"product": ["kettle"], "year": {"gte": "2025"}},
        "principals": ["staff", "ann"],
        "neighbours": 2,
        "mode": "words",
        "use_cases": USE_CASES,
    }


def test_the_command_says_what_is_wrong_with_a_filter(capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines import ask

    assert ask.main(["support", "why", "--filter", "kettle"]) == 2
    assert "ConfigError: filter 'kettle' is not like field=value" in capsys.readouterr().err
