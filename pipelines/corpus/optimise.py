"""``python -m pipelines.corpus.optimise FOLDER PARENT``: build an embedded collection's graphs in a process of its own.

The engine holds Python's lock while it does: half a minute for a segment, in which the process that called it could
neither embed nor report nor be told to end. ``PARENT``, who starts this one, holds the collection's lock and has closed
it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that comes when the parent dies."""


def main(folder: Path, parent: int) -> None:
    """Optimise the collection in ``folder``, unless the process ``parent``, with whom the lock goes, is dead."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(f"{folder}: process {parent}, which holds its lock, has ended")
    import qdrant_edge as qe

    shard = qe.EdgeShard.load(str(folder))
    shard.optimize()
    shard.flush()
    shard.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
