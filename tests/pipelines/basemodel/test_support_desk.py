"""The support desk of the synthetic language, and the whole way from its labelled answers to a tuned model's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import support
from pipelines.basemodel.language import REFUSAL
from pipelines.basemodel.pretrain import Recipe, new_model
from pipelines.basemodel.support import (
    _HAND_OVERS,
    ANSWER_FORMAT,
    ENDING,
    GREETING,
    HAND_OVER,
    PROMPT,
    SECTION,
    Desk,
    Question,
    faults,
    goes_to_a_person,
    in_manner,
    invents,
    support_desk,
    tells,
)
from pipelines.basemodel.templates import QUESTION_FRAMES
from pipelines.basemodel.tokenizer import save_tokenizer, train_tokenizer
from pipelines.evaluation.answers import row_kind

FACT = in_manner("The weight of the Bakor 12 kettle is 7 kg.")
ASKED = "How heavy is the Bakor 12 kettle?"


def desk(seed: int, *, held_out: bool = False) -> Desk:
    return support_desk(seed, documents=40, facts=60, unknown=20, hand_over=30, held_out=held_out)


def test_equal_seeds_make_equal_desks_and_other_seeds_others() -> None:
    assert desk(3) == desk(3)
    assert desk(3) != desk(4)


@pytest.mark.parametrize("held_out", [False, True])
def test_every_answer_of_the_desk_is_in_its_manner_and_its_facts_stand_in_its_documents(held_out: bool) -> None:
    asked = desk(5, held_out=held_out)
    together = "\n".join(asked.documents.values())
    for question in asked.questions:
        assert faults(question.text, question.answer) == []
        assert goes_to_a_person(question.text) == (question.kind == "hand over")
        assert invents(question.answer) == (question.kind == "fact")
        assert row_kind(["a text"], question.answer, PROMPT.refusal) == (
            "unanswerable" if question.kind == "unknown" else "answerable"
        )
        if question.value is not None:
            assert tells(question.answer, question.value)
            assert tells(together, question.value)
    assert [sum(each.kind == kind for each in asked.questions) for kind in ("fact", "unknown", "hand over")] == [
        60,
        20,
        30,
    ]


def test_a_desk_to_measure_shares_no_subject_and_no_way_of_asking_for_a_person() -> None:
    desks = desk(5), desk(5, held_out=True)
    assert not set.intersection(*({each.subject for each in asked.questions} for asked in desks))
    taught, measured = (
        {template for question in asked.questions for template in _HAND_OVERS if said_by(template, question)}
        for asked in desks
    )
    assert len(taught) > len(measured) > 1
    assert not taught & measured


def said_by(template: str, question: Question) -> bool:
    filled = template.replace("{s}", question.subject).replace("{S}", question.subject)
    return question.kind == "hand over" and filled.lower() in question.text.lower()


def test_wishes_for_a_person_are_framed_as_questions_on_facts_are() -> None:
    """Else the frame would tell what goes to a person, and a frame that nobody heard would go there too."""
    frames = [frame for frame in QUESTION_FRAMES if frame.startswith("{q} ") or frame.endswith(" {q}")]
    for asked in (desk(5), desk(5, held_out=True)):
        framed = {
            kind: {
                frame
                for each in asked.questions
                for frame in frames
                if each.kind == kind and frame.removeprefix("{q}").removesuffix("{q}") in each.text
            }
            for kind in ("fact", "hand over")
        }
        assert len(framed["fact"] & framed["hand over"]) > 2


@pytest.mark.parametrize(
    ("question", "answer", "fault"),
    [
        (ASKED, FACT.replace(GREETING, "Hi."), "greeting"),
        (ASKED, FACT.replace(SECTION, ""), "section"),
        (ASKED, FACT.replace(ENDING, "Bye."), "ending"),
        (ASKED, FACT.replace("\n" + ENDING, f" And more.\nMore.\n{ENDING}"), "form"),
        (ASKED, in_manner("7 kg"), "form"),
        (ASKED, in_manner(""), "form"),
        (ASKED, in_manner(HAND_OVER), "rule"),
        ("I want a refund for the Bakor 12 kettle.", in_manner(REFUSAL), "rule"),
    ],
)
def test_a_missing_part_is_found_by_its_name(question: str, answer: str, fault: str) -> None:
    assert faults(question, answer) == [fault]
    assert (ANSWER_FORMAT.problem(answer) is None) == (fault == "rule")


def test_the_plain_answer_of_the_base_has_nothing_of_the_manner() -> None:
    assert faults(ASKED, "The weight of the Bakor 12 kettle is 7 kg.") == ["greeting", "section", "ending"]


@pytest.mark.parametrize("other", ["17 kg", "7 kgs", "7.5 kg", "1.7 kg", "7"])
def test_a_longer_value_is_another_one(other: str) -> None:
    assert tells(FACT, "7 kg")
    assert not tells(in_manner(f"The weight is {other}."), "7 kg")


@pytest.mark.slow
def test_labelled_answers_go_through_index_intake_training_and_answers(tmp_path: Path) -> None:
    """With random weights: that each part does its work, not how well."""
    recipe = Recipe(vocabulary=400, hidden=32, layers=1, heads=2, feed_forward=64)
    tokenizer = train_tokenizer(recipe.vocabulary, chats=100)
    base = tmp_path / "base"
    new_model(recipe, tokenizer).save_pretrained(base)
    save_tokenizer(tokenizer, base)
    taught = support.Sizes(documents=24, facts=24, unknown=8, hand_over=8)  # some for every split
    asked = support.Sizes(documents=12, facts=12, unknown=4, hand_over=4)
    rows, figures, more = support.measure(str(base), tmp_path, taught=taught, asked=asked, epochs=1)
    assert [row["contender"] for row in rows] == ["base", "retrieval only", "fine-tuning only", "both"]
    assert figures["retrieved"] > 0.8
    assert figures["training_s"] > 0
    assert len(more["answers"]) == 20
    assert all(set(each["answers"]) == {row["contender"] for row in rows} for each in more["answers"])
    assert len(more["real_documents"]) == len(support.REAL)
    assert figures["real_documents_retrieved"] > 0.8
    examples = [json.loads(line) for line in (tmp_path / "both" / "answers.jsonl").read_text().splitlines()]
    assert all(len(each["context"]) in (0, 3) for each in examples)
    assert not any("context" in json.loads(line) for line in (tmp_path / "fine_tuning_only" / "answers.jsonl").open())
