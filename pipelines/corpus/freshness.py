"""How long a change at the source takes until it can be found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Lag:
    """Seconds from update to index, over the documents of one sync that state an update time."""

    p50: float
    p95: float
    max: float
    documents: int
    ahead: int
    """Documents whose update time lies after they were indexed (a clock that is wrong): counted as 0 seconds."""


def lag(rows: Iterable[tuple[datetime | None, datetime]]) -> Lag | None:
    """Lag over ``rows`` (updated_at, indexed_at), both aware; None where no document states an update time.

    It means something for documents that a sync added or changed. In the first sync of a source, or into a new
    collection, it would be the age of the documents. Percentiles are by nearest rank: each is a lag that occurred.
    """
    seconds = sorted((indexed - updated).total_seconds() for updated, indexed in rows if updated is not None)
    if not seconds:
        return None

    def percentile(share: int) -> float:
        return max(0.0, seconds[-(-share * len(seconds) // 100) - 1])

    return Lag(percentile(50), percentile(95), percentile(100), len(seconds), ahead=sum(each < 0 for each in seconds))
