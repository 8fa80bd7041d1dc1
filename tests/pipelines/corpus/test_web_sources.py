"""Web pages from a real server on loopback."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.corpus.documents import Document
from pipelines.corpus.settings import WebSource
from pipelines.corpus.sources import open_source
from pipelines.corpus.sources import web as module
from pipelines.corpus.sources.base import Known, Listing, Source
from pipelines.corpus.sources.web import parse_article
from pipelines.errors import DocumentError, SourceError, SourceUnavailableError
from tests.pipelines.corpus.document_files import pdf
from tests.pipelines.corpus.web_server import Answer, Asked, Site, open_site

XML = '<?xml version="1.0" encoding="utf-8"?>'


def page(title: str, text: str, extra: str = "") -> str:
    return (
        f"<!doctype html><html><head><title>{title}</title>{extra}</head><body>"
        "<nav><ul><li><a href='/'>Home</a></li><li><a href='/shop'>Shop</a></li></ul></nav>"
        f"<main><article><h1>{title}</h1><p>{text} It is checked by a second person, who signs the log.</p>"
        "<h2>Steps</h2><ol><li>Close the valve.</li><li>Read the gauge.</li></ol>"
        "<table><tr><th>Part</th><th>Bar</th></tr><tr><td>Pump</td><td>4</td></tr></table>"
        "<p>Whoever finds a leak calls the shift lead and waits for instructions.</p></article></main>"
        "<footer>Imprint and privacy</footer></body></html>"
    )


def said(document: Document | DocumentError) -> str:
    if isinstance(document, DocumentError):
        return str(document)
    parts = ([*each.headings[-1:], *(block.text for block in each.blocks)] for each in document.sections)
    return "\n".join(text for part in parts for text in part)


class Crawl:
    """A source of pages, and what syncs make of it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.sources: list[Source] = []
        self.settings: dict[str, Any] = {"delay_seconds": 0}
        self.versions: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.retry: set[str] = set()
        self.state: Any = {}
        self.read: list[str] = []
        self.errors: dict[str, str] = {}

    def opened(self, *paths: str, **settings: Any) -> Source:
        urls = [self.site.url + path if path.startswith("/") else path for path in paths]
        given = {"name": "docs", "type": "web", "allow_private": True, "urls": urls, **self.settings, **settings}
        self.sources.append(open_source(WebSource(**given), base=Path()))
        return self.sources[-1]

    def sitemap(self, *pages: str | tuple[str, str]) -> None:
        both = [each if isinstance(each, tuple) else (each, "") for each in pages]
        entries = "".join(
            f"<url><loc>{self.site.url}{path}</loc>{f'<lastmod>{at}</lastmod>' if at else ''}</url>"
            for path, at in both
        )
        xml = f'<?xml version="1.0"?><urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</urlset>'
        self.site.pages["/sitemap.xml"] = Answer(xml, type="application/xml")
        self.settings["sitemap"] = f"{self.site.url}/sitemap.xml"

    def sync(self, *paths: str, **settings: Any) -> Listing:
        source = self.opened(*paths, **settings)
        try:
            known = Known(dict(self.versions), frozenset(self.retry), json.loads(json.dumps(self.state)))
            listing = source.list(known)
            held = self.versions.keys() | self.retry
            changed = [each for each in listing.documents if each.error or held_is_other(self, each)]
            self.read, self.errors = [], {}
            for each, document in source.read_all(changed):
                path = each.document_id.removeprefix(self.site.url)
                if isinstance(document, DocumentError):
                    self.errors[path] = str(document)
                    self.versions.pop(each.document_id, None)
                    self.retry.add(each.document_id)
                    continue
                self.read.append(path)
                self.versions[each.document_id] = each.version
                self.retry.discard(each.document_id)
                self.texts[path] = said(document)
            for key in (held - {each.document_id for each in listing.documents}) if listing.partial is None else ():
                self.versions.pop(key, None)
                self.retry.discard(key)
                self.texts.pop(key.removeprefix(self.site.url), None)
            self.state = listing.state
            return listing
        finally:
            source.close()


def held_is_other(crawl: Crawl, each: Any) -> bool:
    return crawl.versions.get(each.document_id) != each.version


@pytest.fixture
def crawl(site: Site) -> Iterator[Crawl]:
    opened = Crawl(site)
    yield opened
    for source in opened.sources:
        source.close()


# --- text


def test_the_main_text_of_a_page_becomes_sections_under_its_headings(crawl: Crawl) -> None:
    extra = '<meta name="author" content="Ann Lee"><meta property="article:published_time" content="2026-03-01">'
    modified = {"Last-Modified": "Fri, 01 May 2026 12:00:00 GMT"}
    crawl.site.pages["/leaks"] = Answer(page("Leak checks", "Run it before every shift.", extra), headers=modified)
    source = crawl.opened("/leaks#top")
    listed = source.list().documents[0]
    document = source.read(listed)
    assert (listed.document_id, listed.uri) == (f"{crawl.site.url}/leaks", f"{crawl.site.url}/leaks")
    assert listed.updated_at == datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert document.title == "Leak checks"
    assert [section.headings for section in document.sections] == [("Leak checks",), ("Leak checks", "Steps")]
    assert "Part: Pump; Bar: 4" in said(document)
    assert "1. Close the valve." in said(document) or "- Close the valve." in said(document)
    assert not {"Home", "Imprint"} & set(said(document).split())
    assert document.metadata == {"author": "Ann Lee", "date": "2026-03-01"}


def test_a_page_without_main_text_is_read_whole_and_one_without_text_is_an_error(crawl: Crawl) -> None:
    """I19"""
    crawl.site.pages["/short"] = Answer("<title>Hours</title><p>Open at nine.")
    crawl.site.pages["/app"] = Answer("<html><body><div id=root></div><script>render()</script></body></html>")
    crawl.site.pages["/nothing"] = Answer("")
    crawl.sync("/short", "/app", "/nothing")
    assert crawl.texts == {"/short": "Hours\nOpen at nine."}
    assert "holds no text; a page that scripts write" in crawl.errors["/app"]
    assert "no text" in crawl.errors["/nothing"]


def test_extraction_is_the_same_every_time_and_front_matter_in_a_page_is_text() -> None:
    html = page("Notes", "---</p><p>title: other</p><p>---</p><p>All of it stays as it was written there.")
    first = parse_article(html, "https://example.com/a")
    parse_article(page("Other", "Something else."), "https://example.com/b")
    assert parse_article(html, "https://example.com/a") == first
    assert first.title == "Notes"
    assert "title: other" in str(first.sections)


@pytest.mark.parametrize(
    ("path", "answer", "text"),
    [
        ("/plain", Answer("One.\n\nTwo.", type="text/plain"), "One.\nTwo."),
        ("/latin", Answer("Grün".encode("latin-1"), type="text/plain; charset=iso-8859-1"), "Grün"),
        ("/latin.html", Answer("<p>Grün</p>".encode("latin-1"), type="text/html; charset=iso-8859-1"), "Grün"),
        ("/a.md", Answer("# Title\n\nText.", type="text/plain"), "Text."),
        ("/b", Answer("# Title\n\nText.", type="text/markdown"), "Text."),
        ("/c.md", Answer("# Title\n\nText.", type="application/octet-stream"), "Text."),
        ("/d", Answer(pdf(pages=1), type="application/pdf"), "Chapter 1"),
        ("/d.pdf", Answer("<p>Log in</p>", type="application/pdf"), "PDF"),
        ("/e.png", Answer(b"\x89PNG", type="image/png"), "its type is 'image/png'"),
        (
            "/xhtml",
            Answer('<?xml version="1.0" encoding="utf-8"?><html><p>Hi.</p></html>', type="application/xhtml+xml"),
            "Hi.",
        ),
    ],
)
def test_other_formats_are_read_by_their_type(crawl: Crawl, path: str, answer: Answer, text: str) -> None:
    crawl.site.pages[path] = answer
    crawl.sync(path)
    assert text in {**crawl.texts, **crawl.errors}[path]


# --- changes


def test_an_unchanged_page_costs_a_conditional_request_and_a_changed_one_is_read_again(crawl: Crawl) -> None:
    """I20"""
    crawl.site.pages |= {f"/{n}": Answer(page(f"Page {n}", "Text."), etag=f'"{n}"') for n in "abc"}
    crawl.sync("/a", "/b", "/c")
    assert crawl.read == ["/a", "/b", "/c"]
    crawl.site.asked.clear()
    crawl.sync("/a", "/b", "/c")
    assert crawl.read == []
    assert all(asked.conditional for asked in crawl.site.asked if asked.path != "/robots.txt")
    crawl.site.pages["/b"] = Answer(page("Page b", "Other."), etag='"b2"')
    crawl.sync("/a", "/b", "/c")
    assert crawl.read == ["/b"]
    assert "Other." in crawl.texts["/b"]


def test_what_a_server_writes_anew_into_each_answer_is_no_change(crawl: Crawl) -> None:
    """I14"""
    count = iter(range(100))

    def noisy(_: Asked) -> Answer:
        nonce = next(count)
        return Answer(page("Page", "Text.", f"<script nonce='{nonce}'>t={nonce}</script><!-- {nonce} -->"))

    crawl.site.pages["/a"] = noisy
    first = crawl.sync("/a").documents[0].version
    assert crawl.sync("/a").documents[0].version == first
    assert crawl.read == []


def test_a_page_that_was_not_indexed_is_fetched_although_it_did_not_change(crawl: Crawl) -> None:
    """I10"""
    crawl.site.pages["/a"] = Answer(page("Page", "Text."), etag='"1"')
    crawl.sync("/a")
    crawl.retry, crawl.versions = set(crawl.versions), {}
    crawl.sync("/a")
    assert crawl.read == ["/a"]


def test_a_version_that_a_crash_left_is_not_taken_for_the_one_that_was_listed(crawl: Crawl) -> None:
    """I9: the page went back to what the state knows, after another version was indexed."""
    crawl.site.pages["/a"] = Answer(page("Page", "First."), etag='"1"')
    crawl.sync("/a")
    state = crawl.state
    crawl.site.pages["/a"] = Answer(page("Page", "Second."), etag='"2"')
    crawl.sync("/a")
    crawl.state = state
    crawl.site.pages["/a"] = Answer(page("Page", "First."), etag='"1"')
    crawl.sync("/a")
    assert "First." in crawl.texts["/a"]


# --- what is not there


def test_a_page_that_is_gone_is_removed_and_one_that_never_was_is_an_error(crawl: Crawl) -> None:
    """I6, I19"""
    crawl.site.pages |= {"/a": Answer(page("A", "Text.")), "/b": Answer(page("B", "Text."))}
    crawl.sync("/a", "/b", "/typo")
    assert list(crawl.errors) == ["/typo"]
    crawl.site.pages["/b"] = Answer(status=410)
    crawl.sync("/a", "/b", "/typo")
    assert list(crawl.texts) == ["/a"]
    assert list(crawl.errors) == ["/typo"]
    crawl.sync("/a", "/b", "/typo")
    assert sorted(crawl.errors) == ["/b", "/typo"]
    assert "does not exist; correct its url" in crawl.errors["/b"]


def test_a_page_that_fails_and_then_is_gone_goes(crawl: Crawl) -> None:
    """I6"""
    crawl.site.pages |= {"/a": Answer(page("A", "Text.")), "/b": Answer(page("B", "Text."))}
    crawl.sync("/a", "/b")
    crawl.site.pages["/b"] = Answer(status=500)
    crawl.sync("/a", "/b")
    assert "/b" in crawl.texts
    crawl.site.pages["/b"] = Answer(status=404)
    crawl.sync("/a", "/b")
    assert list(crawl.texts) == ["/a"]


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_page_that_cannot_be_read_keeps_its_text_and_is_an_error(crawl: Crawl, status: int) -> None:
    """I7, I10, I19"""
    crawl.site.pages |= {"/a": Answer(page("A", "Text.")), "/b": Answer(page("B", "Text."))}
    crawl.sync("/a", "/b")
    crawl.site.pages["/b"] = Answer(page("B", "Log in."), status=status)
    crawl.sync("/a", "/b")
    assert f"status {status}" in crawl.errors["/b"]
    assert sorted(crawl.texts) == ["/a", "/b"]
    crawl.site.pages["/b"] = Answer(page("B", "Other."))
    crawl.sync("/a", "/b")
    assert "Other." in crawl.texts["/b"]


def test_a_site_that_does_not_answer_is_unavailable_and_not_empty(crawl: Crawl) -> None:
    """I7"""
    crawl.site.pages["/a"] = Answer(status=502)
    with pytest.raises(SourceUnavailableError, match=r"no page can be read now; the first: .*status 502"):
        crawl.sync("/a", "/a?b")


# --- redirects


def test_pages_that_lead_to_the_same_one_are_one_document(crawl: Crawl) -> None:
    crawl.site.pages |= {
        "/old": Answer(status=301, headers={"Location": "/new"}),
        "/new": Answer(page("New", "Text."), etag='"1"'),
        "/older": Answer(status=302, headers={"Location": "/new"}),
    }
    for _ in range(2):
        listing = crawl.sync("/old", "/new", "/older")
        assert [each.document_id for each in listing.documents] == [f"{crawl.site.url}/new"]
        assert crawl.errors == {}
    crawl.site.pages["/old"] = Answer(status=500)
    crawl.sync("/old", "/new", "/older")
    assert crawl.errors == {}
    [listed] = Crawl(crawl.site).sync("/older").documents
    assert listed.document_id == f"{crawl.site.url}/older"


def test_the_address_that_a_page_moved_to_is_noted(crawl: Crawl, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in open_site(monkeypatch):
        other.pages["/b"] = Answer(page("B", "Text."))
        crawl.site.pages["/a"] = Answer(status=301, headers={"Location": f"{other.url}/b"})
        source = crawl.opened("/a")
        document = source.read(source.list().documents[0])
        assert document.metadata["redirected_to"] == f"{other.url}/b"
        assert document.uri == f"{crawl.site.url}/a"


def test_many_pages_that_suddenly_lead_to_a_login_keep_their_text(crawl: Crawl) -> None:
    """I7"""
    crawl.site.pages |= {f"/{n}": Answer(page(f"Page {n}", "Text.")) for n in "abc"}
    crawl.sync("/a", "/b", "/c")
    crawl.site.pages |= {f"/{n}": Answer(status=302, headers={"Location": "/login"}) for n in "abc"}
    crawl.site.pages["/login"] = Answer(page("Log in", "Password."))
    crawl.sync("/a", "/b", "/c")
    assert len(crawl.errors) == 3
    assert "as do 2 others, but not for good: a login?" in crawl.errors["/a"]
    assert sorted(crawl.texts) == ["/a", "/b", "/c"]


def test_a_page_may_not_lead_into_a_private_network(crawl: Crawl) -> None:
    crawl.site.pages |= {
        "/a": Answer(page("A", "Text.")),
        "/b": Answer(status=302, headers={"Location": "http://169.254.169.254/latest/meta-data/"}),
    }
    crawl.sync("/a", "/b")
    assert "only their machines may know" in crawl.errors["/b"]
    [listed] = crawl.opened("/a", allow_private=False).list().documents
    assert "no public address" in str(listed.error)


# --- robots.txt


def test_a_page_that_becomes_disallowed_is_withheld_as_an_error(crawl: Crawl) -> None:
    crawl.site.pages |= {"/a": Answer(page("A", "Text.")), "/private/b": Answer(page("B", "Text."))}
    crawl.sync("/a", "/private/b")
    crawl.site.pages["/robots.txt"] = Answer("User-agent: freshet\nDisallow: /private/\n", type="text/plain")
    crawl.site.paths()
    crawl.sync("/a", "/private/b")
    assert crawl.site.paths() == ["/a"]
    assert "robots.txt does not allow it for 'Freshet'" in crawl.errors["/private/b"]
    assert sorted(crawl.texts) == ["/a", "/private/b"]
    crawl.sync("/a", "/private/b", robots=False)
    assert crawl.errors == {}


def test_a_redirect_is_asked_of_robots_too(crawl: Crawl) -> None:
    crawl.site.pages |= {
        "/robots.txt": Answer("User-agent: *\nDisallow: /private/\n", type="text/plain"),
        "/a": Answer(page("A", "Text.")),
        "/b": Answer(status=302, headers={"Location": "/private/b"}),
    }
    crawl.sync("/a", "/b")
    assert "does not allow it" in crawl.errors["/b"]
    assert "/private/b" not in crawl.site.paths()


def test_a_robots_txt_that_cannot_be_read_forbids_everything_for_now(crawl: Crawl) -> None:
    crawl.site.pages |= {"/a": Answer(page("A", "Text.")), "/robots.txt": Answer(status=503)}
    with pytest.raises(SourceUnavailableError, match=r"whether robots\.txt allows it is not known"):
        crawl.sync("/a")
    assert crawl.site.paths() == []


def test_the_delay_that_robots_asks_for_is_kept_up_to_a_limit(crawl: Crawl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_CRAWL_DELAY", 0.1)
    crawl.site.pages |= {f"/{n}": Answer(page(f"Page {n}", "Text.")) for n in "abc"}
    crawl.site.pages["/robots.txt"] = Answer("User-agent: *\nCrawl-delay: 3600\n", type="text/plain")
    crawl.sync("/a", "/b", "/c")
    times = [asked.at for asked in crawl.site.asked if asked.path != "/robots.txt"]
    assert max(times) - min(times) >= 0.18


# --- sitemaps


def test_a_sitemap_says_which_pages_there_are(crawl: Crawl) -> None:
    """I6"""
    crawl.site.pages |= {f"/docs/{n}": Answer(page(f"Page {n}", "Text.")) for n in "abc"}
    crawl.sitemap(("/docs/a", "2026-05-01"), "/docs/b", "/docs/c", "/blog/x", "/docs/stale")
    chosen = {"include": ("*/docs/*",), "exclude": ("*/c",)}
    listing = crawl.sync(**chosen)
    assert [each.document_id for each in listing.documents] == [f"{crawl.site.url}/docs/{n}" for n in "ab"]
    assert listing.documents[0].updated_at == datetime(2026, 5, 1, tzinfo=UTC)
    crawl.sitemap("/docs/b")
    crawl.sync(**chosen)
    assert list(crawl.texts) == ["/docs/b"]


def test_a_page_whose_lastmod_is_unchanged_is_not_asked_for_where_that_is_trusted(crawl: Crawl) -> None:
    crawl.site.pages |= {f"/{n}": Answer(page(f"Page {n}", "Text.")) for n in "ab"}
    for at in ("2026-05-01", "2026-05-01", "2026-05-02"):
        crawl.sitemap(("/a", at), "/b")
        crawl.site.paths()
        crawl.sync(trust_lastmod=True)
        asked = ["/sitemap.xml", "/b"] if crawl.read == [] and at == "2026-05-01" else ["/sitemap.xml", "/a", "/b"]
        assert sorted(crawl.site.paths()) == sorted(asked)
    assert sorted(crawl.texts) == ["/a", "/b"]


def test_sitemaps_of_sitemaps_are_read_compressed_or_not(crawl: Crawl) -> None:
    crawl.site.pages |= {f"/{n}": Answer(page(f"Page {n}", "Text.")) for n in "ab"}
    crawl.sitemap("/a")
    crawl.site.pages["/one.xml"] = crawl.site.pages["/sitemap.xml"]
    crawl.sitemap("/b")
    plain: Any = crawl.site.pages["/sitemap.xml"]
    crawl.site.pages["/two.xml.gz"] = Answer(gzip.compress(plain.body.encode()), type="application/gzip")
    index = "".join(f"<sitemap><loc>{path}</loc></sitemap>" for path in ("/one.xml", "/two.xml.gz", "/sitemap.xml"))
    crawl.site.pages["/sitemap.xml"] = Answer(f"<sitemapindex>{index}</sitemapindex>", type="text/xml")
    crawl.sync()
    assert sorted(crawl.texts) == ["/a", "/b"]
    del crawl.site.pages["/one.xml"]
    assert str(crawl.sync().partial).startswith("1 sitemaps do not exist")
    assert sorted(crawl.texts) == ["/a", "/b"]
    crawl.site.pages["/one.xml"] = Answer(status=500)
    with pytest.raises(SourceUnavailableError):
        crawl.sync()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(page("Log in", "Password.")), "is no sitemap"),
        (Answer("<urlset><url><loc>http://x/</loc>", type="text/xml"), "is no sitemap"),
        (Answer("<rss></rss>", type="text/xml"), "XML of a 'rss'"),
        (Answer(gzip.compress(b"<urlset>" + b" " * 30_000_000), type="application/gzip"), "when decompressed"),
        (Answer(status=404), "does not exist"),
        (Answer("<sitemapindex><sitemap><loc>/s?1</loc></sitemap></sitemapindex>"), "no page"),
    ],
)
def test_what_is_no_sitemap_is_an_error_and_not_empty(crawl: Crawl, answer: Answer, why: str) -> None:
    """I7"""
    crawl.sitemap()
    crawl.site.pages["/sitemap.xml"] = answer
    if why == "no page":  # each index leads to another
        count = iter(range(100))
        xml = "<sitemapindex><sitemap><loc>/s?{}</loc></sitemap></sitemapindex>"
        crawl.site.pages["/s"] = lambda _: Answer(xml.format(next(count) + 2))
        why = "without end"
    with pytest.raises(SourceError, match=why):
        crawl.sync()


def test_a_sitemap_reads_no_file_and_blows_nothing_up(crawl: Crawl, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret")
    crawl.sitemap()
    doctype = f'<!DOCTYPE u [<!ENTITY f SYSTEM "file://{tmp_path}/secret">]>'
    crawl.site.pages["/sitemap.xml"] = Answer(f"{doctype}<urlset><url><loc>/a&f;</loc></url></urlset>")
    assert "s3cret" not in str([*crawl.sync().documents, *crawl.site.paths()])


def test_more_pages_than_allowed_are_an_error(crawl: Crawl) -> None:
    """I7: never cut off unsaid."""
    crawl.sitemap("/a", "/b", "/c")
    with pytest.raises(SourceError, match="3 pages are more than max_pages=2"):
        crawl.sync(max_pages=2)


def test_an_address_that_cannot_be_asked_for_is_an_error_of_its_own(crawl: Crawl) -> None:
    """I10"""
    crawl.site.pages["/a"] = Answer(page("A", "Text."))
    crawl.sitemap("/a", "/" + "x" * 1100)
    plain: Any = crawl.site.pages["/sitemap.xml"]
    crawl.site.pages["/sitemap.xml"] = Answer(
        plain.body.replace("</urlset>", "<url><loc>ftp://x/</loc></url></urlset>")
    )
    crawl.sync()
    assert list(crawl.texts) == ["/a"]
    assert sorted(error.rpartition(": ")[2] for error in crawl.errors.values()) == [
        "its address has more than 1024 characters",
        "only http:// and https:// are allowed",
    ]


# --- resources


def test_pages_wait_on_disk_until_they_are_read_and_then_go(crawl: Crawl) -> None:
    crawl.site.pages |= {f"/{n}": Answer(page(f"Page {n}", "Text.")) for n in "ab"}
    source: Any = crawl.opened("/a", "/b")
    listing = source.list()
    folder = Path(source._folder.name)
    assert len([*folder.iterdir()]) == 2
    source.close()
    assert not folder.exists()
    known = Known({each.document_id: each.version for each in listing.documents}, state=listing.state)
    source = crawl.opened("/a", "/b")
    source.list(known)
    assert not [*Path(source._folder.name).iterdir()]
    source.close()


def test_several_pages_are_fetched_at_once_and_no_more_than_a_host_may_be_asked(crawl: Crawl) -> None:
    barrier = threading.Barrier(3, timeout=5)

    def together(_: Asked) -> Answer:
        barrier.wait()
        return Answer(page("Page", "Text."))

    crawl.site.pages |= {f"/{n}": together for n in range(6)}
    crawl.sync(*(f"/{n}" for n in range(6)), connections=3)
    assert crawl.site.most_at_once == 3


def test_settings_that_cannot_be_right_are_refused() -> None:
    given: Any = {"name": "docs", "type": "web"}
    with pytest.raises(ValidationError, match="needs 'urls' or 'sitemap'"):
        WebSource(**given)
    with pytest.raises(ValidationError, match="would go to 2 hosts; make a source of each"):
        WebSource(**given, urls=("https://a.example/", "https://b.example/"), auth={"env": "X"})
    assert WebSource(**given, urls=("https://a.example/?key=1",)).origin == "https://a.example/"


def test_pages_go_through_the_whole_sync(site: Site, edge_corpus: Any) -> None:
    """I6, I14, I19, I20"""
    site.pages |= {f"/{n}": Answer(page(f"Page {n}", f"Text {n}."), etag=f'"{n}"') for n in "abc"}
    urls = tuple(f"{site.url}/{n}" for n in "abc")
    settings = WebSource(name="docs", type="web", urls=urls, allow_private=True, delay_seconds=0)
    assert edge_corpus.sync(settings).added == 3
    again = edge_corpus.sync(settings)
    assert (again.unchanged, again.embedded, again.deleted) == (3, 0, 0)
    site.pages |= {"/a": Answer(page("Page a", "Edited.")), "/b": Answer(status=500), "/c": Answer(status=404)}
    report = edge_corpus.sync(settings)
    assert (report.changed, report.deleted, [key for key, _ in report.failures]) == (1, 1, [urls[1]])
    edge_corpus.serve()
    assert {hit.document_id for hit in edge_corpus.search("Text b", top_k=20)} == {*urls[:2]}
    assert edge_corpus.audit().clean
