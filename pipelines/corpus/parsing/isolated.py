"""Parsers of binary formats run in a child process: a file that hangs, crashes or exhausts one costs itself only.

The child is kept for the next file, and ends after a minute without one, or when this process does. Threads that parse
at the same time have a child each.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

from pipelines.corpus.documents import Block, Section
from pipelines.corpus.parsing.outline import Parsed
from pipelines.errors import DocumentError

SECONDS = 120.0
"""Processor time that one file may take."""
MEMORY = 4 * 1024**3
"""Bytes of address space that one file may take."""

_ROOT = Path(__file__).resolve().parents[3]
_idle: list[subprocess.Popen[bytes]] = []


def parse(data: bytes, suffix: str, *, seconds: float = SECONDS) -> Parsed:
    """``parse_here``, in a child process, in at most ``seconds`` of processor time.

    Raises:
        DocumentError: the file cannot be read, or its parser takes too long or crashes.
    """
    request = json.dumps({"suffix": suffix, "bytes": len(data), "seconds": seconds}).encode() + b"\n" + data
    for _ in range(2):
        child = _child()
        try:
            reply = _ask(child, request)
        except BaseException:
            child.kill()
            child.communicate()
            raise
        if reply:
            _idle.append(child)
            return _parsed(reply)
        child.communicate()
        if child.returncode:
            raise DocumentError(_death(child.returncode, seconds))
    raise DocumentError("the process that reads it ended without an answer")


def close() -> None:
    """End the children that wait for files."""
    while _idle:
        child = _idle.pop()
        child.communicate()  # closes its input


atexit.register(close)
os.register_at_fork(after_in_child=_idle.clear)


def _child() -> subprocess.Popen[bytes]:
    while _idle:
        child = _idle.pop()
        if child.poll() is None:
            return child
        child.communicate()
    command = [sys.executable, "-W", "ignore", "-m", "pipelines.corpus.parsing", str(MEMORY)]
    return subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _ask(child: subprocess.Popen[bytes], request: bytes) -> bytes:
    """The child's answer; none if it has ended."""
    requests, replies = cast("IO[bytes]", child.stdin), cast("IO[bytes]", child.stdout)
    try:
        requests.write(request)
        requests.flush()
    except BrokenPipeError:
        return b""
    return replies.readline()


def _parsed(reply: bytes) -> Parsed:
    answer = json.loads(reply)
    if "error" in answer:
        raise DocumentError(answer["error"])
    sections = (
        Section(tuple(headings), tuple(Block(text, tight) for text, tight in blocks))
        for headings, blocks in answer["sections"]
    )
    return Parsed(answer["title"], tuple(sections), answer["metadata"])


def _death(code: int, seconds: float) -> str:
    if -code in (signal.SIGPROF, signal.SIGALRM):
        return f"its parser did not finish within {seconds:g} s of processor time: split it, or save it anew"
    return f"its parser crashed (exit {code}): the file is damaged, or takes more than {MEMORY // 1024**3} GiB to read"
