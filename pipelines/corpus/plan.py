"""What a sync has to do, and what it must not do unasked: pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.corpus.settings import SourceSettings
from pipelines.corpus.sources.base import Listed

State = Literal["writing", "indexed", "failed"]


@dataclass(frozen=True, slots=True)
class Held:
    """A document as the catalog has it."""

    state: State
    version: str
    uri: str
    content_hash: str
    """Of the text that is indexed; empty where none is."""


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What a sync has to look at."""

    read: tuple[Listed, ...]
    """New, possibly changed, half written by a crash, or unreadable last time."""
    delete: tuple[str, ...]
    """Ids of documents that the source no longer has."""
    unchanged: int
    """Documents of which the change token, or not being listed among changes, says that nothing happened."""


def plan_sync(wanted: Sequence[Listed], held: Mapping[str, Held], removed: Collection[str] | None = None) -> SyncPlan:
    """The difference between what a source lists and what the catalog holds.

    ``removed`` is None where the listing is complete: whatever it lacks is gone. Otherwise only what it names is, and
    what was half written or unreadable and is not listed although it was asked for.
    """
    ids = {listed.document_id for listed in wanted}
    read = tuple(listed for listed in wanted if not _is_current(listed, held.get(listed.document_id)))
    if removed is None:
        gone = held.keys() - ids
    else:
        unanswered = {each for each, document in held.items() if document.state != "indexed"}
        gone = ((held.keys() & set(removed)) | unanswered) - ids
    kept = len(held) - len(gone) - sum(listed.document_id in held for listed in read)
    return SyncPlan(read, tuple(sorted(gone)), kept)


def _is_current(listed: Listed, held: Held | None) -> bool:
    return (
        held is not None
        and listed.error is None
        and held.state == "indexed"
        and (held.version, held.uri) == (listed.version, listed.uri)
    )


def renamed(gone: Mapping[str, str], new: Mapping[str, str]) -> set[str]:
    """Which of the documents that went away came back under another id: with the same text, or the same last name.

    Both map document ids to content hashes. Each new document explains one that is gone: a tree that moves, edited on
    the way, is no deletion, while a listing that lacks documents shows no new ones.
    """
    texts = Counter(new.values())
    names = Counter(_last_name(each) for each in new)
    found: set[str] = set()
    for document_id, content_hash in sorted(gone.items()):
        if texts[content_hash] > 0:
            texts[content_hash] -= 1
            found.add(document_id)
        elif names[_last_name(document_id)] > 0:
            names[_last_name(document_id)] -= 1
            found.add(document_id)
    return found


def _last_name(document_id: str) -> str:
    return document_id.rstrip("/").rpartition("/")[2].casefold()


def why_withheld(
    settings: SourceSettings,
    *,
    listed: int,
    held: int,
    deletions: int,
    partial: str | None = None,
    approved: int = 0,
) -> str | None:
    """Why ``deletions`` of ``held`` documents must wait for somebody's approval, or None where they may go ahead.

    Args:
        settings: thresholds of the source.
        listed: documents in the listing.
        held: documents with text in the index.
        deletions: of these, those that the source no longer has; renamed ones not counted.
        partial: why the listing may lack some, if it may.
        approved: so many deletions somebody has allowed.
    """
    if deletions == 0:
        return None
    if partial is not None:
        return f"the listing may lack documents: {partial}"
    if deletions <= approved:
        return None
    ceiling = f"; {approved} were approved" if approved else ""
    if listed == 0 and not settings.allow_empty:
        return f"the source lists nothing, while {held} documents are held{ceiling}"
    share = deletions / max(held, 1)
    if listed and deletions > settings.max_deletions and share > settings.max_deleted_share:
        return (
            f"{deletions} of {held} documents ({share:.0%}) are gone at once; without approval at most "
            f"{settings.max_deletions} or {settings.max_deleted_share:.0%} may go{ceiling}"
        )
    return None
