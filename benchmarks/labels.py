"""What judging labelled examples costs: 100,000 texts with labels, and 100,000 chats, everything on as by default.

    python -m benchmarks.labels [--peers-python PYTHON] [--json FILE] [--quick]

Made text: words in Zipf's proportions with full stops, in texts of about 12 words and in chats of a system text and two
questions and answers, about 130 words; one in fifty holds an e-mail address, telephone or card number, one in twenty a
date, a price or an order number that is none, one in a hundred nearly repeats another. ``judge`` is called as an intake
calls it: expectations, tokens (where a limit could be missed), personal data, secrets, endings, copies, near-copies,
Data Docs. Then again with languages checked (made words are none, so that many are refused), and with the verdicts
brought along (what an intake costs that only brings news: relations alone). Each measurement is a process of its own;
medians of three, the import of Great Expectations included.

Beside it, on ``SAMPLE`` of the same texts and scaled up to 100,000, what one would write instead: a loop with a
pydantic model and presidio's AnalyzerEngine for each row (``benchmarks.peers.presidio``; its import is not counted),
without near-copies, relations and documentation; and ``judge`` called for one row at a time. Presidio is a peer: it is
reported as missing where the Python that ``--peers-python`` names does not have it.

``--quick``: a twentieth of everything, once, and scaled up: the import of Great Expectations then counts twenty times.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.report import report
from pipelines.labels.expectations import Candidate, judge
from pipelines.labels.settings import LabelSettings
from pipelines.models import BUNDLED, token_counter
from pipelines.prompt import Message

ROWS = 100_000
SAMPLE = 2_000
ONE_BY_ONE = 40
REPEATS = 3
CATEGORIES = tuple(f"category {number}" for number in range(77))
SETTINGS = LabelSettings(url="x", categories=CATEGORIES)
CHATS = LabelSettings(url="x", maximum_tokens=1024)


class Writer:
    """Made examples, the same every time."""

    def __init__(self) -> None:
        self._random = random.Random(17)
        syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
        self._words = ["".join(self._random.choices(syllables, k=self._random.randint(1, 4))) for _ in range(20_000)]
        self._weights = list(accumulate(1 / (rank + 10) for rank in range(len(self._words))))
        self._last = ""

    def words(self, number: int) -> str:
        return " ".join(self._random.choices(self._words, cum_weights=self._weights, k=number)).capitalize() + "."

    def text(self, number: int, words: int) -> str:
        if number % 100 == 99:
            return f"Hello, {self._last}"
        self._last = self.words(words)
        extra = ""
        if number % 50 == 0:
            extra = (f" Mail joe{number}@acme.com.", " Call 415-555-2671.", " My card is 4111 1111 1111 1111.")[
                number % 3
            ]
        elif number % 20 == 0:
            extra = (f" Order 41555526{number % 90 + 10}.", " On 2024-01-15 10:30.", " It was 1,234.56 EUR.")[
                number % 3
            ]
        return self._last + extra

    def texts(self, rows: int) -> list[Candidate]:
        return [
            Candidate(self.text(n, 12), (CATEGORIES[n % 77],), str(n), True, "train", "human", None, f"a:{n}", None)
            for n in range(rows)
        ]

    def chats(self, rows: int) -> list[Candidate]:
        return [self._chat(number) for number in range(rows)]

    def _chat(self, number: int) -> Candidate:
        first, answer, last = self.text(number + 1, 15), self.words(40), self.text(number, 15)
        turns = (
            Message("system", "You answer the customers of a bank."),
            Message("user", first),
            Message("assistant", answer),
            Message("user", last),
            Message("assistant", self.words(55)),
        )
        text = f"{first}\n{answer}\n{last}"
        return Candidate(text, (), str(number), True, "train", "human", None, f"a:{number}", None, turns)


def judged(what: str, rows: int, docs: Path) -> dict[str, Any]:
    """One measurement, in this process."""
    chats = what.startswith("chats")
    settings = CHATS if chats else SETTINGS
    if what.endswith("languages"):
        settings = settings.model_copy(update={"languages": ("en",)})
    writer = Writer()
    candidates = writer.chats(rows) if chats else writer.texts(rows)
    more: dict[str, Any] = {"task": "generate" if chats else "classify", "count_tokens": token_counter(BUNDLED, None)}
    if what.endswith("again"):
        plain = settings.model_copy(update={"near_duplicates": "off"})
        known = zip(candidates, judge(plain, candidates, **more), strict=True)
        candidates = [replace(row, judged=replace(verdict, reasons=[], warnings=[])) for row, verdict in known]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    verdicts = judge(settings, candidates, docs=docs, **more)
    return {
        "seconds": time.perf_counter() - started,
        "MiB more": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "refused": sum(bool(verdict.reasons) for verdict in verdicts),
        "flagged": sum(bool(verdict.warnings) for verdict in verdicts),
    }


def one_by_one(rows: int) -> dict[str, Any]:
    """``judge`` on one row at a time."""
    candidates = Writer().texts(rows)
    judge(SETTINGS, candidates[:1])
    started = time.perf_counter()
    for row in candidates:
        judge(SETTINGS, [row])
    return {"seconds": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="a twentieth of everything, once")
    parser.add_argument("--peers-python", default=sys.executable, help="the Python that has presidio; default: this")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "ROWS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        what, number = given.one[0], int(given.one[1])
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(one_by_one(number) if what == "one by one" else judged(what, number, Path(scratch))))
        return
    scale, repeats = (20, 1) if given.quick else (1, REPEATS)
    work = [
        *((what, ROWS // scale, repeats) for what in ("texts", "chats")),
        *((f"{what}, {more}", ROWS // scale, 1) for more in ("languages", "again") for what in ("texts", "chats")),
        ("presidio", SAMPLE // scale, repeats),
        ("one by one", max(2, ONE_BY_ONE // scale), 1),
    ]
    found: dict[str, list[dict[str, Any]]] = {}
    for turn in range(repeats):  # interleaved
        for what, number, times in work:
            result = _apart(what, number, given.peers_python) if turn < times else None
            if result is not None:
                found.setdefault(what, []).append(result)
                print(f"  {what}: {result}", flush=True)
    rows = [_row(what, number, found.get(what, [])) for what, number, _ in work]
    figures = {
        "seconds_100k": _median(found["texts"]) * scale,
        "seconds_100k_chats": _median(found["chats"]) * scale,
    }
    if "presidio" in found:
        figures["vs_presidio_loop"] = _median(found["presidio"]) * ROWS / (SAMPLE // scale) / figures["seconds_100k"]
    packages = (
        "great_expectations",
        "datasketch",
        "phonenumbers",
        "python-stdnum",
        "detect-secrets",
        "presidio-analyzer",
    )
    report("labels", rows, figures, packages=packages, json_file=given.json)


def _apart(what: str, rows: int, peers_python: str) -> dict[str, Any] | None:
    """One measurement in a process of its own; None where a peer is missing."""
    command = [sys.executable, "-m", "benchmarks.labels", "--one", what, str(rows)]
    with tempfile.TemporaryDirectory() as scratch:
        if what == "presidio":
            path = Path(scratch) / "rows.jsonl"
            texts = ({"text": row.text, "label": row.labels[0]} for row in Writer().texts(rows))
            path.write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
            command = [peers_python, "-m", "benchmarks.peers.presidio", str(path)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode and what == "presidio":
        print(f"  presidio is missing or failed in {peers_python}: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _median(found: Sequence[dict[str, Any]]) -> float:
    return float(statistics.median(each["seconds"] for each in found))


def _row(what: str, number: int, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = {
        "presidio": "texts, pydantic and presidio in a loop",
        "one by one": "texts, judged one at a time",
        "texts, again": "texts, verdicts brought",
        "chats, again": "chats, verdicts brought",
    }
    row: dict[str, Any] = {"what": names.get(what, what), "rows": number}
    if not found:
        return {**row, "seconds": "missing"}
    seconds = _median(found)
    return row | found[-1] | {"seconds": seconds, "seconds for 100,000": seconds * ROWS / number}


if __name__ == "__main__":
    main()
