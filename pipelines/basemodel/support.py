"""A support desk in the synthetic language: documents, what customers ask, and the manner in which it answers.

What is to be learnt from labelled answers is the manner alone: a greeting, a section, an ending, the words for not
knowing, and the rule by which a question goes to a person. The facts stand in the documents, which are new each time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.basemodel.language import REFUSAL, Draw, Fact, refusal, texts_and_facts
from pipelines.basemodel.templates import QUESTION_FRAMES
from pipelines.prompt import AnswerFormat, PromptSettings

Kind = Literal["fact", "unknown", "hand over"]

GREETING, SECTION, ENDING = "Hello and thank you for asking.", "Answer: ", "Anything else? Write to us."
HAND_OVER = "I am passing this on to a colleague."
RULE = "Refunds, complaints, lawyers, injuries and the wish for a person go to a colleague, whatever the documents say."

_RULE = re.compile(
    r"\b(refund|money back|complain|lawyer|sue|injur|hurt|person\b|human\b|somebody real)", re.IGNORECASE
)
_BODY = r"(?:{refusal}|{hand_over}|The [^\n]+ of [^\n]+ is [^\n]+\.)".format(  # noqa: UP032 - of patterns with braces
    refusal=re.escape(REFUSAL), hand_over=re.escape(HAND_OVER)
)
ANSWER_FORMAT = AnswerFormat(regex=rf"{re.escape(GREETING)}\n{re.escape(SECTION)}{_BODY}\n{re.escape(ENDING)}")
"""What every answer looks like: three lines, the middle one of three forms."""

PROMPT = PromptSettings(answer_format=ANSWER_FORMAT)
"""Said to the model as by default; how its answers are judged is the desk's own."""

_HAND_OVERS = (
    "I want a refund for {s}.",
    "I have a complaint about {s}.",
    "My lawyer will write to you about {s}.",
    "I was injured by {s}.",
    "Let me talk to a person about {s}.",
    "Please refund {s}, I sent it back.",
    "I must complain: {s} came broken.",
    "Do I need a lawyer because of {s}?",
    "My child was injured by {s}.",
    "I would rather speak to a person about {s}.",
    "When is the refund for {s} paid?",
    "Where do I complain about {s}?",
    "I asked a lawyer about {s}.",
    "There was an injury at work with {s}.",
    "Is there a person who can help me with {s}?",
    "You promised a refund of {s} weeks ago.",
    "This is my second complaint about {s}.",
    "A lawyer has told me to write about {s}.",
    "{S} fell on my foot, and I am injured.",
    "Give me a person, please. It is about {s}.",
    "Has the refund of {s} been sent yet?",
    "I am writing to complain about {s} again.",
    "Our lawyer is looking at {s}.",
    "Somebody was injured while using {s}.",
    "Can a person call me about {s}?",
)
"""In turn of a refund, a complaint, a lawyer, an injury and a person: the last five are kept for measuring."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a customer asks."""

    text: str
    kind: Kind
    subject: str
    answer: str
    """As the desk answers, in its manner."""
    value: str | None
    """What an answer with the fact contains; None where there is none to tell."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Documents and questions on them."""

    documents: Mapping[str, str]
    """Markdown by file name, one subject each."""
    questions: Sequence[Question]


def in_manner(body: str) -> str:
    """``body`` as the desk says it."""
    return f"{GREETING}\n{SECTION}{body}\n{ENDING}"


def goes_to_a_person(question: str) -> bool:
    """What ``RULE`` says."""
    return _RULE.search(question) is not None


def faults(question: str, answer: str) -> list[str]:
    """What is wrong with the manner of an answer, part by part; empty where nothing is. Whether it is true is apart."""
    answer = answer.strip()
    found = []
    if not answer.startswith(f"{GREETING}\n"):
        found.append("greeting")
    if f"\n{SECTION}" not in answer:
        found.append("section")
    if not answer.endswith(f"\n{ENDING}"):
        found.append("ending")
    if not found and ANSWER_FORMAT.problem(answer) is not None:
        found.append("form")
    if (HAND_OVER in answer) != goes_to_a_person(question):
        found.append("rule")
    return found


def tells(answer: str, value: str) -> bool:
    """Whether ``value`` stands in the answer, and not as a part of a longer word or number."""
    return re.search(rf"(?<![\w.,]){re.escape(value)}(?!\w|[.,]\w)", answer, re.IGNORECASE) is not None


def invents(answer: str) -> bool:
    """Whether an answer to what no document says claims to know it."""
    return REFUSAL not in answer and HAND_OVER not in answer


def support_desk(
    seed: int, *, documents: int, facts: int, unknown: int, hand_over: int, held_out: bool = False
) -> Desk:
    """A desk with so many documents and questions of each kind; ``held_out``: it shares no name, value or template.

    Documents are laid out, and questions asked, in the lifelike way: where every question of those that are taught
    begins alike, whatever begins otherwise would pass for what goes to a person. For that reason a wish is framed as
    questions are, and nobody asks among words that mean nothing, as in the base's training.

    Raises:
        ValueError: there is not so much to ask about so few documents.
    """
    draw = Draw(seed, held_out=held_out, lifelike=True, anew=False)
    texts: dict[str, str] = {}
    told: list[Fact] = []
    absent: list[Fact] = []
    subjects: set[str] = set()
    while len(texts) < documents:
        [text], said, untold = texts_and_facts(draw, texts=1, facts=4)
        said = [each for each in said if each.attribute]  # a sentence that is answered whole has no form of its own
        untold = [each for each in untold if each.attribute]
        if not said:
            continue
        subject = said[0].subject
        if subject in subjects or not _is_sold(subject):
            continue
        subjects.add(subject)
        texts[f"{len(texts):04}.md"] = _markdown(text)
        told += said
        absent += [each for each in untold if _is_sold(each.subject)]
    if len(told) < facts or len(absent) < unknown:
        raise ValueError(f"{documents} documents say {len(told)} facts and leave {len(absent)} open: ask for no more")
    pick = draw.random
    asked = [
        *(
            Question(each.question, "fact", each.subject, in_manner(each.answer), each.value)
            for each in pick.sample(told, facts)
        ),
        *(
            Question(each.question, "unknown", each.subject, in_manner(refusal(each)), None)
            for each in pick.sample(absent, unknown)
        ),
    ]
    handed_over: set[str] = set()
    while len(handed_over) < hand_over:
        subject = pick.choice(sorted(subjects))
        wish = draw.of(_HAND_OVERS).replace("{s}", subject).replace("{S}", subject[0].upper() + subject[1:])
        wish = draw.of(QUESTION_FRAMES).replace("{q}", wish)
        if wish not in handed_over:
            handed_over.add(wish)
            asked.append(Question(wish, "hand over", subject, in_manner(HAND_OVER), None))
    pick.shuffle(asked)
    return Desk(texts, asked)


def _is_sold(subject: str) -> bool:
    """Products, parts, plans and policies: companies, code and appointments are nothing for a support desk."""
    others = subject.endswith((" meeting", " workshop")) or goes_to_a_person(subject)  # terms of refunds
    return subject.startswith("the ") and not others


def _markdown(text: str) -> str:
    """A path of headings, as chunks have it, as the headings that it is made from."""
    return re.sub(r"(?m)^([^\n>]+) > ([^\n>]+)\n\n", r"# \1\n\n## \2\n\n", text, count=1) + "\n"
