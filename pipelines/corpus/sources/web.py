"""Web pages, one document each.

A listing asks for every page, most of them only whether they changed: by ETag or modification time where the server
gives one, and else by what the page says. The version of a page is the hash of its extracted text, so what a server
writes anew into each answer (a nonce, the time) is no change.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin, urlsplit

from protego import Protego

from pipelines.corpus.documents import Block, Document, Section
from pipelines.corpus.parsing import (
    PARSER_VERSION,
    SUFFIXES,
    Parsed,
    decode,
    parse,
    parse_html,
    parse_markdown,
)
from pipelines.corpus.parsing.markup import CHARSET
from pipelines.corpus.parsing.outline import facts
from pipelines.corpus.settings import WebSource
from pipelines.corpus.sources.base import LONGEST_ID, NOTHING_KNOWN, Known, Listed, Listing, Source, document, moment
from pipelines.corpus.sources.http import Client, Response, charset, gunzip, normalised, origin, status_in_words
from pipelines.errors import DocumentError, FreshetError, SourceError, SourceUnavailableError
from pipelines.fingerprint import fingerprint, text_hash
from pipelines.settings import without_credentials

_THREADS = 8
_LONGEST_CRAWL_DELAY = 10.0  # seconds: what a robots.txt may ask for
_MOST_OF_ROBOTS = 512_000  # bytes, as RFC 9309 has it
_DEEPEST_SITEMAP = 3
_HTML = ("text/html", "application/xhtml+xml")
_OFFICE = "application/vnd.openxmlformats-officedocument"
_SUFFIX = {
    "application/pdf": ".pdf",
    f"{_OFFICE}.wordprocessingml.document": ".docx",
    f"{_OFFICE}.presentationml.presentation": ".pptx",
    f"{_OFFICE}.spreadsheetml.sheet": ".xlsx",
    "message/rfc822": ".eml",
    "text/markdown": ".md",
    "text/x-markdown": ".md",
}
_UNSAID = ("", "application/octet-stream", "binary/octet-stream", "text/plain")


@dataclass(frozen=True, slots=True)
class _Page:
    """What asking for one page came to."""

    url: str
    version: str | None = None
    final: str = ""
    """Where its redirects end."""
    moved: bool = False
    """Whether it redirects for good."""
    updated_at: datetime | None = None
    error: str | None = None
    unavailable: bool = False
    gone: bool = False
    state: Mapping[str, Any] = field(default_factory=dict)


class WebPages(Source):
    """Pages by address, or those of a sitemap; its id is the address as it is listed, without fragment.

    What is new or changed is fetched and parsed by listing, and waits in a temporary folder until it is read.
    """

    def __init__(self, settings: WebSource) -> None:
        self._settings = settings
        self._name = f"source {settings.name!r}"
        addresses = [*settings.urls, *([settings.sitemap] if settings.sitemap else [])]
        self._client = Client(settings.name, settings, addresses)
        self._robots: dict[tuple[str, str], Protego | SourceError | SourceUnavailableError | None] = {}
        self._robots_lock = threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._missing: list[str] = []

    def list(self, known: Known = NOTHING_KNOWN) -> Listing:
        """Every page, in the order of the settings and the sitemap."""
        from trafilatura import __version__ as extractor

        self.close_folder()
        self._folder = tempfile.TemporaryDirectory(prefix="freshet-pages-")
        self._robots.clear()
        read_by = fingerprint(PARSER_VERSION, extractor)[:16]
        before: Mapping[str, Any] = known.state.get("pages", {}) if known.state.get("read_by") == read_by else {}
        named = [normalised(url) for url in self._settings.urls]
        wanted = {**self._of_sitemap(), **dict.fromkeys(named, "")}
        if len(wanted) > self._settings.max_pages:
            raise SourceError(
                f"{self._name}: {len(wanted)} pages are more than max_pages={self._settings.max_pages}: raise it, or "
                "narrow 'include'"
            )
        pool = ThreadPoolExecutor(_THREADS)
        try:
            pages = [*pool.map(lambda url: self._ask(url, wanted[url], known, before.get(url, {})), wanted)]
        finally:
            pool.shutdown(cancel_futures=True)
        if pages and all(page.unavailable for page in pages):
            raise SourceUnavailableError(f"{self._name}: no page can be read now; the first: {pages[0].error}")
        listed, state = self._listed(pages, known, before, frozenset(named))
        missing = f"{len(self._missing)} sitemaps do not exist, such as {self._missing[0]}" if self._missing else None
        return Listing(listed, partial=missing, state={"read_by": read_by, "pages": state})

    def _listed(
        self, pages: Collection[_Page], known: Known, before: Mapping[str, Any], named: Collection[str]
    ) -> tuple[Sequence[Listed], dict[str, Any]]:
        """The pages as they are listed, and their state."""
        same = self._redirected(pages)
        kept = {page.url for page in pages if page.version is not None and page.url not in same}
        listed, state = [], dict[str, Any]()
        for page in pages:
            was = before.get(page.url, {})
            error = page.error
            if page.version is not None and page.url in same:
                error = same[page.url]
                if error is None:  # one document with the page that it leads to
                    state[page.url] = {"same_as": page.final}
                    continue
            elif page.gone:
                held = page.url in known.versions or (page.url in known.retry and bool(was))
                if held:
                    state[page.url] = was
                if held or page.url not in named:
                    continue
            elif error is not None and was.get("same_as") in kept:
                state[page.url] = was
                continue
            if error is None:
                state[page.url] = page.state
                listed.append(Listed(page.url, str(page.version), page.url, page.updated_at))
            else:
                state |= {page.url: was} if was and not page.gone else {}
                listed.append(Listed(self._storable(page.url), "?", page.url, error=error))
        return listed, state

    def _redirected(self, pages: Collection[_Page]) -> dict[str, str | None]:
        """Pages that lead where another does: None where they are one document, or why that cannot be told."""
        by_end: dict[str, list[_Page]] = defaultdict(list)
        for page in pages:
            if page.version is not None:
                by_end[page.final].append(page)
        found: dict[str, str | None] = {}
        for end, group in by_end.items():
            if len(group) < 2:
                continue
            first = next((page for page in group if page.url == end), None)
            if first is None and all(page.moved for page in group):
                first = group[0]
            why = (
                f"it redirects to {without_credentials(end)}, as do {len(group) - 1} others, but not for good: a login?"
            )
            found |= {page.url: why if first is None else None for page in group if page is not first}
        return found

    @staticmethod
    def _storable(url: str) -> str:
        return url if len(url) <= LONGEST_ID else f"{url[:900]}…{text_hash(url)[:16]}"

    # --- one page

    def _ask(self, url: str, lastmod: str, known: Known, before: Mapping[str, Any]) -> _Page:
        if len(url) > LONGEST_ID:
            return _Page(url, error=f"its address has more than {LONGEST_ID} characters")
        # A version that is not indexed would never be read, were the page taken for unchanged.
        held = "version" in before and known.versions.get(url) == before["version"]
        state = {**before, "lastmod": lastmod}
        if held and self._settings.trust_lastmod and lastmod and before.get("lastmod") == lastmod:
            return _Page(url, before["version"], before["final"], before["moved"], state=state)
        validators = before["validators"] if held else {}
        accept = "text/html,application/xhtml+xml,application/pdf;q=0.9,*/*;q=0.8"
        try:
            response = self._client.get(url, validators=validators, accept=accept, allowed=self._allowed)
        except SourceUnavailableError as error:
            return _Page(url, error=str(error), unavailable=True)
        except SourceError as error:
            return _Page(url, error=str(error))
        state |= {"final": response.url, "moved": response.moved}
        if held and response.status == 304:
            return _Page(url, before["version"], response.url, response.moved, state=state)
        if response.status in (404, 410):
            return _Page(url, gone=True, error=status_in_words(response.status))
        if not 200 <= response.status < 300:
            return _Page(url, error=status_in_words(response.status))
        state |= {"validators": response.validators, "body": hashlib.sha256(response.body).hexdigest()[:32]}
        updated_at = _day_or_time(lastmod) or response.updated_at
        if held and before["body"] == state["body"]:
            return _Page(url, before["version"], response.url, response.moved, updated_at, state=state)
        try:
            parsed = parse_page(response)
        except DocumentError as error:
            return _Page(url, error=str(error))
        said = {
            "title": parsed.title,
            "sections": [
                (part.headings, [(block.text, block.tight) for block in part.blocks]) for part in parsed.sections
            ],
            "metadata": {**parsed.metadata, **({"redirected_to": response.url} if response.url != url else {})},
        }
        version = fingerprint(said)[:32]
        if known.versions.get(url) != version:
            self._spooled(url).write_text(json.dumps(said, ensure_ascii=True), encoding="utf-8")
        return _Page(url, version, response.url, response.moved, updated_at, state={**state, "version": version})

    def _spooled(self, url: str) -> Path:
        if self._folder is None:
            raise DocumentError(f"{url}: was not listed")
        return Path(self._folder.name) / text_hash(url)[:32]

    def read(self, listed: Listed) -> Document:
        """What listing found, from the temporary folder."""
        if listed.error is not None:
            raise DocumentError(f"{listed.document_id}: {listed.error}")
        try:
            said = json.loads(self._spooled(listed.document_id).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DocumentError(f"{listed.document_id}: was as it is known when it was listed; list it again") from None
        sections = tuple(
            Section(tuple(headings), tuple(Block(text, tight) for text, tight in blocks))
            for headings, blocks in said["sections"]
        )
        parsed = Parsed(said["title"], sections, said["metadata"])
        title = parsed.title or PurePosixPath(urlsplit(listed.uri).path).name or listed.uri
        return document(self._settings.name, listed, parsed, title, parsed.metadata)

    def close(self) -> None:
        """Close the connections and remove the temporary folder."""
        self._client.close()
        self.close_folder()

    def close_folder(self) -> None:
        """Remove what the last listing fetched."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    # --- robots.txt

    def _allowed(self, url: str) -> None:
        """Whether robots.txt lets us ask for ``url``.

        Raises:
            SourceError: it does not.
            SourceUnavailableError: it cannot be read, which counts as no for now.
        """
        if not self._settings.robots:
            return
        with self._robots_lock:  # the first asks for it, the others wait for its answer
            if origin(url) not in self._robots:
                self._robots[origin(url)] = self._robots_of(url)
            rules = self._robots[origin(url)]
        if isinstance(rules, SourceError | SourceUnavailableError):
            raise type(rules)(f"whether robots.txt allows it is not known: {rules}")
        if rules is not None and not rules.can_fetch(url, self._agent):
            raise SourceError(
                f"{urljoin(url, '/robots.txt')} does not allow it for {self._agent!r}; leave it out, or ask its owner"
            )

    @property
    def _agent(self) -> str:
        return self._settings.user_agent.replace("/", " ").split()[0]

    def _robots_of(self, url: str) -> Protego | SourceError | SourceUnavailableError | None:
        try:
            response = self._client.get(urljoin(url, "/robots.txt"), accept="text/plain,*/*;q=0.5")
        except (SourceError, SourceUnavailableError) as error:
            return error
        if not 200 <= response.status < 300:
            return None  # RFC 9309: there is none
        rules = Protego.parse(response.body[:_MOST_OF_ROBOTS].decode("utf-8-sig", "replace"))
        if delay := rules.crawl_delay(self._agent):
            self._client.slow_down(url, min(float(delay), _LONGEST_CRAWL_DELAY))
        return rules

    # --- sitemap

    def _of_sitemap(self) -> dict[str, str]:
        """Addresses that the sitemap lists, each with its lastmod, if it has one.

        Raises:
            SourceError: it is no sitemap, or lists more than may be.
            SourceUnavailableError: it, or one that it refers to, cannot be read now.
        """
        self._missing.clear()
        found: dict[str, str] = {}
        if self._settings.sitemap is None:
            return found
        for url, lastmod in self._entries(self._settings.sitemap, 0, set()):
            with_pattern = (pattern for pattern in self._settings.include if fnmatchcase(url, pattern))
            if next(with_pattern, None) and not any(fnmatchcase(url, pattern) for pattern in self._settings.exclude):
                found[url] = lastmod
        return found

    def _entries(self, url: str, depth: int, seen: set[str]) -> Iterator[tuple[str, str]]:
        if depth > _DEEPEST_SITEMAP:
            raise SourceError(f"{self._name}: sitemaps within sitemaps without end at {without_credentials(url)}")
        if url in seen:
            return
        seen.add(url)
        response = self._client.get(url, accept="application/xml,text/xml,*/*;q=0.5")
        if depth and response.status in (404, 410):
            self._missing.append(without_credentials(url))
            return
        kind, entries = self._sitemap(url, self._client.body_of(url, response))
        for at, lastmod in entries:
            if kind == "sitemapindex":
                yield from self._entries(at, depth + 1, seen)
            else:
                yield at, lastmod

    def _sitemap(self, url: str, data: bytes) -> tuple[str, Sequence[tuple[str, str]]]:
        """Kind and entries of one sitemap."""
        from lxml import etree

        try:
            if data.startswith(b"\x1f\x8b"):
                data = gunzip([data], self._settings.max_bytes)
            root = etree.fromstring(data, etree.XMLParser(resolve_entities=False, no_network=True))
        except (etree.XMLSyntaxError, SourceError) as error:
            raise SourceError(f"{self._name}: {without_credentials(url)} is no sitemap: {error}") from None
        kind = etree.QName(root).localname
        if kind not in ("urlset", "sitemapindex"):
            raise SourceError(f"{self._name}: {without_credentials(url)} is no sitemap, but XML of a {kind!r}")
        entries = []
        for entry in root.iterchildren("{*}url", "{*}sitemap"):
            stated = {etree.QName(each).localname: (each.text or "").strip() for each in entry.iterchildren("{*}*")}
            if at := stated.get("loc"):
                with suppress(ValueError):  # asking for it will say what is wrong
                    at = normalised(urljoin(url, at))
                entries.append((at, stated.get("lastmod", "")))
        return kind, entries


def parse_page(response: Response) -> Parsed:
    """What a page says, by the type that its server states.

    Raises:
        DocumentError: it holds no text, cannot be read, or is of another type.
    """
    kind, suffix = response.content_type, PurePosixPath(urlsplit(response.url).path).suffix.lower()
    if kind in _UNSAID and suffix in SUFFIXES:
        pass
    elif kind == "text/plain":
        suffix = ".txt"
    else:
        suffix = _SUFFIX.get(kind, "")
    declared = charset(response.headers.get("content-type", ""))
    if kind in _HTML or suffix in (".html", ".htm") or (not kind and response.body.lstrip()[:1] == b"<"):
        return parse_article(decode(response.body, declared or CHARSET.search(response.body[:4096])), response.url)
    if not suffix:
        raise DocumentError(f"its type is {kind!r}; pages, PDF, office files, mail, Markdown and text can be read")
    if suffix in (".txt", ".md", ".markdown") and declared:
        return parse(decode(response.body, declared).encode("utf-8"), suffix)
    return parse(response.body, suffix)


def parse_article(html: str, url: str) -> Parsed:
    """The main text of a page by trafilatura (Barbaresi 2021), or all of it where that finds none.

    Raises:
        DocumentError: it holds no text.
    """
    try:
        return _article(html, url)
    except FreshetError:
        raise
    except Exception as error:  # its libraries were written for pages that people made
        raise DocumentError(f"it cannot be parsed: {type(error).__name__} {error}") from error


def _article(html: str, url: str) -> Parsed:
    import trafilatura

    stated: Mapping[str, Any] = {}
    title = text = None
    if (tree := trafilatura.load_html(html)) is not None:
        found = trafilatura.extract_metadata(tree, default_url=url)
        title = " ".join((found.title or "").split()) or None
        stated = facts(author=found.author, description=found.description, date=found.date, keywords=found.tags)
        text = trafilatura.extract(tree, url=url, output_format="markdown", include_comments=False)
    parsed = parse_markdown(f"\n{text or ''}")  # what looks like front matter there is text
    if not any(section.blocks for section in parsed.sections):
        whole = parse_html(html)
        parsed, title, stated = whole, whole.title or title, {**whole.metadata, **stated}
    if not any(section.blocks for section in parsed.sections):
        raise DocumentError("it holds no text; a page that scripts write in the browser cannot be read")
    if title is None:
        return Parsed(parsed.title, parsed.sections, stated)
    sections = tuple(
        each if each.headings[:1] == (title,) else Section((title, *each.headings), each.blocks)
        for each in parsed.sections
    )
    return Parsed(title, sections, stated)


def _day_or_time(text: str) -> datetime | None:
    try:
        return moment(text).astimezone(UTC) if text else None
    except (ValueError, OverflowError):
        return None
