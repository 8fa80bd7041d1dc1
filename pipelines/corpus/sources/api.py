"""JSON APIs over HTTP, one document a record.

A listing reads every page, or it fails: one that ends early would look like deletions. A record that moves to an
earlier page while pages are read is missed by one pass, so before anything is taken for gone the pages are read again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

from pipelines.catalog import now
from pipelines.corpus.documents import Document
from pipelines.corpus.settings import ApiSource, CursorPages, LinkPages, NumberedPages, OffsetPages
from pipelines.corpus.sources.base import NOTHING_KNOWN, Known, Listed, Listing, Source, moment, stated_moment, storable
from pipelines.corpus.sources.http import Client, Response, http_date
from pipelines.corpus.sources.rows import Row, RowDocuments, Template, cell, is_marked
from pipelines.errors import ConfigError, DocumentError, SourceError
from pipelines.fingerprint import fingerprint, text_hash
from pipelines.settings import without_credentials

_MILLISECONDS = 1e11  # larger numbers are milliseconds since 1970: as seconds they were the year 5138
_DEEPEST = 20  # objects within objects; what lies deeper stays JSON


@dataclass(slots=True)
class _Found:
    """What a pass over the pages found."""

    listed: dict[str, Listed] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    nameless: int = 0
    newest: datetime | None = None
    pages: dict[str, Any] = field(default_factory=dict)
    """State of each page that has validators: they, its ids, and what comes next."""
    requests: int = 0


class ApiDocuments(Source):
    """Every record of an API; its id is its key. From listing to reading, rows that are new or changed are kept."""

    def __init__(self, settings: ApiSource) -> None:
        self._settings = settings
        self._name = f"source {settings.name!r}"
        self._client = Client(settings.name, settings, [settings.url])
        self._shown = without_credentials(settings.url)
        self._documents = RowDocuments(settings, self._shown, self._shown)
        self._link = Template(settings.link or "")
        self._named = self._documents.columns | self._link.columns | ({settings.deleted} - {None})
        self._params = {key: cell(value) for key, value in settings.params.items()}
        self._rows: dict[str, Row] = {}
        asked = settings.model_dump_json(include={"url", "records", "pagination", "link", "updated_at", "deleted"})
        self._read_by = fingerprint(self._documents.look, asked, self._params)[:16]

    def list(self, known: Known = NOTHING_KNOWN) -> Listing:
        """Every record, or every one that was updated since ``known``; deletions by mark or by absence."""
        state = known.state if known.state.get("read_by") == self._read_by else {}
        self._rows.clear()
        started, since = now(), self._settings.since
        if since is None:
            found, partial = self._all(known, state)
            return Listing([*found.listed.values()], partial=partial, state=self._state(found, state))
        age = started - moment(state["full_at"]) if "full_at" in state else timedelta.max
        due = not timedelta(0) <= age < timedelta(hours=since.full_listing_hours)
        # What could not be read is asked for again, unless the record itself is broken: that an update would show.
        unread = set(known.retry) - state.get("broken", {}).keys()
        if due or not known.versions or unread or not state.get("watermark"):
            found, partial = self._all(known, state)
            gone = known.versions.keys() - found.listed.keys()
            return Listing(
                [*found.listed.values()],
                partial=partial,
                state=self._state(found, state, started=started, full_at=started.isoformat(), gone=sorted(gone)),
            )
        after = moment(state["watermark"]) - timedelta(minutes=since.overlap_minutes)
        found = self._pass(known, {}, {since.param: _written(after, since.format)})
        found.pages = dict(state["pages"])
        for key, (uri, error) in state["broken"].items():
            if key in known.retry and key not in found.deleted:
                found.listed.setdefault(key, Listed(key, "?", uri, error=error))
        # What was to go stays named until it has gone: a deletion may have been withheld.
        gone = ((found.deleted | {*state["gone"]}) & (known.versions.keys() | set(known.retry))) - found.listed.keys()
        return Listing(
            [*found.listed.values()],
            removed=gone,
            state=self._state(found, state, started=started, full_at=state["full_at"], gone=sorted(gone)),
        )

    def _all(self, known: Known, state: Mapping[str, Any]) -> tuple[_Found, str | None]:
        found = self._pass(known, state.get("pages", {}), {})
        if found.requests > 1 and known.versions.keys() - found.listed.keys() - found.deleted:
            again = self._pass(known, {}, {})
            again.listed = found.listed | again.listed
            for key in again.deleted:
                again.listed.pop(key, None)
            found = again
        self._check(found)
        why = f"{found.nameless} records have no usable {self._settings.key}" if found.nameless else None
        return found, why

    def _state(self, found: _Found, before: Mapping[str, Any], **since: Any) -> dict[str, Any]:
        state: dict[str, Any] = {"read_by": self._read_by, "pages": found.pages}
        if not since:
            return state
        broken = {each.document_id: (each.uri, each.error) for each in found.listed.values() if each.error}
        # A time in the future must not hide what is written until then.
        newest = min(found.newest, since.pop("started")) if found.newest else None
        times = [each for each in (newest, before.get("watermark") and moment(before["watermark"])) if each]
        return {**state, **since, "broken": broken, "watermark": max(times).isoformat() if times else None}

    def _check(self, found: _Found) -> None:
        """Whether the records have the fields; each record lacks what is null, in many APIs.

        Raises:
            ConfigError: none has the key, or any field of the text.
        """
        columns, key = Template(self._settings.text).columns, self._settings.key
        if found.fields and (key not in found.fields or (columns and not columns & found.fields)):
            lacking = repr(key) if key not in found.fields else ", ".join(map(repr, sorted(columns)))
            raise ConfigError(
                f"{self._name}: no record of {self._shown} has {lacking}; fields: {', '.join(sorted(found.fields))}"
            )

    # --- pages

    def _pass(self, known: Known, pages: Mapping[str, Any], extra: Mapping[str, str]) -> _Found:
        """Every page, from the first to the last.

        Raises:
            SourceError: pages repeat, are too many, or are not what the settings say.
            SourceUnavailableError: one cannot be read now.
        """
        found, seen = _Found(), set[str]()
        url: str | None = _with(self._settings.url, {**self._params, **extra, **self._first()})
        count, last = 0, ""
        while url is not None:
            if url in seen:
                raise SourceError(f"{self._name}: page {len(seen) + 1} of {self._shown} is one that was read already")
            if len(seen) >= self._settings.max_pages:
                raise SourceError(
                    f"{self._name}: {self._shown} has more than max_pages={self._settings.max_pages} pages: raise it, "
                    "or ask for more records a page"
                )
            seen.add(url)
            place, before = text_hash(url)[:16], pages.get(text_hash(url)[:16], {})
            if not self._still_holds(before, known):
                before = {}
            response = self._client.get(url, validators=before.get("validators"), accept="application/json")
            found.requests += 1
            if before and response.status == 304:
                found.pages[place] = before
                for key, uri in before["ids"]:
                    found.listed.setdefault(key, Listed(key, known.versions[key], uri))
                count += before["count"]
                url = self._restored(before["next"])
                continue
            if response.status == 404 and len(seen) > 1 and isinstance(self._settings.pagination, NumberedPages):
                break  # some say so that there is no such page
            payload = self._payload(url, response)
            records = self._records(payload, len(seen))
            if records and isinstance(self._settings.pagination, NumberedPages | OffsetPages):
                if (same := fingerprint(records)) == last:
                    raise SourceError(
                        f"{self._name}: pages {len(seen) - 1} and {len(seen)} of {self._shown} are the same; does it "
                        f"know the parameter {self._settings.pagination.param!r}?"
                    )
                last = same
            ids = self._take(records, found, known, place=f"page {len(seen)}")
            count += len(records)
            url = self._next(url, response, payload, records, len(seen), count)
            if ids is not None and (validators := response.validators):
                versions = [found.listed[key].version for key, _ in ids]
                found.pages[place] = {
                    "validators": validators,
                    "ids": ids,
                    "versions": fingerprint(versions)[:16],
                    "count": len(records),
                    "next": self._stored(url),
                }
        return found

    def _still_holds(self, page: Mapping[str, Any], known: Known) -> bool:
        """Whether what a page listed is indexed, so that it need not be read where it did not change."""
        versions = [known.versions.get(key) for key, _ in page.get("ids", ())]
        return bool(page) and fingerprint(versions)[:16] == page["versions"]

    def _first(self) -> dict[str, str]:
        match self._settings.pagination:
            case NumberedPages(param=param, start=start):
                return {param: str(start)}
            case OffsetPages(param=param):
                return {param: "0"}
        return {}

    def _next(
        self, url: str, response: Response, payload: Any, records: Sequence[Any], pages: int, count: int
    ) -> str | None:
        match self._settings.pagination:
            case LinkPages():
                target = next_link(response.headers.get("link", ""))
                return None if target is None else urljoin(response.url, target)
            case CursorPages(path=path, param=param):
                cursor = at_path(payload, path)
                if cursor in (None, "", False):
                    return None
                if not isinstance(cursor, str):
                    raise SourceError(f"{self._name}: {path!r} in page {pages} of {self._shown} is no text or number")
                absolute = cursor.startswith(("http://", "https://"))
                return cursor if absolute else _with(url, {param: cursor})
            case NumberedPages(param=param, start=start):
                return _with(url, {param: str(start + pages)}) if records else None
            case OffsetPages(param=param):
                return _with(url, {param: str(count)}) if records else None
        return None

    def _stored(self, url: str | None) -> Sequence[Any] | None:
        """An address with only the names of the parameters that the settings give: their values may be secret."""
        if url is None:
            return None
        base, _, query = url.partition("?")
        own = {urlencode({key: value}): [key] for key, value in self._params.items()}
        return base, [own.get(pair, pair) for pair in query.split("&") if pair]

    def _restored(self, stored: Sequence[Any] | None) -> str | None:
        if stored is None:
            return None
        base, pairs = stored
        query = [pair if isinstance(pair, str) else urlencode({pair[0]: self._params[pair[0]]}) for pair in pairs]
        return f"{base}?{'&'.join(query)}" if query else str(base)

    def _payload(self, url: str, response: Response) -> Any:
        body = self._client.body_of(url, response)
        try:
            return json.loads(body, parse_float=str, parse_int=str, parse_constant=str)  # numbers as they are written
        except (ValueError, RecursionError) as error:
            raise SourceError(
                f"{self._name}: {without_credentials(url)} answers {response.content_type or 'something'!r} that is no "
                f"JSON ({len(body)} bytes): {error}"
            ) from None

    def _records(self, payload: Any, page: int) -> Sequence[Any]:
        path = self._settings.records
        records = payload if path is None else at_path(payload, path)
        if isinstance(records, list):
            return records
        where = "is no list: say in 'records' where it is" if path is None else f"has no list at {path!r}"
        found = f"; fields: {', '.join(sorted(payload))}" if isinstance(payload, dict) else ""
        raise SourceError(f"{self._name}: page {page} of {self._shown} {where}{found:.500}")

    # --- records

    def _take(
        self, records: Sequence[Any], found: _Found, known: Known, *, place: str
    ) -> Sequence[tuple[str, str]] | None:
        """Note the records of one page; its ids and uris, or None where a record is broken."""
        ids: dict[str, str] = {}
        whole = True
        for number, record in enumerate(records, 1):
            row = self._row(record)
            found.fields.update(row)
            listed = self._listed(row, record, place=f"record {number} of {place}")
            key = listed.document_id
            if self._settings.deleted is not None and is_marked(row.get(self._settings.deleted, "")):
                found.deleted.add(key)
                found.listed.pop(key, None)
                continue
            if key in ids and listed.version != found.listed[key].version:
                listed = replace(listed, error=f"key {key!r} occurs twice in {place}: keep one")
            whole = whole and listed.error is None
            found.nameless += self._documents.key(row) != key
            found.deleted.discard(key)
            found.listed[key] = listed
            ids[key] = listed.uri
            if listed.updated_at is not None:
                found.newest = max(found.newest or listed.updated_at, listed.updated_at)
            if listed.error is None and known.versions.get(key) != listed.version:
                self._rows[key] = row
        return [*ids.items()] if whole else None

    def _row(self, record: Any) -> dict[str, str]:
        if not isinstance(record, dict):
            return {}
        row = dict(_flat(record, "", 0))
        for name in self._named - row.keys():  # an object as a whole, where a template names it
            if (value := at_path(record, str(name))) is not None:
                row[str(name)] = cell(value)
        return row

    def _listed(self, row: dict[str, str], record: Any, *, place: str) -> Listed:
        at = self._settings.updated_at
        stated = {**row, at: _time(row[at])} if at and at in row else row
        try:
            listed = self._documents.listed(stated, place=place)
        except SourceError:
            nameless = f"no {self._settings.key}: {fingerprint(record)[:12]}"
            why = (
                f"{place} has no {self._settings.key} that can be stored: {json.dumps(record, ensure_ascii=True):.200}"
            )
            return Listed(nameless, "?", self._shown, error=why)
        if any(not storable(value) for value in row.values()):
            return replace(listed, error=f"{place} holds characters that are no text: NUL or half an emoji")
        uri = self._uri(row) or listed.uri
        when = listed.updated_at.astimezone(UTC) if listed.updated_at else None
        return replace(listed, uri=uri, updated_at=when, version=fingerprint(listed.version, uri)[:32])

    def _uri(self, row: Row) -> str | None:
        """Where people read the record; only an address of the web is one."""
        filled = self._link.fill(row).strip()
        uri = urljoin(self._shown, filled)
        return uri if filled and uri.startswith(("http://", "https://")) else None

    def read(self, listed: Listed) -> Document:
        """Fill in the templates."""
        row = self._rows.get(listed.document_id)
        if row is None and listed.error is None:
            raise DocumentError(f"{listed.document_id}: was as it is known when it was listed; list it again")
        return self._documents.document(listed, row or {})

    def close(self) -> None:
        """Close the connections and forget the rows."""
        self._client.close()
        self._rows.clear()


def at_path(value: Any, path: str) -> Any:
    """What lies at a dotted path, or None; numbers count in lists, and a name may itself hold dots."""
    if isinstance(value, dict) and path in value:
        return value[path]
    first, _, rest = path.partition(".")
    while True:
        if isinstance(value, dict) and first in value:
            inner = value[first]
        elif isinstance(value, list) and re.fullmatch(r"-?\d+", first) and -len(value) <= int(first) < len(value):
            inner = value[int(first)]
        else:
            inner = None
        if inner is not None and rest:
            inner = at_path(inner, rest)
        if inner is not None or not rest or not isinstance(value, dict):
            return inner
        more, _, rest = rest.partition(".")
        first = f"{first}.{more}"


def next_link(header: str) -> str | None:
    """Target of the link with rel=next, as RFC 8288 writes it."""
    for match in re.finditer(r"<([^>]*)>((?:\s*;\s*[^\s=;,]+(?:\s*=\s*(?:\"[^\"]*\"|[^\s;,]*))?)*)", header):
        rel = re.search(r";\s*rel\s*=\s*(?:\"([^\"]*)\"|([^\s;,]*))", match[2], re.IGNORECASE)
        if rel and "next" in (rel[1] or rel[2] or "").lower().split():
            return match[1]
    return None


def _with(url: str, params: Mapping[str, str]) -> str:
    """``url`` with query parameters, each in the place of one of the same name."""
    if not params:
        return url
    pairs = [pair for pair in parse_qsl(urlsplit(url).query, keep_blank_values=True) if pair[0] not in params]
    return urlsplit(url)._replace(query=urlencode([*pairs, *params.items()]), fragment="").geturl()


def _flat(record: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    for key, value in record.items():
        if isinstance(value, dict) and value and depth < _DEEPEST:
            yield from _flat(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", cell(value)


def _time(text: str) -> str:
    """A time in ISO 8601, where it is stated as a number or as in mail."""
    text = text.strip()
    try:
        if re.fullmatch(r"\d+(\.\d+)?", text):
            seconds = float(text)
            return moment(seconds / 1000 if seconds >= _MILLISECONDS else seconds).isoformat()
    except (ValueError, OverflowError, OSError):
        return text
    if stated_moment(text)[1] and (stated := http_date(text)):
        return stated.isoformat()
    return text


def _written(when: datetime, form: str) -> str:
    if form == "iso":
        return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return str(int(when.timestamp() * (1000 if form == "milliseconds" else 1)))
