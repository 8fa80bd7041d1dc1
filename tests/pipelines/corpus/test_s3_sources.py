"""Object stores: S3 against moto's server, Google Cloud Storage against the little of its JSON API that is used."""

from __future__ import annotations

import json
import os
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from pipelines.corpus.documents import Document
from pipelines.corpus.settings import FolderSource, TableSource
from pipelines.corpus.sources import open_source
from pipelines.corpus.sources.base import Known, Source
from pipelines.errors import DocumentError, SourceError, SourceUnavailableError

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # read at import: else it asks by gRPC what the bucket is


def folder(url: str, **settings: Any) -> Source:
    return open_source(FolderSource(name="docs", type="folder", url=url, **settings), base=Path("/"))


def text(document: Document | DocumentError) -> str:
    if isinstance(document, DocumentError):
        return str(document)
    return "\n".join(block.text for section in document.sections for block in section.blocks)


@pytest.fixture
def s3(s3_store: Any) -> Any:
    """A client of an empty bucket for documents."""
    s3_store.create_bucket(Bucket="library")
    return s3_store


def put(s3: Any, **objects: str) -> None:
    for key, body in objects.items():
        s3.put_object(Bucket="library", Key=key.replace("__", "/"), Body=body.encode())


def test_a_bucket_is_a_folder_whose_tags_are_versions(s3: Any) -> None:
    """I6, I14: an edit is another version, the same bytes again are none, and what is deleted is gone."""
    put(s3, **{"docs__a.md": "# A\n\nfirst", "docs__deep__b.TXT": "second", "docs__c.bin": "x", "other.md": "x"})
    source = folder("s3://library/docs")
    first = source.list().documents
    assert [(each.document_id, each.uri) for each in first] == [
        ("a.md", "s3://library/docs/a.md"),
        ("deep/b.TXT", "s3://library/docs/deep/b.TXT"),
    ]
    assert all(each.updated_at is not None for each in first)
    assert [text(found) for _, found in source.read_all(first)] == ["first", "second"]
    put(s3, **{"docs__a.md": "edited", "docs__deep__b.TXT": "second"})
    edited, same = source.list().documents
    assert edited.version != first[0].version
    assert same.version == first[1].version
    assert text(source.read(edited)) == "edited"
    s3.delete_object(Bucket="library", Key="docs/a.md")
    assert [each.document_id for each in source.list().documents] == ["deep/b.TXT"]
    assert [each.document_id for each in folder("s3://library/").list().documents] == ["docs/deep/b.TXT", "other.md"]


def test_more_keys_than_one_page_are_all_listed(s3: Any) -> None:
    """I7: a page is never taken for the whole."""
    from moto.s3.models import s3_backends

    for number in range(1005):  # past the protocol, which takes 5 ms each
        s3_backends["123456789012"]["aws"].put_object("library", f"docs/{number:04}.txt", b"x")
    listed = folder("s3://library/docs").list().documents
    assert [each.document_id for each in listed] == [f"{number:04}.txt" for number in range(1005)]


def test_markers_of_folders_are_no_documents_and_odd_keys_are(s3: Any) -> None:
    put(
        s3,
        **{"docs/": "", "docs__sub/": "", "docs__sub__a b#?.md": "odd", "docs//a.md": "slash", "docs__a.md": "plain"},
    )
    source = folder("s3://library/docs", glob=("**",))
    found = {each.document_id: text(document) for each, document in source.read_all(source.list().documents)}
    assert found == {"/a.md": "slash", "a.md": "plain", "sub/a b#?.md": "odd"}


def test_empty_and_large_objects(s3: Any) -> None:
    """I10, I19"""
    put(s3, **{"docs__empty.txt": "", "docs__large.txt": "x" * 101})
    source = folder("s3://library/docs", max_bytes=100)
    empty, large = source.list().documents
    with pytest.raises(DocumentError, match="empty"):
        source.read(empty)
    with pytest.raises(DocumentError, match="more than max_bytes=100"):
        source.read(large)


def test_an_object_that_went_away_fails_alone(s3: Any) -> None:
    """I10, I19"""
    put(s3, **{f"docs__{number:02}.txt": "x" for number in range(20)})
    source = folder("s3://library/docs")
    listed = source.list().documents
    s3.delete_object(Bucket="library", Key="docs/07.txt")
    found = [*source.read_all(listed)]
    assert [each for each, _ in found] == [*listed]
    assert [each.document_id for each, document in found if isinstance(document, DocumentError)] == ["07.txt"]


@pytest.mark.parametrize("url", ["s3://nowhere/docs", "s3://nowhere", "s3://library/docs", "s3://library/docs/a.md"])
def test_a_missing_bucket_or_prefix_and_a_single_object_are_errors_and_never_empty(s3: Any, url: str) -> None:
    """I7"""
    if url.endswith("a.md"):
        put(s3, **{"docs__a.md": "x"})
    with pytest.raises(SourceError, match=r"does not exist|is a file"):
        folder(url).list()


def test_a_prefix_may_be_empty_where_that_is_allowed(s3: Any) -> None:
    """I7"""
    assert folder("s3://library/docs", allow_empty=True).list().documents == []
    with pytest.raises(SourceError):
        folder("s3://nowhere/docs", allow_empty=True).list()


def test_refused_access_is_an_error_and_never_empty(s3_server: str, s3: Any) -> None:
    """I7"""
    import requests

    put(s3, **{"docs__a.md": "x"})
    source = folder("s3://library/docs")
    listed = source.list().documents
    requests.post(f"{s3_server}/moto-api/reset-auth", data="0", timeout=10)  # from now on, users need permission
    try:
        with pytest.raises((SourceError, SourceUnavailableError)):
            source.list()
        with pytest.raises((DocumentError, SourceUnavailableError)):
            source.read(listed[0])
    finally:
        requests.post(f"{s3_server}/moto-api/reset-auth", data="inf", timeout=10)


def test_a_store_that_is_away_is_unavailable_and_its_keys_are_not_said(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I7"""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = {
        "key": "key-in-yaml",
        "secret": "secret-in-yaml",
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    settings = FolderSource(name="docs", type="folder", url="s3://library", options=options)
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    with pytest.raises(SourceUnavailableError, match=r"127\.0\.0\.1:9") as caught:
        open_source(settings, base=Path("/")).list()
    said = "".join(traceback.format_exception(caught.value)) + repr(settings)
    assert "in-yaml" not in said


def test_options_say_where_a_store_is(s3_server: str, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, **{"a.md": "found"})
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    source = folder("s3://library", options={"endpoint_url": s3_server, "key": "a", "secret": "b"})
    [listed] = source.list().documents
    assert text(source.read(listed)) == "found"


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_table_in_a_bucket_is_only_fetched_when_it_changed(s3: Any, suffix: str) -> None:
    rows = {"csv": "id,name\n1,Pump\n2,Valve\n", "jsonl": '{"id": 1, "name": "Pump"}\n{"id": 2, "name": "Valve"}\n'}
    put(s3, **{f"t.{suffix}": rows[suffix]})
    url = f"s3://library/t.{suffix}"
    source = open_source(TableSource(name="t", type="table", url=url, key="id", text="{name}"), base=Path("/"))
    first = source.list()
    assert {each.document_id: text(found) for each, found in source.read_all(first.documents)} == {
        "1": "Pump",
        "2": "Valve",
    }
    known = Known({each.document_id: each.version for each in first.documents}, (), first.state)
    assert (source.list(known).documents, source.list(known).removed) == ((), ())
    put(s3, **{f"t.{suffix}": rows[suffix].replace("Valve", "Gate")})
    second = source.list(known)
    assert [one.version == two.version for one, two in zip(first.documents, second.documents, strict=True)] == [
        True,
        False,
    ]
    source.close()
    s3.delete_object(Bucket="library", Key=f"t.{suffix}")
    with pytest.raises(SourceError, match="does not exist"):
        source.list(known)


class Store(BaseHTTPRequestHandler):
    """The calls of Google's JSON API that a listing and a read need, two objects a page."""

    objects: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        parts = unquote(url.path).split("/b/", 1)[1].split("/", 2)
        if parts[0] != "library":
            return self.answer(404, {"error": {"code": 404, "message": "no such bucket"}})
        if len(parts) == 1:
            return self.answer(200, {"kind": "storage#bucket", "name": "library"})
        if len(parts) == 3:
            if (data := self.objects.get(parts[2])) is None:
                return self.answer(404, {"error": {"code": 404, "message": "no such object"}})
            return self.answer(200, data if query.get("alt") == "media" else self.described(parts[2]))
        names = sorted(name for name in self.objects if name.startswith(query.get("prefix", "")))
        start = int(query.get("pageToken", 0))
        page: dict[str, Any] = {
            "kind": "storage#objects",
            "items": [self.described(name) for name in names[start : start + 2]],
        }
        return self.answer(200, page | ({"nextPageToken": str(start + 2)} if len(names) > start + 2 else {}))

    def described(self, name: str) -> dict[str, Any]:
        data = self.objects[name]
        return {
            "name": name,
            "bucket": "library",
            "size": str(len(data)),
            "md5Hash": f"{hash(data):x}",
            "updated": "2026-05-01T12:00:00.000Z",
            "contentType": "text/plain",
        }

    def answer(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self.headers.get("Range") and isinstance(body, bytes):
            start, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
            data, status = data[int(start) : int(end or len(data)) + 1], 206
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, bytes) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def test_google_cloud_storage_is_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """I7"""
    import gcsfs

    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    try:
        Store.objects = {f"docs/{name}.md": name.encode() for name in "abcde"} | {"docs/": b"", "x.md": b"x"}
        source = folder("gs://library/docs", options={"token": "anon"})
        first = source.list().documents
        assert [each.uri for each in first] == [f"gs://library/docs/{name}.md" for name in "abcde"]
        assert [text(found) for _, found in source.read_all(first)] == [*"abcde"]
        Store.objects["docs/a.md"] = b"edited"
        del Store.objects["docs/e.md"]
        second = source.list().documents
        assert [one.version == two.version for one, two in zip(first, second, strict=False)] == [
            False,
            True,
            True,
            True,
        ]
        for missing in ("gs://library/nowhere", "gs://nowhere/docs"):
            with pytest.raises(SourceError):
                folder(missing, options={"token": "anon"}).list()
    finally:
        server.shutdown()
        server.server_close()
        gcsfs.GCSFileSystem.clear_instance_cache()
