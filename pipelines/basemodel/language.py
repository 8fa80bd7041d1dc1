"""A synthetic language of products, policies, companies, code reviews and appointments, with questions about it.

Every name, number, date and phrasing is drawn anew, so that a model can only answer by copying from the text before
it. What is drawn for measuring shares no name, value or template with what is drawn for training: names and values are
told apart by a hash, templates and words by their place in their list. Only the words for an attribute are shared (that
what weighs has a weight), and the commonest of English: a language has to be known to be read.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipelines.basemodel import templates
from pipelines.basemodel import vocabulary as words
from pipelines.prompt import Message, PromptSettings, build_messages

REFUSAL = PromptSettings().refusal
"""What the model says where the text does not tell, after it has said of what: that is looked up as for an answer."""
NOT_STATED = "not stated"
"""What an answer says in the place of a value that no text tells."""

_SETTINGS = PromptSettings()


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that a text says: the ``attribute`` of a ``subject`` has a ``value``."""

    subject: str
    attribute: str
    value: str
    statement: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Case:
    """A question on retrieved texts, with the answer to it."""

    context: tuple[str, ...]
    question: str
    answer: str
    value: str | None
    """What a right answer contains; None where the texts do not tell."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What can be said of one kind of subject; without attributes, anything."""

    subject: Callable[[Draw], str]
    title: tuple[str, ...]
    attributes: tuple[_Attribute, ...]


@dataclass(frozen=True, slots=True)
class _Attribute:
    name: str
    value: Callable[[Draw], str]
    statements: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()


_RUDE = re.compile("fuck|cock|dick|shit|cunt|twat|piss|tit", re.IGNORECASE)
"""What syllables at random should not make."""


class Draw:
    """Draws everything at random, for training or for measuring."""

    def __init__(self, seed: int, *, held_out: bool = False, lifelike: bool = False, anew: bool = True) -> None:
        self.random = random.Random(seed)  # noqa: S311 - nothing secret
        self.held_out = held_out
        self.lifelike = lifelike
        """Whether texts are cut out of longer documents, and people ask as people do."""
        self.anew = anew and lifelike and not held_out
        """Whether words and templates that no list has are drawn too: in lifelike training."""

    def of(self, options: Sequence[str]) -> str:
        """One of a list: of its last fifth for measuring, of the rest for training."""
        cut = len(options) - max(1, len(options) // 5)
        return self.random.choice(options[cut:] if self.held_out else options[:cut])

    def named(self, options: Sequence[str]) -> str:
        """One of a list of words, or another one where they are drawn, so that a word never heard is read like any."""
        if self.anew and self.random.random() < 0.3:
            return self.nonsense()
        return self.of(options)

    def babble(self) -> str:
        """What somebody says beside: some words in a row, known ones and many never heard."""
        if self.random.random() < 0.4:
            return self.phrase()
        chance = self.random.random() * 0.6  # share of known words
        return " ".join(
            self.random.choice(words.SMALL_WORDS) if self.random.random() < chance else self._letters()
            for _ in range(self.random.randint(1, 7))
        )

    def _letters(self) -> str:
        """A word, or letters in a row."""
        if self.random.random() < 0.3:
            return self.word().lower()
        return "".join(self.random.choice("eeetaaoinnsshrrdlucmfwypvbgk") for _ in range(self.random.randint(2, 8)))

    def nonsense(self) -> str:
        """A word or some that mean nothing where they stand."""
        return self.word().lower() if self.random.random() < 0.4 else self.phrase(longest=2)

    def made(self, make: Callable[[], str]) -> str:
        """What ``make`` gives, drawn until its hash says that it belongs to this half."""
        while True:
            text = make()
            if (hashlib.sha256(text.encode()).digest()[0] < 51) == self.held_out:
                return text

    def number(self, low: int, high: int) -> str:
        """A whole number."""
        return self.made(lambda: str(self.random.randint(low, high)))

    def word(self) -> str:
        """A name nobody has heard: two or three syllables."""
        choose = self.random.choice

        def make() -> str:
            syllables = self.random.choice((2, 2, 3))
            parts = [choose(words.ONSETS) + choose(words.NUCLEI) + choose(words.CODAS) for _ in range(syllables)]
            name = "".join(parts).capitalize()
            return make() if _RUDE.search(name) else name

        return self.made(make)

    def person(self) -> str:
        """First name and family name."""
        return f"{self.of(words.FIRST_NAMES)} {self.word()}"

    def city(self) -> str:
        """A place."""
        return self.made(lambda: self.random.choice(words.CITIES_START) + self.random.choice(words.CITIES_END))

    def company(self) -> str:
        """Its name."""
        ending = self.random.choice(("", " Group", " Ltd", " Systems", " Works", " & Co", " Labs", " GmbH"))
        return self.word() + ending

    def code(self) -> str:
        """A model or order number."""
        letters = "".join(self.random.choice("ABCDEFGHKLMNPRSTVWX") for _ in range(self.random.randint(1, 3)))
        form = self.random.choice(("{l}{n}", "{l}-{n}", "{n}{l}", "{n}", "{l} {n}"))
        return self.made(lambda: form.format(l=letters, n=self.random.randint(2, 9999)))

    def date(self) -> str:
        """A day, written in one of three ways."""
        form = self.random.choice(("{d} {m} {y}", "{y}-{i:02}-{d:02}", "{m} {d}, {y}"))

        def make() -> str:
            month = self.random.randint(1, 12)
            day, year = self.random.randint(1, 28), self.random.randint(1990, 2035)
            return form.format(d=day, m=words.MONTHS[month - 1], y=year, i=month)

        return self.made(make)

    def time(self) -> str:
        """A time of day."""
        return self.made(
            lambda: f"{self.random.randint(6, 21)}:{self.random.choice(('00', '15', '30', '45', '10', '20'))}"
        )

    def money(self) -> str:
        """An amount with its currency."""
        unit = self.random.choice(("EUR", "USD", "euros", "GBP"))
        form = self.random.choice(("{a}", "{a}.{c:02}", "{a},000"))
        return self.made(lambda: form.format(a=self.random.randint(3, 990), c=self.random.randint(5, 99)) + f" {unit}")

    def quantity(self, *units: str, low: int = 2, high: int = 900) -> str:
        """A number with one of the units."""
        unit = self.random.choice(units)
        decimal = self.random.random() < 0.25

        def make() -> str:
            whole = self.random.randint(low, high)
            return f"{whole}.{self.random.randint(1, 9)} {unit}" if decimal else f"{whole} {unit}"

        return self.made(make)

    def phrase(self, longest: int = 5) -> str:
        """Some words in a row that mean nothing together: they can only be copied."""

        def make() -> str:
            number = min(longest, self.random.choice((1, 2, 2, 3, 3, 4, 5)))
            picked = [self.random.choice(words.WORDS) for _ in range(number)]
            if len(picked) > 2 and self.random.random() < 0.6:
                picked.insert(-1, self.random.choice(("and", "or", "with", "to", "of", "for", "in")))
            return " ".join(picked)

        return self.made(make)

    def figure(self) -> str:
        """A number with a unit, as data sheets give it: a range, a tolerance, three sides, a condition."""
        choose, number = self.random.choice, self.random.randint

        def make() -> str:
            unit, first, second = choose(words.UNITS), number(1, 99), number(100, 990)
            form = choose(templates.FIGURES)
            return form.format(
                u=unit, n=first, m=second, k=number(2, 60), d=number(0, 9), t=f"{number(1, 99)},{number(0, 999):03}"
            )

        return self.made(make)

    def anything(self) -> str:
        """The value of an attribute of which nothing is known."""
        if self.lifelike and self.random.random() < 0.3:
            form = self.random.choice(templates.TAILS)
            made: dict[str, Callable[[], str]] = {
                "f": self.figure,
                "p": self.phrase,
                "n": lambda: self.random.choice(templates.COUNTS),
            }
            return "".join(made[part]() if part in made else part for part in form.split("|"))
        chance = self.random.random()
        if chance < 0.5:
            return self.figure()
        if chance < 0.65:
            return f"{self.figure()}, {self.phrase()}"
        if chance < 0.72:
            return f"{self.figure()} {self.phrase()}"
        if chance < 0.8:
            return self.random.choice((self.date, self.code, self.person, self.money, self.company))()
        return self.phrase()

    def span(self) -> str:
        """A length of time."""
        return self.quantity("days", "weeks", "months", "years", "hours", "working days", "minutes", high=90)


def _q(*units: str, low: int = 2, high: int = 900) -> Callable[[Draw], str]:
    return lambda draw: draw.quantity(*units, low=low, high=high)


def _one_of(options: Sequence[str]) -> Callable[[Draw], str]:
    return lambda draw: draw.named(options)


_PRODUCT = (
    _Attribute(
        "weight",
        _q("kg", "g"),
        ("{S} weighs {v}.", "At {v}, {s} is easy to carry.", "{S} comes to {v} on the scale."),
        ("How heavy is {s}?", "What does {s} weigh?", "How much does {s} weigh?", "Give me the weight of {s}."),
    ),
    _Attribute(
        "price",
        Draw.money,
        ("{S} costs {v}.", "You pay {v} for {s}.", "{S} is sold for {v}.", "{S} is offered at {v}."),
        ("How much is {s}?", "What does {s} cost?", "How much does {s} cost?", "What do I pay for {s}?"),
    ),
    _Attribute(
        "voltage",
        _q("V", "volts"),
        ("{S} runs on {v}.", "{S} needs {v}."),
        ("What voltage does {s} need?", "On how many volts does {s} run?"),
    ),
    _Attribute(
        "power",
        _q("W", "kW", "watts"),
        ("{S} draws {v}.", "{S} takes up to {v}."),
        ("How much power does {s} draw?", "How many watts does {s} take?"),
    ),
    _Attribute(
        "capacity",
        _q("litres", "l", "ml", "Ah"),
        ("{S} holds {v}.", "Up to {v} fit into {s}."),
        ("How much does {s} hold?", "How much fits into {s}?"),
    ),
    _Attribute(
        "noise level",
        _q("dB", "dB(A)", high=95),
        ("{S} makes {v} of noise.", "One hears {s} at {v}."),
        ("How loud is {s}?", "How noisy is {s}?"),
    ),
    _Attribute(
        "warranty",
        Draw.span,
        (
            "{S} comes with {v} of warranty.",
            "The maker stands behind {s} for {v}.",
            "There are {v} of warranty on {s}.",
        ),
        ("How long is the warranty of {s}?", "How long does the warranty of {s} last?", "For how long is {s} covered?"),
    ),
    _Attribute(
        "delivery time",
        Draw.span,
        ("{S} is delivered within {v}.", "It takes {v} until {s} arrives."),
        ("How long does delivery of {s} take?", "When does {s} arrive?"),
    ),
    _Attribute(
        "maximum temperature",
        _q("°C", "degrees", high=400),
        ("{S} must not get hotter than {v}.", "{S} stands up to {v}."),
        ("How hot may {s} get?", "What temperature does {s} stand?"),
    ),
    _Attribute("protection class", lambda draw: "IP" + draw.number(20, 69)),
    _Attribute(
        "colour",
        _one_of(words.COLOURS),
        ("{S} is {v}.", "{S} comes in {v}."),
        ("What colour is {s}?", "In which colour does {s} come?"),
    ),
    _Attribute(
        "housing material",
        _one_of(words.MATERIALS),
        ("The housing of {s} is made of {v}.", "{S} has a housing of {v}."),
        ("What is the housing of {s} made of?", "Which material is the housing of {s}?"),
    ),
    _Attribute("length", _q("mm", "cm", "m")),
    _Attribute("width", _q("mm", "cm")),
    _Attribute("height", _q("mm", "cm", "m")),
    _Attribute("cable length", _q("m", "cm")),
    _Attribute(
        "firmware version", lambda draw: draw.made(lambda: ".".join(str(draw.random.randint(0, 19)) for _ in range(3)))
    ),
    _Attribute("order number", Draw.code),
    _Attribute("part number", Draw.code),
    _Attribute("certificate", Draw.code),
    _Attribute(
        "release date",
        Draw.date,
        ("{S} came out on {v}.", "{S} has been sold since {v}."),
        ("When did {s} come out?", "Since when is {s} sold?"),
    ),
    _Attribute(
        "supplier",
        Draw.company,
        ("{S} is supplied by {v}.", "{v} supplies {s}."),
        ("Who supplies {s}?", "Where does {s} come from?"),
    ),
    _Attribute(
        "successor",
        lambda draw: f"{draw.word()} {draw.code()}",
        ("{S} was followed by the {v}.", "{v} replaces {s}."),
        ("What replaces {s}?", "What comes after {s}?"),
    ),
    _Attribute("pressure", _q("bar", "hPa", "psi")),
    _Attribute("flow rate", _q("l/min", "m3/h")),
    _Attribute(
        "battery life",
        Draw.span,
        ("The battery of {s} lasts {v}.", "{S} runs for {v} on one charge."),
        ("How long does the battery of {s} last?", "How long does {s} run on one charge?"),
    ),
    _Attribute(
        "service interval",
        Draw.span,
        ("{S} is serviced every {v}.", "Have {s} serviced every {v}."),
        ("How often is {s} serviced?", "When is {s} due for service?"),
    ),
    _Attribute(
        "stock",
        _q("pieces", "units"),
        ("There are {v} of {s} in stock.", "We hold {v} of {s}."),
        ("How many of {s} are in stock?", "Is {s} in stock?"),
    ),
    _Attribute(
        "end of support",
        Draw.date,
        ("{S} is supported until {v}.", "Support of {s} ends on {v}."),
        ("Until when is {s} supported?", "When does support of {s} end?"),
    ),
)

_POLICY = (
    _Attribute(
        "deadline",
        Draw.span,
        ("Requests have to be made within {v}.", "There are {v} to hand it in."),
        ("How long do I have under {s}?", "What time limit does {s} set?"),
    ),
    _Attribute("notice period", Draw.span),
    _Attribute(
        "fee",
        Draw.money,
        ("{S} asks for {v}.", "A charge of {v} is made under {s}."),
        ("What do I have to pay under {s}?", "What is charged under {s}?"),
    ),
    _Attribute(
        "maximum amount",
        Draw.money,
        ("At most {v} are paid back under {s}.", "{S} covers up to {v}."),
        ("How much is paid at most under {s}?", "Up to what amount does {s} pay?"),
    ),
    _Attribute("approval limit", Draw.money),
    _Attribute(
        "contact",
        Draw.person,
        ("{v} answers questions about {s}.", "Write to {v} about {s}."),
        ("Whom do I ask about {s}?", "Who answers questions about {s}?"),
    ),
    _Attribute(
        "form",
        Draw.code,
        ("Fill in form {v}.", "Use form {v} for it."),
        ("Which form does {s} ask for?", "Which form do I fill in for {s}?"),
    ),
    _Attribute(
        "retention period",
        Draw.span,
        ("Records are kept for {v}.", "Papers are thrown away after {v}."),
        ("How long are records kept under {s}?", "For how long does {s} keep records?"),
    ),
    _Attribute("review cycle", Draw.span),
    _Attribute(
        "effective date",
        Draw.date,
        ("{S} has been in force since {v}.", "{S} applies from {v}."),
        ("From when does {s} apply?", "Since when is {s} in force?"),
    ),
    _Attribute("version", lambda draw: draw.made(lambda: f"{draw.random.randint(1, 19)}.{draw.random.randint(0, 9)}")),
    _Attribute("limit per year", _q("days", "times", "requests", high=60)),
)

_COMPANY = (
    _Attribute(
        "head office",
        Draw.city,
        ("{S} is based in {v}.", "{S} has its head office in {v}.", "The main site of {s} is in {v}."),
        ("Where is {s} based?", "In which city is {s}?", "Where does {s} sit?"),
    ),
    _Attribute(
        "founding year",
        lambda draw: draw.number(1870, 2025),
        ("{S} was founded in {v}.", "{S} has existed since {v}."),
        ("When was {s} founded?", "Since when does {s} exist?"),
    ),
    _Attribute(
        "number of employees",
        lambda draw: draw.number(4, 9800),
        ("{S} has {v} employees.", "{v} people work for {s}."),
        ("How many people work for {s}?", "How many employees does {s} have?"),
    ),
    _Attribute(
        "revenue",
        lambda draw: draw.quantity("million EUR", "million USD"),
        ("{S} turned over {v} last year.", "Sales of {s} came to {v}."),
        ("How much did {s} turn over?", "What were the sales of {s}?"),
    ),
    _Attribute(
        "chief executive", Draw.person, ("{v} leads {s}.", "{S} is led by {v}."), ("Who leads {s}?", "Who runs {s}?")
    ),
    _Attribute("head of sales", Draw.person),
    _Attribute(
        "founder",
        Draw.person,
        ("{S} was started by {v}.", "{v} founded {s}."),
        ("Who founded {s}?", "Who started {s}?"),
    ),
    _Attribute(
        "main trade",
        _one_of(words.TRADES),
        ("{S} works in {v}.", "{S} is known for {v}."),
        ("What does {s} do?", "In which trade is {s}?"),
    ),
    _Attribute("largest customer", Draw.company),
    _Attribute(
        "parent company",
        Draw.company,
        ("{S} belongs to {v}.", "{v} owns {s}."),
        ("Who owns {s}?", "To whom does {s} belong?"),
    ),
    _Attribute("telephone number", lambda draw: "0" + draw.number(200, 999) + " " + draw.number(10000, 999999)),
    _Attribute(
        "contract end",
        Draw.date,
        ("The contract with {s} ends on {v}.", "{S} is under contract until {v}."),
        ("When does the contract with {s} end?", "How long is {s} under contract?"),
    ),
    _Attribute("funding", lambda draw: draw.quantity("million EUR", "million USD")),
)

_CODE = (
    _Attribute(
        "problem",
        _one_of(words.PROBLEMS),
        ("In {s}, {v}.", "Look at {s}: {v}."),
        ("What is wrong in {s}?", "What is wrong with {s}?"),
    ),
    _Attribute(
        "remedy",
        _one_of(words.REMEDIES),
        ("In {s}, better {v}.", "For {s}: {v}."),
        ("How is {s} to be mended?", "What should be done in {s}?"),
    ),
    _Attribute(
        "line",
        lambda draw: draw.number(3, 990),
        ("Line {v} of {s} is meant.", "See line {v} of {s}."),
        ("Which line of {s} is meant?", "Where in {s} is it?"),
    ),
    _Attribute(
        "reviewer",
        Draw.person,
        ("{v} has read {s}.", "{S} was reviewed by {v}."),
        ("Who has reviewed {s}?", "Who read {s}?"),
    ),
    _Attribute(
        "author", Draw.person, ("{v} wrote {s}.", "{S} was written by {v}."), ("Who wrote {s}?", "Whose work is {s}?")
    ),
    _Attribute("test coverage", _q("%", high=99)),
    _Attribute("ticket", Draw.code),
    _Attribute("time-out", _q("seconds", "ms", "minutes")),
    _Attribute("default size", _q("rows", "bytes", "entries", "MB")),
)

_APPOINTMENT = (
    _Attribute(
        "date",
        Draw.date,
        ("{S} is on {v}.", "{S} takes place on {v}."),
        ("On which day is {s}?", "When does {s} take place?"),
    ),
    _Attribute(
        "start time",
        Draw.time,
        ("{S} begins at {v}.", "We start {s} at {v}."),
        ("At what time does {s} begin?", "When does {s} start?"),
    ),
    _Attribute(
        "room",
        lambda draw: f"{draw.named(words.ROOMS)} {draw.number(1, 400)}",
        ("{S} is held in {v}.", "Come to {v} for {s}."),
        ("Where is {s} held?", "In which room is {s}?"),
    ),
    _Attribute(
        "organiser",
        Draw.person,
        ("{v} organises {s}.", "{S} was called by {v}."),
        ("Who organises {s}?", "Who has called {s}?"),
    ),
    _Attribute("number of guests", lambda draw: draw.number(2, 400)),
    _Attribute("budget", Draw.money),
    _Attribute(
        "length",
        lambda draw: draw.quantity("minutes", "hours", high=240),
        ("{S} takes {v}.", "Plan {v} for {s}."),
        ("How long does {s} take?", "How long is {s}?"),
    ),
    _Attribute(
        "speaker",
        Draw.person,
        ("{v} speaks at {s}.", "The talk at {s} is given by {v}."),
        ("Who speaks at {s}?", "Who gives the talk at {s}?"),
    ),
)


def _product(draw: Draw) -> str:
    kind, brand = draw.named(words.PRODUCTS), draw.word()
    form = draw.random.choice(("the {b} {c}", "the {b} {c} {k}", "the {b} {k}", "the {k} {b} {c}"))
    return form.format(b=brand, c=draw.code(), k=kind)


def _code(draw: Draw) -> str:
    name = f"{draw.named(words.CODE_VERBS)}_{draw.named(words.CODE_WORDS)}".replace(" ", "_")
    if draw.random.random() < 0.5:
        return f"{name}_{draw.word().lower()}"
    return f"{draw.word().lower()}_{name}.py"


def _part(draw: Draw) -> str:
    return f"the {draw.named(words.PARTS)} {draw.code()}"


def _thing(draw: Draw) -> str:
    """The name of something sold, as its makers write it."""
    kind = " ".join(word.capitalize() for word in draw.named((*words.PRODUCTS, *words.PARTS)).split())
    form = draw.random.choice(("{w} {k}", "{w} {k}", "{w}", "{w} {n}", "{w} {n} {k}", "{w} {x} {k}"))
    return "the " + form.format(w=draw.word(), k=kind, n=draw.random.randint(2, 9), x=draw.word())


_COMMON = (
    _Attribute("weight", Draw.anything, (), ("How heavy is {s}?", "What does {s} weigh?")),
    _Attribute("size", Draw.anything, (), ("How big is {s}?", "What are the dimensions of {s}?", "How large is {s}?")),
    _Attribute("noise", Draw.anything, (), ("How loud is {s}?", "How noisy is {s}?")),
    _Attribute("accuracy", Draw.anything, (), ("How accurate is {s}?", "How exact is {s}?")),
    _Attribute("range", Draw.anything, (), ("What does {s} measure?", "From where to where does {s} measure?")),
    _Attribute("radio reach", Draw.anything, (), ("How far does the radio of {s} reach?", "How far away may {s} be?")),
    _Attribute("battery", Draw.anything, (), ("How long does the battery of {s} last?", "What battery does {s} take?")),
    _Attribute("working temperature", Draw.anything, (), ("At what temperatures does {s} work?",)),
    _Attribute("supply", Draw.anything, (), ("How is {s} powered?", "What power supply does {s} need?")),
    _Attribute("protection", Draw.anything, (), ("Is {s} waterproof?", "How well is {s} protected?")),
    _Attribute("depth", Draw.anything, (), ("How deep may {s} go?",)),
    _Attribute("price", Draw.anything, (), ("What does {s} cost?", "How much is {s}?")),
    _Attribute("warranty months", Draw.anything, (), ("How long is the warranty of {s}?",)),
    _Attribute("memory", Draw.anything, (), ("How much can {s} store?",)),
    _Attribute("interval", Draw.anything, (), ("How often does {s} measure?",)),
)


def _open(draw: Draw, number: int) -> list[_Attribute]:
    """Attributes that nothing is known of, and in lifelike texts some that everything has."""

    def make() -> str:
        noun = draw.random.choice(words.ATTRIBUTE_NOUNS)
        if draw.anew and draw.random.random() < 0.25:
            noun = draw.nonsense()
        before = draw.random.choice(("", *[draw.random.choice(words.ATTRIBUTE_WORDS)] * 2))
        return f"{before} {noun}".strip()

    common = draw.random.sample(_COMMON, draw.random.randint(0, min(number, len(_COMMON)))) if draw.lifelike else []
    names = {draw.made(make) for _ in range(number - len(common))} - {each.name for each in common}
    return [*common, *(_Attribute(name, Draw.anything) for name in sorted(names))]


_KINDS = (
    _Kind(_thing, ("{S}", "{S}"), ()),
    _Kind(_thing, ("{S}", "{S}"), ()),
    _Kind(_thing, ("{S}", "{S}"), ()),
    _Kind(lambda d: f"the {d.named(words.TOPICS)} terms of {d.company()}", ("{S}", "{S}"), ()),
    _Kind(_product, ("{S}", "{S}: data sheet", "Data sheet of {s}", "Specification: {s}", "{S} at a glance"), _PRODUCT),
    _Kind(_product, ("{S}", "Technical data of {s}", "Product: {s}", "All about {s}"), _PRODUCT),
    _Kind(_part, ("{S}", "Spare part: {s}", "Parts list: {s}"), _PRODUCT),
    _Kind(
        lambda d: f"the {d.named(words.TOPICS)} policy of {d.company()}",
        ("{S}", "Policy", "Rules: {s}", "Staff handbook: {s}"),
        _POLICY,
    ),
    _Kind(lambda d: f"the {d.word()} plan", ("{S}", "Terms of {s}", "Contract terms: {s}"), _POLICY),
    _Kind(Draw.company, ("{S}", "Profile: {s}", "About {s}", "Account notes on {s}"), _COMPANY),
    _Kind(_code, ("Review of {s}", "{S}", "Comments on {s}"), _CODE),
    _Kind(lambda d: f"the {d.word()} meeting", ("{S}", "Invitation to {s}", "Calendar: {s}"), _APPOINTMENT),
    _Kind(lambda d: f"the {d.word()} workshop", ("{S}", "Programme of {s}", "Notes on {s}"), _APPOINTMENT),
)


def _fill(template: str, subject: str, attribute: str, value: str) -> str:
    filled = (
        template.replace("{s}", subject)
        .replace("{S}", subject[0].upper() + subject[1:])
        .replace("{a}", attribute)
        .replace("{A}", attribute[0].upper() + attribute[1:])
        .replace("{v}", value)
    )
    return filled if filled[0] != value[:1] else value[0].upper() + filled[1:]


def _called(draw: Draw, subject: str) -> tuple[str, str]:
    """What people call a subject in a question, and what the answer then calls it."""
    if not draw.lifelike or not subject.startswith("the ") or draw.random.random() < 0.6:
        return subject, subject
    *before, last = subject.removeprefix("the ").split()
    chance = draw.random.random()
    if before and chance < 0.35:
        last = last.lower()
    elif len(before) > 1 and chance < 0.8:
        last = before.pop()
    name = " ".join((*before, last))
    return f"{draw.random.choice(('the', 'the', 'my', 'our', 'your', 'this'))} {name}", f"the {name}"


def _another(draw: Draw, kind: _Kind, subject: str) -> str:
    """A new subject, where texts are drawn anew often one whose name differs from that of ``subject`` by a word."""
    parts = subject.split()
    own = [number for number, part in enumerate(parts[:-1]) if not part.islower()]
    if not own or not draw.anew or draw.random.random() < 0.5:
        return kind.subject(draw)
    number = draw.random.choice(own)
    parts[number] = draw.word() if parts[number].isalpha() else draw.code()
    return " ".join(parts)


def _some(draw: Draw, kind: _Kind, number: int) -> tuple[_Attribute, ...]:
    """Some of what can be said of a kind of subject."""
    choices = kind.attributes or _open(draw, number)
    return tuple(draw.random.sample(choices, min(number, len(choices))))


def _sentence(draw: Draw) -> Fact:
    """A sentence of a policy: it is asked for by its first words, and answered whole."""
    about, figure = draw.phrase(), draw.figure()
    said = f"{about} {draw.random.choice(templates.VERBS)} {draw.random.choice(templates.TERMS)} {figure}."
    asked = draw.of(templates.QUESTION_FRAMES).replace("{q}", draw.of(templates.ABOUT).replace("{p}", about))
    said = said[0].upper() + said[1:]
    return Fact(about, "", figure, said, asked, said)


def _fact(draw: Draw, kind: _Kind, subject: str, attribute: _Attribute, *, listed: str | None = None) -> Fact:
    name = attribute.name
    if kind.attributes is _PRODUCT and draw.random.random() < 0.15:  # attributes without end: read, not remembered
        name = f"{draw.named(words.PARTS)} {name}"
        attribute = _Attribute(name, attribute.value)
    value = attribute.value(draw)
    # How an attribute is said (that what weighs has a weight) must be known to be read: the frame around it is new.
    own_words = bool(attribute.statements) and draw.random.random() < 0.4
    statement = draw.random.choice(attribute.statements) if own_words else draw.of(templates.STATEMENTS)
    own_question = bool(attribute.questions) and draw.random.random() < 0.4
    question = draw.random.choice(attribute.questions) if own_question else draw.of(templates.QUESTIONS)
    if listed is None and draw.anew and draw.random.random() < 0.4:
        statement = _stated_anew(draw)
    said = _fill(listed or statement, subject, name, value)
    if listed is None and said.endswith("."):
        said = draw.of(templates.STATEMENT_FRAMES).replace("{x}", said)
    called, answered = _called(draw, subject)
    if draw.anew and draw.random.random() < 0.6:
        asked = _worded_anew(draw, _fill(question, called, name, value), called, name)
    else:
        asked = draw.of(templates.QUESTION_FRAMES).replace("{q}", _fill(question, called, name, value))
    return Fact(subject, name, value, said, asked, _fill(templates.ANSWER, answered, name, value))


def _begun(template: str) -> str:
    """A template with a capital at its beginning."""
    if template[:3] in ("{a}", "{s}"):
        return "{" + template[1].upper() + template[2:]
    return template if template[0] == "{" else template[0].upper() + template[1:]


def _stated_anew(draw: Draw) -> str:
    """A template of a statement that is put together at random, often with words around that mean nothing."""
    pick = draw.random
    while True:
        what, where = pick.choice(templates.WHAT), pick.choice(templates.WHERE)
        between = f" {draw.phrase(longest=2)}" if pick.random() < 0.25 else ""
        chance = pick.random()
        if chance < 0.45:
            core = f"{what}{where}{between}{pick.choice(templates.LINKS)} {{v}}"
        elif chance < 0.6:
            core = f"{{v}} {pick.choice(templates.LINKS_BACK)} {what}{where}"
        elif chance < 0.75:
            core = f"{{s}}{between} {pick.choice(templates.HOLDS)} {{v}} as {what}"
        else:
            core = f"{_loose(draw)}{what}{where}{pick.choice((' ', ', '))}{_loose(draw)}{{v}} {_loose(draw)}".strip()
        before = after = ""
        if pick.random() < 0.35:
            before = draw.babble().capitalize() + pick.choice((",", ":", ".", " -")) + " "
        if pick.random() < 0.3:
            after = pick.choice((f". {draw.babble().capitalize()}", f" - {draw.babble()}", f" ... {draw.babble()}"))
        made = before + (core if before else _begun(core)) + after + pick.choice((".", ".", ".", "", ";"))
        if made not in templates.STATEMENTS:  # a fifth of them is kept for measuring
            return made


def _loose(draw: Draw) -> str:
    """Up to three common words in a row, and a space after them."""
    return "".join(f"{draw.random.choice(words.SMALL_WORDS)} " for _ in range(draw.random.randint(0, 3)))


def _title(draw: Draw, kind: _Kind, subject: str) -> str:
    """What a text on ``subject`` is called."""
    title = draw.of(kind.title)
    if draw.anew and draw.random.random() < 0.3:
        said, apart = draw.babble().capitalize(), draw.random.choice((": ", " - ", " ", " of ", " on ", ", "))
        title = f"{said}{apart}{{s}}" if draw.random.random() < 0.6 else f"{{S}}{apart}{said}"
    return _fill(title, subject, "data", "x")


def _asked_anew(draw: Draw) -> str:
    """A template of a question that is put together at random."""
    pick = draw.random
    while True:
        what = pick.choice(("the {a} of {s}", "the {a} of {s}", "the {a} for {s}", "{s}'s {a}", "the {a} with {s}"))
        if pick.random() < 0.5:
            core = f"{pick.choice(templates.WOULD_YOU)}{pick.choice(templates.TELL)} {what}"
        else:
            asking = f"{pick.choice(templates.WHICH)} {pick.choice(templates.WOULD_BE)}"
            core = f"{asking} {what}{pick.choice(templates.BY_NOW)}"
        made = _begun(core) + pick.choice(("?", "?", "?", ".", "", "!"))
        if made not in templates.QUESTIONS:
            return made


def _worded_anew(draw: Draw, question: str, subject: str, attribute: str) -> str:
    """A question among words that mean nothing: frames that were never heard are read over, not read into."""
    pick = draw.random
    if pick.random() < 0.4:
        question = _fill(_asked_anew(draw), subject, attribute, "x")
    before, after = (draw.babble() if pick.random() < 0.6 else "" for _ in range(2))
    if pick.random() < 0.5:
        opening = f"{before.capitalize()}{pick.choice(('.', ',', ':', '!', ' -'))} " if before else ""
        return f"{opening}{question}" + (f" {after.capitalize()}." if after else "")
    parts = [before, f"the {attribute}" if pick.random() < 0.5 else attribute, subject, after]
    if pick.random() < 0.4:
        parts[1:3] = parts[2:0:-1]
    parts.insert(2, pick.choice(("of", "for", "in", "with", "on", "at", "by", ",", ":", "-")))
    asked = " ".join(part for part in parts if part).replace(" ,", ",").replace(" :", ":")
    return asked[0].upper() + asked[1:] + pick.choice(("?", "?", ".", ""))


def _cutting(draw: Draw, kind: _Kind, subject: str, number: int, taken: set[str]) -> tuple[str, list[Fact]]:
    """One of several texts that were cut out of a document on ``subject``: front matter, a section, or only talk."""
    pick, bare = draw.random, subject.removeprefix("the ")
    chance = pick.random()
    choices = [each for each in kind.attributes or _open(draw, number + 2) if each.name not in taken]
    attributes = pick.sample(choices, min(number, len(choices)))
    path = f"{bare} > {draw.named(words.SECTIONS)}\n\n"
    if chance < 0.2:
        talk = [f"{draw.phrase()}, {draw.phrase()}.".capitalize() for _ in range(pick.randint(1, 4))]
        return path + " ".join(talk), []
    if chance < 0.35:
        facts = [_fact(draw, kind, subject, attribute, listed="{a}: {v}") for attribute in attributes]
        keys = [f"{fact.attribute.replace(' ', '_')}: {fact.value}" for fact in facts]
        return "\n".join((f"{bare}\n\ntitle: {bare}", *keys)), facts
    if chance < 0.5:
        header = (pick.choice(templates.HEADERS), pick.choice(templates.HEADERS))
        listed = "Property: {A}; Value: {v}" if pick.random() < 0.5 else f"{header[0]}: {{A}}; {header[1]}: {{v}}"
        facts = [_fact(draw, kind, subject, attribute, listed=listed) for attribute in attributes]
    elif chance < 0.6:
        facts = [_fact(draw, kind, subject, attribute, listed="{a} {v}") for attribute in attributes]
        return f"{bare}\n\n{bare}, " + ", ".join(fact.statement for fact in facts) + ".", facts
    elif chance < 0.75:
        facts = [_sentence(draw) for _ in range(number)]
        return path + " ".join(fact.statement for fact in facts), facts
    else:
        facts = [_fact(draw, kind, subject, attribute, listed="- {A}: {v}") for attribute in attributes]
    return path + "\n".join(fact.statement for fact in facts), facts


def _sections(draw: Draw, kind: _Kind, subject: str, number: int) -> tuple[str, list[Fact]]:
    """A text on one subject with so many facts, laid out as documents are."""
    pick = draw.random
    listed = pick.choice(templates.LISTS) if pick.random() < (0.2 if kind.attributes else 0.6) else None
    number += pick.randint(0, number) if listed else 0
    facts = [_fact(draw, kind, subject, attribute, listed=listed) for attribute in _some(draw, kind, number)]
    title = _title(draw, kind, subject)
    lines = [fact.statement for fact in facts]
    for _ in range(pick.choice((0, 0, 1, 1, 2))):
        filler = draw.of(words.FILLERS)
        if pick.random() < 0.5:
            filler = f"{subject[0].upper() + subject[1:]} is {draw.named(words.QUALITIES)}."
        elif pick.random() < 0.6:
            filler = f"{draw.phrase()}, {draw.phrase()}.".capitalize()
        lines.insert(pick.choice((0, len(lines))) if listed else pick.randint(0, len(lines)), filler)
    body: list[str] = []
    prose: list[str] = []
    for line in lines:
        if listed or not line.endswith("."):
            if prose:
                body.append(" ".join(prose))
                prose = []
            body.append(line)
        else:
            prose.append(line)
    if prose:
        body.append(" ".join(prose))
    bare = title.removeprefix("The ")
    path = f"{bare} > {draw.named(words.SECTIONS)}\n\n"
    plain = pick.choice(("{t}\n\n", "{t}\n\n", "# {t}\n\n", "", "{t}: ", "## {t}\n")).format(t=title)
    heading = path if pick.random() < 0.4 or not kind.attributes else plain
    named = subject.removeprefix("the ").lower()
    if named not in heading.lower() and not any(named in line.lower() for line in lines):
        heading = f"{subject[0].upper() + subject[1:]}\n\n{heading}"
    return heading + "\n".join(body), facts


def texts_and_facts(draw: Draw, *, texts: int, facts: int) -> tuple[list[str], list[Fact], list[Fact]]:
    """Some texts, what they say, and what could be asked of their subjects that they do not say."""
    told: list[Fact] = []
    written: list[str] = []
    absent: list[Fact] = []
    kinds = (
        [draw.random.choice(_KINDS)] * texts
        if draw.random.random() < 0.6
        else [draw.random.choice(_KINDS) for _ in range(texts)]
    )
    parts = draw.random.choice((0, 0, 2, 3)) if draw.lifelike else 0
    shared = draw.anew and draw.random.random() < 0.7
    if shared:  # nearly the same is said of every subject: which text is whose decides
        kinds = [replace(kinds[0], attributes=_some(draw, kinds[0], facts + draw.random.randint(1, 5)))] * texts
    subject = ""
    for number, kind in enumerate(kinds):
        if 0 < number < parts:
            continue  # the first subject has this text too
        subject = _another(draw, kind, subject)
        found: list[Fact] = []
        for _ in range(max(1, min(parts, texts)) if number == 0 else 1):
            many = max(1, facts + draw.random.randint(-1, 2))
            if parts:
                text, more = _cutting(draw, kind, subject, many, {fact.attribute for fact in found})
            else:
                text, more = _sections(draw, kind, subject, many)
            written.append(text)
            found += more
        told += found
        said = {fact.attribute for fact in found}
        others = [each for each in kind.attributes or _open(draw, 3) if each.name not in said]
        missing = draw.random.sample(others, min(len(others), 3 if shared else 1))
        absent += [_fact(draw, kind, subject, each) for each in missing]
        if draw.random.random() < 0.5:  # a subject that no text is about
            other = _another(draw, kind, subject)
            absent.append(_fact(draw, kind, other, draw.random.choice(kind.attributes or _open(draw, 3))))
    if not told:  # all of it was talk
        return texts_and_facts(draw, texts=texts, facts=facts)
    if parts:
        draw.random.shuffle(written)
        absent += [_sentence(draw)] * any(not fact.attribute for fact in told)
    said_of = {(fact.subject, fact.attribute) for fact in told}
    return written, told, [fact for fact in absent if (fact.subject, fact.attribute) not in said_of]


def refusal(fact: Fact) -> str:
    """What is said where no text tells ``fact``."""
    if not fact.attribute:
        return REFUSAL
    return f"{fact.answer.removesuffix(f'{fact.value}.')}{NOT_STATED}: {REFUSAL}"


def case(draw: Draw, *, texts: int = 3, facts: int = 4, absent: bool = False) -> Case:
    """One question on ``texts`` texts; ``absent``: on something that they do not say."""
    while True:
        context, told, untold = texts_and_facts(draw, texts=texts, facts=facts)
        if absent and untold:
            fact = draw.random.choice(untold)
            return Case(tuple(context), fact.question, refusal(fact), None)
        if not absent:
            fact = draw.random.choice(told)
            return Case(tuple(context), fact.question, fact.answer, fact.value)


def _remark(draw: Draw, subject: str) -> str:
    """Something that asks for no fact, about a subject."""
    template = draw.of(templates.REMARKS)
    while "{did}" in template or "{do}" in template or "{n}" in template:
        template = template.replace("{did}", draw.of(templates.DID), 1).replace("{do}", draw.of(templates.DO), 1)
        template = template.replace("{n}", draw.babble(), 1)
    return _fill(template, subject, "data", "x")


def _manner(draw: Draw) -> tuple[str, str, str]:
    """What every answer of a chat begins and ends with, and how the system text asks for it, if it does."""
    pick, apart = draw.random, draw.random.choice((" ", "\n", "\n"))
    begins = f"{draw.phrase().capitalize()}{pick.choice(('.', ':', '!', ','))}" if pick.random() < 0.8 else ""
    ends = f"{draw.phrase().capitalize()}{pick.choice(('.', '?', '!'))}" if pick.random() < 0.8 or not begins else ""
    ends += f" {draw.phrase().capitalize()}." if ends and pick.random() < 0.3 else ""
    begins += f"{apart}{draw.phrase(longest=1).capitalize()}:" if begins and pick.random() < 0.4 else ""
    said = ""
    if pick.random() < 0.6:
        said = f" Begin with: {begins}" * bool(begins) + f" End with: {ends}" * bool(ends)
    return begins and begins + (" " if begins[-1] == ":" else apart), ends and apart + ends, said


def chat(draw: Draw, *, texts: int, facts: int, questions: int, absent: float = 0.25) -> list[Message]:
    """Texts and questions on them with their answers, as a chat to train on; a share of ``absent`` is not told.

    In a few lifelike chats every answer has the same beginning and ending, so that answers can be taught a manner.
    """
    context, told, untold = texts_and_facts(draw, texts=texts, facts=facts)
    asked: list[tuple[str, str]] = []
    any_fact = draw.random.choice(told)
    draw.random.shuffle(told)
    draw.random.shuffle(untold)
    while (told or untold) and len(asked) < questions:  # none twice: the answer before would be all there is to read
        if draw.lifelike and draw.random.random() < 0.05:
            asked.append((_remark(draw, _called(draw, any_fact.subject)[0]), templates.NOTED))
            continue
        if not told or (untold and draw.random.random() < absent):
            fact = untold.pop()
            asked.append((fact.question, refusal(fact)))
            continue
        fact = told.pop()
        same = [other for other in told if other.subject == fact.subject and other.attribute != fact.attribute]
        if same and fact.attribute and draw.random.random() < 0.1:
            other = draw.random.choice(same)
            question = f"What are the {fact.attribute} and the {other.attribute} of {fact.subject}?"
            first = _fill(templates.ANSWER, fact.subject, fact.attribute, fact.value)
            answer = f"{first[:-1]}, and the {other.attribute} is {other.value}."
            asked.append((question, answer))
        else:
            asked.append((fact.question, fact.answer))
    system = draw.of(templates.SYSTEMS).replace("{company}", draw.company())
    if draw.lifelike and draw.random.random() < 0.1:
        begins, ends, manner = _manner(draw)
        system = (system + manner).strip()
        asked = [(question, begins + answer + ends) for question, answer in asked]
    found: Sequence[str] = context
    if draw.random.random() < 0.04:  # nothing was retrieved
        found, asked = (), [(any_fact.question, refusal(any_fact))]
    first, answer = asked[0]
    settings = _SETTINGS.model_copy(update={"context_tokens": 1_000_000, "system": system})
    if draw.random.random() < 0.3:
        settings = settings.model_copy(update={"with_context": draw.of(templates.OTHER_PROMPTS)})
    turns = build_messages(settings, [Message("user", first)], found, count_tokens=lambda _: 0)
    turns.append(Message("assistant", answer))
    for question, answer in asked[1:]:
        turns += [Message("user", question), Message("assistant", answer)]
    return turns


def recital(draw: Draw, *, texts: int, facts: int) -> tuple[list[Message], list[str]]:
    """Texts and a question, then answers alone: on all that is told of their subjects, or not, in any order.

    And what each answer begins with, up to the value: only the first one's beginning can be foreseen.
    """
    context, told, untold = texts_and_facts(draw, texts=texts, facts=facts)
    known = [(fact, fact.answer) for fact in told if fact.attribute]
    known += [(fact, refusal(fact)) for fact in untold if fact.attribute]
    draw.random.shuffle(known)
    settings = _SETTINGS.model_copy(update={"context_tokens": 1_000_000})
    question = Message("user", known[0][0].question if known else told[0].question)
    turns = build_messages(settings, [question], context, count_tokens=lambda _: 0)
    turns += [Message("assistant", answer) for _, answer in known]
    return turns, [fact.answer.removesuffix(f" {fact.value}.") for fact, _ in known]


def practice(draw: Draw, *, items: int) -> str:
    """A list of made-up names and numbers, then again in another order: copying, and nothing else."""
    pairs = []
    for _ in range(items):
        value = draw.random.choice((draw.word, draw.code, draw.money, draw.span, draw.person, draw.date))()
        pairs.append((draw.word(), value))
    again = draw.random.sample(pairs, len(pairs))
    return "\n".join(f"{name}: {value}" for name, value in [*pairs, *again])


def prose(draw: Draw, *, texts: int) -> str:
    """Texts alone."""
    return "\n\n".join(texts_and_facts(draw, texts=texts, facts=5)[0])
