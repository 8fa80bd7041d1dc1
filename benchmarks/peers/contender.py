"""What every contender can do, and what is counted about it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHUNK_TOKENS = 220
"""Most tokens of a chunk, for every splitter that counts tokens."""
CHUNK_CHARACTERS = 750
"""For every splitter that counts characters: about as many tokens to a chunk of these files as ours have."""

Rows = Iterable[tuple[str, str]]
"""File name and chunk text, one for each stored point."""


@dataclass(slots=True)
class Encoding:
    """Texts that went through the model in this process, and how long that took."""

    texts: int = 0
    seconds: float = 0.0
    tell: Callable[[int], None] = field(default=lambda _texts: None)
    """Called with ``texts`` after each call of the model, so that a killed process has told what it had done."""

    def watch(self, owner: type, method: str) -> None:
        """Count the texts, the first argument, of every call of a method."""
        original = getattr(owner, method)

        def watched(model: Any, *args: Any, **kwargs: Any) -> Any:
            texts = args[0] if args else next(iter(kwargs.values()))
            started = time.perf_counter()
            result = original(model, *args, **kwargs)
            self.seconds += time.perf_counter() - started
            self.texts += 1 if isinstance(texts, str) else len(texts)
            self.tell(self.texts)
            return result

        setattr(owner, method, watched)


class Contender(ABC):
    """One way to hold an index in sync with a folder; the module that holds it imports its libraries."""

    packages: tuple[str, ...]
    """Distributions whose versions are reported."""
    note: str = ""
    """What differs from the others, for the report."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding

    @abstractmethod
    def load(self, model: Path) -> None:
        """Load the weights in the folder ``model``, run them once, and watch them."""

    @abstractmethod
    def open(self, state: Path, documents: Path) -> None:
        """Open the stores in the folder ``state``, new or not, for a folder of Markdown files."""

    @abstractmethod
    def sync(self) -> None:
        """Bring the index up to date with the folder, all of it: the call that a user waits for."""

    @abstractmethod
    def close(self) -> None:
        """Close the stores."""

    @abstractmethod
    def stored(self) -> Rows:
        """Everything that the store holds."""

    @abstractmethod
    def expected(self) -> Rows:
        """What it should hold: the folder as it is now, cut anew by the contender's own splitter."""


def differences(stored: Rows, expected: Rows) -> dict[str, int]:
    """Points whose text their file does not have, texts without a point, and points beyond what the file has."""
    held, wanted = Counter(stored), Counter(expected)
    return {
        "points": held.total(),
        "stale": sum(count for row, count in held.items() if row not in wanted),
        "missing": sum(row not in held for row in wanted),
        "duplicates": sum(max(0, count - wanted[row]) for row, count in held.items() if row in wanted),
    }


def markdown_files(documents: Path) -> Iterator[tuple[str, str]]:
    """Name and text of every file, in order."""
    for path in sorted(documents.rglob("*.md")):
        yield path.relative_to(documents).as_posix(), path.read_text(encoding="utf-8")


WARM_UP = ["A sentence that only warms the model up. " * repeats for repeats in (1, 2, 4, 8, 16, 24)]
