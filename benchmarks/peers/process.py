"""A contender in a process of its own, and the other end of the line to it: JSON, one object a line.

The process is ``python -m benchmarks.peers.process CONTENDER``. It answers every request; while it works it says how
many texts it has embedded, which is all that is known of one that is killed.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tokenizers import Tokenizer

from benchmarks.peers.contender import Contender, Encoding, differences
from pipelines.models import BUNDLED, model_folder

MODULES = {
    "freshet": "freshet",
    "langchain incremental": "langchain",
    "langchain full": "langchain",
    "llamaindex": "llamaindex",
    "cocoindex": "cocoindex",
}
REPOSITORY = Path(__file__).resolve().parents[2]


class MissingError(Exception):
    """The contender's libraries are not installed there."""


class Process:
    """A contender's process, seen from the benchmark."""

    def __init__(self, python: str, contender: str, log: Path) -> None:
        self._log = log
        self._told = 0
        command = [python, "-m", "benchmarks.peers.process", contender]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def call(self, action: str, **given: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            MissingError: the contender's libraries are not installed.
            RuntimeError: it failed; with the end of what it wrote.
        """
        self._send(action, given)
        while "told" in (answer := self._receive()):
            self._told = answer["told"]
        return answer

    def kill_during(self, action: str, seconds: float) -> int:
        """Kill it (SIGKILL) so many seconds after it started on a request: the texts that it embedded meanwhile.

        Raises:
            RuntimeError: it was done before.
        """
        self._send(action, {})
        deadline, before = time.monotonic() + seconds, self._told
        assert self._process.stdout is not None
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._process.stdout], [], [], left)[0]:
                answer = self._receive()
                if "told" not in answer:
                    raise RuntimeError(f"it was done in less than {seconds:.1f} s, before it could be killed")
                self._told = answer["told"]
        self._process.kill()
        self._process.wait()
        return self._told - before

    def _send(self, action: str, given: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"action": action, **given}).encode() + b"\n")
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = _line(self._process.stdout)
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "not_installed" in answer:
            raise MissingError(answer["not_installed"])
        if "error" in answer:
            raise RuntimeError(f"{answer['error']}\n{self._log.read_text(errors='replace')[-3000:]}")
        return answer


def _line(stream: IO[bytes]) -> bytes:
    """A line, read byte by byte past Python's buffer, so that ``select`` knows what is left."""
    found = bytearray()
    while not found.endswith(b"\n"):
        byte = os.read(stream.fileno(), 1)
        if not byte:
            return b""
        found += byte
    return bytes(found)


class _Work:
    """The requests, in the contender's own process."""

    def __init__(self, contender: str, encoding: Encoding) -> None:
        self._name, self._encoding = contender, encoding
        self._contender: Contender
        self._state: Path
        self._documents: Path
        self._texts: set[str] = set()

    def load(self) -> dict[str, Any]:
        """Imports, then the model: reported apart from every sync."""
        started = time.perf_counter()
        module = importlib.import_module(f"benchmarks.peers.{MODULES[self._name]}")
        imported = time.perf_counter()
        self._contender = module.CONTENDERS[self._name](self._encoding)
        self._contender.load(model_folder(BUNDLED, None))
        return {
            "import_s": imported - started,
            "model_s": time.perf_counter() - imported,
            "note": self._contender.note,
            "versions": {name: _version(name) for name in self._contender.packages},
        }

    def use(self, state: str, documents: str) -> dict[str, Any]:
        """Work on the folder ``documents`` from now on, with the stores in ``state``, new or not."""
        Path(state).mkdir(parents=True, exist_ok=True)
        self._state, self._documents = Path(state), Path(documents)
        return {}

    def sync(self) -> dict[str, Any]:
        """A refresh, as a schedule runs it: open the stores, bring the index up to date, close them.

        ``sync_s`` is the middle part alone.
        """
        started = time.perf_counter()
        self._contender.open(self._state, self._documents)
        texts, seconds = self._encoding.texts, self._encoding.seconds
        opened = time.perf_counter()
        self._contender.sync()
        synced = time.perf_counter()
        self._contender.close()
        ended = time.perf_counter()
        return {
            "seconds": ended - started,
            "sync_s": synced - opened,
            "embedded": self._encoding.texts - texts,
            "encode_s": self._encoding.seconds - seconds,
        }

    def compare(self) -> dict[str, Any]:
        """The store against the folder, and the chunk texts that are new since the last comparison."""
        self._contender.open(self._state, self._documents)
        expected, stored = list(self._contender.expected()), list(self._contender.stored())
        self._contender.close()
        texts = {text for _, text in expected}
        before, self._texts = self._texts, texts
        counted = {"new_texts": len(texts - before), "tokens_per_chunk": self._tokens([text for _, text in expected])}
        return {**differences(stored, expected), **counted}

    def _tokens(self, texts: list[str]) -> float:
        """Mean number of the model's tokens, those beyond its limit included."""
        tokenizer = Tokenizer.from_file(str(model_folder(BUNDLED, None) / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return sum(len(each) for each in tokenizer.encode_batch_fast(texts)) / max(1, len(texts))

    def bare(self) -> dict[str, Any]:
        """The encoder alone on the texts of the last comparison; ours only."""
        return {"seconds": self._contender.bare(sorted(self._texts)), "texts": len(self._texts)}  # type: ignore[attr-defined]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def main() -> None:
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as line:
        os.dup2(2, 1)  # what libraries print is no answer

        def answer(result: Mapping[str, Any]) -> None:
            line.write(json.dumps(result) + "\n")
            line.flush()

        work = _Work(sys.argv[1], Encoding(tell=lambda texts: answer({"told": texts})))
        for request in sys.stdin:
            given = json.loads(request)
            try:
                answer(getattr(work, given.pop("action"))(**given))
            except ModuleNotFoundError as error:
                answer({"not_installed": str(error)})
            except Exception as error:  # noqa: BLE001 whatever it is, the benchmark is told
                traceback.print_exc()
                answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
