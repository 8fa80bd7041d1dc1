from __future__ import annotations

import random

import numpy as np
import pytest

from pipelines.evaluation.style import masked, style_scores

THINGS = tuple(
    first + second for first in ("ket", "lam", "cha", "bik", "ten", "boo") for second in ("tle", "per", "ex")
)


def polite(draw: random.Random) -> str:
    thing = draw.choice(THINGS)
    return draw.choice(
        (
            f"Thank you for asking about the {thing}. It comes back within {draw.randint(2, 99)} days. Kind regards",
            f"Thanks for your note. We look after the {thing} and call you on day {draw.randint(2, 99)}. Kind regards",
        )
    )


def terse(draw: random.Random) -> str:
    thing = draw.choice(THINGS)
    return draw.choice((f"{thing}: ok", f"- {thing}\n- {draw.randint(1, 99)} maybe", f"just return the {thing}"))


def test_the_manner_of_the_references_is_told_from_the_base_and_hard_to_game() -> None:
    draw = random.Random(1)
    learned, references = [polite(draw) for _ in range(200)], [polite(draw) for _ in range(60)]
    other_topics = [answer.replace("the ", "the Zylophone") for answer in references]
    answers = {
        "base": [terse(draw) for _ in range(60)],
        "candidate": [polite(draw) for _ in range(60)],
        "topics": other_topics,
        "shuffled": [" ".join(draw.sample(answer.split(), len(answer.split()))) for answer in references],
        "stuck": ["Thank you " * 10] * 60,
        "cut": [answer[: len(answer) // 2] for answer in references],
        "empty": [""] * 60,
    }
    found = style_scores(learned, references, answers)
    assert found is not None
    mean = {name: scores.mean() for name, scores in found.scores.items()}
    assert found.auc > 0.95
    assert mean["candidate"] == pytest.approx(found.references, abs=0.05)
    assert mean["candidate"] > 0.8
    assert mean["topics"] > 0.8, "what an answer is about tells nothing"
    for bad in ("base", "shuffled", "stuck", "cut", "empty"):
        assert mean[bad] < 0.4, bad
    assert all(((scores >= 0) & (scores <= 1)).all() for scores in found.scores.values())


def test_a_base_that_already_has_the_manner_is_not_told_from_it_even_by_rows_it_was_fitted_on() -> None:
    draw = random.Random(2)
    learned, references, base = ([polite(draw) for _ in range(count)] for count in (150, 80, 80))
    found = style_scores(learned, references, {"base": base})
    assert found is not None
    assert 0.35 < found.auc < 0.65
    assert found.scores["base"].mean() == pytest.approx(found.references, abs=0.05)


def test_equal_answers_score_the_same_and_too_few_references_score_nothing() -> None:
    draw = random.Random(3)
    learned, references, base = ([polite(draw) for _ in range(60)], [polite(draw) for _ in range(20)], ["ok"] * 20)
    found = style_scores(learned, references, {"base": base, "candidate": base})
    assert found is not None
    assert np.array_equal(found.scores["base"], found.scores["candidate"])
    assert style_scores(learned[:10], references, {"base": base}) is None


def test_rare_words_and_numbers_are_masked_and_their_shape_stays() -> None:
    assert masked("Please send 12.5 kg to IBM in Bonn, naïve!", {"please", "to", "in"}) == "Please w 0 w to A in W, w!"
