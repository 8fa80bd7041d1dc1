"""API sources against a real server on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import TypeAdapter, ValidationError

from pipelines.corpus.documents import Document
from pipelines.corpus.settings import ApiSource
from pipelines.corpus.settings import Source as SourceSetting
from pipelines.corpus.sources import api as module
from pipelines.corpus.sources import open_source
from pipelines.corpus.sources.api import at_path, next_link
from pipelines.corpus.sources.base import Known, Listing, Source
from pipelines.errors import ConfigError, DocumentError, SourceError, SourceUnavailableError
from tests.pipelines.corpus.web_server import Answer, Asked, Site

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
Record = dict[str, Any]


def note(key: Any, text: str = "text", **more: Any) -> Record:
    return {"id": key, "text": text, **more}


def answer(value: Any, **more: Any) -> Answer:
    return Answer(json.dumps(value), type="application/json", **more)


class Api:
    """Notes that a server hands out in pages, in any of the ways that there are."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.notes: list[Record] = []
        self.size = 2
        self.tagged = False
        site.pages |= {"/link": self.link, "/cursor": self.cursor, "/page": self.page, "/offset": self.offset}
        site.pages["/none"] = lambda _: self.answer(self.notes)

    def answer(self, value: Any, **more: Any) -> Answer:
        import hashlib

        tag = hashlib.sha256(json.dumps([value, str(more)]).encode()).hexdigest()[:16]
        return answer(value, etag=f'"{tag}"' if self.tagged else None, **more)

    def link(self, asked: Asked) -> Answer:
        start = int(self.asked(asked, "at", "0"))
        more = start + self.size < len(self.notes)
        link = {"Link": f'</link?at=0>; rel="first", </link?at={start + self.size}>; rel="next"'} if more else {}
        return self.answer(self.notes[start : start + self.size], headers=link)

    def cursor(self, asked: Asked) -> Answer:
        start = int(self.asked(asked, "after", "c0")[1:])
        more = f"c{start + self.size}" if start + self.size < len(self.notes) else None
        return self.answer({"data": {"notes": self.notes[start : start + self.size]}, "meta": {"next": more}})

    def page(self, asked: Asked) -> Answer:
        start = (int(self.asked(asked, "page", "1")) - 1) * self.size
        return self.answer(self.notes[start : start + self.size])

    def offset(self, asked: Asked) -> Answer:
        start = int(self.asked(asked, "skip", "0"))
        return self.answer(self.notes[start : start + self.size])

    @staticmethod
    def asked(asked: Asked, name: str, default: str) -> str:
        return parse_qs(urlsplit(asked.path).query).get(name, [default])[0]

    def source(self, kind: str = "none", **settings: Any) -> Source:
        pagination: Record = {"type": kind}
        if kind == "cursor":
            pagination |= {"path": "meta.next", "param": "after"}
            settings = {"records": "data.notes", **settings}
        if kind == "offset":
            pagination |= {"param": "skip"}
        given = {"url": f"{self.site.url}/{kind}", "key": "id", "text": "{text}", "pagination": pagination, **settings}
        return opened(**given)


def opened(**settings: Any) -> Source:
    from pathlib import Path

    given = {"name": "notes", "type": "api", "allow_private": True, **settings}
    return open_source(ApiSource(**given), base=Path())


@pytest.fixture
def api(site: Site) -> Api:
    return Api(site)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    def set_to(moment: datetime) -> None:
        monkeypatch.setattr(module, "now", lambda: moment)

    set_to(NOON)
    return set_to


def said(document: Document | DocumentError) -> str:
    if isinstance(document, DocumentError):
        return str(document)
    return "\n".join(block.text for section in document.sections for block in section.blocks)


class Index:
    """What syncs make of listings: enough of it to see that nothing is missed, and what is read."""

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.retry: set[str] = set()
        self.state: Any = {}
        self.read: list[str] = []
        self.errors: dict[str, str] = {}

    def sync(self, source: Source) -> Listing:
        listing = source.list(Known(dict(self.versions), frozenset(self.retry), json.loads(json.dumps(self.state))))
        held = self.versions.keys() | self.retry
        changed = [
            each for each in listing.documents if each.error or self.versions.get(each.document_id) != each.version
        ]
        self.read, self.errors = [], {}
        for each, document in source.read_all(changed):
            if isinstance(document, DocumentError):
                self.errors[each.document_id] = str(document)
                self.versions.pop(each.document_id, None)
                self.retry.add(each.document_id)
                continue
            self.read.append(each.document_id)
            self.versions[each.document_id] = each.version
            self.retry.discard(each.document_id)
            self.texts[each.document_id] = said(document)
        ids = {each.document_id for each in listing.documents}
        gone = held - ids if listing.removed is None else ({*listing.removed} | (self.retry & held)) - ids
        for key in gone if listing.partial is None else ():
            self.versions.pop(key, None)
            self.texts.pop(key, None)
            self.retry.discard(key)
        self.state = listing.state
        source.close()
        return listing


PAGED = ["link", "cursor", "page", "offset"]


def test_every_record_is_a_document_with_every_field_as_a_fact(site: Site) -> None:
    record = {
        "id": 7,
        "author": {"name": "Ann", "team": {"name": "Pumps"}},
        "tags": ["leak", "gauge"],
        "ratio": 7.10,
        "at": "2026-05-01T14:00:00+02:00",
        "html_url": "/notes/7",
        "draft": False,
        "notes": None,
    }
    site.pages["/notes"] = answer([record])
    source = opened(
        url=f"{site.url}/notes",
        key="id",
        title="Note {id}",
        text="{author.name} of {author.team.name}: {tags}; {notes}{author.team}",
        updated_at="at",
        link="{html_url}",
    )
    listed = source.list().documents[0]
    document = source.read(listed)
    assert (listed.document_id, listed.uri, listed.updated_at) == ("7", f"{site.url}/notes/7", NOON)
    assert listed.updated_at is not None
    assert listed.updated_at.tzinfo is UTC
    assert document.title == "Note 7"
    assert said(document) == 'Ann of Pumps: leak, gauge; {"name": "Pumps"}'
    assert document.metadata["author.team.name"] == "Pumps"
    assert (document.metadata["ratio"], document.metadata["draft"]) == ("7.1", "false")


@pytest.mark.parametrize("kind", PAGED)
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_all_pages_are_read(api: Api, kind: str, count: int) -> None:
    api.notes = [note(n) for n in range(count)]
    listing = api.source(kind).list()
    assert [each.document_id for each in listing.documents] == [str(n) for n in range(count)]
    assert (listing.removed, listing.partial) == (None, None)


def test_parameters_headers_and_the_secret_are_sent(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTES_TOKEN", "t0ken")
    api.notes = [note(1), note(2), note(3)]
    source = api.source(
        "page",
        params={"per_page": 2, "key": "k3y"},
        headers={"X-Team": "pumps"},
        auth={"env": "NOTES_TOKEN", "header": "X-Token", "prefix": ""},
    )
    api.tagged = True
    listing = source.list()
    assert [asked.path for asked in api.site.asked][:2] == [
        "/page?per_page=2&key=k3y&page=1",
        "/page?per_page=2&key=k3y&page=2",
    ]
    assert all((a.headers["x-token"], a.headers["x-team"]) == ("t0ken", "pumps") for a in api.site.asked)
    stored = json.dumps(listing.state) + repr(listing)
    assert listing.state["pages"]
    assert "t0ken" not in stored
    assert "k3y" not in stored


@pytest.mark.parametrize("kind", ["none", *PAGED])
def test_unchanged_pages_cost_a_conditional_request_each_and_changes_are_found(api: Api, kind: str) -> None:
    """I20, I14, I6"""
    api.tagged = True
    api.notes = [note(n) for n in range(5)]
    index = Index()
    index.sync(api.source(kind, params={"key": "k3y"}))
    first = api.site.asked.copy()
    api.site.asked.clear()
    index.sync(api.source(kind, params={"key": "k3y"}))
    assert index.read == []
    assert [asked.path for asked in api.site.asked] == [asked.path for asked in first]
    assert all(asked.conditional for asked in api.site.asked)
    api.notes[3]["text"] = "other"
    index.sync(api.source(kind, params={"key": "k3y"}))
    assert index.read == ["3"]
    del api.notes[0]
    index.sync(api.source(kind, params={"key": "k3y"}))
    assert index.texts == {"1": "text", "2": "text", "3": "other", "4": "text"}
    api.notes.append(note(9))
    index.sync(api.source(kind, params={"key": "k3y"}))
    assert (index.read, len(index.texts)) == (["9"], 5)


def test_what_could_not_be_indexed_is_asked_for_again_although_its_page_is_unchanged(api: Api) -> None:
    """I10"""
    api.tagged = True
    api.notes = [note(1), note(2)]
    index = Index()
    index.sync(api.source())
    index.retry.add("2")
    del index.versions["2"]
    index.sync(api.source())
    assert index.read == ["2"]


def test_a_version_that_a_crash_left_is_not_taken_for_the_one_that_was_listed(api: Api) -> None:
    """I9: the page went back to what the state knows, after another version was indexed."""
    api.tagged = True
    api.notes = [note(1, "first")]
    index = Index()
    index.sync(api.source())
    state = index.state
    api.notes = [note(1, "second")]
    index.sync(api.source())
    index.state = state
    api.notes = [note(1, "first")]
    index.sync(api.source())
    assert index.texts == {"1": "first"}


def test_other_settings_read_everything_again(api: Api) -> None:
    """I11"""
    api.tagged = True
    api.notes = [note(1, name="Ann")]
    index = Index()
    index.sync(api.source())
    index.sync(api.source(text="{name}"))
    assert index.texts == {"1": "Ann"}
    index.sync(api.source(text="{name}", link="https://example.com/{id}"))
    assert index.read == ["1"]


def test_only_rows_that_are_new_or_changed_are_kept(api: Api) -> None:
    api.notes = [note(n) for n in range(4)]
    index = Index()
    index.sync(api.source())
    api.notes[1]["text"] = "other"
    source: Any = api.source()
    source.list(Known(index.versions))
    assert [*source._rows] == ["1"]


# --- what must not look like deletions


@pytest.mark.parametrize("kind", PAGED)
def test_a_page_that_cannot_be_read_fails_the_whole_listing(api: Api, kind: str) -> None:
    """I7"""
    api.notes = [note(n) for n in range(5)]
    first = api.source(kind).list()
    real: Any = api.site.pages[f"/{kind}"]
    calls = iter(range(100))
    api.site.pages[f"/{kind}"] = lambda asked: real(asked) if next(calls) == 0 else Answer(status=500)
    with pytest.raises(SourceUnavailableError, match="status 500"):
        api.source(kind).list(Known({each.document_id: each.version for each in first.documents}))


def test_a_record_that_moves_to_an_earlier_page_meanwhile_is_not_taken_for_gone(api: Api) -> None:
    """I7: somebody deletes a record of the first page while the second is read."""
    api.notes = [note(n) for n in range(6)]
    index = Index()
    index.sync(api.source("page"))
    real, once = api.page, iter([True])

    def page(asked: Asked) -> Answer:
        found = real(asked)
        if next(once, False):
            del api.notes[0]
        return found

    api.site.pages["/page"] = page
    listing = index.sync(api.source("page"))
    assert "2" in index.texts
    assert len(listing.documents) == 6
    index.sync(api.source("page"))
    assert sorted(index.texts) == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"error": "quota exceeded"}, "is no list: say in 'records' where it is; fields: error"),
        ("<html>Log in</html>", "is no JSON"),
    ],
)
def test_an_answer_that_is_no_list_is_an_error(site: Site, body: Any, why: str) -> None:
    """I7, I19"""
    site.pages["/a"] = Answer(body) if isinstance(body, str) else answer(body)
    with pytest.raises(SourceError, match=why):
        opened(url=f"{site.url}/a", key="id", text="{text}").list()
    with pytest.raises(SourceError, match=r"no list at 'data\.items'|is no JSON"):
        opened(url=f"{site.url}/a", key="id", text="{text}", records="data.items").list()


@pytest.mark.parametrize(("status", "why"), [(401, "check 'auth'"), (404, "correct its url")])
def test_a_refusal_is_an_error_and_not_an_empty_listing(site: Site, status: int, why: str) -> None:
    """I7"""
    site.pages["/a"] = answer([], status=status)
    with pytest.raises(SourceError, match=why):
        opened(url=f"{site.url}/a", key="id", text="{text}").list()


def test_pages_that_lead_in_a_circle_or_never_end_are_errors(api: Api) -> None:
    api.notes = [note(n) for n in range(4)]
    api.site.pages["/link"] = lambda _: answer(api.notes, headers={"Link": "</link>; rel=next"})
    with pytest.raises(SourceError, match=r"page 2 of .* was read already"):
        api.source("link").list()
    api.site.pages["/cursor"] = answer({"data": {"notes": api.notes}, "meta": {"next": "c1"}})
    with pytest.raises(SourceError, match="was read already"):
        api.source("cursor").list()
    api.site.pages["/page"] = answer(api.notes)
    with pytest.raises(SourceError, match=r"pages 1 and 2 of .* are the same; does it know the parameter 'page'"):
        api.source("page").list()
    with pytest.raises(SourceError, match="more than max_pages=2 pages"):
        api.source("offset", max_pages=2).list()


def test_a_page_after_the_last_may_not_exist(api: Api) -> None:
    api.notes = [note(1)]
    real = api.page
    api.site.pages["/page"] = lambda a: real(a) if api.asked(a, "page", "1") == "1" else Answer(status=404)
    assert len(api.source("page").list().documents) == 1


# --- records that are wrong


def test_broken_records_are_listed_as_errors_and_the_others_go_on(api: Api) -> None:
    """I10, I19"""
    api.notes = [
        note(1),
        {"text": "nobody"},
        "no object",  # type: ignore[list-item]
        note(4, at="yesterday"),
        note(5, "half \ud83d"),
        note(6),
        note("k" * 2000),
    ]
    api.tagged = True
    index = Index()
    listing = index.sync(api.source(updated_at="at"))
    assert sorted(index.texts) == ["1", "6"]
    assert listing.partial == "3 records have no usable id"
    assert "update time 'yesterday'" in index.errors["4"]
    assert "no text" in index.errors["5"]
    assert sum("has no id that can be stored" in error for error in index.errors.values()) == 3
    again = index.errors
    index.sync(api.source(updated_at="at"))
    assert index.errors == again
    api.notes = [note(1), note(4), note(5), note(6)]
    index.sync(api.source(updated_at="at"))
    assert (sorted(index.texts), index.errors, index.retry) == (["1", "4", "5", "6"], {}, set())


def test_a_key_twice_in_a_page_is_an_error_and_across_pages_one_that_moved(api: Api) -> None:
    api.notes = [note(1), note(1, "other")]
    [listed] = api.source().list().documents
    assert listed.error == "key '1' occurs twice in page 1: keep one"
    api.notes = [note(1), note(2), note(2), note(3)]
    assert [each.error for each in api.source("page").list().documents] == [None, None, None]


def test_fields_that_no_record_has_are_a_wrong_setting(api: Api) -> None:
    api.notes = [note(1)]
    with pytest.raises(ConfigError, match=r"no record of .* has 'uuid'; fields: id, text"):
        api.source(key="uuid").list()
    with pytest.raises(ConfigError, match="has 'body', 'subject'"):
        api.source(text="{subject}: {body}").list()
    assert len(api.source(text="{text} {footnote}").list().documents) == 1


@pytest.mark.parametrize("stated", [1777636800, 1777636800000, "2026-05-01T12:00:00Z", "Fri, 01 May 2026 12:00:00 GMT"])
def test_update_times_are_read_as_apis_write_them(api: Api, stated: Any) -> None:
    api.notes = [note(1, at=stated)]
    assert api.source(updated_at="at").list().documents[0].updated_at == NOON


def test_only_addresses_of_the_web_become_links(api: Api) -> None:
    api.notes = [note(1, url="javascript:alert(1)"), note(2, url="https://example.com/2"), note(3, url="")]
    uris = [each.uri for each in api.source(link="{url}").list().documents]
    assert uris == [f"{api.site.url}/none#1", "https://example.com/2", f"{api.site.url}/none#3"]


# --- by update time


class Changes(Api):
    """An API that takes the time since which to list."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        site.pages["/changes"] = self.changes

    def changes(self, asked: Asked) -> Answer:
        since = self.asked(asked, "since", "")
        return answer([each for each in self.notes if each.get("at", "9") >= since])

    def opened(self, **settings: Any) -> Source:
        return opened(
            **{
                "url": f"{self.site.url}/changes",
                "key": "id",
                "text": "{text}",
                "updated_at": "at",
                "deleted": "gone",
                "since": {"param": "since", "overlap_minutes": 10},
                **settings,
            }
        )


def at(minutes: float) -> str:
    return (NOON + timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


def test_a_listing_asks_for_what_was_updated_since_the_last_less_the_overlap(
    site: Site, clock: Callable[[datetime], None]
) -> None:
    """I18, I6"""
    api, index = Changes(site), Index()
    api.notes = [note(1, at=at(-60)), note(2, at=at(-30)), note(3, at=at(-1))]
    index.sync(api.opened())
    clock(NOON + timedelta(minutes=5))
    api.notes[0] |= {"text": "edited", "at": at(2)}
    api.notes.append(note(4, "late", at=at(-5)))  # written before the watermark, visible after
    site.paths()
    listing = index.sync(api.opened())
    assert site.paths() == ["/changes?since=2026-05-01T11%3A49%3A00Z"]
    assert (sorted(index.read), listing.removed) == (["1", "4"], set())
    assert index.texts == {"1": "edited", "2": "text", "3": "text", "4": "late"}
    api.notes[1] |= {"gone": True, "at": at(4)}
    index.sync(api.opened())
    assert sorted(index.texts) == ["1", "3", "4"]
    del api.notes[2]  # without a mark: only a full listing tells
    index.sync(api.opened())
    assert "3" in index.texts
    clock(NOON + timedelta(hours=25))
    assert index.sync(api.opened()).removed is None
    assert sorted(index.texts) == ["1", "4"]


def test_a_record_that_was_broken_stays_reported_and_one_that_failed_is_asked_for_again(
    site: Site, clock: Callable[[datetime], None]
) -> None:
    """I10: the watermark does not move past what failed."""
    api, index = Changes(site), Index()
    api.notes = [note(1, at=at(-60)), note(2, "half \ud83d", at=at(-50)), note(3, at=at(-1))]
    index.sync(api.opened())
    clock(NOON + timedelta(minutes=30))
    site.paths()
    index.sync(api.opened())
    assert "since" in site.paths()[0]
    assert list(index.errors) == ["2"]
    api.notes[1] |= {"text": "whole", "at": at(20)}
    index.sync(api.opened())
    assert (index.texts["2"], index.errors) == ("whole", {})
    index.retry.add("1")
    del index.versions["1"]
    index.sync(api.opened())
    assert index.read == ["1"]


def test_a_time_in_the_future_hides_nothing(site: Site, clock: Callable[[datetime], None]) -> None:
    """I18"""
    api, index = Changes(site), Index()
    api.notes = [note(1, at=at(600)), note(2, at=at(-1))]
    index.sync(api.opened())
    clock(NOON + timedelta(minutes=5))
    api.notes[1] |= {"text": "edited", "at": at(3)}
    index.sync(api.opened())
    assert index.texts["2"] == "edited"


def test_a_deletion_that_was_withheld_is_named_again(site: Site, clock: Callable[[datetime], None]) -> None:
    """I7"""
    api, index = Changes(site), Index()
    api.notes = [note(1, at=at(-60)), note(2, at=at(-30))]
    index.sync(api.opened())
    api.notes[0] |= {"gone": 1, "at": at(1)}
    known = Known(dict(index.versions), state=index.state)
    first = api.opened().list(known)
    clock(NOON + timedelta(hours=3))
    api.notes[1]["at"] = at(170)
    second = api.opened().list(Known(known.versions, state=first.state))
    site.paths()
    third = api.opened().list(Known(known.versions, state=second.state))  # which does not list it any more
    assert site.paths() == ["/changes?since=2026-05-01T14%3A40%3A00Z"]
    api.notes[0] |= {"gone": 0, "at": at(175), "text": "back"}
    fourth = api.opened().list(Known(known.versions, state=third.state))
    assert [each.removed for each in (first, second, third, fourth)] == [{"1"}, {"1"}, {"1"}, set()]


def test_settings_that_cannot_be_right_are_refused() -> None:
    given: Any = {"name": "notes", "type": "api", "url": "https://example.com", "key": "id", "text": "{text}"}
    with pytest.raises(ValidationError, match="'since' needs 'updated_at'"):
        ApiSource(**given, since={"param": "since"})
    with pytest.raises(ValidationError, match="url"):
        ApiSource(**{**given, "url": "ftp://example.com"})
    with pytest.raises(ValidationError, match="pagination"):
        ApiSource(**given, pagination={"type": "guess"})
    assert ApiSource(**{**given, "url": "https://example.com/a?key=k3y"}).origin == "https://example.com/a"


def test_the_schema_that_checks_yaml_knows_what_settings_may_say() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = jsonschema.Draft202012Validator(TypeAdapter(SourceSetting).json_schema())
    api = {"name": "a", "type": "api", "url": "{{ env.API }}", "key": "id", "text": "{text}"}
    web = {"name": "b", "type": "web", "urls": ["https://example.com"], "auth": {"env": "TOKEN"}}
    feed = {"name": "c", "type": "feed", "url": "https://example.com/feed", "keep_old": False}
    paged = api | {"pagination": {"type": "cursor", "path": "next"}, "since": {"param": "since"}}
    for right in (api, web, feed, paged):
        assert not [*schema.iter_errors(right)]
    for wrong, why in [
        (api | {"pagination": {"type": "pages"}}, "'pages' is not one of"),
        (api | {"pagination": {"type": "cursor"}}, "'path' is a required property"),
        (web | {"auth": {"env": "my token"}}, "does not match"),
        (feed | {"robots": True}, "'robots' was unexpected"),
    ]:
        assert why in str([error.message for error in schema.iter_errors(wrong)])


def test_records_go_through_the_whole_sync(api: Api, edge_corpus: Any) -> None:
    """I6, I10, I14"""
    api.tagged = True
    api.notes = [note(n, f"Torque of bolt {n} is {n} newton metres.") for n in range(1, 6)]
    settings = ApiSource(
        name="docs",
        type="api",
        url=f"{api.site.url}/page",
        key="id",
        text="{text}",
        pagination={"type": "page"},
        allow_private=True,
    )
    assert edge_corpus.sync(settings).added == 5
    again = edge_corpus.sync(settings)
    assert (again.added, again.changed, again.deleted, again.unchanged, again.embedded) == (0, 0, 0, 5, 0)
    api.notes[0] = {"text": "lost its id"}
    api.notes[1]["text"] += " Always."
    report = edge_corpus.sync(settings)
    assert (report.changed, report.deleted, len(report.failures), report.withheld) == (1, 0, 1, ("1",))
    api.notes = [note(1, "Back.")]
    report = edge_corpus.sync(settings)
    assert (report.changed, report.deleted, report.failures) == (1, 5, ())  # the nameless one too
    assert edge_corpus.audit().clean


def test_paths_find_nested_fields_items_of_lists_and_names_with_dots() -> None:
    value = {"data": [{"id": 1}, {"id": 2}], "@odata.nextLink": "x", "a": {"b.c": {"d": 3}}}
    assert at_path(value, "data.-1.id") == 2
    assert at_path(value, "data.7.id") is None
    assert at_path(value, "@odata.nextLink") == "x"
    assert at_path(value, "a.b.c.d") == 3
    assert at_path(value, "data.id") is None


def test_links_are_read_as_servers_write_them() -> None:
    assert next_link('<https://a/?p=1,2>; title="a, b"; rel="prev next", <b>; rel=last') == "https://a/?p=1,2"
    assert next_link("<a>;rel=last , <b>; REL=next") == "b"
    assert next_link('<a>; rel="nextish"; title="rel=next"') is None
    assert next_link("") is None
