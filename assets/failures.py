"""How domain errors become Dagster failures: a permanent one is not tried again."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from pipelines.errors import PermanentError

RETRY = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""For assets that read sources or share a lock: a transient failure may pass by itself."""


@contextmanager
def permanent_failures() -> Iterator[None]:
    """Turn a ``PermanentError`` into a failure that no retry policy repeats; its message is the description."""
    try:
        yield
    except PermanentError as error:
        raise dg.Failure(description=f"{type(error).__name__}: {error}", allow_retries=False) from error
