"""RSS and Atom feeds, one document an entry."""

from __future__ import annotations

import calendar
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urljoin

from pipelines.corpus.documents import Document, Section
from pipelines.corpus.parsing import PARSER_VERSION, Parsed, parse_html, parse_text
from pipelines.corpus.parsing.outline import collapse, facts
from pipelines.corpus.settings import FeedSource
from pipelines.corpus.sources.base import LONGEST_ID, NOTHING_KNOWN, Known, Listed, Listing, Source, document, storable
from pipelines.corpus.sources.http import Client, Response
from pipelines.errors import DocumentError, SourceError
from pipelines.fingerprint import fingerprint
from pipelines.settings import without_credentials

_HARMLESS = ("CharacterEncodingOverride", "NonXMLContentType")


class FeedEntries(Source):
    """Every entry of a feed; its id is the one that the feed gives it, or else its link."""

    def __init__(self, settings: FeedSource) -> None:
        self._settings = settings
        self._shown = without_credentials(settings.url)
        self._client = Client(settings.name, settings, [settings.url])
        self._entries: dict[str, Any] = {}

    def list(self, known: Known = NOTHING_KNOWN) -> Listing:
        """Entries as the feed orders them; one that it lists no more is gone only where ``keep_old`` is false."""
        read_by = fingerprint(PARSER_VERSION, self._settings.url)[:16]
        state = known.state if known.state.get("read_by") == read_by else {}
        before: Mapping[str, str] = state.get("versions", {})
        held = bool(state) and all(known.versions.get(key) == before[key] for key in before)
        self._entries.clear()
        accept = "application/atom+xml,application/rss+xml,application/xml;q=0.9,*/*;q=0.5"
        validators = state["validators"] if held else None
        response = self._client.get(self._settings.url, validators=validators, accept=accept)
        if held and response.status == 304:
            gone = () if self._settings.keep_old else known.versions.keys() - before.keys()
            return Listing((), removed=gone, state=state)
        entries, partial = self._parse(response)
        listed: dict[str, Listed] = {}
        for number, entry in enumerate(entries, 1):
            each = self._listed(entry, number)
            if each.document_id in listed:
                continue  # the first is the newest
            listed[each.document_id] = each
            if each.error is None and known.versions.get(each.document_id) != each.version:
                self._entries[each.document_id] = entry
        versions = {key: each.version for key, each in listed.items()}
        whole = partial is None and not any(each.error for each in listed.values())
        return Listing(
            [*listed.values()],
            removed=() if self._settings.keep_old else None,
            partial=partial,
            state={"read_by": read_by, "validators": response.validators, "versions": versions} if whole else {},
        )

    def _parse(self, response: Response) -> tuple[Sequence[Any], str | None]:
        """Entries, and why some may be missing."""
        import feedparser

        data = self._client.body_of(self._settings.url, response)
        # A stream, so that it is never taken for the address or name of something to open; and without its address, to
        # which feedparser would make ids relative.
        headers = {"content-type": response.headers.get("content-type", "")}
        try:
            found = feedparser.parse(io.BytesIO(data), response_headers=headers)
        except Exception as error:  # it promises not to, and does now and then
            raise SourceError(
                f"source {self._settings.name!r}: {self._shown} cannot be parsed: {type(error).__name__} {error}"
            ) from error
        wrong = found.get("bozo_exception") if found.bozo else None
        wrong = None if type(wrong).__name__ in _HARMLESS else wrong
        if not found.entries and (wrong is not None or not found.get("version")):
            raise SourceError(
                f"source {self._settings.name!r}: {self._shown} is no RSS or Atom feed ({response.content_type!r}, "
                f"{len(data)} bytes){f': {wrong}' if wrong else ''}"
            )
        return found.entries, None if wrong is None else f"the feed is not well-formed: {wrong}"

    def _listed(self, entry: Any, number: int) -> Listed:
        link = str(entry.get("link") or "").strip()
        link = urljoin(self._shown, link) if link else ""
        link = link if link.startswith(("http://", "https://")) else ""
        uri = link or self._shown
        said = [entry.get("title"), uri, _contents(entry), _stated(entry)]
        key = str(entry.get("id") or "").strip() or link
        updated_at = _updated_at(entry)
        version = fingerprint(said, updated_at and updated_at.isoformat())[:32]
        if not key or len(key) > LONGEST_ID or not storable(key):
            error = f"entry {number} has neither an id nor a link of up to {LONGEST_ID} characters"
            return Listed(f"no id: {version[:12]}", "?", uri, updated_at, error)
        return Listed(key, version, uri, updated_at)

    def read(self, listed: Listed) -> Document:
        """The entry's content, or else its summary, under its title."""
        if listed.error is not None:
            raise DocumentError(f"{listed.document_id}: {listed.error}")
        if (entry := self._entries.get(listed.document_id)) is None:
            raise DocumentError(f"{listed.document_id}: was as it is known when it was listed; list it again")
        title = collapse(parse_title(str(entry.get("title") or "")))
        parts: list[Section] = []
        for kind, text in _contents(entry):
            try:
                parts += (parse_text(text) if kind == "text/plain" else parse_html(text)).sections
            except DocumentError as error:
                raise DocumentError(f"{listed.document_id}: {error}") from error
        if not any(part.blocks for part in parts):
            parts = list(parse_text(title).sections)
            if not parts:
                raise DocumentError(f"{listed.document_id}: the entry has neither title nor text")
        if title:
            parts = [
                part if part.headings[:1] == (title,) else Section((title, *part.headings), part.blocks)
                for part in parts
            ]
        parsed = Parsed(title or None, tuple(parts))
        return document(self._settings.name, listed, parsed, title or listed.document_id, _stated(entry))

    def close(self) -> None:
        """Close the connections and forget the entries."""
        self._client.close()
        self._entries.clear()


def parse_title(html: str) -> str:
    """A title without mark-up."""
    from bs4 import BeautifulSoup

    return BeautifulSoup(html, "html.parser").get_text(" ") if "<" in html or "&" in html else html


def _contents(entry: Any) -> list[tuple[str, str]]:
    """Type and text of the best that an entry has: what it contains, or else its summary."""
    contents = [(str(each.get("type")), str(each.get("value") or "")) for each in entry.get("content", ())]
    said = [each for each in contents if each[1].strip()]
    if not said:
        detail = entry.get("summary_detail") or {}
        said = [(str(detail.get("type")), str(entry.get("summary") or ""))]
    rich = [each for each in said if each[0] != "text/plain"]
    return rich[:1] or said[:1]  # others say the same again, in other forms


def _stated(entry: Any) -> dict[str, str | list[str]]:
    published = _moment(entry.get("published_parsed"))
    return facts(
        author=str(entry.get("author") or ""),
        published=published.isoformat() if published else None,
        keywords=[collapse(str(tag.get("term"))) for tag in entry.get("tags", ()) if tag.get("term")],
    )


def _updated_at(entry: Any) -> datetime | None:
    stated = (
        "updated_parsed" if "updated_parsed" in entry else "published_parsed"
    )  # the first falls back with a warning
    return _moment(entry.get(stated))


def _moment(parsed: Any) -> datetime | None:
    """Times are in UTC, as feedparser makes them."""
    try:
        return datetime.fromtimestamp(calendar.timegm(parsed), UTC) if parsed else None
    except (ValueError, OverflowError, OSError):
        return None
