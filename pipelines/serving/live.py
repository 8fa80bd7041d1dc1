"""The champion of a use case while it may be replaced: requests keep the version that they began with."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipelines.errors import FreshetError, NotBuiltError
from pipelines.release.registry import PublishedVersion, pointer_token
from pipelines.serving.answering import ServedModel

RETRY_SECONDS = 30.0
"""A version that could not be loaded is tried again after so long, or when the pointer moves."""

_log = logging.getLogger("uvicorn.error")


@dataclass(slots=True)
class _Held:
    model: ServedModel
    users: int = 0
    retired: bool = False


class Live:
    """What answers for one use case now."""

    def __init__(
        self,
        use_case: str,
        registry_url: str,
        champion: Callable[[], PublishedVersion | None],
        load: Callable[[PublishedVersion], ServedModel],
    ) -> None:
        """``champion`` says what should be served, ``load`` reads it into memory."""
        self.use_case = use_case
        self._registry_url, self._champion, self._load = registry_url, champion, load
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._token: str | None = None
        self._tried: tuple[str | None, float] | None = None
        self._doubted = False
        self._closed = False

    @property
    def version(self) -> str | None:
        """Of the model that a new request gets; None while there is none."""
        held = self._held
        return None if held is None else held.model.version

    @contextmanager
    def model(self) -> Iterator[ServedModel]:
        """The model of now, which stays in memory until the block ends.

        Raises:
            NotBuiltError: nothing is published, or loaded, yet.
        """
        with self._lock:
            held = self._held
            if held is None:
                raise NotBuiltError(
                    f"{self.use_case} has no published model yet: run the job {self.use_case}_retrain first"
                )
            held.users += 1
        try:
            yield held.model
        finally:
            with self._lock:
                held.users -= 1
                last = held.retired and not held.users
            if last:
                self._end(held)

    def look(self) -> bool:
        """Serve the champion if it is another one than before; whether it is.

        The new one is loaded beside the old one, which answers until then. What cannot be loaded is reported once.
        """
        token = None
        try:
            token = pointer_token(self._registry_url, self.use_case)
            if token is None or token == self._token:
                return False
            if self._tried is not None and self._tried[0] == token and time.monotonic() < self._tried[1]:
                return False
            version = self._champion()
            if version is None:
                return False
            same = self._held is not None and self._held.model.version == version.version and not self._doubted
            if not same:
                self._replace(self._load(version))
                _log.info("%s is answered by %s now", self.use_case, version.version)
            self._token, self._tried, self._doubted = token, None, False
        except FreshetError as error:
            if self._tried is None or self._tried[0] != token:
                _log.error("%s stays as it is (%s): %s", self.use_case, self.version or "nothing", error)
            self._tried = (token, time.monotonic() + RETRY_SECONDS)
            return False
        return not same

    def doubt(self, model: ServedModel) -> None:
        """``model`` failed: the next look loads it anew."""
        with self._lock:
            if self._held is not None and self._held.model is model:
                self._doubted, self._token = True, None

    def close(self) -> None:
        """Serve nothing any more; the model is freed after its last request."""
        self._closed = True
        self._replace(None)

    def _replace(self, model: ServedModel | None) -> None:
        new = None if model is None else _Held(model)
        with self._lock:
            old: _Held | None
            if new is not None and self._closed:
                old = new
            else:
                old, self._held = self._held, new
            if old is None:
                return
            old.retired = True
            idle = not old.users
        if idle:
            self._end(old)

    def _end(self, held: _Held) -> None:
        held.model.close()
        _log.info("%s %s is freed", self.use_case, held.model.version)
