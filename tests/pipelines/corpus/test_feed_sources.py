"""RSS and Atom feeds from a real server on loopback."""

from __future__ import annotations

import json
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest

from pipelines.corpus.settings import FeedSource
from pipelines.corpus.sources import open_source
from pipelines.corpus.sources.base import Known, Listing, Source
from pipelines.errors import DocumentError, SourceError, SourceUnavailableError
from tests.pipelines.corpus.web_server import Answer, Site


def entry(key: str, text: str = "<p>Text.</p>", title: str = "", at: str = "2026-05-01T12:00:00+02:00") -> str:
    named = f"<id>{key}</id>" if key else ""
    return (
        f"<entry>{named}<title>{title or 'News ' + key}</title><link href='https://example.com/{key}'/>"
        f"<updated>{at}</updated><author><name>Ann</name></author><category term='pumps'/>"
        f"<content type='html'>{escape(text)}</content></entry>"
    )


def atom(*entries: str) -> str:
    body = "".join(entries)
    return f"<?xml version='1.0'?><feed xmlns='http://www.w3.org/2005/Atom'><title>News</title>{body}</feed>"


class Feed:
    """A feed, and what syncs make of it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.versions: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.retry: set[str] = set()
        self.state: Any = {}
        self.read: list[str] = []
        self.errors: dict[str, str] = {}

    def set(self, body: str | bytes, **more: Any) -> None:
        self.site.pages["/feed"] = Answer(body, **{"type": "application/atom+xml", **more})

    def opened(self, **settings: Any) -> Source:
        given = {"name": "news", "type": "feed", "allow_private": True, "url": f"{self.site.url}/feed", **settings}
        return open_source(FeedSource(**given), base=Path())

    def sync(self, **settings: Any) -> Listing:
        source = self.opened(**settings)
        listing = source.list(Known(dict(self.versions), frozenset(self.retry), json.loads(json.dumps(self.state))))
        held = self.versions.keys() | self.retry
        changed = [
            each for each in listing.documents if each.error or self.versions.get(each.document_id) != each.version
        ]
        self.read, self.errors = [], {}
        for each, document in source.read_all(changed):
            if isinstance(document, DocumentError):
                self.errors[each.document_id] = str(document)
                self.retry.add(each.document_id)
                continue
            self.read.append(each.document_id)
            self.versions[each.document_id] = each.version
            self.texts[each.document_id] = "\n".join(b.text for part in document.sections for b in part.blocks)
        gone = held - {each.document_id for each in listing.documents} if listing.removed is None else listing.removed
        for key in [*gone] if listing.partial is None else []:
            self.versions.pop(key, None)
            self.texts.pop(key, None)
        self.state = listing.state
        source.close()
        return listing


@pytest.fixture
def feed(site: Site) -> Feed:
    return Feed(site)


def test_every_entry_is_a_document(feed: Feed) -> None:
    feed.set(atom(entry("a", "<h2>Why</h2><p>Seals wear.</p><script>x()</script><ul><li>Check</li></ul>")))
    source = feed.opened()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listed = source.list().documents[0]
    document = source.read(listed)
    assert (listed.document_id, listed.uri) == ("a", "https://example.com/a")
    assert listed.updated_at == datetime(2026, 5, 1, 10, tzinfo=UTC)
    assert document.title == "News a"
    assert [section.headings for section in document.sections] == [("News a", "Why")]
    assert [block.text for block in document.sections[0].blocks] == ["Seals wear.", "Check"]
    assert document.metadata == {"author": "Ann", "keywords": ["pumps"]}


def test_rss_is_read_with_summaries_where_it_has_no_contents(feed: Feed) -> None:
    feed.set(
        "<rss version='2.0'><channel><title>News</title>"
        "<item><guid isPermaLink='false'>tag:1</guid><title>One &amp;amp; all</title><description>Short &lt;b&gt;text"
        "&lt;/b&gt;.</description><pubDate>Fri, 01 May 2026 12:00:00 +0200</pubDate></item>"
        "<item><link>/2</link><title>Two</title></item>"
        "</channel></rss>",
        type="application/rss+xml",
    )
    listing = feed.sync()
    assert feed.texts == {"tag:1": "Short text.", f"{feed.site.url}/2": "Two"}
    assert listing.documents[0].updated_at == datetime(2026, 5, 1, 10, tzinfo=UTC)
    assert listing.documents[0].uri == f"{feed.site.url}/feed"


def test_an_unchanged_feed_costs_a_conditional_request_and_changed_entries_are_read(feed: Feed) -> None:
    """I20, I14"""
    feed.set(atom(entry("a"), entry("b")), etag='"1"')
    feed.sync()
    listing = feed.sync()
    assert feed.site.asked[-1].conditional
    assert (listing.documents, listing.removed) == ((), ())
    feed.set(atom(entry("c"), entry("a", "<p>Corrected.</p>"), entry("b")), etag='"2"')
    feed.sync()
    assert feed.read == ["c", "a"]
    feed.set(atom(entry("c"), entry("a", "<p>Corrected.</p>"), entry("b")) + "\n<!-- made just now -->")
    feed.sync()
    assert feed.read == []


@pytest.mark.parametrize("keep", [True, False])
def test_entries_that_fall_off_the_end_stay_unless_the_settings_say_otherwise(feed: Feed, keep: bool) -> None:
    """I6"""
    feed.set(atom(entry("a"), entry("b")), etag='"1"')
    feed.sync(keep_old=keep)
    feed.set(atom(entry("c"), entry("b")), etag='"2"')
    feed.sync(keep_old=keep)
    assert sorted(feed.texts) == (["a", "b", "c"] if keep else ["b", "c"])
    feed.versions["a"] = "withheld"  # somebody has to approve that it goes
    assert feed.opened(keep_old=keep).list(Known(feed.versions, state=feed.state)).removed == (() if keep else {"a"})


def test_what_was_not_indexed_is_asked_for_again(feed: Feed) -> None:
    """I10"""
    feed.set(atom(entry("a"), entry("b")), etag='"1"')
    feed.sync()
    del feed.versions["b"]
    feed.retry.add("b")
    feed.sync()
    assert feed.read == ["b"]


@pytest.mark.parametrize(
    "body",
    ["<html><body><p>Log in</p></body></html>", "", "not found", '{"items": []}', "<feed><entry", "/etc/hostname"],
)
def test_what_is_no_feed_is_an_error_and_never_empty(feed: Feed, body: str) -> None:
    """I7, I19"""
    feed.set(body, type="text/html")
    with pytest.raises(SourceError, match="is no RSS or Atom feed"):
        feed.sync()


def test_a_feed_that_cannot_be_had_is_unavailable_or_an_error(feed: Feed) -> None:
    """I7"""
    feed.set("", status=503)
    with pytest.raises(SourceUnavailableError, match="status 503"):
        feed.sync()
    feed.set(atom(entry("a")), status=404)
    with pytest.raises(SourceError, match="does not exist"):
        feed.sync()


def test_a_torn_feed_deletes_nothing(feed: Feed) -> None:
    """I7"""
    whole = atom(entry("a"), entry("b"), entry("c"))
    feed.set(whole)
    feed.sync(keep_old=False)
    feed.set(whole[: whole.index("<id>c</id>") - 5])
    assert "not well-formed" in str(feed.sync(keep_old=False).partial)
    assert sorted(feed.texts) == ["a", "b", "c"]


def test_an_empty_feed_is_empty(feed: Feed) -> None:
    feed.set(atom())
    assert feed.sync(keep_old=False).documents == []


def test_entries_that_are_wrong_are_errors_of_their_own(feed: Feed) -> None:
    """I10, I19"""
    nameless = "<entry><title>Nobody</title><updated>2026-05-01T12:00:00Z</updated></entry>"
    silent = "<entry><id>s</id></entry>"
    feed.set(atom(entry("a"), nameless, silent, entry("a", "<p>Older.</p>"), entry("k" * 2000)))
    feed.sync()
    assert feed.texts == {"a": "Text."}
    assert len(feed.errors) == 3
    assert feed.errors["s"] == "s: the entry has neither title nor text"
    assert sum("neither an id nor a link" in error for error in feed.errors.values()) == 2


def test_only_addresses_of_the_web_become_links(feed: Feed) -> None:
    feed.set(atom(entry("a").replace("https://example.com/a", "javascript:alert(1)")))
    assert feed.sync().documents[0].uri == f"{feed.site.url}/feed"


def test_the_origin_of_a_feed_is_shown_without_its_query() -> None:
    settings = FeedSource(name="news", type="feed", url="https://example.com/feed?key=k3y")
    assert settings.origin == "https://example.com/feed"


def test_entries_go_through_the_whole_sync(feed: Feed, edge_corpus: Any) -> None:
    """I6, I14, I20"""
    settings = FeedSource(name="docs", type="feed", url=f"{feed.site.url}/feed", allow_private=True)
    feed.set(atom(entry("a"), entry("b", "<p>Seals wear.</p>")), etag='"1"')
    assert edge_corpus.sync(settings).added == 2
    again = edge_corpus.sync(settings)
    assert (again.unchanged, again.embedded) == (2, 0)
    feed.set(atom(entry("c"), entry("a", "<p>Corrected.</p>")), etag='"2"')
    report = edge_corpus.sync(settings)
    assert (report.added, report.changed, report.deleted, report.unchanged) == (1, 1, 0, 1)
    assert edge_corpus.sync(settings.model_copy(update={"keep_old": False})).deleted == 1
    assert edge_corpus.audit().clean
