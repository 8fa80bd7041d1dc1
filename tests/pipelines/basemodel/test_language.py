"""The synthetic language: what is measured was never trained on, and every answer can be read in the text."""

from collections.abc import Callable, Sequence

import pytest

from pipelines.basemodel import templates, vocabulary
from pipelines.basemodel.language import (
    REFUSAL,
    Draw,
    _asked_anew,
    _stated_anew,
    case,
    chat,
    practice,
    texts_and_facts,
)


def test_equal_seeds_draw_equal_chats_and_other_seeds_others() -> None:
    chats = [[chat(Draw(seed), texts=3, facts=4, questions=3) for _ in range(3)] for seed in (4, 4, 5)]
    assert chats[0] == chats[1]
    assert chats[0] != chats[2]


@pytest.mark.parametrize("lifelike", [False, True])
@pytest.mark.parametrize("held_out", [False, True])
def test_a_right_answer_stands_in_the_texts_and_a_refusal_where_it_does_not(held_out: bool, lifelike: bool) -> None:
    draw = Draw(7, held_out=held_out, lifelike=lifelike)
    for _ in range(200):
        found = case(draw)
        assert found.value is not None
        assert found.value in found.answer
        assert any(found.value.lower() in text.lower() for text in found.context)
        missing = case(draw, absent=True)
        assert missing.answer.endswith(REFUSAL)
        assert missing.value is None


def test_what_is_absent_is_said_of_no_subject_of_that_name() -> None:
    draw = Draw(11)
    for _ in range(100):
        _, told, untold = texts_and_facts(draw, texts=3, facts=4)
        assert not {(each.subject, each.attribute) for each in told} & {
            (each.subject, each.attribute) for each in untold
        }


def test_training_and_measuring_share_no_name_number_word_or_template() -> None:
    training, measuring = Draw(1), Draw(1, held_out=True)
    for make in (Draw.word, Draw.person, Draw.city, Draw.code, Draw.money, Draw.date, Draw.span):
        trained_on, measured = {make(training) for _ in range(2000)}, {make(measuring) for _ in range(300)}
        assert not trained_on & measured, make
    lists = [
        value
        for name, value in vars(vocabulary).items()
        if name.isupper() and name not in ("NUCLEI", "CODAS", "ONSETS")
    ]
    for words in lists:
        assert not {training.of(words) for _ in range(400)} & {measuring.of(words) for _ in range(400)}
    asked = [
        {
            each.question.replace(each.subject, "").replace(each.attribute, "")
            for _ in range(400)
            for each in texts_and_facts(draw, texts=1, facts=4)[1]
        }
        for draw in (training, measuring)
    ]
    assert not asked[0] & asked[1]


@pytest.mark.parametrize(("anew", "listed"), [(_stated_anew, templates.STATEMENTS), (_asked_anew, templates.QUESTIONS)])
def test_templates_put_together_at_random_are_ever_new_and_none_of_those_kept_for_measuring(
    anew: Callable[[Draw], str], listed: Sequence[str]
) -> None:
    draw = Draw(2, lifelike=True)
    made = [anew(draw) for _ in range(4000)]
    assert len(set(made)) > 2500
    assert not set(made) & set(listed)
    assert all("{s}" in each or "{S}" in each for each in made if anew is _asked_anew)


def test_words_that_no_list_has_stand_where_names_stand_in_training_alone() -> None:
    training, measuring = Draw(3, lifelike=True), Draw(3, lifelike=True, held_out=True)
    assert {training.named(vocabulary.PRODUCTS) for _ in range(300)} - set(vocabulary.PRODUCTS)
    assert {measuring.named(vocabulary.PRODUCTS) for _ in range(300)} <= set(vocabulary.PRODUCTS)


def test_practice_says_everything_twice() -> None:
    lines = practice(Draw(3), items=6).splitlines()
    assert len(lines) == 12
    assert sorted(lines[:6]) == sorted(lines[6:])


def test_lifelike_texts_share_a_subject_and_questions_call_it_by_other_names() -> None:
    draw = Draw(5, lifelike=True)
    shared = renamed = 0
    for _ in range(100):
        context, told, _ = texts_and_facts(draw, texts=3, facts=3)
        subjects = {each.subject for each in told if each.attribute}
        shared += any(sum(name.removeprefix("the ") in text for text in context) > 1 for name in subjects)
        renamed += any(each.attribute and each.subject.lower() not in each.question.lower() for each in told)
        assert all(each.value.lower() in "\n".join(context).lower() for each in told)
    assert shared > 20
    assert renamed > 20


def test_often_nearly_the_same_is_said_of_subjects_of_nearly_the_same_name() -> None:
    """Which text is whose decides then what the answer is, and whether there is one."""
    draw = Draw(13, lifelike=True)
    shared = alike = missing = 0
    for _ in range(200):
        _, told, untold = texts_and_facts(draw, texts=3, facts=4)
        said: dict[str, set[str]] = {}
        for fact in told:
            said.setdefault(fact.subject, set()).add(fact.attribute)
        pairs = [(one, other) for one in said for other in said if one < other]
        shared += any(len(said[one] & said[other]) > 1 for one, other in pairs)
        alike += any(len(set(one.split()) ^ set(other.split())) == 2 and len(one.split()) > 3 for one, other in pairs)
        missing += any(
            fact.subject in said and any(fact.attribute in each for each in said.values()) for fact in untold
        )
    assert shared > 80
    assert alike > 15
    assert missing > 80
