"""Publishers killed at random moments: ``python -m tests.pipelines.release.publishing_kills URL KILLS FOLDER``.

``FOLDER`` holds ``gguf``, ``adapter``, ``first`` (a report against nothing) and ``judged`` (against the same).
After every kill the champion must be whole and every version that exists must verify.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from pipelines.artifacts import Artifact, load
from pipelines.release import storage
from pipelines.release.registry import champion, publish, versions
from tests.pipelines.release.samples import USE_CASE, variant


def main(url: str, kills: int, folder: Path) -> dict[str, int]:
    if "://" in url:
        storage.LEASE_SECONDS = 0.6
    gguf, adapter, first, judged = (load(folder / name) for name in ("gguf", "adapter", "first", "judged"))

    def publish_one(model: Artifact, report: Artifact) -> str:
        return publish(model, adapter, report, use_case=USE_CASE, registry_url=url, keep=5).version

    publish_one(variant(gguf, folder, 0), first)
    start = time.monotonic()
    publish_one(variant(gguf, folder, 1), judged)
    usual = time.monotonic() - start
    seen: Counter[str] = Counter()
    waits = random.Random(7)
    number = 2
    while seen["killed"] < kills:
        number += 1
        model = variant(gguf, folder, number)
        before = champion(url, USE_CASE)
        child = os.fork()
        if child == 0:
            try:
                publish_one(model, judged)
            except BaseException:  # noqa: BLE001 said, and the child's end either way
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        # a lock that a killed one left is waited for first
        waited = storage.LEASE_SECONDS if "://" in url and seen["last killed"] else 0.0
        time.sleep(waited + waits.uniform(0, 1.2 * usual))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a publisher failed by itself"
        seen["last killed"] = int(os.WIFSIGNALED(status))
        seen["killed" if os.WIFSIGNALED(status) else "done before"] += 1
        served = champion(url, USE_CASE)
        assert served is not None
        assert before is not None
        moved = served.version != before.version
        assert moved == (served.fingerprint == model.fingerprint), "neither the old champion nor the new one"
        for version in versions(url, USE_CASE):
            version.storage.check(version.version, version.manifest["files"])
        seen["killed, and served all the same"] += int(moved and os.WIFSIGNALED(status))
        seen["killed between version and pointer"] += int(
            not moved and any(each.fingerprint == model.fingerprint for each in versions(url, USE_CASE))
        )
    last = publish_one(variant(gguf, folder, number + 1), judged)
    served = champion(url, USE_CASE)
    assert served is not None
    assert served.version == last
    served.fetch()
    return {**seen, "versions": len(versions(url, USE_CASE)), "usual_ms": round(1000 * usual)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
