"""The child process of ``isolated``: reads files from its standard input, answers each with a line of JSON."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
from contextlib import suppress
from typing import Any

from pipelines.corpus.parsing import Parsed, parse_here
from pipelines.errors import DocumentError

_IDLE_SECONDS = 60
_WALL = 10  # waiting does not count as processor time: this many times the limit, in seconds of the clock


def answer(data: bytes, suffix: str) -> dict[str, Any]:
    """What the file says, or why it cannot be read."""
    try:
        parsed = parse_here(data, suffix)
    except DocumentError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "it takes more memory to read than one file may: split it"}
    except Exception as error:  # noqa: BLE001 parsers raise anything on damaged files, and say what in it
        return {"error": f"the file is damaged: {type(error).__name__}: {str(error)[:300]}"}
    if all(not section.blocks and section.headings in ((), (parsed.title,)) for section in parsed.sections):
        return {"error": "it holds no text"}
    return as_json(parsed)


def as_json(parsed: Parsed) -> dict[str, Any]:
    """``parsed`` in JSON's types."""
    sections = [
        (section.headings, [(block.text, block.tight) for block in section.blocks]) for section in parsed.sections
    ]
    return {"title": parsed.title, "sections": sections, "metadata": dict(parsed.metadata)}


def main() -> None:
    """Serve until the input ends, or nothing has come for a minute."""
    with suppress(ValueError, OSError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its parent
    with os.fdopen(0, "rb") as requests, os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)  # what a library prints is no answer
        while select.select([requests], [], [], _IDLE_SECONDS)[0] and (line := requests.readline()):
            request = json.loads(line)
            data = requests.read(request["bytes"])
            # The default action of both signals ends the process, also in the middle of native code.
            signal.setitimer(signal.ITIMER_PROF, request["seconds"])
            signal.setitimer(signal.ITIMER_REAL, request["seconds"] * _WALL)
            reply = json.dumps(answer(data, request["suffix"])).encode()
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            replies.write(reply + b"\n")
            replies.flush()


if __name__ == "__main__":
    main()
