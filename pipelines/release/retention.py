"""Which published versions are kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from pipelines.errors import FreshetError
from pipelines.release.storage import Storage


def removable(versions: Sequence[str], *, keep: int, never: Collection[str]) -> list[str]:
    """All of ``versions`` (the oldest first) but the last ``keep`` and those of ``never``.

    The newest is always kept, for the next number is counted from it.
    """
    return [version for version in versions[: -max(1, keep)] if version not in never]


def remove(storage: Storage, versions: Sequence[str], progress: Callable[[str], None]) -> list[str]:
    """Delete ``versions``, each its manifest first, so that one half deleted does not exist; say and return which.

    What cannot be deleted now stays for the next time: a version has been published, and that holds.
    """
    removed = []
    for version in versions:
        try:
            storage.remove(version)
        except (OSError, FreshetError) as error:
            progress(f"{storage.say(version)} is old and could not be removed: {error}")
        else:
            progress(f"removed {storage.say(version)}: more versions than are kept")
            removed.append(version)
    return removed
