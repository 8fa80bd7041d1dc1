"""What every parser makes: sections, as they are found under the headings that are open."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.corpus.documents import Block, Section

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A document's text."""

    title: str | None
    """The title that the text itself states, if it does."""
    sections: tuple[Section, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Facts that the file states about itself, such as front matter or its author; scalars are text as written."""


@dataclass(slots=True)
class Outline:
    """Sections as they are found, under the headings that are open."""

    title: str | None
    sections: list[tuple[tuple[str, ...], list[Block]]] = field(default_factory=list)
    open: list[tuple[int, str]] = field(default_factory=list)
    inline: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sections.append((self._path(), []))

    def _path(self) -> tuple[str, ...]:
        headings = [text for _, text in self.open]
        if self.title is not None and headings[:1] != [self.title]:
            headings.insert(0, self.title)
        return tuple(headings)

    def heading(self, level: int, text: str) -> None:
        """Open a section under the headings above ``level``."""
        self.open = [(above, other) for above, other in self.open if above < level]
        self.open.append((level, text))
        self.sections.append((self._path(), []))

    def add(self, text: str, *, tight: bool = False) -> None:
        """A block of the open section."""
        if text.strip():
            blocks = self.sections[-1][1]
            blocks.append(Block(text.strip("\n").rstrip(), tight and bool(blocks)))

    def under(self, sections: Iterable[Section]) -> None:
        """Sections of another document, below the open headings."""
        path = self._path()
        self.sections += [((*path, *section.headings), list(section.blocks)) for section in sections]

    def flush(self, *, tight: bool = False) -> None:
        """End a run of inline HTML."""
        text = "\n".join(filter(None, map(collapse, "".join(self.inline).split("\x00"))))
        self.inline.clear()
        self.add(text, tight=tight)

    def parsed(self, metadata: Mapping[str, Any] | None = None) -> Parsed:
        """The document, titled by its first heading where it states no title."""
        title = self.title or next((path[0] for path, _ in self.sections if path), None)
        found = tuple(Section(path, tuple(blocks)) for path, blocks in self.sections if path or blocks)
        return Parsed(title, found, metadata or {})


def paragraphs(text: str) -> list[str]:
    """Parts of a text between blank lines."""
    return [part for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def collapse(text: str) -> str:
    """``text`` on one line."""
    return " ".join(text.split())


def readable(text: str) -> str:
    """``text`` without control characters and halves of characters, which a binary format may hold."""
    return _CONTROL.sub("", text)


def row(header: list[str], cells: list[str]) -> str:
    """A table row that repeats its column names."""
    named = zip(header + [""] * (len(cells) - len(header)), cells, strict=False)
    return "; ".join(f"{name}: {cell}" if name else cell for name, cell in named if cell)


def facts(**stated: str | list[str] | None) -> dict[str, str | list[str]]:
    """Metadata that is stated, on one line each; ``None`` and "" are not."""
    lines = {key: collapse(readable(value)) if isinstance(value, str) else value for key, value in stated.items()}
    return {key: value for key, value in lines.items() if value}


def keywords(text: str) -> list[str]:
    """Keywords, separated by commas or semicolons."""
    return [word for word in (collapse(readable(part)) for part in re.split(r"[,;]", text)) if word]


def sane_title(text: str) -> str | None:
    """A title as a file's properties state it, unless it is the name of a file or of nothing."""
    title = re.sub(r"^Microsoft (Word|PowerPoint|Excel) - ", "", collapse(readable(text)))
    unnamed = r"\W*|(untitled|unknown|title|document|(powerpoint )?presentation|slide)\s*\d*|book\s*\d+"
    a_file = r".*\.(docx?|pptx?|xlsx?|pdf|tex|dvi|indd|odt|rtf|txt|html?|qxd|ps)"
    return None if re.fullmatch(f"{unnamed}|{a_file}", title, re.IGNORECASE) else title
