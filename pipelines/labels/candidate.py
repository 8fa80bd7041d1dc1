"""What is judged, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.labels.examples import Split
from pipelines.prompt import Message


@dataclass(frozen=True, slots=True)
class Candidate:
    """An example to judge."""

    text: str
    """What is labelled, or the turns before a chat's last answer, system text aside."""
    labels: tuple[str, ...]
    group: str
    names_group: bool
    """Whether the row itself says what it belongs to."""
    split: Split
    origin: str
    author: str | None
    location: str
    problem: str | None
    """Why it cannot be read."""
    messages: tuple[Message, ...] = ()
    """A chat, its last turn the assistant's; empty for a text with labels."""
    rejected: str | None = None
    """The answer that was preferred less."""
    context: tuple[str, ...] | None = None
    """What had been retrieved for the last question."""
    judged: Judgement | None = None
    """A verdict on the row by itself that still holds: only its relations to other rows are judged anew."""

    @property
    def answer(self) -> str:
        """A chat's last turn; empty for a text with labels."""
        return self.messages[-1].content if self.messages else ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the expectations say of one row."""

    reasons: list[str]
    """Against it, in plain words: a kind, or ``kind: particulars``; none means accepted."""
    warnings: list[str]
    """Worth a look, and accepted all the same."""
    masked: Candidate | None
    """What to keep instead: the row with personal data and secrets replaced by their kinds; None where it stays."""
